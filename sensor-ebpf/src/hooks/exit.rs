//! `sched_process_exit`: the tag goes when the last thread of the process goes.
//!
//! Sees: every thread's end, after it left `signal->live`. Needs: 4.17. Until the leader is reaped its tgid cannot be
//! used again, so a new process never finds an old tag. If the count cannot be read the tag stays: that costs room
//! in the map, never a judgement.

use aya_ebpf::{EbpfContext as _, macros::raw_tracepoint, programs::RawTracePointContext};
use sallyport_sensor_abi::event::{Exit, kind};

use crate::{
    atomic::add32,
    event::Small,
    judge::{Verdict, session},
    maps::{HOST, TASKS, tag_of, unmark},
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
    if let Some(host) = HOST.get_ptr_mut(0) {
        // SAFETY: an entry of an array map; the counter is only accessed atomically.
        unsafe { add32(&raw mut (*host).tasks, u32::MAX) };
    }
    if let Some(session) = session(&tag) {
        // SAFETY: as above.
        unsafe { add32(&raw mut (*session).tasks, u32::MAX) };
    }
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
