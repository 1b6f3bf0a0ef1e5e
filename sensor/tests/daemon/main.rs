//! The sensor as a whole: the real program, the real kernel where it can be had, against a gateway in memory.
//!
//! What needs the kernel is skipped, and says so, where `doctor` says that it cannot enforce.

mod evidence;
mod gateway;
mod host;
mod logins;
mod orders;
mod survival;
mod violations;

use std::time::Duration;

use gateway::{Gateway, TOKEN};
use host::{Host, can_enforce};
use sallyport_contract::v1::exit::Status;
use sallyport_contract::v1::gateway_order::Order;
use sallyport_contract::v1::sensor_report::Report;
use sallyport_contract::v1::{
    self, Chunk, EndSession, Eof, PolicyBundle, StartChannel, Stream, Work, channel_frame::Body,
};
use sallyport_evidence::Record;
use sallyport_evidence::order::Scope;
use sallyport_evidence::record::{Kind, Outcome};
use sallyport_policy::Bundle;

const BASE: &str = r#"
@id("open") permit (principal, action == Action::"open_session", resource);
@id("run") permit (principal, action == Action::"exec", resource);
@id("net") permit (principal, action == Action::"connect", resource);
@id("rest") @record("none")
permit (principal, action in [Action::"read_file", Action::"write_file", Action::"create_file",
  Action::"delete_file", Action::"rename_file", Action::"link_file", Action::"change_file", Action::"map_code",
  Action::"connect_unix", Action::"listen", Action::"system"], resource);
"#;
const NO_ID: &str = r#"
@id("no-id") @reason("ids are secret") @contact("security@example.org")
forbid (principal, action == Action::"exec", resource) when { context.name == "id" };
"#;

fn bundle(policy: &str) -> PolicyBundle {
    let files =
        [("bundle.toml", "name = \"t\"\nschema = 2\ncontact = \"help@example.org\"\n"), ("t.cedar", policy)];
    let bundle = Bundle::from_files(files).expect("a bundle");
    let (version, archive) = (bundle.version(), bundle.to_archive().into());
    PolicyBundle { version, archive, ..PolicyBundle::default() }
}

fn start(session: &str, channel: &str, version: &str, line: &str) -> StartChannel {
    StartChannel {
        session_id: session.into(),
        channel_id: channel.into(),
        principal: Some(v1::Principal {
            user: "alice@example.org".into(),
            kind: "human".into(),
            ..Default::default()
        }),
        local_user: "root".into(),
        policy_version: version.into(),
        expires_at_ms: 0,
        client_address: "192.0.2.7:50000".into(),
        work: Some(Work {
            work: Some(v1::work::Work::Command(v1::Command { line: line.as_bytes().to_vec() })),
            pty: None,
            env: vec![],
        }),
        announcement: String::new(),
    }
}

async fn connected(gateway: &Gateway, n: usize) {
    gateway
        .until("the sensor says hello", |heard| {
            let hellos = heard.reports.iter().filter(|report| matches!(report, Report::Hello(_))).count();
            (hellos >= n).then_some(())
        })
        .await;
}

/// Puts a bundle into force; gives why it was refused.
async fn install(gateway: &Gateway, bundle: &PolicyBundle) -> String {
    send(gateway, gateway.signed(bundle, Scope::All)).await
}

/// Sends an order as it is, and waits for the answer to it: why it was refused.
async fn send(gateway: &Gateway, bundle: PolicyBundle) -> String {
    let answered = |heard: &gateway::Heard| {
        let answers = heard.reports.iter().filter(|report| matches!(report, Report::Policy(_)));
        answers.count()
    };
    let before = answered(&gateway.heard.lock().expect("lock"));
    gateway.order(Order::Bundle(bundle.clone()));
    gateway
        .until("the policy is answered", |heard| {
            if answered(heard) == before {
                return None;
            }
            heard.reports.iter().rev().find_map(|report| match report {
                Report::Policy(status) if status.version == bundle.version => Some(status.error.clone()),
                _ => None,
            })
        })
        .await
}

