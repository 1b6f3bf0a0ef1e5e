//! What records carry beside the decision, what the kernel is told about files, and that losses are counted by kind and session.

use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::time::Duration;

use aya::maps::{HashMap, Map, MapData};
use sallyport_contract::v1::EndSession;
use sallyport_contract::v1::gateway_order::Order;
use sallyport_evidence::Record;
use sallyport_evidence::record::{Kind, Outcome};
use sallyport_sensor_abi::names::{Inode, NAME_GUARDED, NAME_SECRET, Name};
use sha2::{Digest, Sha256};

use crate::gateway::Gateway;
use crate::host::{Host, can_enforce};
use crate::survival::eventually;
use crate::{bundle, connected, exit, install, is_exec, record, start};

const FREE: &str = r#"@id("free") permit (principal, action, resource);"#;

fn sha256(path: &Path) -> String {
    hex::encode(Sha256::digest(std::fs::read(path).expect("the program")))
}

#[tokio::test(flavor = "multi_thread")]
async fn records_tell_who_from_where_and_which_file_exactly() {
    if !can_enforce() {
        return;
    }
    let gateway = Gateway::start().await;
    let host = Host::connected(&gateway).await;
    let policy = bundle(FREE);
    assert_eq!(install(&gateway, &policy).await, "");
    // A program that nobody has hashed before.
    let program = host.folder().join("fresh-program");
    std::fs::copy("/usr/bin/cat", &program).expect("a copy");
    let hash = sha256(&program);
    // It lives until its start was recorded: whatever is read from `/proc` can be read, however busy the computer is.
    let held = host.folder().join("held");
    nix::unistd::mkfifo(&held, nix::sys::stat::Mode::S_IRWXU).expect("a pipe");
    let (program, pipe) = (program.display(), held.display());
    let line = format!("cd /usr/share && sh -c '{program} {pipe}; :'; {program} /dev/null; exit 0");
    gateway.order(Order::Start(start("s1", "c1", &policy.version, &line)));
    let of_program = |record: &Record| is_exec(record, "/fresh-program", Outcome::Allowed);
    let first = record(&gateway, "its start is recorded", of_program).await.process.expect("a process");
    std::fs::write(&held, "").expect("let go");
    exit(&gateway, "c1").await;
    // In the record, or right after it as a record of its own.
    let told = record(&gateway, "its hash is recorded", |record| {
        record.process.as_ref().is_some_and(|process| {
            process.exec_id == first.exec_id
                && matches!(record.kind, Kind::Exec | Kind::Executable)
                && !process.sha256.is_empty()
        })
    })
    .await;
    let told = told.process.expect("a process");
    assert_eq!((told.sha256.as_str(), &told.inode), (hash.as_str(), &first.inode));
    let second = gateway
        .until("its second start is recorded", |heard| {
            heard.records.iter().filter(|record| of_program(record)).nth(1).cloned()
        })
        .await;
    let second = second.process.expect("a process");
    assert_eq!(second.sha256, hash, "known by then");
    assert_eq!(second.args[1], "/dev/null");
    // Looked up beside the events, which wait 20 ms at most; what was found too late is known the next time.
    assert!(["", "/usr/share"].contains(&first.cwd.as_str()), "{first:?}");
    assert_eq!(second.cwd, "/usr/share");
    // Leader, inner shell, program (the shell may have executed it in its own place).
    let leader = record(&gateway, "the leader is recorded", |record| {
        record.kind == Kind::Exec
            && record.session.as_ref().is_some_and(|session| session.channel == "c1")
            && record.process.as_ref().is_some_and(|process| process.args.iter().any(|arg| arg == "-c"))
    })
    .await;
    let leader = leader.process.expect("a process");
    let line: Vec<&String> = [&first.parent_exec_id].into_iter().chain(&first.ancestors).collect();
    assert!(line.contains(&&leader.exec_id), "{line:?} does not lead to {}", leader.exec_id);
    let namespace = std::fs::metadata("/proc/self/ns/mnt").expect("a namespace").ino();
    assert_eq!(first.mount_namespace.map(u64::from), Some(namespace));
    assert!(second.cgroup.starts_with('/'), "{second:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn names_are_in_the_kernel_as_long_as_their_files_exist() {
    if !can_enforce() {
        return;
    }
    let gateway = Gateway::start().await;
    let host = Host::connected(&gateway).await;
    let folder = host.folder().canonicalize().expect("real");
    let (secret, later) = (folder.join("secret"), folder.join("later"));
    std::fs::write(&secret, "x").expect("written");
    let policy = bundle(&format!(
        "{FREE}\n@id(\"no\") @reason(\"no\") forbid (principal, action == Action::\"read_file\", resource) when {{ context.path == \"{}\" || context.path == \"{}\" }};",
        secret.display(),
        later.display()
    ));
    assert_eq!(install(&gateway, &policy).await, "");
    gateway.order(Order::Start(start("s1", "c1", &policy.version, "read x")));
    gateway.until("it runs", |heard| heard.channels.contains_key("c1").then_some(())).await;

    let registered = || -> Vec<(u64, String, u32)> {
        let map = MapData::from_pin(host.pins().join("maps/NAMES")).expect("NAMES");
        let map = HashMap::<_, Inode, Name>::try_from(Map::HashMap(map)).expect("a map");
        let entry = |(inode, name): (Inode, Name)| {
            let path = String::from_utf8_lossy(&name.path[..name.path_len as usize]).into_owned();
            (inode.inode, path, name.flags)
        };
        map.iter().flatten().map(entry).collect()
    };
    let inode = |path: &Path| std::fs::symlink_metadata(path).expect("there").ino();
    let has = |inode: u64, path: &Path, flags: u32| {
        registered().contains(&(inode, path.display().to_string(), flags))
    };
    let own = host.state_dir().canonicalize().expect("real");
    assert!(has(inode(&own), &own, NAME_GUARDED | NAME_SECRET), "{:?}", registered());
    let of_secret = inode(&secret);
    assert!(has(of_secret, &secret, 0), "{:?}", registered());
    assert!(!registered().iter().any(|(_, path, _)| path.ends_with("/later")), "it does not exist");

    // Appears later; renamed: what rules know it by stays its name.
    std::fs::write(&later, "y").expect("written");
    std::fs::rename(&secret, folder.join("elsewhere")).expect("renamed");
    let of_later = inode(&later);
    eventually("the new file is registered", || has(of_later, &later, 0)).await;
    assert!(has(of_secret, &secret, 0), "it has only another name now: {:?}", registered());
    std::fs::remove_file(folder.join("elsewhere")).expect("removed");
    eventually("it is forgotten when it is gone", || !registered().iter().any(|(n, ..)| *n == of_secret))
        .await;
    gateway.order(Order::EndSession(EndSession { session_id: "s1".into(), reason: "test".into() }));
}

#[tokio::test(flavor = "multi_thread")]
async fn losses_are_counted_by_kind_and_by_session() {
    if !can_enforce() {
        return;
    }
    let gateway = Gateway::start().await;
    let mut host = Host::with("fail_closed_after = 'never'");
    host.join(&gateway);
    host.start();
    connected(&gateway, 1).await;
    let policy = bundle(FREE);
    assert_eq!(install(&gateway, &policy).await, "");
    let go = host.folder().join("go");
    let (n, done) = (6_000, host.folder().join("done"));
    let line = format!(
        "/bin/true; while [ ! -e {} ]; do read -t 0.05 x; done; i=0; while [ $i -lt {n} ]; do (:); i=$((i+1)); done; echo > {}; read y",
        go.display(),
        done.display()
    );
    gateway.order(Order::Start(start("s1", "c1", &policy.version, &line)));
    gateway.until("it runs", |heard| heard.channels.contains_key("c1").then_some(())).await;
    // What shells do when they start is over.
    record(&gateway, "the shell is ready", |record| is_exec(record, "/true", Outcome::Allowed)).await;
    let forks = |records: &[Record]| records.iter().filter(|record| record.kind == Kind::Fork).count() as u64;
    let before = forks(&gateway.heard.lock().expect("lock").records);
    // A reader that does not read.
    host.signal(nix::sys::signal::Signal::SIGSTOP);
    std::fs::write(&go, "").expect("go");
    eventually("the flood is over", || done.exists()).await;
    host.signal(nix::sys::signal::Signal::SIGCONT);
    let losses = |records: &[Record], session: bool| -> u64 {
        let counted = records.iter().filter_map(|record| {
            let loss = record.loss.as_ref().filter(|loss| loss.why == "ring_full")?;
            ((loss.what == "session") == session).then_some(loss.count)
        });
        counted.sum()
    };
    let (by_kind, by_session) = gateway
        .until("losses are recorded, and both counts agree", |heard| {
            let counts = (losses(&heard.records, false), losses(&heard.records, true));
            (counts.0 > 0 && counts.0 == counts.1).then_some(counts)
        })
        .await;
    println!("{n} forks: {by_kind} events lost by kind, {by_session} by session");
    let named = record(&gateway, "whose loss it is", |record| {
        record.loss.as_ref().is_some_and(|loss| loss.what == "session")
    })
    .await;
    assert_eq!(named.session.map(|session| session.id), Some("s1".into()));
    // What was done equals what was received and what was lost.
    let seen = std::sync::Mutex::default();
    let counted = gateway.until("every fork is received or counted as lost", |heard| {
        let received = forks(&heard.records);
        let lost = heard.records.iter().filter_map(|record| record.loss.as_ref());
        let lost: u64 = lost.filter(|loss| loss.what == "fork").map(|loss| loss.count).sum();
        *seen.lock().expect("lock") = (received, lost);
        (received + lost == before + n).then_some(())
    });
    if tokio::time::timeout(Duration::from_secs(20), counted).await.is_err() {
        panic!("{before} and {n} forks, but received and lost are {:?}", seen.lock().expect("lock"));
    }
    gateway.order(Order::EndSession(EndSession { session_id: "s1".into(), reason: "test".into() }));
    tokio::time::timeout(Duration::from_secs(30), exit(&gateway, "c1")).await.expect("it ends");
}
