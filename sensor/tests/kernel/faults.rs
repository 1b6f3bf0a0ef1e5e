//! Faults: what is missing, full, too long or damaged ends in a stated verdict and a clear message.
//!
//! [`TABLE`] says which; every test asserts its rows of it, with a control that the fault made the difference.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use aya::maps::{Array, Map, MapData};
use sallyport_sensor::kernel::{Cause, Event, Judgement, Kernel, KernelError, Mode, inspect, name};
use sallyport_sensor_abi::names::{Inode, MAX_NAMES, Name};
use sallyport_sensor_abi::policy::{DENY, PolicyHeader};
use sallyport_sensor_abi::{ARENA_BLOCK, ARENA_WORDS, ArenaBlock, MAX_POLICIES, MAX_SESSIONS};

use crate::host::{Host, Waiting, chain};
use crate::tables::Tables;

/// How a fault ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    /// The sensor does not start: no session can be.
    NotStarted,
    /// It starts in tracepoint mode.
    Tracepoint,
    /// What was asked of the sensor is refused, and nothing changes.
    Refused,
    /// What the process did is denied.
    Denied,
    /// The process is killed.
    Killed,
    /// In a session that is only watched it goes on, and is reported.
    Observed,
    /// The verdict is as without the fault; what is lost is counted.
    Unchanged,
}

/// Fault, verdict, words of the message.
const TABLE: &[(&str, Verdict, &str)] = &[
    ("no BTF", Verdict::NotStarted, "must be built with CONFIG_DEBUG_INFO_BTF"),
    (
        "no `bpf` among the LSMs, lsm mode wanted",
        Verdict::NotStarted,
        "boot with `lsm=lockdown,capability,bpf`",
    ),
    (
        "no `bpf` among the LSMs, mode auto",
        Verdict::Tracepoint,
        "add `lsm=lockdown,capability,bpf` to the kernel's boot parameters",
    ),
    ("tasks full", Verdict::Killed, "the session or the host has too many processes"),
    ("policies full", Verdict::Refused, "1024 compiled policies is the most that this host can have at once"),
    ("arena full", Verdict::Refused, "are free in one piece"),
    ("names full", Verdict::Refused, "16384 registered names is the most"),
    ("one session too many", Verdict::Refused, "4096 sessions is the most"),
    ("path too long", Verdict::Denied, "its path is too long to be judged"),
    ("half-written policy", Verdict::Denied, "the session has no policy on this host"),
    ("half-written policy, watched", Verdict::Observed, "the session has no policy on this host"),
    ("damaged tables", Verdict::Denied, "what it is could not be read"),
    ("header points outside", Verdict::Denied, "what it is could not be read"),
    ("impossible header", Verdict::Refused, "an automaton points outside its tables"),
    ("ring full", Verdict::Unchanged, "lost"),
];

/// Asserts a row of the table.
fn row(fault: &str, verdict: Verdict, message: &str) {
    let row =
        TABLE.iter().find(|row| row.0 == fault).unwrap_or_else(|| panic!("`{fault}` is not in the table"));
    assert_eq!(row.1, verdict, "{fault}: {message}");
    assert!(message.contains(row.2), "{fault}: `{}` is not in: {message}", row.2);
    println!("{:<44} {:<12} {message}", row.0, format!("{verdict:?}"));
}

#[test]
fn every_row_is_asserted_by_a_test() {
    let source = include_str!("faults.rs");
    for (fault, verdict, _) in TABLE {
        let call = format!("row(\"{fault}\", Verdict::{verdict:?}");
        let calls = source.split_whitespace().collect::<String>();
        let wanted: String = call.split_whitespace().collect();
        assert!(calls.contains(&wanted), "no test asserts `{fault}`");
    }
}

/// Runs a script in a mount namespace of its own, where `file` is hidden behind one with this content.
fn hidden(folder: &Path, file: &str, content: &str, script: &str) -> Output {
    let other = folder.join("other");
    std::fs::write(&other, content).expect("file");
    let script = format!("mount --bind {} {file} && {script}", other.display());
    Command::new("unshare").args(["-m", "bash", "-c", &script]).output().expect("unshare")
}

/// `Kernel::start` in another process, by the helper.
fn start(mode: &str, pins: &Path) -> String {
    format!("{}helper start-kernel {mode} {} 2>&1", crate::helper::shell_function(), pins.display())
}

/// Another folder of pins. (A bpffs takes no dots in names.)
fn beside(pins: &Path, name: &str) -> PathBuf {
    PathBuf::from(format!("{}-{name}", pins.display()))
}

