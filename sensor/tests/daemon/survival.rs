//! The time without a sensor: nothing forbidden happens in it, and if it lasts too long, sessions start nothing new.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use aya::maps::{Array, Map, MapData};
use sallyport_evidence::record::Outcome;
use sallyport_sensor_abi::kernel::meta;

use crate::gateway::Gateway;
use crate::host::{Host, can_enforce};
use crate::{bundle, connected, install, is_exec, record, start};
use sallyport_contract::v1::EndSession;
use sallyport_contract::v1::gateway_order::Order;

const FREE: &str = r#"@id("free") permit (principal, action, resource);"#;

pub(crate) async fn eventually(what: &str, holds: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !holds() {
        assert!(Instant::now() < deadline, "not in time: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn lines(path: &Path) -> Vec<String> {
    std::fs::read_to_string(path).unwrap_or_default().lines().map(str::to_owned).collect()
}

fn last(path: &Path) -> String {
    lines(path).pop().unwrap_or_default()
}

fn end(session: &str) -> Order {
    Order::EndSession(EndSession { session_id: session.into(), reason: "test".into() })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sensor_that_stays_dead_stops_sessions_and_nothing_else() {
    if !can_enforce() {
        return;
    }
    let gateway = Gateway::start().await;
    let mut host = Host::with("fail_closed_after = '5s'");
    host.join(&gateway);
    host.start();
    connected(&gateway, 1).await;
    let policy = bundle(FREE);
    assert_eq!(install(&gateway, &policy).await, "");
    let statuses = host.folder().join("statuses");
    // `read` waits without starting a program: nobody types anything.
    let line = format!("while :; do read -t 0.1 x; /bin/true; echo $? >> {}; done", statuses.display());
    gateway.order(Order::Start(start("s1", "c1", &policy.version, &line)));
    eventually("programs start", || lines(&statuses).len() > 3).await;
    assert!(lines(&statuses).iter().all(|status| status == "0"), "{:?}", lines(&statuses));

    host.kill();
    let killed = Instant::now();
    eventually("programs start no more", || last(&statuses) != "0").await;
    let after = killed.elapsed();
    // The last sign of life was up to a second old, and the loop takes its time.
    assert!(after > Duration::from_secs(3), "too early: {after:?}");
    assert!(after < Duration::from_secs(20), "too late: {after:?}");
    let n = lines(&statuses).len();
    eventually("it goes on, and is refused every time", || lines(&statuses).len() > n + 5).await;
    assert!(lines(&statuses)[n..].iter().all(|status| status != "0"));
    let control = std::process::Command::new("/bin/true").status().expect("it starts");
    assert!(control.success(), "control: outside of sessions nothing is different");

    host.start();
    eventually("it heals", || last(&statuses) == "0").await;
    let told = record(&gateway, "why it was refused is recorded", |record| {
        record.decision.as_ref().is_some_and(|decision| {
            decision.outcome != Outcome::Allowed && decision.reason.contains("sensor has not been running")
        })
    })
    .await;
    assert_eq!(told.session.map(|session| session.id), Some("s1".into()));
    gateway.order(end("s1"));
}

fn forbidden(host: &Host) -> PathBuf {
    let path = host.folder().join("forbidden-touch");
    std::fs::copy("/usr/bin/touch", &path).expect("a copy");
    path
}

#[tokio::test(flavor = "multi_thread")]
async fn no_forbidden_program_runs_while_the_sensor_is_restarted_and_replaced() {
    if !can_enforce() {
        return;
    }
    let gateway = Gateway::start().await;
    let mut host = Host::connected(&gateway).await;
    let program = forbidden(&host);
    let (made, tries, stop) =
        (host.folder().join("made"), host.folder().join("tries"), host.folder().join("stop"));
    let line = format!(
        "n=0; while [ ! -e {stop} ]; do n=$((n+1)); {program} {made}; echo $n > {tries}; done 2>/dev/null; echo end >> {tries}",
        stop = stop.display(),
        program = program.display(),
        made = made.display(),
        tries = tries.display()
    );
    // Control: without the rule the same loop does it at once.
    let free = bundle(FREE);
    assert_eq!(install(&gateway, &free).await, "");
    gateway.order(Order::Start(start("s0", "c0", &free.version, &line)));
    eventually("control: it is made", || made.exists()).await;
    gateway.order(end("s0"));
    gateway
        .until("the control ends", |heard| {
            heard.channels.get("c0").is_some_and(|channel| channel.exit.is_some()).then_some(())
        })
        .await;
    std::fs::remove_file(&made).expect("removed");
    std::fs::remove_file(&tries).expect("removed");

    let strict = bundle(&format!(
        "{FREE}\n@id(\"no-touch\") @reason(\"it is forbidden here\") forbid (principal, action == Action::\"exec\", resource) when {{ context.name == \"forbidden-touch\" }};"
    ));
    assert_eq!(install(&gateway, &strict).await, "");
    gateway.order(Order::Start(start("s1", "c1", &strict.version, &line)));
    let count = || last(&tries).parse::<u64>().unwrap_or(0);
    eventually("it tries", || count() > 20).await;
    let mut hellos = 1;
    for round in 0..4 {
        if round % 2 == 0 {
            host.kill()
        } else {
            host.stop()
        }
        let without = count();
        eventually("it tries without a sensor", || count() > without + 20).await;
        if round >= 2 {
            // As if the programs that are attached were of another version: the next sensor replaces them.
            let map = MapData::from_pin(host.pins().join("maps/META")).expect("META");
            let mut map = Array::<_, u64>::try_from(Map::Array(map)).expect("an array");
            map.set(meta::DIGEST, 1, 0).expect("written");
        }
        host.start();
        hellos += 1;
        connected(&gateway, hellos).await;
        let with = count();
        eventually("it tries with the new sensor", || count() > with + 20).await;
    }
    std::fs::write(&stop, "").expect("stop");
    eventually("the loop ends", || last(&tries) == "end").await;
    let n: u64 = lines(&tries)[0].parse().expect("a number");
    assert!(!made.exists(), "one of {n} tries succeeded");
    println!("{n} tries over 2 restarts and 2 replacements of all programs, none succeeded");
    let denied = gateway
        .until("denials are recorded", |heard| {
            let denied = heard
                .records
                .iter()
                .filter(|record| {
                    is_exec(record, "/forbidden-touch", Outcome::Killed)
                        || is_exec(record, "/forbidden-touch", Outcome::Blocked)
                })
                .count();
            (denied > 0).then_some(denied)
        })
        .await;
    assert!(denied > 0);
}
