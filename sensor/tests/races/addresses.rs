//! Addresses: the port is changed while `connect` and `sendto` run.
#![expect(unsafe_code, reason = "system calls on memory that another thread changes")]

use std::net::{TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU16, AtomicU64, Ordering};
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, poll};
use sallyport_sensor_abi::policy::DENY;

use crate::host::{Host, eventually};
use crate::racer::{Racer, Score};
use crate::tables::Tables;
use crate::{report, wanted};

/// A TCP and a UDP port on loopback that count what arrives, in threads of the test.
pub(crate) struct Listener {
    pub(crate) port: u16,
    shared: Arc<Shared>,
    threads: Vec<std::thread::JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    heard: AtomicU64,
    /// Ends the threads.
    over: AtomicBool,
    /// A datagram of the test itself arrived.
    datagram: AtomicBool,
    /// From where the last connection came.
    last_peer: AtomicU16,
}

/// What the test itself sends.
const OWN: &[u8] = b"the test itself";

impl Listener {
    pub(crate) fn start() -> Self {
        let tcp = TcpListener::bind("127.0.0.1:0").expect("listen");
        let port = tcp.local_addr().expect("address").port();
        let udp = UdpSocket::bind(("127.0.0.1", port)).expect("the same port for UDP");
        udp.set_read_timeout(Some(Duration::from_millis(20))).expect("timeout");
        tcp.set_nonblocking(true).expect("non-blocking");
        let shared = Arc::<Shared>::default();
        let (of_udp, of_tcp) = (Arc::clone(&shared), Arc::clone(&shared));
        let threads = vec![
            std::thread::spawn(move || of_udp.hear_udp(&udp)),
            std::thread::spawn(move || of_tcp.hear_tcp(&tcp)),
        ];
        Self { port, shared, threads }
    }

    /// What has arrived up to now. What the test itself sends is behind all else, so when that is there, all is.
    pub(crate) fn heard(&self) -> u64 {
        self.shared.datagram.store(false, Ordering::SeqCst);
        let own = UdpSocket::bind("127.0.0.1:0").expect("socket");
        eventually("the test's own datagram", || {
            // One can be dropped while the buffer is full.
            let _ = own.send_to(OWN, ("127.0.0.1", self.port));
            self.shared.datagram.load(Ordering::SeqCst)
        });
        let own = TcpStream::connect(("127.0.0.1", self.port)).expect("connect");
        let from = own.local_addr().expect("address").port();
        eventually("the test's own connection", || self.shared.last_peer.load(Ordering::SeqCst) == from);
        self.shared.heard.fetch_sub(1, Ordering::SeqCst) - 1
    }
}

impl Shared {
    fn hear_udp(&self, udp: &UdpSocket) {
        let mut data = [0; 32];
        while !self.over.load(Ordering::Relaxed) {
            match udp.recv_from(&mut data) {
                Ok((len, _)) if data[..len] == *OWN => self.datagram.store(true, Ordering::SeqCst),
                Ok(_) => drop(self.heard.fetch_add(1, Ordering::SeqCst)),
                Err(_) => {}
            }
        }
    }

