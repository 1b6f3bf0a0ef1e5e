//! The path of a file, by walking dentries up to the root of the mount tree.
//!
//! `bpf_d_path` is refused in raw tracepoints and answers relative to a chroot. The walk takes no locks; a name that
//! changes while it is read ends the walk with an error. Paths in mount namespaces of unprivileged users, and on
//! mounts that are in no tree, begin with a component that no host path has. Registered names (`NAMES`) that the walk
//! meets are noted, see [`crate::names`].

use sallyport_sensor_abi::{
    PATH_BYTES, PATH_COMPONENTS,
    event::{EXEC_FILELESS, EXEC_PATH_CUT, cause},
    kernel::{DETACHED_COMPONENT, USERNS_COMPONENT},
};

use crate::{
    maps::SCRATCH,
    names,
    read::{self, Address, Unreadable, offset},
    scratch::{NAME_MASK, Scratch},
};

/// [`Scratch::place`]: in a tree of mounts.
pub(crate) const IN_TREE: u32 = 0;
/// [`Scratch::place`]: on a mount of the kernel's own (memfd, pipes, the lower files of an overlay).
pub(crate) const INTERNAL: u32 = 1;

/// Result of one step, as a number since subprograms return numbers.
const MORE: u32 = 100;
const DONE: u32 = 101;

/// Resolves the path of `dentry` on `mount` into the area: path, inode, device, mode, flags, registered names.
#[inline(always)]
pub(crate) fn resolve(index: u32, area: *mut Scratch, mount: Address, dentry: Address) -> Result<(), u32> {
    // SAFETY: the caller claimed `area`.
    unsafe {
        (*area).path = PATH_BYTES as u32;
        (*area).flags = EXEC_PATH_CUT;
        (*area).inode = 0;
        (*area).depth = 0;
        (*area).device = 0;
        (*area).mode = 0;
        (*area).place = IN_TREE;
        (*area).part = 0;
        (*area).hits = 0;
        (*area).name_flags = 0;
    }
    start(area, mount, dentry).map_err(|Unreadable| cause::READ_FAILED)?;
    climb(index, area)
}

/// As [`resolve`], for an open file.
#[inline(always)]
pub(crate) fn resolve_file(index: u32, area: *mut Scratch, file: Address) -> Result<(), u32> {
    match of_file(file) {
        Ok((mount, dentry)) => resolve(index, area, mount, dentry),
        Err(Unreadable) => {
            // SAFETY: the caller claimed `area`.
            unsafe {
                (*area).path = PATH_BYTES as u32;
                (*area).flags = EXEC_PATH_CUT;
                (*area).hits = 0;
            }
            Err(cause::READ_FAILED)
        }
    }
}

/// `vfsmount` and dentry of an open file.
#[inline(always)]
pub(crate) fn of_file(file: Address) -> Result<(Address, Address), Unreadable> {
    // SAFETY: points into `OFFSETS`.
    of_path(file + unsafe { offset!(file_f_path) })
}

/// `vfsmount` and dentry of a `struct path`.
#[inline(always)]
pub(crate) fn of_path(path: Address) -> Result<(Address, Address), Unreadable> {
    // SAFETY: points into `OFFSETS`.
    unsafe { Ok((read::kernel(path + offset!(path_mnt))?, read::kernel(path + offset!(path_dentry))?)) }
}

/// Walks on from where the area says, to the end.
#[inline(always)]
pub(crate) fn climb(index: u32, area: *mut Scratch) -> Result<(), u32> {
    match climb_all(index) {
        DONE => {
            // SAFETY: the caller claimed `area`.
            unsafe { (*area).flags &= !EXEC_PATH_CUT };
            Ok(())
        }
        failure => Err(failure),
    }
}

/// [`DONE`], or one of [`cause`].
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn climb_all(index: u32) -> u32 {
    let mut turn = 0;
    // A mount point takes two turns.
    while turn < PATH_COMPONENTS as u32 * 2 {
        match walk(index) {
            MORE => turn = read::next(turn),
            outcome => return outcome,
        }
    }
    cause::PATH_TOO_LONG
}