fn doctor(folder: &Path, pins: &Path) -> String {
    let config = folder.join("sensor.toml");
    let text = format!(
        "state_dir = '{0}/state'\nrun_dir = '{0}/run'\npin_dir = '{1}'\n",
        folder.display(),
        pins.display()
    );
    std::fs::write(&config, text).expect("configuration");
    format!("{} doctor --config {}", env!("CARGO_BIN_EXE_sallyport-sensor"), config.display())
}

fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

#[tokio::test]
async fn without_type_information_nothing_starts() {
    let host = Host::start();
    let pins = beside(&host.pins.0, "btf");
    let _removed = crate::host::Pins(pins.clone());
    let vmlinux = "/sys/kernel/btf/vmlinux";
    let failed = hidden(host.folder.path(), vmlinux, "", &start("auto", &pins));
    assert!(!failed.status.success());
    row("no BTF", Verdict::NotStarted, &text(&failed));
    let explained = hidden(host.folder.path(), vmlinux, "", &doctor(host.folder.path(), &pins));
    assert_eq!(explained.status.code(), Some(5), "{}", text(&explained));
    assert!(text(&explained).contains("ERROR [no-btf]"), "{}", text(&explained));
    // Control: the same where nothing is hidden.
    let fine = hidden(host.folder.path(), "/etc/shells", "", &start("auto", &pins));
    assert!(fine.status.success(), "{}", text(&fine));
    let explained = hidden(host.folder.path(), "/etc/shells", "", &doctor(host.folder.path(), &pins));
    assert!(!text(&explained).contains("no-btf"), "{}", text(&explained));
}

#[tokio::test]
async fn without_bpf_among_the_security_modules_lsm_mode_is_refused_and_tracepoint_mode_works() {
    let host = Host::start();
    let pins = beside(&host.pins.0, "lsm");
    let _removed = crate::host::Pins(pins.clone());
    // Mounts securityfs where nobody has.
    let _ = sallyport_sensor::kernel::probe();
    let list = "/sys/kernel/security/lsm";
    let without = "lockdown,capability";
    let failed = hidden(host.folder.path(), list, without, &start("lsm", &pins));
    assert!(!failed.status.success());
    row("no `bpf` among the LSMs, lsm mode wanted", Verdict::NotStarted, &text(&failed));
    let started = hidden(host.folder.path(), list, without, &start("auto", &pins));
    assert!(started.status.success(), "{}", text(&started));
    let state = inspect(&pins).expect("state").expect("pinned");
    assert_eq!(state.mode, Some(Mode::Tracepoint));
    let explained = hidden(host.folder.path(), list, without, &doctor(host.folder.path(), &pins));
    let explained = text(&explained);
    if explained.contains("[bpf-lsm-not-built]") {
        eprintln!("skipped: this kernel has no BPF LSM that a boot parameter could turn on");
    } else {
        row("no `bpf` among the LSMs, mode auto", Verdict::Tracepoint, &explained);
    }
    // Control: with `bpf` in the list it is not the list that is to blame.
    let listed =
        hidden(host.folder.path(), list, "lockdown,capability,bpf", &doctor(host.folder.path(), &pins));
    assert!(!text(&listed).contains("[bpf-lsm-off]"), "{}", text(&listed));
}

#[tokio::test]
#[ignore = "needs a kernel booted without `bpf` among its security modules; `kernel_vm.rs` boots one"]
async fn on_a_kernel_booted_without_bpf_tracepoint_mode_enforces_and_doctor_says_why() {
    let facts = sallyport_sensor::kernel::probe();
    assert!(facts.lsm_built, "this kernel has no BPF LSM that could be off");
    assert!(!facts.lsms.iter().any(|lsm| lsm == "bpf"), "booted with it: {:?}", facts.lsms);
    let mut host = Host::start();
    assert_eq!((facts.mode, host.kernel.mode()), (Some(Mode::Tracepoint), Mode::Tracepoint));
    let heard = std::net::UdpSocket::bind("127.0.0.1:0").expect("socket");
    heard.set_read_timeout(Some(std::time::Duration::from_millis(300))).expect("timeout");
    let port = heard.local_addr().expect("address").port();
    let rules = Tables::allow_all().path("/usr/bin/touch", DENY | 1);
    host.session(1, &rules.connect(&[], &[port], |_, listed, _| if listed { DENY | 2 } else { 0 }));
    let script =
        format!("/usr/bin/touch made; /usr/bin/mkdir -p fine; echo x >/dev/udp/127.0.0.1/{port}; true");
    let arrived = || heard.recv(&mut [0; 8]).is_ok();
    assert!(host.run(Some(1), &script).ok());
    assert!(!host.file("made").exists(), "a forbidden program ran");
    assert!(!arrived(), "a forbidden datagram arrived");
    assert!(host.file("fine").exists(), "a permitted program did not run");
    let denied = host.drain().await.iter().filter(|event| event.head().judgement.is_denied()).count();
    assert_eq!(denied, 2, "both are reported");
    assert!(host.run(None, &script).ok());
    assert!(host.file("made").exists() && arrived(), "the control did not run");
    let explained = doctor(host.folder.path(), &host.pins.0);
    let explained = text(&Command::new("bash").args(["-c", &explained]).output().expect("doctor"));
    let remedy = format!("add `lsm={},bpf` to the kernel's boot parameters", facts.lsms.join(","));
    assert!(explained.contains("warning [bpf-lsm-off]") && explained.contains(&remedy), "{explained}");
    let pins = beside(&host.pins.0, "lsm");
    let _removed = crate::host::Pins(pins.clone());
    let refused = Command::new("bash").args(["-c", &start("lsm", &pins)]).output().expect("start");
    let remedy = format!("boot with `lsm={},bpf`", facts.lsms.join(","));
    assert!(!refused.status.success() && text(&refused).contains(&remedy), "{}", text(&refused));
    println!("{explained}");
}

