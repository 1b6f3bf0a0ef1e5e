//! Sessions that are only watched, the dead man's switch, rows of arguments, calling programs, registered names, quotas.

use std::time::Duration;

use sallyport_sensor::kernel::{Cause, Event, Judgement, KernelError, name};
use sallyport_sensor_abi::ARENA_WORDS;
use sallyport_sensor_abi::names::Inode;
use sallyport_sensor_abi::policy::{DENY, KILL, QUIET, Word};
use sallyport_sensor_abi::session::{ANY_LOGIN, SESSION_QUOTA_ALL};

use crate::host::{Host, Waiting};
use crate::tables::{Tables, by_args};

const RULE: Word = DENY | 3;

fn judgements(events: &[Event], program: &str) -> Vec<Judgement> {
    events
        .iter()
        .filter_map(|event| match event {
            Event::Exec { head, exec } if exec.path == program.as_bytes() => Some(head.judgement),
            _ => None,
        })
        .collect()
}

#[tokio::test]
async fn a_session_that_is_only_watched_is_denied_nothing() {
    let mut host = Host::start();
    let (header, arena) = Tables::allow_all().path("/usr/bin/touch", RULE | KILL).compile();
    let policy = host.kernel.load_policy(&header, &arena).expect("policy");
    host.kernel.open_monitored_session(1, policy.slot, 100).expect("open");
    assert!(host.kernel.sessions()[0].monitored);
    assert!(host.run(Some(1), "/usr/bin/touch made").ok());
    assert!(host.file("made").exists(), "it was denied");
    let events = host.drain().await;
    assert!(judgements(&events, "/usr/bin/touch").contains(&Judgement::Observed { rule: 3 }), "{events:?}");
    host.kernel.seal_session(1).expect("seal");
    assert!(host.run(Some(1), "/usr/bin/touch sealed").ok());
    assert!(host.file("sealed").exists());
    let events = host.drain().await;
    let observed = Judgement::ObservedUnjudged(Cause::Sealed);
    assert!(judgements(&events, "/usr/bin/touch").contains(&observed), "{events:?}");
    host.session(2, &Tables::allow_all().path("/usr/bin/touch", RULE));
    host.run(Some(2), "/usr/bin/touch control");
    assert!(!host.file("control").exists(), "the control: the same rule in a session that is judged");
}

#[tokio::test]
async fn nothing_starts_while_the_sensor_is_silent() {
    let mut host = Host::start();
    host.session(1, &Tables::allow_all());
    host.kernel.set_grace(Duration::from_secs(3600));
    assert!(host.run(Some(1), "/usr/bin/touch alive").ok());
    assert!(host.file("alive").exists());
    // A grace so short that it is over at once.
    host.kernel.set_grace(Duration::from_nanos(1));
    host.run(Some(1), "/usr/bin/touch gone");
    assert!(!host.file("gone").exists(), "it started");
    let events = host.drain().await;
    let refused = Judgement::Unjudged(Cause::SensorGone);
    assert!(judgements(&events, "/usr/bin/touch").contains(&refused), "{events:?}");
    assert!(host.run(None, "/usr/bin/touch untagged").ok(), "others are not concerned");
    host.kernel.set_grace(Duration::from_secs(3600));
    assert!(host.run(Some(1), "/usr/bin/touch healed").ok());
    assert!(host.file("healed").exists());
}

#[tokio::test]
async fn each_row_of_arguments_is_its_own() {
    let host = Host::start();
    let tables = Tables::allow_all()
        .path("/usr/bin/touch", by_args(0))
        .path("/usr/bin/mkdir", by_args(1))
        .argument("one", RULE)
        .argument("two", RULE);
    host.session(1, &tables);
    host.run(Some(1), "touch one; touch two; mkdir d-one one; mkdir d-two two; true");
    assert!(!host.file("one").exists() || host.file("one").is_dir(), "`touch one` ran");
    assert!(host.file("two").is_file(), "`touch two` did not");
    assert!(host.file("one").is_dir(), "`mkdir one` did not run");
    assert!(!host.file("d-two").exists(), "`mkdir two` ran");
}

#[tokio::test]
async fn the_calling_program_counts() {
    let host = Host::start();
    host.session(1, &Tables::allow_all().path("/usr/bin/touch", RULE).only_from("/usr/bin/env"));
    host.run(Some(1), "/usr/bin/touch from-shell; /usr/bin/env /usr/bin/touch from-env; true");
    assert!(host.file("from-shell").exists(), "the rule is for another caller");
    assert!(!host.file("from-env").exists(), "the caller was not seen");
    assert!(host.run(None, "/usr/bin/env /usr/bin/touch from-env").ok());
    assert!(host.file("from-env").exists());
}

#[tokio::test]
async fn a_program_is_known_by_its_registered_name() {
    use std::os::unix::fs::MetadataExt as _;
    let mut host = Host::start();
    std::fs::copy("/usr/bin/mkdir", host.file("tool")).expect("copy");
    let path = host.file("tool").display().to_string();
    host.session(1, &Tables::allow_all().path(&path, RULE));
    let data = std::fs::metadata(&path).expect("data");
    let device = (nix::sys::stat::major(data.dev()) << 20 | nix::sys::stat::minor(data.dev())) as u32;
    let inode = Inode { inode: data.ino(), device, _pad: 0 };
    host.run(None, "ln tool innocent");
    host.run(Some(1), "./innocent before");
    assert!(host.file("before").exists(), "the control: not registered, it is another name");
    host.kernel.set_names([(inode, name(path.as_bytes(), 0).expect("short"))]).expect("names");
    host.run(Some(1), "./innocent after");
    assert!(!host.file("after").exists(), "a hard link helped");
    let events = host.drain().await;
    assert!(
        events.iter().any(|event| matches!(event, Event::Exec { head, exec }
            if head.judgement.is_denied() && exec.other_name && exec.path == path.as_bytes())),
        "{events:?}"
    );
    assert!(host.run(None, "./innocent untagged").ok());
}

