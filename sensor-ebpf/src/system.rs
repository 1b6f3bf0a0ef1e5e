//! Action `system`: what a process asks of the kernel or does to another process.
//!
//! Hooks find out what is asked and of whom; it is judged here, verified once for all of them. A hook that finds no
//! tag is over after one bit lookup. None of the hooks looks at the answer of the LSM program before it: once one has
//! refused, the kernel does not run the next (`invoke_bpf_mod_ret`).

use aya_ebpf::{
    EbpfContext,
    helpers::{bpf_get_current_pid_tgid, generated::bpf_send_signal},
};
use sallyport_sensor_abi::{
    event::{System, cause, kind},
    policy::KILL,
    session::Tag,
};

use crate::{
    caller,
    event::{Small, header},
    fields::field,
    judge::{self, Judge, Verdict},
    maps::{GUARDED, tag_of},
    read::{self, Address, Unreadable, offset},
    tables,
};

/// What a hook answers.
pub(crate) const ALLOW: i32 = 0;
/// See [`ALLOW`].
pub(crate) const EPERM: i32 = -1;

/// The current process's tag.
#[inline(always)]
pub(crate) fn tag() -> Option<Tag> {
    tag_of((bpf_get_current_pid_tgid() >> 32) as u32)
}

/// In `how` of [`judge_system`]: it is done to somebody outside, or is to count so.
const OUTSIDE: u32 = 1;
/// It is done to the sensor.
const GUARD: u32 = 2;
/// Whom it is done to could not be read.
const UNKNOWN: u32 = 4;
/// Above these: the class of the calling program.
const CLASS_SHIFT: u32 = 8;
/// In place of a class: the rest is the cause.
const NO_CLASS: u32 = 1 << 23;

/// Judges something that has no target.
#[inline(always)]
pub(crate) fn ask(operation: u32, detail: u32) -> i32 {
    judge_system(operation, detail, 0, 0, 0)
}

/// As [`ask`], with what is known about the other side.
#[inline(always)]
pub(crate) fn ask_outside(operation: u32, detail: u32, outside: bool) -> i32 {
    judge_system(operation, detail, 0, 0, if outside { OUTSIDE } else { 0 })
}

/// Refuses what would be done to the sensor.
#[inline(always)]
pub(crate) fn guard(operation: u32, detail: u32) -> i32 {
    judge_system(operation, detail, 0, 0, GUARD)
}

/// As [`guard`], naming the process.
#[inline(always)]
pub(crate) fn guard_target(operation: u32, detail: u32, target: &Target) -> i32 {
    judge_system(operation, detail, target.tgid, target.started, GUARD | OUTSIDE)
}

/// Refuses what could not be read.
#[inline(always)]
pub(crate) fn unreadable(operation: u32, detail: u32) -> i32 {
    judge_system(operation, detail, 0, 0, UNKNOWN)
}

/// Judges what is done to the process of argument `number`, a `task_struct`.
#[inline(always)]
pub(crate) fn act_on<C: EbpfContext>(context: &C, number: u32, operation: u32, detail: u32) -> i32 {
    let found = argument(context, number).and_then(target);
    let Ok(target) = found else { return unreadable(operation, detail) };
    let mut how = 0;
    if is_guarded(&target) {
        how = GUARD;
    }
    // Numbers, not options of them: of a session that is not there, compiled code may keep nothing, and kernels before 6.3
    // refuse to read that back from the stack. No session has number 0.
    let own = tag().map_or(0, |tag| tag.session);
    let other = tag_of(target.tgid).map_or(0, |tag| tag.session);
    if own == 0 || own != other {
        how |= OUTSIDE;
    }
    judge_system(operation, detail, target.tgid, target.started, how)
}

/// Refuses what is done to the process of argument `number` if that is the sensor, and lets all else pass.
#[inline(always)]
pub(crate) fn spare<C: EbpfContext>(context: &C, number: u32, operation: u32, detail: u32) -> i32 {
    match argument(context, number).and_then(target) {
        Ok(target) if is_guarded(&target) => {
            judge_system(operation, detail, target.tgid, target.started, GUARD | OUTSIDE)
        }
        Ok(_) => ALLOW,
        Err(Unreadable) => unreadable(operation, detail),
    }
}

/// A process that something is done to.
pub(crate) struct Target {
    pub(crate) tgid: u32,
    /// Its first thread's start.
    pub(crate) started: u64,
}

/// The process of a `task_struct`.
#[inline(always)]
pub(crate) fn target(task: Address) -> Result<Target, Unreadable> {
    // SAFETY: offsets point into `OFFSETS` and `FIELDS`.
    unsafe {
        let tgid = read::kernel(task + offset!(task_struct_tgid))?;
        let leader: Address = read::kernel(task + field!(task_struct_group_leader))?;
        Ok(Target { tgid, started: read::kernel(leader + offset!(task_struct_start_boottime))? })
    }
}

/// User space knows when a process started to a hundredth of a second only, rounded down.
const TICK: u64 = 10_000_000;

/// It is the sensor, or one of its shepherds.
#[inline(always)]
pub(crate) fn is_guarded(target: &Target) -> bool {
    // SAFETY: read at once, before the entry can be used for another process.
    match unsafe { GUARDED.get(target.tgid) } {
        Some(started) => target.started.wrapping_sub(*started) < TICK,
        None => false,
    }
}

