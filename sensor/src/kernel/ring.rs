//! The stream of events.

use aya::maps::{Map, MapData, RingBuf};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::{Event, KernelError};

/// Events taken at once at most, so that one flood does not keep the caller from everything else.
const BATCH: usize = 512;

/// Reads the ring buffer. What is not read stays in the kernel, over restarts of the sensor, too.
pub struct EventStream {
    ring: AsyncFd<RingBuf<MapData>>,
    undecodable: u64,
}

impl std::fmt::Debug for EventStream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EventStream").field("undecodable", &self.undecodable).finish_non_exhaustive()
    }
}

impl EventStream {
    /// Must be called within a tokio runtime.
    #[expect(unsafe_code, reason = "tokio asks for a promise about the descriptor")]
    pub(super) fn open(map: Map) -> Result<Self, KernelError> {
        let failed = |source: Box<dyn std::error::Error + Send + Sync>| KernelError::Map {
            map: "EVENTS",
            action: "read",
            source,
        };
        let ring = RingBuf::try_from(map).map_err(|error| failed(error.into()))?;
        // SAFETY: the ring owns its descriptor and keeps it open until the `AsyncFd`, which owns the ring, is gone.
        let ring = unsafe { AsyncFd::register_with_interest(ring, Interest::READABLE) }
            .map_err(|error| failed(error.into()))?;
        Ok(Self { ring, undecodable: 0 })
    }

    /// Waits until there are events and returns them, at least one. Cancel-safe.
    pub async fn next(&mut self) -> std::io::Result<Vec<Event>> {
        loop {
            // Events may have been there before anybody waited.
            let events = self.try_next();
            if !events.is_empty() {
                return Ok(events);
            }
            let mut guard = self.ring.readable_mut().await?;
            guard.clear_ready();
        }
    }

    /// The events that are there now, at most some hundreds.
    pub fn try_next(&mut self) -> Vec<Event> {
        let mut events = Vec::new();
        while events.len() < BATCH
            && let Some(item) = self.ring.get_mut().next()
        {
            match Event::try_from(&*item) {
                Ok(event) => events.push(event),
                Err(error) => {
                    self.undecodable += 1;
                    tracing::error!(%error, "kernel event of an unknown form");
                }
            }
        }
        events
    }

    /// How many events could not be decoded since the stream was opened: a fault of this program.
    pub fn undecodable(&self) -> u64 {
        self.undecodable
    }
}
