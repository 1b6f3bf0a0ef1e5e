//! The kernel's own counters: how often each program ran and how long in all (`kernel.bpf_stats_enabled`).

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use sallyport_sensor::kernel::Kernel;

const SWITCH: &str = "/proc/sys/kernel/bpf_stats_enabled";

/// Switches the counters on, and back to what they were at the end.
pub(crate) struct Counting(String);

impl Counting {
    pub(crate) fn on() -> Result<Self> {
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

/// Runs and nanoseconds by program.
#[derive(Clone, Debug)]
pub(crate) struct Snapshot(BTreeMap<&'static str, (u64, u64)>);

impl Snapshot {
    pub(crate) fn take(kernel: &Kernel) -> Result<Self> {
        let stats = kernel.program_stats().context("read the counters")?;
        Ok(Self(stats.iter().map(|it| (it.name, (it.run_count, it.run_time_ns))).collect()))
    }

    pub(crate) fn has(&self, program: &str) -> bool {
        self.0.contains_key(program)
    }

    /// Runs and nanoseconds of a program since `before`.
    pub(crate) fn since(&self, before: &Self, program: &str) -> (u64, u64) {
        let (runs, time) = self.0.get(program).copied().unwrap_or_default();
        let (runs_before, time_before) = before.0.get(program).copied().unwrap_or_default();
        (runs.saturating_sub(runs_before), time.saturating_sub(time_before))
    }
}

/// Values of several rounds.
#[derive(Clone, Debug, Default)]
pub(crate) struct Samples(Vec<f64>);

impl Samples {
    pub(crate) fn add(&mut self, value: f64) {
        self.0.push(value);
        self.0.sort_by(f64::total_cmp);
    }

    pub(crate) fn median(&self) -> f64 {
        self.0.get(self.0.len() / 2).copied().unwrap_or(f64::NAN)
    }

    pub(crate) fn least(&self) -> f64 {
        self.0.first().copied().unwrap_or(f64::NAN)
    }

    pub(crate) fn most(&self) -> f64 {
        self.0.last().copied().unwrap_or(f64::NAN)
    }
}
