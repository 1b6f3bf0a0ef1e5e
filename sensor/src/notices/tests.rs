//! Tests of lines and of their number.

use sallyport_policy::{OnViolation, Principal, RuleInfo};

use super::*;
use crate::kernel::{Cause, Connect, Head, Process};

fn head(judgement: Judgement) -> Head {
    let process = Process {
        tgid: 1,
        tid: 1,
        started: 1,
        uid: 0,
        gid: 0,
        comm: "bash".into(),
        cgroup: 0,
        login_uid: None,
    };
    Head { time: 1, session: 1, channel: 1, judgement, generation: 1, process }
}

fn exec(judgement: Judgement) -> Event {
    let exec = Exec {
        parent_tgid: 1,
        path: b"/usr/bin/nmap".to_vec(),
        path_cut: false,
        args: None,
        args_total: 0,
        fileless: false,
        prevented: true,
        inode: 1,
        device: 1,
        setuid: false,
        unbrokered: false,
        other_name: false,
        cwd_inode: 0,
        cwd_device: 0,
        mount_namespace: 0,
        pid_namespace: 0,
        audit_session: None,
    };
    Event::Exec { head: head(judgement), exec }
}

fn generation() -> Generation {
    let rule = |id: &str, reason: &str| RuleInfo {
        id: id.into(),
        reason: reason.into(),
        contact: "security@example.org".into(),
        on_violation: OnViolation::Block,
        file: "a.cedar".into(),
        line: 1,
    };
    Generation {
        version: "v".into(),
        principal: Principal::default(),
        local_user: "root".into(),
        names: vec![],
        rules: vec![rule("default", ""), rule("no-scanners", "port scanners are not for production hosts.")],
        system: sallyport_policy::SystemDenials::default(),
    }
}

fn check(event: &Event, expected: &str) {
    assert_eq!(line(event, Some(&generation())).as_deref().unwrap_or(""), expected);
}

#[test]
fn lines_say_what_why_and_whom_to_ask() {
    let denied = |rule| Judgement::Denied { rule, kill: false, end_session: false };
    check(
        &exec(denied(1)),
        "sallyport: blocked /usr/bin/nmap: rule \"no-scanners\": port scanners are not for production hosts. Ask security@example.org",
    );
    check(&exec(denied(0)), "sallyport: blocked /usr/bin/nmap: no rule permits it. Ask security@example.org");
    check(
        &exec(Judgement::Unjudged(Cause::PathTooLong)),
        "sallyport: blocked /usr/bin/nmap: it could not be judged: its path is too long to be judged",
    );
    check(&exec(Judgement::Allowed), "");
    let connect = Connect { destination: Destination::Connection([10, 0, 0, 1].into(), 5432), protocol: 6 };
    check(
        &Event::Connect { head: head(denied(0)), connect },
        "sallyport: blocked tcp to 10.0.0.1:5432: no rule permits it. Ask security@example.org",
    );
}

#[test]
fn a_flood_becomes_a_count() {
    let start = Instant::now();
    let mut limiter = Limiter::default();
    let shown = (0..10_000).filter(|_| limiter.admit(1, start)).count();
    assert_eq!(shown, 8);
    assert!(limiter.admit(2, start), "another channel is not held back");
    assert!(limiter.summaries(start).is_empty());
    let later = start + Duration::from_secs(3);
    let lines = limiter.summaries(later);
    assert_eq!(lines, [(1, "sallyport: 9992 more refusals not shown; all of them are recorded".into())]);
    assert!(limiter.summaries(later).is_empty());
    assert!(limiter.admit(1, later + Duration::from_secs(1)));
}

#[test]
fn files_sockets_and_the_system_have_words() {
    let denied = Judgement::Denied { rule: 1, kill: false, end_session: false };
    let file = File {
        op: FileOp::Unix,
        path: b"/run/docker.sock".to_vec(),
        path_cut: false,
        fileless: false,
        prevented: true,
        other_name: false,
        inode: 1,
        device: 1,
    };
    let why = "rule \"no-scanners\": port scanners are not for production hosts. Ask security@example.org";
    check(
        &Event::File { head: head(denied), file },
        &format!("sallyport: blocked connecting to the socket /run/docker.sock: {why}"),
    );
    let system = System { operation: Operation::Trace, outside: true, target: Some((7, 1)), detail: 2 };
    check(
        &Event::System { head: head(denied), system },
        &format!(
            "sallyport: blocked tracing or reading another process outside of the session (process 7): {why}"
        ),
    );
    let connect = Connect { destination: Destination::Listening(None), protocol: 6 };
    check(
        &Event::Connect { head: head(denied), connect },
        &format!("sallyport: blocked listening on tcp: {why}"),
    );
}
