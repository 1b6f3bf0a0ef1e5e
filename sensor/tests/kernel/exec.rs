//! Programs: what is denied leaves no trace, what is allowed runs, and nobody else notices.

use sallyport_sensor::kernel::{Cause, Event, Exec, Head, Judgement, Mode};
use sallyport_sensor_abi::policy::{DENY, Word};

use crate::helper::shell_function;
use crate::host::{Host, eventually};
use crate::tables::{BY_ARGS, Tables};

const RULE: Word = DENY | 3;
const DENIED: Judgement = Judgement::Denied { rule: 3, kill: false, end_session: false };

fn execs(events: Vec<Event>) -> Vec<(Head, Exec)> {
    events
        .into_iter()
        .filter_map(|event| match event {
            Event::Exec { head, exec } => Some((head, exec)),
            _ => None,
        })
        .collect()
}

#[tokio::test]
async fn a_forbidden_path_leaves_no_trace() {
    let mut host = Host::start();
    host.session(1, &Tables::allow_all().path("/usr/bin/touch", RULE));
    let script = "/usr/bin/touch made; mkdir dir; true";
    assert!(host.run(Some(1), script).ok());
    assert!(!host.file("made").exists(), "the forbidden program ran");
    assert!(host.file("dir").exists(), "an allowed program did not run");
    let execs = execs(host.drain().await);
    assert_eq!(execs.len(), 2, "{execs:?}");
    let (head, exec) = &execs[0];
    assert_eq!((head.judgement, head.session, head.channel), (DENIED, 1, 1));
    assert_eq!(exec.path, b"/usr/bin/touch");
    assert!(!exec.fileless && !exec.path_cut && exec.inode > 0);
    match host.kernel.mode() {
        Mode::Lsm => assert!(exec.prevented && exec.args.is_none()),
        Mode::Tracepoint => assert_eq!(exec.arguments(), ["/usr/bin/touch", "made"]),
    }
    let (head, exec) = &execs[1];
    assert_eq!(head.judgement, Judgement::Allowed);
    assert_eq!(
        (exec.path.as_slice(), exec.arguments()),
        (&b"/usr/bin/mkdir"[..], vec!["mkdir".into(), "dir".into()])
    );

    assert!(host.run(None, "/usr/bin/touch made").ok());
    assert!(host.file("made").exists(), "an untagged process was denied");
    assert!(host.drain().await.is_empty(), "an untagged process was reported");
}

#[tokio::test]
async fn every_spelling_of_a_path_is_the_same() {
    let host = Host::start();
    host.session(1, &Tables::allow_all().path("/usr/bin/touch", RULE));
    let spellings = [
        "touch made",
        "cd /usr/bin && ./touch \"$OLDPWD/made\"",
        "/usr/bin/../bin/./touch made",
        "/proc/self/root/usr/bin/touch made",
        "ln -s /usr/bin/touch link && ./link made; rm link",
        "exec -a innocent /usr/bin/touch made",
    ];
    for script in spellings {
        host.run(Some(1), script);
        assert!(!host.file("made").exists(), "{script}");
        host.run(None, script);
        assert!(host.file("made").exists(), "the control did nothing: {script}");
        std::fs::remove_file(host.file("made")).expect("remove");
    }
}

#[tokio::test]
async fn arguments_are_judged_before_the_first_instruction() {
    let mut host = Host::start();
    host.session(1, &Tables::allow_all().path("/usr/bin/touch", BY_ARGS).argument("forbidden", RULE));
    assert!(host.run(Some(1), "touch a forbidden b; touch ok").ok());
    assert!(!host.file("a").exists() && !host.file("forbidden").exists(), "it ran");
    assert!(host.file("ok").exists(), "other arguments are allowed");
    let execs = execs(host.drain().await);
    assert_eq!(
        execs.iter().map(|(head, _)| head.judgement).collect::<Vec<_>>(),
        [DENIED, Judgement::Allowed]
    );
    assert_eq!(execs[0].1.arguments(), ["touch", "a", "forbidden", "b"]);
    assert!(host.run(None, "touch a forbidden b").ok());
    assert!(host.file("forbidden").exists());
}

