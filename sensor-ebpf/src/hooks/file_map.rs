//! LSM `mmap_file`, `file_mprotect`, `mmap_addr`: code that is mapped from files.
//!
//! Sees: what the kernel maps of a program and its loader, what the loader maps of libraries, and whatever else is
//! mapped executable or made so later: so a program that is started as an argument of the dynamic loader is seen, too.
//! Some kernels before 6.2 ask nobody when `remap_file_pages` makes a mapping executable (CVE-2024-47745): sessions cannot use it
//! there, by the one hook that it passes. Needs: 5.7 and BPF LSM, and x86-64 for the last. Misses: code that is written into
//! anonymous memory. On error: denied.

use aya_ebpf::{EbpfContext as _, macros::lsm, programs::LsmContext};
use sallyport_sensor_abi::policy::{file_op, operation::KERNEL_ACCESS};

use crate::{
    file,
    hooks::{ALLOW, EPERM, prior},
    maps::is_tagged,
    path,
    read::{self, Address, offset},
    system,
};

const PROT_EXEC: u64 = 4;

/// match-proto:v5.10:include/linux/lsm_hook_defs.h:LSM_HOOK(int, 0, mmap_file, struct file *file, unsigned long reqprot, unsigned long prot, unsigned long flags)
#[lsm(hook = "mmap_file")]
pub fn sally_mmap(ctx: LsmContext) -> i32 {
    let before: i32 = ctx.arg(4);
    if before != 0 {
        return prior(before);
    }
    if ctx.arg::<u64>(2) & PROT_EXEC == 0 || !is_tagged(ctx.tgid()) {
        return ALLOW;
    }
    judge(read::plain(ctx.arg(0)))
}

/// match-proto:v5.10:include/linux/lsm_hook_defs.h:LSM_HOOK(int, 0, file_mprotect, struct vm_area_struct *vma, unsigned long reqprot, unsigned long prot)
#[lsm(hook = "file_mprotect")]
pub fn sally_mprotect(ctx: LsmContext) -> i32 {
    let before: i32 = ctx.arg(3);
    if before != 0 {
        return prior(before);
    }
    if ctx.arg::<u64>(2) & PROT_EXEC == 0 || !is_tagged(ctx.tgid()) {
        return ALLOW;
    }
    let area: Address = read::plain(ctx.arg(0));
    // SAFETY: points into `OFFSETS`.
    match read::kernel::<Address>(area + unsafe { offset!(vm_area_struct_vm_file) }) {
        Ok(file) => judge(file),
        Err(_) => -EPERM,
    }
}

#[inline(always)]
fn judge(file: Address) -> i32 {
    // Anonymous memory.
    if file == 0 {
        return ALLOW;
    }
    let Ok((mount, dentry)) = path::of_file(file) else { return -EPERM };
    file::judge(file_op::MAP, mount, dentry)
}

/// `remap_file_pages`, of x86-64 and of its 32-bit programs, where it means another call to others.
const REMAP: [u32; 2] = [216, 257];

/// Only on kernels before 6.2.
///
/// match-proto:v5.10:include/linux/lsm_hook_defs.h:LSM_HOOK(int, 0, mmap_addr, unsigned long addr)
#[lsm(hook = "mmap_addr")]
pub fn sally_remap(ctx: LsmContext) -> i32 {
    if !is_tagged(ctx.tgid()) {
        return ALLOW;
    }
    let number = system::call();
    if number == REMAP[0] || number == REMAP[1] && system::is_32_bit() {
        return system::unreadable(KERNEL_ACCESS, number);
    }
    ALLOW
}
