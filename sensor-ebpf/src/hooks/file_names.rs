//! LSM `path_mknod`, `path_mkdir`, `path_symlink`, `path_link`, `path_unlink`, `path_rmdir`, `path_rename`: names that
//! come and go.
//!
//! Sees: each of these by whatever call, with the folder locked, so that the name that is judged is the one that is
//! made or removed. A link or a rename gives a file another name, by which other rules may hold; so it takes the right to read
//! and to write the file by the old one. `path_mknod` is also called for `O_CREAT` and for `bind` of a Unix socket. Needs: 5.7, BPF LSM,
//! `CONFIG_SECURITY_PATH`. Misses: names that file systems make by themselves. On error: denied.

use aya_ebpf::{EbpfContext as _, macros::lsm, programs::LsmContext};
use sallyport_sensor_abi::policy::file_op;

use crate::{
    file,
    hooks::{ALLOW, EPERM, argument, prior},
    maps::is_tagged,
    read::{self, Address, Unreadable, offset},
};

/// The mount of a folder that is given as a `struct path`.
#[inline(always)]
fn mount_of(folder: Address) -> Result<Address, Unreadable> {
    // SAFETY: points into `OFFSETS`.
    read::kernel(folder + unsafe { offset!(path_mnt) })
}

/// Judges `op` on a name in a folder: `dir` is its `struct path`.
#[inline(always)]
fn judge(op: u32, dir: Address, dentry: Address) -> i32 {
    match mount_of(read::plain(dir)) {
        Ok(mount) => file::judge(op, mount, read::plain(dentry)),
        Err(Unreadable) => -EPERM,
    }
}

macro_rules! hook {
    ($(#[$doc:meta])* $function:ident, $hook:literal, $arguments:literal, $op:ident) => {
        $(#[$doc])*
        #[lsm(hook = $hook)]
        pub fn $function(ctx: LsmContext) -> i32 {
            let before: i32 = ctx.arg($arguments);
            if before != 0 {
                return prior(before);
            }
            if !is_tagged(ctx.tgid()) {
                return ALLOW;
            }
            judge(file_op::$op, ctx.arg(0), ctx.arg(1))
        }
    };
}

hook!(
    /// match-proto:v5.10:include/linux/lsm_hook_defs.h:LSM_HOOK(int, 0, path_mknod, const struct path *dir, struct dentry *dentry, umode_t mode, unsigned int dev)
    sally_mknod, "path_mknod", 4, CREATE
);
hook!(
    /// match-proto:v5.10:include/linux/lsm_hook_defs.h:LSM_HOOK(int, 0, path_mkdir, const struct path *dir, struct dentry *dentry, umode_t mode)
    sally_mkdir, "path_mkdir", 3, CREATE
);
hook!(
    /// match-proto:v5.10:include/linux/lsm_hook_defs.h:LSM_HOOK(int, 0, path_symlink, const struct path *dir, struct dentry *dentry, const char *old_name)
    sally_symlink, "path_symlink", 3, CREATE
);
hook!(
    /// match-proto:v5.10:include/linux/lsm_hook_defs.h:LSM_HOOK(int, 0, path_unlink, const struct path *dir, struct dentry *dentry)
    sally_unlink, "path_unlink", 2, DELETE
);
hook!(
    /// match-proto:v5.10:include/linux/lsm_hook_defs.h:LSM_HOOK(int, 0, path_rmdir, const struct path *dir, struct dentry *dentry)
    sally_rmdir, "path_rmdir", 2, DELETE
);

/// match-proto:v5.10:include/linux/lsm_hook_defs.h:LSM_HOOK(int, 0, path_link, struct dentry *old_dentry, const struct path *new_dir, struct dentry *new_dentry)
#[lsm(hook = "path_link")]
pub fn sally_link(ctx: LsmContext) -> i32 {
    let before: i32 = ctx.arg(3);
    if before != 0 {
        return prior(before);
    }
    if !is_tagged(ctx.tgid()) {
        return ALLOW;
    }
    // Both names are on one mount: the kernel has made sure of that.
    let Ok(mount) = mount_of(read::plain(ctx.arg(1))) else { return -EPERM };
    let old: Address = read::plain(ctx.arg(0));
    if file::judge(file_op::LINK, mount, old) != ALLOW || file::judge_naming(mount, old) != ALLOW {
        return -EPERM;
    }
    file::judge(file_op::CREATE, mount, read::plain(ctx.arg(2)))
}

const RENAME_EXCHANGE: u32 = 2;

/// match-proto:v5.10:include/linux/lsm_hook_defs.h:LSM_HOOK(int, 0, path_rename, const struct path *old_dir, struct dentry *old_dentry, const struct path *new_dir, struct dentry *new_dentry)
#[lsm(hook = "path_rename")]
pub fn sally_rename(ctx: LsmContext) -> i32 {
    // Before 5.19 there were no flags, and the hook was called once for each way of an exchange.
    // SAFETY: points into `OFFSETS`.
    let with_flags = unsafe { offset!(path_rename_arguments) } == 5;
    // The answer before ours is not looked at: the kernel runs no program after one that refused.
    if !is_tagged(ctx.tgid()) {
        return ALLOW;
    }
    let flags = if with_flags { argument::<32>(&ctx) as u32 } else { 0 };
    let Ok(mount) = mount_of(read::plain(ctx.arg(0))) else { return -EPERM };
    let (old, new): (Address, Address) = (read::plain(ctx.arg(1)), read::plain(ctx.arg(3)));
    if file::judge(file_op::RENAME, mount, old) != ALLOW
        || file::judge_naming(mount, old) != ALLOW
        || file::judge(file_op::CREATE, mount, new) != ALLOW
    {
        return -EPERM;
    }
    // SAFETY: points into `OFFSETS`.
    let Ok(replaced) = read::kernel::<Address>(new + unsafe { offset!(dentry_d_inode) }) else {
        return -EPERM;
    };
    if flags & RENAME_EXCHANGE != 0 {
        if file::judge(file_op::RENAME, mount, new) != ALLOW || file::judge_naming(mount, new) != ALLOW {
            return -EPERM;
        }
        return file::judge(file_op::CREATE, mount, old);
    }
    // An exchange before 5.19 is judged as two renames that replace, which is stricter.
    if replaced == 0 { ALLOW } else { file::judge(file_op::DELETE, mount, new) }
}
