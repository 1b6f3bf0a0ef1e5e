//! `sched_process_fork`: a child gets its parent's tag before it runs.
//!
//! Sees: every `fork`, `vfork`, `clone`, `clone3`, before the child is woken. Threads share the tgid and need no tag.
//! Needs: 4.17. When there are too many tagged processes the forking one is killed. In LSM mode it has no child then
//! (`task_alloc`, 5.7); in tracepoint mode the child is there and tagged, for which [`sallyport_sensor_abi::MAX_TASKS`]
//! leaves room.

use aya_ebpf::{
    EbpfContext as _,
    bindings::{BPF_EXIST, BPF_NOEXIST},
    helpers::{bpf_get_current_pid_tgid, generated::bpf_send_signal},
    macros::{lsm, raw_tracepoint},
    programs::{LsmContext, RawTracePointContext},
};
use sallyport_sensor_abi::{
    event::{Fork, cause, kind},
    policy::{DENY, KILL, OBSERVED, UNJUDGED},
    session::{SESSION_MONITORED, Session, Tag},
};

use crate::{
    atomic::add32,
    caller,
    event::Small,
    hooks::{ALLOW, prior},
    judge::{self, Verdict, session},
    maps::{HOST, TASKS, mark, tag_of},
    read::{self, Address, Unreadable, offset},
    unbrokered,
};

/// `CLONE_THREAD`
const THREAD: u64 = 0x1_0000;
/// Negated, what a fork that is one too many returns.
const EAGAIN: i32 = 11;

/// match-proto:v5.10:include/linux/lsm_hook_defs.h:LSM_HOOK(int, 0, task_alloc, struct task_struct *task, unsigned long clone_flags)
#[lsm(hook = "task_alloc")]
pub fn sally_task_alloc(ctx: LsmContext) -> i32 {
    let before: i32 = ctx.arg(2);
    if before != 0 {
        return prior(before);
    }
    let flags: u64 = ctx.arg(1);
    if flags & THREAD != 0 {
        return ALLOW;
    }
    let Some(tag) = tag_of(ctx.tgid()) else { return ALLOW };
    if is_full(&tag) {
        refuse(0, 0, cause::TOO_MANY_TASKS);
        return -EAGAIN;
    }
    ALLOW
}

/// Whether the session, or the host, has as many processes as it may have.
#[inline(always)]
fn is_full(tag: &Tag) -> bool {
    let Some(session) = session(tag) else { return false };
    // SAFETY: entries of array maps. Volatile: others change them.
    unsafe {
        if core::ptr::read_volatile(&raw const (*session).flags) & SESSION_MONITORED != 0 {
            return false;
        }
        core::ptr::read_volatile(&raw const (*session).tasks)
            >= core::ptr::read_volatile(&raw const (*session).task_limit)
            || leaves_too_many(session)
            || HOST.get_ptr(0).is_none_or(|host| {
                core::ptr::read_volatile(&raw const (*host).tasks)
                    >= core::ptr::read_volatile(&raw const (*host).task_limit)
            })
    }
}

/// Whether too many of the session's processes have ended and were not waited for.
///
/// # Safety
/// `session` must be an entry of `SESSIONS`.
#[inline(always)]
unsafe fn leaves_too_many(session: *const Session) -> bool {
    // SAFETY: the caller's promise. Volatile: others change them.
    unsafe {
        core::ptr::read_volatile(&raw const (*session).ended)
            > core::ptr::read_volatile(&raw const (*session).ended_limit)
    }
}

/// match-proto:v5.10:include/trace/events/sched.h:TP_PROTO(struct task_struct *parent, struct task_struct *child)
#[raw_tracepoint(tracepoint = "sched_process_fork")]
pub fn sally_fork(ctx: RawTracePointContext) -> i32 {
    let parent = ctx.tgid();
    let Some(tag) = tag_of(parent) else { return 0 };
    let child: Address = ctx.arg(1);
    if try_fork(parent, child, &tag).is_err() {
        // The child could not be read, so it cannot be tagged; nothing of this session may run untagged.
        refuse(0, 0, cause::READ_FAILED);
    }
    0
}

