//! Each fault that `doctor` explains, made up, beside a healthy host that has none.

use std::collections::BTreeMap;
use std::path::Path;

use super::*;
use crate::kernel::{Fill, KindCounters, KindLoss, ModeFacts};
use crate::unbrokered::Standing;

fn mode_facts(works: bool) -> ModeFacts {
    let obstacles = if works { vec![] } else { vec!["an obstacle".to_owned()] };
    ModeFacts { works, obstacles, limits: vec![] }
}

fn kernel() -> KernelFacts {
    KernelFacts {
        release: "6.12.1".into(),
        btf: true,
        lsms: ["lockdown", "capability", "bpf"].map(str::to_owned).to_vec(),
        lsm_built: true,
        lockdown: None,
        cgroup2: Some("/sys/fs/cgroup".into()),
        audit: true,
        seccomp: true,
        has_object: true,
        root: true,
        mode: Some(Mode::Lsm),
        not_judged: vec![],
        lsm: mode_facts(true),
        tracepoint: mode_facts(true),
    }
}

fn pinned() -> PinnedState {
    PinnedState {
        abi: 3,
        abi_fits: true,
        mode: Some(Mode::Lsm),
        in_charge: true,
        same_programs: true,
        fill: vec![Fill { what: "processes", used: 10, limit: 60_000 }],
        events: vec![KindLoss { kind: "exec", counters: KindCounters { seen: 9, lost: 0 } }],
        silent_ns: Some(1_000_000_000),
        grace_ns: Some(30_000_000_000),
        unbrokered: true,
        ..PinnedState::default()
    }
}

fn config(text: &str) -> Config {
    Config::parse(text, Path::new("test.toml")).expect("a configuration")
}

struct Host {
    config: Config,
    kernel: KernelFacts,
    chosen: Option<Mode>,
    pinned: Option<PinnedState>,
    status: Status,
}

fn healthy() -> Host {
    Host {
        config: config(""),
        kernel: kernel(),
        chosen: Some(Mode::Lsm),
        pinned: Some(pinned()),
        status: Status { unbrokered: Standing { audit: true, ..Standing::default() }, ..Status::default() },
    }
}

fn findings(host: &Host) -> Vec<Finding> {
    all(&host.config, &host.kernel, host.chosen, host.pinned.as_ref(), Some(&host.status))
}

/// Spoils a healthy host, and wants one finding more, with these words.
fn check(id: &str, level: Level, words: &[&str], spoil: impl FnOnce(&mut Host)) {
    let mut host = healthy();
    assert!(findings(&host).iter().all(|finding| finding.id != id), "{id}: the control has it");
    spoil(&mut host);
    let found = findings(&host);
    let finding = found.iter().find(|finding| finding.id == id);
    let finding = finding.unwrap_or_else(|| panic!("{id} is not found: {found:#?}"));
    assert_eq!(finding.level, level, "{finding:?}");
    let text = format!("{} {} {}", finding.what, finding.why, finding.todo);
    for word in words {
        assert!(text.contains(word), "`{word}` is not said: {finding:#?}");
    }
    assert!(!finding.what.is_empty() && !finding.why.is_empty() && !finding.todo.is_empty());
}

#[test]
fn a_healthy_host_has_only_notes() {
    let found = findings(&healthy());
    assert_eq!(found.iter().map(|finding| finding.id).collect::<Vec<_>>(), ["unbrokered"], "{found:#?}");
    assert!(found.iter().all(|finding| finding.level == Level::Note));
}

#[test]
fn what_the_kernel_lacks_is_explained() {
    check("no-btf", Level::Error, &["CONFIG_DEBUG_INFO_BTF", "/sys/kernel/btf/vmlinux"], |host| {
        host.kernel.btf = false;
        host.chosen = None;
    });
    let off = |host: &mut Host| {
        host.kernel.lsms = ["lockdown", "capability", "yama"].map(str::to_owned).to_vec();
        host.kernel.lsm = mode_facts(false);
        host.chosen = Some(Mode::Tracepoint);
    };
    check("bpf-lsm-off", Level::Warning, &["`lsm=lockdown,capability,yama,bpf`", "update-grub"], off);
    check("bpf-lsm-off", Level::Error, &["does not start"], |host| {
        off(host);
        host.config = config("mode = 'lsm'");
        host.chosen = None;
    });
    check("bpf-lsm-not-built", Level::Warning, &["CONFIG_BPF_LSM", "no boot parameter helps"], |host| {
        off(host);
        host.kernel.lsm_built = false;
    });
    check("hooks-missing", Level::Warning, &["making a user namespace"], |host| {
        host.kernel.not_judged = vec!["making a user namespace".into()];
    });
    check("no-seccomp", Level::Warning, &["CONFIG_SECCOMP_FILTER"], |host| {
        off(host);
        host.kernel.seccomp = false;
    });
    check("no-audit", Level::Warning, &["CONFIG_AUDIT", "cannot be seen"], |host| host.kernel.audit = false);
    check("not-root", Level::Warning, &["root"], |host| host.kernel.root = false);
    check("no-programs", Level::Error, &["without its kernel programs"], |host| {
        host.kernel.has_object = false
    });
    check("no-cgroup2", Level::Note, &["cgroup2"], |host| host.kernel.cgroup2 = None);
}

