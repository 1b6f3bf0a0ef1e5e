//! Whether a file still exists that has lost its name: by its file handle, which no later file with the same inode number has.

#![allow(unsafe_code, reason = "file handles have no safe wrappers")]

use std::ffi::CString;
use std::fs::File;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::Path;

use crate::enrich::Mounts;

/// `MAX_HANDLE_SZ`.
const HANDLE_BYTES: usize = 128;

/// `struct file_handle` with room for the largest handle.
#[repr(C)]
#[derive(Clone, Copy)]
struct Raw {
    bytes: u32,
    kind: i32,
    handle: [u8; HANDLE_BYTES],
}

/// A file, whatever it is called.
#[derive(Clone)]
pub(super) struct Handle {
    raw: Raw,
    mount: i32,
}

impl Handle {
    /// Of a file or link; none if its file system has no handles.
    pub(super) fn of(path: &Path) -> Option<Self> {
        let path = CString::new(path.as_os_str().as_bytes()).ok()?;
        let mut raw = Raw { bytes: HANDLE_BYTES as u32, kind: 0, handle: [0; HANDLE_BYTES] };
        let mut mount = 0_i32;
        // SAFETY: `path` ends with a zero byte; `raw` has the layout of `file_handle` and says how much room it has; both
        // live locals are written to.
        let status = unsafe {
            libc::syscall(
                libc::SYS_name_to_handle_at,
                libc::AT_FDCWD,
                path.as_ptr(),
                &raw mut raw,
                &raw mut mount,
                0,
            )
        };
        (status == 0).then_some(Self { raw, mount })
    }

    /// Whether it still exists and has a name somewhere.
    pub(super) fn exists(&self, mounts: &Mounts) -> bool {
        let Some(point) = u64::try_from(self.mount).ok().and_then(|id| mounts.point(id)) else {
            return false;
        };
        let folder = File::options().read(true).custom_flags(libc::O_DIRECTORY | libc::O_CLOEXEC).open(point);
        let Ok(folder) = folder else { return false };
        let mut raw = self.raw;
        // SAFETY: a descriptor that is open, and a handle that the kernel made, which it only reads.
        let fd = unsafe {
            libc::syscall(
                libc::SYS_open_by_handle_at,
                folder.as_raw_fd(),
                &raw mut raw,
                libc::O_PATH | libc::O_CLOEXEC,
            )
        };
        let Some(fd) = i32::try_from(fd).ok().filter(|fd| *fd >= 0) else { return false };
        // SAFETY: the kernel just made this descriptor for us.
        let file = File::from(unsafe { OwnedFd::from_raw_fd(fd) });
        file.metadata().is_ok_and(|metadata| metadata.nlink() > 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_known_by_any_name_and_until_it_is_gone() {
        if !nix::unistd::geteuid().is_root() {
            eprintln!("skipped: only root can open files by handle");
            return;
        }
        let dir = tempfile::tempdir().expect("dir");
        let (one, two) = (dir.path().join("one"), dir.path().join("two"));
        std::fs::write(&one, "x").expect("written");
        let Some(handle) = Handle::of(&one) else {
            eprintln!("skipped: this file system has no handles");
            return;
        };
        let mounts = Mounts::read();
        assert!(handle.exists(&mounts));
        std::fs::rename(&one, &two).expect("renamed");
        assert!(handle.exists(&mounts), "by its new name");
        std::fs::remove_file(&two).expect("removed");
        // Very likely with the same inode number.
        std::fs::write(&one, "y").expect("written");
        assert!(!handle.exists(&mounts), "that is another file");
    }
}
