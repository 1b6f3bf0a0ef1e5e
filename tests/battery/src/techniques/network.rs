//! Connections and datagrams: nothing may arrive at port 47731 of 127.0.0.1.

use std::io::{Error, Result};
use std::os::fd::{AsRawFd as _, OwnedFd};

use crate::stage::{OPEN_PORT, Outcome, PORT};
use crate::sys::{self, at, call, call_fd, fd, in_child};
use crate::technique::{Person, Technique};
use crate::uring::{self, How};

const HELLO: &[u8] = b"hello";
const FAMILY_NONE: u16 = libc::AF_UNSPEC as u16;
const FAMILY_4: u16 = libc::AF_INET as u16;

/// `struct sockaddr_in`
pub(super) fn address4(family: u16, address: [u8; 4], port: u16) -> [u8; 16] {
    let mut raw = [0; 16];
    raw[..2].copy_from_slice(&family.to_ne_bytes());
    raw[2..4].copy_from_slice(&port.to_be_bytes());
    raw[4..8].copy_from_slice(&address);
    raw
}

/// The forbidden place.
pub(super) fn target() -> [u8; 16] {
    address4(FAMILY_4, [127, 0, 0, 1], PORT)
}

/// `struct sockaddr_in6`
fn address6(address: [u8; 16], port: u16) -> [u8; 28] {
    let mut raw = [0; 28];
    raw[..2].copy_from_slice(&(libc::AF_INET6 as u16).to_ne_bytes());
    raw[2..4].copy_from_slice(&port.to_be_bytes());
    raw[8..24].copy_from_slice(&address);
    raw
}

/// `::ffff:127.0.0.1`
fn mapped() -> [u8; 28] {
    let mut address = [0; 16];
    address[10..].copy_from_slice(&[0xff, 0xff, 127, 0, 0, 1]);
    address6(address, PORT)
}

pub(super) fn socket(family: i32, kind: i32, protocol: i32) -> Result<OwnedFd> {
    call_fd(libc::SYS_socket, &[family as usize, kind as usize, protocol as usize])
}

pub(super) fn connect(socket: &OwnedFd, address: &[u8]) -> Outcome {
    call(libc::SYS_connect, &[fd(socket), at(address), address.len()]).map(drop)
}

fn send(socket: &OwnedFd, address: &[u8], flags: i32) -> Outcome {
    let arguments = [fd(socket), at(HELLO), HELLO.len(), flags as usize, at(address), address.len()];
    call(libc::SYS_sendto, &arguments).map(drop)
}

fn tcp() -> Result<OwnedFd> {
    socket(libc::AF_INET, libc::SOCK_STREAM, 0)
}

fn udp() -> Result<OwnedFd> {
    socket(libc::AF_INET, libc::SOCK_DGRAM, 0)
}

fn stream(protocol: i32) -> Outcome {
    connect(&socket(libc::AF_INET, libc::SOCK_STREAM, protocol)?, &target())
}

/// A message for `sendmsg` and its relatives, handed to `then`.
fn message<T>(address: &[u8], then: impl FnOnce(&libc::msghdr) -> T) -> T {
    let part = libc::iovec { iov_base: HELLO.as_ptr().cast_mut().cast(), iov_len: HELLO.len() };
    let mut whole = sys::zeroed_message();
    whole.msg_name = address.as_ptr().cast_mut().cast();
    whole.msg_namelen = address.len() as u32;
    whole.msg_iov = (&raw const part).cast_mut();
    whole.msg_iovlen = 1;
    then(&whole)
}

fn by_ring(how: How) -> Outcome {
    uring::connect(&tcp()?, &target(), how)
}

fn sent_by_ring(how: How) -> Outcome {
    let socket = udp()?;
    message(&target(), |message| uring::send(&socket, message, how))
}

/// IPv4 and UDP headers, then the text, to the forbidden port.
fn packet() -> Vec<u8> {
    let length = (28 + HELLO.len()) as u16;
    let mut packet = vec![0x45, 0];
    packet.extend(length.to_be_bytes());
    packet.extend([0, 1, 0, 0, 64, 17, 0, 0, 127, 0, 0, 1, 127, 0, 0, 1]);
    let sum: u32 = packet.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1])).sum();
    let sum = !((sum & 0xffff) + (sum >> 16)) as u16;
    packet[10..12].copy_from_slice(&sum.to_be_bytes());
    for number in [47_000, PORT, 8 + HELLO.len() as u16, 0] {
        packet.extend(number.to_be_bytes());
    }
    packet.extend(HELLO);
    packet
}

