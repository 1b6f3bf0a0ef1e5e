//! LSM `path_chmod`, `path_chown`, `inode_setxattr`, `inode_removexattr`, `inode_set_acl`, `inode_remove_acl`,
//! `inode_file_setattr`: what a file is allowed to be.
//!
//! Sees: mode and owner by whatever call; extended attributes, file capabilities and access lists set as such among
//! them. For attributes the kernel names no mount: the path is that on the first mount of the file system, which is the
//! host's own. Access lists have hooks of their own since 6.2; flags such as immutable are set by `ioctl`, which is in
//! `terminal.rs`, and since 6.17 by `file_setattr`. Needs: 5.7, BPF LSM, `CONFIG_SECURITY_PATH`. On error: denied.

use aya_ebpf::{EbpfContext as _, macros::lsm, programs::LsmContext};
use sallyport_sensor_abi::policy::file_op;

use crate::{
    file,
    hooks::{ALLOW, EPERM, argument, prior},
    maps::is_tagged,
    path,
    read::{self, Address, Unreadable, offset},
};

/// match-proto:v5.10:include/linux/lsm_hook_defs.h:LSM_HOOK(int, 0, path_chmod, const struct path *path, umode_t mode)
#[lsm(hook = "path_chmod")]
pub fn sally_chmod(ctx: LsmContext) -> i32 {
    let before: i32 = ctx.arg(2);
    if before != 0 {
        return prior(before);
    }
    judge(&ctx)
}

/// match-proto:v5.10:include/linux/lsm_hook_defs.h:LSM_HOOK(int, 0, path_chown, const struct path *path, kuid_t uid, kgid_t gid)
#[lsm(hook = "path_chown")]
pub fn sally_chown(ctx: LsmContext) -> i32 {
    let before: i32 = ctx.arg(3);
    if before != 0 {
        return prior(before);
    }
    judge(&ctx)
}

/// `ATTR_UID`, `ATTR_GID`
const OWNER: u32 = 1 << 1 | 1 << 2;

/// Only on kernels that let no program attach to `path_chown`, whose user number is a structure: before 6.1.
///
/// match-proto:v5.10:include/linux/lsm_hook_defs.h:LSM_HOOK(int, 0, inode_setattr, struct dentry *dentry, struct iattr *attr)
#[lsm(hook = "inode_setattr")]
pub fn sally_setattr(ctx: LsmContext) -> i32 {
    let before: i32 = ctx.arg(2);
    if before != 0 {
        return prior(before);
    }
    if !is_tagged(ctx.tgid()) {
        return ALLOW;
    }
    // `ia_valid`, the first field.
    match read::kernel::<u32>(read::plain(ctx.arg(1))) {
        Ok(which) if which & OWNER == 0 => ALLOW,
        Ok(_) => attribute(&ctx, read::plain(ctx.arg(0))),
        Err(Unreadable) => -EPERM,
    }
}

#[inline(always)]
fn judge(ctx: &LsmContext) -> i32 {
    if !is_tagged(ctx.tgid()) {
        return ALLOW;
    }
    let Ok((mount, dentry)) = path::of_path(read::plain(ctx.arg(0))) else { return -EPERM };
    file::judge(file_op::CHANGE, mount, dentry)
}

/// match-proto:v5.10:include/linux/lsm_hook_defs.h:LSM_HOOK(int, 0, inode_setxattr, struct dentry *dentry, const char *name, const void *value, size_t size, int flags)
#[lsm(hook = "inode_setxattr")]
pub fn sally_setxattr(ctx: LsmContext) -> i32 {
    // Since 5.12 there is one argument before these.
    // SAFETY: points into `OFFSETS`.
    let first = unsafe { offset!(xattr_dentry) } == 0;
    attribute(&ctx, if first { argument::<0>(&ctx) } else { argument::<8>(&ctx) })
}

/// match-proto:v5.10:include/linux/lsm_hook_defs.h:LSM_HOOK(int, 0, inode_removexattr, struct dentry *dentry, const char *name)
#[lsm(hook = "inode_removexattr")]
pub fn sally_removexattr(ctx: LsmContext) -> i32 {
    // SAFETY: points into `OFFSETS`.
    let first = unsafe { offset!(xattr_dentry) } == 0;
    attribute(&ctx, if first { argument::<0>(&ctx) } else { argument::<8>(&ctx) })
}

/// match-proto:v6.2:include/linux/lsm_hook_defs.h:LSM_HOOK(int, 0, inode_set_acl, struct mnt_idmap *idmap, struct dentry *dentry, const char *acl_name, struct posix_acl *kacl)
#[lsm(hook = "inode_set_acl")]
pub fn sally_set_acl(ctx: LsmContext) -> i32 {
    attribute(&ctx, read::plain(ctx.arg(1)))
}

/// match-proto:v6.2:include/linux/lsm_hook_defs.h:LSM_HOOK(int, 0, inode_remove_acl, struct mnt_idmap *idmap, struct dentry *dentry, const char *acl_name)
#[lsm(hook = "inode_remove_acl")]
pub fn sally_remove_acl(ctx: LsmContext) -> i32 {
    attribute(&ctx, read::plain(ctx.arg(1)))
}

/// match-proto:v6.17:include/linux/lsm_hook_defs.h:LSM_HOOK(int, 0, inode_file_setattr, struct dentry *dentry, struct file_kattr *fa)
#[lsm(hook = "inode_file_setattr")]
pub fn sally_file_setattr(ctx: LsmContext) -> i32 {
    attribute(&ctx, read::plain(ctx.arg(0)))
}

#[inline(always)]
fn attribute(ctx: &LsmContext, dentry: Address) -> i32 {
    // The answer before ours is not looked at: the kernel runs no program after one that refused.
    if !is_tagged(ctx.tgid()) {
        return ALLOW;
    }
    match first_mount(dentry) {
        Ok(mount) => file::judge(file_op::CHANGE, mount, dentry),
        Err(Unreadable) => -EPERM,
    }
}

/// The `vfsmount` that the file system of a dentry was mounted as first.
#[inline(always)]
fn first_mount(dentry: Address) -> Result<Address, Unreadable> {
    // SAFETY: offsets point into `OFFSETS`.
    unsafe {
        let sb: Address = read::kernel(dentry + offset!(dentry_d_sb))?;
        let first: Address = read::kernel(sb + offset!(super_block_s_mounts))?;
        if first == 0 {
            return Err(Unreadable);
        }
        Ok(first - offset!(mount_mnt_instance) + offset!(mount_mnt))
    }
}
