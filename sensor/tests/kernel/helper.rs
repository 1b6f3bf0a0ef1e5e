//! Small hostile programs: this test binary, run again by a script as `$HELPER OPERATION ARGUMENTS…`.
//!
//! Exit status 0: it worked; 1: refused, with the error on standard output.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6, TcpStream, UdpSocket};
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
        "uring" | "uring-worker" => {
            let socket = socket(libc::AF_INET, libc::SOCK_STREAM, 0)?;
            crate::uring::connect(&socket, version4(address()), words[0] == "uring-worker")
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
        "start-kernel" => start_kernel(words[1], words[2]),
        "datagrams" => datagrams(words[1].parse().expect("a number"), words[2].parse().expect("a number")),
        other => crate::attack::operate(words).unwrap_or_else(|| panic!("no operation `{other}`")),
    }
}

/// Starts and adopts as a sensor does, and ends: what it pinned stays.
fn start_kernel(mode: &str, pins: &str) -> Outcome {
    use sallyport_sensor::kernel::{Kernel, KernelOptions, Mode};
    let mode = match mode {
        "lsm" => Some(Mode::Lsm),
        "tracepoint" => Some(Mode::Tracepoint),
        _ => None,
    };
    let options = KernelOptions { pin_dir: pins.into(), cgroup_root: None, mode };
    let started = Kernel::start(&options);
    started.map(drop).map_err(|error| std::io::Error::other(crate::host::chain(&error)))
}

/// Numbers that look random and are the same each time (an LCG of Knuth's).
pub(crate) struct Numbers(pub(crate) u64);

impl Numbers {
    /// Below `limit`.
    pub(crate) fn next(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % limit
    }
}

/// Sends datagrams to addresses on both sides of round borders. Most are refused, by policy or for want of a route.
fn datagrams(seed: u64, count: usize) -> Outcome {
    let mut numbers = Numbers(seed);
    let (four, six) = (UdpSocket::bind("0.0.0.0:0")?, UdpSocket::bind("[::]:0")?);
    for _ in 0..count {
        let port = [1, 80, 511, 512, 600, 601, 1023, 1024, 65_535][numbers.next(9)];
        let byte = |numbers: &mut Numbers| [0, 1, 63, 64, 127, 128, 255][numbers.next(7)];
        let v4 = Ipv4Addr::new(
            [9, 10, 10, 10, 127, 128, 223][numbers.next(7)],
            byte(&mut numbers),
            byte(&mut numbers),
            byte(&mut numbers),
        );
        let v6 = Ipv6Addr::new(
            [0xfd00, 0xfcff, 0x2001][numbers.next(3)],
            [0, 1, 2][numbers.next(3)],
            [0, 1, 0x7fff, 0x8000, 0xffff][numbers.next(5)],
            0,
            0,
            0,
            0,
            1,
        );
        let _ = match numbers.next(3) {
            0 => four.send_to(b"x", (v4, port)),
            1 => six.send_to(b"x", (v4.to_ipv6_mapped(), port)),
            _ => six.send_to(b"x", (v6, port)),
        };
    }
    Ok(())
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
