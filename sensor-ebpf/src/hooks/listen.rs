//! cgroup `bind4`, `bind6`, `post_bind4`, `post_bind6` and LSM `socket_listen`: where a session's sockets listen.
//!
//! Sees: every `bind()` of an Internet socket, from io_uring too, in both modes; and every `listen()` (needs BPF LSM): on
//! a socket that was never bound, for which the kernel chooses a port, and on one that was bound, perhaps before there was
//! a session. What the session made and bound itself is judged again but not reported again, unless it is denied. Whoever
//! lets the kernel choose can narrow the choice down (`IP_LOCAL_PORT_RANGE`) or try until it falls as they like: so
//! after a `bind()` to port 0 the port that was chosen is judged, and to listen without `bind()`, where the choice cannot be
//! seen in time, takes the permission to listen on every port. A port that `connect()` or a datagram takes by itself is not listening. Needs: 5.10. Misses in tracepoint mode: `listen()`
//! without `bind()`, or on a socket that others bound. On error: denied.

use aya_ebpf::{
    EbpfContext as _,
    bindings::{bpf_sock, bpf_sock_addr},
    macros::{cgroup_sock, cgroup_sock_addr, lsm},
    programs::{LsmContext, SockAddrContext, SockContext},
};
use sallyport_sensor_abi::{
    event::{Connect, OP_BIND, OP_LISTEN, cause, kind},
    policy::{self, OBSERVED, Word},
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

/// One field of the context, as above.
macro_rules! sock_field {
    ($ctx:expr, $($field:tt)+) => {{
        let sock: *const bpf_sock = $ctx.sock;
        // SAFETY: as above.
        unsafe { core::ptr::read_volatile(&raw const (*sock).$($field)+) }
    }};
}

/// Attach type `BPF_CGROUP_INET4_POST_BIND`: runs in `inet_bind`, which undoes what was done if it is denied.
#[cgroup_sock(post_bind4)]
pub fn sally_bound4(ctx: SockContext) -> i32 {
    let Some(tag) = tag_of(ctx.tgid()) else { return ALLOW };
    let address = u32::from_be(sock_field!(ctx, src_ip4));
    bound(&tag, [address, 0, 0, 0], 4, sock_field!(ctx, src_port), sock_field!(ctx, protocol))
}

/// Attach type `BPF_CGROUP_INET6_POST_BIND`.
#[cgroup_sock(post_bind6)]
pub fn sally_bound6(ctx: SockContext) -> i32 {
    let Some(tag) = tag_of(ctx.tgid()) else { return ALLOW };
    let words = [
        u32::from_be(sock_field!(ctx, src_ip6[0])),
        u32::from_be(sock_field!(ctx, src_ip6[1])),
        u32::from_be(sock_field!(ctx, src_ip6[2])),
        u32::from_be(sock_field!(ctx, src_ip6[3])),
    ];
    let (port, protocol) = (sock_field!(ctx, src_port), sock_field!(ctx, protocol));
    if words[0] == 0 && words[1] == 0 && words[2] == 0xffff {
        return bound(&tag, [words[3], 0, 0, 0], 4, port, protocol);
    }
    bound(&tag, words, 6, port, protocol)
}

/// Judges the port that a socket has now. What was asked for was judged, and reported, before.
#[inline(always)]
fn bound(tag: &Tag, address: [u32; 4], version: u32, port: u32, protocol: u32) -> i32 {
    let verdict = decide(tag, &address, version, port, protocol);
    if verdict.word & (policy::DENY | OBSERVED) != 0 {
        report(tag, verdict, &address, version, port, protocol, OP_BIND);
    }
    if verdict.denies() { DENY } else { ALLOW }
}

/// match-proto:v5.10:include/linux/lsm_hook_defs.h:LSM_HOOK(int, 0, socket_listen, struct socket *sock, int backlog)
#[lsm(hook = "socket_listen")]
pub fn sally_listen(ctx: LsmContext) -> i32 {
    let Some(tag) = system::tag() else { return system::ALLOW };
    let place = match place(&ctx, &tag) {
        Ok(None) => return system::ALLOW,
        Ok(Some(place)) => place,
        // No version: it is judged as what could not be read.
        Err(Unreadable) => Place { address: [0; 4], version: 0, port: 0, own: false },
    };
    let verdict = if place.port == 0 && place.version != 0 {
        decide_any(&tag, &place.address, place.version)
    } else {
        decide(&tag, &place.address, place.version, place.port, TCP)
    };
    if !place.own || verdict.word & (policy::DENY | OBSERVED) != 0 {
        // A socket that listens without being bound has no address yet.
        let version = if place.port == 0 { 0 } else { place.version };
        report(&tag, verdict, &place.address, version, place.port, TCP, OP_LISTEN);
    }
    if verdict.denies() { system::EPERM } else { system::ALLOW }
}

/// Where a socket is about to listen.
struct Place {
    address: [u32; 4],
    version: u32,
    /// 0: the kernel will choose one.
    port: u32,
    /// It was bound, and the session made it.
    own: bool,
}

/// Where an Internet socket is about to listen.
#[inline(always)]
fn place(ctx: &LsmContext, tag: &Tag) -> Result<Option<Place>, Unreadable> {
    let sock = sockets::of(argument(ctx, 0)?)?;
    let family = sockets::family(sock)?;
    if family != AF_INET && family != AF_INET6 {
        return Ok(None);
    }
    let mut version = if family == AF_INET { 4 } else { 6 };
    let mut address = [0; 4];
    // SAFETY: points into `FIELDS`; `sock` begins with `sock_common`.
    let port: u16 = read::kernel(sock + unsafe { fields::field!(sock_common_skc_num) })?;
    if port != 0 && version == 4 {
        // SAFETY: as above.
        let found: u32 = read::kernel(sock + unsafe { fields::field!(sock_common_skc_rcv_saddr) })?;
        address[0] = u32::from_be(found);
    } else if port != 0 {
        // SAFETY: as above.
        let found: [u32; 4] = read::kernel(sock + unsafe { fields::field!(sock_common_skc_v6_rcv_saddr) })?;
        if found[0] == 0 && found[1] == 0 && found[2] == 0xffff_u32.to_be() {
            address[0] = u32::from_be(found[3]);
            version = 4;
        } else {
            address = [
                u32::from_be(found[0]),
                u32::from_be(found[1]),
                u32::from_be(found[2]),
                u32::from_be(found[3]),
            ];
        }
    }
    let own = port != 0 && sockets::own(sock, tag)?;
    Ok(Some(Place { address, version, port: u32::from(port), own }))
}

#[inline(always)]
fn judge(tag: &Tag, address: [u32; 4], version: u32, port: u32, protocol: u32, op: u32) -> Verdict {
    let verdict = decide(tag, &address, version, port, protocol);
    report(tag, verdict, &address, version, port, protocol, op);
    verdict
}

#[inline(always)]
fn decide(tag: &Tag, address: &[u32; 4], version: u32, port: u32, protocol: u32) -> Verdict {
    match judge::judge_start(tag) {
        Err(verdict) => verdict,
        Ok(judge) if version == 0 => judge.unjudged(cause::READ_FAILED),
        // SAFETY: a field of the policy.
        Ok(judge) => match unsafe {
            net::word(&judge, &raw const (*judge.policy).listen, address, version, port, protocol)
        } {
            Some(word) => judge.verdict(word),
            None => judge.unjudged(cause::READ_FAILED),
        },
    }
}

/// As [`decide`], where the kernel will choose the port: what denies any of them denies.
#[inline(always)]
fn decide_any(tag: &Tag, address: &[u32; 4], version: u32) -> Verdict {
    let verdict = decide(tag, address, version, 0, TCP);
    if verdict.word & (policy::DENY | policy::UNJUDGED) != 0 {
        return verdict;
    }
    let judge = match judge::judge_start(tag) {
        Ok(judge) => judge,
        // Since just now.
        Err(denied) => return denied,
    };
    // SAFETY: a field of the policy.
    let row = unsafe { net::row(&judge, &raw const (*judge.policy).listen, address, version, TCP) };
    let word = row.and_then(|row| first_denial(row.start, row.ports, row.stride));
    match word {
        Some(word) if word & policy::DENY == 0 => verdict,
        Some(word) => judge.verdict(word),
        None => judge.unjudged(cause::READ_FAILED),
    }
}

/// The first of `count` entries, `stride` apart, that denies; 0 if none does.
#[inline(always)]
fn first_denial(start: u32, count: u32, stride: u32) -> Option<Word> {
    let mut done: u32 = 0;
    let mut turn = 0;
    // There are at most as many classes as ports.
    while turn < 65_536 / STEP {
        let word =
            denial_among(start.wrapping_add(done.wrapping_mul(stride)), count.wrapping_sub(done), stride);
        if word != 0 {
            return Some(word);
        }
        done += STEP;
        if done >= count {
            return Some(0);
        }
        turn = read::next(turn);
    }
    None
}

const STEP: u32 = 1024;

/// As [`first_denial`], of at most [`STEP`].
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn denial_among(start: u32, count: u32, stride: u32) -> u32 {
    let mut i = 0;
    while i < STEP {
        if i >= core::hint::black_box(count) {
            break;
        }
        match judge::arena(start.wrapping_add(i.wrapping_mul(stride))) {
            Some(word) if word & policy::DENY == 0 => {}
            Some(word) => return word,
            None => return policy::DENY | policy::UNJUDGED,
        }
        i = read::next(i);
    }
    0
}

#[inline(always)]
fn report(tag: &Tag, verdict: Verdict, address: &[u32; 4], version: u32, port: u32, protocol: u32, op: u32) {
    Small {
        header: header(kind::CONNECT, tag, verdict),
        body: Connect { address: net::bytes(address), port, version, protocol, op },
    }
    .send(tag);
}
