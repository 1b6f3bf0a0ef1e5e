//! LSM `sb_mount`, `sb_remount`, `sb_umount`, `move_mount`, `sb_pivotroot`, `path_chroot`: what the tree of files is.
//!
//! Sees: `mount`, `umount2`, `move_mount`, `pivot_root`, `chroot`. The calls that make mounts without a place are in
//! `capable.rs`. Guarded, whatever policy says: the BPF file system, the cgroup hierarchy and what those are mounted
//! on, and registered names that are guarded, can be neither unmounted, nor moved, nor covered (covering a folder above
//! such a name is for policy to forbid); and since the old way to move a mount (`MS_MOVE`) does not
//! tell here which one, it is refused. Needs: 5.7 and BPF LSM. On error: denied.

use aya_ebpf::{macros::lsm, programs::LsmContext};
use sallyport_sensor_abi::policy::operation::{CHROOT, MOUNT, UNMOUNT};

use crate::{
    file,
    guard::{self, Place},
    read::{self, Address, Unreadable, offset},
    system::{ALLOW, argument, ask, guard as refuse, tag, unreadable},
};

const MS_MOVE: u32 = 8192;
const MS_REMOUNT: u32 = 32;
const MS_BIND: u32 = 4096;
/// `MS_UNBINDABLE`, `MS_PRIVATE`, `MS_SLAVE`, `MS_SHARED`.
const PROPAGATION: u32 = 0b1111 << 17;

/// match-proto:v5.10:include/linux/lsm_hook_defs.h:LSM_HOOK(int, 0, sb_mount, const char *dev_name, const struct path *path, const char *type, unsigned long flags, void *data)
#[lsm(hook = "sb_mount")]
pub fn sally_mount(ctx: LsmContext) -> i32 {
    if tag().is_none() {
        return ALLOW;
    }
    let flags = ctx.arg::<u64>(3) as u32;
    if flags & MS_MOVE != 0 {
        return refuse(MOUNT, flags);
    }
    // As the kernel reads the flags: this mounts nothing. `unshare --mount` does it to `/`, which must not be covered.
    if flags & (MS_REMOUNT | MS_BIND) == 0 && flags & PROPAGATION != 0 {
        return ask(MOUNT, flags);
    }
    onto(argument(&ctx, 1), MOUNT, flags)
}

/// match-proto:v5.10:include/linux/lsm_hook_defs.h:LSM_HOOK(int, 0, sb_remount, struct super_block *sb, void *mnt_opts)
#[lsm(hook = "sb_remount")]
pub fn sally_remount(ctx: LsmContext) -> i32 {
    if tag().is_none() {
        return ALLOW;
    }
    match argument(&ctx, 0).and_then(guard::file_system) {
        Ok(true) => refuse(MOUNT, 0),
        Ok(false) => ask(MOUNT, 0),
        Err(Unreadable) => unreadable(MOUNT, 0),
    }
}

/// match-proto:v5.10:include/linux/lsm_hook_defs.h:LSM_HOOK(int, 0, sb_umount, struct vfsmount *mnt, int flags)
#[lsm(hook = "sb_umount")]
pub fn sally_umount(ctx: LsmContext) -> i32 {
    if tag().is_none() {
        return ALLOW;
    }
    let flags: u32 = ctx.arg(1);
    match argument(&ctx, 0).and_then(guard::mount) {
        Ok(true) => return refuse(UNMOUNT, flags),
        Ok(false) => {}
        Err(Unreadable) => return unreadable(UNMOUNT, flags),
    }
    match argument(&ctx, 0).and_then(root_name) {
        Ok(true) => refuse(UNMOUNT, flags),
        Ok(false) => ask(UNMOUNT, flags),
        Err(Unreadable) => unreadable(UNMOUNT, flags),
    }
}

/// match-proto:v5.10:include/linux/lsm_hook_defs.h:LSM_HOOK(int, 0, move_mount, const struct path *from_path, const struct path *to_path)
#[lsm(hook = "move_mount")]
pub fn sally_move_mount(ctx: LsmContext) -> i32 {
    if tag().is_none() {
        return ALLOW;
    }
    match argument(&ctx, 0).and_then(place) {
        Ok(Place::Guarded) => return refuse(MOUNT, MS_MOVE),
        Ok(Place::Other) => {}
        Err(Unreadable) => return unreadable(MOUNT, MS_MOVE),
    }
    onto(argument(&ctx, 1), MOUNT, MS_MOVE)
}

/// match-proto:v5.10:include/linux/lsm_hook_defs.h:LSM_HOOK(int, 0, sb_pivotroot, const struct path *old_path, const struct path *new_path)
#[lsm(hook = "sb_pivotroot")]
pub fn sally_pivot(_ctx: LsmContext) -> i32 {
    if tag().is_none() { ALLOW } else { ask(MOUNT, 0) }
}

/// match-proto:v5.10:include/linux/lsm_hook_defs.h:LSM_HOOK(int, 0, path_chroot, const struct path *path)
#[lsm(hook = "path_chroot")]
pub fn sally_chroot(_ctx: LsmContext) -> i32 {
    if tag().is_none() { ALLOW } else { ask(CHROOT, 0) }
}

/// Judges what is mounted on a path.
#[inline(always)]
fn onto(path: Result<Address, Unreadable>, operation: u32, detail: u32) -> i32 {
    match path.and_then(place) {
        Ok(Place::Guarded) => refuse(operation, detail),
        Ok(Place::Other) => ask(operation, detail),
        Err(Unreadable) => unreadable(operation, detail),
    }
}

#[inline(always)]
fn place(path: Address) -> Result<Place, Unreadable> {
    // SAFETY: offsets point into `OFFSETS`.
    let (mount, dentry) =
        unsafe { (read::kernel(path + offset!(path_mnt))?, read::kernel(path + offset!(path_dentry))?) };
    match guard::place(dentry)? {
        Place::Other if file::is_guarded(mount, dentry)? => Ok(Place::Guarded),
        found => Ok(found),
    }
}

/// Whether what a mount shows is a registered name that is guarded.
#[inline(always)]
fn root_name(mount: Address) -> Result<bool, Unreadable> {
    // SAFETY: points into `OFFSETS`.
    let root = unsafe { read::kernel(mount + offset!(vfsmount_mnt_root))? };
    file::is_guarded(mount, root)
}
