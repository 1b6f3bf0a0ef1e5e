//! The decision: from a tag to its policy's tables, and through them to a word.
//!
//! The tables are described in `sensor-abi/src/policy.rs`. Functions marked `no_mangle` are verified once by
//! themselves, not once per call; they take and return only numbers, which is all that 5.10 allows there.

use aya_ebpf::helpers::generated::bpf_ktime_get_boot_ns;
use sallyport_sensor_abi::{
    ARENA_BLOCK, PATH_BYTES,
    event::cause,
    policy::{Automaton, DENY, END_SESSION, KILL, OBSERVED, PolicyHeader, QUIET, UNJUDGED, Word},
    session::{SESSION_MONITORED, SESSION_SEALED, Session, Tag},
};

use crate::{
    maps::{ARENA, HOST, POLICIES, SCRATCH, SESSIONS},
    read,
    scratch::{FROM_MASK, Scratch},
};

/// [`Scratch::automaton`]: over paths of programs.
pub(crate) const PATH: u32 = 0;
/// [`Scratch::automaton`]: over paths of files.
pub(crate) const FILE: u32 = 1;
/// [`Scratch::automaton`]: over paths of calling programs.
pub(crate) const CALLER: u32 = 2;
/// [`Scratch::automaton`]: the one whose symbols are in [`Scratch::symbols`]: over arguments.
pub(crate) const ARGS: u32 = 3;

/// What was decided.
#[derive(Clone, Copy)]
pub(crate) struct Verdict {
    /// The word from the tables, or [`UNJUDGED`].
    pub(crate) word: Word,
    /// One of [`cause`].
    pub(crate) cause: u32,
    /// The policy that decided.
    pub(crate) generation: u64,
}

impl Verdict {
    /// For events that are not judged.
    pub(crate) const NONE: Self = Self { word: 0, cause: cause::NONE, generation: 0 };

    /// Denied without a rule, in a session that is not only watched.
    #[inline(always)]
    pub(crate) const fn unjudged(cause: u32, generation: u64) -> Self {
        Self { word: DENY | UNJUDGED, cause, generation }
    }

    #[inline(always)]
    pub(crate) const fn denies(&self) -> bool {
        self.word & DENY != 0
    }

    /// Allowed, and not to be reported.
    #[inline(always)]
    pub(crate) const fn quiet(&self) -> bool {
        is_quiet(self.word)
    }
}

/// Allowed, and not to be reported.
#[inline(always)]
pub(crate) const fn is_quiet(word: Word) -> bool {
    word & (QUIET | DENY | OBSERVED | UNJUDGED) == QUIET
}

/// The policy that judges a process, and its slot.
#[derive(Clone, Copy)]
pub(crate) struct Judge {
    pub(crate) slot: u32,
    pub(crate) policy: *const PolicyHeader,
    pub(crate) generation: u64,
    /// The session is only watched: nothing is denied.
    pub(crate) monitored: bool,
}

impl Judge {
    /// The verdict that a word from the tables means in this session.
    #[inline(always)]
    pub(crate) const fn verdict(&self, word: Word) -> Verdict {
        Verdict { word: finish(self.monitored, word), cause: cause::NONE, generation: self.generation }
    }

    /// What could not be judged, in this session.
    #[inline(always)]
    pub(crate) const fn unjudged(&self, cause: u32) -> Verdict {
        Verdict { word: finish(self.monitored, DENY | UNJUDGED), cause, generation: self.generation }
    }
}

/// In a session that is only watched, a denial becomes an observation.
#[inline(always)]
pub(crate) const fn finish(monitored: bool, word: Word) -> Word {
    if monitored && word & DENY != 0 { word & !(DENY | KILL | END_SESSION) | OBSERVED } else { word }
}

/// The session of a tag, unless it is over.
#[inline(always)]
pub(crate) fn session(tag: &Tag) -> Option<*mut Session> {
    let session = SESSIONS.get_ptr_mut(tag.slot)?;
    // SAFETY: an entry of an array map is valid while the program runs. Volatile: user space writes to it.
    (unsafe { core::ptr::read_volatile(&raw const (*session).number) } == tag.session).then_some(session)
}

