//! Listening, received sockets, source routes, families: what is forbidden does not come to be.

use std::io::Read as _;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsRawFd as _;
use std::os::unix::net::UnixListener;

use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use sallyport_sensor::kernel::{Destination, Event, Mode};
use sallyport_sensor_abi::policy::{DENY, operation};

use crate::helper::shell_function;
use crate::host::{Host, Ran};
use crate::tables::Tables;

fn helper(host: &Host, session: Option<u64>, operation: &str) -> Ran {
    host.run(session, &format!("{}helper {operation}", shell_function()))
}

fn forbid_listening(port: u16) -> Tables {
    Tables::allow_all()
        .connect(&[], &[port], |_, _, _| 0)
        .listen(|_, listed, _| if listed { DENY | 2 } else { 0 })
}

/// A port that nobody has at the moment.
fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").expect("listen").local_addr().expect("address").port()
}

#[tokio::test]
async fn bound_sockets_in_both_modes() {
    let mut host = Host::start();
    let port = free_port();
    host.session(1, &forbid_listening(port));
    host.session(2, &Tables::allow_all());
    for way in ["listen", "listen-udp"] {
        for address in ["127.0.0.1", "0.0.0.0", "[::1]", "[::]", "[::ffff:127.0.0.1]"] {
            let address = format!("{address}:{port}");
            assert!(!helper(&host, Some(1), &format!("{way} {address}")).ok(), "{way} {address}");
            for session in [Some(2), None] {
                let ran = helper(&host, session, &format!("{way} {address}"));
                assert!(ran.ok(), "{way} {address} in {session:?}: {ran:?}");
            }
        }
        // Another port is not forbidden.
        assert!(helper(&host, Some(1), &format!("{way} 127.0.0.1:0")).ok());
    }
    let denied = host.drain().await.into_iter().any(|event| match event {
        Event::Connect { head, connect } => {
            head.judgement.is_denied()
                && matches!(connect.destination, Destination::Bound(address, found) if address.is_loopback() && found == port)
        }
        _ => false,
    });
    assert!(denied, "the event says where");
}

#[tokio::test]
async fn listening_without_binding() {
    let host = Host::start();
    host.session(1, &forbid_listening(0));
    host.session(2, &Tables::allow_all());
    // In tracepoint mode nothing sees it.
    assert_eq!(helper(&host, Some(1), "listen-unbound").ok(), host.kernel.mode() == Mode::Tracepoint);
    for session in [Some(2), None] {
        assert!(helper(&host, session, "listen-unbound").ok());
    }
}

/// Listens on a Unix socket and hands everybody a connected TCP socket. True: something arrived by that.
fn accomplice(path: &std::path::Path, run: impl FnOnce() -> Ran) -> (Ran, bool) {
    let server = UnixListener::bind(path).expect("listen");
    let tcp = TcpListener::bind("127.0.0.1:0").expect("listen");
    let connected = TcpStream::connect(tcp.local_addr().expect("address")).expect("connect");
    let (mut far, _) = tcp.accept().expect("accept");
    server.set_nonblocking(true).expect("non-blocking");
    let over = std::sync::atomic::AtomicBool::new(false);
    let ran = std::thread::scope(|scope| {
        scope.spawn(|| {
            while !over.load(std::sync::atomic::Ordering::Relaxed) {
                match server.accept() {
                    Ok((peer, _)) => {
                        let fds = [connected.as_raw_fd()];
                        let bytes = [std::io::IoSlice::new(b"x")];
                        let rights = [ControlMessage::ScmRights(&fds)];
                        sendmsg::<()>(peer.as_raw_fd(), &bytes, &rights, MsgFlags::empty(), None)
                            .expect("send");
                    }
                    Err(_) => std::thread::yield_now(),
                }
            }
        });
        let ran = run();
        over.store(true, std::sync::atomic::Ordering::Relaxed);
        ran
    });
    std::fs::remove_file(path).expect("remove");
    far.set_nonblocking(true).expect("non-blocking");
    let arrived = far.read(&mut [0; 16]).is_ok_and(|len| len > 0);
    (ran, arrived)
}

#[tokio::test]
async fn sockets_handed_in() {
    let host = Host::start();
    host.session(1, &Tables::allow_all().system(operation::RECEIVE_SOCKET, 0, DENY | 2));
    host.session(2, &Tables::allow_all());
    let path = host.file("accomplice.sock");
    for session in [Some(1), Some(2), None] {
        let (ran, arrived) =
            accomplice(&path, || helper(&host, session, &format!("receive-tcp {}", path.display())));
        let holds = session == Some(1) && host.kernel.mode() == Mode::Lsm;
        assert_eq!(arrived, !holds, "{session:?}: {ran:?}");
    }
    // What the session made itself may be passed around in it.
    let tcp = TcpListener::bind("127.0.0.1:0").expect("listen");
    let ran = helper(&host, Some(1), &format!("receive-own {}", tcp.local_addr().expect("address")));
    assert!(ran.ok(), "{ran:?}");
    let mut heard = [0; 5];
    tcp.accept().expect("accept").0.read_exact(&mut heard).expect("read");
    assert_eq!(&heard, b"hello");
}

#[tokio::test]
async fn source_routes() {
    let host = Host::start();
    host.session(1, &Tables::allow_all());
    let address: SocketAddr = "127.0.0.1:9".parse().expect("address");
    for way in ["route", "route-message"] {
        let tagged = helper(&host, Some(1), &format!("{way} {address}"));
        let untagged = helper(&host, None, &format!("{way} {address}"));
        let text = tagged.refusal();
        if host.kernel.mode() == Mode::Lsm {
            assert!(text.contains("not permitted"), "{way}: {tagged:?}");
        }
        assert!(!untagged.refusal().contains("not permitted"), "{way}: {untagged:?}");
    }
}
