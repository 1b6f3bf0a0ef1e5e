//! LSM `file_ioctl`, `file_ioctl_compat`: the `ioctl` calls that act in somebody else's place.
//!
//! Sees: typing into a terminal (`TIOCSTI`, `TIOCLINUX`) and taking over the console's output (`TIOCCONS`); hanging up
//! a terminal (`TIOCVHANGUP`), which signals all who use it; making a file send signals (`FIOSETOWN`, `SIOCSPGRP`);
//! XFS's own ways to open files by handle; stopping a file system, which would stop all who write to it (`FIFREEZE`,
//! `FS_IOC_SHUTDOWN`); and changing what a file is allowed to be (immutable, fs-verity), which is judged as that. Needs: 5.7 and BPF LSM; 32-bit programs have a hook of their own since
//! 6.8. The argument is not read: it lies in user memory. On error: denied.

use aya_ebpf::{macros::lsm, programs::LsmContext};
use sallyport_sensor_abi::policy::{
    file_op,
    operation::{KERNEL_ACCESS, OPEN_BY_HANDLE, SIGNAL, TERMINAL_INPUT},
};

use crate::{
    file, owned, path,
    read::Unreadable,
    system::{ALLOW, EPERM, argument, ask, ask_outside, tag},
};

const TIOCSTI: u32 = 0x5412;
const TIOCLINUX: u32 = 0x541c;
const TIOCCONS: u32 = 0x541d;
const TIOCVHANGUP: u32 = 0x5437;
const FIOSETOWN: u32 = 0x8901;
const SIOCSPGRP: u32 = 0x8902;
const FIFREEZE: u32 = 0xc004_5877;
/// That of ext4, XFS and others.
const SHUTDOWN: u32 = 0x8004_587d;
/// `FS_IOC_SETFLAGS`, its 32-bit twin, `FS_IOC_FSSETXATTR`, `FS_IOC_ENABLE_VERITY`
const SET_FLAGS: [u32; 4] = [0x4008_6602, 0x4004_6602, 0x401c_5820, 0x4080_6685];
/// Low half of `XFS_IOC_OPEN_BY_HANDLE` and the like; the other half is a size, which differs for 32-bit programs.
const XFS_OPEN: u32 = 0x586b;
const XFS_READLINK: u32 = 0x586c;
const XFS_ATTRIBUTES: u32 = 0x587a;
const XFS_CHANGE_ATTRIBUTES: u32 = 0x587b;

/// match-proto:v5.10:include/linux/lsm_hook_defs.h:LSM_HOOK(int, 0, file_ioctl, struct file *file, unsigned int cmd, unsigned long arg)
#[lsm(hook = "file_ioctl")]
pub fn sally_ioctl(ctx: LsmContext) -> i32 {
    judge(&ctx)
}

/// match-proto:v6.8:include/linux/lsm_hook_defs.h:LSM_HOOK(int, 0, file_ioctl_compat, struct file *file, unsigned int cmd, unsigned long arg)
#[lsm(hook = "file_ioctl_compat")]
pub fn sally_ioctl_compat(ctx: LsmContext) -> i32 {
    judge(&ctx)
}

#[inline(always)]
fn judge(ctx: &LsmContext) -> i32 {
    let command: u32 = ctx.arg(1);
    let low = command & 0xffff;
    let terminal = command == TIOCSTI || command == TIOCLINUX || command == TIOCCONS;
    let signal = command == TIOCVHANGUP || command == FIOSETOWN || command == SIOCSPGRP;
    let handle =
        low == XFS_OPEN || low == XFS_READLINK || low == XFS_ATTRIBUTES || low == XFS_CHANGE_ATTRIBUTES;
    let stop = command == FIFREEZE || command == SHUTDOWN;
    let change = command == SET_FLAGS[0]
        || command == SET_FLAGS[1]
        || command == SET_FLAGS[2]
        || command == SET_FLAGS[3];
    if !(terminal || signal || handle || stop || change) || tag().is_none() {
        return ALLOW;
    }
    if change {
        return match argument(ctx, 0).and_then(path::of_file) {
            Ok((mount, dentry)) => file::judge(file_op::CHANGE, mount, dentry),
            Err(Unreadable) => EPERM,
        };
    }
    if terminal {
        ask(TERMINAL_INPUT, command)
    } else if signal {
        owned::note(argument(ctx, 0));
        ask_outside(SIGNAL, command, true)
    } else if stop {
        ask(KERNEL_ACCESS, command)
    } else {
        ask(OPEN_BY_HANDLE, command)
    }
}
