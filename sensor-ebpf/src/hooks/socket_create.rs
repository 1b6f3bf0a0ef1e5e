//! LSM `socket_create`: which families of sockets a session may make.
//!
//! Sees: every `socket()` and `socketpair()`. Needs: 5.7 and BPF LSM. Only UNIX, IPv4, IPv6 and netlink pass: packet,
//! vsock, AF_ALG, XDP and whatever else sends without passing the cgroup hooks does not. On error: denied.

use aya_ebpf::{EbpfContext as _, macros::lsm, programs::LsmContext};

use crate::{
    hooks::{
        ALLOW, EPERM, prior,
        socket::{forbidden, report},
    },
    maps::tag_of,
};

const AF_UNIX: i32 = 1;
const AF_INET: i32 = 2;
const AF_INET6: i32 = 10;
const AF_NETLINK: i32 = 16;

/// match-proto:v5.10:include/linux/lsm_hook_defs.h:LSM_HOOK(int, 0, socket_create, int family, int type, int protocol, int kern)
#[lsm(hook = "socket_create")]
pub fn sally_socket_family(ctx: LsmContext) -> i32 {
    let before: i32 = ctx.arg(4);
    if before != 0 {
        return prior(before);
    }
    let family: i32 = ctx.arg(0);
    let by_kernel: i32 = ctx.arg(3);
    if by_kernel != 0 || matches!(family, AF_UNIX | AF_INET | AF_INET6 | AF_NETLINK) {
        return ALLOW;
    }
    let Some(tag) = tag_of(ctx.tgid()) else { return ALLOW };
    let verdict = forbidden(&tag);
    report(&tag, verdict, ctx.arg::<u32>(2));
    if verdict.denies() { -EPERM } else { ALLOW }
}
