//! `sched_process_exec`: judges a program before its first instruction; the only judge of arguments.
//!
//! Sees: every `execve` and `execveat` that succeeded, with the new memory in place and nobody else in it. For a
//! script it sees the interpreter; what rules on arguments left open about the script itself was noted for it, see
//! `pending.rs` (LSM mode). Needs: 4.17. On denial, and when anything cannot be read: SIGKILL, which the
//! kernel delivers before it returns to user space. Tags log-ins that did not come through a gateway.

use aya_ebpf::{
    EbpfContext as _, helpers::generated::bpf_send_signal, macros::raw_tracepoint,
    programs::RawTracePointContext,
};
use sallyport_sensor_abi::{
    event::{EXEC_UNBROKERED, cause},
    policy::DENY,
    session::Tag,
};

use crate::{
    caller,
    judge::{self, CALLER, Judge, Verdict},
    maps::tag_of,
    pending,
    program::{self, Args},
    read::Address,
    scratch::{self, Scratch},
    unbrokered,
};

/// `sched_prepare_exec`: the last moment at which the program that starts another can be found.
///
/// Sees: every `execve` that is about to replace its process's memory. Needs: 6.10; attached in tracepoint mode only, since
/// `bprm_check_security` is as early. Without it, a process whose policy was replaced while it ran, and that then starts a
/// program in its own place, is killed under a policy that knows calling programs.
///
/// match-proto:v6.10:include/trace/events/sched.h:TP_PROTO(struct task_struct *task, struct linux_binprm *bprm)
#[raw_tracepoint(tracepoint = "sched_prepare_exec")]
pub fn sally_exec_prepare(ctx: RawTracePointContext) -> i32 {
    // Before the first program of a session there is no caller.
    if let Some(tag) = tag_of(ctx.tgid())
        && tag.caller_generation != 0
        && let Ok(judge) = judge::judge(&tag)
    {
        // Kept in the tag. What cannot be found is judged at `sched_process_exec`.
        let _ = caller::class(&judge, &tag);
    }
    0
}

/// match-proto:v5.10:include/trace/events/sched.h:TP_PROTO(struct task_struct *p, pid_t old_pid, struct linux_binprm *bprm)
#[raw_tracepoint(tracepoint = "sched_process_exec")]
pub fn sally_exec(ctx: RawTracePointContext) -> i32 {
    let tgid = ctx.tgid();
    let task: Address = ctx.arg(0);
    let (tag, flags) = match tag_of(tgid) {
        Some(tag) => (tag, 0),
        None => match unbrokered::tag(tgid, task) {
            Some(tag) => (tag, EXEC_UNBROKERED),
            None => return 0,
        },
    };
    if tag.pending != 0 {
        // From here on it is this program's, or nobody's: the tag above is a copy.
        pending::forget(tgid);
    }
    let judge = judge::judge_start(&tag);
    let Some((index, area)) = scratch::claim() else {
        if program::busy_program(flags) != 0 {
            // SAFETY: no preconditions.
            unsafe { bpf_send_signal(9) };
        }
        caller::keep(tgid, 0, caller::NOT_FOUND);
        return 0;
    };
    // The path is for the event, too, so it is resolved even if there is no policy.
    let resolved = program::resolve(index, area, ctx.arg(2));
    let args = Args::locate(task);
    let verdict = match judge {
        Ok(judge) => decide(index, area, tgid, ctx.arg(2), &judge, &tag, resolved, &args),
        Err(verdict) => {
            caller::keep(tgid, 0, caller::NOT_FOUND);
            verdict
        }
    };
    kill(verdict);
    program::report(index, area, task, &tag, verdict, &args, flags);
    scratch::release(area);
    0
}

#[inline(always)]
fn kill(verdict: Verdict) {
    if verdict.denies() {
        // SAFETY: no preconditions.
        unsafe { bpf_send_signal(9) };
    }
}

#[inline(always)]
fn decide(
    index: u32,
    area: *mut Scratch,
    tgid: u32,
    bprm: Address,
    judge: &Judge,
    tag: &Tag,
    resolved: Result<(), u32>,
    args: &Args,
) -> Verdict {
    let before = old_caller(judge, tag);
    // From now on this program is the one that acts.
    // SAFETY: `area` is claimed.
    unsafe { (*area).policy = judge.slot };
    match resolved.ok().and_then(|()| judge::path_class(index, CALLER)) {
        Some(class) => caller::keep(tgid, class, judge.generation),
        None => caller::keep(tgid, 0, caller::NOT_FOUND),
    }
    if let Err(cause) = resolved {
        return judge.unjudged(cause);
    }
    match before.and_then(|before| program::word(index, area, judge, before, Some(args))) {
        Ok(word) if word & DENY != 0 || !of_script(bprm, tag) => judge.verdict(word),
        Ok(word) => match program::noted(index, judge, tag.pending, args) {
            Ok(Some(denial)) => judge.verdict(denial),
            Ok(None) => judge.verdict(word),
            Err(cause) => judge.unjudged(cause),
        },
        Err(cause) => judge.unjudged(cause),
    }
}

/// Whether something was noted for a script that this is the interpreter of. For a program that is no script, what was
/// noted is judged anyway.
#[inline(always)]
fn of_script(bprm: Address, tag: &Tag) -> bool {
    tag.pending != 0 && !pending::is_first(bprm).unwrap_or(false)
}

/// The class of the program that started this one. It is gone from memory, so its class must have been found before: in
/// `bprm_check_security` or `sched_prepare_exec`, or when the process was forked. Before the first program of a session, or of a log-in that is
/// tagged right here, there was only what let the person in: no rule's caller.
#[inline(always)]
fn old_caller(judge: &Judge, tag: &Tag) -> Result<u32, u32> {
    // SAFETY: the policy is an entry of an array map.
    if unsafe { (*judge.policy).caller.classes } <= 1 {
        Ok(0)
    } else if tag.caller_generation == judge.generation {
        Ok(tag.caller)
    } else if tag.caller_generation == 0 {
        Ok(0)
    } else {
        Err(cause::READ_FAILED)
    }
}
