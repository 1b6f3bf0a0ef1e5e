//! LSM `inode_unlink`, `inode_rmdir`, `inode_rename`, `file_open`: pins, and files by which the sensor could be harmed.
//!
//! Sees: removing and renaming on a BPF file system, which would detach programs; opening for writing of control
//! group files by who may write to root's, of files below `/proc/PID` of the sensor, and of others named in `guard.rs`.
//! Opening by handle is judged here, too, since it has no hook of its own: by the number of the system call (x86-64;
//! a handle opened with `O_PATH` is seen when that is opened). Needs: 5.7 and BPF LSM. On error: denied.

use aya_ebpf::{macros::lsm, programs::LsmContext};
use sallyport_sensor_abi::policy::operation::{BPF, KERNEL_ACCESS, OPEN_BY_HANDLE, TERMINAL_INPUT};

use crate::{
    guard::{self, Harm},
    read::{self, Address, Unreadable, offset},
    system::{ALLOW, argument, ask, call, guard as refuse, guard_target, tag, unreadable},
};

/// match-proto:v5.10:include/linux/lsm_hook_defs.h:LSM_HOOK(int, 0, inode_unlink, struct inode *dir, struct dentry *dentry)
#[lsm(hook = "inode_unlink")]
pub fn sally_pin_unlink(ctx: LsmContext) -> i32 {
    judge(&ctx)
}

/// match-proto:v5.10:include/linux/lsm_hook_defs.h:LSM_HOOK(int, 0, inode_rmdir, struct inode *dir, struct dentry *dentry)
#[lsm(hook = "inode_rmdir")]
pub fn sally_pin_rmdir(ctx: LsmContext) -> i32 {
    judge(&ctx)
}

/// match-proto:v5.10:include/linux/lsm_hook_defs.h:LSM_HOOK(int, 0, inode_rename, struct inode *old_dir, struct dentry *old_dentry, struct inode *new_dir, struct dentry *new_dentry)
#[lsm(hook = "inode_rename")]
pub fn sally_pin_rename(ctx: LsmContext) -> i32 {
    judge(&ctx)
}

#[inline(always)]
fn judge(ctx: &LsmContext) -> i32 {
    if tag().is_none() {
        return ALLOW;
    }
    match argument(ctx, 0).and_then(guard::is_pin) {
        Ok(false) => ALLOW,
        Ok(true) => refuse(BPF, 0),
        Err(Unreadable) => unreadable(BPF, 0),
    }
}

/// `FMODE_WRITE`
const WRITE: u32 = 2;
/// `open_by_handle_at`, of x86-64 and of its 32-bit programs.
const BY_HANDLE: [u32; 2] = [304, 342];

/// match-proto:v5.10:include/linux/lsm_hook_defs.h:LSM_HOOK(int, 0, file_open, struct file *file)
#[lsm(hook = "file_open")]
pub fn sally_guard_open(ctx: LsmContext) -> i32 {
    if tag().is_none() {
        return ALLOW;
    }
    let number = call();
    if number == BY_HANDLE[0] || number == BY_HANDLE[1] {
        let answer = ask(OPEN_BY_HANDLE, number);
        if answer != ALLOW {
            return answer;
        }
    }
    match argument(&ctx, 0).and_then(written) {
        Ok(Harm::None) => ALLOW,
        Ok(Harm::Kernel) => ask(KERNEL_ACCESS, number),
        Ok(Harm::Keyboard) => ask(TERMINAL_INPUT, number),
        Ok(Harm::Guarded(target)) => guard_target(KERNEL_ACCESS, 0, &target),
        Err(Unreadable) => unreadable(KERNEL_ACCESS, 0),
    }
}

#[inline(always)]
fn written(file: Address) -> Result<Harm, Unreadable> {
    // SAFETY: offsets point into `OFFSETS`.
    unsafe {
        if read::kernel::<u32>(file + offset!(file_f_mode))? & WRITE == 0 {
            return Ok(Harm::None);
        }
        let inode = read::kernel(file + offset!(file_f_inode))?;
        let dentry = read::kernel(file + offset!(file_f_path) + offset!(path_dentry))?;
        guard::written(inode, dentry)
    }
}
