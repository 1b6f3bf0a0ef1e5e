//! Waiting for a condition, with a deadline, and giving up early on Ctrl-C.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

static INTERRUPTED: AtomicBool = AtomicBool::new(false);
static CLEANING_UP: AtomicBool = AtomicBool::new(false);

/// How long the parts of a run get by default. Generous: virtual machines in software emulation are slow.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// From now on Ctrl-C and SIGTERM make every wait fail, so that the run ends by unwinding and cleans up.
///
/// # Errors
/// The handler could not be installed.
pub fn end_on_ctrl_c() -> Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    std::thread::spawn(move || {
        runtime.block_on(async {
            let (Ok(mut interrupt), Ok(mut terminate)) =
                (signal(SignalKind::interrupt()), signal(SignalKind::terminate()))
            else {
                return;
            };
            loop {
                tokio::select! { _ = interrupt.recv() => {}, _ = terminate.recv() => {} }
                INTERRUPTED.store(true, Ordering::SeqCst);
            }
        });
    });
    Ok(())
}

/// Has Ctrl-C been pressed?
#[must_use]
pub fn interrupted() -> bool {
    INTERRUPTED.load(Ordering::SeqCst)
}

/// From now on waits go on in spite of Ctrl-C: what is waited for is that everything is gone.
pub fn clean_up() {
    CLEANING_UP.store(true, Ordering::SeqCst);
}

/// Asks `probe` until it gives a value.
///
/// # Errors
/// It gave none within `patience`, the run was interrupted, or the probe itself failed.
pub fn until<T>(what: &str, patience: Duration, mut probe: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    let started = Instant::now();
    let mut pause = Duration::from_millis(5);
    loop {
        if let Some(value) = probe()? {
            return Ok(value);
        }
        if interrupted() && !CLEANING_UP.load(Ordering::SeqCst) {
            bail!("interrupted while waiting for {what}");
        }
        if started.elapsed() > patience {
            bail!("waited {} s in vain for {what}", patience.as_secs());
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(200));
    }
}
