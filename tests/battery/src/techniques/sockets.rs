//! Sockets that speak past the hooks on addresses, and sockets that listen.

use crate::stage::{LISTEN_PORT, Outcome, Stage};
use crate::sys::{self, at, call, fd};
use crate::technique::{Person, Technique};

use super::network::{address4, connect, socket, target};

const FAMILIES: &str = "sockets of other families are refused by a hook of LSM mode";
const FAMILY_4: u16 = libc::AF_INET as u16;
const FAMILY_VSOCK: i32 = 40;

/// The socket exists. What it could reach is not the question: no rule on addresses speaks of it.
fn made(family: i32, kind: i32, protocol: i32) -> Outcome {
    let _socket = socket(family, kind, protocol)?;
    std::fs::write("marker", "")
}

const fn family(name: &'static str, attack: fn(&Stage) -> Outcome) -> Technique {
    Technique::network(name, attack).happened(|stage| stage.marker().exists()).lsm_only(FAMILIES)
}

/// Somebody from outside, who comes to the forbidden port and leaves a proof if anybody answers. Forked before there is a tag.
fn visitor(stage: &Stage) -> Outcome {
    visits(stage, || std::net::TcpStream::connect(("127.0.0.1", LISTEN_PORT)).map(drop))
}

/// Forks somebody who comes again and again, until anybody answers or the technique's process is gone.
fn visits(stage: &Stage, visit: impl Fn() -> Outcome) -> Outcome {
    let host = std::process::id();
    if sys::fork()?.is_some() {
        return Ok(());
    }
    while std::os::unix::process::parent_id() == host {
        if visit().is_ok() {
            sys::exit(i32::from(std::fs::write(stage.marker(), "").is_err()));
        }
        std::thread::sleep(std::time::Duration::from_millis(3));
    }
    sys::exit(0)
}

/// How long a visit may take; the machine may be a slow emulation.
const PATIENCE: std::time::Duration = std::time::Duration::from_secs(10);

/// Waits until somebody comes, and says so.
pub(super) fn await_visit(socket: &std::os::fd::OwnedFd) -> Outcome {
    // `struct pollfd`: POLLIN
    let poll = [sys::fd(socket) as u64 | 1 << 32];
    if call(libc::SYS_poll, &[at(&poll), 1, PATIENCE.as_millis() as usize])? == 0 {
        return Err(std::io::Error::other("nobody came"));
    }
    let started = std::time::Instant::now();
    while !std::fs::exists(crate::stage::root("work/marker"))? {
        if started.elapsed() > PATIENCE {
            return Err(std::io::Error::other("somebody came and said nothing"));
        }
        std::thread::sleep(std::time::Duration::from_millis(2));
    }
    Ok(())
}

fn listen_on(address: &[u8], family: i32, bound: bool) -> Outcome {
    let socket = socket(family, libc::SOCK_STREAM, 0)?;
    if bound {
        let one = 1i32;
        let arguments = [fd(&socket), libc::SOL_SOCKET as usize, libc::SO_REUSEADDR as usize, at(&one), 4];
        call(libc::SYS_setsockopt, &arguments)?;
        call(libc::SYS_bind, &[fd(&socket), at(address), address.len()])?;
    }
    call(libc::SYS_listen, &[fd(&socket), 5])?;
    await_visit(&socket)
}

pub(super) const fn listening(name: &'static str, attack: fn(&Stage) -> Outcome) -> Technique {
    Technique::network(name, attack).happened(|stage| stage.marker().exists()).before(visitor)
}

const INHERITED: usize = 150;

