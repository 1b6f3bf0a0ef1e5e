//! LSM `task_setrlimit`, `task_setnice`, `task_setscheduler`, `task_setioprio`, `task_movememory`, `task_alloc`,
//! `file_lock`: starving the sensor.
//!
//! Sees: `prlimit`, `setpriority`, `sched_setattr` and `sched_setaffinity`, `ioprio_set`, `move_pages` on another
//! process; children that are born in another control group (`CLONE_INTO_CGROUP`), where they could use up the sensor's
//! share; locks and leases on the sensor's files, which would stop it. Only the sensor is guarded; everything else passes.
//! Needs: 5.7 and BPF LSM. What is written to `/proc/PID` of the sensor and to cgroups is in `guard.rs`. On error: denied.

use aya_ebpf::{macros::lsm, programs::LsmContext};
use sallyport_sensor_abi::policy::operation::{KERNEL_ACCESS, TRACE};

use crate::{
    file, guard, path,
    read::Unreadable,
    system::{ALLOW, argument, guard as refuse, spare, tag, unreadable},
};

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

/// `CLONE_INTO_CGROUP` (5.7): the group is given as a descriptor, which may be of `O_PATH`, so that no opening is seen.
const INTO_CGROUP: u64 = 1 << 33;

/// Who has no right over others' control groups is held off by the kernel's own permissions, as in `guard.rs`.
///
/// match-proto:v5.10:include/linux/lsm_hook_defs.h:LSM_HOOK(int, 0, task_alloc, struct task_struct *task, unsigned long clone_flags)
#[lsm(hook = "task_alloc")]
pub fn sally_birth(ctx: LsmContext) -> i32 {
    if ctx.arg::<u64>(1) & INTO_CGROUP == 0 || tag().is_none() {
        return ALLOW;
    }
    match guard::privileged() {
        Ok(false) => ALLOW,
        Ok(true) => refuse(KERNEL_ACCESS, 0),
        Err(Unreadable) => unreadable(KERNEL_ACCESS, 0),
    }
}

/// match-proto:v5.10:include/linux/lsm_hook_defs.h:LSM_HOOK(int, 0, file_lock, struct file *file, unsigned int cmd)
#[lsm(hook = "file_lock")]
pub fn sally_lock(ctx: LsmContext) -> i32 {
    if tag().is_none() {
        return ALLOW;
    }
    let command: u32 = ctx.arg(1);
    let found = argument(&ctx, 0).and_then(path::of_file);
    match found.and_then(|(mount, dentry)| file::is_guarded(mount, dentry)) {
        Ok(false) => ALLOW,
        Ok(true) => refuse(KERNEL_ACCESS, command),
        Err(Unreadable) => unreadable(KERNEL_ACCESS, command),
    }
}
