//! `sched_process_exit`: the tag goes when the last thread of the process goes.
//!
//! Sees: every thread's end, after it left `signal->live`. Needs: 4.17. Until the leader is reaped its tgid cannot be
//! used again, so a new process never finds an old tag. If the count cannot be read the tag stays: that costs room
//! in the map, never a judgement, since whoever gets the number next in a session overwrites it.
//!
//! A process that has ended takes a process number until somebody has waited for it, and a session that never waits must not
//! use them up. They have a count and a limit of their own; `sched_process_free` counts them down, and the sensor those whose
//! number is free again although no hook saw it: there are kernels that run no programs while some processes are interrupted.

use aya_ebpf::{
    EbpfContext as _, bindings::BPF_NOEXIST, macros::raw_tracepoint, programs::RawTracePointContext,
};
use sallyport_sensor_abi::{
    event::{Exit, kind},
    session::{Ended, Tag},
};

use crate::{
    atomic::add32,
    event::Small,
    fields::field,
    judge::{Verdict, session},
    maps::{ENDED, HOST, TASKS, tag_of, unmark},
    read::{self, Address, Unreadable, offset},
};

/// match-proto:v5.10:include/trace/events/sched.h:TP_PROTO(struct task_struct *p)
#[raw_tracepoint(tracepoint = "sched_process_exit")]
pub fn sally_exit(ctx: RawTracePointContext) -> i32 {
    let tgid = ctx.tgid();
    let Some(tag) = tag_of(tgid) else { return 0 };
    let task: Address = ctx.arg(0);
    let Ok(code) = last_thread(task) else { return 0 };
    let Some(code) = code else { return 0 };
    // The last two threads can both find nobody alive; only one removes the tag.
    if TASKS.remove(tgid).is_err() {
        return 0;
    }
    unmark(tgid);
    count_down(&tag);
    // One that cannot be kept in mind is not counted.
    let _ = remember(task, tgid, &tag);
    Small::new(kind::EXIT, &tag, Verdict::NONE, Exit { code, _pad: 0 }).send(&tag);
    0
}

/// The exit code, if no thread of the process is alive.
#[inline(always)]
fn last_thread(task: Address) -> Result<Option<u32>, Unreadable> {
    // SAFETY: offsets point into `OFFSETS`.
    unsafe {
        let signal: Address = read::kernel(task + offset!(task_struct_signal))?;
        if read::kernel::<u32>(signal + offset!(signal_struct_live))? != 0 {
            return Ok(None);
        }
        Ok(Some(read::kernel(task + offset!(task_struct_exit_code))?))
    }
}

/// Counts the process among those that ended, until it is freed.
#[inline(always)]
fn remember(task: Address, tgid: u32, tag: &Tag) -> Result<(), Unreadable> {
    // SAFETY: points into `FIELDS`.
    let leader: Address = read::kernel(task + unsafe { field!(task_struct_group_leader) })?;
    // Counted first: whoever frees it looks only if there is something to find.
    count_ended(tag.session, tag.slot, 1);
    let ended = Ended { session: tag.session, slot: tag.slot, tgid };
    if ENDED.insert(leader, ended, u64::from(BPF_NOEXIST)).is_err() {
        // Full.
        count_ended(tag.session, tag.slot, u32::MAX);
    }
    Ok(())
}

/// Adds to the ended processes of the host and of the session.
#[inline(always)]
fn count_ended(number: u64, slot: u32, more: u32) {
    if let Some(host) = HOST.get_ptr_mut(0) {
        // SAFETY: an entry of an array map; the counter is only accessed atomically.
        unsafe { add32(&raw mut (*host).ended, more) };
    }
    if let Some(session) = session(&Tag { session: number, slot, ..Tag::default() }) {
        // SAFETY: as above.
        unsafe { add32(&raw mut (*session).ended, more) };
    }
}

/// One process less, of the session and of the host.
#[inline(always)]
fn count_down(tag: &Tag) {
    if let Some(host) = HOST.get_ptr_mut(0) {
        // SAFETY: an entry of an array map; the counter is only accessed atomically.
        unsafe { add32(&raw mut (*host).tasks, u32::MAX) };
    }
    if let Some(session) = session(tag) {
        // SAFETY: as above.
        unsafe { add32(&raw mut (*session).tasks, u32::MAX) };
    }
}

/// `sched_process_free`: nothing is left of a thread.
///
/// Sees: every thread, some time after it was waited for. Needs: 4.17.
///
/// match-proto:v5.10:include/trace/events/sched.h:TP_PROTO(struct task_struct *p)
#[raw_tracepoint(tracepoint = "sched_process_free")]
pub fn sally_free(ctx: RawTracePointContext) -> i32 {
    let Some(host) = HOST.get_ptr(0) else { return 0 };
    // SAFETY: an entry of an array map. Volatile: others change it.
    if unsafe { core::ptr::read_volatile(&raw const (*host).ended) } == 0 {
        return 0;
    }
    let task: Address = ctx.arg(0);
    // SAFETY: copied at once. No other process has its first thread there yet.
    let Some(Ended { session, slot, .. }) = unsafe { ENDED.get(task) }.copied() else { return 0 };
    // While programs are being replaced two see it; only one removes the entry.
    if ENDED.remove(task).is_ok() {
        count_ended(session, slot, u32::MAX);
    }
    0
}
