//! Files and system operations in records.

use nix::sys::signal::Signal;
use sallyport_evidence::record::{FileAction, SystemAction, limits};

use crate::kernel::{File, Operation, System};

/// Device and inode as records have them; empty: it does not exist yet.
pub(super) fn file_id(device: u32, inode: u64) -> String {
    if inode == 0 { String::new() } else { format!("{}:{}/{inode}", device >> 20, device & 0xf_ffff) }
}

pub(super) fn file_action(file: &File) -> FileAction {
    let (path, cut) = super::cut(String::from_utf8_lossy(&file.path).into_owned(), limits::PATH);
    FileAction {
        op: file.op.name().into(),
        path,
        path_cut: cut || file.path_cut,
        inode: file_id(file.device, file.inode),
        fileless: file.fileless,
        other_name: file.other_name,
    }
}

pub(super) fn system_action(system: &System, exec_id: impl Fn(u32, u64) -> String) -> SystemAction {
    let target = system.target.filter(|(_, started)| *started != 0);
    SystemAction {
        operation: system.operation.name().into(),
        outside: system.outside,
        target_pid: system.target.map(|(tgid, _)| tgid),
        target_exec_id: target.map_or_else(String::new, |(tgid, started)| exec_id(tgid, started)),
        detail: detail(system.operation, system.detail),
    }
}

/// The number in words, where it is worth some.
fn detail(operation: Operation, number: u32) -> String {
    match operation {
        Operation::Signal => signal(number),
        Operation::Trace if number & PTRACE_ATTACH != 0 => "attach".into(),
        Operation::Trace if number & PTRACE_READ != 0 => "read".into(),
        Operation::SetUser => format!("id {number}"),
        Operation::Bpf => format!("command {number}"),
        Operation::KernelAccess => format!("lockdown reason {number}"),
        _ => String::new(),
    }
}

/// `PTRACE_MODE_READ` and `PTRACE_MODE_ATTACH`, include/linux/ptrace.h.
const PTRACE_READ: u32 = 1;
const PTRACE_ATTACH: u32 = 2;

/// A signal's name.
pub(super) fn signal(number: u32) -> String {
    Signal::try_from(number.cast_signed())
        .map_or_else(|_| format!("SIG{number}"), |signal| signal.as_str().to_owned())
}
