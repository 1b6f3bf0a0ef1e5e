//! What is pinned, looked at from outside: for `sallyport-sensor doctor`, which runs beside the sensor in charge and changes
//! nothing.

use std::path::Path;

use aya::Pod;
use aya::maps::{HashMap, Map, MapData, PerCpuArray};
use sallyport_sensor_abi::event::{COUNTERS, kind};
use sallyport_sensor_abi::kernel::meta;
use sallyport_sensor_abi::names::{Inode, MAX_NAMES, Name};
use sallyport_sensor_abi::policy::PolicyHeader;
use sallyport_sensor_abi::session::{
    HOST_UNBROKERED, Host, MAX_ACCOUNTS, MAX_GUARDED, SESSION_SEALED, Session, Unbrokered,
};
use sallyport_sensor_abi::{
    ABI_VERSION, ARENA_BLOCK, ARENA_BLOCKS, ArenaBlock, MAX_POLICIES, MAX_SESSIONS, TASKS_SOFT_LIMIT,
};

use super::arena::{Arena, Region};
use super::mapped::Mapped;
use super::{KernelError, KindCounters, Mode, attach, load, object, pins, policies, stats};

/// How full something is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub struct Fill {
    /// Of what.
    pub what: &'static str,
    /// How many there are.
    pub used: u64,
    /// How many there can be.
    pub limit: u64,
}

/// Events of a kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub struct KindLoss {
    /// Which.
    pub kind: &'static str,
    /// Seen and lost.
    #[serde(flatten)]
    pub counters: KindCounters,
}

