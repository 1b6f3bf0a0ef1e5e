//! Tests of the records made from events.

use std::sync::Arc;

use sallyport_policy::{OnViolation, Principal, RuleInfo};

use super::*;
use crate::kernel;

struct Tables;

impl Context for Tables {
    fn owner(&self, session: u64, channel: u32) -> Option<Owner> {
        let identity = Identity { user: "alice".into(), ..Identity::default() };
        let session = (session == 7).then(|| Session {
            id: "s7".into(),
            channel: format!("c{channel}"),
            ..Session::default()
        })?;
        Some(Owner { identity, session })
    }

    fn generation(&self, generation: u64) -> Option<Arc<Generation>> {
        let rule = |id: &str, reason: &str| RuleInfo {
            id: id.into(),
            reason: reason.into(),
            contact: String::new(),
            on_violation: OnViolation::Block,
            file: "a.cedar".into(),
            line: 1,
        };
        (generation == 3).then(|| {
            Arc::new(Generation {
                version: "v3".into(),
                principal: Principal::default(),
                local_user: "root".into(),
                names: vec![],
                rules: vec![rule("default", ""), rule("no-scanners", "not here")],
                system: sallyport_policy::SystemDenials::default(),
            })
        })
    }
}

fn head(judgement: Judgement) -> Head {
    let process = kernel::Process {
        tgid: 20,
        tid: 20,
        started: 2_000,
        uid: 0,
        gid: 0,
        comm: "bash".into(),
        cgroup: 5,
        login_uid: Some(1000),
    };
    Head { time: 5_000, session: 7, channel: 1, judgement, generation: 3, process }
}

fn exec(judgement: Judgement, prevented: bool) -> Event {
    let exec = Exec {
        parent_tgid: 10,
        path: b"/usr/bin/nmap".to_vec(),
        path_cut: false,
        args: Some(b"nmap\0-p\080".to_vec()),
        args_total: 10,
        fileless: false,
        prevented,
        inode: 99,
        device: 8 << 20 | 1,
        setuid: false,
        unbrokered: false,
        other_name: false,
        cwd_inode: 4,
        cwd_device: 8 << 20 | 1,
        mount_namespace: 11,
        pid_namespace: 12,
        audit_session: Some(3),
    };
    Event::Exec { head: head(judgement), exec }
}

fn recorder(mode: Mode) -> Recorder {
    Recorder::new("web-1", "boot", mode, Lineage::of([(10, 1_000)]))
}

#[test]
fn a_denied_program_has_rule_version_point_and_lineage() {
    let denied = Judgement::Denied { rule: 1, kill: false, end_session: false };
    let mut recorder = recorder(Mode::Lsm);
    recorder.record(
        &Event::Fork {
            head: Head {
                process: kernel::Process {
                    tgid: 10,
                    tid: 10,
                    started: 1_000,
                    ..head(Judgement::None).process
                },
                ..head(Judgement::None)
            },
            child_tgid: 20,
            child_started: 2_000,
        },
        None,
        &Tables,
    );
    let record = recorder.record(&exec(denied, true), None, &Tables);
    let decision = record.decision.expect("a decision");
    assert_eq!(
        (decision.action.as_str(), decision.outcome, decision.policy.as_str(), decision.rule.as_str()),
        ("exec", Outcome::Blocked, "v3", "no-scanners")
    );
    assert_eq!((decision.reason.as_str(), decision.point.as_str()), ("not here", "kernel-lsm"));
    let process = record.process.expect("a process");
    assert_eq!(process.exec_id, "boot/2000/20");
    assert_eq!(process.parent_exec_id, "boot/1000/10");
    assert_eq!(
        (process.path.as_str(), process.args),
        ("/usr/bin/nmap", vec!["nmap".into(), "-p".into(), "80".into()])
    );
    assert_eq!(process.inode, "8:1/99");
    assert_eq!(record.session.expect("a session").channel, "c1");
    assert_eq!(record.boot_ns, 5_000);
    assert_eq!(record.host.as_deref(), Some("web-1"));
}

#[test]
fn outcomes_and_points_follow_the_mode() {
    let denied = Judgement::Denied { rule: 0, kill: false, end_session: false };
    let killed =
        recorder(Mode::Tracepoint).record(&exec(denied, false), None, &Tables).decision.expect("a decision");
    assert_eq!((killed.outcome, killed.point.as_str()), (Outcome::Killed, "kernel-exec"));
    assert_eq!((killed.rule.as_str(), killed.reason.as_str()), ("", "no rule permits it"));
    let by_arguments =
        recorder(Mode::Lsm).record(&exec(denied, false), None, &Tables).decision.expect("a decision");
    assert_eq!((by_arguments.outcome, by_arguments.point.as_str()), (Outcome::Killed, "kernel-exec"));
    let observed = recorder(Mode::Lsm).record(&exec(Judgement::Observed { rule: 1 }, false), None, &Tables);
    assert_eq!(
        observed.decision.map(|d| (d.outcome, d.rule)),
        Some((Outcome::Observed, "no-scanners".into()))
    );
    let connect = Connect {
        destination: Destination::Connection("::ffff:10.0.0.1".parse().expect("address"), 22),
        protocol: 6,
    };
    let refused =
        recorder(Mode::Tracepoint).record(&Event::Connect { head: head(denied), connect }, None, &Tables);
    assert_eq!(
        refused.decision.map(|d| (d.outcome, d.point)),
        Some((Outcome::Blocked, "kernel-cgroup".into()))
    );
    let endpoint = refused.endpoint.expect("an endpoint");
    assert_eq!(
        (endpoint.address.as_str(), endpoint.port, endpoint.protocol.as_str()),
        ("10.0.0.1", 22, "tcp")
    );
}

