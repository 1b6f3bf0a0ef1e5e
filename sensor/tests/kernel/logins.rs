//! Log-ins outside of a gateway, as the kernel programs see them: tagged when they start a program, watched or judged.

use std::process::Command;

use sallyport_sensor::kernel::{Cause, Event, Judgement, TaggedTask};
use sallyport_sensor_abi::policy::DENY;
use sallyport_sensor_abi::session::ANY_LOGIN;

use crate::host::Host;
use crate::tables::Tables;

/// A login uid of this file's own, so that other tests' log-ins are not meant.
const LOGIN: u32 = 54_322;
/// As the sensor numbers such sessions.
const NUMBER: u64 = 1 << 63 | LOGIN as u64;

fn no_touch() -> Tables {
    Tables::allow_all().path("/usr/bin/touch", DENY | 1)
}

/// Whether login uids can be set; if not, says so.
fn can_log_in() -> bool {
    let probe = Command::new("/bin/bash").args(["-c", "echo 54322 >/proc/self/loginuid"]).output();
    let able = probe.is_ok_and(|output| output.status.success());
    if !able {
        eprintln!("skipped: login uids cannot be set here (CONFIG_AUDIT, CAP_AUDIT_CONTROL)");
    }
    able
}

/// A host that tags this file's log-ins, in a session that is only watched.
fn host() -> Host {
    let host = Host::start();
    let (header, arena) = no_touch().compile();
    let policy = host.kernel.load_policy(&header, &arena).expect("policy");
    host.kernel.open_monitored_session(NUMBER, policy.slot, 1000).expect("session");
    host.kernel.set_unbrokered(true, [(LOGIN, NUMBER)]).expect("accounts");
    host
}

/// Runs a script as a log-in; `None`: without a login uid. Its first line of output is its audit session.
fn log_in(host: &Host, uid: Option<u32>, script: &str) -> (bool, u32) {
    let login = uid.map_or_else(String::new, |uid| format!("echo {uid} >/proc/self/loginuid || exit 99; "));
    let output = Command::new("/bin/bash")
        .args(["-c", &format!("{login}cat /proc/self/sessionid; echo; exec /bin/bash -c '{script}'")])
        .current_dir(host.folder.path())
        .output()
        .expect("bash");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    (output.status.success(), text.lines().next().unwrap_or_default().trim().parse().expect("a session"))
}

#[tokio::test]
async fn a_watched_login_is_reported_and_not_denied() {
    if !can_log_in() {
        return;
    }
    let mut host = host();
    let (fine, _) = log_in(&host, None, "/usr/bin/touch control");
    assert!(fine && host.file("control").exists());
    assert!(host.drain().await.is_empty(), "a process without a login uid was reported");
    let (fine, audit_session) = log_in(&host, Some(LOGIN), "/usr/bin/touch made; /usr/bin/true");
    assert!(fine && host.file("made").exists(), "something was denied");
    let events = host.drain().await;
    assert!(events.iter().all(|event| event.head().session == NUMBER), "{events:#?}");
    assert!(
        events.iter().all(|event| event.head().channel == audit_session),
        "each event says which log-in it is"
    );
    assert!(events.iter().all(|event| event.head().process.login_uid == Some(LOGIN)));
    let touch = events.iter().find_map(|event| match event {
        Event::Exec { head, exec } if exec.path == b"/usr/bin/touch" => Some((head, exec)),
        _ => None,
    });
    let (head, exec) = touch.expect("an event about the program");
    assert_eq!(head.judgement, Judgement::Observed { rule: 1 });
    assert!(!exec.unbrokered && exec.audit_session == Some(audit_session), "its parent was tagged: {exec:?}");
    let first = |event: &Event| matches!(event, Event::Exec { exec, .. } if exec.unbrokered);
    assert!(events.iter().any(first), "the first program of a log-in is marked");
    host.all_gone();
}

