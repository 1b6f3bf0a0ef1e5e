//! io_uring by hand, one operation at a time: done at once, by a worker, or by the kernel's polling thread.
#![expect(unsafe_code, reason = "io_uring has no safe interface in the libraries used here")]

use std::ffi::CString;
use std::io::{Error, Result};
use std::os::fd::{AsRawFd, FromRawFd as _, OwnedFd};
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use crate::sys::{self, c_path, call, call_fd, text};

/// Who does the operation.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum How {
    /// The process itself, in its system call.
    Inline,
    /// A worker thread (`IOSQE_ASYNC`).
    Worker,
    /// The kernel's polling thread (`IORING_SETUP_SQPOLL`): the process makes no system call for it.
    Poller,
}

/// `struct io_uring_params` (include/uapi/linux/io_uring.h).
#[repr(C)]
#[derive(Default)]
struct Params {
    sq_entries: u32,
    cq_entries: u32,
    flags: u32,
    sq_thread_cpu: u32,
    sq_thread_idle: u32,
    features: u32,
    wq_fd: u32,
    resv: [u32; 3],
    /// head, tail, ring_mask, ring_entries, flags, dropped, array, resv1, user_addr (two words)
    sq_off: [u32; 10],
    /// head, tail, ring_mask, ring_entries, overflow, cqes, flags, resv1, user_addr (two words)
    cq_off: [u32; 10],
}

/// `struct io_uring_sqe`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub(crate) struct Operation {
    pub(crate) opcode: u8,
    pub(crate) flags: u8,
    pub(crate) ioprio: u16,
    pub(crate) fd: i32,
    /// `off`, `addr2`: length of an address, or a second path.
    pub(crate) off: u64,
    pub(crate) addr: u64,
    pub(crate) len: u32,
    /// Flags of the operation.
    pub(crate) special: u32,
    pub(crate) rest: [u64; 4],
}

const _: () = assert!(size_of::<Params>() == 120 && size_of::<Operation>() == 64);

const ASYNC: u8 = 1 << 4;
const SETUP_SQPOLL: u32 = 1 << 1;
const ENTER_GETEVENTS: usize = 1;
const ENTER_SQ_WAKEUP: usize = 2;
const OFF_CQ_RING: usize = 0x800_0000;
const OFF_SQES: usize = 0x1000_0000;
const OP_SENDMSG: u8 = 9;
const OP_CONNECT: u8 = 16;
const OP_OPENAT: u8 = 18;
const OP_OPENAT2: u8 = 28;
/// `IORING_OP_RENAMEAT`, and then UNLINKAT, MKDIRAT, SYMLINKAT, LINKAT.
pub(crate) const OP_RENAMEAT: u8 = 35;
pub(crate) const OP_UNLINKAT: u8 = 36;
pub(crate) const OP_MKDIRAT: u8 = 37;
pub(crate) const OP_LINKAT: u8 = 39;

fn map(ring: &OwnedFd, offset: usize) -> Result<*mut u8> {
    let protection = (libc::PROT_READ | libc::PROT_WRITE) as usize;
    // A page is enough for a ring of one entry.
    let arguments = [0, 4096, protection, libc::MAP_SHARED as usize, sys::fd(ring), offset];
    call(libc::SYS_mmap, &arguments).map(|start| start as *mut u8)
}

