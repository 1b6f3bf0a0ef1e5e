//! Which system calls are which operation of action `system`. Refuses what the LSM hooks refuse, and no call that they would
//! let pass for want of an operation.

use sallyport_sensor_abi::policy::operation;
use seccompiler::{BackendError, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompRule};

use super::Refusals;

/// Calls by number, with the rules on their arguments of which one must hold; no rules: whatever the arguments are.
pub(super) type Rules = std::collections::BTreeMap<i64, Vec<SeccompRule>>;

// Numbers that are the same on all 64-bit processors, and that `libc` does not have everywhere.
const SYS_MOUNT_SETATTR: i64 = 442;
const SYS_OPEN_TREE_ATTR: i64 = 467;

/// Refused whatever the arguments are.
const CALLS: &[(u32, &[i64])] = &[
    (
        operation::TRACE,
        &[
            libc::SYS_ptrace,
            libc::SYS_process_vm_readv,
            libc::SYS_process_vm_writev,
            libc::SYS_process_madvise,
            libc::SYS_pidfd_getfd,
            libc::SYS_kcmp,
        ],
    ),
    (
        operation::MOUNT,
        &[
            libc::SYS_mount,
            libc::SYS_pivot_root,
            libc::SYS_move_mount,
            libc::SYS_open_tree,
            SYS_OPEN_TREE_ATTR,
            libc::SYS_fsopen,
            libc::SYS_fsconfig,
            libc::SYS_fsmount,
            libc::SYS_fspick,
            SYS_MOUNT_SETATTR,
        ],
    ),
    (operation::UNMOUNT, &[libc::SYS_umount2]),
    (operation::CHROOT, &[libc::SYS_chroot]),
    (operation::NAMESPACE, &[libc::SYS_setns]),
    (operation::SET_CAPABILITIES, &[libc::SYS_capset]),
    (operation::MODULE, &[libc::SYS_init_module, libc::SYS_finit_module, libc::SYS_delete_module]),
    (operation::KEXEC, &[libc::SYS_kexec_load, libc::SYS_kexec_file_load]),
    (operation::BPF, &[libc::SYS_bpf]),
    (operation::PERF, &[libc::SYS_perf_event_open]),
    (operation::KEYRING, &[libc::SYS_keyctl, libc::SYS_add_key, libc::SYS_request_key]),
    (operation::IO_URING, &[libc::SYS_io_uring_setup, libc::SYS_io_uring_enter, libc::SYS_io_uring_register]),
    (operation::OPEN_BY_HANDLE, &[libc::SYS_open_by_handle_at]),
    (operation::REBOOT, &[libc::SYS_reboot]),
    // The last two also tell the time's quality, which needs no privilege; what is asked lies in memory.
    (
        operation::CLOCK,
        &[libc::SYS_settimeofday, libc::SYS_clock_settime, libc::SYS_adjtimex, libc::SYS_clock_adjtime],
    ),
];
/// The same, of one kind of processor.
#[cfg(target_arch = "x86_64")]
const PROCESSOR: &[(u32, &[i64])] = &[(operation::KERNEL_ACCESS, &[libc::SYS_iopl, libc::SYS_ioperm])];
#[cfg(not(target_arch = "x86_64"))]
const PROCESSOR: &[(u32, &[i64])] = &[];

/// `ioctl` requests, and which of their bits count. The other half of XFS's is a size.
const REQUESTS: &[(u32, u32, u64)] = &[
    // TIOCSTI, TIOCLINUX (paste the selection), TIOCCONS.
    (operation::TERMINAL_INPUT, 0x5412, u32::MAX as u64),
    (operation::TERMINAL_INPUT, 0x541c, u32::MAX as u64),
    (operation::TERMINAL_INPUT, 0x541d, u32::MAX as u64),
    // XFS_IOC_OPEN_BY_HANDLE, READLINK, ATTRLIST and ATTRMULTI.
    (operation::OPEN_BY_HANDLE, 0x586b, 0xffff),
    (operation::OPEN_BY_HANDLE, 0x586c, 0xffff),
    (operation::OPEN_BY_HANDLE, 0x587a, 0xffff),
    (operation::OPEN_BY_HANDLE, 0x587b, 0xffff),
];

/// Flags of `clone` that make namespaces. (`CLONE_NEWTIME` is part of a signal number to it.)
const NAMESPACES: [i32; 7] = [
    libc::CLONE_NEWNS,
    libc::CLONE_NEWCGROUP,
    libc::CLONE_NEWUTS,
    libc::CLONE_NEWIPC,
    libc::CLONE_NEWUSER,
    libc::CLONE_NEWPID,
    libc::CLONE_NEWNET,
];
/// Flags of `unshare` that make none: all others are refused, those of later kernels, too.
const UNSHARE_HARMLESS: i32 = libc::CLONE_FS
    | libc::CLONE_FILES
    | libc::CLONE_SYSVSEM
    | libc::CLONE_THREAD
    | libc::CLONE_SIGHAND
    | libc::CLONE_VM;
