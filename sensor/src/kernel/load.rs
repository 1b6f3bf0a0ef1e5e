//! Starting: adopt what is pinned if it is ours, otherwise load, attach beside it, then take the old away.

use std::os::fd::{AsFd as _, AsRawFd as _};
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::Ordering;

use aya::maps::{HashMap, MapData, PerCpuArray};
use aya::{Ebpf, EbpfLoader, Pod};
use sallyport_sensor_abi::kernel::{Offsets, meta};
use sallyport_sensor_abi::names::NAMED_WORDS;
use sallyport_sensor_abi::session::{Ended, Host, MAX_ENDED, TAGGED_WORDS};
use sallyport_sensor_abi::{
    ABI_VERSION, ARENA_BLOCKS, MAX_POLICIES, MAX_SESSIONS, MAX_TASKS, TASKS_SOFT_LIMIT,
};

use super::mapped::Mapped;
use super::policies::Policies;
use super::{Kernel, KernelError, KernelOptions, Mode, attach, fields, mounts, object, offsets, pins, probe};

/// The maps, in the order in which they are opened.
const MAPS: [&str; 18] = [
    "META",
    "TASKS",
    "TAGGED",
    "SESSIONS",
    "HOST",
    "POLICIES",
    "ARENA",
    "EVENTS",
    "COUNTERS",
    "SCRATCH",
    "NAMES",
    "NAMED",
    "UNBROKERED",
    "GUARDED",
    "SOCKETS",
    "PENDING",
    "OWNED",
    "ENDED",
];

/// Work areas per CPU; see `sensor-ebpf/src/scratch.rs`.
const AREAS_PER_CPU: u32 = 4;

/// How [`Kernel::start`] went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Started {
    /// How it enforces.
    pub mode: Mode,
    /// The pinned programs were exactly these and were left alone.
    pub adopted: bool,
}

/// Where a policy was put.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LoadedPolicy {
    /// Its slot, for sessions.
    pub slot: u32,
    /// What events about its decisions carry.
    pub generation: u64,
}

impl Kernel {
    /// Brings the programs up and opens their maps. Blocks for up to some seconds while the verifier works.
    pub fn start(options: &KernelOptions) -> Result<(Self, Started), KernelError> {
        if object::bytes().is_empty() {
            return Err(KernelError::NoObject);
        }
        if !nix::unistd::geteuid().is_root() {
            return Err(KernelError::NotRoot);
        }
        let pin_dir = options.pin_dir.as_path();
        let lock = pins::open(pin_dir)?;
        discard_other_abi(pin_dir)?;
        let mode = choose_mode(options.mode)?;
        let (adopted, generation) = match adoptable(pin_dir, mode) {
            Some(generation) => (true, generation),
            None => (false, replace(pin_dir, mode, options.cgroup_root.as_deref())?),
        };
        // What a sensor that was killed while replacing left behind.
        for other in pins::generations(pin_dir)? {
            if other != generation {
                pins::remove_generation(pin_dir, other)?;
            }
        }
        let kernel = Self::open(pin_dir, mode, generation, lock)?;
        kernel.mark_all()?;
        kernel.sweep()?;
        kernel.sweep_guarded()?;
        if !adopted {
            kernel.forget_ended()?;
        }
        Ok((kernel, Started { mode, adopted }))
    }

