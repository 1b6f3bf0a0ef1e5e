//! LSM `capable`: what has no hook of its own but needs a capability.
//!
//! Sees: every use of a capability that the process really has. Of these: loading and unloading of modules; reboot and
//! `kexec`; raw I/O; the clock; all that needs network administration; making device files, by which disks could be reached
//! under any name; swapping; `fanotify`, by which files could be kept from others who open them; steering the kernel's audit,
//! and loading policies of other security modules, which could be turned against the sensor;
//! the calls of the mount interface that make mounts without a place (`fsopen`, `fsmount`, `open_tree`, `fspick`,
//! `mount_setattr`); namespaces by `unshare`, `clone` and `setns`; and changing what a process says it runs
//! (`PR_SET_MM_EXE_FILE`), which rules on calling programs go by. Needs: 5.7 and BPF LSM, and x86-64 for all that goes by
//! the number of the system call. Misses: a user namespace made without a capability, which `namespace.rs` sees from
//! 6.1 on. On error: what depends on the number of the call is not judged here.

use aya_ebpf::{macros::lsm, programs::LsmContext};
use sallyport_sensor_abi::policy::operation::{
    CLOCK, KERNEL_ACCESS, KEXEC, MODULE, MOUNT, NAMESPACE, NETWORK_ADMIN, REBOOT, TRACE,
};

use crate::system::{ALLOW, ask, call, is_32_bit, tag};

const CAP_NET_ADMIN: u32 = 12;
const CAP_SYS_MODULE: u32 = 16;
const CAP_SYS_RAWIO: u32 = 17;
const CAP_SYS_ADMIN: u32 = 21;
const CAP_SYS_BOOT: u32 = 22;
const CAP_SYS_RESOURCE: u32 = 24;
const CAP_SYS_TIME: u32 = 25;
const CAP_MKNOD: u32 = 27;
const CAP_AUDIT_CONTROL: u32 = 30;
const CAP_MAC_ADMIN: u32 = 33;
const CAP_CHECKPOINT_RESTORE: u32 = 40;

/// `CAP_OPT_NOAUDIT`: the kernel asks only to decide how much to show or to use of its reserves.
const NO_AUDIT: u32 = 2;

/// System calls of x86-64 and, where they differ, of its 32-bit programs. No number that is here means in the other
/// table a call that would ask for the same capability.
mod call {
    pub(super) const CLONE: [u32; 2] = [56, 120];
    pub(super) const CLONE3: u32 = 435;
    pub(super) const UNSHARE: [u32; 2] = [272, 310];
    pub(super) const SETNS: [u32; 2] = [308, 346];
    pub(super) const PRCTL: [u32; 2] = [157, 172];
    pub(super) const REBOOT: [u32; 2] = [169, 88];
    pub(super) const FANOTIFY_INIT: [u32; 2] = [300, 338];
    pub(super) const SWAPON: u32 = 167;
    pub(super) const SWAPOFF: u32 = 168;
    /// Of 32-bit programs. The first means `unlink` to others, and an overlay asks for the same capability then.
    pub(super) const SWAPON_32: u32 = 87;
    /// As above.
    pub(super) const SWAPOFF_32: u32 = 115;
    pub(super) const OPEN_TREE: u32 = 428;
    pub(super) const FSOPEN: u32 = 430;
    pub(super) const FSMOUNT: u32 = 432;
    pub(super) const FSPICK: u32 = 433;
    pub(super) const MOUNT_SETATTR: u32 = 442;
    pub(super) const OPEN_TREE_ATTR: u32 = 467;
}

/// match-proto:v5.10:include/linux/lsm_hook_defs.h:LSM_HOOK(int, 0, capable, const struct cred *cred, struct user_namespace *ns, int cap, unsigned int opts)
#[lsm(hook = "capable")]
pub fn sally_capable(ctx: LsmContext) -> i32 {
    let capability: u32 = ctx.arg(2);
    if !matches!(
        capability,
        CAP_NET_ADMIN
            | CAP_SYS_MODULE
            | CAP_SYS_RAWIO
            | CAP_SYS_ADMIN
            | CAP_SYS_BOOT
            | CAP_SYS_RESOURCE
            | CAP_SYS_TIME
            | CAP_MKNOD
            | CAP_AUDIT_CONTROL
            | CAP_MAC_ADMIN
            | CAP_CHECKPOINT_RESTORE
    ) || ctx.arg::<u32>(3) & NO_AUDIT != 0
        || tag().is_none()
    {
        return ALLOW;
    }
    let operation = match capability {
        CAP_SYS_MODULE => MODULE,
        CAP_NET_ADMIN => NETWORK_ADMIN,
        CAP_SYS_TIME => CLOCK,
        CAP_SYS_BOOT => match call() {
            number if number == call::REBOOT[0] || number == call::REBOOT[1] => REBOOT,
            _ => KEXEC,
        },
        CAP_SYS_RAWIO | CAP_MKNOD | CAP_AUDIT_CONTROL | CAP_MAC_ADMIN => KERNEL_ACCESS,
        _ => match by_call(capability, call()) {
            Some(operation) => operation,
            None => return ALLOW,
        },
    };
    ask(operation, capability)
}

#[inline(always)]
fn by_call(capability: u32, number: u32) -> Option<u32> {
    if number == call::PRCTL[0] || number == call::PRCTL[1] {
        return Some(TRACE);
    }
    if capability != CAP_SYS_ADMIN {
        return None;
    }
    if number == call::OPEN_TREE
        || number == call::FSOPEN
        || number == call::FSMOUNT
        || number == call::FSPICK
        || number == call::MOUNT_SETATTR
        || number == call::OPEN_TREE_ATTR
    {
        return Some(MOUNT);
    }
    if number == call::FANOTIFY_INIT[0] || number == call::FANOTIFY_INIT[1] || swaps(number) {
        return Some(KERNEL_ACCESS);
    }
    (number == call::CLONE[0]
        || number == call::CLONE[1]
        || number == call::CLONE3
        || number == call::UNSHARE[0]
        || number == call::UNSHARE[1]
        || number == call::SETNS[0]
        || number == call::SETNS[1])
        .then_some(NAMESPACE)
}

#[inline(always)]
fn swaps(number: u32) -> bool {
    number == call::SWAPON
        || number == call::SWAPOFF
        || (number == call::SWAPON_32 || number == call::SWAPOFF_32) && is_32_bit()
}
