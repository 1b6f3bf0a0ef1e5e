//! The maps. User space pins them by these names; keys, values and sizes are in `sallyport-sensor-abi`.

use aya_ebpf::{
    macros::map,
    maps::{Array, HashMap, PerCpuArray, RingBuf},
};
use sallyport_sensor_abi::{
    ARENA_BLOCKS, ArenaBlock, MAX_POLICIES, MAX_SESSIONS, MAX_TASKS, RING_BYTES,
    event::COUNTERS as N_COUNTERS,
    kernel::meta,
    policy::PolicyHeader,
    session::{Host, Session, Tag},
};

use crate::scratch::Scratch;

/// `BPF_F_MMAPABLE` (5.5): user space writes single words in place instead of replacing entries.
const MMAPABLE: u32 = 1 << 10;

/// The tag of each tagged process, by tgid.
#[map]
pub(crate) static TASKS: HashMap<u32, Tag> = HashMap::with_max_entries(MAX_TASKS, 0);
/// Sessions, by slot.
#[map]
pub(crate) static SESSIONS: Array<Session> = Array::with_max_entries(MAX_SESSIONS, MMAPABLE);
/// The host's own limits, one entry.
#[map]
pub(crate) static HOST: Array<Host> = Array::with_max_entries(1, MMAPABLE);
/// Compiled policies, by slot.
#[map]
pub(crate) static POLICIES: Array<PolicyHeader> = Array::with_max_entries(MAX_POLICIES, MMAPABLE);
/// The tables of all compiled policies.
#[map]
pub(crate) static ARENA: Array<ArenaBlock> = Array::with_max_entries(ARENA_BLOCKS, MMAPABLE);
/// Events to user space.
#[map]
pub(crate) static EVENTS: RingBuf = RingBuf::with_byte_size(RING_BYTES, 0);
/// Events seen and lost, by kind.
#[map]
pub(crate) static COUNTERS: PerCpuArray<u64> = PerCpuArray::with_max_entries(N_COUNTERS, 0);
/// Work areas; the loader sets the number to CPUs × [`crate::scratch::PER_CPU`].
#[map]
pub(crate) static SCRATCH: Array<Scratch> = Array::with_max_entries(crate::scratch::PER_CPU, 0);
/// What the loader notes about itself; no program reads it.
#[map]
static META: Array<u64> = Array::with_max_entries(meta::COUNT, MMAPABLE);

/// The tag of a process: the one lookup that every process of the host pays for.
#[inline(always)]
pub(crate) fn tag_of(tgid: u32) -> Option<Tag> {
    // SAFETY: copied at once, before the entry can be used for another process.
    unsafe { TASKS.get(tgid) }.copied()
}