/// What was found below the folder of pins.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize)]
pub struct PinnedState {
    /// Version of the maps.
    pub abi: u64,
    /// This sensor can take them over.
    pub abi_fits: bool,
    /// How the programs enforce.
    pub mode: Option<Mode>,
    /// A sensor is in charge now.
    pub in_charge: bool,
    /// The programs are the ones in this sensor.
    pub same_programs: bool,
    /// Programs of that mode that are not attached any more.
    pub detached: Vec<&'static str>,
    /// Programs that the kernel left out, and how often: they were running on that processor already.
    pub missed: Vec<(&'static str, u64)>,
    /// How full the maps are.
    pub fill: Vec<Fill>,
    /// Policies that are half-written or damaged, in sentences.
    pub damaged: Vec<String>,
    /// Events, by kind.
    pub events: Vec<KindLoss>,
    /// Nanoseconds since the sensor's last sign of life; none: it never gave one.
    pub silent_ns: Option<u64>,
    /// After how much silence sessions can start nothing new; none: never.
    pub grace_ns: Option<u64>,
    /// Log-ins outside of the gateway are tagged.
    pub unbrokered: bool,
    /// Sessions that were sealed and still have processes.
    pub sealed: usize,
}

/// Looks. `None`: nothing is pinned there.
///
/// # Errors
/// Something is there that cannot be read.
pub fn inspect(pin_dir: &Path) -> Result<Option<PinnedState>, KernelError> {
    if !pins::map(pin_dir, "META").exists() {
        return Ok(None);
    }
    let meta = Mapped::<u64>::new(&load::open_data(pin_dir, "META")?, "META", meta::COUNT)?;
    let abi = meta.read(meta::ABI);
    let in_charge = pins::in_charge(pin_dir);
    if abi != u64::from(ABI_VERSION) {
        return Ok(Some(PinnedState { abi, in_charge, ..PinnedState::default() }));
    }
    let mode = match meta.read(meta::MODE) {
        meta::MODE_LSM => Some(Mode::Lsm),
        meta::MODE_TRACEPOINT => Some(Mode::Tracepoint),
        _ => None,
    };
    let links = pins::links(pin_dir, meta.read(meta::GENERATION));
    let programs = pins::programs(pin_dir, meta.read(meta::GENERATION));
    let expected: Vec<&'static str> = mode.map_or_else(Vec::new, |mode| attach::names(mode).collect());
    let digest: [u64; 4] = std::array::from_fn(|i| meta.read(meta::DIGEST + i as u32));
    let host = Mapped::<Host>::new(&load::open_data(pin_dir, "HOST")?, "HOST", 1)?.read(0);
    let sessions: Mapped<Session> =
        Mapped::new(&load::open_data(pin_dir, "SESSIONS")?, "SESSIONS", MAX_SESSIONS)?;
    let sessions: Vec<Session> =
        (0..MAX_SESSIONS).map(|slot| sessions.read(slot)).filter(|session| session.number != 0).collect();
    let headers: Mapped<PolicyHeader> =
        Mapped::new(&load::open_data(pin_dir, "POLICIES")?, "POLICIES", MAX_POLICIES)?;
    let arena: Mapped<ArenaBlock> = Mapped::new(&load::open_data(pin_dir, "ARENA")?, "ARENA", ARENA_BLOCKS)?;
    let headers: Vec<PolicyHeader> = (0..MAX_POLICIES).map(|slot| headers.read(slot)).collect();
    let loaded = || headers.iter().filter(|header| header.generation != 0);
    // Policies with the same tables share them.
    let regions: std::collections::BTreeSet<(u32, u32)> = loaded()
        .map(|header| Region::of(header.base, header.words))
        .map(|region| (region.block, region.blocks))
        .collect();
    let blocks: u64 = regions.iter().map(|(_, blocks)| u64::from(*blocks)).sum();
    let task_limit = if host.task_limit == 0 { TASKS_SOFT_LIMIT } else { host.task_limit };
    let full = |what, used: usize, limit: u32| Fill { what, used: used as u64, limit: limit.into() };
    let fill = vec![
        full("processes", host.tasks as usize, task_limit),
        full("sessions", sessions.len(), MAX_SESSIONS),
        full("compiled policies", loaded().count(), MAX_POLICIES),
        Fill {
            what: "words of compiled tables",
            used: blocks * u64::from(ARENA_BLOCK),
            limit: u64::from(ARENA_BLOCKS) * u64::from(ARENA_BLOCK),
        },
        full("registered names", count::<Inode, Name>(pin_dir, "NAMES")?, MAX_NAMES),
        full("guarded processes", count::<u32, u64>(pin_dir, "GUARDED")?, MAX_GUARDED),
        full("accounts of log-ins", count::<u32, Unbrokered>(pin_dir, "UNBROKERED")?, MAX_ACCOUNTS),
    ];
    let now = crate::clock::boot_ns();
    Ok(Some(PinnedState {
        abi,
        abi_fits: true,
        mode,
        in_charge,
        same_programs: digest == object::digest(),
        missed: expected
            .iter()
            .filter_map(|name| {
                Some((*name, stats::missed(&programs.join(name)).filter(|missed| *missed > 0)?))
            })
            .collect(),
        detached: expected.into_iter().filter(|name| !links.join(name).exists()).collect(),
        fill,
        damaged: damaged(&sessions, &headers, &arena),
        events: events(pin_dir)?,
        silent_ns: (host.alive != 0).then(|| now.saturating_sub(host.alive)),
        grace_ns: (host.grace != 0).then_some(host.grace),
        unbrokered: host.flags & HOST_UNBROKERED != 0,
        sealed: sessions.iter().filter(|s| s.flags & SESSION_SEALED != 0 && s.tasks > 0).count(),
    }))
}

/// Policies that cannot judge: everything that they are asked is denied.
fn damaged(sessions: &[Session], headers: &[PolicyHeader], arena: &Mapped<ArenaBlock>) -> Vec<String> {
    let mut found = Vec::new();
    for session in sessions {
        let loaded = headers.get(session.policy as usize).is_some_and(|header| header.generation != 0);
        if !loaded {
            found.push(format!(
                "session number {} has policy slot {}, which is empty or half-written",
                session.number, session.policy
            ));
        }
    }
    let (mut book, _) = Arena::rebuild(ARENA_BLOCKS, []);
    for (slot, header) in headers.iter().enumerate().filter(|(_, header)| header.generation != 0) {
        let generation = header.generation;
        let region = Region::of(header.base, header.words);
        if !book.claim(region) {
            found.push(format!(
                "policy generation {generation} (slot {slot}) lies outside the tables or over another policy"
            ));
            continue;
        }
        if let Err(error) = policies::check(header, &words(header, region, arena)) {
            found.push(format!("policy generation {generation} (slot {slot}): {error}"));
        }
    }
    found
}

fn words(header: &PolicyHeader, region: Region, arena: &Mapped<ArenaBlock>) -> Vec<u32> {
    let mut words: Vec<u32> =
        (region.block..region.block + region.blocks).flat_map(|block| arena.read(block)).collect();
    words.truncate(header.words as usize);
    words
}

fn count<K: Pod, V: Pod>(pin_dir: &Path, name: &'static str) -> Result<usize, KernelError> {
    let map = HashMap::<MapData, K, V>::try_from(load::open_map(pin_dir, name)?)
        .map_err(|source| KernelError::Map { map: name, action: "open", source: source.into() })?;
    Ok(map.keys().flatten().count())
}

fn events(pin_dir: &Path) -> Result<Vec<KindLoss>, KernelError> {
    let failed = |source: aya::maps::MapError| KernelError::Map {
        map: "COUNTERS",
        action: "read",
        source: source.into(),
    };
    let map: Map = load::open_map(pin_dir, "COUNTERS")?;
    let counters = PerCpuArray::<MapData, u64>::try_from(map).map_err(failed)?;
    let sum = |index: u32| -> Result<u64, KernelError> {
        Ok(counters.get(&index, 0).map_err(failed)?.iter().sum())
    };
    let kinds = [
        (kind::FORK, "fork"),
        (kind::EXEC, "exec"),
        (kind::EXIT, "exit"),
        (kind::CONNECT, "connect"),
        (kind::FILE, "file"),
        (kind::SYSTEM, "system"),
    ];
    const _: () = assert!(COUNTERS == 7 * 2);
    kinds
        .into_iter()
        .map(|(number, kind)| {
            let lost = sum(number * 2 + 1)?;
            Ok(KindLoss { kind, counters: KindCounters { seen: sum(number * 2)?, lost } })
        })
        .collect()
}