/// `OPEN_TREE_NAMESPACE` and `FSMOUNT_NAMESPACE` of kernels after 6.19: both make a mount namespace.
const MOUNT_NAMESPACE: u64 = 2;

const PR_SET_MM_EXE_FILE: u64 = 13;
const PR_SET_MM_MAP: u64 = 14;

/// The calls that are refused with `EPERM`.
pub(super) fn rules(refusals: Refusals) -> Result<Rules, BackendError> {
    let mut rules = Rules::new();
    if refusals.has(operation::NAMESPACE) {
        let bit = |argument| move |flag: u64| any_of(argument, flag, flag);
        rules.insert(
            libc::SYS_clone,
            NAMESPACES
                .into_iter()
                .map(|flag| u64::from(flag.cast_unsigned()))
                .map(bit(0))
                .collect::<Result<_, _>>()?,
        );
        let harmless = u64::from(UNSHARE_HARMLESS.cast_unsigned());
        let others = (0..u64::BITS).map(|n| 1 << n).filter(|flag| harmless & flag == 0);
        rules.insert(libc::SYS_unshare, others.map(bit(0)).collect::<Result<_, _>>()?);
        rules.insert(libc::SYS_open_tree, vec![bit(2)(MOUNT_NAMESPACE)?]);
        rules.insert(libc::SYS_fsmount, vec![bit(1)(MOUNT_NAMESPACE)?]);
    }
    let asked = REQUESTS.iter().filter(|(operation, ..)| refusals.has(*operation));
    let asked: Vec<SeccompRule> =
        asked.map(|(_, request, mask)| any_of(1, *mask, u64::from(*request))).collect::<Result<_, _>>()?;
    if !asked.is_empty() {
        rules.insert(libc::SYS_ioctl, asked);
    }
    if refusals.judgement {
        rules.insert(libc::SYS_userfaultfd, Vec::new());
        let set_mm = |what| {
            let option = u64::from(libc::PR_SET_MM.cast_unsigned());
            SeccompRule::new(vec![equal(0, option)?, equal(1, what)?])
        };
        rules.insert(libc::SYS_prctl, vec![set_mm(PR_SET_MM_EXE_FILE)?, set_mm(PR_SET_MM_MAP)?]);
    }
    // Last: they take the place of rules on arguments.
    for (operation, calls) in CALLS.iter().chain(PROCESSOR) {
        if refusals.has(*operation) {
            rules.extend(calls.iter().map(|call| (*call, Vec::new())));
        }
    }
    Ok(rules)
}

/// The calls that change user or group ids to anything but these.
pub(super) fn changes_of_ids(uid: u32, gid: u32) -> Result<Rules, BackendError> {
    const UNCHANGED: u64 = u32::MAX as u64;
    let mut rules = Rules::from([(libc::SYS_setgroups, Vec::new())]);
    for (id, calls) in [
        (
            uid,
            [
                (libc::SYS_setuid, 1),
                (libc::SYS_setreuid, 2),
                (libc::SYS_setresuid, 3),
                (libc::SYS_setfsuid, 1),
            ],
        ),
        (
            gid,
            [
                (libc::SYS_setgid, 1),
                (libc::SYS_setregid, 2),
                (libc::SYS_setresgid, 3),
                (libc::SYS_setfsgid, 1),
            ],
        ),
    ] {
        for (call, n_arguments) in calls {
            let other = |n| SeccompRule::new(vec![differs(n, u64::from(id))?, differs(n, UNCHANGED)?]);
            rules.insert(call, (0..n_arguments).map(other).collect::<Result<_, _>>()?);
        }
    }
    Ok(rules)
}

/// The argument's bits in `mask` are `value`. The kernel looks at 32 bits of requests; flags may have 64.
fn any_of(argument: u8, mask: u64, value: u64) -> Result<SeccompRule, BackendError> {
    let wide = if mask > u64::from(u32::MAX) { SeccompCmpArgLen::Qword } else { SeccompCmpArgLen::Dword };
    SeccompRule::new(vec![SeccompCondition::new(argument, wide, SeccompCmpOp::MaskedEq(mask), value)?])
}

fn equal(argument: u8, value: u64) -> Result<SeccompCondition, BackendError> {
    SeccompCondition::new(argument, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, value)
}

fn differs(argument: u8, value: u64) -> Result<SeccompCondition, BackendError> {
    SeccompCondition::new(argument, SeccompCmpArgLen::Dword, SeccompCmpOp::Ne, value)
}
