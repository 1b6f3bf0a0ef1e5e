//! Ports that the kernel is made to choose: `listed` may listen on every port but 47733.

use std::os::fd::OwnedFd;

use crate::stage::{LISTEN_PORT, Outcome};
use crate::sys::{self, at, call, fd};
use crate::technique::Technique;
use crate::uring;

use super::network::{address4, socket};
use super::sockets::{await_visit, listening};

const FAMILY_4: u16 = libc::AF_INET as u16;

/// `IP_LOCAL_PORT_RANGE` (6.3): the kernel may choose among these only, of which there is one.
fn narrow(socket: &OwnedFd) -> Outcome {
    let range = u32::from(LISTEN_PORT) << 16 | u32::from(LISTEN_PORT);
    let one = 1i32;
    let reuse = [fd(socket), libc::SOL_SOCKET as usize, libc::SO_REUSEADDR as usize, at(&one), 4];
    call(libc::SYS_setsockopt, &reuse)?;
    call(libc::SYS_setsockopt, &[fd(socket), libc::IPPROTO_IP as usize, 51, at(&range), 4]).map(drop)
}

fn bind(socket: &OwnedFd, family: u16, port: u16) -> Outcome {
    let address = address4(family, [0; 4], port);
    call(libc::SYS_bind, &[fd(socket), at(&address), address.len()]).map(drop)
}

/// The proof that a socket has the forbidden port.
fn has_port(socket: &OwnedFd) -> Outcome {
    let (address, length) = ([0u8; 16], [16u32]);
    call(libc::SYS_getsockname, &[fd(socket), at(&address), at(&length)])?;
    let address = sys::written(&address);
    match u16::from_be_bytes([address[2], address[3]]) {
        LISTEN_PORT => std::fs::write("marker", ""),
        other => Err(std::io::Error::other(format!("it is port {other}"))),
    }
}

pub(super) const TECHNIQUES: &[Technique] = &[
    listening("listen without bind where only the forbidden port is left to choose", |_| {
        let socket = socket(libc::AF_INET, libc::SOCK_STREAM, 0)?;
        narrow(&socket)?;
        call(libc::SYS_listen, &[fd(&socket), 5])?;
        await_visit(&socket)
    })
    .lsm_only("listening is judged when a socket is bound, in tracepoint mode"),
    listening("bind to any port where only the forbidden one is left to choose", |_| {
        let socket = socket(libc::AF_INET, libc::SOCK_STREAM, 0)?;
        narrow(&socket)?;
        bind(&socket, FAMILY_4, 0)?;
        call(libc::SYS_listen, &[fd(&socket), 5])?;
        await_visit(&socket)
    }),
    Technique::network("UDP, bind to any port where only the forbidden one is left to choose", |_| {
        let socket = socket(libc::AF_INET, libc::SOCK_DGRAM, 0)?;
        narrow(&socket)?;
        bind(&socket, FAMILY_4, 0)?;
        has_port(&socket)
    })
    .happened(|stage| stage.marker().exists()),
    Technique::network("UDP, bind to the forbidden port", |_| {
        let socket = socket(libc::AF_INET, libc::SOCK_DGRAM, 0)?;
        bind(&socket, FAMILY_4, LISTEN_PORT)?;
        has_port(&socket)
    })
    .happened(|stage| stage.marker().exists()),
    listening("bind with AF_UNSPEC, listen", |_| {
        let socket = socket(libc::AF_INET, libc::SOCK_STREAM, 0)?;
        let one = 1i32;
        let reuse = [fd(&socket), libc::SOL_SOCKET as usize, libc::SO_REUSEADDR as usize, at(&one), 4];
        call(libc::SYS_setsockopt, &reuse)?;
        bind(&socket, libc::AF_UNSPEC as u16, LISTEN_PORT)?;
        call(libc::SYS_listen, &[fd(&socket), 5])?;
        await_visit(&socket)
    }),
    listening("io_uring binds and listens", |_| {
        let socket = socket(libc::AF_INET, libc::SOCK_STREAM, 0)?;
        let one = 1i32;
        let reuse = [fd(&socket), libc::SOL_SOCKET as usize, libc::SO_REUSEADDR as usize, at(&one), 4];
        call(libc::SYS_setsockopt, &reuse)?;
        uring::bind(&socket, &address4(FAMILY_4, [0; 4], LISTEN_PORT))?;
        uring::listen(&socket)?;
        await_visit(&socket)
    })
    .given_up(),
];