#[tokio::test]
async fn long_arguments_are_judged_to_the_limit_and_denied_beyond() {
    let mut host = Host::start();
    host.session(1, &Tables::allow_all().path("/usr/bin/mkdir", BY_ARGS).argument("forbidden", RULE));
    let run = |session, text: &str| {
        host.run(session, &format!("{}helper long-argument /usr/bin/mkdir {text}", shell_function()))
    };
    // `mkdir` complains about the first name, which is too long, and makes the others.
    run(Some(1), "30000 fine");
    assert!(host.file("fine").exists(), "under the limit, allowed");
    run(Some(1), "30000 forbidden");
    assert!(!host.file("forbidden").exists(), "the last of many bytes was not judged");
    run(Some(1), "40000 beyond");
    assert!(!host.file("beyond").exists(), "what was too long to be judged ran");
    run(None, "40000 beyond");
    assert!(host.file("beyond").exists());
    let execs = execs(host.drain().await);
    let mkdir: Vec<_> = execs.iter().filter(|(_, exec)| exec.path == b"/usr/bin/mkdir").collect();
    assert_eq!(mkdir.len(), 3);
    assert_eq!(mkdir[2].0.judgement, Judgement::Unjudged(Cause::ArgsTooLong));
    assert!(mkdir[0].1.args_cut() && mkdir[0].1.args_total > 30_000);
}

#[tokio::test]
async fn a_copy_under_another_name_is_denied_by_default() {
    let host = Host::start();
    host.session(1, &Tables::allow_all().deny_all_paths().path("/usr/bin/*", 0));
    let script = "cp /usr/bin/touch innocent; ./innocent made; true";
    assert!(host.run(Some(1), script).ok());
    assert!(host.file("innocent").exists() && !host.file("made").exists());
    assert!(host.run(None, script).ok());
    assert!(host.file("made").exists());
}

#[tokio::test]
async fn files_without_a_name_are_told_apart() {
    let mut host = Host::start();
    host.session(1, &Tables::allow_all().fileless(RULE));
    let script = format!("{}helper memfd /usr/bin/mkdir", shell_function());
    host.run(Some(1), &script);
    assert!(!host.file("memfd-ran").exists(), "a memfd ran");
    let unlinked = "cp /usr/bin/mkdir gone; exec 3<gone; rm gone; /proc/self/fd/3 unlinked-ran";
    host.run(Some(1), unlinked);
    assert!(!host.file("unlinked-ran").exists(), "a deleted file ran");
    assert!(
        execs(host.drain().await)
            .iter()
            .filter(|(head, exec)| exec.fileless && head.judgement == DENIED)
            .count()
            == 2
    );
    host.run(None, &script);
    host.run(None, unlinked);
    assert!(host.file("memfd-ran").exists() && host.file("unlinked-ran").exists());
}

#[tokio::test]
async fn programs_that_give_another_user_are_told_apart() {
    let mut host = Host::start();
    host.session(1, &Tables::allow_all().setuid(RULE));
    let prepare = "cp /usr/bin/mkdir changes; chown 65534 changes; chmod 4755 changes; chmod 777 .";
    assert!(host.run(None, prepare).ok());
    host.run(Some(1), "./changes setuid-ran; mkdir other-ran");
    assert!(!host.file("setuid-ran").exists(), "a set-uid program ran");
    assert!(host.file("other-ran").exists(), "a program that is not set-uid did not run");
    let events = execs(host.drain().await);
    assert_eq!(events.iter().filter(|(head, _)| head.judgement == DENIED).count(), 1, "{events:?}");
    host.run(None, "./changes setuid-ran");
    assert!(host.file("setuid-ran").exists(), "the control did nothing");
}

/// As a session's leader does: tagged from outside, then it becomes the program without a fork.
#[tokio::test]
async fn the_first_program_of_a_session_has_no_caller_and_runs() {
    let mut host = Host::start();
    host.session(1, &Tables::allow_all().only_from("/usr/bin/env").path("/usr/bin/touch", RULE));
    assert!(host.run(Some(1), "exec /usr/bin/mkdir made").ok());
    assert!(host.file("made").exists(), "the first program did not run: {:?}", host.drain().await);
    host.run(Some(1), "env touch forbidden; true");
    assert!(!host.file("forbidden").exists(), "a program ran that this caller may not start");
    host.run(Some(1), "touch permitted");
    assert!(host.file("permitted").exists(), "others may start it");
}

