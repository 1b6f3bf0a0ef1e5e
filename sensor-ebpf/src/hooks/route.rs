//! LSM `socket_setsockopt`, `socket_sendmsg`: source routes, which send packets elsewhere than the address says.
//!
//! Sees: `IP_OPTIONS`, IPv6 routing headers and packet options, set on a socket or sent along with a message; by these
//! any user could have packets for a permitted address delivered to another host first. Sessions cannot use them at
//! all. Needs: 5.7 and BPF LSM. Misses: nothing is seen in tracepoint mode. On error: denied.

use aya_ebpf::{macros::lsm, programs::LsmContext};

use crate::{
    fields::field,
    hooks::socket::{forbidden, report},
    read::{self, Address, Unreadable, next},
    sockets,
    system::{ALLOW, EPERM, argument, tag},
};

const AF_INET: u32 = 2;
const AF_INET6: u32 = 10;
const IPPROTO_IP: u32 = 0;
const IPPROTO_IPV6: u32 = 41;
const IP_OPTIONS: u32 = 4;
const IP_RETOPTS: u32 = 7;
const IPV6_2292PKTOPTIONS: u32 = 6;
const IPV6_2292RTHDR: u32 = 5;
const IPV6_RTHDR: u32 = 57;

#[inline(always)]
fn routes(level: u32, option: u32) -> bool {
    level == IPPROTO_IP && (option == IP_OPTIONS || option == IP_RETOPTS)
        || level == IPPROTO_IPV6
            && (option == IPV6_2292PKTOPTIONS || option == IPV6_2292RTHDR || option == IPV6_RTHDR)
}

/// match-proto:v5.10:include/linux/lsm_hook_defs.h:LSM_HOOK(int, 0, socket_setsockopt, struct socket *sock, int level, int optname)
#[lsm(hook = "socket_setsockopt")]
pub fn sally_route_option(ctx: LsmContext) -> i32 {
    let (level, option): (u32, u32) = (ctx.arg(1), ctx.arg(2));
    // `IP_RETOPTS` as an option only asks for what arrives.
    if !routes(level, option) || option == IP_RETOPTS {
        return ALLOW;
    }
    refuse(level)
}

#[inline(always)]
fn refuse(protocol: u32) -> i32 {
    let Some(tag) = tag() else { return ALLOW };
    let verdict = forbidden(&tag);
    report(&tag, verdict, protocol);
    if verdict.denies() { EPERM } else { ALLOW }
}

/// match-proto:v5.10:include/linux/lsm_hook_defs.h:LSM_HOOK(int, 0, socket_sendmsg, struct socket *sock, struct msghdr *msg, int size)
#[lsm(hook = "socket_sendmsg")]
pub fn sally_route_message(ctx: LsmContext) -> i32 {
    if tag().is_none() {
        return ALLOW;
    }
    match carries_route(&ctx) {
        Ok(false) => ALLOW,
        Ok(true) | Err(Unreadable) => refuse(0),
    }
}

/// `struct cmsghdr`
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Control {
    len: u64,
    level: u32,
    kind: u32,
}

/// Control messages looked at; nobody sends as many.
const MOST: u32 = 16;

#[inline(always)]
fn carries_route(ctx: &LsmContext) -> Result<bool, Unreadable> {
    let message = argument(ctx, 1)?;
    // SAFETY: offsets point into `FIELDS`.
    unsafe {
        let len: u64 = read::kernel(message + field!(msghdr_msg_controllen))?;
        if len < size_of::<Control>() as u64 {
            return Ok(false);
        }
        let family = sockets::family(sockets::of(argument(ctx, 0)?)?)?;
        if family != AF_INET && family != AF_INET6 {
            return Ok(false);
        }
        let start: Address = read::kernel(message + field!(msghdr_msg_control))?;
        let mut at = 0;
        let mut turn = 0;
        while turn < MOST {
            if at + size_of::<Control>() as u64 > len {
                return Ok(false);
            }
            let control: Control = read::kernel(start + at)?;
            if routes(control.level, control.kind) {
                return Ok(true);
            }
            if control.len < size_of::<Control>() as u64 || control.len > len {
                return Ok(false);
            }
            at += (control.len + 7) & !7;
            turn = next(turn);
        }
        Err(Unreadable)
    }
}