    fn open(pin_dir: &Path, mode: Mode, generation: u64, lock: pins::PinLock) -> Result<Self, KernelError> {
        let counters = PerCpuArray::try_from(open_map(pin_dir, "COUNTERS")?)
            .map_err(|source| KernelError::Map { map: "COUNTERS", action: "open", source: source.into() })?;
        let kernel = Self {
            pin_dir: pin_dir.into(),
            mode,
            generation,
            tasks: open_hash(pin_dir, "TASKS")?,
            tagged: Mapped::new(&open_data(pin_dir, "TAGGED")?, "TAGGED", TAGGED_WORDS)?,
            sessions: Mapped::new(&open_data(pin_dir, "SESSIONS")?, "SESSIONS", MAX_SESSIONS)?,
            host: Mapped::new(&open_data(pin_dir, "HOST")?, "HOST", 1)?,
            names: open_hash(pin_dir, "NAMES")?,
            named: Mapped::new(&open_data(pin_dir, "NAMED")?, "NAMED", NAMED_WORDS)?,
            unbrokered: open_hash(pin_dir, "UNBROKERED")?,
            guarded: open_hash(pin_dir, "GUARDED")?,
            policies: Policies::new(
                Mapped::new(&open_data(pin_dir, "POLICIES")?, "POLICIES", MAX_POLICIES)?,
                Mapped::new(&open_data(pin_dir, "ARENA")?, "ARENA", ARENA_BLOCKS)?,
                Mapped::new(&open_data(pin_dir, "META")?, "META", meta::COUNT)?,
            ),
            counters,
            // A predecessor may have freed slots just now.
            freed_session: Mutex::new(true),
            _lock: lock,
        };
        Ok(kernel)
    }

    /// Events that the programs report from now on, and those that nobody has read yet. One reader at a time.
    pub fn events(&self) -> Result<super::EventStream, KernelError> {
        let sessions = Mapped::new(&open_data(&self.pin_dir, "SESSIONS")?, "SESSIONS", MAX_SESSIONS)?;
        super::EventStream::open(open_map(&self.pin_dir, "EVENTS")?, sessions)
    }
}

pub(super) fn open_data(pin_dir: &Path, name: &str) -> Result<MapData, KernelError> {
    let path = pins::map(pin_dir, name);
    MapData::from_pin(&path).map_err(|source| KernelError::Pin { path, source: source.into() })
}

pub(super) fn open_map(pin_dir: &Path, name: &str) -> Result<aya::maps::Map, KernelError> {
    let path = pins::map(pin_dir, name);
    aya::maps::Map::from_map_data(open_data(pin_dir, name)?)
        .map_err(|source| KernelError::Pin { path, source: source.into() })
}

fn open_hash<K: Pod, V: Pod>(
    pin_dir: &Path,
    name: &'static str,
) -> Result<Mutex<HashMap<MapData, K, V>>, KernelError> {
    HashMap::try_from(open_map(pin_dir, name)?).map(Mutex::new).map_err(|source| KernelError::Map {
        map: name,
        action: "open",
        source: source.into(),
    })
}

fn choose_mode(wanted: Option<Mode>) -> Result<Mode, KernelError> {
    match wanted {
        Some(Mode::Tracepoint) => Ok(Mode::Tracepoint),
        Some(Mode::Lsm) => match probe::lsm_refusal() {
            None => Ok(Mode::Lsm),
            Some(reason) => Err(KernelError::NoLsm { reason }),
        },
        None => Ok(if probe::lsm_refusal().is_none() { Mode::Lsm } else { Mode::Tracepoint }),
    }
}

fn mode_word(mode: Mode) -> u64 {
    match mode {
        Mode::Lsm => meta::MODE_LSM,
        Mode::Tracepoint => meta::MODE_TRACEPOINT,
    }
}

fn read_meta(pin_dir: &Path) -> Option<Mapped<u64>> {
    Mapped::new(&open_data(pin_dir, "META").ok()?, "META", meta::COUNT).ok()
}

/// Maps of another version cannot be adopted. They go, unless somebody is still held by them.
fn discard_other_abi(pin_dir: &Path) -> Result<(), KernelError> {
    let Some(meta) = read_meta(pin_dir) else { return Ok(()) };
    let found = meta.read(meta::ABI);
    // 0: a first start that did not get to the end.
    if found == u64::from(ABI_VERSION) || found == 0 {
        return Ok(());
    }
    // Keys have been tgids in every version.
    let tasks = open_data(pin_dir, "TASKS").map_or(0, |map| entries(&map));
    if tasks > 0 {
        return Err(KernelError::OtherAbi { path: pin_dir.into(), found, needed: ABI_VERSION, tasks });
    }
    for generation in pins::generations(pin_dir)? {
        pins::remove_generation(pin_dir, generation)?;
    }
    for name in MAPS {
        let path = pins::map(pin_dir, name);
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(KernelError::Pin { path, source: error.into() });
            }
            _ => {}
        }
    }
    Ok(())
}

