//! Decisions about a script that only its arguments can bring, until they are there.
//!
//! `bprm_check_security` runs for the script, and then for its interpreter; `sched_process_exec`, where the arguments can
//! be read, knows only the interpreter. So what is open after the path of each file is noted here, by process, and judged
//! there. The kernel holds `cred_guard_mutex` of the process from before the first note until there is only one thread
//! left, so two threads' programs are never mixed up.
//!
//! The arguments are those of the program that starts: the interpreter, the argument behind `#!` if there is one, the
//! script's path, the script's own arguments. Rules on the script see all of them.

use aya_ebpf::{helpers::bpf_get_current_pid_tgid, macros::map, maps::LruHashMap};
use sallyport_sensor_abi::session::{MAX_PENDING, PENDING_PROGRAMS, Pending, Tag};

use crate::{
    fields::field,
    maps::TASKS,
    read::{self, Address, Unreadable},
};

/// Rows of arguments that are to be judged at `sched_process_exec`, by tgid.
#[map]
static PENDING: LruHashMap<u32, Pending> = LruHashMap::with_max_entries(PENDING_PROGRAMS, 0);

/// Whether the file that `bprm` has now is the one that was asked for: no interpreter of it, not even in the making.
#[inline(always)]
pub(crate) fn is_first(bprm: Address) -> Result<bool, Unreadable> {
    // SAFETY: points into `FIELDS`.
    unsafe {
        let name: Address = read::kernel(bprm + field!(linux_binprm_filename))?;
        Ok(name == read::kernel::<Address>(bprm + field!(linux_binprm_interp))?)
    }
}

/// Forgets what was noted for the current process.
#[inline(always)]
pub(crate) fn forget(tgid: u32) {
    if let Some(tag) = TASKS.get_ptr_mut(tgid) {
        // SAFETY: an entry of a map, as in `caller::keep`.
        unsafe { core::ptr::write_volatile(&raw mut (*tag).pending, 0) };
    }
}

/// Notes a row of the policy of this generation for the current process. 0: done.
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn note_row(row: u32, generation: u64) -> u32 {
    u32::from(try_note(row, generation).is_none())
}

#[inline(always)]
fn try_note(row: u32, generation: u64) -> Option<()> {
    let tgid = (bpf_get_current_pid_tgid() >> 32) as u32;
    let tag: *mut Tag = TASKS.get_ptr_mut(tgid)?;
    // SAFETY: entries of maps, as in `caller::keep`; this process's own, see the module's text.
    unsafe {
        let count = core::ptr::read_volatile(&raw const (*tag).pending);
        if count == 0 {
            let mut first = Pending { generation, ..Pending::default() };
            first.rows[0] = row;
            PENDING.insert(tgid, first, 0).ok()?;
            core::ptr::write_volatile(&raw mut (*tag).pending, 1);
            return Some(());
        }
        let pending: *mut Pending = PENDING.get_ptr_mut(tgid)?;
        if (*pending).generation != generation || count >= MAX_PENDING as u32 {
            return None;
        }
        let rows = (&raw mut (*pending).rows).cast::<u32>();
        let mut at = 0;
        while at < MAX_PENDING as u32 {
            if at >= count {
                break;
            }
            if core::ptr::read_volatile(rows.add(at as usize)) == row {
                return Some(());
            }
            at = read::next(at);
        }
        let place = (read::opaque(u64::from(count)) & (MAX_PENDING as u64 - 1)) as usize;
        core::ptr::write_volatile(rows.add(place), row);
        core::ptr::write_volatile(&raw mut (*tag).pending, count + 1);
    }
    Some(())
}

/// In place of a row: it is gone, or of another policy.
pub(crate) const GONE: u32 = u32::MAX;

/// Row number `which` of the current process, under the policy of this generation.
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn pending_row(which: u32, generation: u64) -> u32 {
    let tgid = (bpf_get_current_pid_tgid() >> 32) as u32;
    let Some(pending) = PENDING.get_ptr(tgid) else { return GONE };
    let place = (read::opaque(u64::from(which)) & (MAX_PENDING as u64 - 1)) as usize;
    // SAFETY: an entry of a map; this process's own.
    unsafe {
        if (*pending).generation != generation {
            return GONE;
        }
        core::ptr::read_volatile((&raw const (*pending).rows).cast::<u32>().add(place))
    }
}
