//! Losses are counted, restarts leave no gap, and only one sensor is in charge.

use std::time::Duration;

use aya::maps::{Array, MapData};
use sallyport_sensor::kernel::{Event, Judgement, Kernel, KernelError};
use sallyport_sensor_abi::kernel::meta;
use sallyport_sensor_abi::policy::DENY;

use crate::host::{Host, Waiting, eventually, options};
use crate::tables::Tables;

#[tokio::test]
async fn what_the_ring_cannot_hold_is_counted_exactly() {
    let mut host = Host::start();
    host.session(1, &Tables::allow_all().path("/usr/bin/touch", DENY | 1));
    // Each event carries four kilobytes of arguments; the ring holds eight megabytes.
    let script = "a=$(printf 'x%.0s' {1..4000}); for i in {1..2300}; do /usr/bin/true $a; done; /usr/bin/touch made; true";
    assert!(host.run(Some(1), script).ok());
    assert!(!host.file("made").exists(), "a full ring let a forbidden program run");
    let counters = host.kernel.counters().expect("counters");
    assert!(counters.exec.lost > 0, "the flood was too small: {counters:?}");
    let events = host.drain().await;
    let received = |which: fn(&Event) -> bool| events.iter().filter(|event| which(event)).count() as u64;
    let after = host.kernel.counters().expect("counters");
    assert_eq!(counters, after, "reading is not counted");
    assert_eq!(
        counters.exec.seen,
        received(|event| matches!(event, Event::Exec { .. })) + counters.exec.lost
    );
    assert_eq!(
        counters.fork.seen,
        received(|event| matches!(event, Event::Fork { .. })) + counters.fork.lost
    );
    assert_eq!(
        counters.exit.seen,
        received(|event| matches!(event, Event::Exit { .. })) + counters.exit.lost
    );
    assert_eq!(host.events.undecodable(), 0);
    assert!(host.run(Some(1), "true").ok());
    assert!(!host.drain().await.is_empty(), "events come again once there is room");
}

/// Tries the forbidden program until the file `stop` is there; counts its tries in the folder `tries`.
const LOOP: &str = "exec 2>/dev/null; mkdir -p tries; i=0; while [ ! -e stop ]; do /usr/bin/touch made; i=$((i+1)); echo $i >tries/n; done";

fn tries(host: &Host) -> u64 {
    std::fs::read_to_string(host.file("tries/n")).ok().and_then(|text| text.trim().parse().ok()).unwrap_or(0)
}

#[tokio::test]
async fn a_restart_adopts_what_is_there_without_a_gap() {
    let host = Host::start();
    host.session(1, &Tables::allow_all().path("/usr/bin/touch", DENY | 1));
    let mut waiting = Waiting::start(LOOP, host.folder.path());
    host.kernel.tag(waiting.pid(), 1, 5).expect("tag");
    let policies = host.kernel.policies();
    waiting.release();
    eventually("the loop runs", || tries(&host) > 5);
    let seen = host.kernel.counters().expect("counters").exec.seen;
    let (mut host, adopted) = host.restart();
    assert!(adopted);
    assert_eq!(host.kernel.sessions().len(), 1);
    assert_eq!(host.kernel.policies(), policies);
    assert!(
        host.kernel
            .tasks()
            .expect("tasks")
            .iter()
            .any(|task| task.tgid == waiting.pid() && task.channel == 5)
    );
    let before = tries(&host);
    eventually("the loop goes on", || tries(&host) > before + 5);
    // A policy that is loaded now does not overwrite the adopted one.
    let (header, arena) = Tables::allow_all().compile();
    host.kernel.load_policy(&header, &arena).expect("policy");
    let before = tries(&host);
    eventually("the loop goes on", || tries(&host) > before + 5);
    std::fs::write(host.file("stop"), "").expect("stop");
    assert!(waiting.wait().ok());
    assert!(!host.file("made").exists(), "there was a gap");
    assert!(host.kernel.counters().expect("counters").exec.seen > seen);
    let events = host.drain().await;
    let denied =
        events.iter().filter(|event| matches!(event, Event::Exec { head, .. } if head.judgement.is_denied()));
    assert!(denied.count() as u64 >= seen, "events from before the restart were lost");
}