/// How many entries a hash map with 32-bit keys has, whatever its values are (other versions have others).
#[expect(unsafe_code, reason = "aya opens a map only if its values are of the size that it expects")]
fn entries(map: &MapData) -> usize {
    const BPF_MAP_GET_NEXT_KEY: libc::c_int = 4;
    /// The part of `union bpf_attr` that this command has.
    #[repr(C)]
    struct NextKey {
        map: u32,
        _pad: u32,
        key: u64,
        next: u64,
    }
    let (mut key, mut next) = (0_u32, 0_u32);
    let mut first = true;
    let mut count = 0;
    loop {
        let request = NextKey {
            map: map.fd().as_fd().as_raw_fd() as u32,
            _pad: 0,
            key: if first { 0 } else { (&raw const key) as u64 },
            next: (&raw mut next) as u64,
        };
        // SAFETY: both keys are valid for the four bytes that the kernel reads and writes.
        let status = unsafe {
            libc::syscall(libc::SYS_bpf, BPF_MAP_GET_NEXT_KEY, &raw const request, size_of::<NextKey>())
        };
        if status != 0 || count >= MAX_TASKS as usize {
            return count;
        }
        (key, first) = (next, false);
        count += 1;
    }
}

/// The generation that is attached, if it is complete and exactly what would be loaded.
fn adoptable(pin_dir: &Path, mode: Mode) -> Option<u64> {
    let meta = read_meta(pin_dir)?;
    let digest: [u64; 4] = std::array::from_fn(|i| meta.read(meta::DIGEST + i as u32));
    let same = meta.read(meta::ABI) == u64::from(ABI_VERSION)
        && meta.read(meta::MODE) == mode_word(mode)
        && digest == object::digest();
    let generation = meta.read(meta::GENERATION);
    let links = pins::links(pin_dir, generation);
    let complete = MAPS.iter().all(|name| pins::map(pin_dir, name).exists())
        && attach::names(mode).all(|name| links.join(name).exists());
    (same && complete).then_some(generation)
}

/// Loads the programs on the pinned maps and attaches them beside what is attached.
fn replace(pin_dir: &Path, mode: Mode, cgroup: Option<&Path>) -> Result<u64, KernelError> {
    let offsets = offsets::read()?;
    let cgroup = mounts::open_cgroup(cgroup)?;
    let mut ebpf = load_object(&offsets, Some(pin_dir), false)?;
    let generation = pins::generations(pin_dir)?.into_iter().max().unwrap_or(0) + 1;
    let meta = read_meta(pin_dir).ok_or(KernelError::Missing { name: "META" })?;
    let store = |index: u32, value: u64| meta.double_word(index, 0).store(value, Ordering::SeqCst);
    store(meta::ABI, u64::from(ABI_VERSION));
    let host = Mapped::<Host>::new(&open_data(pin_dir, "HOST")?, "HOST", 1)?;
    let limit = host.word(0, std::mem::offset_of!(Host, task_limit));
    let _ = limit.compare_exchange(0, TASKS_SOFT_LIMIT, Ordering::SeqCst, Ordering::SeqCst);
    let (links, programs) = (pins::links(pin_dir, generation), pins::programs(pin_dir, generation));
    if let Err(error) = attach::attach_all(&mut ebpf, mode, &cgroup, &links, &programs) {
        pins::remove_generation(pin_dir, generation)?;
        return Err(error);
    }
    // Digest last: if this process ends before that, the next one sees programs that it does not know, and
    // replaces them again.
    store(meta::MODE, mode_word(mode));
    store(meta::GENERATION, generation);
    for (i, word) in object::digest().into_iter().enumerate() {
        store(meta::DIGEST + i as u32, word);
    }
    Ok(generation)
}

