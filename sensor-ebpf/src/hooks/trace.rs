//! LSM `ptrace_access_check`, `ptrace_traceme`: looking into and changing another process.
//!
//! Sees: `PTRACE_ATTACH` and `PTRACE_SEIZE`, `process_vm_readv`, `process_vm_writev`, opening of `/proc/PID/mem`,
//! `pidfd_getfd`, and a child that asks to be traced (by a parent that may be outside). Needs: 5.7 and BPF LSM.
//! Not judged: what only looks (`PTRACE_MODE_READ`: most of `/proc/PID`, which is judged as files), except at the
//! sensor; and a process on its own threads, for which the kernel does not ask. On error: denied.

use aya_ebpf::{macros::lsm, programs::LsmContext};
use sallyport_sensor_abi::policy::operation::TRACE;

use crate::system::{ALLOW, act_on, spare, tag};

/// `PTRACE_MODE_ATTACH`
const ATTACH: u32 = 2;
/// `PTRACE_MODE_NOAUDIT`: the kernel only decides how much to show (`/proc/PID/stat`, which `ps` reads of everybody).
const NO_AUDIT: u32 = 4;

/// match-proto:v5.10:include/linux/lsm_hook_defs.h:LSM_HOOK(int, 0, ptrace_access_check, struct task_struct *child, unsigned int mode)
#[lsm(hook = "ptrace_access_check")]
pub fn sally_trace(ctx: LsmContext) -> i32 {
    if tag().is_none() {
        return ALLOW;
    }
    let mode: u32 = ctx.arg(1);
    if mode & ATTACH != 0 {
        act_on(&ctx, 0, TRACE, mode)
    } else if mode & NO_AUDIT != 0 {
        ALLOW
    } else {
        spare(&ctx, 0, TRACE, mode)
    }
}

/// match-proto:v5.10:include/linux/lsm_hook_defs.h:LSM_HOOK(int, 0, ptrace_traceme, struct task_struct *parent)
#[lsm(hook = "ptrace_traceme")]
pub fn sally_traceme(ctx: LsmContext) -> i32 {
    if tag().is_none() {
        return ALLOW;
    }
    act_on(&ctx, 0, TRACE, 0)
}
