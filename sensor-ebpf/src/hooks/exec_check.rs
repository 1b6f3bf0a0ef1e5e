//! LSM `bprm_check_security`: denies programs by path before they run.
//!
//! Sees: every `execve`, once for a script and once more for its interpreter. Needs: 5.7, `CONFIG_BPF_LSM`, and `bpf`
//! among the active LSMs. Rules on arguments are left to `sched_process_exec`. On error: denied.

use aya_ebpf::{EbpfContext as _, helpers::generated::bpf_send_signal, macros::lsm, programs::LsmContext};
use sallyport_sensor_abi::{
    event::EXEC_PREVENTED,
    policy::{KILL, NEEDS_ARGS},
};

use crate::{
    hooks::exec::{Args, busy, by_path, report},
    judge::Verdict,
    maps::tag_of,
    read::{self, Address},
    scratch,
};

const EPERM: i32 = 1;

/// match-proto:v5.10:include/linux/lsm_hook_defs.h:LSM_HOOK(int, 0, bprm_check_security, struct linux_binprm *bprm)
#[lsm(hook = "bprm_check_security")]
pub fn sally_exec_check(ctx: LsmContext) -> i32 {
    // The previous LSM program's answer: never weakened, and clamped to what the verifier accepts.
    let prior: i32 = ctx.arg(1);
    if prior != 0 {
        return if (-4095..0).contains(&prior) { prior } else { -EPERM };
    }
    let tgid = ctx.tgid();
    let Some(tag) = tag_of(tgid) else { return 0 };
    let Some((index, area)) = scratch::claim() else {
        busy(&tag);
        return -EPERM;
    };
    let verdict = match by_path(index, area, ctx.arg::<Address>(0), &tag) {
        Ok((_, word)) if word & NEEDS_ARGS != 0 => None,
        Ok((judge, word)) => {
            let verdict = Verdict { word, cause: 0, generation: judge.generation };
            verdict.denies().then_some(verdict)
        }
        Err(verdict) => Some(verdict),
    };
    if let Some(verdict) = verdict {
        if verdict.word & KILL != 0 {
            // SAFETY: no preconditions.
            unsafe { bpf_send_signal(9) };
        }
        report(area, read::current_task(), &tag, verdict, &Args::UNKNOWN, EXEC_PREVENTED);
    }
    scratch::release(area);
    if verdict.is_some() { -EPERM } else { 0 }
}
