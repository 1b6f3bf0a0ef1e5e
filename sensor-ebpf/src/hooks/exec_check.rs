//! LSM `bprm_check_security`: denies programs by path before they run.
//!
//! Sees: every `execve`, once for a script and once more for its interpreter. Needs: 5.7, `CONFIG_BPF_LSM`, and `bpf`
//! among the active LSMs. Rules on arguments are left to `sched_process_exec`, see `pending.rs`. On error: denied.

use aya_ebpf::{EbpfContext as _, helpers::generated::bpf_send_signal, macros::lsm, programs::LsmContext};
use sallyport_sensor_abi::{event::EXEC_PREVENTED, policy::KILL};

use crate::{
    caller,
    hooks::{ALLOW, EPERM, prior},
    judge,
    maps::tag_of,
    pending,
    program::{self, Args},
    read::{self, Address},
    scratch,
    system::answer,
};

/// match-proto:v5.10:include/linux/lsm_hook_defs.h:LSM_HOOK(int, 0, bprm_check_security, struct linux_binprm *bprm)
#[lsm(hook = "bprm_check_security")]
pub fn sally_exec_check(ctx: LsmContext) -> i32 {
    let before: i32 = ctx.arg(1);
    if before != 0 {
        return prior(before);
    }
    let Some(tag) = tag_of(ctx.tgid()) else { return ALLOW };
    let bprm: Address = read::plain(ctx.arg::<Address>(0));
    // What was noted for a program that did not start.
    if tag.pending != 0 && pending::is_first(bprm).unwrap_or(false) {
        pending::forget(ctx.tgid());
    }
    let judge = judge::judge_start(&tag);
    let Some((index, area)) = scratch::claim() else {
        return answer(program::busy_program(EXEC_PREVENTED));
    };
    let verdict = match judge {
        Ok(judge) => {
            // First: it needs an area of its own, and at `sched_process_exec` it cannot be found any more.
            let caller = caller::class(&judge, &tag);
            let resolved = program::resolve(index, area, bprm);
            let word = match (resolved, caller) {
                (Ok(()), Ok(caller)) => program::word(index, area, &judge, caller, None),
                (Err(cause), _) | (_, Err(cause)) => Err(cause),
            };
            match word {
                Ok(word) => judge.verdict(word),
                Err(cause) => judge.unjudged(cause),
            }
        }
        Err(verdict) => {
            if verdict.denies() {
                let _ = program::resolve(index, area, bprm);
            }
            verdict
        }
    };
    // What is allowed here is judged again, with its arguments, and reported at `sched_process_exec`.
    let denied = verdict.denies();
    if denied {
        if verdict.word & KILL != 0 {
            // SAFETY: no preconditions.
            unsafe { bpf_send_signal(9) };
        }
        program::report(index, area, read::current_task(), &tag, verdict, &Args::UNKNOWN, EXEC_PREVENTED);
    }
    scratch::release(area);
    if denied { -EPERM } else { ALLOW }
}
