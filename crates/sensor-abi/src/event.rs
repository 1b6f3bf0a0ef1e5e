//! Events: what the kernel programs put into the ring buffer, and the counters beside it.
//!
//! An event is a [`Header`], the body that [`Header::kind`] names, then its variable part. Conservation:
//! for every kind, `COUNTERS[seen]` equals events received plus `COUNTERS[lost]`.

/// Kinds of events; the value of [`Header::kind`].
pub mod kind {
    /// A tagged process was forked. Body: [`super::Fork`].
    pub const FORK: u32 = 1;
    /// A program was started or refused. Body: [`super::Exec`], then path bytes, then argument bytes.
    pub const EXEC: u32 = 2;
    /// A tagged process ended. Body: [`super::Exit`].
    pub const EXIT: u32 = 3;
    /// A connection, an addressed datagram, or a socket bound or set to listen. Body: [`super::Connect`].
    pub const CONNECT: u32 = 4;
    /// Something done to a file or a Unix socket. Body: [`super::File`], then path bytes.
    pub const FILE: u32 = 5;
    /// Something asked of the system. Body: [`super::System`].
    pub const SYSTEM: u32 = 6;
    /// One more than the last kind: the number of counter pairs.
    pub const COUNT: u32 = 7;
}

/// Counters, in per-CPU array `COUNTERS`: index `kind * 2` counts events seen, `kind * 2 + 1` events lost.
pub const COUNTERS: u32 = kind::COUNT * 2;

/// Why something was denied without a rule ([`crate::policy::UNJUDGED`]); value of [`Header::cause`].
pub mod cause {
    /// Nothing went wrong.
    pub const NONE: u32 = 0;
    /// The path is longer or deeper than the limits.
    pub const PATH_TOO_LONG: u32 = 1;
    /// The arguments are longer than what is judged, and a rule depends on them.
    pub const ARGS_TOO_LONG: u32 = 2;
    /// Kernel memory could not be read.
    pub const READ_FAILED: u32 = 3;
    /// The session or its policy is missing from the maps.
    pub const NO_POLICY: u32 = 4;
    /// The session was sealed.
    pub const SEALED: u32 = 5;
    /// The session or the host has too many tagged processes.
    pub const TOO_MANY_TASKS: u32 = 6;
    /// A socket type that this version does not let sessions use (raw, MPTCP, SCTP, DCCP).
    pub const SOCKET_TYPE: u32 = 7;
    /// All of the CPU's work areas were taken by programs that had been preempted.
    pub const BUSY: u32 = 8;
    /// The sensor has been silent for longer than [`crate::session::Host::grace`].
    pub const SENSOR_GONE: u32 = 9;
    /// It would have been done to the sensor itself: its processes, files, maps or programs.
    pub const GUARDED: u32 = 10;
}

/// What every event begins with.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Header {
    /// One of [`kind`].
    pub kind: u32,
    /// One of [`cause`].
    pub cause: u32,
    /// Nanoseconds since boot, suspend included (`bpf_ktime_get_boot_ns`).
    pub time: u64,
    /// Session number.
    pub session: u64,
    /// The sensor's channel number.
    pub channel: u32,
    /// The decision; 0 for events that are not judged.
    pub decision: crate::policy::Word,
    /// [`crate::policy::PolicyHeader::generation`] of the policy that judged; 0: none.
    pub generation: u64,
    /// Process (initial pid namespace).
    pub tgid: u32,
    /// Thread (initial pid namespace).
    pub tid: u32,
    /// [`crate::session::Tag::started`] of the process.
    pub started: u64,
    /// Real user id.
    pub uid: u32,
    /// Real group id.
    pub gid: u32,
    /// Task name at the time of the event, zero padded.
    pub comm: [u8; 16],
    /// Id of the process's cgroup (v2).
    pub cgroup: u64,
    /// Audit login uid; `u32::MAX`: none, or the kernel has none.
    pub login_uid: u32,
    /// Always zero.
    pub _pad: u32,
}

/// Body of [`kind::FORK`]; the header speaks of the parent.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Fork {
    /// The child.
    pub child_tgid: u32,
    /// Always zero.
    pub _pad: u32,
    /// The child's [`crate::session::Tag::started`].
    pub child_started: u64,
}

