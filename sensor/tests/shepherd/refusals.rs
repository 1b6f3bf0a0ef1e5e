//! What the leader gives up, tried with real calls: without effect in a session that gave it up, and with it in one that did
//! not (the control).

use std::path::Path;
use std::process::{Child, Command};

use sallyport_contract::v1::exit::Status;
use sallyport_sensor::shepherd::filter::{Refusals, bit};
use sallyport_sensor::shepherd::{enclosure, protocol::Pty};
use sallyport_sensor_abi::policy::operation;

use crate::calls::shell_function;
use crate::gateway::{Gateway, Setup, command};
use crate::{as_ann, code};

const NOTHING: Refusals = Refusals { operations: 0, enclosed: false, judgement: false };
const ALL: Refusals = Refusals { operations: u32::MAX, enclosed: false, judgement: true };
const REFUSED: &str = "tried: 1\n";
const WORKED: &str = "tried: works\n";

fn only(operation: u32) -> Refusals {
    Refusals { operations: bit(operation), ..NOTHING }
}

fn enclosed() -> Refusals {
    Refusals { enclosed: true, ..NOTHING }
}

fn is_root() -> bool {
    let root = nix::unistd::geteuid().is_root();
    if !root {
        eprintln!(
            "skipped: only root can give something up without no_new_privs, and has what could be given up"
        );
    }
    root
}

/// Before a line's own output: what the account's profile says (on this computer, at this moment) is not looked at.
const BEGINS: &str = "the line begins\n";

fn run_setup(mut setup: Setup, refusals: Refusals) -> (Option<Status>, String) {
    setup.refusals = refusals;
    let mut gateway = Gateway::run(setup);
    let status = gateway.finish().status;
    let own = |stream: &[u8]| {
        let text = String::from_utf8_lossy(stream).into_owned();
        text.split_once(BEGINS).map_or(text.clone(), |(_, own)| own.to_owned())
    };
    (status, own(&gateway.stdout) + &own(&gateway.stderr))
}

fn run(line: &str, refusals: Refusals) -> String {
    let begins = BEGINS.trim_end();
    let line = format!("echo {begins}; echo {begins} >&2; {}{line}", shell_function());
    run_setup(command(&line), refusals).1
}

/// Refused if given up; the control works. `effect` is looked at after each, and undone by `undo`.
fn check(line: &str, refusals: Refusals, effect: impl Fn() -> bool, undo: impl Fn()) {
    let text = run(line, refusals);
    assert!(text.contains(REFUSED) && !effect(), "given up, but: {line}: {text}");
    let text = run(line, NOTHING);
    assert!(text.contains(WORKED) && effect(), "control: {line}: {text}");
    undo();
}

/// As [`check`], for what leaves no trace.
fn check_answer(line: &str, refusals: Refusals) {
    let text = run(line, refusals);
    assert_eq!(text, REFUSED, "given up, but: {line}");
    let text = run(line, NOTHING);
    assert!(text.contains(WORKED), "control: {line}: {text}");
}

fn is_mounted(folder: &Path) -> bool {
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").expect("mounts");
    mounts.contains(&format!(" {} ", folder.display()))
}

