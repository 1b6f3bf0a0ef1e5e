//! Beside others on the same computer, in one run: process starts, file opens and connects per second, bare, with the sensor,
//! in a session, with auditd, with bpftrace. Rounds are interleaved, begin and end with the bare loads, and each setting is
//! compared with those of its own round: so what else the computer does meets all alike.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use sallyport_e2e::child::finish;
use sallyport_e2e::ssh::Ssh;
use sallyport_e2e::{Stage, StageOptions, bundles, wait};

use super::TARGET;
use super::figures::{Figure, Figures};
use super::load::{LOADS, rate, words};
use super::others::{Auditd, Bpftrace, remove_rules};

const ROUNDS: usize = 7;
/// Each load, in each round.
const TIME: Duration = Duration::from_millis(600);

/// Everything that is compared, in the order of each round.
const SETTINGS: [&str; 5] = [
    "bare",
    "sensor, outside of sessions",
    "sensor, in a session",
    "auditd with rules",
    "bpftrace one-liner",
];

/// What was measured: rates by setting, load and round.
pub(crate) struct Comparison {
    rates: [[Vec<f64>; LOADS.len()]; SETTINGS.len()],
    /// Bare, at the end of each round.
    last: [Vec<f64>; LOADS.len()],
    /// Bare, before the audit subsystem was ever used.
    first: [Vec<f64>; LOADS.len()],
    /// Why a setting was left out.
    missing: Vec<(usize, String)>,
}

/// Measures all settings.
pub(crate) fn measure(folder: &Path) -> Result<Comparison> {
    remove_rules();
    let folder = folder.join("beside");
    std::fs::create_dir_all(&folder)?;
    let mut comparison = Comparison {
        rates: Default::default(),
        last: Default::default(),
        first: Default::default(),
        missing: Vec::new(),
    };
    let mut place = Place::start(&folder)?;
    for _ in 0..ROUNDS {
        outside(&mut comparison.first)?;
    }
    for round in 0..ROUNDS {
        eprintln!("beside others: round {} of {ROUNDS}", round + 1);
        for (setting, title) in SETTINGS.iter().enumerate() {
            if comparison.missing.iter().any(|(missing, _)| *missing == setting) {
                continue;
            }
            let rates = &mut comparison.rates[setting];
            let outcome = match setting {
                0 => outside(rates),
                1 => place.start_sensor().and_then(|()| outside(rates)),
                2 => place.inside(rates).and_then(|()| place.stop_sensor()),
                3 => Auditd::start(&folder).and_then(|auditd| outside(rates).and_then(|()| auditd.check())),
                _ => Bpftrace::start(&folder)
                    .and_then(|bpftrace| outside(rates).and_then(|()| bpftrace.check())),
            };
            match outcome {
                Ok(()) => {}
                // Others may not work here; ours must.
                Err(error) if setting > 2 && !wait::interrupted() => {
                    eprintln!("{title} is left out: {error:#}");
                    comparison.missing.push((setting, format!("{error:#}")));
                }
                Err(error) => return Err(error.context(*title)),
            }
        }
        outside(&mut comparison.last)?;
    }
    Ok(comparison)
}

/// Every load once, outside of sessions.
fn outside(rates: &mut [Vec<f64>; LOADS.len()]) -> Result<()> {
    let me = std::env::current_exe()?;
    for (load, rates) in rates.iter_mut().enumerate() {
        let finished = finish(Command::new(&me).args(words(load, TIME)), b"", wait::PATIENCE)?;
        rates.push(rate(&finished.success()?.out())?);
    }
    Ok(())
}

/// The whole product, whose sensor comes and goes.
struct Place {
    stage: Stage,
    alice: Ssh,
    person: sallyport_e2e::command_line::Person,
    program: PathBuf,
}

impl Place {
    fn start(folder: &Path) -> Result<Self> {
        let bundle = bundle(&folder.join("bundle"))?;
        let mut stage = Stage::start(&StageOptions { bundle, ..StageOptions::default() })?;
        let person = stage.signed_in("alice")?;
        stage.wait_for_sensor(&person)?;
        let alice = stage.ssh_with_certificate(&person)?;
        let mut place = Self { stage, alice, person, program: std::env::current_exe()? };
        place.stop_sensor()?;
        Ok(place)
    }

    fn start_sensor(&mut self) -> Result<()> {
        self.stage.start_sensor()?;
        self.stage.wait_for_sensor(&self.person).map(drop)
    }

    /// The programs are taken out of the kernel, too.
    fn stop_sensor(&mut self) -> Result<()> {
        self.stage.sensor()?.stop();
        let mut uninstall = self.stage.sensor_command(&["uninstall"])?;
        finish(&mut uninstall, b"", wait::PATIENCE)?.success().context("uninstall the sensor").map(drop)
    }

    fn inside(&mut self, rates: &mut [Vec<f64>; LOADS.len()]) -> Result<()> {
        for (load, rates) in rates.iter_mut().enumerate() {
            let line = format!("{} {}", self.program.display(), words(load, TIME).join(" "));
            let run = || -> Result<f64> {
                let finished = self.alice.run(TARGET, &line)?;
                rate(&finished.success().context("the load in a session")?.out())
            };
            // A busy computer may be late once.
            rates.push(run().or_else(|error| {
                eprintln!("in a session, once more: {error:#}");
                run()
            })?);
        }
        Ok(())
    }
}