#[test]
fn exits_say_how() {
    for (code, expected) in [(0, "0"), (3 << 8, "3"), (9, "SIGKILL"), (0x80 | 11, "SIGSEGV")] {
        let record =
            recorder(Mode::Lsm).record(&Event::Exit { head: head(Judgement::None), code }, None, &Tables);
        assert_eq!(record.process.expect("a process").status, expected);
        assert!(record.decision.is_none());
    }
}

#[test]
fn what_is_not_known_is_said() {
    let mut other = head(Judgement::Unjudged(Cause::NoPolicy));
    (other.session, other.generation) = (8, 0);
    let Event::Exec { exec, .. } = exec(Judgement::Allowed, true) else { panic!("an exec") };
    let record = recorder(Mode::Lsm).record(&Event::Exec { head: other, exec }, None, &Tables);
    assert!(record.identity.is_none() && record.message.is_some_and(|text| text.contains("number 8")));
    let decision = record.decision.expect("a decision");
    assert!(decision.reason.contains("no policy on this host") && decision.policy.is_empty());
}

#[test]
fn files_and_the_system_are_told_with_what_the_process_runs() {
    let mut recorder = recorder(Mode::Lsm);
    recorder.record(&exec(Judgement::Allowed, false), None, &Tables);
    let file = kernel::File {
        op: kernel::FileOp::Write,
        path: b"/etc/passwd".to_vec(),
        path_cut: false,
        fileless: false,
        prevented: true,
        other_name: true,
        inode: 7,
        device: 8 << 20 | 1,
    };
    let denied = Judgement::Denied { rule: 1, kill: false, end_session: false };
    let record = recorder.record(&Event::File { head: head(denied), file }, None, &Tables);
    let decision = record.decision.expect("a decision");
    assert_eq!(
        (record.kind, decision.action.as_str(), decision.outcome),
        (Kind::File, "write_file", Outcome::Blocked)
    );
    let file = record.file.expect("a file");
    assert_eq!((file.path.as_str(), file.inode.as_str(), file.other_name), ("/etc/passwd", "8:1/7", true));
    let process = record.process.expect("a process");
    assert_eq!(
        (process.path.as_str(), process.login_uid, process.audit_session),
        ("/usr/bin/nmap", Some(1000), Some(3))
    );

    let system = kernel::System {
        operation: kernel::Operation::Signal,
        outside: true,
        target: Some((1, 5)),
        detail: 9,
    };
    let record = recorder.record(&Event::System { head: head(denied), system }, None, &Tables);
    assert_eq!(record.decision.expect("a decision").action, "system");
    let system = record.system.expect("an operation");
    assert_eq!((system.operation.as_str(), system.detail.as_str()), ("signal", "SIGKILL"));
    assert_eq!((system.target_exec_id.as_str(), system.outside), ("boot/5/1", true));
}

#[test]
fn listening_is_a_kind_and_an_action_of_its_own() {
    let address = "0.0.0.0".parse().expect("address");
    let connect = Connect { destination: Destination::Listening(Some((address, 8080))), protocol: 6 };
    let denied = Judgement::Denied { rule: 0, kill: false, end_session: false };
    let record = recorder(Mode::Lsm).record(&Event::Connect { head: head(denied), connect }, None, &Tables);
    assert_eq!((record.kind, record.decision.expect("a decision").action.as_str()), (Kind::Listen, "listen"));
    assert_eq!(record.endpoint.map(|endpoint| (endpoint.op, endpoint.port)), Some(("listen".into(), 8080)));
}

#[test]
fn a_late_hash_is_a_record_and_known_from_then_on() {
    let mut recorder = recorder(Mode::Lsm);
    let first = recorder.record(&exec(Judgement::Allowed, false), None, &Tables);
    assert_eq!(first.process.as_ref().map(|process| process.sha256.as_str()), Some(""));
    let answer = Answer { tgid: 20, started: 2_000, sha256: Some("ab".into()), ..Answer::default() };
    let told = recorder.executable(&answer, &first).expect("a record");
    assert_eq!((told.kind, told.process.expect("a process").sha256.as_str()), (Kind::Executable, "ab"));
    let exit = recorder.record(&Event::Exit { head: head(Judgement::None), code: 0 }, None, &Tables);
    assert_eq!(exit.process.expect("a process").sha256, "ab");
}

#[test]
fn long_arguments_are_cut_and_say_from_what() {
    let many = vec![b"x".to_vec(); 1_000].join(&0_u8);
    let (args, cut) = arguments(&many, 1_999);
    assert_eq!((args.len(), cut), (512, Some(1_999)));
    assert_eq!(arguments(b"ls\0-l\0", 6), (vec!["ls".into(), "-l".into()], None));
    assert_eq!(arguments(b"ls\0-l", 9_000).1, Some(9_000));
}
