//! The calling program: the executable of the process that acts, as a class of its policy's automaton.
//!
//! The class is found when the program starts and kept in the tag; with another policy it is found again, from the
//! process's memory map, which only a program with `CAP_SYS_RESOURCE` can make name another file
//! (`PR_SET_MM_EXE_FILE`, which the kernel allows once nothing of the old one is mapped).

use aya_ebpf::helpers::bpf_get_current_pid_tgid;
use sallyport_sensor_abi::{event::cause, session::Tag};

use crate::{
    judge::{self, CALLER, FAILED, Judge},
    maps::{POLICIES, TASKS},
    path,
    read::{self, Address, Unreadable, offset},
    scratch,
};

/// A tag's generation when its class could not be found: no policy has it. 0 is the tag of a process that has not
/// started a program in its session.
pub(crate) const NOT_FOUND: u64 = u64::MAX;

/// The class of the program that the current process runs; 0 if rules know no callers.
#[inline(always)]
pub(crate) fn class(judge: &Judge, tag: &Tag) -> Result<u32, u32> {
    // SAFETY: the policy is an entry of an array map.
    if unsafe { (*judge.policy).caller.classes } <= 1 {
        return Ok(0);
    }
    if tag.caller_generation == judge.generation {
        return Ok(tag.caller);
    }
    match find(judge.slot) {
        class if class & FAILED == 0 => Ok(class),
        failed => Err(failed & !FAILED),
    }
}

/// Finds the class under the policy in `slot` and keeps it in the tag. With [`FAILED`]: one of [`cause`].
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn find(slot: u32) -> u32 {
    let Some(policy) = POLICIES.get_ptr(slot) else { return FAILED | cause::NO_POLICY };
    // SAFETY: an entry of an array map. Volatile: user space writes to it.
    let generation = unsafe { core::ptr::read_volatile(&raw const (*policy).generation) };
    let Some((index, area)) = scratch::claim() else { return FAILED | cause::BUSY };
    let found = match executable() {
        Ok(file) => path::resolve_file(index, area, file).and_then(|()| {
            // SAFETY: claimed above.
            unsafe { (*area).policy = slot };
            judge::path_class(index, CALLER).ok_or(cause::READ_FAILED)
        }),
        Err(Unreadable) => Err(cause::READ_FAILED),
    };
    scratch::release(area);
    match found {
        Ok(class) => {
            keep((bpf_get_current_pid_tgid() >> 32) as u32, class, generation);
            class
        }
        Err(cause) => FAILED | cause,
    }
}

/// The file that the current process runs.
#[inline(always)]
fn executable() -> Result<Address, Unreadable> {
    // SAFETY: offsets point into `OFFSETS`.
    unsafe {
        let mm: Address = read::kernel(read::current_task() + offset!(task_struct_mm))?;
        read::kernel(mm + offset!(mm_struct_exe_file))
    }
}

/// Keeps a class in a process's tag.
#[inline(always)]
pub(crate) fn keep(tgid: u32, class: u32, generation: u64) {
    if let Some(tag) = TASKS.get_ptr_mut(tgid) {
        // Not for an instant the new generation with the old class. Threads of one process run one program, so they
        // write the same.
        // SAFETY: an entry of a map; freed only after this program ends, or used for another process, whose fork
        // writes it anew.
        unsafe {
            core::ptr::write_volatile(&raw mut (*tag).caller_generation, NOT_FOUND);
            core::ptr::write_volatile(&raw mut (*tag).caller, class);
            core::ptr::write_volatile(&raw mut (*tag).caller_generation, generation);
        }
    }
}