fn raw() -> Outcome {
    let socket = socket(libc::AF_INET, libc::SOCK_RAW, libc::IPPROTO_RAW)?;
    let packet = packet();
    let to = target();
    call(libc::SYS_sendto, &[fd(&socket), packet.as_ptr() as usize, packet.len(), 0, at(&to), to.len()])
        .map(drop)
}

/// Past the stack's own headers, on the loopback interface.
fn by_packet_socket(kind: i32) -> Outcome {
    let socket = socket(libc::AF_PACKET, kind, 0)?;
    let mut frame = Vec::new();
    if kind == libc::SOCK_RAW {
        frame.extend([0; 12]);
        frame.extend([8, 0]);
    }
    frame.extend(packet());
    // `struct sockaddr_ll`: family, ETH_P_IP, interface 1.
    let mut to = [0u8; 20];
    to[..2].copy_from_slice(&(libc::AF_PACKET as u16).to_ne_bytes());
    to[2..4].copy_from_slice(&0x0800u16.to_be_bytes());
    to[4..8].copy_from_slice(&1i32.to_ne_bytes());
    call(libc::SYS_sendto, &[fd(&socket), frame.as_ptr() as usize, frame.len(), 0, at(&to), to.len()])
        .map(drop)
}

/// Has the kernel take packets from loopback addresses that come in by the loopback interface.
fn local_routes(_: &crate::stage::Stage) -> Outcome {
    for (setting, value) in [("route_localnet", "1"), ("accept_local", "1"), ("rp_filter", "0")] {
        for interface in ["lo", "all"] {
            std::fs::write(format!("/proc/sys/net/ipv4/conf/{interface}/{setting}"), value)?;
        }
    }
    Ok(())
}

/// The address in memory flips between the permitted and the forbidden port while datagrams are sent.
fn flips() -> Outcome {
    let page =
        sys::map(4096, libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED | libc::MAP_ANONYMOUS, None)?;
    sys::put(page, &address4(FAMILY_4, [127, 0, 0, 1], OPEN_PORT));
    let Some(writer) = sys::fork()? else {
        loop {
            sys::put(page, &target());
            sys::put(page, &address4(FAMILY_4, [127, 0, 0, 1], OPEN_PORT));
        }
    };
    let socket = udp()?;
    let mut refused = None;
    let started = std::time::Instant::now();
    let mut sent = 0;
    // The writer needs the processor, too; on a busy machine it gets it late.
    while sent < 2_000 || started.elapsed() < std::time::Duration::from_millis(300) {
        sent += 1;
        call(libc::SYS_sched_yield, &[])?;
        let arguments = [fd(&socket), at(HELLO), HELLO.len(), 0, page as usize, 16];
        if let Err(error) = call(libc::SYS_sendto, &arguments) {
            refused = Some(error);
        }
    }
    let _ = call(libc::SYS_kill, &[writer as usize, libc::SIGKILL as usize]);
    refused.map_or(Ok(()), Err)
}

/// Bytes from a file into a connected socket.
fn pumped(number: i64) -> Outcome {
    let socket = tcp()?;
    connect(&socket, &target())?;
    let file = sys::open("../permitted/file", libc::O_RDONLY)?;
    match number {
        libc::SYS_sendfile => call(number, &[fd(&socket), fd(&file), 0, 9]).map(drop),
        _ => {
            let (read, write) = sys::pipe()?;
            call(libc::SYS_splice, &[fd(&file), 0, fd(&write), 0, 9, 0])?;
            call(libc::SYS_splice, &[fd(&read), 0, fd(&socket), 0, 9, 0]).map(drop)
        }
    }
}

const IPPROTO_MPTCP: i32 = 262;
const INHERITED: usize = 150;