/// Body of [`kind::EXEC`]; then `path_len` bytes of path, then `args_len` bytes of arguments (zero separated).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Exec {
    /// Parent process (initial pid namespace).
    pub parent_tgid: u32,
    /// [`EXEC_FILELESS`] and the like.
    pub flags: u32,
    /// Inode number of the executable.
    pub inode: u64,
    /// Device of its superblock (`s_dev`, kernel encoding: major << 20 | minor).
    pub device: u32,
    /// Bytes of path that follow.
    pub path_len: u32,
    /// Bytes of arguments that follow.
    pub args_len: u32,
    /// Bytes of arguments there were.
    pub args_total: u32,
    /// Current folder: inode number.
    pub cwd_inode: u64,
    /// Current folder: device.
    pub cwd_device: u32,
    /// Inode number of the mount namespace (as in `/proc/PID/ns/mnt`); 0: unknown.
    pub mount_namespace: u32,
    /// Inode number of the pid namespace for children; 0: unknown.
    pub pid_namespace: u32,
    /// Audit session id; `u32::MAX`: none.
    pub audit_session: u32,
}

/// The file has no name in any directory (memfd, O_TMPFILE, deleted).
pub const EXEC_FILELESS: u32 = 1;
/// Refused before it ran (LSM); without it a denied program was killed before its first instruction.
pub const EXEC_PREVENTED: u32 = 2;
/// `args_len < args_total`.
pub const EXEC_ARGS_CUT: u32 = 4;
/// Path bytes are incomplete (it was too long or unreadable).
pub const EXEC_PATH_CUT: u32 = 8;
/// The arguments were not read: refused before the new program's memory was there, or unreadable.
pub const EXEC_ARGS_UNKNOWN: u32 = 16;

/// The file is set-uid or set-gid.
pub const EXEC_SETUID: u32 = 32;
/// The process was tagged just now: a log-in outside of a gateway.
pub const EXEC_UNBROKERED: u32 = 64;
/// Judged by a registered name, which the path bytes are (see [`crate::names`]).
pub const EXEC_OTHER_NAME: u32 = 128;

/// Body of [`kind::FILE`]; then `path_len` bytes of path (for abstract Unix sockets `@name`).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct File {
    /// One of [`crate::policy::file_op`].
    pub op: u32,
    /// [`EXEC_FILELESS`], [`EXEC_PREVENTED`], [`EXEC_PATH_CUT`], [`EXEC_OTHER_NAME`].
    pub flags: u32,
    /// Inode number; 0: it does not exist yet.
    pub inode: u64,
    /// Device of its superblock (or of the folder's).
    pub device: u32,
    /// Bytes of path that follow.
    pub path_len: u32,
}

/// Body of [`kind::SYSTEM`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct System {
    /// One of [`crate::policy::operation`].
    pub operation: u32,
    /// 1: the process that it is done to is not of this session. 0: it is, or there is none.
    pub outside: u32,
    /// That process; 0: none.
    pub target_tgid: u32,
    /// Signal number, ptrace mode, `bpf()` command, uid, lockdown reason or the like.
    pub detail: u32,
    /// Start time of the target process, in ns since boot; 0: none.
    pub target_started: u64,
}

/// Body of [`kind::EXIT`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Exit {
    /// `task_struct.exit_code`: status << 8 | signal | core flag.
    pub code: u32,
    /// Always zero.
    pub _pad: u32,
}

/// Body of [`kind::CONNECT`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Connect {
    /// Destination, network byte order; IPv4 (and mapped) in the first 4 bytes.
    pub address: [u8; 16],
    /// Destination port, host byte order.
    pub port: u32,
    /// 4 or 6: how [`Self::address`] is to be read; 0: refused at socket creation, no address.
    pub version: u32,
    /// IP protocol number of the socket.
    pub protocol: u32,
    /// [`OP_CONNECT`] and the like.
    pub op: u32,
}

/// `connect()`, or the connection that fast-open makes.
pub const OP_CONNECT: u32 = 1;
/// A datagram with an address.
pub const OP_SEND: u32 = 2;
/// Creation of a socket that is not allowed at all.
pub const OP_SOCKET: u32 = 3;

/// `bind()` of an Internet socket.
pub const OP_BIND: u32 = 4;
/// `listen()`; with address and port if the socket is bound.
pub const OP_LISTEN: u32 = 5;

const _: () = assert!(size_of::<Header>() == 96);
const _: () = assert!(size_of::<Fork>() == 16 && size_of::<Exec>() == 56);
const _: () = assert!(size_of::<File>() == 24 && size_of::<System>() == 24);
const _: () = assert!(size_of::<Exit>() == 8 && size_of::<Connect>() == 32);
