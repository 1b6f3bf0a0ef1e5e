//! The figures: as Markdown tables (which read well on a terminal, too) and as JSON; and whether each target is met.

use std::fmt::Write as _;

use sallyport_sensor::kernel::Mode;
use serde_json::json;

use crate::counters::Samples;
use crate::load::Operation;
use crate::measure::{Cost, Size};
use crate::pure::Pure;
use crate::rules::SIZES;

/// Everything that was measured.
pub(crate) struct Report {
    pub(crate) mode: Mode,
    pub(crate) sizes: Vec<Size>,
    pub(crate) costs: Vec<Cost>,
    pub(crate) pure: Vec<Pure>,
    pub(crate) rounds: usize,
}

/// A promise, and what came of it.
struct Target {
    what: String,
    limit: f64,
    value: f64,
    unit: &'static str,
}

impl Target {
    fn met(&self) -> bool {
        self.value <= self.limit
    }
}

/// Times mean nothing in software emulation.
fn emulated() -> bool {
    std::env::var_os("SALLYPORT_EMULATED").is_some()
}

impl Report {
    fn targets(&self) -> Vec<Target> {
        let mut targets = Vec::new();
        let mut add = |what: String, limit, value, unit| targets.push(Target { what, limit, value, unit });
        for cost in &self.costs {
            let name = cost.operation.name();
            if !emulated() {
                let limit = match cost.operation {
                    Operation::Exec | Operation::Unrecorded => 3_000.0,
                    Operation::Open | Operation::Connect => 1_000.0,
                };
                let dearest = cost.tagged.iter().map(|samples| samples.median()).fold(0.0, f64::max);
                add(format!("{name} in a session, at any size"), limit, dearest, "ns");
                add(format!("{name} outside of sessions"), 100.0, cost.untagged.median(), "ns");
            }
            add(format!("{name}, 10,000 rules beside 1"), 1.2, ratio(&cost.tagged, SIZES.len() - 1), "times");
        }
        for pure in &self.pure {
            let which = if pure.spread { "128 different ones" } else { "the same again" };
            let what = format!("{} alone ({which}), 10,000 rules beside 1", pure.name);
            add(what, 1.2, ratio(&pure.sizes, SIZES.len() - 1), "times");
        }
        if let Some(largest) = self.sizes.last() {
            add("tables of 10,000 rules".to_owned(), 64.0, largest.mebibytes, "MiB");
        }
        targets
    }

    pub(crate) fn all_met(&self) -> bool {
        // A guest in emulation only reports.
        emulated() || self.targets().iter().all(Target::met)
    }

    pub(crate) fn text(&self) -> String {
        let mut text = String::new();
        let _ = self.write(&mut text);
        text
    }

    /// For a terminal; on the console of a virtual machine each line is marked.
    pub(crate) fn shown(&self) -> String {
        let mark = if emulated() { "figures: " } else { "" };
        self.text().lines().map(|line| format!("{mark}{line}\n")).collect()
    }

    fn write(&self, text: &mut String) -> std::fmt::Result {
        if emulated() {
            writeln!(
                text,
                "Mode {}, in software emulation: times mean nothing, only ratios are given.\n",
                self.mode
            )?;
        } else {
            writeln!(
                text,
                "Mode {}. Nanoseconds per decision: median of {} rounds (least to most).\n",
                self.mode, self.rounds
            )?;
        }
        write!(text, "| decision | untagged |")?;
        for size in &self.sizes {
            write!(text, " {} {} |", thousands(size.rules), if size.rules == 1 { "rule" } else { "rules" })?;
        }
        writeln!(text, " 10,000 beside 1 |")?;
        writeln!(text, "|---|{}---|", "---|".repeat(1 + self.sizes.len()))?;
        for cost in &self.costs {
            write!(text, "| {} |", cost.operation.name())?;
            for (at, samples) in std::iter::once(&cost.untagged).chain(&cost.tagged).enumerate() {
                match (emulated(), at) {
                    (true, 0) => write!(text, " |")?,
                    (true, at) => write!(text, " × {:.2} |", ratio(&cost.tagged, at - 1))?,
                    (false, _) => write!(
                        text,
                        " {:.0} ({:.0} to {:.0}) |",
                        samples.median(),
                        samples.least(),
                        samples.most()
                    )?,
                }
            }
            writeln!(text, " × {:.2} |", ratio(&cost.tagged, SIZES.len() - 1))?;
        }
        self.write_pure(text)?;
        writeln!(text, "\n| rules | tables, MiB | compiled in, s |\n|---|---|---|")?;
        for size in &self.sizes {
            let seconds = if emulated() { String::new() } else { format!("{:.2}", size.compile_seconds) };
            writeln!(text, "| {} | {:.2} | {seconds} |", thousands(size.rules), size.mebibytes)?;
        }
        writeln!(text, "\n| target | at most | measured | |\n|---|---|---|---|")?;
        for target in self.targets() {
            let verdict = if target.met() { "met" } else { "**missed**" };
            writeln!(
                text,
                "| {} | {} {unit} | {:.2} {unit} | {verdict} |",
                target.what,
                target.limit,
                target.value,
                unit = target.unit
            )?;
        }
        Ok(())
    }

