//! Rounds of loads, outside of any session and in sessions with bundles of each size, and what each decision cost.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result};
use sallyport_policy::KernelPolicy;
use sallyport_sensor::kernel::{EventStream, Kernel};

use crate::counters::{Counting, Samples, Snapshot};
use crate::load::{Load, Operation};
use crate::rules::{SIZES, compile};

/// What one size of bundle takes.
pub(crate) struct Size {
    pub(crate) rules: usize,
    pub(crate) mebibytes: f64,
    pub(crate) compile_seconds: f64,
}

/// What one operation costs.
pub(crate) struct Cost {
    pub(crate) operation: Operation,
    /// Nanoseconds outside of any session.
    pub(crate) untagged: Samples,
    /// Nanoseconds in a session, by [`SIZES`].
    pub(crate) tagged: Vec<Samples>,
}

/// Opens a session for each size: number 1 has the first. After them come those where permitted programs are not recorded.
pub(crate) fn sessions(kernel: &Kernel) -> Result<(Vec<Size>, Vec<KernelPolicy>)> {
    let (mut sizes, mut policies) = (Vec::new(), Vec::new());
    for (number, rules) in (1..).zip(SIZES) {
        eprintln!("compile {rules} rules");
        let started = std::time::Instant::now();
        let policy = compile(rules, true)?;
        let compile_seconds = started.elapsed().as_secs_f64();
        let mebibytes = (policy.arena.len() * 4) as f64 / f64::from(1 << 20);
        let loaded = kernel.load_policy(&policy.header, &policy.arena).context("load the tables")?;
        kernel.open_session(number, loaded.slot, 1_000)?;
        sizes.push(Size { rules, mebibytes, compile_seconds });
        policies.push(policy);
    }
    for (number, rules) in (1 + SIZES.len() as u64..).zip(SIZES) {
        let policy = compile(rules, false)?;
        let loaded = kernel.load_policy(&policy.header, &policy.arena).context("load the tables")?;
        kernel.open_session(number, loaded.slot, 1_000)?;
    }
    Ok((sizes, policies))
}

/// All operations that the kernel programs judge here.
pub(crate) fn costs(kernel: &Kernel, rounds: usize) -> Result<Vec<Cost>> {
    let _counting = Counting::on()?;
    let reader = Reader::start(kernel.events()?);
    let mut costs = Vec::new();
    for operation in Operation::ALL {
        let here = Snapshot::take(kernel)?;
        if !operation.programs().iter().any(|program| here.has(program)) {
            eprintln!("{}: no kernel program judges it in this mode", operation.name());
            continue;
        }
        eprintln!("measure {}", operation.name());
        costs.push(cost(kernel, operation, rounds)?);
    }
    reader.stop();
    Ok(costs)
}

fn cost(kernel: &Kernel, operation: Operation, rounds: usize) -> Result<Cost> {
    let mut loads = vec![Load::start(operation)?];
    let first = if operation == Operation::Unrecorded { 1 + SIZES.len() as u64 } else { 1 };
    for session in first..first + SIZES.len() as u64 {
        let load = Load::start(operation)?;
        kernel.tag(load.pid(), session, 1).context("tag the load")?;
        loads.push(load);
    }
    let mut cost =
        Cost { operation, untagged: Samples::default(), tagged: vec![Samples::default(); SIZES.len()] };
    // Interleaved, so that what else the computer does meets all alike. The first round only warms up.
    for round in 0..=rounds {
        let mut untagged = Vec::new();
        for (at, load) in loads.iter_mut().enumerate() {
            let before = Snapshot::take(kernel)?;
            load.work()?;
            let after = Snapshot::take(kernel)?;
            let times = operation.times();
            let mut total = 0.0;
            for (program, name) in operation.programs().iter().enumerate() {
                let (runs, time) = after.since(&before, name);
                if at == 0 {
                    // Whoever else ran it was outside of sessions, too.
                    let each = if runs == 0 { 0.0 } else { time as f64 / runs as f64 };
                    untagged.push(each);
                    total += each;
                } else {
                    // Runs beyond our own are others', at the untagged price.
                    let others = runs.saturating_sub(times) as f64 * untagged[program];
                    total += (time as f64 - others) / times as f64;
                }
            }
            if round > 0 {
                match at.checked_sub(1) {
                    None => cost.untagged.add(total),
                    Some(size) => cost.tagged[size].add(total),
                }
            }
        }
    }
    loads.into_iter().try_for_each(Load::end)?;
    Ok(cost)
}

/// Takes events as the sensor does, so that the ring buffer is never full.
struct Reader {
    over: Arc<AtomicBool>,
    thread: std::thread::JoinHandle<()>,
}

impl Reader {
    fn start(mut events: EventStream) -> Self {
        let over = Arc::new(AtomicBool::new(false));
        let stop = Arc::clone(&over);
        let thread = std::thread::spawn(move || {
            while !stop.load(Ordering::Relaxed) {
                if events.try_next().is_empty() {
                    std::thread::sleep(std::time::Duration::from_micros(200));
                }
            }
        });
        Self { over, thread }
    }

    fn stop(self) {
        self.over.store(true, Ordering::Relaxed);
        let _ = self.thread.join();
    }
}