#[tokio::test]
async fn other_programs_are_replaced_without_a_gap() {
    let host = Host::start();
    host.session(1, &Tables::allow_all().path("/usr/bin/touch", DENY | 1));
    let mut waiting = Waiting::start(LOOP, host.folder.path());
    host.kernel.tag(waiting.pid(), 1, 5).expect("tag");
    waiting.release();
    eventually("the loop runs", || tries(&host) > 5);
    let mut host = host;
    for _ in 0..3 {
        // As if another version had attached them.
        let map = MapData::from_pin(host.pins.0.join("maps/META")).expect("META");
        let mut map = Array::<_, u64>::try_from(aya::maps::Map::Array(map)).expect("an array");
        map.set(meta::DIGEST, 1, 0).expect("write");
        let adopted;
        (host, adopted) = host.restart();
        assert!(!adopted);
        let links = std::fs::read_dir(&host.pins.0).expect("pins").flatten();
        let links = links.filter(|entry| entry.file_name().to_string_lossy().starts_with("links-")).count();
        assert_eq!(links, 1, "the old programs are still attached");
    }
    let before = tries(&host);
    eventually("the loop goes on", || tries(&host) > before + 5);
    std::fs::write(host.file("stop"), "").expect("stop");
    assert!(waiting.wait().ok());
    assert!(!host.file("made").exists(), "there was a gap");
    // No process was counted twice.
    host.all_gone();
}

#[tokio::test]
async fn maps_of_another_version_are_not_adopted_nor_taken_from_running_sessions() {
    let pretend = |host: &Host| {
        let map = MapData::from_pin(host.pins.0.join("maps/META")).expect("META");
        let mut map = Array::<_, u64>::try_from(aya::maps::Map::Array(map)).expect("an array");
        map.set(meta::ABI, 99, 0).expect("write");
    };
    let host = Host::start();
    host.session(1, &Tables::allow_all().path("/usr/bin/touch", DENY | 1));
    let waiting = Waiting::start("/usr/bin/touch made; true", host.folder.path());
    host.kernel.tag(waiting.pid(), 1, 1).expect("tag");
    pretend(&host);
    let Host { kernel, events, pins, folder, _serial } = host;
    drop((kernel, events));
    let refused = Kernel::start(&options(&pins.0));
    assert!(matches!(refused, Err(KernelError::OtherAbi { found: 99, tasks: 1, .. })), "{refused:?}");
    assert!(waiting.go().ok());
    assert!(!folder.path().join("made").exists(), "the other version's programs no longer enforce");
    eventually("the other version's processes have ended", || Kernel::start(&options(&pins.0)).is_ok());
    let (kernel, started) = Kernel::start(&options(&pins.0)).expect("start");
    assert!(started.adopted, "by the start before, which made new maps");
    assert!(kernel.sessions().is_empty() && kernel.policies().is_empty());
    drop((kernel, pins, folder, _serial));
}

#[tokio::test]
async fn only_one_is_in_charge() {
    let host = Host::start();
    let second = Kernel::start(&options(&host.pins.0));
    assert!(matches!(second, Err(KernelError::InUse { .. })), "{second:?}");
    assert!(matches!(Kernel::unpin_all(&host.pins.0), Err(KernelError::InUse { .. })));
}