/// A process of this number is the sensor or one of its shepherds, as far as a number tells.
#[inline(always)]
pub(crate) fn is_guarded_number(tgid: u32) -> bool {
    // SAFETY: only whether it is there.
    unsafe { GUARDED.get(tgid) }.is_some()
}

/// Argument `number` of an LSM hook as a mere number: what the verifier knows to be a pointer may neither be computed
/// with nor be given to functions that are verified by themselves.
#[inline(always)]
pub(crate) fn argument<C: EbpfContext>(context: &C, number: u32) -> Result<Address, Unreadable> {
    read::kernel(context.as_ptr() as Address + u64::from(number) * 8)
}

/// What a hook answers after a function that is verified by itself said 1 (denied) or 0: of its result the verifier knows
/// nothing, but of the answer it wants to see that it is an error number or zero.
#[inline(always)]
pub(crate) fn answer(denied: u32) -> i32 {
    if read::opaque(u64::from(denied)) == 0 {
        return ALLOW;
    }
    let answer: i64;
    // SAFETY: a register is set. In assembly, or else the answer would be computed from `denied`.
    unsafe { core::arch::asm!("{0} = -1", out(reg) answer, options(nostack, nomem, preserves_flags)) };
    answer as i32
}

#[inline(always)]
fn judge_system(operation: u32, detail: u32, target_tgid: u32, target_started: u64, how: u32) -> i32 {
    let how = how | caller_class() << CLASS_SHIFT;
    answer(judge_operation(operation, detail, target_tgid, target_started, how))
}

/// The class of the calling program, or with [`NO_CLASS`] why there is none. Apart from [`judge_operation`]: the stacks of
/// both together would be too large.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn caller_class() -> u32 {
    let Some(tag) = tag() else { return 0 };
    match judge::judge(&tag) {
        Err(_) => 0,
        Ok(judge) => match caller::class(&judge, &tag) {
            Ok(class) => class & (NO_CLASS - 1),
            Err(cause) => NO_CLASS | cause & (NO_CLASS - 1),
        },
    }
}

/// The verdict on one operation; 1: denied. Reports it, too.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn judge_operation(
    operation: u32,
    detail: u32,
    target_tgid: u32,
    target_started: u64,
    how: u32,
) -> u32 {
    let Some(tag) = tag() else { return 0 };
    let outside = how & OUTSIDE;
    let verdict = match judge::judge(&tag) {
        Err(verdict) => verdict,
        Ok(judge) if how & GUARD != 0 => judge.unjudged(cause::GUARDED),
        Ok(judge) if how & UNKNOWN != 0 => judge.unjudged(cause::READ_FAILED),
        Ok(judge) => by_table(&judge, operation, outside, how >> CLASS_SHIFT),
    };
    if verdict.word & KILL != 0 {
        // SAFETY: no preconditions.
        unsafe { bpf_send_signal(9) };
    }
    Small {
        header: header(kind::SYSTEM, &tag, verdict),
        body: System { operation, outside, target_tgid, detail, target_started },
    }
    .send(&tag);
    u32::from(verdict.denies())
}

#[inline(always)]
fn by_table(judge: &Judge, operation: u32, outside: u32, class: u32) -> Verdict {
    if class & NO_CLASS != 0 {
        return judge.unjudged(class & (NO_CLASS - 1));
    }
    match tables::system(judge, operation, outside, class) {
        Some(word) => judge.verdict(word),
        None => judge.unjudged(cause::READ_FAILED),
    }
}

/// The number of the system call that the current thread is in; [`u32::MAX`]: none, or unknown.
///
/// Read from the registers that the thread saved when it entered the kernel: nobody but a tracer can change them
/// there. They lie at the end of the kernel stack, below 16 bytes if the kernel can use FRED.
#[inline(always)]
pub(crate) fn call() -> u32 {
    try_call().unwrap_or(u32::MAX)
}

/// `THREAD_SIZE` of x86-64, without KASAN.
const STACK: u64 = 16 << 10;
const X32: u32 = 1 << 30;

#[inline(always)]
fn try_call() -> Result<u32, Unreadable> {
    // SAFETY: offsets point into `FIELDS`.
    let stack: Address = unsafe { read::kernel(read::current_task() + field!(task_struct_stack))? };
    let top = stack + STACK;
    // cs, flags, sp, ss: the last of `struct pt_regs`.
    let last: [u64; 4] = read::kernel(top - 32)?;
    let user = matches!(last[0] & 0xffff, 0x33 | 0x23) && last[3] & 0xffff == 0x2b;
    let regs = top - 168 - if user { 0 } else { 16 };
    let number: u64 = read::kernel(regs + 120)?;
    Ok(number as u32 & !X32)
}

/// `TS_COMPAT`: the current system call was made as 32-bit programs make them (`int 0x80`).
const COMPAT: u32 = 2;

/// Whether the number of the system call is one of the 32-bit table.
#[inline(always)]
pub(crate) fn is_32_bit() -> bool {
    compat().unwrap_or(false)
}

#[inline(always)]
fn compat() -> Result<bool, Unreadable> {
    // SAFETY: points into `FIELDS`.
    let status: u32 = unsafe { read::kernel(read::current_task() + field!(task_struct_status))? };
    Ok(status & COMPAT != 0)
}