/// The policy of a tag, or the verdict without one.
#[inline(always)]
pub(crate) fn judge(tag: &Tag) -> Result<Judge, Verdict> {
    let session = session(tag).ok_or(Verdict::unjudged(cause::NO_POLICY, 0))?;
    // SAFETY: as above.
    let flags = unsafe { core::ptr::read_volatile(&raw const (*session).flags) };
    let monitored = flags & SESSION_MONITORED != 0;
    let without = |cause| Verdict { word: finish(monitored, DENY | UNJUDGED), cause, generation: 0 };
    if flags & SESSION_SEALED != 0 {
        return Err(without(cause::SEALED));
    }
    // SAFETY: as above; read once, since user space may swap it meanwhile.
    let slot = unsafe { core::ptr::read_volatile(&raw const (*session).policy) };
    let policy = POLICIES.get_ptr(slot).ok_or(without(cause::NO_POLICY))?;
    // SAFETY: as above.
    let generation = unsafe { core::ptr::read_volatile(&raw const (*policy).generation) };
    if generation == 0 {
        return Err(without(cause::NO_POLICY));
    }
    Ok(Judge { slot, policy, generation, monitored })
}

/// As [`judge`], for what starts something new: refused when the sensor has been silent for too long.
#[inline(always)]
pub(crate) fn judge_start(tag: &Tag) -> Result<Judge, Verdict> {
    let judge = judge(tag)?;
    if alive() { Ok(judge) } else { Err(judge.unjudged(cause::SENSOR_GONE)) }
}

/// The dead man's switch: whether the sensor said not too long ago that it is alive.
#[inline(always)]
pub(crate) fn alive() -> bool {
    let Some(host) = HOST.get_ptr(0) else { return false };
    // SAFETY: an entry of an array map. Volatile: user space writes to it.
    let (grace, alive) = unsafe {
        (
            core::ptr::read_volatile(&raw const (*host).grace),
            core::ptr::read_volatile(&raw const (*host).alive),
        )
    };
    if grace == 0 {
        return true;
    }
    // SAFETY: no preconditions.
    let now = unsafe { bpf_ktime_get_boot_ns() };
    // It may have been written just now, on another CPU.
    now <= alive || now - alive <= grace
}

/// [`HOST_UNBROKERED`](sallyport_sensor_abi::session::HOST_UNBROKERED) and the like.
#[inline(always)]
pub(crate) fn host_flags() -> u32 {
    // SAFETY: an entry of an array map. Volatile: user space writes to it.
    HOST.get_ptr(0).map_or(0, |host| unsafe { core::ptr::read_volatile(&raw const (*host).flags) })
}

/// The arena word at an absolute index.
#[inline(always)]
pub(crate) fn arena(index: u32) -> Option<u32> {
    let block = ARENA.get_ptr(index / ARENA_BLOCK)?;
    let word = (index % ARENA_BLOCK) as usize;
    // SAFETY: the block has `ARENA_BLOCK` words.
    Some(unsafe { *block.cast::<u32>().add(word) })
}

/// Where the arena word at an absolute index is in kernel memory.
#[inline(always)]
pub(crate) fn arena_address(index: u32) -> Option<read::Address> {
    let block = ARENA.get_ptr(index / ARENA_BLOCK)?;
    // SAFETY: the block has `ARENA_BLOCK` words.
    Some(unsafe { block.cast::<u32>().add((index % ARENA_BLOCK) as usize) } as read::Address)
}

/// Bytes that one call of [`feed`] takes at most.
pub(crate) const STEP: u32 = 64;

/// Lets the automaton of work area `index` read on. 0: fine; 1: a table pointed nowhere.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn feed(index: u32) -> u32 {
    match try_feed(index) {
        Some(()) => 0,
        None => 1,
    }
}