#[tokio::test]
async fn what_is_quiet_is_neither_reported_nor_counted() {
    let mut host = Host::start();
    host.session(1, &Tables::allow_all().path("/usr/bin/true", QUIET));
    assert!(host.run(Some(1), "/usr/bin/true; /usr/bin/touch made").ok());
    assert!(host.file("made").exists());
    let events = host.drain().await;
    assert_eq!(judgements(&events, "/usr/bin/true"), []);
    assert_eq!(judgements(&events, "/usr/bin/touch"), [Judgement::Allowed]);
    assert_eq!(host.kernel.counters().expect("counters").exec.seen, 1);
}

#[tokio::test]
async fn a_flood_costs_only_the_session_that_makes_it() {
    let mut host = Host::start();
    host.session(1, &Tables::allow_all());
    host.session(2, &Tables::allow_all().path("/usr/bin/touch", RULE));
    let flood = "a=$(printf 'x%.0s' {1..4000}); for i in {1..400}; do /usr/bin/true $a; done";
    assert!(host.run(Some(1), flood).ok());
    let of = |host: &Host, number| {
        host.kernel.sessions().into_iter().find(|session| session.number == number).expect("open")
    };
    let flooder = of(&host, 1);
    assert!(flooder.lost > 0 && flooder.queued <= SESSION_QUOTA_ALL, "{flooder:?}");
    host.run(Some(2), "/usr/bin/touch made");
    assert!(!host.file("made").exists());
    assert_eq!(of(&host, 2).lost, 0, "another session lost events");
    let events = host.drain().await;
    let denied = Judgement::Denied { rule: 3, kill: false, end_session: false };
    assert!(judgements(&events, "/usr/bin/touch").contains(&denied));
    assert_eq!((of(&host, 1).queued, of(&host, 2).queued), (0, 0), "what was read is not queued");
}

#[tokio::test]
async fn log_ins_outside_of_a_gateway_are_tagged() {
    let mut host = Host::start();
    let (header, arena) = Tables::allow_all().path("/usr/bin/touch", RULE).compile();
    let policy = host.kernel.load_policy(&header, &arena).expect("policy");
    host.kernel.open_monitored_session(7, policy.slot, 1000).expect("open");
    let login = "echo 4242 >/proc/self/loginuid 2>/dev/null || exit 9; /usr/bin/true; /usr/bin/touch made";
    let ran = host.run(None, login);
    if ran.status.code() == Some(9) {
        eprintln!("skipped: this kernel keeps no login uid (CONFIG_AUDIT), or it cannot be set here");
        return;
    }
    assert!(host.drain().await.is_empty(), "switched off, nobody is tagged");
    host.kernel.set_unbrokered(true, [(ANY_LOGIN, 7)]).expect("on");
    std::fs::remove_file(host.file("made")).expect("made by the control");
    let waiting = Waiting::start(login, host.folder.path());
    assert!(waiting.go().ok(), "a session that is only watched is denied nothing");
    assert!(host.file("made").exists());
    host.kernel.set_unbrokered(false, []).expect("off");
    let events = host.drain().await;
    assert!(judgements(&events, "/usr/bin/touch").contains(&Judgement::Observed { rule: 3 }), "{events:?}");
    assert!(events.iter().any(|event| matches!(event, Event::Exec { head, exec }
        if exec.unbrokered && head.session == 7 && head.process.login_uid == Some(4242))));
}

#[tokio::test]
async fn the_same_tables_are_kept_once_and_as_long_as_somebody_has_them() {
    let mut host = Host::start();
    let (header, mut arena) = Tables::allow_all().path("/usr/bin/touch", DENY | 1).compile();
    // More than half of everything, so that there is no room for two.
    arena.resize(ARENA_WORDS as usize / 8 * 5, 0);
    let first = host.kernel.load_policy(&header, &arena).expect("it fits");
    let second = host.kernel.load_policy(&header, &arena).expect("the same again takes no room");
    assert_ne!((first.slot, first.generation), (second.slot, second.generation), "records tell them apart");
    host.kernel.open_session(1, first.slot, 100).expect("session");
    host.kernel.open_session(2, second.slot, 100).expect("session");
    let denied = |host: &Host, session: u64| {
        host.run(Some(session), "/usr/bin/touch made; /usr/bin/mkdir fine; true");
        let fine = std::fs::remove_dir(host.file("fine")).is_ok();
        fine && !host.file("made").exists()
    };
    assert!(denied(&host, 1) && denied(&host, 2));
    // One goes; the other's tables stay, also for a sensor that takes over.
    host.kernel.close_session(1).expect("close");
    host.kernel.unload_policy(first.slot).expect("unload");
    assert!(denied(&host, 2));
    let (again, adopted) = host.restart();
    host = again;
    assert!(adopted);
    let third = host.kernel.load_policy(&header, &arena).expect("the tables that were there");
    host.kernel.close_session(2).expect("close");
    host.kernel.unload_policy(second.slot).expect("unload");
    host.kernel.open_session(3, third.slot, 100).expect("session");
    assert!(denied(&host, 3));
    // With the last one the room is free for others.
    *arena.last_mut().expect("a word") = 1;
    assert!(matches!(host.kernel.load_policy(&header, &arena), Err(KernelError::ArenaFull { .. })));
    host.kernel.close_session(3).expect("close");
    host.kernel.unload_policy(third.slot).expect("unload");
    host.kernel.load_policy(&header, &arena).expect("room");
}
