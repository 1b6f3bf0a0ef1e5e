//! Tests of records as lines.

use sallyport_evidence::record::{
    Endpoint, FileAction, Identity, Loss, Process, Session, Source, SystemAction,
};

use super::*;

const PLAIN: Out = Out { json: false, colour: false };

fn record(kind: Kind) -> Record {
    Record {
        source: Source { maker: "web-1".to_owned(), boot: "b".to_owned(), seq: 1 },
        time_ns: 1_795_352_934_123_000_000,
        host: Some("web-1".to_owned()),
        identity: Some(Identity { user: "alice@example.org".to_owned(), ..Identity::default() }),
        session: Some(Session { id: "s".to_owned(), local_user: "root".to_owned(), ..Session::default() }),
        ..Record::empty(kind)
    }
}

#[test]
fn a_denied_program() {
    let mut record = record(Kind::Exec);
    record.process = Some(Process {
        path: "/usr/bin/nmap".to_owned(),
        args: vec!["nmap".to_owned(), "-sS".to_owned(), "10.0.0.0/8".to_owned()],
        ..Process::default()
    });
    record.decision = Some(Decision {
        action: "exec".to_owned(),
        outcome: Outcome::Blocked,
        policy: "ab".to_owned(),
        rule: "no-scanners".to_owned(),
        reason: "not here".to_owned(),
        point: "kernel-lsm".to_owned(),
    });
    assert_eq!(
        line(PLAIN, 12, &record),
        "2026-11-22 13:08:54.123Z  alice@example.org  root@web-1  exec /usr/bin/nmap -sS 10.0.0.0/8  \
         BLOCKED by rule \"no-scanners\": not here  #12"
    );
    assert!(is_bad(&record));
}

#[test]
fn a_connection_and_a_liar() {
    let mut connect = record(Kind::Connect);
    connect.endpoint = Some(Endpoint {
        address: "2001:db8::1".to_owned(),
        port: 443,
        protocol: "tcp".to_owned(),
        op: "connect".to_owned(),
    });
    assert_eq!(what(&connect), "connect tcp [2001:db8::1]:443");
    let mut exec = record(Kind::Exec);
    exec.process =
        Some(Process { path: "/tmp/x".to_owned(), args: vec!["sshd".to_owned()], ..Process::default() });
    assert_eq!(what(&exec), "exec /tmp/x (as sshd)");
    exec.process = Some(Process {
        path: "/usr/bin/bash".to_owned(),
        args: vec!["-bash".to_owned()],
        ..Process::default()
    });
    assert_eq!(what(&exec), "exec /usr/bin/bash");
}

#[test]
fn files_and_the_system() {
    let mut file = record(Kind::File);
    file.process = Some(Process { path: "/usr/bin/tee".to_owned(), ..Process::default() });
    file.file = Some(FileAction {
        op: "write_file".to_owned(),
        path: "/etc/passwd".to_owned(),
        other_name: true,
        ..FileAction::default()
    });
    assert_eq!(what(&file), "write /etc/passwd (reached by another name) by /usr/bin/tee");
    file.file =
        Some(FileAction { op: "connect_unix".to_owned(), path: "@/x".to_owned(), ..FileAction::default() });
    assert_eq!(what(&file), "connect unix @/x by /usr/bin/tee");
    let mut system = record(Kind::System);
    system.system = Some(SystemAction {
        operation: "signal".to_owned(),
        outside: true,
        target_pid: Some(1),
        detail: "SIGKILL".to_owned(),
        ..SystemAction::default()
    });
    assert_eq!(what(&system), "signal (SIGKILL) on process 1 outside of the session");
    let mut hash = record(Kind::Executable);
    hash.process = Some(Process { path: "/tmp/x".to_owned(), sha256: "ab".to_owned(), ..Process::default() });
    assert_eq!(what(&hash), "executable /tmp/x has SHA-256 ab");
}

#[test]
fn losses_by_kind_and_by_session() {
    let mut loss = record(Kind::Loss);
    let of = |what: &str, seen| Loss { what: what.to_owned(), why: "ring_full".to_owned(), count: 5, seen };
    loss.loss = Some(of("exec", 9));
    assert_eq!(what(&loss), "LOST 5 exec of 9 seen (ring_full)");
    loss.loss = Some(of("session", 0));
    assert_eq!(what(&loss), "LOST 5 events (ring_full)");
    assert!(is_bad(&loss));
}

#[test]
fn nothing_in_a_record_reaches_the_terminal_raw() {
    let evil = "\x1b[2J\r\n\u{9b}1m";
    let mut record = record(Kind::Exec);
    record.host = Some(evil.to_owned());
    record.message = Some(evil.to_owned());
    record.identity =
        Some(Identity { user: evil.to_owned(), on_behalf_of: evil.to_owned(), ..Identity::default() });
    record.session =
        Some(Session { local_user: evil.to_owned(), client: evil.to_owned(), ..Session::default() });
    record.process = Some(Process {
        path: format!("/bin/{evil}"),
        args: vec![evil.to_owned(); 3],
        status: evil.to_owned(),
        comm: evil.to_owned(),
        ..Process::default()
    });
    record.endpoint =
        Some(Endpoint { address: evil.to_owned(), protocol: evil.to_owned(), op: evil.to_owned(), port: 1 });
    record.file = Some(FileAction { op: evil.to_owned(), path: evil.to_owned(), ..FileAction::default() });
    record.system =
        Some(SystemAction { operation: evil.to_owned(), detail: evil.to_owned(), ..SystemAction::default() });
    record.decision = Some(Decision {
        action: evil.to_owned(),
        outcome: Outcome::Killed,
        policy: evil.to_owned(),
        rule: evil.to_owned(),
        reason: evil.to_owned(),
        point: evil.to_owned(),
    });
    for kind in [
        Kind::SignIn,
        Kind::SessionOpen,
        Kind::Exec,
        Kind::Exit,
        Kind::Fork,
        Kind::Connect,
        Kind::Listen,
        Kind::File,
        Kind::System,
        Kind::Executable,
        Kind::Policy,
    ] {
        record.kind = kind;
        let shown = line(PLAIN, 1, &record);
        assert!(!shown.contains(|c: char| c.is_control()), "{kind:?}: {shown:?}");
    }
}
