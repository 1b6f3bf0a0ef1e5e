//! How many connections may be without an identity, and how often they may trouble others: in all, and from one address.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Costly acts of strangers (a link from the provider, a failure on the record) are counted over this time.
const PERIOD: Duration = Duration::from_secs(60);
/// So many of them are permitted from one address.
const ACTS_PER_ADDRESS: usize = 30;
/// And so many from all.
const ACTS: usize = 600;

/// Counts them.
pub struct Slots {
    counts: Mutex<Counts>,
    acts: Mutex<Acts>,
    most: usize,
    most_per_address: usize,
}

#[derive(Default)]
struct Counts {
    all: usize,
    per_address: HashMap<IpAddr, usize>,
}

struct Acts {
    since: Instant,
    counts: Counts,
}

/// A connection's place among those without an identity; given back when dropped.
pub struct Slot {
    slots: Arc<Slots>,
    address: IpAddr,
}

impl Slots {
    /// With these limits.
    #[must_use]
    pub fn new(most: usize, most_per_address: usize) -> Arc<Self> {
        let acts = Mutex::new(Acts { since: Instant::now(), counts: Counts::default() });
        Arc::new(Self { counts: Mutex::default(), acts, most, most_per_address })
    }

    /// A place, if there is one.
    #[must_use]
    pub fn take(self: &Arc<Self>, address: IpAddr) -> Option<Slot> {
        let address = network(address);
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        let here = counts.per_address.get(&address).copied().unwrap_or_default();
        if counts.all >= self.most || here >= self.most_per_address {
            return None;
        }
        counts.all += 1;
        counts.per_address.insert(address, here + 1);
        Some(Slot { slots: Arc::clone(self), address })
    }
}

impl Slots {
    /// Whether a stranger at this address may do one more thing that costs others something.
    #[must_use]
    pub fn may_act(&self, address: IpAddr) -> bool {
        let mut acts = self.acts.lock().unwrap_or_else(PoisonError::into_inner);
        if acts.since.elapsed() >= PERIOD {
            *acts = Acts { since: Instant::now(), counts: Counts::default() };
        }
        let Counts { all, per_address } = &mut acts.counts;
        // Bounded: addresses enter the map only while there is room for acts in all.
        if *all >= ACTS {
            return false;
        }
        let here = per_address.entry(network(address)).or_default();
        if *here >= ACTS_PER_ADDRESS {
            return false;
        }
        *here += 1;
        *all += 1;
        true
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut counts = self.slots.counts.lock().unwrap_or_else(PoisonError::into_inner);
        counts.all -= 1;
        if let Some(here) = counts.per_address.get_mut(&self.address) {
            *here -= 1;
            if *here == 0 {
                counts.per_address.remove(&self.address);
            }
        }
    }
}

/// One customer of an IPv6 provider has a /64 at least, so that counts as one address.
fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() & !u128::from(u64::MAX))),
        address => address,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_limited_and_given_back() {
        let slots = Slots::new(3, 2);
        let a: IpAddr = "192.0.2.1".parse().expect("address");
        let b: IpAddr = "192.0.2.2".parse().expect("address");
        let first = slots.take(a).expect("free");
        let _second = slots.take(a).expect("free");
        assert!(slots.take(a).is_none());
        let _third = slots.take(b).expect("free");
        assert!(slots.take(b).is_none());
        drop(first);
        assert!(slots.take(a).is_some());
        assert!(slots.counts.lock().expect("lock").per_address.len() == 2);
    }

    #[test]
    fn acts_of_strangers_are_limited() {
        let slots = Slots::new(1, 1);
        let address = |n: u8| IpAddr::from([192, 0, 2, n]);
        assert_eq!((0..100).filter(|_| slots.may_act(address(1))).count(), ACTS_PER_ADDRESS);
        assert!(slots.may_act(address(2)));
        let others =
            (3..250).flat_map(|n| std::iter::repeat_n(n, 10)).filter(|n| slots.may_act(address(*n))).count();
        assert_eq!(others, ACTS - ACTS_PER_ADDRESS - 1);
        slots.acts.lock().expect("lock").since = Instant::now().checked_sub(PERIOD).expect("clock");
        assert!(slots.may_act(address(1)));
    }

    #[test]
    fn neighbours_in_a_64_are_one() {
        let slots = Slots::new(9, 1);
        let _one = slots.take("2001:db8::1".parse().expect("address")).expect("free");
        assert!(slots.take("2001:db8::2".parse().expect("address")).is_none());
        assert!(slots.take("2001:db8:0:1::2".parse().expect("address")).is_some());
        let _mapped = slots.take("::ffff:192.0.2.1".parse().expect("address")).expect("free");
        assert!(slots.take("192.0.2.1".parse().expect("address")).is_none());
    }
}
