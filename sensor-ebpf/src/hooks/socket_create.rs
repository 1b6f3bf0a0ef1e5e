//! LSM `socket_create`: which families of sockets a session may make.
//!
//! Sees: every `socket()` and `socketpair()`. Needs: 5.7 and BPF LSM. Only UNIX, IPv4, IPv6 and netlink pass: packet,
//! vsock, AF_ALG, XDP and whatever else sends without passing the cgroup hooks does not. On error: denied.

use aya_ebpf::{EbpfContext as _, macros::lsm, programs::LsmContext};
use sallyport_sensor_abi::event::cause;

use crate::{hooks::socket::report, judge::Verdict, maps::tag_of};

const EPERM: i32 = 1;
const AF_UNIX: i32 = 1;
const AF_INET: i32 = 2;
const AF_INET6: i32 = 10;
const AF_NETLINK: i32 = 16;

/// match-proto:v5.10:include/linux/lsm_hook_defs.h:LSM_HOOK(int, 0, socket_create, int family, int type, int protocol, int kern)
#[lsm(hook = "socket_create")]
pub fn sally_socket_family(ctx: LsmContext) -> i32 {
    let prior: i32 = ctx.arg(4);
    if prior != 0 {
        return if (-4095..0).contains(&prior) { prior } else { -EPERM };
    }
    let family: i32 = ctx.arg(0);
    let by_kernel: i32 = ctx.arg(3);
    if by_kernel != 0 || matches!(family, AF_UNIX | AF_INET | AF_INET6 | AF_NETLINK) {
        return 0;
    }
    let tgid = ctx.tgid();
    let Some(tag) = tag_of(tgid) else { return 0 };
    report(&tag, Verdict::unjudged(cause::SOCKET_TYPE, 0), ctx.arg::<u32>(2));
    -EPERM
}