/// Does one operation and returns its result.
pub(crate) fn submit(how: How, operation: Operation) -> Result<i32> {
    let mut params = Params::default();
    if how == How::Poller {
        params.flags = SETUP_SQPOLL;
        params.sq_thread_idle = 100;
    }
    let ring = call_fd(libc::SYS_io_uring_setup, &[1, (&raw mut params) as usize])?;
    let (submissions, completions, entries) =
        (map(&ring, 0)?, map(&ring, OFF_CQ_RING)?, map(&ring, OFF_SQES)?);
    let flags = if how == How::Worker { ASYNC } else { 0 };
    // SAFETY: offsets that the kernel gave, within the mapped pages; one entry at index 0, then one more tail.
    unsafe {
        entries.cast::<Operation>().write(Operation { flags, ..operation });
        submissions.add(params.sq_off[6] as usize).cast::<u32>().write(0);
        AtomicU32::from_ptr(submissions.add(params.sq_off[1] as usize).cast()).fetch_add(1, Ordering::SeqCst);
    }
    match how {
        How::Poller => {
            call(libc::SYS_io_uring_enter, &[sys::fd(&ring), 0, 0, ENTER_SQ_WAKEUP, 0, 0])?;
        }
        How::Inline | How::Worker => {
            call(libc::SYS_io_uring_enter, &[sys::fd(&ring), 1, 1, ENTER_GETEVENTS, 0, 0])?;
        }
    }
    let started = Instant::now();
    // SAFETY: as above; the kernel moves the tail when the operation is done.
    let tail = unsafe { AtomicU32::from_ptr(completions.add(params.cq_off[1] as usize).cast()) };
    while tail.load(Ordering::Acquire) == 0 {
        if started.elapsed() > Duration::from_secs(3) {
            return Err(Error::other("io_uring did nothing"));
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    // SAFETY: as above. `struct io_uring_cqe`: user_data, res, flags.
    let outcome = unsafe { completions.add(params.cq_off[5] as usize).add(8).cast::<i32>().read_volatile() };
    if outcome < 0 { Err(Error::from_raw_os_error(-outcome)) } else { Ok(outcome) }
}

fn opened(outcome: i32) -> OwnedFd {
    // SAFETY: just made, and nobody else's.
    unsafe { OwnedFd::from_raw_fd(outcome) }
}

/// `openat`
pub(crate) fn open(path: impl AsRef<Path>, flags: i32, how: How) -> Result<OwnedFd> {
    let path = c_path(path);
    let operation = Operation {
        opcode: OP_OPENAT,
        fd: libc::AT_FDCWD,
        addr: text(&path) as u64,
        len: 0o644,
        special: flags as u32,
        ..Operation::default()
    };
    submit(how, operation).map(opened)
}

/// `openat2`
pub(crate) fn open2(path: impl AsRef<Path>, flags: i32, how: How) -> Result<OwnedFd> {
    let path = c_path(path);
    let open_how = [flags as u64, 0, 0];
    let operation = Operation {
        opcode: OP_OPENAT2,
        fd: libc::AT_FDCWD,
        off: open_how.as_ptr() as u64,
        addr: text(&path) as u64,
        len: size_of_val(&open_how) as u32,
        ..Operation::default()
    };
    submit(how, operation).map(opened)
}

/// `setxattr`
pub(crate) fn set_attribute(path: &CString, name: &std::ffi::CStr, value: &[u8]) -> Result<()> {
    // IORING_OP_SETXATTR (5.19): the path's address stands in `addr3`.
    let operation = Operation {
        opcode: 42,
        addr: name.as_ptr() as u64,
        off: value.as_ptr() as u64,
        len: value.len() as u32,
        rest: [0, 0, text(path) as u64, 0],
        ..Operation::default()
    };
    submit(How::Inline, operation).map(drop)
}

/// `bind` (6.11)
pub(crate) fn bind(socket: &impl AsRawFd, address: &[u8]) -> Result<()> {
    let operation = Operation {
        opcode: 56,
        fd: socket.as_raw_fd(),
        addr: address.as_ptr() as u64,
        off: address.len() as u64,
        ..Operation::default()
    };
    submit(How::Inline, operation).map(drop)
}

/// `listen` (6.11)
pub(crate) fn listen(socket: &impl AsRawFd) -> Result<()> {
    let operation = Operation { opcode: 57, fd: socket.as_raw_fd(), len: 5, ..Operation::default() };
    submit(How::Inline, operation).map(drop)
}

/// `sendto`, without a copy (6.0)
pub(crate) fn send_to(socket: &impl AsRawFd, text: &[u8], address: &[u8]) -> Result<()> {
    // IORING_OP_SEND_ZC: the address in `addr2`, its length in the upper half of the second of the last words.
    let operation = Operation {
        opcode: 47,
        fd: socket.as_raw_fd(),
        addr: text.as_ptr() as u64,
        len: text.len() as u32,
        off: address.as_ptr() as u64,
        rest: [0, (address.len() as u64) << 32, 0, 0],
        ..Operation::default()
    };
    submit(How::Inline, operation).map(drop)
}

/// `connect`
pub(crate) fn connect(socket: &impl AsRawFd, address: &[u8], how: How) -> Result<()> {
    let operation = Operation {
        opcode: OP_CONNECT,
        fd: socket.as_raw_fd(),
        off: address.len() as u64,
        addr: address.as_ptr() as u64,
        ..Operation::default()
    };
    submit(how, operation).map(drop)
}

/// `sendmsg`
pub(crate) fn send(socket: &impl AsRawFd, message: &libc::msghdr, how: How) -> Result<()> {
    let operation = Operation {
        opcode: OP_SENDMSG,
        fd: socket.as_raw_fd(),
        addr: std::ptr::from_ref(message) as u64,
        len: 1,
        ..Operation::default()
    };
    submit(how, operation).map(drop)
}

/// An operation on one or two paths: rename, unlink, mkdir, link.
pub(crate) fn on_paths(opcode: u8, path: &CString, second: Option<&CString>) -> Result<()> {
    let operation = Operation {
        opcode,
        fd: libc::AT_FDCWD,
        addr: text(path) as u64,
        // The second folder's descriptor; for `mkdirat` the mode.
        len: if second.is_some() {
            libc::AT_FDCWD as u32
        } else if opcode == OP_MKDIRAT {
            0o755
        } else {
            0
        },
        off: second.map_or(0, |second| text(second) as u64),
        ..Operation::default()
    };
    submit(How::Inline, operation).map(drop)
}
