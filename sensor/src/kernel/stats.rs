//! Counters of events and of programs.

use std::os::fd::{AsFd as _, AsRawFd as _};
use std::path::Path;

use aya::programs::ProgramInfo;
use sallyport_sensor_abi::event::kind;

use super::{Counters, Kernel, KernelError, KindCounters, attach, pins};

/// What a program has cost so far, if `sysctl kernel.bpf_stats_enabled=1`.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct ProgramStats {
    /// Program.
    pub name: &'static str,
    /// How often it ran.
    pub run_count: u64,
    /// How long in all, in nanoseconds.
    pub run_time_ns: u64,
}

impl Kernel {
    /// Events seen and lost since the maps were made.
    pub fn counters(&self) -> Result<Counters, KernelError> {
        let sum = |index: u32| -> Result<u64, KernelError> {
            let per_cpu = self.counters.get(&index, 0).map_err(|source| KernelError::Map {
                map: "COUNTERS",
                action: "read",
                source: source.into(),
            })?;
            Ok(per_cpu.iter().sum())
        };
        // Lost first: an event in between must not look like one that was received twice.
        let pair = |kind: u32| -> Result<KindCounters, KernelError> {
            let lost = sum(kind * 2 + 1)?;
            Ok(KindCounters { seen: sum(kind * 2)?, lost })
        };
        Ok(Counters {
            fork: pair(kind::FORK)?,
            exec: pair(kind::EXEC)?,
            exit: pair(kind::EXIT)?,
            connect: pair(kind::CONNECT)?,
            file: pair(kind::FILE)?,
            system: pair(kind::SYSTEM)?,
        })
    }

    /// Runs and time of each program.
    pub fn program_stats(&self) -> Result<Vec<ProgramStats>, KernelError> {
        let folder = pins::programs(&self.pin_dir, self.generation);
        attach::names(self.mode)
            .map(|name| {
                let path = folder.join(name);
                let info = ProgramInfo::from_pin(&path)
                    .map_err(|source| KernelError::Pin { path, source: source.into() })?;
                Ok(ProgramStats {
                    name,
                    run_count: info.run_count(),
                    run_time_ns: u64::try_from(info.run_time().as_nanos()).unwrap_or(u64::MAX),
                })
            })
            .collect()
    }
}

/// How often the kernel left out a pinned program since it was running on that processor already. Kernels before 5.12 do not
/// count.
pub(super) fn missed(program: &Path) -> Option<u64> {
    let fd = ProgramInfo::from_pin(program).ok()?.fd().ok()?;
    let text = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", fd.as_fd().as_raw_fd())).ok()?;
    in_fdinfo(&text)
}

fn in_fdinfo(text: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix("recursion_misses:")?.trim().parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn misses_are_read_from_what_the_kernel_prints() {
        let text = "pos:\t0\nprog_type:\t17\nrun_cnt:\t9\nrecursion_misses:\t3\nverified_insns:\t7\n";
        assert_eq!(in_fdinfo(text), Some(3));
        assert_eq!(in_fdinfo("pos:\t0\nprog_type:\t17\n"), None, "before 5.12");
    }
}