pub(super) const TECHNIQUES: &[Technique] = &[
    family("SCTP", |_| made(libc::AF_INET, libc::SOCK_STREAM, libc::IPPROTO_SCTP)).both().always(),
    family("DCCP", |_| made(libc::AF_INET, 6, 33)).both().always(),
    family("UDP-Lite", |_| made(libc::AF_INET, libc::SOCK_DGRAM, libc::IPPROTO_UDPLITE)).both().always(),
    family("ICMP, raw", |_| made(libc::AF_INET, libc::SOCK_RAW, libc::IPPROTO_ICMP)).both().always(),
    family("IPv6, raw", |_| made(libc::AF_INET6, libc::SOCK_RAW, libc::IPPROTO_RAW)).both().always(),
    family("vsock", |_| made(FAMILY_VSOCK, libc::SOCK_STREAM, 0)).always(),
    family("kernel cryptography (AF_ALG)", |_| made(libc::AF_ALG, libc::SOCK_SEQPACKET, 0)).always(),
    family("packet sockets for devices (AF_XDP)", |_| made(44, libc::SOCK_RAW, 0)).always(),
    family("netlink to the firewall", |_| made(libc::AF_NETLINK, libc::SOCK_RAW, libc::NETLINK_NETFILTER))
        .unclaimed("netlink is allowed: what it changes takes capabilities, and reaches nobody by itself"),
    listening("listen on a forbidden port", |_| {
        listen_on(&address4(FAMILY_4, [127, 0, 0, 1], LISTEN_PORT), libc::AF_INET, true)
    }),
    listening("listen on a forbidden port, every address", |_| {
        listen_on(&address4(FAMILY_4, [0; 4], LISTEN_PORT), libc::AF_INET, true)
    }),
    listening("listen on a forbidden port, IPv6", |_| {
        let mut address = [0; 28];
        address[..2].copy_from_slice(&(libc::AF_INET6 as u16).to_ne_bytes());
        address[2..4].copy_from_slice(&LISTEN_PORT.to_be_bytes());
        listen_on(&address, libc::AF_INET6, true)
    }),
    listening("listen in perl", |_| {
        sys::perl(&format!(
            "use Socket; socket(S, PF_INET, SOCK_STREAM, 0); setsockopt(S, SOL_SOCKET, SO_REUSEADDR, pack('l', 1)); \
             bind(S, sockaddr_in({LISTEN_PORT}, INADDR_ANY)) or exit 1; listen(S, 5) or exit 2; \
             $SIG{{ALRM}} = sub {{ exit 3 }}; alarm 10; accept(C, S); select(undef, undef, undef, 0.01) until -e 'marker'"
        ))
    }),
    listening("listen on a socket that was bound before the session", |_| {
        call(libc::SYS_listen, &[INHERITED, 5])?;
        let socket = sys::call_fd(libc::SYS_dup, &[INHERITED])?;
        await_visit(&socket)
    })
    .before(|stage| {
        let socket = socket(libc::AF_INET, libc::SOCK_STREAM, 0)?;
        let one = 1i32;
        let arguments = [fd(&socket), libc::SOL_SOCKET as usize, libc::SO_REUSEADDR as usize, at(&one), 4];
        call(libc::SYS_setsockopt, &arguments)?;
        let address = address4(FAMILY_4, [127, 0, 0, 1], LISTEN_PORT);
        call(libc::SYS_bind, &[fd(&socket), at(&address), address.len()])?;
        call(libc::SYS_dup3, &[fd(&socket), INHERITED, 0])?;
        visitor(stage)
    })
    .lsm_only("listening is judged when a socket is bound, in tracepoint mode"),
    Technique::network("listen without bind (allow-list)", |_| {
        let socket = socket(libc::AF_INET, libc::SOCK_STREAM, 0)?;
        call(libc::SYS_listen, &[fd(&socket), 5])?;
        let (address, length) = ([0u8; 16], [16u32]);
        call(libc::SYS_getsockname, &[fd(&socket), at(&address), at(&length)])?;
        // A connection to oneself, past the rules on connecting, is proof enough that it listens.
        let mut own = address;
        own[4..8].copy_from_slice(&[127, 0, 0, 1]);
        // Whole or not at all.
        std::fs::write("address", own)?;
        std::fs::rename("address", "listening")?;
        await_visit(&socket)
    })
    .by(Person::Allowlisted)
    .before(|stage| {
        visits(stage, || {
            let address = std::fs::read("listening")?;
            connect(&socket(libc::AF_INET, libc::SOCK_STREAM, 0)?, &address)
        })
    })
    .happened(|stage| stage.marker().exists())
    .lsm_only("listening is judged when a socket is bound, in tracepoint mode"),
    Technique::network("connect from a network that is not on the list (allow-list)", |_| {
        connect(&socket(libc::AF_INET, libc::SOCK_STREAM, 0)?, &target())
    })
    .by(Person::Allowlisted),
];
