//! cgroup `connect4`, `connect6`, `sendmsg4`, `sendmsg6`: judge where connections and datagrams go.
//!
//! Sees: `connect()` of TCP and UDP sockets (ping sockets since 6.1), the connection that fast-open makes, every
//! datagram with an address, from io_uring too, in the process that asks. Attached to the root cgroup. Needs: 5.10.
//! An `AF_UNSPEC` address on an IPv4 datagram arrives here as the IPv4 address that the kernel will use. Misses:
//! traffic of sockets connected earlier. On error: denied.

use aya_ebpf::{
    EbpfContext as _, bindings::bpf_sock_addr, macros::cgroup_sock_addr, programs::SockAddrContext,
};
use sallyport_sensor_abi::{
    event::{Connect, OP_CONNECT, OP_SEND, cause, kind},
    session::Tag,
};

use crate::{event::Small, judge, maps::tag_of, net};

/// Attach type `BPF_CGROUP_INET4_CONNECT`: runs in `tcp_v4_pre_connect` and `ip4_datagram` `pre_connect`.
#[cgroup_sock_addr(connect4)]
pub fn sally_connect4(ctx: SockAddrContext) -> i32 {
    version4(&ctx, OP_CONNECT)
}

/// Attach type `BPF_CGROUP_UDP4_SENDMSG`: runs in `udp_sendmsg`.
#[cgroup_sock_addr(sendmsg4)]
pub fn sally_sendmsg4(ctx: SockAddrContext) -> i32 {
    version4(&ctx, OP_SEND)
}

/// Attach type `BPF_CGROUP_INET6_CONNECT`.
#[cgroup_sock_addr(connect6)]
pub fn sally_connect6(ctx: SockAddrContext) -> i32 {
    version6(&ctx, OP_CONNECT)
}

/// Attach type `BPF_CGROUP_UDP6_SENDMSG`.
#[cgroup_sock_addr(sendmsg6)]
pub fn sally_sendmsg6(ctx: SockAddrContext) -> i32 {
    version6(&ctx, OP_SEND)
}

const ALLOW: i32 = 1;
const DENY: i32 = 0;

/// One four-byte field of the context. The verifier wants exactly such loads.
macro_rules! field {
    ($ctx:expr, $($field:tt)+) => {{
        let sock: *const bpf_sock_addr = $ctx.sock_addr;
        // SAFETY: the kernel passed the context; volatile so that loads are not merged into wider ones.
        unsafe { core::ptr::read_volatile(&raw const (*sock).$($field)+) }
    }};
}

#[inline(always)]
fn version4(ctx: &SockAddrContext, op: u32) -> i32 {
    let tgid = ctx.tgid();
    let Some(tag) = tag_of(tgid) else { return ALLOW };
    let address = u32::from_be(field!(ctx, user_ip4));
    finish(&tag, [address, 0, 0, 0], 4, field!(ctx, user_port), field!(ctx, protocol), op)
}

#[inline(always)]
fn version6(ctx: &SockAddrContext, op: u32) -> i32 {
    let tgid = ctx.tgid();
    let Some(tag) = tag_of(tgid) else { return ALLOW };
    let words = [
        u32::from_be(field!(ctx, user_ip6[0])),
        u32::from_be(field!(ctx, user_ip6[1])),
        u32::from_be(field!(ctx, user_ip6[2])),
        u32::from_be(field!(ctx, user_ip6[3])),
    ];
    let (port, protocol) = (field!(ctx, user_port), field!(ctx, protocol));
    if words[0] == 0 && words[1] == 0 && words[2] == 0xffff {
        return finish(&tag, [words[3], 0, 0, 0], 4, port, protocol, op);
    }
    finish(&tag, words, 6, port, protocol, op)
}

#[inline(always)]
fn finish(tag: &Tag, mut address: [u32; 4], version: u32, port: u32, protocol: u32, op: u32) -> i32 {
    let port = u32::from(u16::from_be(port as u16));
    // Linux sends what is for the unspecified address to itself.
    if address[0] | address[1] | address[2] | address[3] == 0 {
        if version == 4 {
            address[0] = 0x7f00_0001;
        } else {
            address[3] = 1;
        }
    }
    let verdict = match judge::judge_start(tag) {
        Err(verdict) => verdict,
        // SAFETY: a field of the policy.
        Ok(judge) => match unsafe {
            net::word(&judge, &raw const (*judge.policy).connect, &address, version, port, protocol)
        } {
            Some(word) => judge.verdict(word),
            None => judge.unjudged(cause::READ_FAILED),
        },
    };
    if !verdict.quiet() {
        Small::new(
            kind::CONNECT,
            tag,
            verdict,
            Connect { address: net::bytes(&address), port, version, protocol, op },
        )
        .send(tag);
    }
    if verdict.denies() { DENY } else { ALLOW }
}
