//! A kernel with our programs, for one test at a time, and processes in its sessions.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use aya::maps::{Map, MapData, PerCpuArray, PerCpuValues};
use nix::fcntl::{Flock, FlockArg};
use sallyport_sensor::kernel::{Event, EventStream, Kernel, KernelOptions, Mode, OpenSession};

use crate::tables::Tables;

/// A folder of pins, which goes when dropped, even if the test failed.
pub(crate) struct Pins(pub(crate) PathBuf);

/// Where programs stay pinned from one test to the next, if `SALLYPORT_TEST_WARM` is set: in software emulation the verifier
/// takes half a minute. For machines that are thrown away.
const WARM: &str = "/sys/fs/bpf/sallyport-test-warm";

fn is_warm() -> bool {
    std::env::var_os("SALLYPORT_TEST_WARM").is_some()
}

impl Drop for Pins {
    fn drop(&mut self) {
        if is_warm() && self.0 == Path::new(WARM) {
            return;
        }
        let removed = Kernel::unpin_all(&self.0);
        if !std::thread::panicking() {
            removed.expect("remove pins");
            assert!(!self.0.exists());
        }
    }
}

/// The programs, pinned in a folder of their own. Dropped from top to bottom: the pins after the kernel.
pub(crate) struct Host {
    pub(crate) kernel: Kernel,
    pub(crate) events: EventStream,
    pub(crate) pins: Pins,
    pub(crate) folder: tempfile::TempDir,
    pub(crate) _serial: Flock<File>,
}

impl Host {
    /// Loads the programs. `SALLYPORT_TEST_MODE` chooses the mode; otherwise it is the one that works here.
    pub(crate) fn start() -> Self {
        assert!(
            nix::unistd::geteuid().is_root(),
            "tests of kernel programs need root; run them as root or leave them out with `--skip kernel`"
        );
        let lock = File::create("/tmp/sallyport-kernel-tests.lock").expect("lock file");
        let serial = Flock::lock(lock, FlockArg::LockExclusive).map_err(|(_, error)| error).expect("lock");
        let folder = tempfile::tempdir().expect("temporary folder");
        let name = folder.path().file_name().expect("a name").to_string_lossy().replace('.', "");
        let pin_dir = match is_warm() {
            true => PathBuf::from(WARM),
            false => PathBuf::from(format!("/sys/fs/bpf/sallyport-test-{name}")),
        };
        let (kernel, started) =
            Kernel::start(&options(&pin_dir)).unwrap_or_else(|error| panic!("{}", chain(&error)));
        assert!(is_warm() || !started.adopted);
        let events = kernel.events().expect("events");
        let mut host = Self { kernel, events, pins: Pins(pin_dir), folder, _serial: serial };
        if is_warm() {
            host.reset();
        }
        host
    }

    /// Leaves nothing of the test before.
    fn reset(&mut self) {
        let kernel = &self.kernel;
        kernel.set_unbrokered(false, []).expect("log-ins");
        kernel.set_names([]).expect("names");
        kernel.unguard(std::process::id());
        for task in kernel.tasks().expect("tasks") {
            kernel.untag(task.tgid).expect("untag");
        }
        for session in kernel.sessions() {
            kernel.close_session(session.number).expect("close");
        }
        for policy in kernel.policies() {
            kernel.unload_policy(policy.slot).expect("unload");
        }
        eventually("nothing is counted", || self.kernel.host_task_count() == 0);
        kernel.set_host_task_limit(u32::MAX);
        kernel.set_grace(Duration::ZERO);
        let mut counters = PerCpuArray::<MapData, u64>::try_from(self.map("COUNTERS")).expect("COUNTERS");
        while !self.events.try_next().is_empty() {}
        for index in 0..sallyport_sensor_abi::event::COUNTERS {
            let zeros = vec![0; counters.get(&index, 0).expect("read").len()];
            counters.set(index, PerCpuValues::try_from(zeros).expect("as many"), 0).expect("reset");
        }
    }

    /// A pinned map, as root can write it.
    pub(crate) fn map(&self, name: &str) -> Map {
        Map::from_map_data(MapData::from_pin(self.pins.0.join("maps").join(name)).expect("pin")).expect("map")
    }

    /// Opens session `number` with a policy.
    pub(crate) fn session(&self, number: u64, tables: &Tables) {
        let (header, arena) = tables.compile();
        let policy = self.kernel.load_policy(&header, &arena).expect("load policy");
        self.kernel.open_session(number, policy.slot, 1000).expect("open session");
    }

