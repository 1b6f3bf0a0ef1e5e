//! The kernel side of the sensor: loads and adopts the programs, writes their maps, reads their events.
//!
//! Everything is pinned below one folder of a BPF file system, so enforcement goes on while no sensor runs, and a
//! starting sensor adopts what is there. `unsafe` is needed to write the mapped maps in place; see [`mapped`].

mod arena;
mod attach;
mod event;
mod fields;
mod file_hooks;
mod hooks;
mod host;
mod load;
mod mapped;
mod mounts;
mod names;
mod object;
mod offsets;
mod pins;
mod policies;
mod probe;
mod question;
mod ring;
mod sessions;
mod state;
mod stats;
mod verify;

use std::path::PathBuf;
use std::sync::Mutex;

use aya::maps::{HashMap, MapData, PerCpuArray};
use sallyport_sensor_abi::names::{Inode, Name};
use sallyport_sensor_abi::session::{Host, Session, Tag, Unbrokered};

pub use event::{
    Cause, Connect, Counters, Destination, Event, Exec, File, FileOp, Head, Judgement, KindCounters,
    Operation, Process, System, fuzz_event,
};
pub use load::{LoadedPolicy, Started};
pub use mounts::MountError;
pub use names::name;
pub use offsets::OffsetError;
pub use probe::{KernelFacts, ModeFacts, probe};
pub(crate) use probe::{is_before, uring_has_threads};
pub use question::Questions;
pub use ring::EventStream;
pub use sessions::{OpenSession, TaggedTask};
pub use state::{Fill, KindLoss, PinnedState, inspect};
pub use stats::ProgramStats;
pub use verify::{Verified, verify};

use mapped::Mapped;

/// How the kernel programs enforce.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// BPF LSM: a call fails with `EPERM` before anything happens.
    Lsm,
    /// Raw tracepoints and cgroup hooks: a program is killed before its first instruction, connections fail.
    Tracepoint,
}

impl std::fmt::Display for Mode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Lsm => "lsm",
            Self::Tracepoint => "tracepoint",
        })
    }
}

/// What [`Kernel::start`] needs to know.
#[derive(Debug, Clone)]
pub struct KernelOptions {
    /// Folder for pins, on a BPF file system; one is mounted on `/sys/fs/bpf` if the folder is below that.
    pub pin_dir: PathBuf,
    /// Root of the cgroup2 hierarchy; found by itself if not given.
    pub cgroup_root: Option<PathBuf>,
    /// `None`: the better one that works here.
    pub mode: Option<Mode>,
}

impl Default for KernelOptions {
    fn default() -> Self {
        Self { pin_dir: PathBuf::from("/sys/fs/bpf/sallyport"), cgroup_root: None, mode: None }
    }
}

/// The running kernel programs and their maps.
///
/// Dropping it leaves everything pinned and enforcing.
pub struct Kernel {
    pin_dir: PathBuf,
    mode: Mode,
    generation: u64,
    tasks: Mutex<HashMap<MapData, u32, Tag>>,
    /// A bit for each process number; see `sallyport_sensor_abi::session::TAGGED_WORDS`.
    tagged: Mapped<u64>,
    sessions: Mapped<Session>,
    host: Mapped<Host>,
    names: Mutex<HashMap<MapData, Inode, Name>>,
    named: Mapped<u64>,
    unbrokered: Mutex<HashMap<MapData, u32, Unbrokered>>,
    guarded: Mutex<HashMap<MapData, u32, u64>>,
    policies: policies::Policies,
    counters: PerCpuArray<MapData, u64>,
    /// Serialises session slots, and says whether a slot was freed since the last grace period.
    freed_session: Mutex<bool>,
    /// Held for as long as this process is the one in charge of the pins.
    _lock: pins::PinLock,
}

impl std::fmt::Debug for Kernel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Kernel")
            .field("pin_dir", &self.pin_dir)
            .field("mode", &self.mode)
            .finish_non_exhaustive()
    }
}

