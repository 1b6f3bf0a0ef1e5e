//! How often an address may fail to prove itself: what strangers can make us compute, fetch and write down.

use crate::link::network;
use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Failures in one window that are looked at and put on the record; after these, nothing is until the window ends.
const FAILURES: u32 = 30;
const WINDOW: Duration = Duration::from_secs(60);
/// Addresses that are counted apart; beyond, failures of new ones count together.
const ADDRESSES: usize = 4096;

/// Counts failures by address (IPv6: by /64). Cheap to clone.
#[derive(Clone, Default)]
pub struct Failures(Arc<Mutex<HashMap<Option<IpAddr>, Window>>>);

#[derive(Clone, Copy)]
struct Window {
    since: Instant,
    failed: u32,
    /// Turned away without a look.
    unseen: u64,
}

/// Too many failures.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("too many tokens from this address proved nothing; try again in {seconds} seconds")]
pub struct TooMany {
    /// When to come back.
    pub seconds: u64,
}

impl Failures {
    /// May this address try?
    ///
    /// # Errors
    /// It has failed too often.
    pub fn admit(&self, address: IpAddr) -> Result<(), TooMany> {
        self.admit_at(address, Instant::now())
    }

    /// Notes a failure; gives how many attempts were turned away without a look since the last one that was looked at.
    pub fn note(&self, address: IpAddr) -> u64 {
        self.note_at(address, Instant::now())
    }

    fn admit_at(&self, address: IpAddr, now: Instant) -> Result<(), TooMany> {
        let mut windows = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let key = key(&windows, address);
        let Some(window) = windows.get_mut(&key) else { return Ok(()) };
        let left = WINDOW.saturating_sub(now.saturating_duration_since(window.since));
        if left.is_zero() || window.failed < FAILURES {
            return Ok(());
        }
        window.unseen += 1;
        Err(TooMany { seconds: left.as_secs() + 1 })
    }

    fn note_at(&self, address: IpAddr, now: Instant) -> u64 {
        let mut windows = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let over = |window: &Window| now.saturating_duration_since(window.since) >= WINDOW;
        if windows.len() >= ADDRESSES {
            windows.retain(|_, window| !over(window));
        }
        let key = key(&windows, address);
        let window = windows.entry(key).or_insert(Window { since: now, failed: 0, unseen: 0 });
        if over(window) {
            *window = Window { since: now, failed: 0, unseen: window.unseen };
        }
        window.failed += 1;
        std::mem::take(&mut window.unseen)
    }
}

/// Under what an address is counted: its own network, or together with others when there are too many.
fn key(windows: &HashMap<Option<IpAddr>, Window>, address: IpAddr) -> Option<IpAddr> {
    let own = Some(network(address));
    if windows.contains_key(&own) || windows.len() < ADDRESSES { own } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_that_fails_too_often_waits_and_others_do_not() {
        let (failures, start) = (Failures::default(), Instant::now());
        let (one, two): (IpAddr, IpAddr) = ("192.0.2.1".parse().unwrap(), "192.0.2.2".parse().unwrap());
        for _ in 0..FAILURES {
            assert!(failures.admit_at(one, start).is_ok());
            assert_eq!(failures.note_at(one, start), 0);
        }
        assert_eq!(failures.admit_at(one, start), Err(TooMany { seconds: 61 }));
        assert!(failures.admit_at(one, start + WINDOW / 2).is_err());
        assert!(failures.admit_at(two, start).is_ok());
        let later = start + WINDOW;
        assert!(failures.admit_at(one, later).is_ok());
        assert_eq!(failures.note_at(one, later), 2, "what was turned away is told");
        assert_eq!(failures.note_at(one, later), 0);
    }

    #[test]
    fn many_addresses_cost_a_bounded_amount() {
        let (failures, start) = (Failures::default(), Instant::now());
        for i in 0..20_000u32 {
            failures.note_at(IpAddr::from(i.to_be_bytes()), start);
        }
        assert!(failures.0.lock().unwrap().len() <= ADDRESSES + 1);
        assert!(failures.admit_at("203.0.113.9".parse().unwrap(), start).is_err(), "counted with the rest");
        assert!(failures.admit_at(IpAddr::from([0, 0, 0, 1]), start).is_ok());
    }
}
