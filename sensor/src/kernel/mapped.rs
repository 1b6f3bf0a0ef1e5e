//! Array maps mapped into memory (`BPF_F_MMAPABLE`): single words are written in place.
//!
//! A map update by system call would replace a whole entry and with it what the kernel programs count there.

#![allow(unsafe_code, reason = "maps memory that the kernel shares; each use argues for itself")]

use std::marker::PhantomData;
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, AtomicU64};

use aya::maps::MapData;

use super::KernelError;

/// The kernel writes here at any time, so there are no references to entries, only pointers and atomics.
#[derive(Debug)]
pub(super) struct Mapped<T> {
    start: NonNull<u8>,
    bytes: usize,
    entries: u32,
    _t: PhantomData<T>,
}

// SAFETY: the mapping is shared memory that lives as long as the value and belongs to no thread; all access is by
// atomics, or by `write` whose callers hold the lock of what they write.
unsafe impl<T> Send for Mapped<T> {}
// SAFETY: as above.
unsafe impl<T> Sync for Mapped<T> {}

impl<T: Copy> Mapped<T> {
    /// The kernel rounds entries up to 8 bytes.
    const STRIDE: usize = size_of::<T>().next_multiple_of(8);

    pub(super) fn new(map: &MapData, name: &'static str, entries: u32) -> Result<Self, KernelError> {
        let bytes = Self::STRIDE * entries as usize;
        // SAFETY: a new mapping at an address of the kernel's choice; nothing else can be affected.
        let start = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                bytes,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                map.fd().as_fd().as_raw_fd(),
                0,
            )
        };
        if start == libc::MAP_FAILED {
            return Err(KernelError::Map {
                map: name,
                action: "map into memory",
                source: std::io::Error::last_os_error().into(),
            });
        }
        let Some(start) = NonNull::new(start.cast()) else {
            return Err(KernelError::Map {
                map: name,
                action: "map into memory",
                source: "it was placed at address zero".into(),
            });
        };
        Ok(Self { start, bytes, entries, _t: PhantomData })
    }

    pub(super) fn len(&self) -> u32 {
        self.entries
    }

    /// Pointer to an entry. Panics beyond the end, like indexing.
    fn entry(&self, index: u32) -> *mut T {
        assert!(index < self.entries, "entry {index} of {}", self.entries);
        // SAFETY: within the mapping, by the assertion; aligned since `STRIDE` is a multiple of 8 and no entry
        // type is aligned to more.
        unsafe { self.start.as_ptr().add(index as usize * Self::STRIDE).cast() }
    }

    /// A copy of an entry. Words that change meanwhile may be of different times.
    pub(super) fn read(&self, index: u32) -> T {
        // SAFETY: `entry` is in bounds and aligned, and every bit pattern is a `T` (integers only). Volatile:
        // the kernel writes to it.
        unsafe { self.entry(index).read_volatile() }
    }

    /// Replaces an entry that no program looks at, in no particular order.
    pub(super) fn write(&self, index: u32, value: &T) {
        // SAFETY: `entry` is in bounds and aligned; the caller keeps others from writing it.
        unsafe { self.entry(index).write_volatile(*value) }
    }

    /// A 32-bit word of an entry, at a byte offset.
    pub(super) fn word(&self, index: u32, offset: usize) -> &AtomicU32 {
        assert!(offset.is_multiple_of(4) && offset + 4 <= size_of::<T>());
        // SAFETY: in bounds and aligned by the assertions; lives as long as `self`; others use atomics, too.
        unsafe { AtomicU32::from_ptr(self.entry(index).cast::<u8>().add(offset).cast()) }
    }

    /// A 64-bit word of an entry, at a byte offset.
    pub(super) fn double_word(&self, index: u32, offset: usize) -> &AtomicU64 {
        assert!(offset.is_multiple_of(8) && offset + 8 <= size_of::<T>());
        // SAFETY: as in `word`.
        unsafe { AtomicU64::from_ptr(self.entry(index).cast::<u8>().add(offset).cast()) }
    }
}

impl<T> Drop for Mapped<T> {
    fn drop(&mut self) {
        // SAFETY: the mapping that `new` made; nothing borrowed from `self` outlives it.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.bytes) };
    }
}

/// Waits until every kernel program that runs now has ended, so that what it may have looked up can be reused.
///
/// Takes milliseconds.
pub(super) fn grace_period() {
    // `MEMBARRIER_CMD_GLOBAL` is `synchronize_rcu()`; programs run as RCU readers.
    const GLOBAL: libc::c_int = 1;
    // SAFETY: takes numbers only.
    let status = unsafe { libc::syscall(libc::SYS_membarrier, GLOBAL, 0, 0) };
    if status != 0 {
        // Refused with `nohz_full`. Programs run for microseconds.
        std::thread::sleep(std::time::Duration::from_millis(200));
    }
}