/// Why the kernel side cannot do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// Built without `sensor-ebpf`.
    #[error("this sensor was built without its kernel programs; run `cargo xtask ebpf` and build it again")]
    NoObject,
    /// Not root.
    #[error("loading kernel programs needs root (CAP_BPF, CAP_PERFMON, CAP_SYS_ADMIN, CAP_NET_ADMIN)")]
    NotRoot,
    /// Another process is in charge.
    #[error("another sensor is running with `{path}`; stop it first")]
    InUse {
        /// The pin folder.
        path: PathBuf,
    },
    /// Maps of another version still have tagged processes.
    #[error(
        "`{path}` holds maps of version {found} with {tasks} running session processes, this sensor needs version {needed}; end those sessions, or run `sallyport-sensor uninstall`"
    )]
    OtherAbi {
        /// The pin folder.
        path: PathBuf,
        /// Version of the pinned maps.
        found: u64,
        /// Version of this sensor.
        needed: u32,
        /// Processes that would lose their tag.
        tasks: usize,
    },
    /// Asked for LSM mode where it does not work.
    #[error(
        "lsm mode was asked for but does not work here: {reason}; set `mode = \"tracepoint\"` or leave it out"
    )]
    NoLsm {
        /// Why, as [`probe`] says.
        reason: String,
    },
    /// A kernel structure is not as expected.
    #[error(transparent)]
    Offsets(#[from] OffsetError),
    /// A file system that is needed is not there.
    #[error(transparent)]
    Mount(#[from] MountError),
    /// A pin could not be made, read or removed.
    #[error("cannot use pin `{path}`")]
    Pin {
        /// Which.
        path: PathBuf,
        /// Cause.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The object does not contain what it should.
    #[error("the kernel programs do not contain `{name}`; build the sensor again")]
    Missing {
        /// Program or map.
        name: &'static str,
    },
    /// The object was not accepted.
    #[error("cannot load the kernel programs")]
    Load(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The verifier said no, or the kernel lacks something.
    #[error("the kernel refused program `{name}`: {log}")]
    Refused {
        /// Program.
        name: &'static str,
        /// The last lines of the verifier's log.
        log: String,
        /// Cause.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A hook could not be attached.
    #[error("cannot attach program `{name}`")]
    Attach {
        /// Program.
        name: &'static str,
        /// Cause.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A map could not be used.
    #[error("cannot {action} map `{map}`")]
    Map {
        /// Map.
        map: &'static str,
        /// What was tried.
        action: &'static str,
        /// Cause.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// No slot left.
    #[error("{limit} {what} is the most that this host can have at once")]
    Full {
        /// Of what.
        what: &'static str,
        /// How many fit.
        limit: u32,
    },
    /// The tables do not fit.
    #[error("the compiled policy takes {words} words; only {free} are free in one piece")]
    ArenaFull {
        /// Words needed.
        words: usize,
        /// Largest free region.
        free: usize,
    },
    /// The tables contradict themselves.
    #[error("the compiled policy is damaged: {0}")]
    BadPolicy(&'static str),
    /// There is none with that number.
    #[error("no session number {0} is open in the kernel")]
    NoSession(u64),
    /// The number is taken, or zero.
    #[error("session number {0} is in use or not allowed")]
    SessionNumber(u64),
    /// The slot is free.
    #[error("no policy is loaded in slot {0}")]
    NoPolicy(u32),
    /// Sessions still use it.
    #[error("policy slot {0} is in use by a session")]
    PolicyInUse(u32),
    /// It ended before it could be tagged.
    #[error("process {0} does not exist any more")]
    NoProcess(u32),
    /// It belongs to a session already.
    #[error("process {0} is tagged already")]
    Tagged(u32),
}

impl Kernel {
    /// How it enforces.
    pub fn mode(&self) -> Mode {
        self.mode
    }

    /// Removes programs, links and maps: enforcement ends, a moment later. Not while a sensor runs with `pin_dir`.
    pub fn unpin_all(pin_dir: &std::path::Path) -> Result<(), KernelError> {
        pins::remove_all(pin_dir)
    }
}
