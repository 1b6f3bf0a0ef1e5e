//! The figures: as Markdown tables (which read well on a terminal, too) and as JSON; and whether each target is met.

use std::fmt::Write as _;

use sallyport_sensor::kernel::Mode;
use serde_json::json;

use crate::load::Operation;
use crate::measure::{Cost, Size};
use crate::rules::SIZES;

/// Everything that was measured.
pub(crate) struct Report {
    pub(crate) mode: Mode,
    pub(crate) sizes: Vec<Size>,
    pub(crate) costs: Vec<Cost>,
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
                let limit = if cost.operation == Operation::Exec { 3_000.0 } else { 1_000.0 };
                let dearest = cost.tagged.iter().map(|samples| samples.median()).fold(0.0, f64::max);
                add(format!("{name} in a session, at any size"), limit, dearest, "ns");
                add(format!("{name} outside of sessions"), 100.0, cost.untagged.median(), "ns");
            }
            add(format!("{name}, 10,000 rules beside 1"), 1.2, ratio(cost, SIZES.len() - 1), "times");
        }
        if let Some(largest) = self.sizes.last() {
            add("tables of 10,000 rules".to_owned(), 64.0, largest.mebibytes, "MiB");
        }
        targets
    }

    pub(crate) fn all_met(&self) -> bool {
        self.targets().iter().all(Target::met)
    }

    pub(crate) fn text(&self) -> String {
        let mut text = String::new();
        let _ = self.write(&mut text);
        text
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
                    (true, at) => write!(text, " × {:.2} |", ratio(cost, at - 1))?,
                    (false, _) => write!(
                        text,
                        " {:.0} ({:.0} to {:.0}) |",
                        samples.median(),
                        samples.least(),
                        samples.most()
                    )?,
                }
            }
            writeln!(text, " × {:.2} |", ratio(cost, SIZES.len() - 1))?;
        }
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
fn ratio(cost: &Cost, size: usize) -> f64 {
    match (cost.tagged.get(size), cost.tagged.first()) {
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
