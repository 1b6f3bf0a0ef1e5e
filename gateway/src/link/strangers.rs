//! Connections that have not shown a sensor's certificate: how many, and how many from one address, so that
//! strangers cannot take the places of sensors.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, PoisonError};

/// In all.
const TOTAL: usize = 2048;
/// From one address (IPv6: one /64, since whoever has one address there has them all).
const PER_ADDRESS: usize = 256;

/// Counts strangers. Cheap to clone.
#[derive(Clone, Default)]
pub(super) struct Strangers(Arc<Mutex<HashMap<IpAddr, usize>>>);

/// A stranger's place, given back when dropped.
pub(super) struct Place {
    strangers: Strangers,
    address: IpAddr,
}

impl Strangers {
    /// A place for a connection from `address`; none if there are too many.
    pub(super) fn admit(&self, address: IpAddr) -> Option<Place> {
        let address = network(address);
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let total: usize = counts.values().sum();
        let here = counts.entry(address).or_default();
        let admitted = total < TOTAL && *here < PER_ADDRESS;
        if admitted {
            *here += 1;
        } else if *here == 0 {
            counts.remove(&address);
        }
        admitted.then(|| Place { strangers: self.clone(), address })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut counts = self.strangers.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(here) = counts.get_mut(&self.address) {
            *here -= 1;
            if *here == 0 {
                counts.remove(&self.address);
            }
        }
    }
}

/// What counts as one address: of IPv6, the /64.
pub(crate) fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits() & (!0 << 64))),
        v4 => v4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_bounded_per_network_and_in_all_and_come_back() {
        let strangers = Strangers::default();
        let one: IpAddr = "2001:db8::1".parse().unwrap();
        let same: IpAddr = "2001:db8::ffff".parse().unwrap();
        let held: Vec<Place> = (0..PER_ADDRESS).map(|_| strangers.admit(one).unwrap()).collect();
        assert!(strangers.admit(same).is_none());
        let mut others = Vec::new();
        for i in 0..TOTAL - PER_ADDRESS {
            let address = IpAddr::from([10, 0, (i / 256) as u8, (i % 256) as u8]);
            others.push(strangers.admit(address).unwrap());
        }
        assert!(strangers.admit("192.0.2.1".parse().unwrap()).is_none());
        drop(held);
        assert!(strangers.admit(same).is_some());
        drop(others);
        assert!(strangers.0.lock().unwrap().is_empty());
    }
}