#[tokio::test]
async fn watching_and_judging_change_while_they_run_and_off_is_off() {
    if !can_log_in() {
        return;
    }
    let mut host = host();
    let made = |host: &Host, name: &str| {
        log_in(host, Some(LOGIN), &format!("/usr/bin/touch {name}; true"));
        host.file(name).exists()
    };
    assert!(made(&host, "watched"));
    host.kernel.set_session_monitored(NUMBER, false).expect("judged");
    assert!(!made(&host, "judged"), "a judged log-in started a forbidden program");
    log_in(&host, None, "/usr/bin/touch outside");
    assert!(host.file("outside").exists(), "control");
    host.kernel.set_session_monitored(NUMBER, true).expect("watched");
    assert!(made(&host, "watched-again"));
    // Accounts that are not listed, while there is a session for them.
    host.kernel.set_session_monitored(NUMBER, false).expect("judged");
    host.kernel.set_unbrokered(true, [(ANY_LOGIN, NUMBER)]).expect("accounts");
    assert!(!made(&host, "unlisted"));
    host.kernel.set_unbrokered(true, [(LOGIN + 1, NUMBER)]).expect("accounts");
    assert!(made(&host, "another"));
    host.kernel.set_unbrokered(true, [(LOGIN, NUMBER)]).expect("accounts");
    assert!(!made(&host, "listed-again"));
    host.kernel.set_unbrokered(false, []).expect("off");
    host.drain().await;
    assert!(made(&host, "off"));
    assert!(host.drain().await.is_empty(), "reported although it is off");
}

#[tokio::test]
async fn what_is_guarded_and_its_children_are_nobodys_login() {
    if !can_log_in() {
        return;
    }
    let mut host = host();
    let own = std::process::id();
    host.kernel.guard(own).expect("guard");
    log_in(&host, Some(LOGIN), "/usr/bin/touch own");
    // The shell is this process's child and starts another by `exec`; that one's children are not of the guarded process.
    let events = host.drain().await;
    let tagged: Vec<u32> = events.iter().map(|event| event.head().process.tgid).collect();
    host.kernel.unguard(own);
    log_in(&host, Some(LOGIN), "/usr/bin/touch not-own");
    let control = host.drain().await.len();
    assert!(control > events.len(), "{control} events against {tagged:?}");
    let shell = |event: &&Event| matches!(event, Event::Exec { exec, .. } if exec.path.ends_with(b"/bash"));
    assert_eq!(events.iter().filter(shell).count(), 0, "a guarded process's child was tagged: {events:#?}");
}

#[tokio::test]
async fn a_watched_login_may_have_as_many_processes_as_it_likes() {
    if !can_log_in() {
        return;
    }
    let mut host = host();
    host.kernel.set_host_task_limit(20);
    let script = "for i in {1..40}; do sleep 1 & done; wait; /usr/bin/touch finished";
    let (fine, _) = log_in(&host, Some(LOGIN), script);
    assert!(fine && host.file("finished").exists(), "a log-in that is only watched was killed");
    let events = host.drain().await;
    let untagged = events.iter().filter(|event| {
        matches!(event, Event::Fork { head, .. } if head.judgement == Judgement::ObservedUnjudged(Cause::TooManyTasks))
    });
    assert!(untagged.count() > 0, "nobody is told that some go on unseen");
    host.all_gone();
}

#[tokio::test]
async fn a_brokered_process_keeps_its_session_when_it_gets_a_login_uid() {
    if !can_log_in() {
        return;
    }
    let mut host = host();
    host.session(1, &no_touch());
    host.run(
        Some(1),
        &format!("echo {LOGIN} >/proc/self/loginuid; /usr/bin/touch made; /usr/bin/true; true"),
    );
    assert!(!host.file("made").exists(), "a session became a log-in that is only watched");
    let events = host.drain().await;
    assert!(events.iter().any(|event| matches!(event, Event::Exec { .. })));
    assert!(events.iter().all(|event| event.head().session == 1), "{events:#?}");
    let tasks: Vec<TaggedTask> = host.kernel.tasks().expect("tasks");
    assert!(tasks.is_empty(), "{tasks:?}");
}
