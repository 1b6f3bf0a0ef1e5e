//! Reads of kernel memory, by offsets that the loader took from the kernel's BTF.

use core::ffi::c_void;

use aya_ebpf::helpers::generated::{bpf_get_current_task, bpf_probe_read_kernel, bpf_probe_read_user};
use sallyport_sensor_abi::kernel::Offsets;

/// Written by the loader, then frozen by the kernel.
#[unsafe(no_mangle)]
static OFFSETS: Offsets = Offsets {
    linux_binprm_file: 0,
    file_f_path: 0,
    path_mnt: 0,
    path_dentry: 0,
    dentry_d_parent: 0,
    dentry_d_name: 0,
    dentry_d_inode: 0,
    qstr_len: 0,
    qstr_name: 0,
    vfsmount_mnt_root: 0,
    mount_mnt: 0,
    mount_mnt_parent: 0,
    mount_mnt_mountpoint: 0,
    mount_mnt_ns: 0,
    mnt_namespace_user_ns: 0,
    user_namespace_level: 0,
    inode_i_nlink: 0,
    inode_i_ino: 0,
    inode_i_sb: 0,
    super_block_s_dev: 0,
    task_struct_tgid: 0,
    task_struct_real_parent: 0,
    task_struct_mm: 0,
    task_struct_signal: 0,
    task_struct_exit_code: 0,
    task_struct_start_boottime: 0,
    mm_struct_arg_start: 0,
    mm_struct_arg_end: 0,
    signal_struct_live: 0,
    _pad: 0,
};

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
