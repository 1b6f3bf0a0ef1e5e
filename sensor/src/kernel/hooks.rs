//! The hooks of action `system`, of sockets and of the guards: which program, where, and what is not judged without it.

use std::sync::OnceLock;

use btf_rs::{Btf, Type};

use super::Mode;
use super::attach::Hook;
use super::offsets::VMLINUX;

/// Required by what it judges; those that some kernels lack are [`Hook::OptionalLsm`].
pub(super) const SYSTEM: &[(&str, Hook)] = &[
    // The guards first: nothing may be done to the others while they are attached.
    ("sally_bpf", Hook::Lsm("bpf")),
    ("sally_pin_unlink", Hook::Lsm("inode_unlink")),
    ("sally_pin_rmdir", Hook::Lsm("inode_rmdir")),
    ("sally_pin_rename", Hook::Lsm("inode_rename")),
    ("sally_guard_open", Hook::Lsm("file_open")),
    ("sally_signal", Hook::Lsm("task_kill")),
    ("sally_own", Hook::Lsm("file_fcntl")),
    ("sally_send_own", Hook::Lsm("file_send_sigiotask")),
    ("sally_trace", Hook::Lsm("ptrace_access_check")),
    ("sally_traceme", Hook::Lsm("ptrace_traceme")),
    ("sally_rlimit", Hook::Lsm("task_setrlimit")),
    ("sally_nice", Hook::Lsm("task_setnice")),
    ("sally_scheduler", Hook::Lsm("task_setscheduler")),
    ("sally_ioprio", Hook::Lsm("task_setioprio")),
    ("sally_memory", Hook::Lsm("task_movememory")),
    ("sally_birth", Hook::Lsm("task_alloc")),
    ("sally_lock", Hook::Lsm("file_lock")),
    ("sally_task_alloc", Hook::Lsm("task_alloc")),
    ("sally_mount", Hook::Lsm("sb_mount")),
    ("sally_remount", Hook::Lsm("sb_remount")),
    ("sally_umount", Hook::Lsm("sb_umount")),
    ("sally_move_mount", Hook::Lsm("move_mount")),
    ("sally_pivot", Hook::Lsm("sb_pivotroot")),
    ("sally_chroot", Hook::Lsm("path_chroot")),
    ("sally_capable", Hook::Lsm("capable")),
    (
        "sally_userns",
        Hook::OptionalLsm(
            "userns_create",
            "making a user namespace (`userns_create` came with Linux 6.1; the session leader's seccomp filter stands in)",
        ),
    ),
    ("sally_setuid", Hook::Lsm("task_fix_setuid")),
    ("sally_setgid", Hook::Lsm("task_fix_setgid")),
    (
        "sally_setgroups",
        Hook::OptionalLsm(
            "task_fix_setgroups",
            "`setgroups` (`task_fix_setgroups` came with Linux 6.1); `setgid` and `setuid` are",
        ),
    ),
    ("sally_capset", Hook::Lsm("capset")),
    ("sally_exec_creds", Hook::Lsm("bprm_creds_from_file")),
    ("sally_read_file", Hook::Lsm("kernel_read_file")),
    ("sally_load_data", Hook::Lsm("kernel_load_data")),
    ("sally_module_request", Hook::Lsm("kernel_module_request")),
    ("sally_locked_down", Hook::Lsm("locked_down")),
    (
        "sally_perf",
        Hook::OptionalLsm(
            "perf_event_open",
            "`perf_event_open` (the kernel is built without CONFIG_PERF_EVENTS, or lacks the hook)",
        ),
    ),
    (
        "sally_key",
        Hook::OptionalLsm("key_permission", "keys of others (the kernel is built without CONFIG_KEYS)"),
    ),
    (
        "sally_key_request",
        Hook::OptionalLsm(
            "key_alloc",
            "`request_key` calling out to a helper program (the kernel is built without CONFIG_KEYS)",
        ),
    ),
    (
        "sally_sqpoll",
        Hook::OptionalLsm(
            "uring_sqpoll",
            "io_uring with a polling thread (`uring_sqpoll` came with Linux 5.16); what that thread does is",
        ),
    ),
    (
        "sally_personality",
        Hook::OptionalLsm(
            "uring_override_creds",
            "io_uring with another's credentials (`uring_override_creds` came with Linux 5.16)",
        ),
    ),
    ("sally_ioctl", Hook::Lsm("file_ioctl")),
    // Where it is missing, 32-bit programs pass the other one.
    ("sally_ioctl_compat", Hook::OptionalLsm("file_ioctl_compat", "")),
    ("sally_receive", Hook::Lsm("file_receive")),
    ("sally_unix_connect", Hook::Lsm("unix_stream_connect")),
    ("sally_unix_send", Hook::Lsm("unix_may_send")),
    ("sally_route_option", Hook::Lsm("socket_setsockopt")),
    ("sally_route_message", Hook::Lsm("socket_sendmsg")),
    ("sally_listen", Hook::Lsm("socket_listen")),
    ("sally_bind4", Hook::CgroupAddress),
    ("sally_bind6", Hook::CgroupAddress),
    ("sally_bound4", Hook::CgroupSocket),
    ("sally_bound6", Hook::CgroupSocket),
];