#[inline(always)]
fn try_feed(index: u32) -> Option<()> {
    let area = SCRATCH.get_ptr_mut(index)?;
    // SAFETY: the area was claimed by the caller; entries of array maps are valid while the program runs.
    let (slot, automaton, mut state, from) =
        unsafe { ((*area).policy, (*area).automaton, (*area).state, (*area).from) };
    let policy = POLICIES.get_ptr(slot)?;
    // SAFETY: as above.
    let base = unsafe { (*policy).base };
    // SAFETY: all are fields of the header or the area; picked by address so that the loop is there once.
    let symbols: *const u8 = unsafe {
        match automaton {
            PATH => (&raw const (*policy).path.symbols).cast(),
            FILE => (&raw const (*policy).file.symbols).cast(),
            CALLER => (&raw const (*policy).caller.symbols).cast(),
            _ => (&raw const (*area).symbols).cast(),
        }
    };
    let at = read::opaque(u64::from(from)) & FROM_MASK;
    // SAFETY: as above; `bytes` is longer than `FROM_MASK`.
    let bytes: *const u8 = unsafe { (&raw const (*area).bytes).cast::<u8>().add(at as usize) };
    let mut step = 0;
    while step < STEP {
        // Read anew in each turn: a bound that the compiler knew would let it count to that instead of to
        // `STEP`, and the verifier would see no end.
        // SAFETY: as above.
        if step >= unsafe { core::ptr::read_volatile(&raw const (*area).left) } {
            break;
        }
        // SAFETY: `bytes` has `STEP` bytes after whatever `FROM_MASK` leaves.
        let byte = unsafe { *bytes.add(step as usize) };
        // SAFETY: 256 symbols.
        let symbol = unsafe { *symbols.add(byte as usize) };
        state = arena(base.wrapping_add(state).wrapping_add(u32::from(symbol)))?;
        step = read::next(step);
    }
    // SAFETY: as above.
    unsafe {
        (*area).state = state;
        (*area).from = from.wrapping_add(step);
        (*area).left -= step;
    }
    Some(())
}

/// Bytes that [`run`] takes at most.
pub(crate) const RUN: u32 = 4096;

/// Lets the claimed area's automaton read `bytes[from..from + left]`, at most [`RUN`] bytes.
#[inline(always)]
pub(crate) fn run(index: u32) -> Option<()> {
    (feed_all(index) == 0).then_some(())
}

/// 0: all was read; 1: a table pointed nowhere, or it is too long.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn feed_all(index: u32) -> u32 {
    let Some(area) = SCRATCH.get_ptr_mut(index) else { return 1 };
    let mut steps = 0;
    while steps <= RUN / STEP {
        // SAFETY: the caller claimed `area`.
        if unsafe { core::ptr::read_volatile(&raw const (*area).left) } == 0 {
            return 0;
        }
        if feed(index) != 0 {
            return 1;
        }
        steps = read::next(steps);
    }
    1
}

/// The class at the end of what the automaton of the claimed area has read.
#[inline(always)]
pub(crate) fn class(area: *const Scratch, policy: *const PolicyHeader, eoi: u32) -> Option<u32> {
    // SAFETY: the caller claimed `area`; the policy is an entry of an array map.
    unsafe { arena((*policy).base.wrapping_add((*area).state).wrapping_add(eoi)) }
}

/// What [`classify`] returns instead of a class, which is never as large: a table pointed nowhere.
pub(crate) const FAILED: u32 = 1 << 31;

/// The class of the path in work area `index` under the automaton `which` of the policy that the area names.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn classify(index: u32, which: u32) -> u32 {
    try_classify(index, which).unwrap_or(FAILED)
}

#[inline(always)]
fn try_classify(index: u32, which: u32) -> Option<u32> {
    let area = SCRATCH.get_ptr_mut(index)?;
    // SAFETY: the area was claimed by the caller; entries of array maps are valid while the program runs.
    unsafe {
        let policy = POLICIES.get_ptr((*area).policy)?;
        let automaton: *const Automaton = match which {
            PATH => &raw const (*policy).path,
            FILE => &raw const (*policy).file,
            _ => &raw const (*policy).caller,
        };
        // Everything is alike.
        if (*automaton).classes <= 1 {
            return Some(0);
        }
        (*area).automaton = which;
        (*area).state = (*automaton).start;
        (*area).from = (*area).path;
        (*area).left = (PATH_BYTES as u32).wrapping_sub((*area).path);
        let eoi = (*automaton).stride.wrapping_sub(1);
        run(index)?;
        class(area, policy, eoi)
    }
}

/// The class of the path in the claimed area.
#[inline(always)]
pub(crate) fn path_class(index: u32, which: u32) -> Option<u32> {
    let class = classify(index, which);
    (class & FAILED == 0).then_some(class)
}

/// Follows `nibbles` nibbles of `bits`, most significant first, through the trie at `row` (absolute from `base`).
#[inline(always)]
pub(crate) fn trie(base: u32, mut row: u32, bits: u32, nibbles: u32) -> Option<u32> {
    let mut left = nibbles;
    while left > 0 {
        left -= 1;
        row = arena(base.wrapping_add(row).wrapping_add(bits >> (left * 4) & 15))?;
    }
    Some(row)
}
