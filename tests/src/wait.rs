//! Waiting for a condition, with a deadline, and giving up early on Ctrl-C.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

static INTERRUPTED: AtomicBool = AtomicBool::new(false);
static CLEANING_UP: AtomicBool = AtomicBool::new(false);

/// How long the parts of a run get by default. Generous; where everything is slower, `SALLYPORT_SLOWNESS` says how much.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// How many times longer than elsewhere things may take here: `SALLYPORT_SLOWNESS`, which the virtual machines in software
/// emulation set; 1 without it.
#[must_use]
pub fn slowness() -> u32 {
    static SLOWNESS: std::sync::OnceLock<u32> = std::sync::OnceLock::new();
    *SLOWNESS.get_or_init(|| {
        let text = std::env::var("SALLYPORT_SLOWNESS").ok();
        text.and_then(|text| text.parse().ok()).unwrap_or(1).clamp(1, 100)
    })
}

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
/// It gave none within `patience` (times [`slowness`]), the run was interrupted, or the probe itself failed.
pub fn until<T>(what: &str, patience: Duration, mut probe: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    let patience = patience * slowness();
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
