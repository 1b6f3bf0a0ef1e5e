//! The stream of events.
//!
//! The kernel wakes the reader for denials only; for the rest it looks by itself every [`INTERVAL`]. Each session has a
//! quota of the ring, so what was read is subtracted from what the session has queued.

use std::collections::HashMap;
use std::mem::offset_of;
use std::sync::atomic::Ordering;
use std::time::Duration;

use aya::maps::{Map, MapData, RingBuf};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use sallyport_sensor_abi::MAX_SESSIONS;
use sallyport_sensor_abi::event::Header;
use sallyport_sensor_abi::session::Session;

use super::mapped::Mapped;
use super::{Event, KernelError};

/// How long allowed events may lie in the ring.
const INTERVAL: Duration = Duration::from_millis(20);

/// Events taken at once at most, so that one flood does not keep the caller from everything else.
const BATCH: usize = 512;

/// Reads the ring buffer. What is not read stays in the kernel, over restarts of the sensor, too.
pub struct EventStream {
    ring: AsyncFd<RingBuf<MapData>>,
    sessions: Mapped<Session>,
    /// Where each session was found last.
    slots: HashMap<u64, u32>,
    /// Nothing was queued when it was last looked at.
    settled: bool,
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
    pub(super) fn open(map: Map, sessions: Mapped<Session>) -> Result<Self, KernelError> {
        let failed = |source: Box<dyn std::error::Error + Send + Sync>| KernelError::Map {
            map: "EVENTS",
            action: "read",
            source,
        };
        let ring = RingBuf::try_from(map).map_err(|error| failed(error.into()))?;
        // SAFETY: the ring owns its descriptor and keeps it open until the `AsyncFd`, which owns the ring, is gone.
        let ring = unsafe { AsyncFd::register_with_interest(ring, Interest::READABLE) }
            .map_err(|error| failed(error.into()))?;
        Ok(Self { ring, sessions, slots: HashMap::new(), settled: false, undecodable: 0 })
    }

    /// Waits until there are events and returns them, at least one. Cancel-safe.
    pub async fn next(&mut self) -> std::io::Result<Vec<Event>> {
        loop {
            // Events may have been there before anybody waited.
            let events = self.try_next();
            if !events.is_empty() {
                return Ok(events);
            }
            if let Ok(guard) = tokio::time::timeout(INTERVAL, self.ring.readable_mut()).await {
                guard?.clear_ready();
            }
        }
    }

    /// The events that are there now, at most some hundreds.
    pub fn try_next(&mut self) -> Vec<Event> {
        let mut events = Vec::new();
        let mut read = HashMap::<u64, u64>::new();
        let mut taken = 0;
        while taken < BATCH
            && let Some(item) = self.ring.get_mut().next()
        {
            taken += 1;
            if let Some(session) = session_of(&item) {
                *read.entry(session).or_default() += ring_bytes(item.len());
            }
            match Event::try_from(&*item) {
                Ok(event) => events.push(event),
                Err(error) => {
                    self.undecodable += 1;
                    tracing::error!(%error, "kernel event of an unknown form");
                }
            }
        }
        if taken == 0 && !self.settled {
            // A sensor that was killed between reading and subtracting left too much.
            self.settled = true;
            for slot in 0..MAX_SESSIONS {
                self.sessions.double_word(slot, offset_of!(Session, queued)).store(0, Ordering::SeqCst);
            }
        }
        for (session, bytes) in read {
            self.subtract(session, bytes);
        }
        events
    }

    /// Takes what was read off what a session has queued.
    fn subtract(&mut self, session: u64, bytes: u64) {
        let number = |slot: u32| self.sessions.double_word(slot, offset_of!(Session, number));
        let is_at = |slot: u32| number(slot).load(Ordering::SeqCst) == session;
        let known = self.slots.get(&session).copied().filter(|slot| is_at(*slot));
        let Some(slot) = known.or_else(|| (0..MAX_SESSIONS).find(|slot| session != 0 && is_at(*slot))) else {
            self.slots.remove(&session);
            return;
        };
        self.slots.insert(session, slot);
        let queued = self.sessions.double_word(slot, offset_of!(Session, queued));
        // Never below zero, whatever was counted before: that would be a quota that is used up for ever.
        let _ = queued
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |queued| Some(queued.saturating_sub(bytes)));
    }

    /// How many events could not be decoded since the stream was opened: a fault of this program.
    pub fn undecodable(&self) -> u64 {
        self.undecodable
    }
}

/// Bytes that an event takes in the ring, as the kernel programs count them: its own header, rounded up.
fn ring_bytes(len: usize) -> u64 {
    (len as u64 + 8).next_multiple_of(8)
}

/// The session that an event is about.
fn session_of(event: &[u8]) -> Option<u64> {
    let at = offset_of!(Header, session);
    event.get(at..at + 8)?.try_into().ok().map(u64::from_ne_bytes)
}
