//! Connections and datagrams: what is denied never arrives.

use std::io::Read as _;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::time::Duration;

use sallyport_sensor::kernel::{Cause, Destination, Event, Judgement, Mode};
use sallyport_sensor_abi::policy::DENY;

use crate::helper::shell_function;
use crate::host::Host;
use crate::tables::Tables;

/// A TCP and a UDP port on loopback that notice everything.
struct Listeners {
    tcp: TcpListener,
    udp: UdpSocket,
}

impl Listeners {
    fn start() -> Self {
        let tcp = TcpListener::bind("127.0.0.1:0").expect("listen");
        let udp = UdpSocket::bind(tcp.local_addr().expect("address")).expect("the same port for UDP");
        tcp.set_nonblocking(true).expect("non-blocking");
        udp.set_read_timeout(Some(Duration::from_millis(100))).expect("timeout");
        Self { tcp, udp }
    }

    fn address(&self) -> SocketAddr {
        self.tcp.local_addr().expect("address")
    }

    /// Whether anything at all arrived since the last call.
    fn heard(&self) -> bool {
        let mut buffer = [0; 64];
        let mut heard = false;
        while self.udp.recv_from(&mut buffer).is_ok() {
            heard = true;
        }
        while let Ok((mut stream, _)) = self.tcp.accept() {
            let _ = stream.set_nonblocking(true);
            let _ = stream.read(&mut buffer);
            heard = true;
        }
        heard
    }
}

fn deny_port(port: u16) -> Tables {
    Tables::allow_all().connect(&[], &[port], |_, listed, _| if listed { DENY | 2 } else { 0 })
}

fn deny_address(address: Ipv4Addr) -> Tables {
    Tables::allow_all().connect(&[address], &[], |listed, _, _| if listed { DENY | 2 } else { 0 })
}

/// Runs `helper OPERATION ADDRESS` in and outside of a session.
fn check(host: &Host, denied: &Listeners, operation: &str) {
    let script = format!("{}helper {operation} {}", shell_function(), denied.address());
    let ran = host.run(Some(1), &script);
    assert!(!ran.ok(), "{operation} was not refused");
    assert!(ran.stderr.contains("Operation not permitted"), "{operation}: {ran:?}");
    assert!(!denied.heard(), "{operation}: refused, yet it arrived");
    let ran = host.run(None, &script);
    assert!(ran.ok(), "{operation} of an untagged process was refused: {ran:?}");
    assert!(denied.heard(), "{operation}: the control did not arrive");
}

#[tokio::test]
async fn every_way_to_a_forbidden_port_is_closed() {
    let host = Host::start();
    let denied = Listeners::start();
    host.session(1, &deny_port(denied.address().port()));
    for operation in ["tcp", "udp", "udp-connected", "udp-unspec", "udp-mapped", "tcp-mapped", "fast-open"] {
        check(&host, &denied, operation);
    }
}

#[tokio::test]
async fn every_way_to_a_forbidden_address_is_closed() {
    let host = Host::start();
    let denied = Listeners::start();
    host.session(1, &deny_address(Ipv4Addr::LOCALHOST));
    for operation in ["tcp", "udp", "udp-connected", "udp-unspec", "udp-mapped", "tcp-mapped", "fast-open"] {
        check(&host, &denied, operation);
    }
}

#[tokio::test]
async fn io_uring_and_its_workers_are_judged() {
    let host = Host::start();
    let denied = Listeners::start();
    let script = format!("{}helper uring {}", shell_function(), denied.address());
    let ran = host.run(None, &script);
    if !ran.ok() {
        eprintln!("skipped: this kernel lets nobody use io_uring: {}", ran.stderr);
        return;
    }
    assert!(denied.heard());
    host.session(1, &deny_port(denied.address().port()));
    for operation in ["uring", "uring-worker"] {
        check(&host, &denied, operation);
    }
}

#[tokio::test]
async fn two_programs_and_an_allowed_port() {
    let mut host = Host::start();
    let (denied, allowed) = (Listeners::start(), Listeners::start());
    host.session(1, &deny_port(denied.address().port()));
    let bash =
        |to: &Listeners| format!("exec 3<>/dev/tcp/127.0.0.1/{} && echo hello >&3", to.address().port());
    assert!(!host.run(Some(1), &bash(&denied)).ok());
    assert!(!denied.heard());
    assert!(host.run(Some(1), &bash(&allowed)).ok());
    assert!(allowed.heard());
    let helper = |to: &Listeners| format!("{}helper tcp {}", shell_function(), to.address());
    assert!(!host.run(Some(1), &helper(&denied)).ok());
    assert!(!denied.heard());
    assert!(host.run(Some(1), &helper(&allowed)).ok());
    assert!(allowed.heard());

    let events = host.drain().await;
    let to = |listeners: &Listeners| -> Vec<Judgement> {
        let wanted = Destination::Connection(listeners.address().ip(), listeners.address().port());
        events
            .iter()
            .filter_map(|event| match event {
                Event::Connect { head, connect }
                    if connect.destination == wanted && connect.protocol == 6 =>
                {
                    Some(head.judgement)
                }
                _ => None,
            })
            .collect()
    };
    assert_eq!(to(&denied), [Judgement::Denied { rule: 2, kill: false, end_session: false }; 2]);
    assert_eq!(to(&allowed), [Judgement::Allowed; 2]);
}

