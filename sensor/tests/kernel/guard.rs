//! The sensor guards itself: policy permits everything here, and still nothing happens to it.

use std::path::Path;

use sallyport_sensor::kernel::{Cause, Event, Judgement, Mode};

use crate::helper::shell_function;
use crate::host::{Host, Ran};
use crate::system::Victim;
use crate::tables::Tables;

fn helper(host: &Host, session: Option<u64>, operation: &str) -> Ran {
    host.run(session, &format!("{}helper {operation}", shell_function()))
}

/// A host that guards a process. Tests that need one are ignored unless asked for, so that they count as skipped in
/// tracepoint mode, where the kernel programs guard nothing.
fn start() -> (Host, Victim) {
    let host = Host::start();
    assert_eq!(
        host.kernel.mode(),
        Mode::Lsm,
        "in tracepoint mode the guards are the leader's seccomp filter"
    );
    host.session(1, &Tables::allow_all());
    let victim = Victim::start();
    host.kernel.guard(victim.pid()).expect("guard");
    (host, victim)
}

fn refused(events: &[Event]) -> usize {
    let guarded = |event: &&Event| match event {
        Event::System { head, .. } | Event::File { head, .. } => {
            head.judgement == Judgement::Unjudged(Cause::Guarded)
        }
        _ => false,
    };
    events.iter().filter(guarded).count()
}

#[tokio::test]
#[ignore = "needs BPF LSM; `cargo xtask vm --program` runs it"]
async fn its_processes() {
    let (mut host, mut victim) = start();
    let pid = victim.pid();
    let proc = |name: &str| std::fs::read_to_string(format!("/proc/{pid}/{name}")).expect("read");
    let before = (proc("oom_score_adj"), proc("limits"));
    let mut tried = 0;
    for operation in [
        format!("kill {pid} {}", libc::SIGSTOP),
        format!("pidfd-signal {pid} {}", libc::SIGKILL),
        format!("ptrace {pid}"),
        format!("getfd {pid} 0"),
        format!("nice {pid}"),
        format!("affinity {pid}"),
        format!("prlimit {pid}"),
        format!("ioprio {pid}"),
    ] {
        let ran = helper(&host, Some(1), &operation);
        assert!(!ran.ok(), "{operation}: {ran:?}");
        tried += 1;
    }
    for file in ["oom_score_adj", "coredump_filter", "comm"] {
        let ran = host.run(Some(1), &format!("echo 1 >/proc/{pid}/{file}"));
        assert!(!ran.ok(), "{file}: {ran:?}");
        tried += 1;
    }
    assert!(victim.is_well());
    assert_eq!(before, (proc("oom_score_adj"), proc("limits")));
    let events = host.drain().await;
    assert!(refused(&events) >= tried, "{} of {tried}", refused(&events));
    // Outside of sessions nobody is held up.
    assert!(host.run(None, &format!("echo 1 >/proc/{pid}/oom_score_adj")).ok());
    assert_eq!(proc("oom_score_adj"), "1\n");
    assert!(helper(&host, None, &format!("nice {pid}")).ok());
    assert!(helper(&host, None, &format!("kill {pid} {}", libc::SIGKILL)).ok());
    crate::host::eventually("it is killed", || !victim.is_well());
}

#[tokio::test]
#[ignore = "needs BPF LSM; `cargo xtask vm --program` runs it"]
async fn its_pins_and_maps() {
    let (mut host, _victim) = start();
    let pins = host.pins.0.clone();
    let map = pins.join("maps/TASKS");
    let folder = host.file("elsewhere");
    std::fs::create_dir(&folder).expect("folder");
    let folder = folder.display();
    let (map, pins) = (map.display(), pins.display());
    for script in [
        format!("rm -f {map}; test ! -e {map}"),
        format!("mv {map} {pins}/maps/other"),
        format!("{}helper bpf-pin {map}", shell_function()),
        format!("{}helper bpf-id 1", shell_function()),
        format!("{}helper umount /sys/fs/bpf", shell_function()),
        format!("{}helper umount /sys", shell_function()),
        format!("{}helper mount /sys/fs/bpf", shell_function()),
        format!("{}helper mount {pins}", shell_function()),
        format!("{}helper bind-mount {folder} {pins}/maps", shell_function()),
        "echo h >/proc/sysrq-trigger".into(),
    ] {
        let ran = host.run(Some(1), &script);
        assert!(!ran.ok(), "{script}: {ran:?}");
    }
    assert!(Path::new(&map.to_string()).exists());
    assert!(refused(&host.drain().await) >= 9);
    // Elsewhere the session may do as its policy says.
    let ran = host.run(Some(1), &format!("{}helper mount {folder}", shell_function()));
    assert!(ran.ok(), "{ran:?}");
    nix::mount::umount(Path::new(&folder.to_string())).expect("umount");
    assert!(helper(&host, None, &format!("bpf-pin {map}")).ok(), "the control");
}

#[tokio::test]
#[ignore = "needs BPF LSM; `cargo xtask vm --program` runs it"]
async fn control_groups() {
    let (host, _victim) = start();
    let Some(root) = sallyport_sensor::kernel::probe().cgroup2 else { return };
    let group = root.join(format!("sallyport-test-{}", std::process::id()));
    std::fs::create_dir(&group).expect("a control group");
    let file = group.join("cgroup.procs");
    let script = format!("sleep 600 & echo $! >{}; status=$?; kill -9 $!; exit $status", file.display());
    let tagged = host.run(Some(1), &script);
    let untagged = host.run(None, &script);
    // Empty as soon as what was in it is gone.
    crate::host::eventually("the group goes", || std::fs::remove_dir(&group).is_ok());
    assert!(!tagged.ok(), "{tagged:?}");
    assert!(untagged.ok(), "{untagged:?}");
}
