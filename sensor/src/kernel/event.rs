//! Events as the sensor speaks of them, decoded from the bytes of the ring buffer.

mod counters;
mod decode;

use std::net::IpAddr;

use sallyport_sensor_abi::policy::{file_op, operation};

pub use counters::{Counters, KindCounters};
pub use decode::fuzz_event;

/// What a tagged process did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// It made a child process, which has the same tag.
    Fork {
        /// Who, and whether it was refused.
        head: Head,
        /// The child.
        child_tgid: u32,
        /// When the child started, in nanoseconds since boot.
        child_started: u64,
    },
    /// A program was started or refused.
    Exec {
        /// Who, and what was decided.
        head: Head,
        /// Which program.
        exec: Exec,
    },
    /// A process ended.
    Exit {
        /// Who.
        head: Head,
        /// As `wait` has it: status << 8 | signal | core dump flag.
        code: u32,
    },
    /// A connection, an addressed datagram, a socket that is bound or listens, or one that may not be made.
    Connect {
        /// Who, and what was decided.
        head: Head,
        /// Where to.
        connect: Connect,
    },
    /// Something done to a file or to a Unix socket.
    File {
        /// Who, and what was decided.
        head: Head,
        /// What, and to which.
        file: File,
    },
    /// Something asked of the system.
    System {
        /// Who, and what was decided.
        head: Head,
        /// What.
        system: System,
    },
}

impl Event {
    /// Who did it, and what was decided.
    pub fn head(&self) -> &Head {
        match self {
            Self::Fork { head, .. }
            | Self::Exec { head, .. }
            | Self::Exit { head, .. }
            | Self::Connect { head, .. }
            | Self::File { head, .. }
            | Self::System { head, .. } => head,
        }
    }
}

/// What every event says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Head {
    /// Nanoseconds since boot, suspend included.
    pub time: u64,
    /// The sensor's number for the session.
    pub session: u64,
    /// The sensor's number for the channel.
    pub channel: u32,
    /// The decision.
    pub judgement: Judgement,
    /// Which loaded policy decided ([`super::LoadedPolicy::generation`]); 0: none.
    pub generation: u64,
    /// Who did it.
    pub process: Process,
}

/// A process when it did something.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Process {
    /// Process, in the initial pid namespace.
    pub tgid: u32,
    /// Thread.
    pub tid: u32,
    /// When the process started, in nanoseconds since boot; unique with the tgid.
    pub started: u64,
    /// Real user.
    pub uid: u32,
    /// Real group.
    pub gid: u32,
    /// Its name for itself, at most 15 bytes.
    pub comm: String,
    /// Id of its cgroup (version 2).
    pub cgroup: u64,
    /// Who logged in, as audit has it, whatever user it is now; `None`: nobody, or the kernel does not keep it.
    pub login_uid: Option<u32>,
}

/// What was decided.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Judgement {
    /// Not a kind of event that is judged.
    None,
    /// Allowed.
    Allowed,
    /// Allowed; in enforcing mode the rule with this index would have denied it.
    Observed {
        /// Index into the compiled policy's rules.
        rule: u16,
    },
    /// Denied by a rule.
    Denied {
        /// Index into the compiled policy's rules; 0: no rule permitted it.
        rule: u16,
        /// The rule also wants the process killed. (For programs that is done already.)
        kill: bool,
        /// The rule also wants the session ended.
        end_session: bool,
    },
    /// Denied since it could not be judged.
    Unjudged(Cause),
    /// Allowed since the session is only watched; otherwise it would have been denied since it could not be judged.
    ObservedUnjudged(Cause),
}

impl Judgement {
    /// It was not allowed.
    pub fn is_denied(self) -> bool {
        matches!(self, Self::Denied { .. } | Self::Unjudged(_))
    }
}

/// Why something could not be judged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// The path is longer or deeper than the limits.
    PathTooLong,
    /// The arguments are longer than the limit, and a rule depends on them.
    ArgsTooLong,
    /// Memory could not be read, or the tables are damaged.
    ReadFailed,
    /// The session or its policy is not in the kernel.
    NoPolicy,
    /// The session was sealed.
    Sealed,
    /// The session or the host has too many processes.
    TooManyTasks,
    /// A kind of socket that sessions cannot use.
    SocketType,
    /// All work areas of the CPU were taken.
    Busy,
    /// The sensor was silent for too long.
    SensorGone,
    /// It was aimed at the sensor itself.
    Guarded,
}

impl std::fmt::Display for Cause {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::PathTooLong => "its path is too long to be judged",
            Self::ArgsTooLong => "its arguments are too long to be judged",
            Self::ReadFailed => "what it is could not be read",
            Self::NoPolicy => "the session has no policy on this host",
            Self::Sealed => "the session is over",
            Self::TooManyTasks => "the session or the host has too many processes",
            Self::SocketType => "sessions cannot use this kind of socket",
            Self::Busy => "the host was too busy to judge it",
            Self::SensorGone => "the sensor has not been running for too long",
            Self::Guarded => "it was aimed at Sallyport itself",
        })
    }
}

