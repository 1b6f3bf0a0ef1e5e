//! Reads of kernel memory, by offsets that the loader took from the kernel's BTF.

use core::ffi::c_void;

use aya_ebpf::helpers::generated::{bpf_get_current_task, bpf_probe_read_kernel, bpf_probe_read_user};
use sallyport_sensor_abi::kernel::Offsets;

/// Written by the loader, then frozen by the kernel.
#[unsafe(no_mangle)]
// SAFETY: words only; every bit pattern is a value.
static OFFSETS: Offsets = unsafe { core::mem::zeroed() };

/// Reads one offset. A macro since each must be its own volatile load: the compiler knows only zeros.
macro_rules! offset {
    ($field:ident) => {
        $crate::read::load_offset(&raw const (*$crate::read::offsets()).$field)
    };
}
pub(crate) use offset;

#[inline(always)]
pub(crate) const fn offsets() -> *const Offsets {
    &raw const OFFSETS
}

/// The offset behind `field`.
///
/// # Safety
/// `field` must point into [`OFFSETS`].
#[inline(always)]
pub(crate) unsafe fn load_offset(field: *const u32) -> u64 {
    // SAFETY: the caller's promise; `OFFSETS` is always initialised.
    u64::from(unsafe { core::ptr::read_volatile(field) })
}

/// Whether the kernel has the field that [`offset!`] was asked for.
#[inline(always)]
pub(crate) const fn has(offset: u64) -> bool {
    offset != sallyport_sensor_abi::kernel::NO_OFFSET as u64
}

/// A kernel address. Not a pointer: only the helpers here may read through it.
pub(crate) type Address = u64;

/// Could not be read.
pub(crate) struct Unreadable;

/// The same number, which the compiler knows nothing about: what it can prove it does not check again, but the verifier
/// sees only the checks that are left.
#[inline(always)]
pub(crate) fn opaque(mut number: u64) -> u64 {
    // SAFETY: a register is assigned to itself. (Without an instruction there would be two lines of source for one
    // address, which the kernel refuses.)
    unsafe { core::arch::asm!("{0} = {0}", inout(reg) number, options(nostack, nomem, preserves_flags)) };
    number
}

/// One more. The compiler does not turn a loop counter into something else if it does not know the counter; the verifier
/// does know it, and so sees the loop end.
#[inline(always)]
pub(crate) fn next(counter: u32) -> u32 {
    opaque(u64::from(counter) + 1) as u32
}

/// Reads eight bytes of a map value at once, aligned or not: the compiler would read them one by one.
///
/// # Safety
/// They must be readable; the verifier must be able to see it.
#[inline(always)]
pub(crate) unsafe fn word(at: *const u8) -> u64 {
    let value: u64;
    // SAFETY: the caller's promise.
    unsafe {
        core::arch::asm!("{value} = *(u64 *)({at} + 0)", value = out(reg) value, at = in(reg) at, options(nostack, readonly));
    }
    value
}

/// An address that the verifier knows as a pointer (an argument of an LSM hook), as a plain number. Subprograms take
/// nothing else, and 5.10 follows pointers into every branch.
#[inline(always)]
pub(crate) fn plain(mut address: Address) -> Address {
    // SAFETY: only registers change; negated twice it is what it was.
    unsafe {
        core::arch::asm!("{0} = -{0}", "{0} = -{0}", inout(reg) address, options(nostack, nomem, preserves_flags));
    }
    address
}

/// Reads a `T` at kernel address `at`. Faults are caught by the kernel.
#[inline(always)]
pub(crate) fn kernel<T: Copy + Default>(at: Address) -> Result<T, Unreadable> {
    let mut value = T::default();
    // SAFETY: `value` is writable for its size; the kernel checks the source.
    let status =
        unsafe { bpf_probe_read_kernel((&raw mut value).cast(), size_of::<T>() as u32, at as *const c_void) };
    if status == 0 { Ok(value) } else { Err(Unreadable) }
}

/// Copies `len` bytes of kernel memory (or of a map, as a fast memcpy).
///
/// # Safety
/// `into` must be writable for `len` bytes; the verifier must be able to see it.
#[inline(always)]
pub(crate) unsafe fn kernel_bytes(into: *mut u8, len: u32, at: Address) -> Result<(), Unreadable> {
    // SAFETY: the caller's promise; the kernel checks the source.
    let status = unsafe { bpf_probe_read_kernel(into.cast(), len, at as *const c_void) };
    if status == 0 { Ok(()) } else { Err(Unreadable) }
}

/// Copies `len` bytes of the current process's memory.
///
/// # Safety
/// As [`kernel_bytes`].
#[inline(always)]
pub(crate) unsafe fn user_bytes(into: *mut u8, len: u32, at: Address) -> Result<(), Unreadable> {
    // SAFETY: the caller's promise; the kernel checks the source.
    let status = unsafe { bpf_probe_read_user(into.cast(), len, at as *const c_void) };
    if status == 0 { Ok(()) } else { Err(Unreadable) }
}

/// The current thread's `task_struct`.
#[inline(always)]
pub(crate) fn current_task() -> Address {
    // SAFETY: no preconditions.
    unsafe { bpf_get_current_task() }
}
