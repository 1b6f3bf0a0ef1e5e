//! The path of an executable, by walking dentries up to the root of the mount tree.
//!
//! `bpf_d_path` is refused in raw tracepoints and answers relative to a chroot. The walk takes no locks; a name that
//! changes while it is read ends the walk with an error. Paths in mount namespaces of unprivileged users, and on
//! mounts that are in no tree, begin with a component that no host path has.

use sallyport_sensor_abi::{
    PATH_BYTES, PATH_COMPONENTS,
    event::{EXEC_FILELESS, EXEC_PATH_CUT, cause},
    kernel::{DETACHED_COMPONENT, USERNS_COMPONENT},
};

use crate::{
    maps::SCRATCH,
    read::{self, Address, Unreadable, offset},
    scratch::{NAME_MASK, Scratch},
};

/// Result of one step, as a number since subprograms return numbers.
const MORE: u32 = 100;
const DONE: u32 = 101;

/// Resolves the file of `bprm` into the area: path, inode, device, flags.
#[inline(always)]
pub(crate) fn resolve(index: u32, area: *mut Scratch, bprm: Address) -> Result<(), u32> {
    // SAFETY: the caller claimed `area`.
    unsafe {
        (*area).path = PATH_BYTES as u32;
        (*area).flags = EXEC_PATH_CUT;
        (*area).inode = 0;
        (*area).depth = 0;
        (*area).device = 0;
    }
    start(area, bprm).map_err(|Unreadable| cause::READ_FAILED)?;
    let mut turn = 0;
    // A mount point takes two turns.
    while turn < PATH_COMPONENTS as u32 * 2 {
        match walk(index) {
            MORE => turn = read::next(turn),
            DONE => {
                // SAFETY: as above.
                unsafe { (*area).flags &= !EXEC_PATH_CUT };
                return Ok(());
            }
            failure => return Err(failure),
        }
    }
    Err(cause::PATH_TOO_LONG)
}

#[inline(always)]
fn start(area: *mut Scratch, bprm: Address) -> Result<(), Unreadable> {
    // SAFETY: `area` is claimed by the caller; offsets point into `OFFSETS`.
    unsafe {
        let file: Address = read::kernel(bprm + offset!(linux_binprm_file))?;
        let path = file + offset!(file_f_path);
        let dentry: Address = read::kernel(path + offset!(path_dentry))?;
        let mount: Address = read::kernel(path + offset!(path_mnt))?;
        (*area).mount = mount;
        (*area).root = read::kernel(mount + offset!(vfsmount_mnt_root))?;
        (*area).dentry = dentry;
        let inode: Address = read::kernel(dentry + offset!(dentry_d_inode))?;
        (*area).inode = read::kernel(inode + offset!(inode_i_ino))?;
        if read::kernel::<u32>(inode + offset!(inode_i_nlink))? == 0 {
            (*area).flags |= EXEC_FILELESS;
        }
        let sb: Address = read::kernel(inode + offset!(inode_i_sb))?;
        (*area).device = read::kernel(sb + offset!(super_block_s_dev))?;
    }
    Ok(())
}

/// One step upwards. Verified once; called for every component.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn walk(index: u32) -> u32 {
    let Some(area) = SCRATCH.get_ptr_mut(index) else { return cause::READ_FAILED };
    match step(area) {
        Ok(status) => status,
        Err(Unreadable) => cause::READ_FAILED,
    }
}

#[inline(always)]
fn step(area: *mut Scratch) -> Result<u32, Unreadable> {
    // SAFETY: the caller of `walk` claimed the area; offsets point into `OFFSETS`.
    unsafe {
        let dentry = (*area).dentry;
        let vfsmount = (*area).mount;
        if dentry == (*area).root {
            let mount = vfsmount.wrapping_sub(offset!(mount_mnt));
            let above: Address = read::kernel(mount + offset!(mount_mnt_parent))?;
            if above == mount {
                return top(area, mount);
            }
            (*area).dentry = read::kernel(mount + offset!(mount_mnt_mountpoint))?;
            let vfsmount = above + offset!(mount_mnt);
            (*area).mount = vfsmount;
            (*area).root = read::kernel(vfsmount + offset!(vfsmount_mnt_root))?;
            return Ok(MORE);
        }
        let name = dentry + offset!(dentry_d_name);
        // Hash and length, then the address of the text: the loader has made sure of that.
        let [hash_len, text] = read::kernel::<[u64; 2]>(name)?;
        let len = (hash_len >> (offset!(qstr_len) * 8)) as u32;
        if !prepend(area, text, len)? {
            return Ok(cause::PATH_TOO_LONG);
        }
        // A rename in between could have paired one name's length with the other's text.
        if read::kernel::<[u64; 2]>(name)? != [hash_len, text] {
            return Err(Unreadable);
        }
        let above: Address = read::kernel(dentry + offset!(dentry_d_parent))?;
        if above == dentry {
            // The root of a file system that is not the root of this mount: memfd, pipes, sockets.
            return Ok(DONE);
        }
        (*area).dentry = above;
        Ok(MORE)
    }
}

/// Puts `/` and `len` bytes of kernel memory before the path. False: no room.
///
/// # Safety
/// `area` must be claimed.
#[inline(always)]
unsafe fn prepend(area: *mut Scratch, text: Address, len: u32) -> Result<bool, Unreadable> {
    // SAFETY: the caller's promise.
    let path = unsafe { (*area).path };
    // SAFETY: as above.
    let depth = unsafe { (*area).depth } + 1;
    if len > NAME_MASK || path < len + 1 || path as usize > PATH_BYTES || depth as usize > PATH_COMPONENTS {
        return Ok(false);
    }
    let at = (read::opaque(u64::from(path - len)) & (PATH_BYTES as u64 - 1)) as u32;
    // SAFETY: `at < PATH_BYTES`, and `bytes` goes on for 256 bytes after that.
    unsafe {
        let bytes = (&raw mut (*area).bytes).cast::<u8>();
        let len = (read::opaque(u64::from(len)) & u64::from(NAME_MASK)) as u32;
        read::kernel_bytes(bytes.add(at as usize), len, text)?;
        let slash = (read::opaque(u64::from(at.wrapping_sub(1))) & (PATH_BYTES as u64 - 1)) as u32;
        *bytes.add(slash as usize) = b'/';
        (*area).path = slash;
        (*area).depth = depth;
    }
    Ok(true)
}

/// At the root of a mount tree: whose is it?
#[inline(always)]
fn top(area: *mut Scratch, mount: Address) -> Result<u32, Unreadable> {
    // SAFETY: the caller of `walk` claimed the area; offsets point into `OFFSETS`.
    unsafe {
        let namespace: Address = read::kernel(mount + offset!(mount_mnt_ns))?;
        // `IS_ERR_OR_NULL`: internal mounts (memfd's, for one) have -EINVAL.
        let prefix = if namespace == 0 || namespace > u64::MAX - 4096 {
            DETACHED_COMPONENT
        } else {
            let owner: Address = read::kernel(namespace + offset!(mnt_namespace_user_ns))?;
            if read::kernel::<u32>(owner + offset!(user_namespace_level))? == 0 {
                return Ok(DONE);
            }
            USERNS_COMPONENT
        };
        if prepend(area, prefix.as_ptr() as Address, prefix.len() as u32)? {
            Ok(DONE)
        } else {
            Ok(cause::PATH_TOO_LONG)
        }
    }
}