/// Everything is permitted and recorded; one rule of each kind forbids something else, so that nothing is decided without looking.
fn bundle(folder: &Path) -> Result<PathBuf> {
    const RULES: &str = r#"
@id("enter") permit(principal, action == Action::"open_session", resource) when { context.local_user == "root" };
@id("all") permit(principal, action in [Action::"exec", Action::"connect", Action::"listen", Action::"system",
  Action::"read_file", Action::"write_file", Action::"create_file", Action::"delete_file", Action::"rename_file",
  Action::"link_file", Action::"change_file", Action::"map_code", Action::"connect_unix"], resource);
@id("program") @reason("not here") forbid(principal, action == Action::"exec", resource)
  when { context.path like "/opt/forbidden/*" || context.name == "forbidden" };
@id("destination") @reason("not here") forbid(principal, action == Action::"connect", resource)
  when { context.address.isInRange(ip("127.77.0.0/16")) };
@id("file") @reason("not here") forbid(principal, action in [Action::"read_file", Action::"write_file"], resource)
  when { context.path like "/opt/forbidden/*" };
"#;
    std::fs::create_dir_all(folder)?;
    std::fs::write(folder.join("bundle.toml"), "name = \"bench\"\nschema = 2\n")?;
    std::fs::write(folder.join("bench.cedar"), RULES)?;
    // The same people and hosts as in the tests.
    std::fs::copy(bundles::small()?.join("entities.json"), folder.join("entities.json"))?;
    Ok(folder.to_owned())
}

impl Comparison {
    pub(crate) fn add_to(&self, figures: &mut Figures) {
        for (load, name) in LOADS.iter().enumerate() {
            let bare = Spread::of(&self.bare(load));
            for (setting, title) in SETTINGS.iter().enumerate() {
                let Some(spread) = Spread::of(&self.rates[setting][load]) else { continue };
                let baseline = bare.as_ref().map(|bare| bare.median);
                let name = format!("{name}, {title}");
                figures.add(&Figure {
                    name: &name,
                    value: spread.median,
                    unit: "1/s",
                    baseline,
                    beside: "bare",
                });
            }
        }
    }

    /// The bare rate of a load in each round: between that at its beginning and that at its end.
    fn bare(&self, load: usize) -> Vec<f64> {
        self.rates[0][load]
            .iter()
            .zip(&self.last[load])
            .map(|(one, other)| f64::midpoint(*one, *other))
            .collect()
    }

    /// A table in Markdown.
    pub(crate) fn markdown(&self) -> String {
        let mut text = format!(
            "Per second: median of {ROUNDS} interleaved rounds (least to most), and beside the bare rate of the same round, which is \
             measured at its beginning and at its end: the median of those ratios (least to most). One process works for {} ms at a \
             time, of which the better half of 50 ms slices counts: it starts `/usr/bin/true` and waits for it, opens and closes `/etc/passwd`, connects a UDP \
             socket to the discard port of the loopback interface. Everything that the sensor reports in a session is recorded by the \
             gateway on the same computer; auditd writes its log there, bpftrace its lines.\n\n| |",
            TIME.as_millis()
        );
        for load in LOADS {
            text += &format!(" {load} | |");
        }
        text += &format!("\n|---|{}\n", "---|---|".repeat(LOADS.len()));
        let mut row = |title: &str, rates: &[Vec<f64>; LOADS.len()]| {
            text += &format!("| {title} |");
            for (load, rates) in rates.iter().enumerate() {
                let ratios: Vec<f64> =
                    rates.iter().zip(self.bare(load)).map(|(rate, bare)| rate / bare).collect();
                match (Spread::of(rates), Spread::of(&ratios)) {
                    (Some(this), Some(ratio)) => {
                        text += &format!(
                            " {:.0} ({:.0} to {:.0}) | × {:.2} ({:.2} to {:.2}) |",
                            this.median, this.least, this.most, ratio.median, ratio.least, ratio.most
                        );
                    }
                    _ => text += " | |",
                }
            }
            text += "\n";
        };
        row("bare, before the audit subsystem was used in this run", &self.first);
        for (setting, title) in SETTINGS.iter().enumerate() {
            row(if setting == 0 { "bare, at the beginning of a round" } else { title }, &self.rates[setting]);
        }
        row("bare, at the end of a round", &self.last);
        for (setting, why) in &self.missing {
            text += &format!("\n{} is left out. It said: {why}\n", SETTINGS[*setting]);
        }
        text
    }
}

/// Of some rounds.
struct Spread {
    median: f64,
    least: f64,
    most: f64,
}

impl Spread {
    fn of(rates: &[f64]) -> Option<Self> {
        let mut rates = rates.to_vec();
        rates.sort_by(f64::total_cmp);
        let median = *rates.get(rates.len() / 2)?;
        Some(Self { median, least: *rates.first()?, most: *rates.last()? })
    }
}