#[tokio::test]
async fn the_unspecified_address_is_loopback() {
    let host = Host::start();
    let denied = Listeners::start();
    host.session(1, &deny_address(Ipv4Addr::LOCALHOST));
    let script = format!("{}helper tcp 0.0.0.0:{}", shell_function(), denied.address().port());
    assert!(!host.run(Some(1), &script).ok());
    assert!(!denied.heard());
    assert!(host.run(None, &script).ok());
    assert!(denied.heard());
}

/// Whether a socket can be made in and outside of a session.
fn socket(host: &Host, family: i32, kind: i32, protocol: i32) -> (bool, bool) {
    let script = format!("{}helper socket {family} {kind} {protocol}", shell_function());
    (host.run(Some(1), &script).ok(), host.run(None, &script).ok())
}

#[tokio::test]
async fn sockets_that_evade_the_hooks_cannot_be_made() {
    const IPPROTO_MPTCP: i32 = 262;
    let mut host = Host::start();
    host.session(1, &Tables::allow_all());
    for family in [libc::AF_INET, libc::AF_INET6] {
        assert_eq!(socket(&host, family, libc::SOCK_STREAM, 0), (true, true));
        assert_eq!(socket(&host, family, libc::SOCK_DGRAM, 0), (true, true));
        // Not every kernel has these; a session must not get one in any case.
        assert!(!socket(&host, family, libc::SOCK_STREAM, IPPROTO_MPTCP).0);
        assert!(!socket(&host, family, libc::SOCK_STREAM, libc::IPPROTO_SCTP).0);
        assert!(!socket(&host, family, libc::SOCK_DGRAM, libc::IPPROTO_UDPLITE).0);
        assert_eq!(socket(&host, family, libc::SOCK_RAW, libc::IPPROTO_UDP), (false, true));
    }
    let refused = host.drain().await.into_iter().any(|event| match event {
        Event::Connect { head, connect } => {
            head.judgement == Judgement::Unjudged(Cause::SocketType)
                && connect.destination == Destination::Socket
        }
        _ => false,
    });
    assert!(refused, "the event says why");
}

#[tokio::test]
async fn other_families_are_refused_in_lsm_mode() {
    let host = Host::start();
    host.session(1, &Tables::allow_all());
    let refused = host.kernel.mode() == Mode::Lsm;
    for (family, kind) in [(libc::AF_PACKET, libc::SOCK_RAW), (libc::AF_VSOCK, libc::SOCK_STREAM)] {
        let (tagged, untagged) = socket(&host, family, kind, 0);
        assert_eq!(tagged, untagged && !refused, "family {family}");
    }
    assert_eq!(socket(&host, libc::AF_UNIX, libc::SOCK_STREAM, 0), (true, true));
    assert_eq!(socket(&host, libc::AF_NETLINK, libc::SOCK_RAW, 0), (true, true));
}

#[tokio::test]
async fn icmp_only_if_it_is_allowed_everywhere() {
    let icmp = |protocol: u8| protocol == 1;
    let host = Host::start();
    std::fs::write("/proc/sys/net/ipv4/ping_group_range", "0 2147483647").expect("allow ping sockets");
    host.session(1, &Tables::allow_all());
    assert_eq!(socket(&host, libc::AF_INET, libc::SOCK_DGRAM, libc::IPPROTO_ICMP), (true, true));
    host.kernel.close_session(1).expect("close");
    // Denied to one address only; the datagrams would not be seen.
    let one = Tables::allow_all().connect(&[Ipv4Addr::new(10, 9, 8, 7)], &[], move |listed, _, protocol| {
        if listed && icmp(protocol) { DENY } else { 0 }
    });
    host.session(1, &one);
    assert_eq!(socket(&host, libc::AF_INET, libc::SOCK_DGRAM, libc::IPPROTO_ICMP), (false, true));
    assert_eq!(socket(&host, libc::AF_INET, libc::SOCK_DGRAM, 0), (true, true), "UDP is not ICMP");
}
