//! Addresses, ports and protocols: from a policy's tables for connecting or for listening to a word.

use sallyport_sensor_abi::policy::{Net, Word};

use crate::{
    judge::{Judge, arena, trie},
    read::opaque,
};

/// The word for an address (`[0]` only for IPv4) in one of the two tables of the judge's policy.
///
/// # Safety
/// `net` must be a field of the judge's policy.
#[inline(always)]
pub(crate) unsafe fn word(
    judge: &Judge,
    net: *const Net,
    address: &[u32; 4],
    version: u32,
    port: u32,
    protocol: u32,
) -> Option<Word> {
    // SAFETY: the policy is an entry of an array map; the caller's promise.
    unsafe {
        let base = (*judge.policy).base;
        let class = address_class(base, net, address, version)?;
        let port_class = trie(base, (*net).port, port, 4)?;
        let protocol_class = protocol_class(net, protocol)?;
        arena(
            base.wrapping_add((*net).table).wrapping_add(
                protocol_class
                    .wrapping_mul((*net).port_classes)
                    .wrapping_add(port_class)
                    .wrapping_mul((*net).address_classes)
                    .wrapping_add(class),
            ),
        )
    }
}

/// Class of an address.
///
/// # Safety
/// `net` must be a field of a policy in `POLICIES`.
#[inline(always)]
unsafe fn address_class(base: u32, net: *const Net, address: &[u32; 4], version: u32) -> Option<u32> {
    // SAFETY: the caller's promise.
    unsafe {
        if version == 4 {
            return trie(base, (*net).address4, address[0], 8);
        }
        let mut row = (*net).address6;
        let mut i = 0;
        while i < 4 {
            row = trie(base, row, address[i], 8)?;
            i += 1;
        }
        Some(row)
    }
}

/// Where the words for all ports of an address are: one every `stride` words from `start` on.
pub(crate) struct Row {
    pub(crate) start: u32,
    /// Classes of ports.
    pub(crate) ports: u32,
    pub(crate) stride: u32,
}

/// The words for all ports.
///
/// # Safety
/// `net` must be a field of the judge's policy.
#[inline(always)]
pub(crate) unsafe fn row(
    judge: &Judge,
    net: *const Net,
    address: &[u32; 4],
    version: u32,
    protocol: u32,
) -> Option<Row> {
    // SAFETY: the policy is an entry of an array map; the caller's promise.
    unsafe {
        let base = (*judge.policy).base;
        let class = address_class(base, net, address, version)?;
        let (ports, stride) = ((*net).port_classes, (*net).address_classes);
        let first =
            protocol_class(net, protocol)?.wrapping_mul(ports).wrapping_mul(stride).wrapping_add(class);
        Some(Row { start: base.wrapping_add((*net).table).wrapping_add(first), ports, stride })
    }
}

/// Class of an IP protocol number.
///
/// # Safety
/// `net` must be a field of a policy in `POLICIES`.
#[inline(always)]
pub(crate) unsafe fn protocol_class(net: *const Net, protocol: u32) -> Option<u32> {
    if protocol > 255 {
        return None;
    }
    let index = (opaque(u64::from(protocol)) & 0xff) as usize;
    // SAFETY: 256 classes; the caller's promise.
    Some(u32::from(unsafe { *(&raw const (*net).protocols).cast::<u8>().add(index) }))
}

/// An address as events have it.
#[inline(always)]
pub(crate) fn bytes(address: &[u32; 4]) -> [u8; 16] {
    let mut bytes = [0; 16];
    let mut i = 0;
    while i < 4 {
        let word = address[i].to_be_bytes();
        bytes[i * 4] = word[0];
        bytes[i * 4 + 1] = word[1];
        bytes[i * 4 + 2] = word[2];
        bytes[i * 4 + 3] = word[3];
        i += 1;
    }
    bytes
}
