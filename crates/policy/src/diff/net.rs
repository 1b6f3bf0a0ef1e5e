//! Differences in `connect` and `listen`: products of tries and of their decision tables.

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use sallyport_sensor_abi::policy::{DENY, Net, UNJUDGED, Word};

use super::product::Pair;
use crate::decide::judged_as;
use crate::diff::Verdict;
use crate::kernel::KernelPolicy;

/// What differs of one of the two actions.
#[derive(Debug)]
pub(super) struct NetTables {
    addresses: BTreeMap<Pair, IpAddr>,
    ports: BTreeMap<Pair, u16>,
    protocols: BTreeMap<Pair, u8>,
    /// By protocol, port and address: both words.
    pub(super) differing: HashMap<(Pair, Pair, Pair), (Word, Word)>,
}

/// An endpoint.
pub(super) type Endpoint = (IpAddr, u16, u8);

/// What a beginning of an IPv6 address may still become.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Special {
    No,
    /// The unspecified address, or (after twenty zeros) an IPv4-mapped one.
    Zeros,
    Mapped,
}

impl NetTables {
    pub(super) fn multiply(a: &KernelPolicy, b: &KernelPolicy, listens: bool) -> Self {
        let (x, y) = (header(a, listens), header(b, listens));
        let mut addresses = BTreeMap::new();
        for (pair, nibbles) in reached(a, b, (x.address4, y.address4), 8, listens) {
            let bits = nibbles.iter().fold(0u32, |bits, nibble| bits << 4 | u32::from(*nibble));
            addresses.entry(pair).or_insert(IpAddr::V4(Ipv4Addr::from(bits)));
        }
        for (pair, nibbles) in reached(a, b, (x.address6, y.address6), 32, listens) {
            let bits = nibbles.iter().fold(0u128, |bits, nibble| bits << 4 | u128::from(*nibble));
            addresses.entry(pair).or_insert(IpAddr::V6(Ipv6Addr::from(bits)));
        }
        let mut ports = BTreeMap::new();
        // Port 0 comes last: it is nobody's destination.
        for port in (1..=u16::MAX).chain([0]) {
            ports.entry(port_classes((a, x), (b, y), port)).or_insert(port);
        }
        let mut protocols = BTreeMap::new();
        for protocol in [6, 17, 1].into_iter().chain(0..=255u8) {
            let at = usize::from(protocol);
            let pair = (u32::from(x.protocols[at]), u32::from(y.protocols[at]));
            protocols.entry(pair).or_insert(protocol);
        }
        let mut differing = HashMap::new();
        for protocol in protocols.keys() {
            for port in ports.keys() {
                for address in addresses.keys() {
                    let words = (
                        word(a, x, protocol.0, port.0, address.0),
                        word(b, y, protocol.1, port.1, address.1),
                    );
                    if Verdict::of_word(words.0) != Verdict::of_word(words.1) {
                        differing.insert((*protocol, *port, *address), words);
                    }
                }
            }
        }
        Self { addresses, ports, protocols, differing }
    }

    /// An endpoint of this combination.
    pub(super) fn example(&self, (protocol, port, address): &(Pair, Pair, Pair)) -> Endpoint {
        (self.addresses[address], self.ports[port], self.protocols[protocol])
    }

    /// Whether this endpoint is treated differently.
    pub(super) fn contains(&self, a: &KernelPolicy, b: &KernelPolicy, listens: bool, at: Endpoint) -> bool {
        let (address, port, protocol) = at;
        let address = if listens { address.to_canonical() } else { judged_as(address) };
        let (x, y) = (header(a, listens), header(b, listens));
        let class = |policy: &KernelPolicy, net: &Net| match address {
            IpAddr::V4(address) => policy.descend(net.address4, &address.octets()),
            IpAddr::V6(address) => policy.descend(net.address6, &address.octets()),
        };
        let (Some(in_a), Some(in_b)) = (class(a, x), class(b, y)) else { return false };
        let at = usize::from(protocol);
        let protocols = (u32::from(x.protocols[at]), u32::from(y.protocols[at]));
        self.differing.contains_key(&(protocols, port_classes((a, x), (b, y), port), (in_a, in_b)))
    }
}

fn header(policy: &KernelPolicy, listens: bool) -> &Net {
    if listens { &policy.header.listen } else { &policy.header.connect }
}

fn word(policy: &KernelPolicy, net: &Net, protocol: u32, port: u32, address: u32) -> Word {
    let row = protocol * net.port_classes + port;
    policy.read(net.table, row * net.address_classes + address).unwrap_or(DENY | UNJUDGED)
}

fn port_classes((a, x): (&KernelPolicy, &Net), (b, y): (&KernelPolicy, &Net), port: u16) -> Pair {
    let class = |policy: &KernelPolicy, net: &Net| policy.descend(net.port, &port.to_be_bytes()).unwrap_or(0);
    (class(a, x), class(b, y))
}

/// For each pair of classes the nibbles of the lowest address that is judged as itself.
fn reached(
    a: &KernelPolicy,
    b: &KernelPolicy,
    roots: Pair,
    nibbles: usize,
    listens: bool,
) -> BTreeMap<Pair, Vec<u8>> {
    let mut rows: BTreeMap<(Pair, Special), Vec<u8>> = BTreeMap::from([((roots, Special::Zeros), vec![])]);
    for depth in 0..nibbles {
        let mut below: BTreeMap<(Pair, Special), Vec<u8>> = BTreeMap::new();
        for (((in_a, in_b), special), begin) in rows {
            for nibble in 0..16u8 {
                let special = match special {
                    Special::Zeros if nibble == 0 => Special::Zeros,
                    Special::Zeros if nibbles == 32 && depth == 20 && nibble == 15 => Special::Mapped,
                    Special::Mapped if depth < 24 && nibble == 15 => Special::Mapped,
                    // IPv4-mapped: judged as IPv4.
                    Special::Mapped if depth >= 24 => continue,
                    _ => Special::No,
                };
                let at = u32::from(nibble);
                let (Some(in_a), Some(in_b)) = (a.read(in_a, at), b.read(in_b, at)) else { continue };
                let word = || begin.iter().copied().chain([nibble]).collect::<Vec<u8>>();
                let kept = below.entry(((in_a, in_b), special)).or_insert_with(word);
                if word() < *kept {
                    *kept = word();
                }
            }
        }
        rows = below;
    }
    let mut found: BTreeMap<Pair, Vec<u8>> = BTreeMap::new();
    for ((pair, special), word) in rows {
        // The unspecified address: connections to it are judged as to loopback.
        if special == Special::Zeros && !listens {
            continue;
        }
        let kept = found.entry(pair).or_insert_with(|| word.clone());
        if word < *kept {
            *kept = word;
        }
    }
    found
}
