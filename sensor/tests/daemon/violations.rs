//! What `@on_violation` asks for besides the refusal: the process ends, or the whole session does, and nobody else.

use std::os::unix::process::ExitStatusExt as _;

use sallyport_contract::v1::exit::Status;
use sallyport_contract::v1::gateway_order::Order;
use sallyport_contract::v1::{Chunk, Stream, channel_frame::Body};
use sallyport_evidence::record::{Kind, Outcome};

use super::logins::{STRANGER, Stage, can_log_in};
use super::survival::eventually;
use super::{BASE, bundle, exit, install, is_refused, output, record, start};
use crate::gateway::Gateway;
use crate::host::{Host, can_enforce};

const ENDS: &str = r#"
@id("ends") @reason("ids are secret") @on_violation("end_session")
forbid (principal, action == Action::"exec", resource) when { context.name == "id" };
"#;

#[tokio::test(flavor = "multi_thread")]
async fn a_session_is_ended_in_all_its_channels_and_no_other_is() {
    if !can_enforce() {
        return;
    }
    let gateway = Gateway::start().await;
    let _host = Host::connected(&gateway).await;
    let policy = bundle(&format!("{BASE}{ENDS}"));
    assert_eq!(install(&gateway, &policy).await, "");
    // Another session of the same person, as the control.
    let asked = "echo up; read x; echo other=$x";
    gateway.order(Order::Start(start("s2", "other", &policy.version, asked)));
    output(&gateway, "other", "up\n").await;
    // One that left its group and session; its argument is nobody else's.
    let away = format!("sleep 6{}.5", std::process::id());
    let is_there = || {
        let found = std::process::Command::new("pgrep").args(["-f", &away]).output().expect("pgrep");
        found.status.success()
    };
    let hidden = format!("trap '' HUP TERM; setsid {away} & echo up; sleep 60");
    gateway.order(Order::Start(start("s1", "quiet", &policy.version, &hidden)));
    output(&gateway, "quiet", "up\n").await;
    eventually("control: it runs", is_there).await;
    gateway.order(Order::Start(start("s1", "loud", &policy.version, "/usr/bin/id; sleep 60; echo survived")));

    for channel in ["loud", "quiet"] {
        let ended = exit(&gateway, channel).await;
        assert!(matches!(ended, Some(Status::Signal(_))), "{channel}: {ended:?}");
    }
    eventually("nothing of the session is left", || !is_there()).await;
    let denied = record(&gateway, "the denial is recorded", |record| is_refused(record, "/id")).await;
    assert_eq!(denied.decision.map(|decision| decision.rule), Some("ends".into()));
    let reason = "rule \"ends\" ends sessions that do this";
    record(&gateway, "why it ended is recorded", |record| {
        let of = record.session.as_ref().is_some_and(|session| session.id == "s1");
        of && record.kind == Kind::Sensor && record.message.as_ref().is_some_and(|text| text.contains(reason))
    })
    .await;
    {
        let heard = gateway.heard.lock().expect("lock");
        let channel = &heard.channels["quiet"];
        let told = String::from_utf8_lossy(&channel.stderr).into_owned();
        assert!(told.contains(&format!("this session has ended: {reason}")), "{told}");
        let loud = &heard.channels["loud"];
        let said = String::from_utf8_lossy(&loud.stdout).into_owned();
        assert_eq!(said, "", "neither the program nor what came after it");
    }
    let line = Chunk { stream: Stream::Stdin as i32, data: b"alive\n".to_vec().into() };
    gateway.send("other", Body::Chunk(line));
    output(&gateway, "other", "other=alive\n").await;
    assert_eq!(exit(&gateway, "other").await, Some(Status::Code(0)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_that_connects_where_it_may_not_is_killed_and_its_shell_is_not() {
    if !can_enforce() {
        return;
    }
    let gateway = Gateway::start().await;
    let _host = Host::connected(&gateway).await;
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a listener");
    listener.set_nonblocking(true).expect("nonblocking");
    let port = listener.local_addr().expect("address").port();
    let line = format!("bash -c 'exec 3<>/dev/tcp/127.0.0.1/{port}; while :; do :; done'; echo after=$?");
    let rule = |effect: &str| {
        let rule = format!(
            "@id(\"no-port\") @reason(\"test\") {effect}\nforbid (principal, action == Action::\"connect\", resource) when {{ context.port == {port} }};\n"
        );
        bundle(&format!("{BASE}{rule}"))
    };
    let kills = rule("@on_violation(\"kill\")");
    assert_eq!(install(&gateway, &kills).await, "");
    gateway.order(Order::Start(start("s1", "c1", &kills.version, &line)));
    output(&gateway, "c1", "after=137\n").await;
    assert_eq!(exit(&gateway, "c1").await, Some(Status::Code(0)));
    let denied = record(&gateway, "the denial is recorded", |record| {
        record.kind == Kind::Connect
            && record.decision.as_ref().is_some_and(|decision| decision.rule == "no-port")
    })
    .await;
    let outcome = denied.decision.expect("a decision").outcome;
    assert!(matches!(outcome, Outcome::Blocked | Outcome::Killed), "{outcome:?}");
    assert!(listener.accept().is_err(), "something arrived");

    // Control: without the annotation it is refused, and goes on.
    let blocks = rule("");
    assert_eq!(install(&gateway, &blocks).await, "");
    let line = line.replace("while :; do :; done", "echo goes on");
    gateway.order(Order::Start(start("s2", "c2", &blocks.version, &line)));
    output(&gateway, "c2", "goes on\nafter=0\n").await;
    assert!(listener.accept().is_err(), "something arrived");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_login_is_ended_and_no_other_is() {
    if !can_log_in() {
        return;
    }
    let stage = Stage::start("unbrokered = 'enforce'\nbreak_glass = []").await;
    let program = stage.program("sp-ends");
    let rule = "@id(\"ends\") @reason(\"test\") @on_violation(\"end_session\")\nforbid (principal == User::\"unbrokered\", action == Action::\"exec\", resource) when { context.name == \"sp-ends\" };\n";
    assert_eq!(install(&stage.gateway, &bundle(&format!("{BASE}{rule}"))).await, "");
    let gate = stage.made("gate");
    nix::unistd::mkfifo(&gate, nix::sys::stat::Mode::S_IRWXU).expect("fifo");
    // Another log-in of the same account, as the control.
    let mut other = stage.command(Some(STRANGER), "other", "read x <gate; touch other");
    let mut other = other.spawn().expect("bash");
    let hidden = "trap '' HUP TERM; (sleep 60; touch survived) & ./sp-ends made; sleep 60; touch survived";
    let ended = stage.command(Some(STRANGER), "ended", hidden).status().expect("bash");
    assert_eq!(ended.signal(), Some(libc::SIGKILL), "{ended:?}");
    assert!(!stage.made("made").exists() && !stage.made("survived").exists());
    let seen = record(&stage.gateway, "the denial is recorded", |record| {
        record.kind == Kind::Exec
            && record.process.as_ref().is_some_and(|process| std::path::Path::new(&process.path) == program)
    })
    .await;
    let id = seen.session.expect("session").id;
    record(&stage.gateway, "nothing of the log-in is left", |record| {
        record.kind == Kind::SessionClose && record.session.as_ref().is_some_and(|session| session.id == id)
    })
    .await;
    std::fs::write(&gate, "go\n").expect("the control waits");
    assert!(other.wait().expect("wait").success() && stage.made("other").exists());
}