/// A program.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exec {
    /// Parent process.
    pub parent_tgid: u32,
    /// Resolved absolute path; its end only, if [`Self::path_cut`].
    pub path: Vec<u8>,
    /// The path is incomplete.
    pub path_cut: bool,
    /// Arguments, zero separated; `None` if they were not read (refused before the program's memory was there).
    pub args: Option<Vec<u8>>,
    /// Bytes of arguments there were.
    pub args_total: u32,
    /// The file has no name in any folder.
    pub fileless: bool,
    /// Refused before it ran; a program denied without this was killed before its first instruction.
    pub prevented: bool,
    /// Inode number.
    pub inode: u64,
    /// Device of the file system: major << 20 | minor.
    pub device: u32,
    /// The file is set-uid or set-gid.
    pub setuid: bool,
    /// The process was tagged just now: a log-in outside of a gateway.
    pub unbrokered: bool,
    /// It was judged by [`Self::path`], which is another name of the file than the one that was used.
    pub other_name: bool,
    /// Inode number of the current folder.
    pub cwd_inode: u64,
    /// Device of the current folder's file system.
    pub cwd_device: u32,
    /// Number of the mount namespace; 0: unknown.
    pub mount_namespace: u32,
    /// Number of the pid namespace that children are in; 0: unknown.
    pub pid_namespace: u32,
    /// Audit's number for the log-in; `None`: there was none.
    pub audit_session: Option<u32>,
}

/// Something done to a file or to a Unix socket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct File {
    /// What.
    pub op: FileOp,
    /// Resolved absolute path (`@name` for abstract Unix sockets); its end only, if [`Self::path_cut`].
    pub path: Vec<u8>,
    /// The path is incomplete.
    pub path_cut: bool,
    /// The file has no name in any folder any more.
    pub fileless: bool,
    /// Refused before it happened; what is denied without this had happened when the process was killed.
    pub prevented: bool,
    /// It was judged by [`Self::path`], which is another name of the file than the one that was used.
    pub other_name: bool,
    /// Inode number; 0: it does not exist yet.
    pub inode: u64,
    /// Device of the file system: major << 20 | minor.
    pub device: u32,
}

/// Something asked of the system.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct System {
    /// What.
    pub operation: Operation,
    /// It is done to a process that is not of the session.
    pub outside: bool,
    /// The process that it is done to, and when that started in nanoseconds since boot.
    pub target: Option<(u32, u64)>,
    /// Signal number, ptrace mode, `bpf()` command, uid, lockdown reason or the like.
    pub detail: u32,
}

macro_rules! numbered {
    ($(#[$doc:meta])* $name:ident, $module:ident: $($(#[$variant_doc:meta])* $variant:ident = $number:ident,)*) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum $name {
            $($(#[$variant_doc])* $variant,)*
        }

        impl $name {
            /// As Cedar policies call it.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => $module::NAMES[$module::$number as usize],)*
                }
            }

            const fn from_number(number: u32) -> Option<Self> {
                match number {
                    $($module::$number => Some(Self::$variant),)*
                    _ => None,
                }
            }
        }
    };
}

numbered! {
    /// What can be done to files; see [`file_op`].
    FileOp, file_op:
    /// Open for reading.
    Read = READ,
    /// Open for writing, truncate.
    Write = WRITE,
    /// Give a name to something.
    Create = CREATE,
    /// Remove a name.
    Delete = DELETE,
    /// Take a name away and give another.
    Rename = RENAME,
    /// Give another name to the file.
    Link = LINK,
    /// Mode, owner, extended attributes.
    Change = CHANGE,
    /// Map it executable.
    Map = MAP,
    /// Connect or send to a Unix socket.
    Unix = UNIX,
}

numbered! {
    /// What can be asked of the system; see [`operation`].
    Operation, operation:
    /// Trace another process, or read its memory.
    Trace = TRACE,
    /// Send a signal to another process.
    Signal = SIGNAL,
    /// Receive an Internet socket from outside the session.
    ReceiveSocket = RECEIVE_SOCKET,
    /// Mount, remount, bind, move, pivot.
    Mount = MOUNT,
    /// Unmount.
    Unmount = UNMOUNT,
    /// Change the root.
    Chroot = CHROOT,
    /// Make or enter a user namespace.
    Namespace = NAMESPACE,
    /// Change user or group ids.
    SetUser = SET_USER,
    /// `capset`.
    SetCapabilities = SET_CAPABILITIES,
    /// Kernel modules and firmware.
    Module = MODULE,
    /// Load another kernel.
    Kexec = KEXEC,
    /// `bpf()`.
    Bpf = BPF,
    /// `perf_event_open`.
    Perf = PERF,
    /// Keys of others.
    Keyring = KEYRING,
    /// `io_uring` in ways that leave the process.
    IoUring = IO_URING,
    /// Put input into a terminal.
    TerminalInput = TERMINAL_INPUT,
    /// Kernel memory, ports and the like.
    KernelAccess = KERNEL_ACCESS,
    /// Open a file by handle.
    OpenByHandle = OPEN_BY_HANDLE,
    /// Addresses, routes, packet filters.
    NetworkAdmin = NETWORK_ADMIN,
    /// Restart or stop the computer.
    Reboot = REBOOT,
    /// Set the clock.
    Clock = CLOCK,
}

impl Exec {
    /// The arguments one by one, as text; what is not UTF-8 is replaced.
    pub fn arguments(&self) -> Vec<String> {
        self.args.as_deref().map_or_else(Vec::new, |args| {
            args.split(|byte| *byte == 0).map(|arg| String::from_utf8_lossy(arg).into_owned()).collect()
        })
    }

    /// There were more arguments than the event could carry.
    pub fn args_cut(&self) -> bool {
        self.args.as_ref().is_some_and(|args| args.len() < self.args_total as usize)
    }
}

/// A connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Connect {
    /// Where to.
    pub destination: Destination,
    /// IP protocol number of the socket.
    pub protocol: u16,
}

/// Where a connection goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Destination {
    /// A connection.
    Connection(IpAddr, u16),
    /// A datagram with an address.
    Datagram(IpAddr, u16),
    /// Nowhere: the socket itself was refused.
    Socket,
    /// The socket is bound to it.
    Bound(IpAddr, u16),
    /// The socket listens; there, if it is bound.
    Listening(Option<(IpAddr, u16)>),
}