async fn output(gateway: &Gateway, channel: &str, text: &str) {
    gateway
        .until(&format!("`{text}` is put out"), |heard| {
            let channel = heard.channels.get(channel)?;
            String::from_utf8_lossy(&channel.stdout).contains(text).then_some(())
        })
        .await;
}

async fn exit(gateway: &Gateway, channel: &str) -> Option<Status> {
    gateway.until("the channel ends", |heard| heard.channels.get(channel)?.exit.clone()).await.status
}

async fn record(gateway: &Gateway, what: &str, holds: impl Fn(&Record) -> bool) -> Record {
    gateway.until(what, |heard| heard.records.iter().find(|record| holds(record)).cloned()).await
}

fn is_exec(record: &Record, path: &str, outcome: Outcome) -> bool {
    record.kind == Kind::Exec
        && record.process.as_ref().is_some_and(|process| process.path.ends_with(path))
        && record.decision.as_ref().is_some_and(|decision| decision.outcome == outcome)
}

fn is_refused(record: &Record, path: &str) -> bool {
    is_exec(record, path, Outcome::Killed) || is_exec(record, path, Outcome::Blocked)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_token_is_shown_only_to_the_right_gateway() {
    let gateway = Gateway::start().await;
    let host = Host::new();
    let wrong = "00".repeat(32);
    let output = host.call(&["join", "--gateway", &gateway.url(), "--ca-sha256", &wrong], Some(TOKEN));
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("SHA-256"));
    assert!(gateway.heard.lock().expect("lock").tokens.is_empty(), "the token was sent");

    let output = host
        .call(&["join", "--gateway", &gateway.url(), "--ca-sha256", &gateway.ca_sha256()], Some("nonsense"));
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && text.contains("unknown or was used"), "{text}");
    assert!(!text.contains("nonsense"), "the token is in the message");
    assert!(!host.state_dir().join("identity.json").exists());

    host.join(&gateway);
    let again =
        host.call(&["join", "--gateway", &gateway.url(), "--ca-sha256", &gateway.ca_sha256()], Some(TOKEN));
    assert!(String::from_utf8_lossy(&again.stderr).contains("--force"));
}

