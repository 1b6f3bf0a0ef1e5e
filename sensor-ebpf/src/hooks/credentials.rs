//! LSM `task_fix_setuid`, `task_fix_setgid`, `task_fix_setgroups`, `capset`, `bprm_creds_from_file`: becoming somebody
//! else.
//!
//! Sees: `setuid`, `setgid`, `setgroups` and their kin where they change something, set-uid and set-gid programs,
//! programs with file capabilities that give more than the process has, and `capset`. Needs: 5.9 and BPF LSM (groups:
//! 6.1). On error: denied.

use aya_ebpf::{macros::lsm, programs::LsmContext};
use sallyport_sensor_abi::policy::operation::{SET_CAPABILITIES, SET_USER};

use crate::{
    fields::field,
    read::{self, Address, Unreadable},
    system::{ALLOW, argument, ask, tag, unreadable},
};

/// match-proto:v5.10:include/linux/lsm_hook_defs.h:LSM_HOOK(int, 0, task_fix_setuid, struct cred *new, const struct cred *old, int flags)
#[lsm(hook = "task_fix_setuid")]
pub fn sally_setuid(ctx: LsmContext) -> i32 {
    if tag().is_none() {
        return ALLOW;
    }
    judge(new_user(&ctx))
}

/// match-proto:v5.10:include/linux/lsm_hook_defs.h:LSM_HOOK(int, 0, task_fix_setgid, struct cred *new, const struct cred * old, int flags)
#[lsm(hook = "task_fix_setgid")]
pub fn sally_setgid(ctx: LsmContext) -> i32 {
    if tag().is_none() {
        return ALLOW;
    }
    judge(new_group(&ctx))
}

/// match-proto:v6.1:include/linux/lsm_hook_defs.h:LSM_HOOK(int, 0, task_fix_setgroups, struct cred *new, const struct cred * old)
#[lsm(hook = "task_fix_setgroups")]
pub fn sally_setgroups(ctx: LsmContext) -> i32 {
    if tag().is_none() {
        return ALLOW;
    }
    judge(new_groups(&ctx))
}

/// The id that is new, if one is.
#[inline(always)]
fn judge(changed: Result<Option<u32>, Unreadable>) -> i32 {
    match changed {
        Ok(None) => ALLOW,
        Ok(Some(id)) => ask(SET_USER, id),
        Err(Unreadable) => unreadable(SET_USER, 0),
    }
}

#[inline(always)]
fn new_user(ctx: &LsmContext) -> Result<Option<u32>, Unreadable> {
    let (new, old) = (argument(ctx, 0)?, argument(ctx, 1)?);
    // SAFETY: offsets point into `FIELDS`.
    unsafe {
        let same = same(new, old, field!(cred_uid))?
            && same(new, old, field!(cred_euid))?
            && same(new, old, field!(cred_suid))?
            && same(new, old, field!(cred_fsuid))?;
        Ok(if same { None } else { Some(read::kernel(new + field!(cred_euid))?) })
    }
}

#[inline(always)]
fn new_group(ctx: &LsmContext) -> Result<Option<u32>, Unreadable> {
    let (new, old) = (argument(ctx, 0)?, argument(ctx, 1)?);
    // SAFETY: offsets point into `FIELDS`.
    unsafe {
        let same = same(new, old, field!(cred_gid))?
            && same(new, old, field!(cred_egid))?
            && same(new, old, field!(cred_sgid))?
            && same(new, old, field!(cred_fsgid))?;
        Ok(if same { None } else { Some(read::kernel(new + field!(cred_egid))?) })
    }
}

#[inline(always)]
fn new_groups(ctx: &LsmContext) -> Result<Option<u32>, Unreadable> {
    let (new, old) = (argument(ctx, 0)?, argument(ctx, 1)?);
    // SAFETY: offsets point into `FIELDS`.
    unsafe {
        let at = field!(cred_group_info);
        let same = read::kernel::<Address>(new + at)? == read::kernel::<Address>(old + at)?;
        Ok(if same { None } else { Some(read::kernel(new + field!(cred_egid))?) })
    }
}

/// Whether an id is the same in both.
#[inline(always)]
fn same(new: Address, old: Address, at: u64) -> Result<bool, Unreadable> {
    Ok(read::kernel::<u32>(new + at)? == read::kernel::<u32>(old + at)?)
}

/// match-proto:v5.10:include/linux/lsm_hook_defs.h:LSM_HOOK(int, 0, capset, struct cred *new, const struct cred *old, const kernel_cap_t *effective, const kernel_cap_t *inheritable, const kernel_cap_t *permitted)
#[lsm(hook = "capset")]
pub fn sally_capset(_ctx: LsmContext) -> i32 {
    if tag().is_none() { ALLOW } else { ask(SET_CAPABILITIES, 0) }
}

/// Called once the file's ids and capabilities are in the new credentials, and before the process has them.
///
/// match-proto:v5.10:include/linux/lsm_hook_defs.h:LSM_HOOK(int, 0, bprm_creds_from_file, struct linux_binprm *bprm, struct file *file)
#[lsm(hook = "bprm_creds_from_file")]
pub fn sally_exec_creds(ctx: LsmContext) -> i32 {
    if tag().is_none() {
        return ALLOW;
    }
    match gained(&ctx) {
        Ok(None) => ALLOW,
        Ok(Some((operation, detail))) => ask(operation, detail),
        Err(Unreadable) => unreadable(SET_USER, 0),
    }
}

#[inline(always)]
fn gained(ctx: &LsmContext) -> Result<Option<(u32, u32)>, Unreadable> {
    let bprm = argument(ctx, 0)?;
    // SAFETY: offsets point into `FIELDS`.
    unsafe {
        let new: Address = read::kernel(bprm + field!(linux_binprm_cred))?;
        let old: Address = read::kernel(read::current_task() + field!(task_struct_cred))?;
        if !same(new, old, field!(cred_euid))? {
            return Ok(Some((SET_USER, read::kernel(new + field!(cred_euid))?)));
        }
        if !same(new, old, field!(cred_egid))? {
            return Ok(Some((SET_USER, read::kernel(new + field!(cred_egid))?)));
        }
        let at = field!(cred_cap_permitted);
        let more = read::kernel::<u64>(new + at)? & !read::kernel::<u64>(old + at)?;
        Ok(if more == 0 { None } else { Some((SET_CAPABILITIES, more as u32)) })
    }
}