impl Hook {
    /// The name of its LSM hook.
    pub(super) fn lsm(self) -> Option<&'static str> {
        match self {
            Self::Lsm(name) | Self::OptionalLsm(name, _) | Self::InPlaceOf(_, name) => Some(name),
            _ => None,
        }
    }

    /// Whether it is attached in that mode.
    pub(super) fn is_of(self, mode: Mode) -> bool {
        match self {
            Self::OptionalRawTracepoint(_) => mode == Mode::Tracepoint,
            _ => mode == Mode::Lsm || self.lsm().is_none(),
        }
    }

    /// An optional hook that the running kernel does not have, or one that is not needed there.
    pub(super) fn is_missing(self) -> bool {
        match self {
            Self::OptionalLsm(name, _) | Self::OptionalRawTracepoint(name) => missing().contains(&name),
            Self::InPlaceOf(name, _) => !missing().contains(&name),
            _ => false,
        }
    }
}

/// The optional hooks that the running kernel does not have. Without type information, all of them.
fn missing() -> &'static [&'static str] {
    static MISSING: OnceLock<Vec<&str>> = OnceLock::new();
    MISSING.get_or_init(|| {
        let btf = Btf::from_file(VMLINUX).ok();
        let has = |name: &str| {
            let function = format!("bpf_lsm_{name}");
            let types = btf.as_ref().and_then(|btf| btf.resolve_types_by_name(&function).ok());
            types.is_some_and(|types| types.iter().any(|found| matches!(found, Type::Func(_))))
        };
        let traces = |name: &str| {
            let tracepoint = format!("btf_trace_{name}");
            btf.as_ref()
                .is_some_and(|btf| btf.resolve_types_by_name(&tracepoint).is_ok_and(|it| !it.is_empty()))
        };
        // Programs can be attached to functions that take structures as such since 6.1.
        let attachable = |name: &str| has(name) && !(name == "path_chown" && super::is_before(6, 1));
        super::attach::programs()
            .filter_map(|(_, hook)| match hook {
                Hook::OptionalLsm(name, _) if !attachable(name) => Some(name),
                Hook::OptionalRawTracepoint(name) if !traces(name) => Some(name),
                _ => None,
            })
            .collect()
    })
}

/// What the running kernel lets nobody judge in LSM mode, one phrase for each hook that it lacks.
pub(super) fn not_judged() -> Vec<&'static str> {
    super::attach::programs()
        .filter(|(_, hook)| hook.is_missing())
        .filter_map(|(_, hook)| match hook {
            Hook::OptionalLsm(_, what) if !what.is_empty() => Some(what),
            _ => None,
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn programs_and_hooks_are_there_once() {
        let mut seen = HashSet::new();
        for (name, _) in super::super::attach::programs() {
            assert!(seen.insert(name), "{name}");
        }
    }

    /// Each program carries the attribute of the hook that it is attached to, in `sensor-ebpf/src/hooks`.
    #[test]
    fn the_sources_agree() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../sensor-ebpf/src/hooks");
        let mut text = String::new();
        for file in std::fs::read_dir(folder).expect("hooks") {
            text += &std::fs::read_to_string(file.expect("a file").path()).expect("source");
        }
        for (name, hook) in SYSTEM {
            if let Some(lsm) = hook.lsm() {
                let attribute = format!("#[lsm(hook = \"{lsm}\")]\npub fn {name}(");
                assert!(text.contains(&attribute), "{attribute}");
            }
        }
    }
}