#[tokio::test(flavor = "multi_thread")]
async fn joining_by_ca_file_works_and_run_needs_it() {
    let gateway = Gateway::start().await;
    let host = Host::new();
    assert_eq!(host.call(&["run"], None).status.code(), Some(3), "not joined");
    let folder = tempfile::tempdir().expect("dir");
    let (ca, token) = (folder.path().join("ca.pem"), folder.path().join("token"));
    std::fs::write(&ca, &gateway.ca_pem).expect("ca");
    std::fs::write(&token, format!("{TOKEN}\n")).expect("token");
    let arguments = [
        "join",
        "--gateway",
        &gateway.url(),
        "--ca-file",
        ca.to_str().expect("path"),
        "--token-file",
        token.to_str().expect("path"),
    ];
    let output = host.call(&arguments, None);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[tokio::test(flavor = "multi_thread")]
async fn commands_run_are_judged_and_recorded() {
    if !can_enforce() {
        return;
    }
    let gateway = Gateway::start().await;
    let mut host = Host::connected(&gateway).await;

    // Before any policy: refused, not run.
    gateway.order(Order::Start(start("s0", "c0", "v", "echo no")));
    let reason = gateway
        .until("a refusal", |heard| {
            heard.reports.iter().find_map(|report| match report {
                Report::Refused(refused) => Some(refused.reason.clone()),
                _ => None,
            })
        })
        .await;
    assert!(reason.contains("no policy yet"), "{reason}");

    let policy = bundle(&format!("{BASE}{NO_ID}"));
    assert_eq!(install(&gateway, &policy).await, "");
    gateway.order(Order::Start(start(
        "s1",
        "c1",
        &policy.version,
        "echo hi; /usr/bin/id; echo status=$?; exit 3",
    )));
    assert_eq!(exit(&gateway, "c1").await, Some(Status::Code(3)));
    {
        let heard = gateway.heard.lock().expect("lock");
        let text = String::from_utf8_lossy(&heard.channels["c1"].stdout).into_owned();
        assert!(text.starts_with("hi\nstatus=") && !text.contains("uid="), "{text}");
    }
    let denied = record(&gateway, "the denial is recorded", |record| is_refused(record, "/id")).await;
    let decision = denied.decision.expect("a decision");
    assert_eq!((decision.policy.as_str(), decision.rule.as_str()), (policy.version.as_str(), "no-id"));
    assert_eq!(denied.identity.expect("identity").user, "alice@example.org");
    let session = denied.session.expect("session");
    assert_eq!((session.id.as_str(), session.channel.as_str()), ("s1", "c1"));
    let shell = record(&gateway, "the shell is recorded", |record| {
        is_exec(record, "sh", Outcome::Allowed) && record.session.as_ref().is_some_and(|s| s.channel == "c1")
    })
    .await;
    let (parent, child) = (shell.process.expect("process"), denied.process.expect("process"));
    assert_eq!(child.parent_exec_id, parent.exec_id, "lineage");
    let ended = record(&gateway, "the exit is recorded", |record| {
        record.kind == Kind::Exit && record.process.as_ref().is_some_and(|p| p.exec_id == parent.exec_id)
    })
    .await;
    assert_eq!(ended.process.expect("process").status, "3");

    // The notice goes to standard error of a command that is still there to read it.
    gateway.order(Order::Start(start("s1", "c2", &policy.version, "/usr/bin/id; sleep 1")));
    exit(&gateway, "c2").await;
    let text = {
        let heard = gateway.heard.lock().expect("lock");
        String::from_utf8_lossy(&heard.channels["c2"].stderr).into_owned()
    };
    assert!(
        text.contains(
            "sallyport: blocked /usr/bin/id: rule \"no-id\": ids are secret. Ask security@example.org"
        ),
        "{text}"
    );

    // A command that is itself refused: the reason comes before its end.
    gateway.order(Order::Start(start("s1", "c3", &policy.version, "exec /usr/bin/id")));
    exit(&gateway, "c3").await;
    {
        let heard = gateway.heard.lock().expect("lock");
        let text = String::from_utf8_lossy(&heard.channels["c3"].stderr).into_owned();
        assert!(text.contains("rule \"no-id\""), "{text}");
    }

    // Once delivered nothing is left on the host but what came since.
    host.stop();
    assert!(!host.log().contains("ERROR"), "{}", host.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_sensor_costs_nothing_but_time() {
    if !can_enforce() {
        return;
    }
    let gateway = Gateway::start().await;
    let mut host = Host::connected(&gateway).await;
    let policy = bundle(&format!("{BASE}{NO_ID}"));
    assert_eq!(install(&gateway, &policy).await, "");
    let line = "echo one; read x; /usr/bin/id; echo two; read y; echo $x$y";
    gateway.order(Order::Start(start("s1", "c1", &policy.version, line)));
    output(&gateway, "c1", "one\n").await;
    gateway.send("c1", Body::Chunk(Chunk { stream: Stream::Stdin as i32, data: "a".into() }));
    tokio::time::sleep(Duration::from_millis(300)).await;
    host.kill();
    // While nobody is there the command goes on by itself; the kernel judges it, and keeps the event.
    let marker = host.run_dir().join("channels/c1/sock");
    assert!(marker.exists(), "the shepherd lives");
    gateway.send("c1", Body::Chunk(Chunk { stream: Stream::Stdin as i32, data: "\nb\n".into() }));
    host.start();
    connected(&gateway, 2).await;
    let live = gateway
        .until("the second hello", |heard| {
            heard.reports.iter().rev().find_map(|report| match report {
                Report::Hello(hello) => Some(hello.clone()),
                _ => None,
            })
        })
        .await;
    assert_eq!(live.channels.len(), 1, "{live:?}");
    assert_eq!(live.policy_version, policy.version, "the last good policy is still there");
    assert_eq!(exit(&gateway, "c1").await, Some(Status::Code(0)));
    {
        let heard = gateway.heard.lock().expect("lock");
        let channel = &heard.channels["c1"];
        assert_eq!(String::from_utf8_lossy(&channel.stdout), "one\ntwo\nab\n");
        assert_eq!(channel.attached, 2);
    }
    let denied = record(&gateway, "the denial is recorded", |record| is_refused(record, "/id")).await;
    assert_eq!(denied.decision.map(|d| (d.policy, d.rule)), Some((policy.version.clone(), "no-id".into())));
    assert_eq!(denied.session.map(|s| (s.id, s.channel)), Some(("s1".into(), "c1".into())));
}

#[tokio::test(flavor = "multi_thread")]
async fn events_of_the_time_without_a_sensor_are_named_exactly() {
    if !can_enforce() {
        return;
    }
    let gateway = Gateway::start().await;
    let mut host = Host::connected(&gateway).await;
    let policy = bundle(&format!("{BASE}{NO_ID}"));
    assert_eq!(install(&gateway, &policy).await, "");
    gateway.order(Order::Start(start(
        "s1",
        "c1",
        &policy.version,
        "echo up; sleep 1.5; /usr/bin/id; echo done; sleep 60",
    )));
    output(&gateway, "c1", "up\n").await;
    host.kill();
    tokio::time::sleep(Duration::from_secs(3)).await;
    host.start();
    let denied = record(&gateway, "the denial is recorded", |record| is_refused(record, "/id")).await;
    assert_eq!(denied.decision.map(|d| (d.policy, d.rule)), Some((policy.version.clone(), "no-id".into())));
    assert_eq!(denied.identity.map(|identity| identity.user), Some("alice@example.org".into()));
    output(&gateway, "c1", "done\n").await;
    gateway.order(Order::EndSession(EndSession { session_id: "s1".into(), reason: "test".into() }));
    assert!(matches!(exit(&gateway, "c1").await, Some(Status::Signal(_))));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_policy_reaches_running_sessions_and_a_bad_one_does_not() {
    if !can_enforce() {
        return;
    }
    let gateway = Gateway::start().await;
    let _host = Host::connected(&gateway).await;
    let free = bundle(BASE);
    assert_eq!(install(&gateway, &free).await, "");
    let line = "while read x; do /usr/bin/id -u; echo $x=$?; done";
    gateway.order(Order::Start(start("s1", "c1", &free.version, line)));
    let ask = async |n: &str| {
        gateway.until("the channel attaches", |heard| heard.channels.contains_key("c1").then_some(())).await;
        gateway
            .send("c1", Body::Chunk(Chunk { stream: Stream::Stdin as i32, data: format!("{n}\n").into() }));
        output(&gateway, "c1", &format!("{n}=")).await;
        let heard = gateway.heard.lock().expect("lock");
        String::from_utf8_lossy(&heard.channels["c1"].stdout).into_owned()
    };
    assert!(ask("first").await.contains("0\nfirst=0"), "control: allowed");

    // Bad on the way, and bad in itself: the good one stays.
    let mut forged = bundle(&format!("{BASE}{NO_ID}"));
    forged.version = "f".repeat(64);
    assert!(install(&gateway, &forged).await.contains("does not have the version"));
    let broken = PolicyBundle { archive: b"rubbish"[..].into(), ..forged };
    let version = hex::encode(<sha2::Sha256 as sha2::Digest>::digest(&broken.archive));
    assert!(!install(&gateway, &PolicyBundle { version, ..broken }).await.is_empty());
    assert!(ask("second").await.contains("0\nsecond=0"), "the last good policy is in force");

    let strict = bundle(&format!("{BASE}{NO_ID}"));
    assert_eq!(install(&gateway, &strict).await, "");
    let text = ask("third").await;
    assert!(text.contains("third=") && !text.contains("third=0"), "{text}");
    let denied = record(&gateway, "the denial is recorded", |record| is_refused(record, "/id")).await;
    assert_eq!(denied.decision.map(|d| d.policy), Some(strict.version.clone()));
    gateway.send("c1", Body::Eof(Eof { stream: Stream::Stdin as i32 }));
    assert_eq!(exit(&gateway, "c1").await, Some(Status::Code(0)));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_ended_session_leaves_no_process() {
    if !can_enforce() {
        return;
    }
    let gateway = Gateway::start().await;
    let _host = Host::connected(&gateway).await;
    let policy = bundle(BASE);
    assert_eq!(install(&gateway, &policy).await, "");
    let tag = format!("3{}.25", std::process::id());
    // One that left its group and session, one that ignores signals.
    let line = format!("setsid sleep {tag} & (trap '' HUP TERM; sleep {tag}; sleep {tag}) & echo up; wait");
    gateway.order(Order::Start(start("s1", "c1", &policy.version, &line)));
    output(&gateway, "c1", "up\n").await;
    let alive = || {
        let output = std::process::Command::new("pgrep")
            .args(["-f", &format!("sleep {tag}")])
            .output()
            .expect("pgrep");
        String::from_utf8_lossy(&output.stdout).lines().count()
    };
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(alive() >= 2, "control: they run");
    gateway.order(Order::EndSession(EndSession { session_id: "s1".into(), reason: "ended by bob".into() }));
    assert!(matches!(exit(&gateway, "c1").await, Some(Status::Signal(_))));
    for _ in 0..100 {
        if alive() == 0 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(alive(), 0);
    let heard = gateway.heard.lock().expect("lock");
    let text = String::from_utf8_lossy(&heard.channels["c1"].stderr).into_owned();
    assert!(text.contains("this session has ended: ended by bob"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_grant_ends_on_the_host_too() {
    if !can_enforce() {
        return;
    }
    let gateway = Gateway::start().await;
    let _host = Host::connected(&gateway).await;
    let policy = bundle(BASE);
    assert_eq!(install(&gateway, &policy).await, "");
    let now =
        std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("time").as_millis() as i64;
    let order = StartChannel {
        expires_at_ms: now + 2_000,
        ..start("s1", "c1", &policy.version, "echo up; sleep 60")
    };
    gateway.order(Order::Start(order));
    output(&gateway, "c1", "up\n").await;
    assert!(matches!(exit(&gateway, "c1").await, Some(Status::Signal(_))));
    let late = StartChannel { expires_at_ms: now, ..start("s2", "c2", &policy.version, "echo no") };
    gateway.order(Order::Start(late));
    let reason = gateway
        .until("a refusal", |heard| {
            heard.reports.iter().find_map(|report| match report {
                Report::Refused(refused) if refused.channel_id == "c2" => Some(refused.reason.clone()),
                _ => None,
            })
        })
        .await;
    assert_eq!(reason, "the grant has ended");
}

#[tokio::test(flavor = "multi_thread")]
async fn records_wait_for_a_gateway_that_is_not_there() {
    if !can_enforce() {
        return;
    }
    let gateway = Gateway::start().await;
    let mut host = Host::connected(&gateway).await;
    let policy = bundle(BASE);
    assert_eq!(install(&gateway, &policy).await, "");
    gateway.heard.lock().expect("lock").deaf = true;
    gateway.order(Order::Start(start("s1", "c1", &policy.version, "for i in 1 2 3 4 5; do /bin/true; done")));
    assert_eq!(exit(&gateway, "c1").await, Some(Status::Code(0)));
    tokio::time::sleep(Duration::from_millis(500)).await;
    host.kill();
    gateway.heard.lock().expect("lock").deaf = false;
    host.start();
    gateway
        .until("all five are delivered, once", |heard| {
            let n = heard.records.iter().filter(|record| is_exec(record, "/true", Outcome::Allowed)).count();
            (n == 5).then_some(())
        })
        .await;
}
