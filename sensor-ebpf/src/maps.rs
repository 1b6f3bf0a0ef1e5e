//! The maps. User space pins them by these names; keys, values and sizes are in `sallyport-sensor-abi`.

use aya_ebpf::{
    macros::map,
    maps::{Array, HashMap, PerCpuArray, RingBuf},
};
use sallyport_sensor_abi::{
    ARENA_BLOCKS, ArenaBlock, MAX_POLICIES, MAX_SESSIONS, MAX_TASKS, RING_BYTES,
    event::COUNTERS as N_COUNTERS,
    kernel::meta,
    names::{Inode, MAX_NAMES, NAMED_WORDS, Name},
    policy::PolicyHeader,
    question::{BATCH, Question},
    session::{
        Ended, Host, MAX_ACCOUNTS, MAX_ENDED, MAX_GUARDED, Session, TAGGED_WORDS, Tag, Unbrokered,
    },
};

use crate::{atomic::add64, scratch::Scratch};

/// `BPF_F_MMAPABLE` (5.5): user space writes single words in place instead of replacing entries.
const MMAPABLE: u32 = 1 << 10;
/// `BPF_F_NO_PREALLOC`: entries take memory only while they are there.
const NO_PREALLOC: u32 = 1;

/// The tag of each tagged process, by tgid.
#[map]
pub(crate) static TASKS: HashMap<u32, Tag> = HashMap::with_max_entries(MAX_TASKS, 0);
/// A bit for each process number: set as long as it has an entry in [`TASKS`].
#[map]
pub(crate) static TAGGED: Array<u64> = Array::with_max_entries(TAGGED_WORDS, MMAPABLE);
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
/// Registered names, by inode.
#[map]
pub(crate) static NAMES: HashMap<Inode, Name> = HashMap::with_max_entries(MAX_NAMES, NO_PREALLOC);
/// A bit for some inode numbers; clear: none of them is in [`NAMES`].
#[map]
pub(crate) static NAMED: Array<u64> = Array::with_max_entries(NAMED_WORDS, MMAPABLE);
/// Sessions of log-ins that did not come through a gateway, by login uid.
#[map]
pub(crate) static UNBROKERED: HashMap<u32, Unbrokered> = HashMap::with_max_entries(MAX_ACCOUNTS, 0);
/// Processes that no tagged process may touch, with their start times.
#[map]
pub(crate) static GUARDED: HashMap<u32, u64> = HashMap::with_max_entries(MAX_GUARDED, 0);
/// Tagged processes that ended and that nobody has waited for yet, by the address of their first thread.
#[map]
pub(crate) static ENDED: HashMap<u64, Ended> = HashMap::with_max_entries(MAX_ENDED, 0);
/// Questions of tests; see [`sallyport_sensor_abi::question`]. The loader leaves one entry where nobody asks.
#[map]
pub(crate) static QUESTIONS: Array<Question> = Array::with_max_entries(BATCH, MMAPABLE);
/// What the loader notes about itself; no program reads it.
#[map]
static META: Array<u64> = Array::with_max_entries(meta::COUNT, MMAPABLE);

/// The word of [`TAGGED`] that a process's bit is in, and the bit.
#[inline(always)]
fn tagged(tgid: u32) -> Option<(*mut u64, u64)> {
    Some((TAGGED.get_ptr_mut(tgid / 64)?, 1 << (tgid % 64)))
}

/// The tag of a process. For every process outside of sessions this is one bit of an array.
#[inline(always)]
pub(crate) fn tag_of(tgid: u32) -> Option<Tag> {
    let (word, bit) = tagged(tgid)?;
    // SAFETY: an entry of an array map is valid while the program runs. Volatile: others change it.
    if unsafe { core::ptr::read_volatile(word) } & bit == 0 {
        return None;
    }
    // SAFETY: copied at once, before the entry can be used for another process.
    unsafe { TASKS.get(tgid) }.copied()
}

/// Whether a process has a tag, for what takes only the bit.
#[inline(always)]
pub(crate) fn is_tagged(tgid: u32) -> bool {
    // SAFETY: as in `tag_of`.
    tagged(tgid).is_some_and(|(word, bit)| unsafe { core::ptr::read_volatile(word) } & bit != 0)
}

/// Sets a process's bit, after its entry was inserted into [`TASKS`] by the caller.
#[inline(always)]
pub(crate) fn mark(tgid: u32) {
    if let Some((word, bit)) = tagged(tgid) {
        // Adding to a bit that is set would spoil its neighbours. Nobody else sets or clears this one meanwhile:
        // that is for whoever inserted or removed the entry.
        // SAFETY: as in `tag_of`; changed atomically only.
        unsafe {
            if core::ptr::read_volatile(word) & bit == 0 {
                add64(word, bit);
            }
        }
    }
}

/// Clears a process's bit, after its entry was removed from [`TASKS`] by the caller.
#[inline(always)]
pub(crate) fn unmark(tgid: u32) {
    if let Some((word, bit)) = tagged(tgid) {
        // SAFETY: as in `mark`.
        unsafe {
            if core::ptr::read_volatile(word) & bit != 0 {
                add64(word, bit.wrapping_neg());
            }
        }
    }
}
