//! LSM `kernel_read_file`, `kernel_load_data`, `kernel_module_request`, `locked_down`, `bpf`, `perf_event_open`: ways
//! into the kernel itself.
//!
//! Sees: modules and kernels that are loaded from files and from memory, firmware from memory, IMA policies; modules
//! that the kernel would fetch because a process asks for what they do; all that lockdown lists (kernel memory, I/O
//! ports, kprobes…); every `bpf()` and `perf_event_open()`. Needs: 5.10 and BPF LSM. Unloading of modules, and all
//! else that needs a capability only, is in `capable.rs`. On error: denied.

use aya_ebpf::{macros::lsm, programs::LsmContext};
use sallyport_sensor_abi::policy::operation::{BPF, KERNEL_ACCESS, KEXEC, MODULE, PERF};

use crate::system::{ALLOW, ask, guard, tag};

/// `enum kernel_read_file_id`, `enum kernel_load_data_id`: the same numbers, on all kernels so far.
mod id {
    pub(super) const FIRMWARE: u32 = 1;
    pub(super) const MODULE: u32 = 2;
    pub(super) const KEXEC_IMAGE: u32 = 3;
    pub(super) const KEXEC_INITRAMFS: u32 = 4;
    pub(super) const POLICY: u32 = 5;
    /// Since 6.18 or so.
    pub(super) const MODULE_COMPRESSED: u32 = 7;
}

/// match-proto:v5.10:include/linux/lsm_hook_defs.h:LSM_HOOK(int, 0, kernel_read_file, struct file *file, enum kernel_read_file_id id, bool contents)
#[lsm(hook = "kernel_read_file")]
pub fn sally_read_file(ctx: LsmContext) -> i32 {
    if tag().is_none() {
        return ALLOW;
    }
    let id: u32 = ctx.arg(1);
    // Firmware files are what drivers ask for, not the process.
    if id == id::FIRMWARE { ALLOW } else { loaded(id) }
}

/// match-proto:v5.10:include/linux/lsm_hook_defs.h:LSM_HOOK(int, 0, kernel_load_data, enum kernel_load_data_id id, bool contents)
#[lsm(hook = "kernel_load_data")]
pub fn sally_load_data(ctx: LsmContext) -> i32 {
    if tag().is_none() { ALLOW } else { loaded(ctx.arg(0)) }
}

#[inline(always)]
fn loaded(id: u32) -> i32 {
    match id {
        id::FIRMWARE | id::MODULE | id::MODULE_COMPRESSED => ask(MODULE, id),
        id::KEXEC_IMAGE | id::KEXEC_INITRAMFS => ask(KEXEC, id),
        id::POLICY => ask(KERNEL_ACCESS, id),
        _ => ALLOW,
    }
}

/// match-proto:v5.10:include/linux/lsm_hook_defs.h:LSM_HOOK(int, 0, kernel_module_request, char *kmod_name)
#[lsm(hook = "kernel_module_request")]
pub fn sally_module_request(_ctx: LsmContext) -> i32 {
    if tag().is_none() { ALLOW } else { ask(MODULE, 0) }
}

/// match-proto:v5.10:include/linux/lsm_hook_defs.h:LSM_HOOK(int, 0, locked_down, enum lockdown_reason what)
#[lsm(hook = "locked_down")]
pub fn sally_locked_down(ctx: LsmContext) -> i32 {
    if tag().is_none() { ALLOW } else { ask(KERNEL_ACCESS, ctx.arg(0)) }
}

/// Commands of `bpf()` that get at objects which exist already: ours could be among them.
mod command {
    pub(super) const OBJ_GET: u32 = 7;
    pub(super) const PROG_ATTACH: u32 = 8;
    pub(super) const PROG_DETACH: u32 = 9;
    pub(super) const PROG_GET_FD_BY_ID: u32 = 13;
    pub(super) const MAP_GET_FD_BY_ID: u32 = 14;
    pub(super) const LINK_GET_FD_BY_ID: u32 = 30;
    pub(super) const LINK_DETACH: u32 = 34;
}

/// Some kernels have a fourth argument (`kernel`, since 6.15); it is not read.
///
/// match-proto:v5.10:include/linux/lsm_hook_defs.h:LSM_HOOK(int, 0, bpf, int cmd, union bpf_attr *attr, unsigned int size)
#[lsm(hook = "bpf")]
pub fn sally_bpf(ctx: LsmContext) -> i32 {
    if tag().is_none() {
        return ALLOW;
    }
    let command: u32 = ctx.arg(0);
    if command == command::OBJ_GET
        || command == command::PROG_ATTACH
        || command == command::PROG_DETACH
        || command == command::PROG_GET_FD_BY_ID
        || command == command::MAP_GET_FD_BY_ID
        || command == command::LINK_GET_FD_BY_ID
        || command == command::LINK_DETACH
    {
        return guard(BPF, command);
    }
    ask(BPF, command)
}

/// Its arguments differ between kernels and are not read.
///
/// match-proto:v5.10:include/linux/lsm_hook_defs.h:LSM_HOOK(int, 0, perf_event_open, struct perf_event_attr *attr, int type)
#[lsm(hook = "perf_event_open")]
pub fn sally_perf(_ctx: LsmContext) -> i32 {
    if tag().is_none() { ALLOW } else { ask(PERF, 0) }
}