#[tokio::test]
async fn too_many_processes_are_killed_and_told() {
    let mut host = Host::start();
    host.session(1, &Tables::allow_all());
    let script = "for i in {1..30}; do sleep 1 & done; wait; mkdir finished";
    assert!(host.run(Some(1), script).ok(), "control: so many are fine");
    std::fs::remove_dir(host.file("finished")).expect("remove");
    host.all_gone();
    host.kernel.set_host_task_limit(10);
    host.drain().await;
    assert!(host.run(Some(1), script).killed());
    assert!(!host.file("finished").exists());
    let events = host.drain().await;
    let cause = events.iter().find_map(|event| match event {
        Event::Fork { head, .. } => unjudged(head.judgement),
        _ => None,
    });
    row("tasks full", Verdict::Killed, &cause.expect("an event that says why").to_string());
    let fill = inspect(&host.pins.0).expect("state").expect("pinned").fill;
    assert_eq!((fill[0].what, fill[0].limit), ("processes", 10));
}

fn unjudged(judgement: Judgement) -> Option<Cause> {
    match judgement {
        Judgement::Unjudged(cause) | Judgement::ObservedUnjudged(cause) => Some(cause),
        _ => None,
    }
}

fn used(host: &Host, what: &str) -> (u64, u64) {
    let state = inspect(&host.pins.0).expect("state").expect("pinned");
    let fill = state.fill.iter().find(|fill| fill.what == what).expect("a number");
    (fill.used, fill.limit)
}

#[tokio::test]
async fn a_policy_or_session_too_many_is_refused_and_the_others_go_on() {
    let host = Host::start();
    host.session(1, &Tables::allow_all().path("/usr/bin/touch", DENY | 1));
    let (header, arena) = Tables::allow_all().compile();
    let first = host.kernel.load_policy(&header, &arena).expect("policy");
    for _ in 2..MAX_POLICIES {
        host.kernel.load_policy(&header, &arena).expect("as many as there may be");
    }
    assert_eq!(used(&host, "compiled policies"), (MAX_POLICIES.into(), MAX_POLICIES.into()));
    let refused = host.kernel.load_policy(&header, &arena).expect_err("one too many");
    row("policies full", Verdict::Refused, &refused.to_string());
    for number in 2..=u64::from(MAX_SESSIONS) {
        host.kernel.open_session(number, first.slot, 10).expect("as many as there may be");
    }
    assert_eq!(used(&host, "sessions"), (MAX_SESSIONS.into(), MAX_SESSIONS.into()));
    let refused = host.kernel.open_session(9_999, first.slot, 10).expect_err("one too many");
    row("one session too many", Verdict::Refused, &refused.to_string());
    // Those that are there are judged as before, and there is room again when something goes.
    host.run(Some(1), "/usr/bin/touch made; /usr/bin/mkdir fine");
    assert!(!host.file("made").exists() && host.file("fine").exists());
    host.kernel.close_session(7).expect("close");
    host.kernel.open_session(9_999, first.slot, 10).expect("there is room again");
    let spare = host.kernel.policies().iter().map(|loaded| loaded.slot).max().expect("a policy");
    host.kernel.unload_policy(spare).expect("unload");
    host.kernel.load_policy(&header, &arena).expect("there is room again");
}

