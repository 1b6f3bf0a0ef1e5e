//! LSM `task_kill`, `file_fcntl`, `file_send_sigiotask`: signals, at once or promised.
//!
//! Sees: `kill`, `tgkill`, `rt_sigqueueinfo`, `pidfd_send_signal` and the like, once for each process they reach; and
//! `F_SETOWN`, by which a file sends signals later (with `F_SETSIG` any signal), from a context that is nobody's.
//! (`FIOSETOWN` and `SIOCSPGRP` are in `terminal.rs`, with the other `ioctl` calls.) Whom a file will signal is not always
//! known when that is asked for (a group, a structure in user memory); so files for which a tagged process asked are
//! remembered, and what they send to the sensor is dropped when it is sent, without an event: there is nobody then whose
//! act it would be. Needs: 5.7 and BPF LSM. Not
//! judged: signal 0, which sends nothing; and what the kernel itself sends (`SIGCHLD`, a terminal's `SIGINT`,
//! `PR_SET_PDEATHSIG`, which only reaches the session's own processes). On error: denied.

use aya_ebpf::{macros::lsm, programs::LsmContext};
use sallyport_sensor_abi::policy::operation::SIGNAL;

use crate::{
    fields::field,
    maps::tag_of,
    owned,
    read::{self, Unreadable},
    system::{self, ALLOW, act_on, argument, ask_outside, guard as refuse, tag},
};

/// match-proto:v5.10:include/linux/lsm_hook_defs.h:LSM_HOOK(int, 0, task_kill, struct task_struct *p, struct kernel_siginfo *info, int sig, const struct cred *cred)
#[lsm(hook = "task_kill")]
pub fn sally_signal(ctx: LsmContext) -> i32 {
    if tag().is_none() {
        return ALLOW;
    }
    let signal: u32 = ctx.arg(2);
    if signal == 0 {
        return ALLOW;
    }
    act_on(&ctx, 0, SIGNAL, signal)
}

const F_SETOWN: u32 = 8;
const F_SETOWN_EX: u32 = 15;

/// match-proto:v5.10:include/linux/lsm_hook_defs.h:LSM_HOOK(int, 0, file_fcntl, struct file *file, unsigned int cmd, unsigned long arg)
#[lsm(hook = "file_fcntl")]
pub fn sally_own(ctx: LsmContext) -> i32 {
    let command: u32 = ctx.arg(1);
    if !matches!(command, F_SETOWN | F_SETOWN_EX) {
        return ALLOW;
    }
    let Some(tag) = tag() else { return ALLOW };
    // `F_SETOWN_EX` points to user memory, which can change before the kernel reads it: it counts as outside.
    let owner: i32 = ctx.arg::<u64>(2) as i32;
    if command == F_SETOWN && owner == 0 {
        return ALLOW;
    }
    owned::note(argument(&ctx, 0));
    let initial = in_initial_namespace().unwrap_or(false);
    if command == F_SETOWN && owner > 0 && initial && system::is_guarded_number(owner as u32) {
        return refuse(SIGNAL, command);
    }
    let inside = command == F_SETOWN
        && owner > 0
        && initial
        && tag_of(owner as u32).is_some_and(|other| other.session == tag.session);
    ask_outside(SIGNAL, command, !inside)
}

/// match-proto:v5.10:include/linux/lsm_hook_defs.h:LSM_HOOK(int, 0, file_send_sigiotask, struct task_struct *tsk, struct fown_struct *fown, int sig)
#[lsm(hook = "file_send_sigiotask")]
pub fn sally_send_own(ctx: LsmContext) -> i32 {
    match argument(&ctx, 0).and_then(system::target) {
        Ok(target) if system::is_guarded(&target) => {}
        _ => return ALLOW,
    }
    match argument(&ctx, 1).and_then(owned::file) {
        Ok(file) if owned::is_noted(file) => system::EPERM,
        _ => ALLOW,
    }
}

/// Process numbers mean to this process what they mean to the maps.
#[inline(always)]
fn in_initial_namespace() -> Result<bool, Unreadable> {
    // SAFETY: offsets point into `FIELDS`.
    unsafe {
        let pid: u64 = read::kernel(read::current_task() + field!(task_struct_thread_pid))?;
        Ok(read::kernel::<u32>(pid + field!(pid_level))? == 0)
    }
}
