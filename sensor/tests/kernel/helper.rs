//! Small hostile programs: this test binary, run again by a script as `$HELPER OPERATION ARGUMENTS…`.
//!
//! Exit status 0: it worked; 1: refused, with the error on standard output.

use std::io::{Read as _, Write as _};
use std::net::{Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6, TcpStream, UdpSocket};
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};

type Outcome = Result<(), std::io::Error>;

/// What makes a run of the test binary one of the helper.
const VARIABLE: &str = "SALLYPORT_HELPER";

/// A shell function `helper` that runs this binary as the helper.
pub(crate) fn shell_function() -> String {
    let exe = std::env::current_exe().expect("own path");
    format!(
        "helper() {{ {VARIABLE}=\"$*\" {} --exact helper::run_as_helper --nocapture >/dev/null; }}; ",
        exe.display()
    )
}

/// Not a test: does nothing unless a script runs this binary as the helper.
#[test]
#[expect(
    clippy::disallowed_methods,
    reason = "the status is all that the script wants; libtest would make another of it"
)]
fn run_as_helper() {
    let Ok(command) = std::env::var(VARIABLE) else { return };
    let words: Vec<_> = command.split(' ').collect();
    let status = match operate(&words) {
        Ok(()) => 0,
        Err(error) => {
            eprintln!("refused: {error}");
            1
        }
    };
    std::process::exit(status);
}

fn operate(words: &[&str]) -> Outcome {
    let address = || -> SocketAddr { words[1].parse().expect("address") };
    match words[0] {
        "tcp" => TcpStream::connect(address())?.write_all(b"hello"),
        "udp" => unbound(address())?.send_to(b"hello", address()).map(drop),
        "udp-connected" => {
            let socket = unbound(address())?;
            socket.connect(address())?;
            socket.send(b"hello").map(drop)
        }
        "udp-unspec" => send_unspec(address()),
        "udp-mapped" => {
            let socket = UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 0))?;
            socket.send_to(b"hello", mapped(address())).map(drop)
        }
        "tcp-mapped" => TcpStream::connect(mapped(address()))?.write_all(b"hello"),
        "fast-open" => fast_open(address()),
        "socket" => {
            let number = |i: usize| -> i32 { words[i].parse().expect("a number") };
            socket(number(1), number(2), number(3)).map(drop)
        }
        "memfd" => run_memfd(words[1]),
        "thread-exec" => {
            let program = words[1..].iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
            let thread = std::thread::spawn(move || exec(&program));
            thread.join().expect("thread")
        }
        "threads" => {
            // Threads come and go; the process stays what it is.
            for _ in 0..20 {
                std::thread::spawn(|| ()).join().expect("thread");
            }
            std::process::Command::new(words[1]).args(&words[2..]).status()?.exit_ok_or()
        }
        "long-argument" => {
            let long = "x".repeat(words[2].parse().expect("a number"));
            std::process::Command::new(words[1]).arg(long).args(&words[3..]).status()?.exit_ok_or()
        }
        "read-tcp" => {
            let mut text = String::new();
            TcpStream::connect(address())?.read_to_string(&mut text).map(drop)
        }
        other => panic!("no operation `{other}`"),
    }
}

trait ExitOkOr {
    fn exit_ok_or(self) -> Outcome;
}

impl ExitOkOr for std::process::ExitStatus {
    fn exit_ok_or(self) -> Outcome {
        if self.success() { Ok(()) } else { Err(std::io::Error::other(self.to_string())) }
    }
}

fn unbound(address: SocketAddr) -> std::io::Result<UdpSocket> {
    UdpSocket::bind(if address.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" })
}

fn mapped(address: SocketAddr) -> SocketAddr {
    match address {
        SocketAddr::V4(address) => {
            SocketAddrV6::new(address.ip().to_ipv6_mapped(), address.port(), 0, 0).into()
        }
        SocketAddr::V6(_) => address,
    }
}

fn exec(program: &[String]) -> Outcome {
    use std::os::unix::process::CommandExt as _;
    Err(std::process::Command::new(&program[0]).args(&program[1..]).exec())
}

#[expect(unsafe_code, reason = "sockets that the standard library does not make")]
fn socket(family: i32, kind: i32, protocol: i32) -> std::io::Result<OwnedFd> {
    // SAFETY: takes numbers.
    let fd = unsafe { libc::socket(family, kind, protocol) };
    if fd < 0 {
        return Err(std::io::Error::last_os_error());
    }
    // SAFETY: just made, and nobody else's.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

#[expect(unsafe_code, reason = "an address that the standard library does not make")]
fn send_raw(fd: &OwnedFd, address: SocketAddrV4, family: i32, flags: i32) -> Outcome {
    let raw = libc::sockaddr_in {
        sin_family: family as u16,
        sin_port: address.port().to_be(),
        sin_addr: libc::in_addr { s_addr: u32::from(*address.ip()).to_be() },
        sin_zero: [0; 8],
    };
    let data = b"hello";
    // SAFETY: data and address are valid for the lengths given.
    let sent = unsafe {
        libc::sendto(
            fd.as_raw_fd(),
            data.as_ptr().cast(),
            data.len(),
            flags,
            (&raw const raw).cast(),
            size_of_val(&raw) as u32,
        )
    };
    if sent < 0 { Err(std::io::Error::last_os_error()) } else { Ok(()) }
}

fn version4(address: SocketAddr) -> SocketAddrV4 {
    match address {
        SocketAddr::V4(address) => address,
        SocketAddr::V6(_) => panic!("an IPv4 address is needed"),
    }
}

fn send_unspec(address: SocketAddr) -> Outcome {
    let fd = socket(libc::AF_INET, libc::SOCK_DGRAM, 0)?;
    send_raw(&fd, version4(address), libc::AF_UNSPEC, 0)
}

fn fast_open(address: SocketAddr) -> Outcome {
    let fd = socket(libc::AF_INET, libc::SOCK_STREAM, 0)?;
    send_raw(&fd, version4(address), libc::AF_INET, libc::MSG_FASTOPEN)
}

#[expect(unsafe_code, reason = "memfd and fexecve")]
fn run_memfd(program: &str) -> Outcome {
    let bytes = std::fs::read(program)?;
    // SAFETY: a terminated name.
    let fd = unsafe { libc::memfd_create(c"anything".as_ptr(), 0) };
    // SAFETY: just made, and nobody else's.
    let mut file = std::fs::File::from(unsafe { OwnedFd::from_raw_fd(fd) });
    file.write_all(&bytes)?;
    exec(&[format!("/proc/self/fd/{}", file.as_raw_fd()), "memfd-ran".into()])
}