    /// The decisions alone.
    fn write_pure(&self, text: &mut String) -> std::fmt::Result {
        writeln!(
            text,
            "\nThe decision alone, from the resolved path on: the kernel's test run of the same code, no process around it.\n"
        )?;
        write!(text, "| decision alone |")?;
        for size in &self.sizes {
            write!(text, " {} {} |", thousands(size.rules), if size.rules == 1 { "rule" } else { "rules" })?;
        }
        writeln!(text, " 10,000 beside 1 |\n|---|{}---|", "---|".repeat(self.sizes.len()))?;
        for pure in &self.pure {
            write!(
                text,
                "| {}, {} |",
                pure.name,
                if pure.spread { "128 different ones" } else { "the same again" }
            )?;
            for (at, samples) in pure.sizes.iter().enumerate() {
                if emulated() {
                    write!(text, " × {:.2} |", ratio(&pure.sizes, at))?;
                } else {
                    write!(
                        text,
                        " {:.0} ({:.0} to {:.0}) |",
                        samples.median(),
                        samples.least(),
                        samples.most()
                    )?;
                }
            }
            writeln!(text, " × {:.2} |", ratio(&pure.sizes, SIZES.len() - 1))?;
        }
        Ok(())
    }

    pub(crate) fn print_json(&self) {
        for cost in &self.costs {
            let samples = std::iter::once((None, &cost.untagged))
                .chain(self.sizes.iter().map(|size| Some(size.rules)).zip(&cost.tagged));
            for (rules, samples) in samples.filter(|_| !emulated()) {
                println!(
                    "{}",
                    json!({
                        "name": format!("kernel {}", cost.operation.name()), "tagged": rules.is_some(), "rules": rules,
                        "value": samples.median(), "least": samples.least(), "most": samples.most(), "unit": "ns",
                        "mode": self.mode,
                    })
                );
            }
        }
        for pure in self.pure.iter().filter(|_| !emulated()) {
            for (size, samples) in self.sizes.iter().zip(&pure.sizes) {
                println!(
                    "{}",
                    json!({
                        "name": format!("kernel {}, decision alone", pure.name), "different": pure.spread, "rules": size.rules,
                        "value": samples.median(), "least": samples.least(), "most": samples.most(), "unit": "ns",
                    })
                );
            }
        }
        for size in &self.sizes {
            println!(
                "{}",
                json!({ "name": "kernel tables", "rules": size.rules, "value": size.mebibytes, "unit": "MiB" })
            );
        }
        for target in self.targets() {
            println!(
                "{}",
                json!({
                    "name": format!("target: {}", target.what), "limit": target.limit, "value": target.value,
                    "unit": target.unit, "met": target.met(),
                })
            );
        }
    }
}

/// A size's median beside that of one rule.
fn ratio(sizes: &[Samples], size: usize) -> f64 {
    match (sizes.get(size), sizes.first()) {
        (Some(size), Some(one)) => size.median() / one.median(),
        _ => f64::NAN,
    }
}

fn thousands(number: usize) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}