pub(super) const TECHNIQUES: &[Technique] = &[
    Technique::network("TCP connect", |_| connect(&tcp()?, &target())),
    Technique::network("TCP from a shell", |_| {
        sys::run("/bin/bash", &["bash", "-c", &format!("echo hello > /dev/tcp/127.0.0.1/{PORT}")])
    }),
    Technique::network("TCP from perl", |_| {
        sys::perl(&format!(
            "use Socket; socket(S, PF_INET, SOCK_STREAM, 0); connect(S, sockaddr_in({PORT}, inet_aton('127.0.0.1'))) or exit 1"
        ))
    }),
    Technique::network("UDP sendto", |_| send(&udp()?, &target(), 0)),
    Technique::network("UDP, connected", |_| {
        let socket = udp()?;
        connect(&socket, &target())?;
        call(libc::SYS_write, &[fd(&socket), at(HELLO), HELLO.len()]).map(drop)
    }),
    Technique::network("UDP, connected elsewhere, sendto", |_| {
        let socket = udp()?;
        connect(&socket, &address4(FAMILY_4, [127, 0, 0, 1], OPEN_PORT))?;
        send(&socket, &target(), 0)
    }),
    Technique::network("sendmmsg, the second of two", |_| {
        let socket = udp()?;
        let open = address4(FAMILY_4, [127, 0, 0, 1], OPEN_PORT);
        message(&open, |first| {
            message(&target(), |second| {
                // `struct mmsghdr`
                let both = [(*first, 0usize), (*second, 0)];
                let sent = call(libc::SYS_sendmmsg, &[fd(&socket), both.as_ptr() as usize, 2, 0])?;
                if sent == 2 { Ok(()) } else { Err(Error::other("only one was sent")) }
            })
        })
    }),
    Technique::network("TCP fast-open", |_| send(&tcp()?, &target(), libc::MSG_FASTOPEN)),
    Technique::network("TCP fast-open by connect", |_| {
        let socket = tcp()?;
        let one = 1i32;
        // TCP_FASTOPEN_CONNECT
        call(libc::SYS_setsockopt, &[fd(&socket), libc::IPPROTO_TCP as usize, 30, at(&one), 4])?;
        connect(&socket, &target())?;
        call(libc::SYS_write, &[fd(&socket), at(HELLO), HELLO.len()]).map(drop)
    }),
    Technique::network("MPTCP", |_| stream(IPPROTO_MPTCP)).always(),
    Technique::network("TCP, disconnected and connected again", |_| {
        let socket = tcp()?;
        connect(&socket, &address4(FAMILY_4, [127, 0, 0, 1], OPEN_PORT))?;
        connect(&socket, &address4(FAMILY_NONE, [0; 4], 0))?;
        connect(&socket, &target())
    }),
    Technique::network("AF_UNSPEC sendto", |_| {
        send(&udp()?, &address4(FAMILY_NONE, [127, 0, 0, 1], PORT), 0)
    }),
    Technique::network("IPv4-mapped, TCP", |_| {
        connect(&socket(libc::AF_INET6, libc::SOCK_STREAM, 0)?, &mapped())
    }),
    Technique::network("IPv4-mapped, UDP", |_| {
        send(&socket(libc::AF_INET6, libc::SOCK_DGRAM, 0)?, &mapped(), 0)
    }),
    Technique::network("IPv4 address on an IPv6 socket", |_| {
        send(&socket(libc::AF_INET6, libc::SOCK_DGRAM, 0)?, &target(), 0)
    }),
    Technique::network("0.0.0.0", |_| connect(&tcp()?, &address4(FAMILY_4, [0; 4], PORT))),
    Technique::network("0.0.0.0, UDP", |_| send(&udp()?, &address4(FAMILY_4, [0; 4], PORT), 0)),
    Technique::network("::ffff:0.0.0.0", |_| {
        let mut address = [0; 16];
        address[10..12].copy_from_slice(&[0xff, 0xff]);
        connect(&socket(libc::AF_INET6, libc::SOCK_STREAM, 0)?, &address6(address, PORT))
    }),
    Technique::network("raw socket", |_| raw()).always(),
    Technique::network("packet socket", |_| by_packet_socket(libc::SOCK_RAW))
        .lsm_only("packet sockets are refused by a hook of LSM mode")
        .prepare(local_routes)
        .guest_only()
        .always(),
    Technique::network("packet socket, cooked", |_| by_packet_socket(libc::SOCK_DGRAM))
        .lsm_only("packet sockets are refused by a hook of LSM mode")
        .prepare(local_routes)
        .guest_only()
        .always(),
    Technique::network("io_uring connect", |_| by_ring(How::Inline)).given_up(),
    Technique::network("io_uring connect by a worker", |_| by_ring(How::Worker)).given_up(),
    Technique::network("io_uring connect by the polling thread", |_| by_ring(How::Poller)).given_up(),
    Technique::network("io_uring sendmsg", |_| sent_by_ring(How::Inline)).given_up(),
    Technique::network("io_uring sendmsg by a worker", |_| sent_by_ring(How::Worker)).given_up(),
    Technique::network("io_uring sendmsg by the polling thread", |_| sent_by_ring(How::Poller)).given_up(),
    Technique::network("sendfile into a socket", |_| pumped(libc::SYS_sendfile)),
    Technique::network("splice into a socket", |_| pumped(libc::SYS_splice)),
    Technique::network("address rewritten while it is sent to (2,000 times)", |_| flips()),
    Technique::network("address on a page that is served when the kernel reads it", |_| {
        let page = sys::served_page(target().to_vec())?;
        let socket = udp()?;
        call(libc::SYS_sendto, &[fd(&socket), at(HELLO), HELLO.len(), 0, page as usize, 16]).map(drop)
    })
    .given_up(),
    Technique::network("connect in a thread", |_| {
        let thread = std::thread::spawn(|| connect(&tcp()?, &target()));
        thread.join().unwrap_or_else(|_| Err(Error::other("the thread ended")))
    }),
    Technique::network("connect by a grandchild in a session of its own", |_| {
        in_child(|| {
            call(libc::SYS_setsid, &[])?;
            in_child(|| connect(&tcp()?, &target()))
        })
    }),
    Technique::network("pidfd_getfd of a connected socket", |stage| {
        let process = call_fd(libc::SYS_pidfd_open, &[stage.victim as usize, 0])?;
        let arguments = [fd(&process), crate::stage::VICTIM_SOCKET as usize, 0];
        let socket = call_fd(libc::SYS_pidfd_getfd, &arguments)?;
        call(libc::SYS_write, &[fd(&socket), at(HELLO), HELLO.len()]).map(drop)
    })
    .by(Person::Confined),
    Technique::network("connected socket passed in by an untagged process", |_| {
        let socket = sys::receive_descriptor(INHERITED)?;
        call(libc::SYS_write, &[fd(&socket), at(HELLO), HELLO.len()]).map(drop)
    })
    .by(Person::Confined)
    .lsm_only("there is no hook for it in tracepoint mode")
    .before(|_| {
        let (ours, theirs) = std::os::unix::net::UnixStream::pair()?;
        // Forked before there is a tag.
        if sys::fork()?.is_none() {
            let sent = std::net::UdpSocket::bind("127.0.0.1:0").and_then(|socket| {
                socket.connect(("127.0.0.1", PORT))?;
                sys::send_descriptor(theirs.as_raw_fd() as usize, &socket)
            });
            sys::exit(i32::from(sent.is_err()));
        }
        call(libc::SYS_dup3, &[fd(&ours), INHERITED, 0]).map(drop)
    }),
    Technique::network("socket that was connected before the session", |_| {
        call(libc::SYS_write, &[INHERITED, at(HELLO), HELLO.len()]).map(drop)
    })
    .before(|_| {
        let socket = std::net::UdpSocket::bind("127.0.0.1:0")?;
        socket.connect(("127.0.0.1", PORT))?;
        call(libc::SYS_dup3, &[fd(&socket), INHERITED, 0]).map(drop)
    })
    .unclaimed("a session's first process is started by the sensor, with no descriptors but its terminal"),
    Technique::network("connect by a 32-bit call (int 0x80)", |_| {
        let socket = tcp()?;
        let address = sys::low(&target())?;
        // connect
        sys::call_32(362, [fd(&socket) as u32, address, 16, 0]).map(drop)
    })
    .given_up(),
    Technique::network("sendto by socketcall, a 32-bit call (int 0x80)", |_| {
        let socket = udp()?;
        let (text, address) = (sys::low(HELLO)?, sys::low(&target())?);
        let words = [fd(&socket) as u32, text, HELLO.len() as u32, 0, address, 16];
        let words: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
        // SYS_SENDTO
        sys::call_32(102, [11, sys::low(&words)?, 0, 0]).map(drop)
    })
    .given_up(),
    Technique::network("io_uring sends without a copy (SEND_ZC)", |_| {
        uring::send_to(&udp()?, HELLO, &target())
    })
    .given_up(),
    Technique::network("UDP, sent in two parts (MSG_MORE)", |_| {
        let socket = udp()?;
        send(&socket, &address4(FAMILY_4, [127, 0, 0, 1], OPEN_PORT), 0)?;
        send(&socket, &target(), libc::MSG_MORE)?;
        send(&socket, &target(), 0)
    }),
];
