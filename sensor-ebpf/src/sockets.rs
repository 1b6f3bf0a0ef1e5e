//! Internet sockets and the sessions that made them.

use aya_ebpf::{
    bindings::bpf_sock, helpers::generated::bpf_get_socket_cookie, macros::map, maps::LruHashMap,
};
use sallyport_sensor_abi::{
    fields::{MAX_SOCKETS, SocketSession},
    session::Tag,
};

use crate::{
    fields::field,
    read::{self, Address, Unreadable},
};

/// The session that made an Internet socket, by the kernel's cookie of it, which is never used again. Accepted
/// sockets are not here.
#[map]
pub(crate) static SOCKETS: LruHashMap<u64, SocketSession> = LruHashMap::with_max_entries(MAX_SOCKETS, 0);

/// Notes that a socket is the session's own.
#[inline(always)]
pub(crate) fn note(socket: *mut bpf_sock, tag: &Tag) {
    // SAFETY: the context that the kernel passed; giving a socket its cookie changes nothing else.
    let cookie = unsafe { bpf_get_socket_cookie(socket.cast()) };
    // Without its entry it counts as made outside.
    let _ = SOCKETS.insert(cookie, tag.session, 0);
}

/// Whether the session made a socket (`struct sock`).
#[inline(always)]
pub(crate) fn own(sock: Address, tag: &Tag) -> Result<bool, Unreadable> {
    // SAFETY: points into `FIELDS`; `sock` begins with `sock_common`.
    let cookie: u64 = read::kernel(sock + unsafe { field!(sock_common_skc_cookie) })?;
    // SAFETY: read at once; entries of this map are only ever replaced by entries of other sockets.
    Ok(cookie != 0 && unsafe { SOCKETS.get(cookie) }.is_some_and(|session| *session == tag.session))
}

/// Address family of a `struct sock`.
#[inline(always)]
pub(crate) fn family(sock: Address) -> Result<u32, Unreadable> {
    // SAFETY: points into `FIELDS`; `sock` begins with `sock_common`.
    Ok(u32::from(read::kernel::<u16>(sock + unsafe { field!(sock_common_skc_family) })?))
}

/// The `struct sock` of a `struct socket`.
#[inline(always)]
pub(crate) fn of(socket: Address) -> Result<Address, Unreadable> {
    // SAFETY: points into `FIELDS`.
    read::kernel(socket + unsafe { field!(socket_sk) })
}
