//! Unix sockets: `sockets/docker.sock`, `sockets/log` and the abstract `@sallyport-battery` stand for daemons that act for
//! whoever asks.

use std::os::fd::OwnedFd;
use std::os::unix::fs::symlink;

use crate::stage::{ABSTRACT, Outcome, root, text};
use crate::sys::{self, at, call, fd};
use crate::technique::Technique;
use crate::uring::{self, How};

use super::network::socket;

/// `struct sockaddr_un`, as long as it must be.
fn address(path: &str) -> Vec<u8> {
    let mut raw = (libc::AF_UNIX as u16).to_ne_bytes().to_vec();
    raw.extend(path.as_bytes());
    if !path.starts_with('\0') {
        raw.push(0);
    }
    raw
}

fn stream() -> std::io::Result<OwnedFd> {
    socket(libc::AF_UNIX, libc::SOCK_STREAM, 0)
}

fn connect_to(path: &str) -> Outcome {
    let address = address(path);
    call(libc::SYS_connect, &[fd(&stream()?), address.as_ptr() as usize, address.len()]).map(drop)
}

fn daemon() -> String {
    text("sockets/docker.sock")
}

fn send_to(path: &str) -> Outcome {
    let (address, socket) = (address(path), socket(libc::AF_UNIX, libc::SOCK_DGRAM, 0)?);
    call(libc::SYS_sendto, &[fd(&socket), at(b"hello"), 5, 0, address.as_ptr() as usize, address.len()])
        .map(drop)
}

fn by_ring(how: How) -> Outcome {
    uring::connect(&stream()?, &address(&daemon()), how)
}

pub(super) const TECHNIQUES: &[Technique] = &[
    Technique::unix("by path", |_| connect_to(&daemon())),
    Technique::unix("by relative path", |_| connect_to("../sockets/docker.sock")),
    Technique::unix("by symbolic link", |_| {
        symlink(daemon(), "innocent")?;
        connect_to("innocent")
    }),
    Technique::unix("by hard link", |_| {
        std::fs::hard_link(daemon(), "innocent")?;
        connect_to("innocent")
    }),
    Technique::unix("from the current folder, reached by descriptor", |_| {
        let folder = sys::open(root("sockets"), libc::O_RDONLY | libc::O_DIRECTORY)?;
        call(libc::SYS_fchdir, &[fd(&folder)])?;
        connect_to("docker.sock")
    }),
    Technique::unix("through /proc/self/root", |_| connect_to(&format!("/proc/self/root{}", daemon()))),
    Technique::unix("through /proc/self/fd of the folder", |_| {
        let folder = sys::open(root("sockets"), libc::O_PATH)?;
        connect_to(&format!("/proc/self/fd/{}/docker.sock", fd(&folder)))
    }),
    Technique::unix("through /proc/self/fd of the socket", |_| {
        let socket = sys::open(daemon(), libc::O_PATH)?;
        connect_to(&format!("/proc/self/fd/{}", fd(&socket)))
    }),
    Technique::unix("bind mount of the socket", |_| {
        sys::own_mounts()?;
        std::fs::write("innocent", "")?;
        sys::mount(daemon(), "innocent", "", libc::MS_BIND, "")?;
        connect_to("innocent")
    }),
    Technique::unix("renamed socket", |_| {
        std::fs::rename(daemon(), "innocent")?;
        connect_to("innocent")
    }),
    Technique::unix("renamed folder", |_| {
        std::fs::rename(root("sockets"), "innocent")?;
        connect_to("innocent/docker.sock")
    }),
    Technique::unix("chroot", |_| {
        call(libc::SYS_chroot, &[sys::text(&sys::c_path(root("sockets")))])?;
        connect_to("/docker.sock")
    }),
    Technique::unix("abstract name", |_| connect_to(&format!("\0{ABSTRACT}"))),
    Technique::unix("abstract name, in perl", |_| {
        sys::perl(&format!(
            "use Socket; socket(S, PF_UNIX, SOCK_STREAM, 0); connect(S, pack('S a*', AF_UNIX, \"\\0{ABSTRACT}\")) or exit 1"
        ))
    }),
    Technique::unix("datagram", |_| send_to(&text("sockets/log"))),
    Technique::unix("datagram, connected", |_| {
        let (address, socket) = (address(&text("sockets/log")), socket(libc::AF_UNIX, libc::SOCK_DGRAM, 0)?);
        call(libc::SYS_connect, &[fd(&socket), address.as_ptr() as usize, address.len()])?;
        call(libc::SYS_write, &[fd(&socket), at(b"hello"), 5]).map(drop)
    }),
    Technique::unix("datagram, connected before the session", |_| {
        call(libc::SYS_write, &[150, at(b"hello"), 5]).map(drop)
    })
    .before(|_| {
        let (address, socket) = (address(&text("sockets/log")), socket(libc::AF_UNIX, libc::SOCK_DGRAM, 0)?);
        call(libc::SYS_connect, &[fd(&socket), address.as_ptr() as usize, address.len()])?;
        call(libc::SYS_dup3, &[fd(&socket), 150, 0]).map(drop)
    }),
    Technique::unix("datagram through a symbolic link", |_| {
        symlink(text("sockets/log"), "innocent")?;
        send_to("innocent")
    }),
    Technique::unix("io_uring connect", |_| by_ring(How::Inline)).given_up(),
    Technique::unix("io_uring connect by a worker", |_| by_ring(How::Worker)).given_up(),
    Technique::unix("io_uring connect by the polling thread", |_| by_ring(How::Poller)).given_up(),
    Technique::unix("connected socket passed in by an untagged process", |_| {
        let socket = sys::receive_descriptor(150)?;
        call(libc::SYS_write, &[fd(&socket), at(b"hello"), 5]).map(drop)
    })
    .before(|_| {
        let (ours, theirs) = std::os::unix::net::UnixStream::pair()?;
        // Forked before there is a tag.
        if sys::fork()?.is_none() {
            let sent = std::os::unix::net::UnixDatagram::unbound().and_then(|socket| {
                socket.connect(root("sockets/log"))?;
                sys::send_descriptor(fd(&theirs), &socket)
            });
            sys::exit(i32::from(sent.is_err()));
        }
        call(libc::SYS_dup3, &[fd(&ours), 150, 0]).map(drop)
    }),
];
