//! Signals to tagged processes, safe against reused process numbers.

use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use crate::kernel::{Kernel, TaggedTask};

/// Sends a signal to every tagged process that `which` picks and returns how many there were. Each is held by a pidfd while
/// its tag is looked up a second time, so that a number reused in between is not hit.
pub(crate) fn signal(kernel: &Kernel, signal: i32, which: impl Fn(&TaggedTask) -> bool) -> usize {
    let picked = |kernel: &Kernel| -> Vec<TaggedTask> {
        let tasks = kernel.tasks().unwrap_or_else(|error| {
            tracing::error!(%error, "the tagged processes cannot be listed");
            Vec::new()
        });
        tasks.into_iter().filter(|task| which(task)).collect()
    };
    let before = picked(kernel);
    if before.is_empty() {
        return 0;
    }
    let held: Vec<(TaggedTask, OwnedFd)> =
        before.iter().filter_map(|task| Some((*task, open(task.tgid)?))).collect();
    let still = picked(kernel);
    for (task, pidfd) in &held {
        if still.contains(task) {
            send(pidfd, signal);
        }
    }
    before.len()
}

fn open(tgid: u32) -> Option<OwnedFd> {
    // SAFETY: pidfd_open takes two integers and gives a new descriptor or -1.
    #[allow(unsafe_code, reason = "no safe wrapper of pidfd_open")]
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, tgid, 0) };
    let fd = i32::try_from(fd).ok().filter(|fd| *fd >= 0)?;
    // SAFETY: the kernel just made this descriptor for us, so nobody else owns it.
    #[allow(unsafe_code, reason = "taking ownership of a new descriptor")]
    Some(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn send(pidfd: &OwnedFd, signal: i32) {
    // SAFETY: pidfd_send_signal takes integers and a pointer that may be null (no siginfo).
    #[allow(unsafe_code, reason = "no safe wrapper of pidfd_send_signal")]
    unsafe {
        libc::syscall(
            libc::SYS_pidfd_send_signal,
            pidfd.as_raw_fd(),
            signal,
            std::ptr::null::<libc::siginfo_t>(),
            0,
        );
    }
}