/// Parses the object and makes its maps: pinned below `pin_dir` (or taken from there), or small and private.
pub(super) fn load_object(
    offsets: &Offsets,
    pin_dir: Option<&Path>,
    questions: bool,
) -> Result<Ebpf, KernelError> {
    let cpus = aya::util::nr_cpus()
        .map_err(|(path, source)| KernelError::Pin { path: path.into(), source: source.into() })?;
    let fields = fields::read()?;
    let devices = fields::guarded_devices(pin_dir, mounts::cgroup2().as_deref());
    let mut loader = EbpfLoader::new();
    loader
        .override_global("OFFSETS", offsets, true)
        .override_global("FIELDS", &fields, true)
        .override_global("GUARDED_DEVICES", &devices, true)
        .map_max_entries("SCRATCH", u32::try_from(cpus).unwrap_or(u32::MAX) * AREAS_PER_CPU);
    match pin_dir {
        Some(pin_dir) => {
            for name in MAPS {
                loader.map_pin_path(name, pins::map(pin_dir, name));
            }
            loader.map_max_entries("QUESTIONS", 1);
        }
        // Whole and private.
        None if questions => {}
        None => {
            loader.map_max_entries("QUESTIONS", 1);
            loader.map_max_entries("ARENA", 1).map_max_entries("EVENTS", 4096).map_max_entries("TASKS", 1);
            loader
                .map_max_entries("TAGGED", 1)
                .map_max_entries("GUARDED", 1)
                .map_max_entries("UNBROKERED", 1)
                .map_max_entries("ENDED", 1)
                .map_max_entries("SOCKETS", 1024);
        }
    }
    loader.load(object::bytes()).map_err(|error| KernelError::Load(error.into()))
}

impl Kernel {
    /// No more counts the processes that ended before the programs were attached: nobody may have seen them go.
    fn forget_ended(&self) -> Result<(), KernelError> {
        self.drop_ended(|_| true)
    }

    /// No more counts the ended processes whose number no process has any more, should no hook have seen them go: a number
    /// that is free cannot be used up. To be called now and then.
    pub fn sweep_ended(&self) -> Result<(), KernelError> {
        if self.host.word(0, std::mem::offset_of!(Host, ended)).load(Ordering::SeqCst) == 0 {
            return Ok(());
        }
        self.drop_ended(|process| !Path::new("/proc").join(process.tgid.to_string()).exists())
    }

    fn drop_ended(&self, is_gone: impl Fn(&Ended) -> bool) -> Result<(), KernelError> {
        let failed = |action, source: aya::maps::MapError| KernelError::Map {
            map: "ENDED",
            action,
            source: source.into(),
        };
        let mut ended = HashMap::<MapData, u64, Ended>::try_from(open_map(&self.pin_dir, "ENDED")?)
            .map_err(|source| failed("open", source))?;
        // The kernel begins anew when the entry just looked at goes meanwhile: bounded, so that no session that forks and forks
        // can keep the sensor here. What is missed waits for the next sweep.
        let all: Vec<(u64, Ended)> = ended.iter().take(MAX_ENDED as usize).flatten().collect();
        for (leader, process) in all.into_iter().filter(|(_, process)| is_gone(process)) {
            // Whoever removes it counts it: the hook may be first.
            if ended.remove(&leader).is_ok() {
                self.count_ended_down(process.session, process.slot);
            }
        }
        Ok(())
    }

    /// Removes tags of processes that ended while nothing was attached, and counts anew.
    fn sweep(&self) -> Result<(), KernelError> {
        for task in self.tasks()? {
            if !Path::new("/proc").join(task.tgid.to_string()).exists() {
                self.untag(task.tgid)?;
            }
        }
        Ok(())
    }
}