#[tokio::test]
async fn a_policy_that_does_not_fit_is_refused_and_the_others_go_on() {
    let host = Host::start();
    host.session(1, &Tables::allow_all().path("/usr/bin/touch", DENY | 1));
    let (header, mut arena) = Tables::allow_all().compile();
    let fits = arena.clone();
    // Three quarters of everything: one fits, two do not.
    arena.resize(ARENA_WORDS as usize / 4 * 3, 0);
    let large = host.kernel.load_policy(&header, &arena).expect("it fits");
    // Not the same tables, which the two would share.
    let mut other = arena.clone();
    *other.last_mut().expect("a word") = 1;
    let refused = host.kernel.load_policy(&header, &other).expect_err("a second one does not");
    assert!(matches!(refused, KernelError::ArenaFull { .. }));
    row("arena full", Verdict::Refused, &refused.to_string());
    let (used, limit) = used(&host, "words of compiled tables");
    assert!(used * 4 >= limit * 3 && limit == u64::from(ARENA_WORDS), "{used} of {limit}");
    host.kernel.load_policy(&header, &fits).expect("a small one fits");
    host.run(Some(1), "/usr/bin/touch made; /usr/bin/mkdir fine");
    assert!(!host.file("made").exists() && host.file("fine").exists());
    host.kernel.unload_policy(large.slot).expect("unload");
    host.kernel.load_policy(&header, &arena).expect("there is room again");
}

#[tokio::test]
async fn too_many_names_are_refused_and_the_old_ones_stay() {
    let host = Host::start();
    let names = |count: u32| {
        (0..count).map(|n| {
            let inode = Inode { inode: u64::from(n) + 1, device: 0x0fff_0000, _pad: 0 };
            let name: Name = name(format!("/nowhere/{n}").as_bytes(), 0).expect("a name");
            (inode, name)
        })
    };
    host.kernel.set_names(names(MAX_NAMES)).expect("as many as there may be");
    let full = (MAX_NAMES.into(), MAX_NAMES.into());
    assert_eq!(used(&host, "registered names"), full);
    let refused = host.kernel.set_names(names(MAX_NAMES + 1)).expect_err("one too many");
    row("names full", Verdict::Refused, &refused.to_string());
    assert_eq!(used(&host, "registered names"), full, "what was there is still there");
    host.kernel.set_names(names(3)).expect("few");
    assert_eq!(used(&host, "registered names").0, 3);
}

#[tokio::test]
async fn a_path_that_is_too_long_is_denied_and_told() {
    let mut host = Host::start();
    host.session(1, &Tables::allow_all());
    // The folders are made outside: making them could not be judged either.
    let names = "n=$(printf 'd%.0s' {1..200}); for i in {1..25}; do";
    let prepare = format!("{names} mkdir -p $n; cd $n; done; cp /usr/bin/mkdir m");
    assert!(host.run(None, &prepare).ok());
    let script = format!("TOP=$PWD; {names} cd $n; done; ./m \"$TOP/made\"");
    host.run(Some(1), &script);
    assert!(!host.file("made").exists());
    let events = host.drain().await;
    let cause = events.iter().find_map(|event| match event {
        Event::Exec { head, exec } if exec.path_cut => unjudged(head.judgement),
        _ => None,
    });
    row("path too long", Verdict::Denied, &cause.expect("an event that says why").to_string());
    host.run(None, &script);
    assert!(host.file("made").exists(), "the control did not run");
}

/// The pinned map, as root can write it.
fn array<T: aya::Pod>(host: &Host, map: &str) -> Array<MapData, T> {
    let data = MapData::from_pin(host.pins.0.join("maps").join(map)).expect("the map");
    Array::try_from(Map::Array(data)).expect("an array")
}

/// Runs a program in session 1 with `spoil`t tables; what became of it, and why.
async fn spoilt(watched: bool, spoil: impl FnOnce(&Host, u32)) -> (bool, Option<Cause>, Vec<String>) {
    let mut host = Host::start();
    let (header, arena) = Tables::allow_all().path("/usr/bin/touch", DENY | 1).compile();
    let policy = host.kernel.load_policy(&header, &arena).expect("policy");
    if watched {
        host.kernel.open_monitored_session(1, policy.slot, 100).expect("session");
    } else {
        host.kernel.open_session(1, policy.slot, 100).expect("session");
    }
    let script = "/usr/bin/mkdir made";
    assert!(host.run(Some(1), script).ok() && host.file("made").exists(), "control: not spoilt yet");
    std::fs::remove_dir(host.file("made")).expect("remove");
    assert!(inspect(&host.pins.0).expect("state").expect("pinned").damaged.is_empty());
    host.drain().await;
    let waiting = Waiting::start(script, host.folder.path());
    host.kernel.tag(waiting.pid(), 1, 1).expect("tag");
    spoil(&host, policy.slot);
    waiting.go();
    let made = host.file("made").exists();
    let events = host.drain().await;
    let cause = events.iter().find_map(|event| match event {
        Event::Exec { head, .. } => unjudged(head.judgement),
        _ => None,
    });
    let damaged = inspect(&host.pins.0).expect("state").expect("pinned").damaged;
    let _ = std::fs::remove_dir(host.file("made"));
    assert!(host.run(None, script).ok() && host.file("made").exists(), "control: outside of sessions");
    (made, cause, damaged)
}

