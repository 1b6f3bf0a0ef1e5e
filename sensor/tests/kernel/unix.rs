//! Unix sockets, by path and by abstract name: what is denied never arrives.

use std::io::Read as _;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram, UnixListener};
use std::path::Path;
use std::time::Duration;

use sallyport_sensor::kernel::{Event, FileOp, Mode};
use sallyport_sensor_abi::policy::{DENY, file_op};

use crate::helper::shell_function;
use crate::host::Host;
use crate::tables::Tables;

/// Whether anything arrived since the last call, a connection included.
fn heard(listener: &UnixListener) -> bool {
    listener.set_nonblocking(true).expect("non-blocking");
    let mut heard = false;
    while let Ok((mut stream, _)) = listener.accept() {
        let _ = stream.set_nonblocking(true);
        let _ = stream.read(&mut [0; 16]);
        heard = true;
    }
    heard
}

fn helper(host: &Host, session: Option<u64>, operation: &str) -> crate::host::Ran {
    host.run(session, &format!("{}helper {operation}", shell_function()))
}

fn judged(host: &Host) -> bool {
    host.kernel.mode() == Mode::Lsm
}

fn forbid(host: &Host, name: &str) {
    host.session(1, &Tables::allow_all().file(file_op::UNIX, name, DENY | 2));
    host.session(2, &Tables::allow_all());
}

/// Connects by `name` in the forbidding session, the permitting one, and outside.
fn three_ways(host: &Host, operation: &str, mut heard: impl FnMut() -> bool) {
    for session in [Some(1), Some(2), None] {
        let ran = helper(host, session, operation);
        let holds = session == Some(1) && judged(host);
        assert_eq!(heard(), !holds, "{operation} in {session:?}: {ran:?}");
        assert_eq!(ran.ok(), !holds, "{operation} in {session:?}: {ran:?}");
    }
}

#[tokio::test]
async fn by_path_whatever_it_is_called() {
    let mut host = Host::start();
    let socket = host.file("daemon.sock");
    let listener = UnixListener::bind(&socket).expect("listen");
    forbid(&host, &socket.display().to_string());
    let link = host.file("link");
    std::os::unix::fs::symlink(&socket, &link).expect("symlink");
    let folder = host.folder.path().display().to_string();
    for path in [
        socket.display().to_string(),
        link.display().to_string(),
        format!("/proc/self/root{}", socket.display()),
        format!("{folder}/../{}/daemon.sock", host.folder.path().file_name().expect("name").display()),
        "daemon.sock".into(),
    ] {
        three_ways(&host, &format!("unix {path}"), || heard(&listener));
    }
    if judged(&host) {
        let named = host.drain().await.into_iter().any(|event| match event {
            Event::File { head, file } => {
                file.op == FileOp::Unix
                    && head.judgement.is_denied()
                    && Path::new(&String::from_utf8_lossy(&file.path).into_owned()) == socket
            }
            _ => false,
        });
        assert!(named, "the event names the socket");
    }
}

#[tokio::test]
async fn datagrams() {
    let host = Host::start();
    let path = host.file("log.sock");
    let socket = UnixDatagram::bind(&path).expect("bind");
    socket.set_read_timeout(Some(Duration::from_millis(100))).expect("timeout");
    forbid(&host, &path.display().to_string());
    three_ways(&host, &format!("unix-send {}", path.display()), || socket.recv(&mut [0; 16]).is_ok());
}

/// A zero byte in a name must not make it look like another.
#[tokio::test]
async fn by_abstract_name() {
    let host = Host::start();
    let unique = std::process::id();
    let plain = format!("sallyport-{unique}");
    let names =
        [plain.clone().into_bytes(), format!("{plain}\0").into_bytes(), format!("{plain}\\0").into_bytes()];
    let rules = [format!("@{plain}"), format!("@{plain}\\0"), format!("@{plain}\\\\0")];
    let listeners = names.each_ref().map(|name| {
        let address = SocketAddr::from_abstract_name(name).expect("address");
        UnixListener::bind_addr(&address).expect("listen")
    });
    for (forbidden, rule) in rules.iter().enumerate() {
        forbid(&host, rule);
        for (i, name) in names.iter().enumerate() {
            let hex: String = name.iter().map(|byte| format!("{byte:02x}")).collect();
            let ran = helper(&host, Some(1), &format!("unix-name {hex}"));
            let holds = i == forbidden && judged(&host);
            assert_eq!(heard(&listeners[i]), !holds, "{name:?} where `{rule}` is forbidden: {ran:?}");
            assert!(helper(&host, None, &format!("unix-name {hex}")).ok());
            assert!(heard(&listeners[i]));
        }
        host.kernel.close_session(1).expect("close");
        host.kernel.close_session(2).expect("close");
    }
}

#[tokio::test]
async fn pairs_pass_and_own_servers_are_judged() {
    let host = Host::start();
    let path = host.file("own.sock");
    forbid(&host, &path.display().to_string());
    assert!(helper(&host, Some(1), "unix-pair").ok());
    for session in [Some(1), Some(2), None] {
        let _ = std::fs::remove_file(&path);
        let ran = helper(&host, session, &format!("unix-server {}", path.display()));
        assert_eq!(ran.ok(), !(session == Some(1) && judged(&host)), "{session:?}: {ran:?}");
    }
}