#[tokio::test]
async fn after_uninstalling_nothing_is_judged() {
    let host = Host::start();
    host.session(1, &Tables::allow_all().path("/usr/bin/touch", DENY | 1));
    let waiting =
        Waiting::start("while [ ! -e made ]; do /usr/bin/touch made; sleep 0.05; done", host.folder.path());
    host.kernel.tag(waiting.pid(), 1, 1).expect("tag");
    let Host { kernel, events, pins, folder, _serial } = host;
    drop((kernel, events));
    Kernel::unpin_all(&pins.0).expect("uninstall");
    assert!(!pins.0.exists());
    // The kernel detaches a moment after the pins are gone.
    let made = folder.path().join("made");
    let running = std::thread::spawn(move || waiting.go());
    eventually("the forbidden program runs", || made.exists());
    assert!(running.join().expect("script").ok());
    drop(_serial);
}

#[tokio::test]
async fn events_wake_a_waiting_reader() {
    let mut host = Host::start();
    host.session(1, &Tables::allow_all());
    host.drain().await;
    let mut waiting = Waiting::start("/usr/bin/true", host.folder.path());
    host.kernel.tag(waiting.pid(), 1, 1).expect("tag");
    let writer = tokio::task::spawn_blocking(move || {
        std::thread::sleep(Duration::from_millis(200));
        waiting.release();
        waiting.wait()
    });
    let events = tokio::time::timeout(Duration::from_secs(5), host.events.next())
        .await
        .expect("woken")
        .expect("events");
    assert!(
        matches!(&events[0], Event::Fork { head, .. } | Event::Exec { head, .. } if head.judgement != Judgement::Unjudged(sallyport_sensor::kernel::Cause::Busy))
    );
    writer.await.expect("script");
}

#[tokio::test]
async fn programs_count_their_runs() {
    let host = Host::start();
    host.session(1, &Tables::allow_all());
    let stats = host.kernel.program_stats().expect("stats");
    assert!(stats.iter().any(|program| program.name == "sally_exec"), "{stats:?}");
}

#[test]
fn the_probe_agrees_with_what_starts() {
    let facts = sallyport_sensor::kernel::probe();
    println!("{facts:#?}");
    assert!(facts.btf && facts.has_object);
    assert!(facts.mode.is_some());
    assert_eq!(facts.lsm.works, facts.lsm.obstacles.is_empty());
}

/// Prints what the programs cost per run; no assertion, since a busy machine says little about time.
#[tokio::test]
#[ignore = "a measurement: `cargo test -p sallyport-sensor --test kernel -- --ignored --nocapture cost`"]
async fn cost_of_each_program() {
    const SWITCH: &str = "/proc/sys/kernel/bpf_stats_enabled";
    let mut host = Host::start();
    host.session(1, &Tables::allow_all().path("/usr/bin/touch", DENY | 1));
    let before = std::fs::read_to_string(SWITCH).expect("read the switch");
    std::fs::write(SWITCH, "1").expect("switch on");
    let script = format!(
        "{}for i in {{1..60}}; do /usr/bin/true a b c; done; for i in {{1..10}}; do helper udp 127.0.0.1:9; done",
        crate::helper::shell_function()
    );
    // The least of many batches: what other work on the machine adds is left out as far as possible.
    let mut least = std::collections::BTreeMap::new();
    for _ in 0..40 {
        for (what, session) in [("untagged", None), ("tagged", Some(1))] {
            let last = host.kernel.program_stats().expect("stats");
            host.run(session, &script);
            let now = host.kernel.program_stats().expect("stats");
            for (was, is) in last.iter().zip(&now) {
                let runs = is.run_count - was.run_count;
                if let Some(per_run) = (is.run_time_ns - was.run_time_ns).checked_div(runs) {
                    let least = least.entry((is.name, what)).or_insert(u64::MAX);
                    *least = per_run.min(*least);
                }
            }
            while !host.events.try_next().is_empty() {}
        }
    }
    for ((name, what), per_run) in least {
        println!("{name:20} {what:9} {per_run:6} ns");
    }
    std::fs::write(SWITCH, before.trim()).expect("switch back");
}
