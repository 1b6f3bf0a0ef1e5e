//! Atomic addition, the one atomic instruction that every kernel from 5.10 on has (`BPF_XADD`).
//!
//! `core`'s atomics are left out for this target since older instruction sets cannot return the old value.

use core::arch::asm;

/// Adds to a counter in a map. Wraps, so `u32::MAX` subtracts one.
///
/// # Safety
/// `at` must be an aligned counter in a map value.
#[inline(always)]
pub(crate) unsafe fn add32(at: *mut u32, value: u32) {
    // SAFETY: the caller's promise; the verifier checks the bounds.
    unsafe {
        asm!("lock *(u32 *)({at} + 0) += {value}", at = in(reg) at, value = in(reg) u64::from(value), options(nostack));
    }
}

/// As [`add32`], 64 bits wide.
///
/// # Safety
/// As [`add32`].
#[inline(always)]
pub(crate) unsafe fn add64(at: *mut u64, value: u64) {
    // SAFETY: as in `add32`.
    unsafe {
        asm!("lock *(u64 *)({at} + 0) += {value}", at = in(reg) at, value = in(reg) value, options(nostack));
    }
}
