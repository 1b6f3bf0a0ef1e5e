//! cgroup `sock_create`: which Internet sockets a session may make at all.
//!
//! Sees: every `AF_INET` and `AF_INET6` socket made by a process. Needs: 5.10. MPTCP, SCTP, DCCP, UDP-Lite, SMC and
//! raw sockets are refused, since their traffic passes by the other hooks. Datagrams of ICMP sockets pass by, too, so
//! such a socket is allowed only if the policy allows ICMP to every address. On error: denied.

use aya_ebpf::{EbpfContext as _, bindings::bpf_sock, macros::cgroup_sock, programs::SockContext};
use sallyport_sensor_abi::{
    event::{Connect, OP_SOCKET, cause, kind},
    policy::DENY as DENY_WORD,
    session::Tag,
};

use crate::{
    event::Small,
    judge::{self, Judge, Verdict, arena, trie},
    maps::tag_of,
    net::protocol_class,
    read::next,
    sockets,
};

const ALLOW: i32 = 1;
const DENY: i32 = 0;

const SOCK_STREAM: u32 = 1;
const SOCK_DGRAM: u32 = 2;
const TCP: u32 = 6;
const UDP: u32 = 17;
const ICMP: u32 = 1;
const ICMP6: u32 = 58;

/// Attach type `BPF_CGROUP_INET_SOCK_CREATE`: runs at the end of `inet_create` and `inet6_create`.
#[cgroup_sock(sock_create)]
pub fn sally_socket(ctx: SockContext) -> i32 {
    let tgid = ctx.tgid();
    let Some(tag) = tag_of(tgid) else { return ALLOW };
    let sock: *const bpf_sock = ctx.sock;
    // SAFETY: the kernel passed the context; volatile so that each is one four-byte load.
    let (kind, protocol) = unsafe {
        (
            core::ptr::read_volatile(&raw const (*sock).type_),
            core::ptr::read_volatile(&raw const (*sock).protocol),
        )
    };
    let verdict = match (kind, protocol) {
        // Judged where they connect or send.
        (SOCK_STREAM, TCP) | (SOCK_DGRAM, UDP) => {
            sockets::note(ctx.sock, &tag);
            return ALLOW;
        }
        (SOCK_DGRAM, ICMP | ICMP6) => match judge::judge(&tag) {
            Err(verdict) => verdict,
            Ok(judge) => match everywhere(&judge, protocol) {
                Some(0) => return ALLOW,
                Some(word) => judge.verdict(word),
                None => judge.unjudged(cause::READ_FAILED),
            },
        },
        _ => forbidden(&tag),
    };
    report(&tag, verdict, protocol);
    if verdict.denies() { DENY } else { ALLOW }
}

/// The verdict on a kind of socket that sessions cannot have, whatever the policy.
#[inline(always)]
pub(crate) fn forbidden(tag: &Tag) -> Verdict {
    match judge::judge(tag) {
        Ok(judge) => judge.unjudged(cause::SOCKET_TYPE),
        Err(verdict) => verdict,
    }
}

/// Reports a refused socket.
#[inline(always)]
pub(crate) fn report(tag: &Tag, verdict: Verdict, protocol: u32) {
    Small::new(
        kind::CONNECT,
        tag,
        verdict,
        Connect { address: [0; 16], port: 0, version: 0, protocol, op: OP_SOCKET },
    )
    .send(tag);
}

/// The first entry that denies `protocol` on port 0 to an address class; 0 if none does.
#[inline(always)]
fn everywhere(judge: &Judge, protocol: u32) -> Option<u32> {
    // SAFETY: the policy is an entry of an array map.
    unsafe {
        let net = &raw const (*judge.policy).connect;
        let base = (*judge.policy).base;
        let port_class = trie(base, (*net).port, 0, 4)?;
        let first = protocol_class(net, protocol)?
            .wrapping_mul((*net).port_classes)
            .wrapping_add(port_class)
            .wrapping_mul((*net).address_classes);
        let row = base.wrapping_add((*net).table).wrapping_add(first);
        let classes = (*net).address_classes;
        let mut done = 0;
        let mut turn = 0;
        while turn < 64 {
            let word = first_denial(row.wrapping_add(done), classes.wrapping_sub(done));
            if word & DENY_WORD != 0 {
                return Some(word);
            }
            done += STEP;
            if done >= classes {
                return Some(0);
            }
            turn = next(turn);
        }
        None
    }
}

const STEP: u32 = 1024;

/// The first of at most [`STEP`] of `left` entries that denies; 0 if none does.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn first_denial(row: u32, left: u32) -> u32 {
    let mut i = 0;
    while i < STEP {
        if i >= core::hint::black_box(left) {
            break;
        }
        match arena(row.wrapping_add(i)) {
            Some(word) if word & DENY_WORD == 0 => {}
            Some(word) => return word,
            None => return DENY_WORD | sallyport_sensor_abi::policy::UNJUDGED,
        }
        i = next(i);
    }
    0
}
