//! Work areas: what does not fit on the 512-byte stack.
//!
//! Programs can be preempted, and another task on the same CPU may then run the same program, so a plain per-CPU
//! map would mix up two processes' paths. Each CPU has [`PER_CPU`] areas; a program claims one with an atomic add
//! and gives it back. When all are taken, the action is denied ([`cause::BUSY`]).

use aya_ebpf::helpers::generated::bpf_get_smp_processor_id;
use sallyport_sensor_abi::{
    ARGS_BYTES, PATH_BYTES,
    event::{Exec, Header},
    names::{Inode, NAMES_JUDGED},
    session::Tag,
};

use crate::{atomic::add32, maps::SCRATCH, read::next};

/// Areas per CPU.
pub(crate) const PER_CPU: u32 = 4;

/// Longest name of one directory entry (`NAME_MAX`), and the mask that keeps a length within it.
pub(crate) const NAME_MASK: u32 = 0xff;

/// Event bytes: what is sent is a prefix of this.
#[repr(C)]
pub(crate) struct Message {
    /// Common part.
    pub(crate) header: Header,
    /// Exec part.
    pub(crate) exec: Exec,
    /// Path, then arguments; twice of each, which is what the verifier believes after a mask.
    pub(crate) tail: [u8; 2 * PATH_BYTES + 2 * ARGS_BYTES],
}

/// A registered name that the walk met.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct Hit {
    /// Key in `NAMES`.
    pub(crate) inode: Inode,
    /// Where the path began in [`Scratch::bytes`] when the walk was there: what follows the name.
    pub(crate) from: u32,
    /// Always zero.
    pub(crate) _pad: u32,
}

/// One work area.
#[repr(C)]
pub(crate) struct Scratch {
    /// 0: free. More than 1 only for an instant, by somebody who then looks elsewhere.
    claim: u32,
    /// Index of the compiled policy that judges.
    pub(crate) policy: u32,
    /// Which automaton runs: [`crate::judge::PATH`] and the like.
    pub(crate) automaton: u32,
    /// Its state.
    pub(crate) state: u32,
    /// Where the automaton reads in [`Self::bytes`].
    pub(crate) from: u32,
    /// How many bytes are left for it.
    pub(crate) left: u32,
    /// Where the path begins in [`Self::bytes`]; it grows downwards from [`PATH_BYTES`].
    pub(crate) path: u32,
    /// [`sallyport_sensor_abi::event::EXEC_FILELESS`] and the like.
    pub(crate) flags: u32,
    /// Path walk: where it is.
    pub(crate) dentry: u64,
    /// Path walk: the `vfsmount` that it is in.
    pub(crate) mount: u64,
    /// Path walk: the root of that mount.
    pub(crate) root: u64,
    /// Inode number of the executable.
    pub(crate) inode: u64,
    /// Its device.
    pub(crate) device: u32,
    /// Components of the path so far.
    pub(crate) depth: u32,
    /// Mode of the file; 0: it does not exist.
    pub(crate) mode: u32,
    /// Where the walk ended: [`crate::path::IN_TREE`] and the like.
    pub(crate) place: u32,
    /// Path walk: the root of the first mount that shows only a part of its file system; 0: none.
    pub(crate) part: u64,
    /// Where the path began when the walk was there.
    pub(crate) part_from: u32,
    /// Registered names met, at most [`NAMES_JUDGED`].
    pub(crate) hits: u32,
    /// Flags of all registered names met.
    pub(crate) name_flags: u32,
    /// Bytes of path in the message's tail.
    pub(crate) kept: u32,
    /// The tag of the process that acts, for what is reported by a subprogram.
    pub(crate) tag: Tag,
    /// Where the arguments of the program that starts are; 0: not known.
    pub(crate) args_start: u64,
    /// How many bytes they are.
    pub(crate) args_total: u32,
    /// Judgement of files: the session is only watched.
    pub(crate) monitored: u32,
    /// Generation of the policy that judges.
    pub(crate) generation: u64,
    /// Judgement of files: the words for the two operations.
    pub(crate) words: [u32; 2],
    /// Judgement of files: what they are due to.
    pub(crate) cause: u32,
    /// Always zero.
    pub(crate) _pad: u32,
    /// The first registered names met.
    pub(crate) hit: [Hit; NAMES_JUDGED as usize],
    /// Symbols of the automaton over arguments.
    pub(crate) symbols: [u8; 256],
    /// Path (ending at [`PATH_BYTES`]), room for one more name that the verifier thinks possible, then a chunk of
    /// arguments at [`CHUNK_AT`].
    pub(crate) bytes: [u8; BYTES],
    /// The event.
    pub(crate) message: Message,
}

/// Where argument chunks are in [`Scratch::bytes`].
pub(crate) const CHUNK_AT: u32 = PATH_BYTES as u32 + 256;

/// Keeps an offset into [`Scratch::bytes`] in bounds, in a way that the verifier understands.
pub(crate) const FROM_MASK: u64 = 0x3fff;

/// Size of [`Scratch::bytes`].
pub(crate) const BYTES: usize = FROM_MASK as usize + 1 + crate::judge::STEP as usize;

const _: () = assert!(CHUNK_AT as usize + 2 * ARGS_BYTES <= BYTES);

/// Claims an area of this CPU. The index is what subprograms take, since they may only be passed numbers.
#[inline(always)]
pub(crate) fn claim() -> Option<(u32, *mut Scratch)> {
    // SAFETY: no preconditions.
    let first = unsafe { bpf_get_smp_processor_id() } * PER_CPU;
    let mut turn = 0;
    while turn < PER_CPU {
        let index = first + turn;
        let area = SCRATCH.get_ptr_mut(index)?;
        // SAFETY: an entry of an array map is valid while the program runs.
        unsafe { add32(&raw mut (*area).claim, 1) };
        // Kernels before 5.12 cannot fetch and add at once. It is ours only if nobody else counted in between
        // or before: a program that reads 1 knows that all others will read at least 2 until it gives back.
        // SAFETY: as above.
        if unsafe { core::ptr::read_volatile(&raw const (*area).claim) } == 1 {
            return Some((index, area));
        }
        release(area);
        turn = next(turn);
    }
    None
}

/// Gives an area back.
#[inline(always)]
pub(crate) fn release(area: *mut Scratch) {
    // SAFETY: as in `claim`.
    unsafe { add32(&raw mut (*area).claim, u32::MAX) };
}
