//! Differences in who may open a session: Cedar is asked once for each range of client addresses that rules tell apart.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::{Effect, Found};
use crate::formula::Prefix;
use crate::load::Policy;
use crate::question::{Principal, Question};
use crate::residual::parse_range;

/// What differs, by range of addresses.
#[derive(Debug)]
pub(super) struct Sessions {
    principal: Principal,
    host: String,
    local_user: String,
    /// First address of each range, as [`key`] has it, and both answers; ascending.
    ranges: Vec<((bool, u128), Effect, Effect)>,
}

/// Addresses in order: IPv4 first.
fn key(address: IpAddr) -> (bool, u128) {
    match address.to_canonical() {
        IpAddr::V4(address) => (false, u128::from(u32::from(address))),
        IpAddr::V6(address) => (true, u128::from(address)),
    }
}

fn address((v6, bits): (bool, u128)) -> IpAddr {
    match (v6, u32::try_from(bits)) {
        (false, Ok(bits)) => IpAddr::V4(Ipv4Addr::from(bits)),
        _ => IpAddr::V6(Ipv6Addr::from(bits)),
    }
}

/// Where ranges begin that rules on sessions can tell apart.
fn beginnings(policies: [&Policy; 2]) -> BTreeSet<(bool, u128)> {
    let mut all = BTreeSet::from([(false, 0), (true, 0)]);
    let mut range = |range: Prefix| {
        let full = Prefix::full(range.v6);
        let first = if range.v6 { range.bits } else { range.bits >> 96 };
        all.insert((range.v6, first));
        // The first address behind it, if there is one.
        let length = 1u128.checked_shl(u32::from(full - range.length));
        let behind = length.and_then(|length| first.checked_add(length));
        all.extend(behind.filter(|at| range.v6 || *at <= u128::from(u32::MAX)).map(|at| (range.v6, at)));
    };
    // What `isLoopback`, `isMulticast` and `::ffff:0:0/96` stand for.
    for text in ["127.0.0.0/8", "::1", "224.0.0.0/4", "ff00::/8", "::ffff:0:0/96"] {
        parse_range(text).into_iter().for_each(&mut range);
    }
    for policy in policies {
        policy.session_texts().iter().filter_map(|text| parse_range(text)).for_each(&mut range);
    }
    all
}

impl Sessions {
    pub(super) fn compare(
        before: &Policy,
        after: &Policy,
        principal: &Principal,
        host: &str,
        local_user: &str,
    ) -> Self {
        let mut sessions = Self {
            principal: principal.clone(),
            host: host.to_owned(),
            local_user: local_user.to_owned(),
            ranges: vec![],
        };
        let (Some(a), Some(b)) = (before.decider(principal, host), after.decider(principal, host)) else {
            return sessions;
        };
        for at in beginnings([before, after]) {
            let question = sessions.question(address(at));
            let effects = (Effect::of(&a.decide(&question)), Effect::of(&b.decide(&question)));
            sessions.ranges.push((at, effects.0, effects.1));
        }
        sessions
    }

    fn question(&self, client_address: IpAddr) -> Question {
        Question::OpenSession {
            principal: self.principal.clone(),
            host: self.host.clone(),
            local_user: self.local_user.clone(),
            client_address,
        }
    }

    /// Whether a session from there is treated differently.
    pub(super) fn contains(&self, client: IpAddr) -> bool {
        let at = self.ranges.partition_point(|(begin, ..)| *begin <= key(client));
        at.checked_sub(1).is_some_and(|at| {
            let (_, before, after) = &self.ranges[at];
            !before.same(after)
        })
    }

    /// What differs, with an example each.
    pub(super) fn found(&self) -> Vec<Found> {
        let mut all: Vec<Found> = Vec::new();
        // 192.0.2.1 stands for anywhere: a better example than the first address of a range.
        let anywhere = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));
        let usual = self.ranges.partition_point(|(begin, ..)| *begin <= key(anywhere)).saturating_sub(1);
        for (number, (at, before, after)) in self.ranges.iter().enumerate() {
            if before.same(after) {
                continue;
            }
            let example = if number == usual { anywhere } else { address(*at) };
            match all.iter_mut().find(|found| (&found.before, &found.after) == (before, after)) {
                Some(found) => {
                    found.classes += 1;
                    if number == usual {
                        found.example = Some(self.question(example));
                    }
                }
                None => all.push(Found {
                    action: "open_session",
                    before: before.clone(),
                    after: after.clone(),
                    classes: 1,
                    example: Some(self.question(example)),
                }),
            }
        }
        all
    }
}