#[tokio::test]
async fn scripts_are_judged_as_their_interpreter_and_by_lsm_as_themselves() {
    let host = Host::start();
    let script = host.file("script");
    std::fs::write(&script, "#!/usr/bin/bash\n/usr/bin/mkdir script-ran\n").expect("script");
    std::fs::set_permissions(&script, std::os::unix::fs::PermissionsExt::from_mode(0o755)).expect("chmod");
    host.session(1, &Tables::allow_all().path("/usr/bin/bash", RULE));
    host.run(Some(1), "./script");
    assert!(!host.file("script-ran").exists(), "the interpreter ran");
    host.kernel.close_session(1).expect("close");
    host.session(1, &Tables::allow_all().path(script.to_str().expect("UTF-8"), RULE));
    host.run(Some(1), "./script");
    assert_eq!(
        host.file("script-ran").exists(),
        host.kernel.mode() == Mode::Tracepoint,
        "see `probe` for the limit"
    );
    host.run(None, "./script");
    assert!(host.file("script-ran").exists(), "the control did not run");
}

#[tokio::test]
async fn a_path_that_is_too_long_or_too_deep_is_denied() {
    let mut host = Host::start();
    host.session(1, &Tables::allow_all());
    let (long, deep) = ("n=$(printf 'd%.0s' {1..200}); last=25", "n=d; last=260");
    for (names, mark) in [(long, "long"), (deep, "deep")] {
        // The folders are made outside: making them could not be judged either.
        let prepare = "for ((i = 0; i < last; i++)); do mkdir -p $n; cd $n; done; cp /usr/bin/mkdir m";
        assert!(host.run(None, &format!("{names}; {prepare}")).ok());
        let script =
            format!("TOP=$PWD; {names}; for ((i = 0; i < last; i++)); do cd $n; done; ./m \"$TOP/{mark}\"");
        host.run(Some(1), &script);
        assert!(!host.file(mark).exists(), "{mark}: what could not be judged ran");
        let unjudged = execs(host.drain().await);
        let unjudged =
            unjudged.iter().find(|(head, _)| head.judgement == Judgement::Unjudged(Cause::PathTooLong));
        assert!(unjudged.is_some_and(|(_, exec)| exec.path_cut && exec.path.ends_with(b"/m")), "{mark}");
        host.run(None, &script);
        assert!(host.file(mark).exists(), "{mark}: the control did not run");
    }
}

#[tokio::test]
async fn mounts_of_unprivileged_users_do_not_pass_for_the_hosts() {
    let mut host = Host::start();
    host.session(1, &Tables::allow_all().deny_all_paths().path("/usr/bin/*", 0).path("/usr/sbin/*", 0));
    std::fs::create_dir(host.file("mine")).expect("folder");
    std::fs::copy("/usr/bin/mkdir", host.file("mine/true")).expect("copy");
    // In a user namespace of its own anybody can mount over /usr/bin/true.
    let script = format!(
        "chmod 755 . ; unshare -rm bash -c 'mount --bind {} /usr/bin/true && /usr/bin/true spoofed'; true",
        host.file("mine/true").display()
    );
    host.run(Some(1), &script);
    assert!(
        !host.file("spoofed").exists(),
        "a bind mount in a user namespace passed for a program of the host"
    );
    let execs = execs(host.drain().await);
    assert!(
        execs.iter().any(|(head, exec)| exec.path.starts_with(b"/(userns)/") && head.judgement.is_denied()),
        "{execs:?}"
    );
    host.run(None, &script);
    assert!(host.file("spoofed").exists(), "the control did not run");
}

#[tokio::test]
async fn a_chroot_does_not_change_the_path() {
    let host = Host::start();
    host.session(1, &Tables::allow_all().deny_all_paths().path("/usr/bin/*", 0).path("/usr/sbin/*", 0));
    let script = "mkdir -p root/usr/bin; cp /usr/bin/busybox root/usr/bin/true 2>/dev/null || cp /bin/busybox root/usr/bin/true; \
                  /usr/sbin/chroot root /usr/bin/true; cp root/usr/bin/true root/usr/bin/mkdir; chroot root /usr/bin/mkdir made; true";
    if !std::path::Path::new("/usr/bin/busybox").exists() && !std::path::Path::new("/bin/busybox").exists() {
        eprintln!("skipped: needs a statically linked busybox");
        return;
    }
    host.run(Some(1), script);
    assert!(!host.file("root/made").exists(), "a chroot made a private program look like one of the host");
    host.run(None, script);
    assert!(host.file("root/made").exists(), "the control did not run");
}