fn change_header(host: &Host, slot: u32, change: impl FnOnce(&mut PolicyHeader)) {
    let mut headers = array::<PolicyHeader>(host, "POLICIES");
    let mut header = headers.get(&slot, 0).expect("header");
    change(&mut header);
    headers.set(slot, header, 0).expect("write");
}

#[tokio::test]
async fn a_half_written_policy_denies_and_never_a_watched_login() {
    let unwritten = |host: &Host, slot: u32| change_header(host, slot, |header| header.generation = 0);
    let (made, cause, damaged) = spoilt(false, unwritten).await;
    assert!(!made, "a policy that is not there permitted something");
    row("half-written policy", Verdict::Denied, &cause.expect("a cause").to_string());
    assert!(damaged.iter().any(|text| text.contains("empty or half-written")), "{damaged:?}");
    let (made, cause, _) = spoilt(true, unwritten).await;
    assert!(made, "a log-in that is only watched was denied something");
    row("half-written policy, watched", Verdict::Observed, &cause.expect("a cause").to_string());
}

#[tokio::test]
async fn damaged_tables_deny() {
    let (made, cause, _) = spoilt(false, |host, slot| {
        let base = array::<PolicyHeader>(host, "POLICIES").get(&slot, 0).expect("header").base;
        let mut arena = array::<ArenaBlock>(host, "ARENA");
        // Rows that point behind the arena, in all blocks of this policy.
        let blocks = host.kernel.policies().len() as u32 * 64;
        for block in base / ARENA_BLOCK..base / ARENA_BLOCK + blocks {
            arena.set(block, [u32::MAX; ARENA_BLOCK as usize], 0).expect("write");
        }
    })
    .await;
    assert!(!made, "damaged tables permitted something");
    row("damaged tables", Verdict::Denied, &cause.expect("a cause").to_string());
}

#[tokio::test]
async fn a_header_that_points_outside_denies_and_is_not_accepted() {
    let (made, cause, damaged) =
        spoilt(false, |host, slot| change_header(host, slot, |header| header.base = ARENA_WORDS)).await;
    assert!(!made, "tables outside of the arena permitted something");
    row("header points outside", Verdict::Denied, &cause.expect("a cause").to_string());
    assert!(damaged.iter().any(|text| text.contains("outside the tables")), "{damaged:?}");
    let host = Host::start();
    let (mut header, arena) = Tables::allow_all().compile();
    host.kernel.load_policy(&header, &arena).expect("control");
    header.path.start = arena.len() as u32;
    let refused = host.kernel.load_policy(&header, &arena).expect_err("it is damaged");
    row("impossible header", Verdict::Refused, &chain(&refused));
}

#[tokio::test]
async fn a_full_ring_changes_no_verdict_and_is_counted() {
    let host = Host::start();
    host.session(1, &Tables::allow_all().path("/usr/bin/touch", DENY | 1));
    let lost = |kernel: &Kernel| kernel.counters().expect("counters").exec.lost;
    assert_eq!(lost(&host.kernel), 0);
    // Nobody reads. Each event carries four kilobytes of arguments; a session may have a megabyte in the ring.
    let script = "a=$(printf 'x%.0s' {1..4000}); for i in {1..400}; do /usr/bin/true $a; /usr/bin/touch made $a; done; true";
    assert!(host.run(Some(1), script).ok());
    assert!(!host.file("made").exists(), "a full ring let a forbidden program run");
    let counted = lost(&host.kernel);
    let state = inspect(&host.pins.0).expect("state").expect("pinned");
    let exec = state.events.iter().find(|kind| kind.kind == "exec").expect("exec events");
    assert!(counted > 0 && exec.counters.lost == counted, "{exec:?}");
    row(
        "ring full",
        Verdict::Unchanged,
        &format!("{counted} of {} exec events were lost", exec.counters.seen),
    );
}