#[inline(always)]
fn start(area: *mut Scratch, mount: Address, dentry: Address) -> Result<(), Unreadable> {
    // SAFETY: `area` is claimed by the caller; offsets point into `OFFSETS`.
    unsafe {
        (*area).mount = mount;
        (*area).root = read::kernel(mount + offset!(vfsmount_mnt_root))?;
        (*area).dentry = dentry;
        let inode: Address = read::kernel(dentry + offset!(dentry_d_inode))?;
        // A name that is about to be given to something has no inode.
        if inode != 0 {
            (*area).inode = read::kernel(inode + offset!(inode_i_ino))?;
            (*area).mode = u32::from(read::kernel::<u16>(inode + offset!(inode_i_mode))?);
            if read::kernel::<u32>(inode + offset!(inode_i_nlink))? == 0 {
                (*area).flags |= EXEC_FILELESS;
            }
        }
        let sb: Address = read::kernel(dentry + offset!(dentry_d_sb))?;
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

/// `d_parent`, `d_name` and `d_inode`, which follow each other: the loader has made sure of that.
type Dentry = [u64; 4];

#[inline(always)]
fn step(area: *mut Scratch) -> Result<u32, Unreadable> {
    // SAFETY: the caller of `walk` claimed the area; offsets point into `OFFSETS`.
    unsafe {
        let dentry = (*area).dentry;
        // Hash and length of the name are in one word.
        let [above, hash_len, text, inode] = read::kernel::<Dentry>(dentry + offset!(dentry_d_parent))?;
        if inode != 0 {
            names::note(area, inode)?;
        }
        if dentry == (*area).root {
            return cross(area, dentry, above);
        }
        let len = (hash_len >> (offset!(qstr_len) * 8)) as u32;
        if !prepend(area, text, len)? {
            return Ok(cause::PATH_TOO_LONG);
        }
        // A rename in between could have paired one name's length with the other's text.
        if read::kernel::<[u64; 2]>(dentry + offset!(dentry_d_name))? != [hash_len, text] {
            return Err(Unreadable);
        }
        if above == dentry {
            return rootless(area);
        }
        (*area).dentry = above;
        Ok(MORE)
    }
}

/// From the root of a mount to what it is mounted on.
///
/// # Safety
/// `area` must be claimed.
#[inline(always)]
unsafe fn cross(area: *mut Scratch, root: Address, above_root: Address) -> Result<u32, Unreadable> {
    // SAFETY: the caller's promise; offsets point into `OFFSETS`.
    unsafe {
        if (*area).part == 0 && above_root != root {
            (*area).part = root;
            (*area).part_from = (*area).path;
        }
        let mount = (*area).mount.wrapping_sub(offset!(mount_mnt));
        let above: Address = read::kernel(mount + offset!(mount_mnt_parent))?;
        if above == mount {
            return top(area, mount);
        }
        (*area).dentry = read::kernel(mount + offset!(mount_mnt_mountpoint))?;
        let vfsmount = above + offset!(mount_mnt);
        (*area).mount = vfsmount;
        (*area).root = read::kernel(vfsmount + offset!(vfsmount_mnt_root))?;
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

/// The namespace that a mount is in. `None`: it is one of the kernel's own mounts.
#[inline(always)]
fn namespace(mount: Address) -> Result<Option<Address>, Unreadable> {
    // SAFETY: points into `OFFSETS`.
    let namespace: Address = read::kernel(mount + unsafe { offset!(mount_mnt_ns) })?;
    // `MNT_NS_INTERNAL` is an error number in place of an address.
    Ok((namespace <= u64::MAX - 4096).then_some(namespace))
}

/// At the root of a file system that is not the root of this mount: memfd, pipes, sockets; or a file opened by handle
/// whose folder nobody knows.
#[inline(always)]
fn rootless(area: *mut Scratch) -> Result<u32, Unreadable> {
    // SAFETY: the caller of `walk` claimed the area; offsets point into `OFFSETS`.
    unsafe {
        let mount = (*area).mount.wrapping_sub(offset!(mount_mnt));
        if namespace(mount)?.is_none() {
            (*area).place = INTERNAL;
            return Ok(DONE);
        }
        prefix(area, DETACHED_COMPONENT)
    }
}

/// At the root of a mount tree: whose is it?
#[inline(always)]
fn top(area: *mut Scratch, mount: Address) -> Result<u32, Unreadable> {
    // SAFETY: the caller of `walk` claimed the area; offsets point into `OFFSETS`.
    unsafe {
        let Some(namespace) = namespace(mount)? else {
            (*area).place = INTERNAL;
            return prefix(area, DETACHED_COMPONENT);
        };
        // None: it was taken out of its tree. One without a number: it was never put into one (`fsmount`, `open_tree`).
        if namespace == 0 || read::kernel::<u64>(namespace + offset!(mnt_namespace_id))? == 0 {
            return prefix(area, DETACHED_COMPONENT);
        }
        let owner: Address = read::kernel(namespace + offset!(mnt_namespace_user_ns))?;
        if read::kernel::<u32>(owner + offset!(user_namespace_level))? == 0 {
            // The root itself.
            let root = (*area).depth == 0;
            return if root { prefix(area, &DETACHED_COMPONENT[..0]) } else { Ok(DONE) };
        }
        prefix(area, USERNS_COMPONENT)
    }
}

/// Ends the walk with a component before all others.
///
/// # Safety
/// `area` must be claimed.
#[inline(always)]
unsafe fn prefix(area: *mut Scratch, component: &str) -> Result<u32, Unreadable> {
    // SAFETY: the caller's promise.
    let fits = unsafe { prepend(area, component.as_ptr() as Address, component.len() as u32)? };
    Ok(if fits { DONE } else { cause::PATH_TOO_LONG })
}
