//! The decision: from a tag to its policy's tables, and through them to a word.
//!
//! The tables are described in `sensor-abi/src/policy.rs`. Functions marked `no_mangle` are verified once by
//! themselves, not once per call; they take and return only numbers, which is all that 5.10 allows there.

use sallyport_sensor_abi::{
    ARENA_BLOCK,
    event::cause,
    policy::{DENY, PolicyHeader, UNJUDGED, Word},
    session::{SESSION_SEALED, Session, Tag},
};

use crate::{
    maps::{ARENA, POLICIES, SCRATCH, SESSIONS},
    read,
    scratch::FROM_MASK,
};

/// [`Scratch::automaton`]: over paths.
pub(crate) const PATH: u32 = 0;
/// [`Scratch::automaton`]: over arguments.
pub(crate) const ARGS: u32 = 1;

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

    /// Denied without a rule.
    #[inline(always)]
    pub(crate) const fn unjudged(cause: u32, generation: u64) -> Self {
        Self { word: DENY | UNJUDGED, cause, generation }
    }

    #[inline(always)]
    pub(crate) const fn denies(&self) -> bool {
        self.word & DENY != 0
    }
}

/// The policy that judges a process, and its slot.
#[derive(Clone, Copy)]
pub(crate) struct Judge {
    pub(crate) slot: u32,
    pub(crate) policy: *const PolicyHeader,
    pub(crate) generation: u64,
}

/// The session of a tag, unless it is over.
#[inline(always)]
pub(crate) fn session(tag: &Tag) -> Option<*mut Session> {
    let session = SESSIONS.get_ptr_mut(tag.slot)?;
    // SAFETY: an entry of an array map is valid while the program runs. Volatile: user space writes to it.
    (unsafe { core::ptr::read_volatile(&raw const (*session).number) } == tag.session).then_some(session)
}

/// The policy of a tag, or the cause for denying.
#[inline(always)]
pub(crate) fn judge(tag: &Tag) -> Result<Judge, u32> {
    let session = session(tag).ok_or(cause::NO_POLICY)?;
    // SAFETY: as above.
    let flags = unsafe { core::ptr::read_volatile(&raw const (*session).flags) };
    if flags & SESSION_SEALED != 0 {
        return Err(cause::SEALED);
    }
    // SAFETY: as above; read once, since user space may swap it meanwhile.
    let slot = unsafe { core::ptr::read_volatile(&raw const (*session).policy) };
    let policy = POLICIES.get_ptr(slot).ok_or(cause::NO_POLICY)?;
    // SAFETY: as above.
    let generation = unsafe { core::ptr::read_volatile(&raw const (*policy).generation) };
    if generation == 0 {
        return Err(cause::NO_POLICY);
    }
    Ok(Judge { slot, policy, generation })
}

/// The arena word at an absolute index.
#[inline(always)]
pub(crate) fn arena(index: u32) -> Option<u32> {
    let block = ARENA.get_ptr(index / ARENA_BLOCK)?;
    let word = (index % ARENA_BLOCK) as usize;
    // SAFETY: the block has `ARENA_BLOCK` words.
    Some(unsafe { *block.cast::<u32>().add(word) })
}

/// Bytes that one call of [`feed`] takes at most.
pub(crate) const STEP: u32 = 512;

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
    // SAFETY: both are fields of the header; picked by address so that the loop is there once.
    let symbols: *const u8 = unsafe {
        if automaton == PATH {
            (&raw const (*policy).path.symbols).cast()
        } else {
            (&raw const (*policy).args.symbols).cast()
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

/// Runs the claimed area's automaton over `bytes[from..from + left]`, at most `STEPS * 512` bytes.
#[inline(always)]
pub(crate) fn run<const STEPS: u32>(index: u32, area: *mut crate::scratch::Scratch) -> Option<()> {
    let mut steps = 0;
    while steps < STEPS {
        // SAFETY: the caller claimed `area`.
        if unsafe { core::ptr::read_volatile(&raw const (*area).left) } == 0 {
            return Some(());
        }
        if feed(index) != 0 {
            return None;
        }
        steps = read::next(steps);
    }
    // SAFETY: as above.
    (unsafe { core::ptr::read_volatile(&raw const (*area).left) } == 0).then_some(())
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