    /// A path in the test's folder.
    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Runs a script in a session; `None`: outside of any.
    pub(crate) fn run(&self, session: Option<u64>, script: &str) -> Ran {
        let waiting = Waiting::start(script, self.folder.path());
        if let Some(session) = session {
            self.kernel.tag(waiting.pid(), session, 1).expect("tag");
        }
        waiting.go()
    }

    /// Waits until no process has a tag, none is counted, and nothing is left of those that ended. The sweep is part of what
    /// counts them down: there are kernels that run no programs while process 1 is interrupted.
    pub(crate) fn all_gone(&self) {
        eventually("no tags", || self.kernel.tasks().expect("tasks").is_empty());
        let left = || {
            let all = self.kernel.sessions();
            let counted = |session: &OpenSession| session.tasks != 0 || session.ended != 0;
            (self.kernel.host_task_count(), all.into_iter().filter(counted).collect::<Vec<_>>())
        };
        let deadline = Instant::now() + Duration::from_secs(30);
        while left() != (0, Vec::new()) {
            assert!(Instant::now() < deadline, "still counted: {:?}", left());
            std::thread::sleep(Duration::from_millis(10));
            self.kernel.sweep_ended().expect("sweep");
        }
    }

    /// Events until there are no more for a moment.
    pub(crate) async fn drain(&mut self) -> Vec<Event> {
        let mut all = Vec::new();
        while let Ok(events) = tokio::time::timeout(Duration::from_millis(300), self.events.next()).await {
            all.extend(events.expect("events"));
        }
        all
    }

    /// Stops being in charge, as a sensor that is killed does, and starts again.
    pub(crate) fn restart(self) -> (Self, bool) {
        let Self { kernel, events, pins, folder, _serial } = self;
        drop((kernel, events));
        let (kernel, started) = Kernel::start(&options(&pins.0)).expect("start again");
        let events = kernel.events().expect("events");
        (Self { kernel, events, pins, folder, _serial }, started.adopted)
    }
}

pub(crate) fn options(pin_dir: &Path) -> KernelOptions {
    let mode = match std::env::var("SALLYPORT_TEST_MODE").as_deref() {
        Ok("lsm") => Some(Mode::Lsm),
        Ok("tracepoint") => Some(Mode::Tracepoint),
        Ok(other) => panic!("SALLYPORT_TEST_MODE is `{other}`; it can be `lsm` or `tracepoint`"),
        Err(_) => None,
    };
    KernelOptions { pin_dir: pin_dir.into(), cgroup_root: None, mode }
}

/// An error with its causes.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text = format!("{text}\n  because: {error}");
        source = error.source();
    }
    text
}

/// How a script ended.
#[derive(Debug)]
pub(crate) struct Ran {
    pub(crate) status: ExitStatus,
    pub(crate) stderr: String,
}

impl Ran {
    pub(crate) fn ok(&self) -> bool {
        self.status.success()
    }

    /// What the helper said when it was refused.
    pub(crate) fn refusal(&self) -> &str {
        self.stderr.lines().find(|line| line.starts_with("refused: ")).unwrap_or_default()
    }

    pub(crate) fn killed(&self) -> bool {
        self.status.signal() == Some(9)
    }
}

/// A shell that waits before it runs its script, so that it can be tagged.
pub(crate) struct Waiting {
    child: Child,
}

impl Waiting {
    pub(crate) fn start(script: &str, folder: &Path) -> Self {
        let mut child = Command::new("/bin/bash")
            .args(["--norc", "-c", &format!("echo ready; read -r _; exec </dev/null; {script}")])
            .current_dir(folder)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("bash");
        // The shell itself must not be judged: its `execve` has to be over.
        let mut line = [0; 6];
        child.stdout.as_mut().expect("stdout").read_exact(&mut line).expect("the shell's first words");
        Self { child }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn release(&mut self) {
        self.child.stdin.take().expect("stdin").write_all(b"\n").expect("write");
    }

    pub(crate) fn go(mut self) -> Ran {
        self.release();
        self.wait()
    }

    pub(crate) fn wait(self) -> Ran {
        let output = self.child.wait_with_output().expect("output");
        Ran { status: output.status, stderr: String::from_utf8_lossy(&output.stderr).into_owned() }
    }
}

/// Whether the running kernel is this one or a later one.
pub(crate) fn kernel_at_least(major: u32, minor: u32) -> bool {
    let release = sallyport_sensor::kernel::probe().release;
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map_while(|part| part.parse::<u32>().ok());
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0)) >= (major, minor)
}

/// Waits until something is so.
pub(crate) fn eventually(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !is_so() {
        assert!(Instant::now() < deadline, "{what}: not within half a minute");
        std::thread::sleep(Duration::from_millis(10));
    }
}
