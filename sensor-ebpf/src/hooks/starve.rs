//! LSM `task_setrlimit`, `task_setnice`, `task_setscheduler`, `task_setioprio`, `task_movememory`: starving the sensor.
//!
//! Sees: `prlimit`, `setpriority`, `sched_setattr` and `sched_setaffinity`, `ioprio_set`, `move_pages` on another
//! process. Only the sensor's own processes are guarded; everything else passes. Needs: 5.7 and BPF LSM. What is
//! written to `/proc/PID` of the sensor and to cgroups is in `guard.rs`. On error: denied.

use aya_ebpf::{macros::lsm, programs::LsmContext};
use sallyport_sensor_abi::policy::operation::TRACE;

use crate::system::{ALLOW, spare, tag};

#[inline(always)]
fn judge(ctx: &LsmContext) -> i32 {
    if tag().is_none() { ALLOW } else { spare(ctx, 0, TRACE, 0) }
}

/// match-proto:v5.10:include/linux/lsm_hook_defs.h:LSM_HOOK(int, 0, task_setrlimit, struct task_struct *p, unsigned int resource, struct rlimit *new_rlim)
#[lsm(hook = "task_setrlimit")]
pub fn sally_rlimit(ctx: LsmContext) -> i32 {
    judge(&ctx)
}

/// match-proto:v5.10:include/linux/lsm_hook_defs.h:LSM_HOOK(int, 0, task_setnice, struct task_struct *p, int nice)
#[lsm(hook = "task_setnice")]
pub fn sally_nice(ctx: LsmContext) -> i32 {
    judge(&ctx)
}

/// match-proto:v5.10:include/linux/lsm_hook_defs.h:LSM_HOOK(int, 0, task_setscheduler, struct task_struct *p)
#[lsm(hook = "task_setscheduler")]
pub fn sally_scheduler(ctx: LsmContext) -> i32 {
    judge(&ctx)
}

/// match-proto:v5.10:include/linux/lsm_hook_defs.h:LSM_HOOK(int, 0, task_setioprio, struct task_struct *p, int ioprio)
#[lsm(hook = "task_setioprio")]
pub fn sally_ioprio(ctx: LsmContext) -> i32 {
    judge(&ctx)
}

/// match-proto:v5.10:include/linux/lsm_hook_defs.h:LSM_HOOK(int, 0, task_movememory, struct task_struct *p)
#[lsm(hook = "task_movememory")]
pub fn sally_memory(ctx: LsmContext) -> i32 {
    judge(&ctx)
}
