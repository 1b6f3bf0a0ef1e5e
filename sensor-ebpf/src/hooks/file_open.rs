//! LSM `file_open`, `path_truncate`, `file_truncate`: opening files for reading and for writing, cutting them.
//!
//! Sees: every open of files, folders, devices and fifos, by whatever call (`open`, `openat2`, `open_by_handle_at`,
//! io_uring), with the file found and nothing done to it yet but `O_CREAT` (which is `path_mknod`'s). Not `O_PATH`
//! descriptors, which allow neither; nor the kernel's own opening of what is executed, which is judged as exec. Needs:
//! 5.7 and BPF LSM; `file_truncate` 6.2 (before, `ftruncate` calls `path_truncate`). On error: denied.

use aya_ebpf::{EbpfContext as _, macros::lsm, programs::LsmContext};
use sallyport_sensor_abi::policy::file_op;

use crate::{
    file,
    hooks::{ALLOW, EPERM, prior},
    maps::is_tagged,
    path,
    read::{self, Address, offset},
};

const FMODE_READ: u32 = 1;
const FMODE_WRITE: u32 = 2;
/// `__FMODE_EXEC`, in `f_flags`: opened in order to be executed.
const OPENED_FOR_EXEC: u32 = 0x20;

/// match-proto:v5.10:include/linux/lsm_hook_defs.h:LSM_HOOK(int, 0, file_open, struct file *file)
#[lsm(hook = "file_open")]
pub fn sally_file_open(ctx: LsmContext) -> i32 {
    let before: i32 = ctx.arg(1);
    if before != 0 {
        return prior(before);
    }
    if !is_tagged(ctx.tgid()) {
        return ALLOW;
    }
    let file: Address = read::plain(ctx.arg(0));
    // SAFETY: offsets point into `OFFSETS`.
    let (mode, flags) = unsafe {
        let Ok(mode) = read::kernel::<u32>(file + offset!(file_f_mode)) else { return -EPERM };
        let Ok(flags) = read::kernel::<u32>(file + offset!(file_f_flags)) else { return -EPERM };
        (mode, flags)
    };
    if flags & OPENED_FOR_EXEC != 0 {
        return ALLOW;
    }
    // Access mode 3 (for `ioctl` only) takes the permission to do both.
    let neither = mode & (FMODE_READ | FMODE_WRITE) == 0;
    let Ok((mount, dentry)) = path::of_file(file) else { return -EPERM };
    file::judge_open(neither || mode & FMODE_READ != 0, neither || mode & FMODE_WRITE != 0, mount, dentry)
}

/// match-proto:v5.10:include/linux/lsm_hook_defs.h:LSM_HOOK(int, 0, path_truncate, const struct path *path)
#[lsm(hook = "path_truncate")]
pub fn sally_truncate(ctx: LsmContext) -> i32 {
    let before: i32 = ctx.arg(1);
    if before != 0 {
        return prior(before);
    }
    if !is_tagged(ctx.tgid()) {
        return ALLOW;
    }
    let Ok((mount, dentry)) = path::of_path(read::plain(ctx.arg(0))) else { return -EPERM };
    file::judge(file_op::WRITE, mount, dentry)
}

/// match-proto:v6.2:include/linux/lsm_hook_defs.h:LSM_HOOK(int, 0, file_truncate, struct file *file)
#[lsm(hook = "file_truncate")]
pub fn sally_file_truncate(ctx: LsmContext) -> i32 {
    let before: i32 = ctx.arg(1);
    if before != 0 {
        return prior(before);
    }
    if !is_tagged(ctx.tgid()) {
        return ALLOW;
    }
    let Ok((mount, dentry)) = path::of_file(read::plain(ctx.arg(0))) else { return -EPERM };
    file::judge(file_op::WRITE, mount, dentry)
}
