//! cgroup `bind4`, `bind6` and LSM `socket_listen`: where a session's sockets listen.
//!
//! Sees: every `bind()` of an Internet socket, from io_uring too, in both modes; and `listen()` on a socket that was
//! never bound, for which the kernel chooses a port (needs BPF LSM). A bound socket was judged when it was bound, so
//! `listen()` on it is not judged again. A port that `connect()` or a datagram takes by itself is not listening.
//! Needs: 5.10. Misses in tracepoint mode: `listen()` without `bind()`. On error: denied.

use aya_ebpf::{
    EbpfContext as _,
    bindings::bpf_sock_addr,
    macros::{cgroup_sock_addr, lsm},
    programs::{LsmContext, SockAddrContext},
};
use sallyport_sensor_abi::{
    event::{Connect, OP_BIND, OP_LISTEN, cause, kind},
    session::Tag,
};

use crate::{
    event::{Small, header},
    fields,
    judge::{self, Verdict},
    maps::tag_of,
    net,
    read::{self, Unreadable},
    sockets,
    system::{self, argument},
};

const ALLOW: i32 = 1;
const DENY: i32 = 0;
const AF_INET: u32 = 2;
const AF_INET6: u32 = 10;
const TCP: u32 = 6;

/// One four-byte field of the context. The verifier wants exactly such loads.
macro_rules! field {
    ($ctx:expr, $($field:tt)+) => {{
        let sock: *const bpf_sock_addr = $ctx.sock_addr;
        // SAFETY: the kernel passed the context; volatile so that loads are not merged into wider ones.
        unsafe { core::ptr::read_volatile(&raw const (*sock).$($field)+) }
    }};
}

/// Attach type `BPF_CGROUP_INET4_BIND`: runs in `inet_bind`.
#[cgroup_sock_addr(bind4)]
pub fn sally_bind4(ctx: SockAddrContext) -> i32 {
    let Some(tag) = tag_of(ctx.tgid()) else { return ALLOW };
    let address = u32::from_be(field!(ctx, user_ip4));
    bind(&tag, [address, 0, 0, 0], 4, field!(ctx, user_port), field!(ctx, protocol))
}

/// Attach type `BPF_CGROUP_INET6_BIND`: runs in `inet6_bind`.
#[cgroup_sock_addr(bind6)]
pub fn sally_bind6(ctx: SockAddrContext) -> i32 {
    let Some(tag) = tag_of(ctx.tgid()) else { return ALLOW };
    let words = [
        u32::from_be(field!(ctx, user_ip6[0])),
        u32::from_be(field!(ctx, user_ip6[1])),
        u32::from_be(field!(ctx, user_ip6[2])),
        u32::from_be(field!(ctx, user_ip6[3])),
    ];
    let (port, protocol) = (field!(ctx, user_port), field!(ctx, protocol));
    if words[0] == 0 && words[1] == 0 && words[2] == 0xffff {
        return bind(&tag, [words[3], 0, 0, 0], 4, port, protocol);
    }
    bind(&tag, words, 6, port, protocol)
}

#[inline(always)]
fn bind(tag: &Tag, address: [u32; 4], version: u32, port: u32, protocol: u32) -> i32 {
    let port = u32::from(u16::from_be(port as u16));
    if judge(tag, address, version, port, protocol, OP_BIND).denies() { DENY } else { ALLOW }
}

/// match-proto:v5.10:include/linux/lsm_hook_defs.h:LSM_HOOK(int, 0, socket_listen, struct socket *sock, int backlog)
#[lsm(hook = "socket_listen")]
pub fn sally_listen(ctx: LsmContext) -> i32 {
    let Some(tag) = system::tag() else { return system::ALLOW };
    let version = match unbound(&ctx) {
        Ok(None) => return system::ALLOW,
        Ok(Some(version)) => version,
        // No version: it is judged as what could not be read.
        Err(Unreadable) => 0,
    };
    if judge(&tag, [0; 4], version, 0, TCP, OP_LISTEN).denies() { system::EPERM } else { system::ALLOW }
}

/// The version of an Internet socket that has no port yet.
#[inline(always)]
fn unbound(ctx: &LsmContext) -> Result<Option<u32>, Unreadable> {
    let sock = sockets::of(argument(ctx, 0)?)?;
    let family = sockets::family(sock)?;
    if family != AF_INET && family != AF_INET6 {
        return Ok(None);
    }
    // SAFETY: points into `FIELDS`; `sock` begins with `sock_common`.
    let port: u16 = read::kernel(sock + unsafe { fields::field!(sock_common_skc_num) })?;
    Ok(if port != 0 { None } else { Some(if family == AF_INET { 4 } else { 6 }) })
}

#[inline(always)]
fn judge(tag: &Tag, address: [u32; 4], version: u32, port: u32, protocol: u32, op: u32) -> Verdict {
    let verdict = match judge::judge_start(tag) {
        Err(verdict) => verdict,
        Ok(judge) if version == 0 => judge.unjudged(cause::READ_FAILED),
        // SAFETY: a field of the policy.
        Ok(judge) => match unsafe {
            net::word(&judge, &raw const (*judge.policy).listen, &address, version, port, protocol)
        } {
            Some(word) => judge.verdict(word),
            None => judge.unjudged(cause::READ_FAILED),
        },
    };
    // A socket that listens without being bound has no address yet.
    let version = if op == OP_LISTEN { 0 } else { version };
    Small {
        header: header(kind::CONNECT, tag, verdict),
        body: Connect { address: net::bytes(&address), port, version, protocol, op },
    }
    .send(tag);
    verdict
}
