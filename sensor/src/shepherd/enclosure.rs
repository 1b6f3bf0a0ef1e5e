//! Processes outside of the session, closed off by Landlock: no signal reaches them, and nothing of them can be traced, read or
//! written (`ptrace`, `process_vm_*`, `pidfd_getfd`, and `/proc/PID/mem`, which seccomp does not see).
//!
//! A Landlock domain that handles nothing but signals is just that (Linux 6.12): a process in it may signal and trace its own
//! domain only, and files, mounts and the network are not touched. A domain cannot be joined, only inherited. So every channel
//! of a session has its own, and a session's other channels are outside, too.
//!
//! Unsafe: Landlock's system calls, of which there are no wrappers.

use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

/// Landlock's first ABI with scopes.
const ABI_WITH_SCOPES: i64 = 6;
/// `LANDLOCK_CREATE_RULESET_VERSION`.
const ASK_VERSION: u32 = 1;
/// `LANDLOCK_SCOPE_SIGNAL`.
const SCOPE_SIGNAL: u64 = 2;

/// `struct landlock_ruleset_attr`.
#[repr(C)]
struct Ruleset {
    handled_access_fs: u64,
    handled_access_net: u64,
    scoped: u64,
}

/// Whether this kernel can do it.
#[must_use]
pub fn is_possible() -> bool {
    // SAFETY: with this flag the kernel takes no pointer and makes no descriptor.
    #[allow(unsafe_code, reason = "no wrapper of Landlock's calls")]
    let version = unsafe {
        libc::syscall(libc::SYS_landlock_create_ruleset, std::ptr::null::<Ruleset>(), 0_usize, ASK_VERSION)
    };
    version >= ABI_WITH_SCOPES
}

/// Closes this process in, for good. Needs `CAP_SYS_ADMIN`.
///
/// # Errors
/// The kernel cannot or does not want to.
pub(crate) fn enter() -> std::io::Result<()> {
    let ruleset = Ruleset { handled_access_fs: 0, handled_access_net: 0, scoped: SCOPE_SIGNAL };
    // SAFETY: the kernel reads as many bytes from `ruleset` as are given.
    #[allow(unsafe_code, reason = "no wrapper of Landlock's calls")]
    let fd = unsafe {
        libc::syscall(libc::SYS_landlock_create_ruleset, &raw const ruleset, size_of::<Ruleset>(), 0_u32)
    };
    let fd = i32::try_from(fd).ok().filter(|fd| *fd >= 0).ok_or_else(std::io::Error::last_os_error)?;
    // SAFETY: it was just made, and nobody else has it.
    #[allow(unsafe_code, reason = "no wrapper of Landlock's calls")]
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    // SAFETY: takes numbers.
    #[allow(unsafe_code, reason = "no wrapper of Landlock's calls")]
    let status = unsafe { libc::syscall(libc::SYS_landlock_restrict_self, fd.as_raw_fd(), 0_u32) };
    if status != 0 { Err(std::io::Error::last_os_error()) } else { Ok(()) }
}
