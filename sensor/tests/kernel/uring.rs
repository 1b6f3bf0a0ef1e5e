//! A connection made through io_uring, by hand: the ring's worker threads must be judged like the process itself.
#![expect(unsafe_code, reason = "io_uring has no safe interface in the libraries used here")]

use std::io::{Error, Result};
use std::net::SocketAddrV4;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::sync::atomic::{AtomicU32, Ordering};

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

/// `struct io_uring_sqe`, as far as `IORING_OP_CONNECT` uses it.
#[repr(C)]
#[derive(Default)]
struct Submission {
    opcode: u8,
    flags: u8,
    ioprio: u16,
    fd: i32,
    /// Length of the address.
    off: u64,
    addr: u64,
    rest: [u64; 5],
}

const _: () = assert!(size_of::<Params>() == 120 && size_of::<Submission>() == 64);

const OP_CONNECT: u8 = 16;
/// Always by a worker thread.
const ASYNC: u8 = 1 << 4;
const ENTER_GETEVENTS: u32 = 1;
const OFF_SQ_RING: i64 = 0;
const OFF_CQ_RING: i64 = 0x800_0000;
const OFF_SQES: i64 = 0x1000_0000;

fn map(fd: &OwnedFd, offset: i64) -> Result<*mut u8> {
    // SAFETY: a new mapping wherever the kernel likes. A page is enough for a ring of one entry.
    let start = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            4096,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_SHARED,
            fd.as_raw_fd(),
            offset,
        )
    };
    if start == libc::MAP_FAILED { Err(Error::last_os_error()) } else { Ok(start.cast()) }
}

fn result(status: libc::c_long) -> Result<libc::c_long> {
    if status < 0 { Err(Error::last_os_error()) } else { Ok(status) }
}

/// Connects `socket` and waits for the outcome.
pub(crate) fn connect(socket: &OwnedFd, address: SocketAddrV4, by_worker: bool) -> Result<()> {
    let mut params = Params::default();
    // SAFETY: the kernel fills in `params`, which has the size that it expects.
    let fd = result(unsafe { libc::syscall(libc::SYS_io_uring_setup, 1u32, &raw mut params) })?;
    // SAFETY: just made, and nobody else's.
    let ring = unsafe { OwnedFd::from_raw_fd(fd as i32) };
    let (submissions, completions, entries) =
        (map(&ring, OFF_SQ_RING)?, map(&ring, OFF_CQ_RING)?, map(&ring, OFF_SQES)?);
    let address = libc::sockaddr_in {
        sin_family: libc::AF_INET as u16,
        sin_port: address.port().to_be(),
        sin_addr: libc::in_addr { s_addr: u32::from(*address.ip()).to_be() },
        sin_zero: [0; 8],
    };
    // SAFETY: offsets that the kernel gave, within the mapped pages; one entry at index 0, then one more tail.
    unsafe {
        entries.cast::<Submission>().write(Submission {
            opcode: OP_CONNECT,
            flags: if by_worker { ASYNC } else { 0 },
            fd: socket.as_raw_fd(),
            off: size_of_val(&address) as u64,
            addr: (&raw const address) as u64,
            ..Submission::default()
        });
        submissions.add(params.sq_off[6] as usize).cast::<u32>().write(0);
        AtomicU32::from_ptr(submissions.add(params.sq_off[1] as usize).cast())
            .fetch_add(1, Ordering::Release);
        result(libc::syscall(
            libc::SYS_io_uring_enter,
            ring.as_raw_fd(),
            1u32,
            1u32,
            ENTER_GETEVENTS,
            0usize,
            0usize,
        ))?;
        // `struct io_uring_cqe`: user_data, res, flags.
        let outcome = completions.add(params.cq_off[5] as usize).add(8).cast::<i32>().read_volatile();
        if outcome < 0 { Err(Error::from_raw_os_error(-outcome)) } else { Ok(()) }
    }
}