#[inline(always)]
fn try_fork(parent: u32, child: Address, tag: &Tag) -> Result<(), Unreadable> {
    // SAFETY: offsets point into `OFFSETS`.
    let (tgid, started) = unsafe {
        (
            read::kernel::<u32>(child + offset!(task_struct_tgid))?,
            read::kernel::<u64>(child + offset!(task_struct_start_boottime))?,
        )
    };
    if tgid == parent {
        return Ok(());
    }
    let session = session(tag);
    // SAFETY: an entry of an array map. Volatile: user space writes to it.
    let monitored = session.is_some_and(
        |session| unsafe { core::ptr::read_volatile(&raw const (*session).flags) } & SESSION_MONITORED != 0,
    );
    if monitored && unbrokered::crowded() {
        // Nobody limits those who are only watched. The child goes on untagged, until it starts a program when there is
        // room again.
        report_fork(tgid, started, OBSERVED | UNJUDGED, cause::TOO_MANY_TASKS);
        return Ok(());
    }
    // The child's first act may be to start a program, when the one that it runs now can be found no more.
    let (caller, caller_generation) = caller(tag);
    let child_tag = Tag { started, caller, caller_generation, pending: 0, ..*tag };
    let mut crowded = false;
    let mut inserted = TASKS.insert(tgid, child_tag, u64::from(BPF_NOEXIST));
    if inserted == Err(EXISTS) {
        // SAFETY: copied at once.
        match unsafe { TASKS.get(tgid) }.copied() {
            // The programs are being replaced and the others were first.
            Some(found) if found.started == started => return Ok(()),
            // What a process that had this number before left behind. It may be of another session.
            Some(found) => inserted = replace(tgid, &child_tag, &found),
            None => {}
        }
    }
    match inserted {
        Ok(()) => {
            mark(tgid);
            if let Some(host) = HOST.get_ptr_mut(0) {
                // SAFETY: an entry of an array map; the counter is only accessed atomically.
                unsafe {
                    add32(&raw mut (*host).tasks, 1);
                    crowded |= !monitored
                        && core::ptr::read_volatile(&raw const (*host).tasks)
                            > core::ptr::read_volatile(&raw const (*host).task_limit);
                }
            }
            if let Some(session) = session {
                // SAFETY: as above.
                unsafe {
                    add32(&raw mut (*session).tasks, 1);
                    crowded |= !monitored
                        && (core::ptr::read_volatile(&raw const (*session).tasks)
                            > core::ptr::read_volatile(&raw const (*session).task_limit)
                            || leaves_too_many(session));
                }
            }
        }
        Err(_) => crowded = !monitored,
    }
    if crowded {
        refuse(tgid, started, cause::TOO_MANY_TASKS);
    } else {
        report_fork(tgid, started, 0, cause::NONE);
    }
    Ok(())
}

/// `EEXIST`
const EXISTS: i32 = -17;

/// Puts a tag in the place of one that was left behind, which was counted.
#[inline(always)]
fn replace(tgid: u32, tag: &Tag, left: &Tag) -> Result<(), i32> {
    TASKS.insert(tgid, *tag, u64::from(BPF_EXIST))?;
    if let Some(host) = HOST.get_ptr_mut(0) {
        // SAFETY: an entry of an array map; the counter is only accessed atomically.
        unsafe { add32(&raw mut (*host).tasks, u32::MAX) };
    }
    if let Some(session) = session(left) {
        // SAFETY: as above.
        unsafe { add32(&raw mut (*session).tasks, u32::MAX) };
    }
    Ok(())
}

/// The class of the program that both run, and the policy for which it holds.
#[inline(always)]
fn caller(tag: &Tag) -> (u32, u64) {
    let Ok(judge) = judge::judge(tag) else { return (0, caller::NOT_FOUND) };
    match caller::class(&judge, tag) {
        Ok(class) => (class, judge.generation),
        Err(_) => (0, caller::NOT_FOUND),
    }
}

#[inline(always)]
fn refuse(child_tgid: u32, child_started: u64, cause: u32) {
    // SAFETY: no preconditions. SIGKILL to the whole current process.
    unsafe { bpf_send_signal(9) };
    report_fork(child_tgid, child_started, DENY | KILL | UNJUDGED, cause);
}

/// A subprogram, so that its stack is its own. The tag is that of the current process.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn report_fork(child_tgid: u32, child_started: u64, word: u32, cause: u32) -> u32 {
    let Some(tag) = tag_of((bpf_get_current_pid_tgid() >> 32) as u32) else { return 0 };
    let verdict = Verdict { word, cause, generation: 0 };
    Small::new(kind::FORK, &tag, verdict, Fork { child_tgid, _pad: 0, child_started }).send(&tag);
    0
}
