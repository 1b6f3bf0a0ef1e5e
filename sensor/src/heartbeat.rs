//! The sign of life for the kernel's dead man's switch.
//!
//! A thread of its own says every second that the sensor is alive, but only as long as the event pump is: the pump leaves the
//! time of its last turn in [`Pulse`]. A sensor that exists and no longer takes events (its disk hangs, its runtime is stuck)
//! counts as gone. Then, after the configured time, tagged sessions can start nothing new until a sensor beats again.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::clock;

/// Between two signs of life.
pub const EVERY: Duration = Duration::from_secs(1);
/// A pump that has not turned for so long is not alive. It turns every second, and whenever there are events; a batch may
/// wait for the spool's disk meanwhile.
pub const STUCK: Duration = Duration::from_secs(10);

/// When the event pump last turned.
#[derive(Clone, Debug)]
pub struct Pulse(Arc<AtomicU64>);

impl Default for Pulse {
    /// Alive now: whoever starts has as long as everybody else.
    fn default() -> Self {
        Self(Arc::new(AtomicU64::new(clock::boot_ns())))
    }
}

impl Pulse {
    /// The pump has turned.
    pub fn turn(&self) {
        self.0.store(clock::boot_ns(), Ordering::Relaxed);
    }

    fn is_alive(&self, now: u64) -> bool {
        now.saturating_sub(self.0.load(Ordering::Relaxed))
            < u64::try_from(STUCK.as_nanos()).unwrap_or(u64::MAX)
    }
}

/// Starts the thread: `beat` is called at once and then every second as long as the pump turns. It ends with `stop`.
///
/// # Errors
/// No thread can be started.
pub fn start(
    pulse: Pulse,
    stop: CancellationToken,
    mut beat: impl FnMut() + Send + 'static,
) -> std::io::Result<std::thread::JoinHandle<()>> {
    std::thread::Builder::new().name("heartbeat".into()).spawn(move || {
        let mut was_alive = true;
        while !stop.is_cancelled() {
            let alive = pulse.is_alive(clock::boot_ns());
            if alive {
                beat();
            }
            if alive != was_alive {
                if alive {
                    tracing::info!("the event pump turns again");
                } else {
                    tracing::error!("the event pump is stuck; sessions will be stopped if it stays so");
                }
                was_alive = alive;
            }
            std::thread::sleep(EVERY);
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stuck_pump_is_not_alive() {
        let pulse = Pulse::default();
        let now = clock::boot_ns();
        assert!(pulse.is_alive(now));
        let later = now + 11_000_000_000;
        assert!(!pulse.is_alive(later));
        pulse.0.store(later, Ordering::Relaxed);
        assert!(pulse.is_alive(later));
    }

    #[test]
    fn it_beats_only_while_the_pump_turns() {
        let (pulse, stop) = (Pulse::default(), CancellationToken::new());
        let (beats, heard) = std::sync::mpsc::channel();
        let thread = start(pulse.clone(), stop.clone(), move || {
            let _ = beats.send(());
        })
        .expect("a thread");
        heard.recv_timeout(Duration::from_secs(5)).expect("at once");
        heard.recv_timeout(Duration::from_secs(5)).expect("and again");
        pulse.0.store(0, Ordering::Relaxed);
        // The one that was under way may still come.
        while heard.recv_timeout(EVERY * 2).is_ok() {}
        assert!(heard.recv_timeout(EVERY * 2).is_err(), "it still beats");
        stop.cancel();
        thread.join().expect("it ends");
    }
}