#[tokio::test]
async fn a_new_policy_holds_at_once_and_a_sealed_session_is_closed() {
    let host = Host::start();
    host.session(1, &Tables::allow_all());
    let (header, arena) = Tables::allow_all().path("/usr/bin/touch", RULE).compile();
    let strict = host.kernel.load_policy(&header, &arena).expect("policy");
    let run = |name: &str| {
        host.run(Some(1), &format!("/usr/bin/touch {name}"));
        host.file(name).exists()
    };
    assert!(run("before"));
    let first = host.kernel.sessions()[0].policy_slot;
    host.kernel.set_session_policy(1, strict.slot).expect("swap");
    assert!(!run("after"), "the old policy still judged");
    host.kernel.unload_policy(first).expect("unload");
    assert!(host.kernel.unload_policy(strict.slot).is_err(), "it is in use");
    let (header, arena) = Tables::allow_all().compile();
    let open = host.kernel.load_policy(&header, &arena).expect("policy in the freed place");
    assert!(open.generation > strict.generation);
    host.kernel.set_session_policy(1, open.slot).expect("swap");
    assert!(run("open-again"));
    host.kernel.seal_session(1).expect("seal");
    assert!(!run("sealed"), "a sealed session started a program");
    host.kernel.close_session(1).expect("close");
    host.session(2, &Tables::allow_all());
    assert!(host.kernel.seal_session(1).is_err());
}

#[tokio::test]
async fn after_a_new_policy_the_caller_is_found_again() {
    let host = Host::start();
    let old = || Tables::allow_all().path("/usr/bin/mkdir", RULE).only_from("/usr/bin/env");
    let number = |name: &str| name.len() as u64;
    let rules = Tables::allow_all().path("/usr/bin/touch", RULE).only_from("/usr/bin/bash");
    let (header, arena) = rules.compile();
    assert!(host.run(None, "mkfifo go").ok());
    // A shell that was started under the old policy becomes the program under the new one: there is no fork at which its class
    // could be kept.
    let become_under_it = |script: &str, name: &str| {
        host.session(number(name), &old());
        let inner = format!("echo >ready-{name}; read -r _ <go; exec {script} {name}");
        let mut waiting =
            crate::host::Waiting::start(&format!("exec /bin/bash -c '{inner}'"), host.folder.path());
        host.kernel.tag(waiting.pid(), number(name), 1).expect("tag");
        waiting.release();
        eventually("the shell runs", || host.file(&format!("ready-{name}")).exists());
        let policy = host.kernel.load_policy(&header, &arena).expect("policy");
        host.kernel.set_session_policy(number(name), policy.slot).expect("swap");
        std::fs::write(host.file("go"), "\n").expect("write");
        waiting.wait();
        host.file(name).exists()
    };
    let fits = host.kernel.mode() == Mode::Lsm || crate::host::kernel_at_least(6, 10);
    assert_eq!(
        become_under_it("/usr/bin/mkdir", "may"),
        fits,
        "before 6.10 tracepoint mode cannot find the caller again, and kills"
    );
    assert!(!become_under_it("/usr/bin/touch", "may-not"), "the caller's rule does not hold");
    host.run(None, "exec /usr/bin/touch may-not");
    assert!(host.file("may-not").exists(), "the control did not run");
}

#[tokio::test]
async fn processes_of_a_forgotten_session_are_denied_everything() {
    let mut host = Host::start();
    host.session(1, &Tables::allow_all());
    let waiting = crate::host::Waiting::start("/usr/bin/touch made; true", host.folder.path());
    host.kernel.tag(waiting.pid(), 1, 1).expect("tag");
    host.kernel.close_session(1).expect("close");
    // The next session takes the same slot; the process does not become one of its.
    host.session(2, &Tables::allow_all());
    waiting.go();
    assert!(!host.file("made").exists());
    let denied = execs(host.drain().await);
    assert_eq!(denied[0].0.judgement, Judgement::Unjudged(Cause::NoPolicy));
    assert_eq!(host.kernel.sessions()[0].tasks, 0, "it is not counted for the other session");
}
