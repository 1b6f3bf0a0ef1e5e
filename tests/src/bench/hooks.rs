//! Nanoseconds per run of each kernel program: the kernel's own counters (`kernel.bpf_stats_enabled`), which
//! add about 20 ns of their own to each run.

use std::collections::BTreeMap;
use std::process::Command;

use anyhow::{Context, Result};
use sallyport_e2e::child::finish;
use sallyport_e2e::wait;
use serde_json::Value;

use super::figures::{Figure, Figures};
use super::{Bench, TARGET, starts};

const SWITCH: &str = "/proc/sys/kernel/bpf_stats_enabled";

/// By program id: name, nanoseconds, runs.
pub(crate) type Counters = BTreeMap<u64, (String, f64, f64)>;

/// Every program in the kernel now.
pub(crate) fn programs() -> Result<Counters> {
    let listed =
        finish(Command::new("bpftool").args(["-j", "prog", "show"]), b"", wait::PATIENCE)?.success()?;
    let programs: Value = serde_json::from_slice(&listed.stdout).context("read what bpftool printed")?;
    let number = |program: &Value, key: &str| program[key].as_f64().unwrap_or(0.0);
    Ok(programs
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|program| {
            let name = program["name"].as_str().unwrap_or("?").to_owned();
            Some((
                program["id"].as_u64()?,
                (name, number(program, "run_time_ns"), number(program, "run_cnt")),
            ))
        })
        .collect())
}

/// Switches the counters on, and back at the end.
struct Counting(String);

impl Counting {
    fn on() -> Result<Self> {
        let before = std::fs::read_to_string(SWITCH).context("this kernel does not count")?;
        std::fs::write(SWITCH, "1")?;
        Ok(Self(before))
    }
}

impl Drop for Counting {
    fn drop(&mut self) {
        let _ = std::fs::write(SWITCH, self.0.trim());
    }
}

/// Process starts and connections, tagged and untagged; `others` are programs that are not ours.
pub(crate) fn measure(bench: &mut Bench, others: &Counters, figures: &mut Figures) -> Result<()> {
    let _counting = Counting::on()?;
    let ours = |counters: Counters| -> Counters {
        counters.into_iter().filter(|(id, _)| !others.contains_key(id)).collect()
    };
    let connects = format!(
        "perl -MSocket -e 'for (1..{CONNECTS}) {{ socket(my $s, PF_INET, SOCK_DGRAM, 0); \
         connect($s, pack_sockaddr_in(9, inet_aton(\"127.0.0.1\"))) }}'"
    );
    for (work, line, operations) in
        [("exec", starts::loop_line(STARTS), STARTS), ("connect", connects, CONNECTS)]
    {
        let mut totals = Vec::new();
        for tagged in [false, true] {
            let before = ours(programs()?);
            if tagged {
                bench.alice.run(TARGET, &line)?.success()?;
            } else {
                finish(Command::new("bash").args(["-c", &line]), b"", wait::PATIENCE)?.success()?;
            }
            let after = ours(programs()?);
            let who = if tagged { "tagged" } else { "untagged" };
            let mut total = 0.0;
            for (id, (name, time, runs)) in &after {
                let (_, time_before, runs_before) = before.get(id).cloned().unwrap_or_default();
                let (time, runs) = (time - time_before, runs - runs_before);
                total += time;
                // What ran now and then belongs to something else on the computer.
                if runs >= f64::from(operations) * 0.9 {
                    let name = format!("hook {name}, {who} {work}");
                    figures.add(&Figure {
                        name: &name,
                        value: time / runs,
                        unit: "ns",
                        baseline: None,
                        beside: "",
                    });
                }
            }
            totals.push(total / f64::from(operations));
        }
        let (untagged, tagged) = (totals[0], totals[1]);
        let name = format!("hooks, all of one untagged {work}");
        figures.add(&Figure { name: &name, value: untagged, unit: "ns", baseline: None, beside: "" });
        let name = format!("hooks, all of one tagged {work}");
        figures.add(&Figure {
            name: &name,
            value: tagged,
            unit: "ns",
            baseline: Some(untagged),
            beside: "untagged",
        });
    }
    Ok(())
}

const STARTS: u32 = 2000;
const CONNECTS: u32 = 5000;
