//! Process starts per second: without the sensor, with it, and inside a session.

use std::process::Command;

use anyhow::{Context, Result};
use sallyport_e2e::child::{Finished, finish};
use sallyport_e2e::wait;

use super::figures::{Figure, Figures, median};
use super::{Bench, TARGET};

const STARTS: u32 = 1000;
const ROUNDS: usize = 5;

/// A shell that starts `/usr/bin/true` so many times and prints when it began and ended.
pub(crate) fn loop_line(starts: u32) -> String {
    format!("s=$EPOCHREALTIME; for ((i=0; i<{starts}; i++)); do /usr/bin/true; done; echo $s $EPOCHREALTIME")
}

/// Starts per second on this computer, outside of any session.
pub(crate) fn outside() -> Result<f64> {
    rounds(|| finish(Command::new("bash").args(["-c", &loop_line(STARTS)]), b"", wait::PATIENCE))
}

pub(crate) fn measure(bench: &mut Bench, before: f64, figures: &mut Figures) -> Result<()> {
    let with = outside()?;
    let tagged = rounds(|| bench.alice.run(TARGET, &format!("bash -c '{}'", loop_line(STARTS))))?;
    let plain = "without the sensor";
    let mut add = |name: &str, value: f64, baseline: Option<f64>| {
        figures.add(&Figure { name, value, unit: "1/s", baseline, beside: plain });
    };
    add("process starts, without the sensor", before, None);
    add("process starts, untagged, with the sensor", with, Some(before));
    add("process starts, in a session", tagged, Some(before));
    Ok(())
}

fn rounds(mut run: impl FnMut() -> Result<Finished>) -> Result<f64> {
    let mut rates = Vec::new();
    for _ in 0..ROUNDS {
        let said = run()?.success()?.out();
        let times: Vec<f64> = said.split_whitespace().filter_map(|word| word.parse().ok()).collect();
        let (Some(start), Some(end)) = (times.first(), times.get(1)) else {
            anyhow::bail!("the loop printed no times: {said}");
        };
        rates.push(f64::from(STARTS) / (end - start));
    }
    Some(median(rates)).filter(|rate| rate.is_finite()).context("no rate")
}
