//! Action `system`: what is forbidden does not happen, what is permitted does, and nobody outside is held up.

use std::process::{Child, Command, Stdio};

use sallyport_sensor::kernel::{Event, Judgement, Mode, Operation};
use sallyport_sensor_abi::policy::{DENY, operation};

use crate::helper::shell_function;
use crate::host::{Host, Ran, eventually};
use crate::tables::Tables;

/// The forbidding session.
const FORBIDDEN: u64 = 1;
/// The permitting one.
const PERMITTED: u64 = 2;

/// A process outside of any session, with a word in its memory that others may try to change.
pub(crate) struct Victim {
    child: Child,
}

impl Victim {
    pub(crate) fn start() -> Self {
        let child = Command::new("/bin/sleep").arg("600").stdin(Stdio::null()).spawn().expect("sleep");
        Self { child }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Whether it is as it was: neither dead, nor stopped, nor traced.
    pub(crate) fn is_well(&mut self) -> bool {
        if self.child.try_wait().expect("wait").is_some() {
            return false;
        }
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid())).expect("status");
        !status.contains("\tT (") && !status.contains("\tt (") && status.contains("TracerPid:\t0\n")
    }

    /// An address in its stack, which it does not use while it sleeps.
    fn address(&self) -> String {
        let maps = std::fs::read_to_string(format!("/proc/{}/maps", self.pid())).expect("maps");
        let stack = maps.lines().find(|line| line.ends_with("[stack]")).expect("a stack");
        stack.split('-').next().expect("an address").to_owned()
    }

    fn memory(&self) -> [u8; 7] {
        use std::os::unix::fs::FileExt as _;
        let mut bytes = [0; 7];
        let file = std::fs::File::open(format!("/proc/{}/mem", self.pid())).expect("memory");
        let at = u64::from_str_radix(&self.address(), 16).expect("an address");
        file.read_exact_at(&mut bytes, at).expect("read");
        bytes
    }
}

