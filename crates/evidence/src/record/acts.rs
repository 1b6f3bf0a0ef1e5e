//! Who acts and on what: processes, endpoints, files, what is asked of the system.
//!
//! Everything beyond the first version's fields is optional, so old records are read as they are, and old readers
//! skip what they do not know.

use serde::{Deserialize, Serialize};

/// How much of each field is kept. Whatever is longer is cut, and a field beside it says so. Together they keep a record below
/// [`super::MAX_BYTES`] even if every byte must be escaped.
pub mod limits {
    /// Path of a program that is started, and of a file that is acted on, in bytes: all that the kernel's judge reads.
    pub const PATH: usize = 4_096;
    /// Arguments in the record of an exec, in bytes; one is counted for the end of each.
    pub const ARGS: usize = 4_096;
    /// Arguments in the record of an exec, in number.
    pub const ARGS_COUNT: usize = 512;
    /// Arguments in records of other kinds, in bytes: the record of the exec with the same `exec_id` has them all.
    pub const ARGS_ELSEWHERE: usize = 512;
    /// Path of the acting program in records of other kinds than exec, and current folder, in bytes.
    pub const PATH_ELSEWHERE: usize = 1_024;
    /// Path of the cgroup, in bytes.
    pub const CGROUP: usize = 512;
    /// Ancestors of a process, in number.
    pub const ANCESTORS: usize = 8;
}

/// A process.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    /// Unique on the host and over reboots: `boot/start-ns/pid`.
    pub exec_id: String,
    /// The parent's.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub parent_exec_id: String,
    /// Those of the parents above it, nearest first, as far as its session goes and at most [`limits::ANCESTORS`] with the
    /// parent's own.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ancestors: Vec<String>,
    /// Process id in the host's initial pid namespace.
    pub pid: u32,
    /// Its parent's.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub parent_pid: u32,
    /// Resolved absolute path of the executable.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub path: String,
    /// The path is incomplete.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub path_cut: bool,
    /// Arguments.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub args: Vec<String>,
    /// Arguments were cut; this many bytes there were.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub args_cut_from: Option<u32>,
    /// Task name.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub comm: String,
    /// Current folder when the program was started; empty: not known.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub cwd: String,
    /// The current folder's path is incomplete.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub cwd_cut: bool,
    /// Real user id.
    pub uid: u32,
    /// Real group id.
    pub gid: u32,
    /// Whoever logged in, by the kernel's audit; none: nobody did, or the kernel keeps no such id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub login_uid: Option<u32>,
    /// The log-in's number, by the kernel's audit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub audit_session: Option<u32>,
    /// The executable has no name in any directory.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub fileless: bool,
    /// The executable is set-uid or set-gid.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub setuid: bool,
    /// The program was judged by another name of its file, which `path` is: the name that rules know it by.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub other_name: bool,
    /// Device and inode, `dev:inode`.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub inode: String,
    /// SHA-256 of the executable, in hexadecimal. Empty: not known (yet; see [`super::Kind::Executable`]).
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub sha256: String,
    /// Path of its cgroup below the hierarchy's root.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub cgroup: String,
    /// Id of its container, where the cgroup's path tells.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub container: String,
    /// Mount namespace (the number in `/proc/PID/ns/mnt`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mount_namespace: Option<u32>,
    /// Pid namespace (the number in `/proc/PID/ns/pid`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pid_namespace: Option<u32>,
    /// For exits: exit status or `SIG…`.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub status: String,
}

/// A network endpoint.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Endpoint {
    /// IP address.
    pub address: String,
    /// Port.
    pub port: u16,
    /// `tcp`, `udp`, or the protocol number.
    pub protocol: String,
    /// `connect`, `send`, `socket`, `bind` or `listen`.
    pub op: String,
}

/// Something done to a file or Unix socket.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileAction {
    /// The Cedar action: `read_file`, `write_file`, … `connect_unix`.
    pub op: String,
    /// Resolved absolute path; `@name` for an abstract socket.
    pub path: String,
    /// The path is incomplete: its end is there.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub path_cut: bool,
    /// Device and inode, as in [`Process::inode`]; empty: it did not exist yet.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub inode: String,
    /// It has no name in any directory.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub fileless: bool,
    /// It was reached by another name; `path` is the one that rules know it by, and by which it was judged.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub other_name: bool,
}

/// Something asked of the system.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SystemAction {
    /// `trace`, `signal`, `mount`, `module`, …: as `context.operation` of the Cedar action.
    pub operation: String,
    /// It was to be done to a process that is not of the session.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub outside: bool,
    /// That process; none: there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target_pid: Option<u32>,
    /// Its `exec_id`.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub target_exec_id: String,
    /// Signal, ptrace mode, `bpf()` command, uid and the like, in words where they have names.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub detail: String,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde calls it with a reference")]
fn is_zero(n: &u32) -> bool {
    *n == 0
}
