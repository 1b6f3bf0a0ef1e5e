//! LSM `unix_stream_connect`, `unix_may_send`: Unix sockets, by the name of the one that is reached.
//!
//! Sees: `connect()` of stream and packet sockets; `connect()` and every message of datagram sockets. The name judged
//! is the peer's own (where it was bound), so links, other mounts and races change nothing: an abstract name as
//! `@name`, and a name in a folder by the path of that file. Peers without a name (`socketpair`, clients) pass: they
//! can be reached only by who made the pair, or by answering who connected. A peer of the same session is judged like
//! any other. Streams are not judged again while they last. Needs: 5.7 and BPF LSM. On error: denied.

use aya_ebpf::{macros::lsm, programs::LsmContext};

use crate::{
    sockets,
    system::{ALLOW, argument, tag},
    unix,
};

/// match-proto:v5.10:include/linux/lsm_hook_defs.h:LSM_HOOK(int, 0, unix_stream_connect, struct sock *sock, struct sock *other, struct sock *newsk)
#[lsm(hook = "unix_stream_connect")]
pub fn sally_unix_connect(ctx: LsmContext) -> i32 {
    if tag().is_none() { ALLOW } else { unix::judge(argument(&ctx, 1)) }
}

/// match-proto:v5.10:include/linux/lsm_hook_defs.h:LSM_HOOK(int, 0, unix_may_send, struct socket *sock, struct socket *other)
#[lsm(hook = "unix_may_send")]
pub fn sally_unix_send(ctx: LsmContext) -> i32 {
    if tag().is_none() { ALLOW } else { unix::judge(argument(&ctx, 1).and_then(sockets::of)) }
}