impl Drop for Victim {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A host with a session that forbids these operations and one that forbids nothing.
fn host(operations: &[u32]) -> Host {
    let host = Host::start();
    let forbid = |tables: Tables, number: &u32| tables.system(*number, DENY | 2, DENY | 2);
    host.session(FORBIDDEN, &operations.iter().fold(Tables::allow_all(), forbid));
    host.session(PERMITTED, &Tables::allow_all());
    host
}

fn helper(host: &Host, session: Option<u64>, operation: &str) -> Ran {
    host.run(session, &format!("{}helper {operation}", shell_function()))
}

/// In tracepoint mode these operations are not judged by the kernel programs at all (the leader's seccomp filter
/// takes what it can): then this says so, and what is asserted is that they pass.
fn judged(host: &Host) -> bool {
    host.kernel.mode() == Mode::Lsm
}

/// Runs an operation forbidden, permitted and untagged; `worked` says whether it had its effect, and undoes it.
fn three_ways(host: &Host, script: &str, mut worked: impl FnMut(&Ran) -> bool) {
    let forbidden = helper(host, Some(FORBIDDEN), script);
    assert_eq!(worked(&forbidden), !judged(host), "forbidden: {script}: {forbidden:?}");
    for session in [Some(PERMITTED), None] {
        let ran = helper(host, session, script);
        assert!(worked(&ran), "in {session:?}: {script}: {ran:?}");
    }
}

#[tokio::test]
async fn signals_do_not_leave_the_session() {
    for way in ["kill", "tgkill", "queue", "pidfd-signal", "own", "own-ex"] {
        let host = Host::start();
        // Only what goes outside is forbidden.
        host.session(FORBIDDEN, &Tables::allow_all().system(operation::SIGNAL, 0, DENY | 2));
        host.session(PERMITTED, &Tables::allow_all());
        let mut victim = Victim::start();
        let script = format!("{way} {} {}", victim.pid(), libc::SIGKILL);
        let ran = helper(&host, Some(FORBIDDEN), &script);
        if judged(&host) {
            assert!(!ran.ok(), "{way}: {ran:?}");
            assert!(victim.is_well(), "{way} killed it");
        }
        // Its own are its own business.
        let ran = host.run(Some(FORBIDDEN), "sleep 600 & kill -9 $!; wait $!; test $? = 137");
        assert!(ran.ok(), "{way}: {ran:?}");
        for session in [Some(PERMITTED), None] {
            let mut victim = Victim::start();
            let ran = helper(&host, session, &format!("{way} {} {}", victim.pid(), libc::SIGKILL));
            assert!(ran.ok(), "{way} in {session:?}: {ran:?}");
            eventually("it is killed", || !victim.is_well());
        }
    }
}

#[tokio::test]
#[ignore = "needs BPF LSM; `cargo xtask vm --program` runs it"]
async fn the_event_names_the_target() {
    let mut host = host(&[operation::SIGNAL]);
    assert!(judged(&host), "in tracepoint mode nothing sees it");
    let victim = Victim::start();
    helper(&host, Some(FORBIDDEN), &format!("kill {} {}", victim.pid(), libc::SIGTERM));
    let found = host.drain().await.into_iter().find_map(|event| match event {
        Event::System { head, system } if head.judgement.is_denied() => Some((head.judgement, system)),
        _ => None,
    });
    let (judgement, system) = found.expect("an event");
    assert_eq!(judgement, Judgement::Denied { rule: 2, kill: false, end_session: false });
    assert_eq!(system.operation, Operation::Signal);
    assert_eq!(system.detail, libc::SIGTERM as u32);
    assert_eq!(system.target.map(|(target, _)| target), Some(victim.pid()));
    assert!(system.outside);
}

#[tokio::test]
async fn others_memory_stays_as_it_is() {
    for way in ["vm-write", "proc-mem"] {
        let host = host(&[operation::TRACE]);
        for session in [Some(FORBIDDEN), Some(PERMITTED), None] {
            let victim = Victim::start();
            let before = victim.memory();
            let ran = helper(&host, session, &format!("{way} {} {}", victim.pid(), victim.address()));
            let holds = session == Some(FORBIDDEN) && judged(&host);
            assert_eq!(victim.memory() == before, holds, "{way} in {session:?}: {ran:?}");
            assert_eq!(ran.ok(), !holds, "{way} in {session:?}: {ran:?}");
        }
    }
}

#[tokio::test]
async fn others_are_not_traced() {
    let host = host(&[operation::TRACE]);
    for session in [Some(FORBIDDEN), Some(PERMITTED), None] {
        let victim = Victim::start();
        let ran = helper(&host, session, &format!("ptrace {}", victim.pid()));
        assert_eq!(ran.ok(), !(session == Some(FORBIDDEN) && judged(&host)), "{session:?}: {ran:?}");
    }
}

#[tokio::test]
async fn descriptors_are_not_taken_from_others() {
    let host = host(&[operation::TRACE]);
    let victim = Victim::start();
    for session in [Some(FORBIDDEN), Some(PERMITTED), None] {
        let ran = helper(&host, session, &format!("getfd {} 0", victim.pid()));
        assert_eq!(ran.ok(), !(session == Some(FORBIDDEN) && judged(&host)), "{session:?}: {ran:?}");
    }
}

#[tokio::test]
async fn mounts() {
    let host = host(&[operation::MOUNT, operation::UNMOUNT, operation::CHROOT]);
    let folder = tempfile::tempdir().expect("folder");
    let path = folder.path().display().to_string();
    let mounted = || {
        let table = std::fs::read_to_string("/proc/self/mounts").expect("mounts");
        table.lines().filter(|line| line.split(' ').nth(1) == Some(path.as_str())).count()
    };
    let take_away = || {
        for _ in 0..mounted() {
            nix::mount::umount(folder.path()).expect("umount");
        }
    };
    three_ways(&host, &format!("mount {path}"), |_| {
        let there = mounted() > 0;
        take_away();
        there
    });
    three_ways(&host, &format!("bind-mount /usr {path}"), |_| {
        let there = mounted() > 0;
        take_away();
        there
    });
    three_ways(&host, "fsmount", Ran::ok);
    three_ways(&host, "open-tree /usr", Ran::ok);
    let mount = || {
        use nix::mount::{MsFlags, mount};
        mount(Some("tmpfs"), folder.path(), Some("tmpfs"), MsFlags::empty(), None::<&str>).expect("mount");
    };
    mount();
    three_ways(&host, &format!("umount {path}"), |_| {
        let gone = mounted() == 0;
        if gone {
            mount();
        }
        gone
    });
    take_away();
    three_ways(&host, &format!("chroot {path}"), Ran::ok);
}

#[tokio::test]
async fn namespaces() {
    let host = host(&[operation::NAMESPACE]);
    three_ways(&host, "unshare mount", Ran::ok);
    three_ways(&host, "clone mount", Ran::ok);
    three_ways(&host, &format!("setns {} mnt", std::process::id()), Ran::ok);
    if crate::host::kernel_at_least(6, 1) {
        three_ways(&host, "unshare user", Ran::ok);
        three_ways(&host, "clone user", Ran::ok);
    }
}

#[tokio::test]
async fn credentials() {
    let host = host(&[operation::SET_USER, operation::SET_CAPABILITIES]);
    three_ways(&host, "setuid 12345", Ran::ok);
    three_ways(&host, "setgid 12345", Ran::ok);
    // Nothing changes, so nothing is asked.
    assert!(helper(&host, Some(FORBIDDEN), "setuid 0").ok());
    three_ways(&host, "capset", Ran::ok);
}

#[tokio::test]
async fn set_uid_programs() {
    let host = host(&[operation::SET_USER]);
    // A copy of `id` that is set-uid for another account.
    let program = host.file("id");
    let text = program.display().to_string();
    std::fs::copy("/usr/bin/id", &program).expect("copy");
    std::os::unix::fs::chown(&program, Some(12_345), None).expect("chown");
    std::fs::set_permissions(&program, std::os::unix::fs::PermissionsExt::from_mode(0o4755)).expect("mode");
    if !host.run(None, &format!("test \"$({text} -u)\" = 12345")).ok() {
        // Mounted without set-uid.
        return;
    }
    for session in [Some(FORBIDDEN), Some(PERMITTED), None] {
        let marker = host.file("marker");
        let _ = std::fs::remove_file(&marker);
        host.run(session, &format!("{text} -u >{}", marker.display()));
        let ran = std::fs::read_to_string(&marker).unwrap_or_default() == "12345\n";
        assert_eq!(ran, !(session == Some(FORBIDDEN) && judged(&host)), "{session:?}");
    }
}

/// The error that is asked for means that the kernel got so far as to look.
fn got(error: i32) -> impl FnMut(&Ran) -> bool {
    let text = std::io::Error::from_raw_os_error(error).to_string();
    move |ran| ran.ok() || ran.stderr.contains(&text)
}

#[tokio::test]
async fn ways_into_the_kernel() {
    let host = host(&[
        operation::BPF,
        operation::PERF,
        operation::CLOCK,
        operation::MODULE,
        operation::KEXEC,
        operation::KEYRING,
    ]);
    three_ways(&host, "bpf-map", Ran::ok);
    three_ways(&host, "perf", got(libc::ENOENT));
    three_ways(&host, "clock", Ran::ok);
    // Not every kernel has modules, `kexec` or keys.
    for script in ["delete-module", "init-module", "kexec", "keys"] {
        let untagged = helper(&host, None, script);
        let permitted = helper(&host, Some(PERMITTED), script);
        let forbidden = helper(&host, Some(FORBIDDEN), script);
        assert_eq!(untagged.refusal(), permitted.refusal(), "{script}");
        let there = !untagged.stderr.contains(&std::io::Error::from_raw_os_error(libc::ENOSYS).to_string())
            && !untagged.stderr.contains(&std::io::Error::from_raw_os_error(libc::EPERM).to_string());
        if judged(&host) && there {
            assert!(forbidden.refusal().contains("not permitted"), "{script}: {forbidden:?} {untagged:?}");
        } else {
            assert_eq!(untagged.refusal(), forbidden.refusal(), "{script}");
        }
    }
}

#[tokio::test]
async fn rings_with_kernel_threads() {
    let old = !crate::host::kernel_at_least(5, 16);
    let host = host(&[operation::IO_URING]);
    if !helper(&host, None, "ring").ok() {
        // This kernel has no io_uring, or it is switched off.
        return;
    }
    for session in [Some(FORBIDDEN), Some(PERMITTED), None] {
        let ran = helper(&host, session, "sqpoll");
        assert_eq!(ran.ok(), old || !(session == Some(FORBIDDEN) && judged(&host)), "{session:?}: {ran:?}");
    }
    assert!(helper(&host, Some(FORBIDDEN), "ring").ok(), "a plain ring is judged by what it does");
}

#[tokio::test]
async fn typing_into_terminals() {
    let host = host(&[operation::TERMINAL_INPUT]);
    for session in [Some(FORBIDDEN), Some(PERMITTED), None] {
        let pty = nix::pty::openpty(None, None).expect("a terminal");
        let name = nix::unistd::ttyname(&pty.slave).expect("its name");
        let mut settings = nix::sys::termios::tcgetattr(&pty.slave).expect("settings");
        nix::sys::termios::cfmakeraw(&mut settings);
        nix::sys::termios::tcsetattr(&pty.slave, nix::sys::termios::SetArg::TCSANOW, &settings).expect("raw");
        let ran = helper(&host, session, &format!("type {}", name.display()));
        let flags = nix::fcntl::OFlag::O_NONBLOCK;
        nix::fcntl::fcntl(&pty.slave, nix::fcntl::FcntlArg::F_SETFL(flags)).expect("non-blocking");
        let mut typed = [0; 8];
        let typed = nix::unistd::read(&pty.slave, &mut typed).unwrap_or(0) > 0;
        assert_eq!(typed, !(session == Some(FORBIDDEN) && judged(&host)), "{session:?}: {ran:?}");
    }
}

#[tokio::test]
async fn files_by_handle() {
    let host = host(&[operation::OPEN_BY_HANDLE]);
    for session in [Some(FORBIDDEN), Some(PERMITTED), None] {
        let file = host.file("by-handle");
        std::fs::write(&file, "").expect("write");
        let ran = helper(&host, session, &format!("handle {} x", file.display()));
        let written = std::fs::read_to_string(&file).expect("read") == "hello";
        if session.is_none() && ran.stderr.contains("not supported") {
            // The temporary folder's file system has no handles.
            return;
        }
        assert_eq!(written, !(session == Some(FORBIDDEN) && judged(&host)), "{session:?}: {ran:?}");
    }
}