#[test]
fn what_is_wrong_with_what_is_loaded_is_explained() {
    fn pinned(host: &mut Host) -> &mut PinnedState {
        host.pinned.as_mut().expect("pinned")
    }
    check("not-loaded", Level::Note, &["nothing is enforced"], |host| host.pinned = None);
    check("other-abi", Level::Warning, &["another version (1)", "uninstall"], |host| {
        *pinned(host) = PinnedState { abi: 1, ..PinnedState::default() };
    });
    check("detached", Level::Error, &["sally_exec"], |host| pinned(host).detached = vec!["sally_exec"]);
    check("programs-skipped", Level::Error, &["sally_exec (2 times)", "not judged"], |host| {
        pinned(host).missed = vec![("sally_exec", 2)];
    });
    check("other-programs", Level::Note, &["another build"], |host| pinned(host).same_programs = false);
    check("no-sensor", Level::Warning, &["go on enforcing"], |host| pinned(host).in_charge = false);
    check("sensor-gone", Level::Error, &["for 40 s", "after 30 s"], |host| {
        pinned(host).silent_ns = Some(40_000_000_000);
    });
    check("sensor-stuck", Level::Warning, &["for 20 s"], |host| {
        pinned(host).silent_ns = Some(20_000_000_000)
    });
    check("no-dead-man", Level::Note, &["never"], |host| pinned(host).grace_ns = None);
    check("damaged-policy", Level::Error, &["slot 3", "denied everything"], |host| {
        pinned(host).damaged =
            vec!["session number 7 has policy slot 3, which is empty or half-written".into()];
    });
    check("lost-events", Level::Warning, &["4 of 9 exec events"], |host| {
        pinned(host).events[0].counters.lost = 4;
    });
    check("sealed", Level::Note, &["2 ended sessions"], |host| pinned(host).sealed = 2);
    check("unbrokered-other", Level::Warning, &["restart"], |host| pinned(host).unbrokered = false);
}

#[test]
fn every_map_that_is_full_is_explained_in_its_own_words() {
    for (what, words) in [
        ("processes", "forks is killed"),
        ("sessions", "refused before it starts"),
        ("compiled policies", "no session starts"),
        ("words of compiled tables", "the old one stays"),
        ("registered names", "hard links"),
        ("guarded processes", "signals"),
        ("accounts of log-ins", "judged alike"),
    ] {
        let full = |used| {
            move |host: &mut Host| {
                host.pinned.as_mut().expect("pinned").fill = vec![Fill { what, used, limit: 100 }];
            }
        };
        check("full", Level::Error, &[&format!("full: 100 of 100 {what}"), words], full(100));
        check("full", Level::Warning, &["nearly full", words], full(90));
        let mut host = healthy();
        full(89)(&mut host);
        assert!(findings(&host).iter().all(|finding| finding.id != "full"), "{what}: not yet");
    }
}

#[test]
fn what_the_running_sensor_counted_is_explained() {
    let counted = |cause: &str| {
        let unjudged = BTreeMap::from([(cause.to_owned(), 3)]);
        move |host: &mut Host| host.status.unjudged = unjudged
    };
    check("unjudged", Level::Warning, &["3 actions", "too long or too deep"], counted("PathTooLong"));
    check("unjudged", Level::Warning, &["arguments"], counted("ArgsTooLong"));
    let mut host = healthy();
    counted("Sealed")(&mut host);
    assert!(findings(&host).iter().all(|finding| finding.id != "unjudged"), "that is as it should be");
    check("log-ins", Level::Warning, &["cannot be used for log-ins to `alice`", "locked out"], |host| {
        host.status.unbrokered.troubles =
            vec!["the policy cannot be used for log-ins to `alice`, which are only recorded: …".into()];
    });
}

#[test]
fn each_mode_of_log_ins_is_told() {
    for (text, words) in [
        ("unbrokered = 'off'", "not looked at"),
        ("unbrokered = 'record'", "recorded, and nothing is denied"),
        ("unbrokered = 'enforce'", "only recorded: root"),
    ] {
        let host = Host { config: config(text), ..healthy() };
        let found = findings(&host);
        let note = found.iter().find(|finding| finding.id == "unbrokered").expect("a note");
        assert!(note.what.contains(words), "{note:?}");
    }
}

#[test]
fn the_worst_comes_first() {
    let mut host = healthy();
    host.kernel.cgroup2 = None;
    host.kernel.audit = false;
    host.kernel.has_object = false;
    let levels: Vec<Level> = findings(&host).iter().map(|finding| finding.level).collect();
    assert!(levels.is_sorted_by(|a, b| a >= b), "{levels:?}");
    assert_eq!(levels[0], Level::Error);
}