#[test]
fn mounts() {
    if !is_root() {
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path();
    let mounted = || is_mounted(path);
    let unmount = || nix::mount::umount(path).expect("unmount");
    check(&format!("try mount {}", path.display()), only(operation::MOUNT), mounted, unmount);
    check(&format!("try mount-new {}", path.display()), only(operation::MOUNT), mounted, unmount);
    if enclosure::is_possible() {
        // To be closed off from processes forbids no mounts.
        let text = run(&format!("try mount {}", path.display()), enclosed());
        assert!(text == WORKED && mounted(), "{text}");
        unmount();
    }
    let nothing = None::<&str>;
    nix::mount::mount(Some("none"), path, Some("tmpfs"), nix::mount::MsFlags::empty(), nothing)
        .expect("mount");
    check(&format!("try umount {}", path.display()), only(operation::UNMOUNT), || !mounted(), || ());
    let mark = path.join("mark");
    check(&format!("try chroot {}", path.display()), only(operation::CHROOT), || mark.exists(), || ());
}

#[test]
fn namespaces() {
    if !is_root() {
        return;
    }
    let own = std::fs::read_link("/proc/self/ns/uts").expect("a namespace").display().to_string();
    for line in [
        format!("try unshare {}", libc::CLONE_NEWUTS),
        format!("try clone {}", libc::CLONE_NEWUTS | libc::CLONE_NEWUSER),
        format!("try clone {}", libc::CLONE_NEWUTS),
    ] {
        let text = run(&line, only(operation::NAMESPACE));
        assert!(text.contains(REFUSED) && !text.contains("namespace "), "{line}: {text}");
        let text = run(&line, NOTHING);
        assert!(text.contains("namespace uts:[") && !text.contains(&own), "control: {line}: {text}");
    }
    // Threads and programs start all the same, though `clone3` does not exist.
    assert_eq!(
        run(
            "try threads; python3 -c 'import threading as t; a=t.Thread(); a.start(); a.join(); print(7)'",
            ALL
        ),
        format!("{WORKED}7\n")
    );
}

/// A process outside of every session.
struct Victim(Child);

impl Victim {
    fn start() -> Self {
        Self(Command::new("sleep").arg("600").spawn().expect("sleep"))
    }

    fn lives(&mut self) -> bool {
        self.0.try_wait().expect("it is ours").is_none()
    }
}

impl Drop for Victim {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn processes_outside_cannot_be_traced() {
    if !is_root() {
        return;
    }
    let closed = enclosure::is_possible();
    if !closed {
        eprintln!("partly skipped: this kernel's Landlock knows no scopes (Linux 6.12)");
    }
    let memory = std::sync::atomic::AtomicU64::new(0);
    let at = format!("{} {}", std::process::id(), memory.as_ptr() as usize);
    let changed = || memory.load(std::sync::atomic::Ordering::SeqCst) != 0;
    let reset = || memory.store(0, std::sync::atomic::Ordering::SeqCst);
    let victim = Victim::start();
    let (mut reader, writer) = std::io::pipe().expect("a pipe");
    nix::fcntl::fcntl(&reader, nix::fcntl::FcntlArg::F_SETFL(nix::fcntl::OFlag::O_NONBLOCK))
        .expect("nonblocking");
    let take =
        format!("try take-descriptor {} {}", std::process::id(), std::os::fd::AsRawFd::as_raw_fd(&writer));
    let mut ways = vec![only(operation::TRACE)];
    ways.extend(closed.then(enclosed));
    for refusals in ways {
        check(&format!("try write-memory {at} changed!"), refusals, changed, reset);
        check_answer(&format!("try attach {}", victim.0.id()), refusals);
        let text = run(&take, refusals);
        assert!(text.contains(REFUSED), "{text}");
        assert!(std::io::Read::read(&mut reader, &mut [0; 8]).is_err(), "nothing was written");
        assert_eq!(run(&take, NOTHING), WORKED, "control");
        assert_eq!(std::io::Read::read(&mut reader, &mut [0; 8]).expect("control"), 5);
    }
    // Through a file: only Landlock sees that.
    let line = format!("try write-mem-file {at} changed!");
    if closed {
        let text = run(&line, enclosed());
        assert!(text.starts_with("tried: ") && !text.contains(WORKED) && !changed(), "{text}");
        // One's own processes can be traced there.
        let own = run("sleep 600 & try attach $!; kill $!", enclosed());
        assert!(own.contains(WORKED), "{own}");
    }
    assert_eq!(run(&line, only(operation::TRACE)), WORKED, "the limit that is announced");
    assert!(changed(), "control");
}

#[test]
fn processes_outside_get_no_signals() {
    if !is_root() || !enclosure::is_possible() {
        eprintln!("skipped: needs root, and Landlock of Linux 6.12");
        return;
    }
    let mut victim = Victim::start();
    let line = format!("sleep 600 & kill $! && echo own; wait; kill {} && echo other; exit 3", victim.0.id());
    let text = run(&line, enclosed());
    assert!(text.contains("own\n") && !text.contains("other\n") && victim.lives(), "{text}");
    let text = run(&line, NOTHING);
    assert!(text.contains("own\n") && text.contains("other\n"), "control: {text}");
    assert!(!victim.0.wait().expect("it is ours").success(), "control");
    // The shepherd, which is outside, can still end the session.
    let mut setup = command("echo ready; exec sleep 600");
    setup.refusals = enclosed();
    let mut gateway = Gateway::run(setup);
    gateway.until(|gateway| gateway.stdout == b"ready\n");
    gateway.order(&sallyport_sensor::shepherd::protocol::Command::End("over".into()));
    assert_eq!(gateway.finish().status, Some(Status::Signal("HUP".into())));
}

#[test]
fn users_and_set_uid_programs() {
    if !is_root() {
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path();
    let open = std::os::unix::fs::PermissionsExt::from_mode(0o777);
    std::fs::set_permissions(path, open).expect("open to all");
    let file = path.join("file");
    let remove = || std::fs::remove_file(&file).expect("remove");
    let line = format!("try become 65534 {}", file.display());
    check(&line, only(operation::SET_USER), || file.exists(), remove);
    // A set-uid program, started by somebody who is not root.
    let program = path.join("id");
    std::fs::copy("/usr/bin/id", &program).expect("copy");
    std::fs::set_permissions(&program, std::os::unix::fs::PermissionsExt::from_mode(0o4755))
        .expect("set-uid");
    let id = |refusals| run_setup(as_ann(&format!("{} -u; id -u", program.display())), refusals);
    let rest = Refusals { operations: ALL.operations & !bit(operation::SET_USER), ..ALL };
    assert_eq!(id(rest), (code(0), "0\n61234\n".into()), "whatever else is given up, it works");
    assert_eq!(id(ALL), (code(0), "61234\n61234\n".into()));
    let status = |refusals| run("grep -E '^(NoNewPrivs|Seccomp):' /proc/self/status", refusals);
    assert_eq!(status(rest), "NoNewPrivs:\t0\nSeccomp:\t2\n");
    assert_eq!(status(ALL), "NoNewPrivs:\t1\nSeccomp:\t2\n");
    assert_eq!(status(NOTHING), "NoNewPrivs:\t0\nSeccomp:\t0\n");
}

#[test]
fn keys_handles_and_capabilities() {
    if !is_root() {
        return;
    }
    let name = format!("sallyport-test-{}", std::process::id());
    let key = || std::fs::read_to_string("/proc/keys").is_ok_and(|keys| keys.contains(&name));
    let line = format!("try add-key {name}");
    if std::path::Path::new("/proc/keys").exists() {
        check(&line, only(operation::KEYRING), key, || ());
    } else {
        eprintln!("partly skipped: this kernel has no keyrings");
    }
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("secret");
    std::fs::write(&file, "by handle").expect("write");
    let line = format!("try handle {}", file.display());
    check_answer(&line, only(operation::OPEN_BY_HANDLE));
    assert!(run(&line, NOTHING).contains("read by handle"), "control");
    check_answer("try force-buffer", only(operation::NETWORK_ADMIN));
    let bounds = |refusals| {
        let text = run("grep ^CapBnd: /proc/self/status", refusals);
        let mask = text.trim().rsplit('\t').next().map(|mask| u64::from_str_radix(mask, 16));
        mask.expect("a mask").expect("a mask")
    };
    let taken = bounds(NOTHING) & !bounds(ALL);
    // CAP_NET_ADMIN, CAP_SYS_MODULE, CAP_SYS_RAWIO, CAP_SYS_TIME, as far as this machine has them.
    assert_eq!(taken, bounds(NOTHING) & (1 << 12 | 1 << 16 | 1 << 17 | 1 << 25));
    assert_ne!(taken, 0, "control");
}

#[test]
fn input_nobody_typed() {
    if !is_root() {
        return;
    }
    let typed = |refusals| {
        let mut setup =
            command(&format!("{}try type hello; read -t 1 -r line; echo got:$line", shell_function()));
        setup.pty = Some(Pty::default());
        run_setup(setup, refusals).1
    };
    let text = typed(only(operation::TERMINAL_INPUT));
    assert!(text.contains("tried: 1") && !text.contains("got:hello"), "{text}");
    let text = typed(NOTHING);
    assert!(text.contains("got:hello"), "control: {text}");
}

/// Calls that are refused before anything happens, and what they answer otherwise to arguments that are of no use.
#[test]
fn calls_by_number() {
    if !is_root() {
        return;
    }
    let mut n_refused = 0;
    for (refusals, call, arguments) in [
        (only(operation::TRACE), libc::SYS_kcmp, "0 0 0"),
        (only(operation::MOUNT), libc::SYS_pivot_root, "0 0"),
        (only(operation::MOUNT), libc::SYS_open_tree, "-1 0 0"),
        (only(operation::MOUNT), libc::SYS_fspick, "-1 0 0"),
        (only(operation::NAMESPACE), libc::SYS_setns, "-1 0"),
        (only(operation::SET_CAPABILITIES), libc::SYS_capset, "0 0"),
        (only(operation::MODULE), libc::SYS_init_module, "0 0 0"),
        (only(operation::MODULE), libc::SYS_finit_module, "-1 0 0"),
        (only(operation::KEXEC), libc::SYS_kexec_load, "0 99 0"),
        (only(operation::BPF), libc::SYS_bpf, "9999 0 0"),
        (only(operation::PERF), libc::SYS_perf_event_open, "0 0 -1"),
        (only(operation::KEYRING), libc::SYS_keyctl, "9999"),
        (only(operation::IO_URING), libc::SYS_io_uring_setup, "0 0"),
        (only(operation::IO_URING), libc::SYS_io_uring_enter, "-1 0"),
        // The magic numbers are missing.
        (only(operation::REBOOT), libc::SYS_reboot, "0 0 0"),
        (only(operation::CLOCK), libc::SYS_clock_settime, "0 0"),
        // The kernel looks at 32 bits of the request.
        (only(operation::TERMINAL_INPUT), libc::SYS_ioctl, "-1 30064792594"),
        (Refusals { judgement: true, ..NOTHING }, libc::SYS_userfaultfd, "-1"),
    ] {
        let line = format!("try call {call} {arguments}");
        assert_eq!(run(&line, refusals), REFUSED, "{line}");
        match run(&line, NOTHING).as_str() {
            REFUSED => eprintln!("no control for call {call}: this kernel refuses it anyway"),
            text => {
                assert!(text.starts_with("tried: "), "control: {line}: {text}");
                n_refused += 1;
            }
        }
    }
    assert!(n_refused >= 14, "{n_refused} with a control");
    // As if the kernel were too old for it; otherwise it finds the arguments too short.
    let line = format!("try call {} 0 0", libc::SYS_clone3);
    assert_eq!(run(&line, only(operation::NAMESPACE)), format!("tried: {}\n", libc::ENOSYS));
    assert_eq!(run(&line, only(operation::MOUNT)), format!("tried: {}\n", libc::EINVAL), "control");
}

#[test]
fn other_abis_are_no_way_around() {
    if !is_root() {
        return;
    }
    let ia32 = |refusals| {
        let line = format!("{}try ia32", shell_function());
        run_setup(command(&line), refusals)
    };
    let (status, text) = ia32(only(operation::MOUNT));
    assert!(!text.contains("tried:"), "{text}");
    assert_eq!(status, code(128 + libc::SIGSYS.unsigned_abs()), "{text}");
    // A kernel without ia32 raises another signal.
    let (status, text) = ia32(NOTHING);
    assert_ne!(status, code(128 + libc::SIGSYS.unsigned_abs()), "control: {text}");
    eprintln!("without a filter ia32 says: {text}");
    if cfg!(target_arch = "x86_64") {
        let line = format!("try call {}", 0x4000_0000 | libc::SYS_getpid);
        assert_eq!(run(&line, only(operation::MOUNT)), REFUSED);
        assert_ne!(run(&line, NOTHING), REFUSED, "control");
    }
}

/// Whatever is given up, people can work.
#[test]
fn ordinary_work_goes_on() {
    if !is_root() {
        return;
    }
    let refusals = Refusals { enclosed: enclosure::is_possible(), ..ALL };
    let mut n_run = 0;
    for (program, line, expected) in [
        ("bash", "x=$(echo a | tr a b); (sleep 0.01 &); wait; echo $x", "b\n"),
        (
            "git",
            "cd $(mktemp -d) && git init -q . && git -c user.name=a -c user.email=a@b commit -q --allow-empty -m m && git log --oneline | wc -l",
            "1\n",
        ),
        (
            "python3",
            "python3 -c 'import subprocess, multiprocessing as m; print(subprocess.check_output([\"echo\", \"s\"]).decode(), m.Pool(2).map(abs, [-1]))'",
            "s\n [1]\n",
        ),
        (
            "gcc",
            "cd $(mktemp -d) && echo 'int main(){return 0;}' > a.c && gcc a.c -o a && ./a && echo built",
            "built\n",
        ),
        ("java", "java -version 2>&1 | grep -ci 'runtime'", "1\n"),
        (
            "node",
            "node -e 'require(\"fs\").readFile(\"/etc/passwd\", (e, d) => console.log(!e, d.length > 0))'",
            "true true\n",
        ),
        ("man", "man --version >/dev/null && echo man", "man\n"),
        ("systemctl", "systemctl --version >/dev/null && echo systemd", "systemd\n"),
        ("ps", "ps -o comm= -p $$", "bash\n"),
        ("tar", "cd $(mktemp -d) && touch f && tar cf t f && tar tf t", "f\n"),
    ] {
        if !run(&format!("command -v {program}"), NOTHING).contains(program) {
            eprintln!("not here: {program}");
            continue;
        }
        // Standard error, which comes last, may have more to say on a computer that many work on.
        let text = run_setup(command(line), refusals).1;
        if !text.starts_with(expected) {
            let control = run_setup(command(line), NOTHING).1;
            assert!(!control.starts_with(expected), "{program} works without the filter only: {text}");
            eprintln!("not working here, with or without: {program}");
            continue;
        }
        n_run += 1;
    }
    assert!(n_run >= 4, "{n_run}");
    // To another user and back, where that is not forbidden.
    let rest = Refusals { operations: ALL.operations & !bit(operation::SET_USER), ..refusals };
    assert_eq!(run("su -s /bin/sh nobody -c 'id -un'", rest), "nobody\n");
    assert_ne!(run("su -s /bin/sh nobody -c 'id -un'", refusals), "nobody\n", "control");
}

#[test]
fn a_filter_that_cannot_be_put_on_starts_nothing() {
    if !is_root() {
        return;
    }
    // Somebody took away what it takes, before the shepherd started.
    let mark = std::env::temp_dir().join(format!("sallyport-filter-{}", std::process::id()));
    let _ = std::fs::remove_file(&mark);
    let setup = |refusals| {
        let mut setup = command(&format!("touch {}", mark.display()));
        setup.without_admin = true;
        setup.refusals = refusals;
        setup
    };
    let mut gateway = Gateway::run(setup(only(operation::MOUNT)));
    let exit = gateway.finish();
    let text = String::from_utf8_lossy(&gateway.stderr).into_owned();
    assert_eq!(exit.status, code(126));
    assert!(text.contains("system call filter cannot be put on, so nothing was started"), "{text}");
    assert!(!mark.exists());
    let mut gateway = Gateway::run(setup(NOTHING));
    assert_eq!(gateway.finish().status, code(0), "control");
    assert!(mark.exists(), "control");
    let _ = std::fs::remove_file(&mark);
}