    fn hear_tcp(&self, tcp: &TcpListener) {
        while !self.over.load(Ordering::Relaxed) {
            if let Ok((_, from)) = tcp.accept() {
                self.heard.fetch_add(1, Ordering::SeqCst);
                self.last_peer.store(from.port(), Ordering::SeqCst);
            } else {
                let mut ready = [PollFd::new(tcp.as_fd(), PollFlags::POLLIN)];
                let _ = poll(&mut ready, 20u16);
            }
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.shared.over.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

/// Only these ports are forbidden.
pub(crate) fn deny_ports(ports: &[u16]) -> Tables {
    Tables::allow_all().connect(&[], ports, |_, listed, _| if listed { DENY | 1 } else { 0 })
}

fn both(operation: &str) {
    let host = Host::start();
    let (permitted, forbidden) = (Listener::start(), Listener::start());
    host.session(1, &deny_ports(&[forbidden.port]));
    let enough = wanted();
    let words = format!("{operation} {enough} {} {}", permitted.port, forbidden.port);
    let control = Racer::start(&words, host.folder.path()).go();
    let hits = forbidden.heard();
    assert!(hits >= 5, "{operation}: without a session only {hits} of {} got through", control.calls);
    let permitted_before = permitted.heard();
    let racer = Racer::start(&words, host.folder.path());
    host.kernel.tag(racer.pid(), 1, 1).expect("tag");
    let score = racer.go();
    assert_eq!(forbidden.heard(), hits, "{operation}: leaked in {score:?}");
    assert!(permitted.heard() > permitted_before, "{operation}: what is permitted did not arrive");
    report(operation, score.flipped, hits, control.calls);
}

#[tokio::test]
async fn an_address_that_changes_during_sendto() {
    both("sendto");
}

#[tokio::test]
async fn an_address_that_changes_during_connect_of_tcp() {
    both("tcp");
}

#[tokio::test]
async fn an_address_that_changes_during_connect_of_udp() {
    both("udp");
}

/// `struct sockaddr_in` whose port can be changed at once.
#[repr(C)]
struct Address {
    family: u16,
    port: AtomicU16,
    address: u32,
    zero: [u8; 8],
}

impl Address {
    fn raw(&self) -> (*const libc::sockaddr, libc::socklen_t) {
        (std::ptr::from_ref(self).cast(), size_of::<Self>() as u32)
    }
}

/// `OPERATION CALLS PERMITTED FORBIDDEN`
pub(crate) fn race(words: &[&str]) -> Score {
    let number = |at: usize| -> u16 { words[at].parse().expect("a port") };
    let (permitted, forbidden) = (number(2).to_be(), number(3).to_be());
    let address = Address {
        family: libc::AF_INET as u16,
        port: AtomicU16::new(permitted),
        address: u32::from(std::net::Ipv4Addr::LOCALHOST).to_be(),
        zero: [0; 8],
    };
    let udp = UdpSocket::bind("127.0.0.1:0").expect("socket");
    let operation: Box<dyn FnMut()> = match words[0] {
        "sendto" => Box::new(|| {
            let (to, len) = address.raw();
            // SAFETY: data and address are valid for the lengths given; that the port changes is what is tried.
            unsafe { libc::sendto(udp.as_raw_fd(), c"x".as_ptr().cast(), 1, 0, to, len) };
        }),
        "tcp" => Box::new(|| tcp(&address)),
        _ => Box::new(|| {
            let (to, len) = address.raw();
            // SAFETY: as above.
            if unsafe { libc::connect(udp.as_raw_fd(), to, len) } == 0 {
                let _ = udp.send(b"x");
            }
        }),
    };
    race_port(&address.port, permitted, forbidden, words[1].parse().expect("a number"), operation)
}

fn race_port(
    port: &AtomicU16,
    permitted: u16,
    forbidden: u16,
    wanted: u64,
    operation: impl FnMut(),
) -> Score {
    crate::racer::race(
        wanted,
        || {
            port.fetch_xor(permitted ^ forbidden, Ordering::Relaxed);
        },
        || port.load(Ordering::Relaxed) == permitted,
        operation,
    )
}

/// Connects and goes, without leaving a waiting port behind.
fn tcp(address: &Address) {
    let (to, len) = address.raw();
    let linger = libc::linger { l_onoff: 1, l_linger: 0 };
    // SAFETY: address and option are valid for the lengths given; the descriptor is closed once.
    unsafe {
        let fd = libc::socket(libc::AF_INET, libc::SOCK_STREAM, 0);
        if fd < 0 {
            return;
        }
        libc::setsockopt(
            fd,
            libc::SOL_SOCKET,
            libc::SO_LINGER,
            (&raw const linger).cast(),
            size_of_val(&linger) as u32,
        );
        libc::connect(fd, to, len);
        libc::close(fd);
    }
}
