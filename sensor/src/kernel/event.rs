//! Events as the sensor speaks of them, decoded from the bytes of the ring buffer.

mod counters;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use sallyport_sensor_abi::event::{self as abi, cause, kind};
use sallyport_sensor_abi::policy::{
    DENY, END_SESSION, INDEX_MASK, KILL, OBSERVED, UNJUDGED, Word, file_op, operation,
};

pub use counters::{Counters, KindCounters};

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

/// The bytes are not an event of this version.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// Shorter than they say.
    #[error("an event of {0} bytes is too short")]
    Short(usize),
    /// Unknown number.
    #[error("unknown {what} {value} in an event")]
    Unknown {
        /// Of what.
        what: &'static str,
        /// The number.
        value: u32,
    },
}

/// Takes a `T` off the front.
#[expect(unsafe_code, reason = "plain integers out of bytes")]
fn take<T: Copy>(bytes: &mut &[u8]) -> Result<T, DecodeError> {
    let Some((head, rest)) = bytes.split_at_checked(size_of::<T>()) else {
        return Err(DecodeError::Short(bytes.len()));
    };
    *bytes = rest;
    // SAFETY: `head` has the size of `T`; `T` is one of the ABI's structures below, which hold integers and byte
    // arrays only, so every bit pattern is a value. Unaligned, since the bytes may be anywhere.
    Ok(unsafe { head.as_ptr().cast::<T>().read_unaligned() })
}

fn take_bytes(bytes: &mut &[u8], len: u32) -> Result<Vec<u8>, DecodeError> {
    let (head, rest) = bytes.split_at_checked(len as usize).ok_or(DecodeError::Short(bytes.len()))?;
    *bytes = rest;
    Ok(head.to_vec())
}

impl TryFrom<&[u8]> for Event {
    type Error = DecodeError;

    fn try_from(mut bytes: &[u8]) -> Result<Self, DecodeError> {
        let header: abi::Header = take(&mut bytes)?;
        let head = head(&header)?;
        Ok(match header.kind {
            kind::FORK => {
                let body: abi::Fork = take(&mut bytes)?;
                Self::Fork { head, child_tgid: body.child_tgid, child_started: body.child_started }
            }
            kind::EXEC => {
                let body: abi::Exec = take(&mut bytes)?;
                let is = |flag| body.flags & flag != 0;
                let path = take_bytes(&mut bytes, body.path_len)?;
                let args = take_bytes(&mut bytes, body.args_len)?;
                let exec = Exec {
                    parent_tgid: body.parent_tgid,
                    path,
                    path_cut: is(abi::EXEC_PATH_CUT),
                    args: (!is(abi::EXEC_ARGS_UNKNOWN)).then_some(args),
                    args_total: body.args_total,
                    fileless: is(abi::EXEC_FILELESS),
                    prevented: is(abi::EXEC_PREVENTED),
                    inode: body.inode,
                    device: body.device,
                    setuid: is(abi::EXEC_SETUID),
                    unbrokered: is(abi::EXEC_UNBROKERED),
                    other_name: is(abi::EXEC_OTHER_NAME),
                    cwd_inode: body.cwd_inode,
                    cwd_device: body.cwd_device,
                    mount_namespace: body.mount_namespace,
                    pid_namespace: body.pid_namespace,
                    audit_session: (body.audit_session != u32::MAX).then_some(body.audit_session),
                };
                Self::Exec { head, exec }
            }
            kind::FILE => Self::File { head, file: file(&mut bytes)? },
            kind::SYSTEM => {
                let body: abi::System = take(&mut bytes)?;
                let operation = Operation::from_number(body.operation)
                    .ok_or(DecodeError::Unknown { what: "operation", value: body.operation })?;
                let target = (body.target_tgid != 0).then_some((body.target_tgid, body.target_started));
                let system = System { operation, outside: body.outside != 0, target, detail: body.detail };
                Self::System { head, system }
            }
            kind::EXIT => Self::Exit { head, code: take::<abi::Exit>(&mut bytes)?.code },
            kind::CONNECT => {
                let body: abi::Connect = take(&mut bytes)?;
                Self::Connect { head, connect: connect(&body)? }
            }
            value => return Err(DecodeError::Unknown { what: "kind", value }),
        })
    }
}

fn head(header: &abi::Header) -> Result<Head, DecodeError> {
    let name = header.comm.split(|byte| *byte == 0).next().unwrap_or_default();
    Ok(Head {
        time: header.time,
        session: header.session,
        channel: header.channel,
        judgement: judgement(header)?,
        generation: header.generation,
        process: Process {
            tgid: header.tgid,
            tid: header.tid,
            started: header.started,
            uid: header.uid,
            gid: header.gid,
            comm: String::from_utf8_lossy(name).into_owned(),
            cgroup: header.cgroup,
            login_uid: (header.login_uid != u32::MAX).then_some(header.login_uid),
        },
    })
}

fn judgement(header: &abi::Header) -> Result<Judgement, DecodeError> {
    let word: Word = header.decision;
    let is = |flag: Word| word & flag != 0;
    // Masked, so it fits.
    let rule = (word & INDEX_MASK) as u16;
    Ok(if is(UNJUDGED) {
        let cause = cause(header.cause)?;
        if is(DENY) { Judgement::Unjudged(cause) } else { Judgement::ObservedUnjudged(cause) }
    } else if is(DENY) {
        Judgement::Denied { rule, kill: is(KILL), end_session: is(END_SESSION) }
    } else if is(OBSERVED) {
        Judgement::Observed { rule }
    } else if matches!(header.kind, kind::FORK | kind::EXIT) {
        Judgement::None
    } else {
        Judgement::Allowed
    })
}

fn cause(number: u32) -> Result<Cause, DecodeError> {
    Ok(match number {
        cause::PATH_TOO_LONG => Cause::PathTooLong,
        cause::ARGS_TOO_LONG => Cause::ArgsTooLong,
        cause::READ_FAILED => Cause::ReadFailed,
        cause::NO_POLICY => Cause::NoPolicy,
        cause::SEALED => Cause::Sealed,
        cause::TOO_MANY_TASKS => Cause::TooManyTasks,
        cause::SOCKET_TYPE => Cause::SocketType,
        cause::BUSY => Cause::Busy,
        cause::SENSOR_GONE => Cause::SensorGone,
        cause::GUARDED => Cause::Guarded,
        value => return Err(DecodeError::Unknown { what: "cause", value }),
    })
}

fn file(bytes: &mut &[u8]) -> Result<File, DecodeError> {
    let body: abi::File = take(bytes)?;
    let is = |flag| body.flags & flag != 0;
    Ok(File {
        op: FileOp::from_number(body.op)
            .ok_or(DecodeError::Unknown { what: "file operation", value: body.op })?,
        path: take_bytes(bytes, body.path_len)?,
        path_cut: is(abi::EXEC_PATH_CUT),
        fileless: is(abi::EXEC_FILELESS),
        prevented: is(abi::EXEC_PREVENTED),
        other_name: is(abi::EXEC_OTHER_NAME),
        inode: body.inode,
        device: body.device,
    })
}

fn connect(body: &abi::Connect) -> Result<Connect, DecodeError> {
    let address = match body.version {
        4 => {
            let [a, b, c, d, ..] = body.address;
            Some(IpAddr::V4(Ipv4Addr::new(a, b, c, d)))
        }
        6 => Some(IpAddr::V6(Ipv6Addr::from(body.address))),
        0 => None,
        value => return Err(DecodeError::Unknown { what: "IP version", value }),
    };
    let unknown = |what, value| DecodeError::Unknown { what, value };
    let port = u16::try_from(body.port).map_err(|_| unknown("port", body.port))?;
    let destination = match (body.op, address) {
        (abi::OP_CONNECT, Some(address)) => Destination::Connection(address, port),
        (abi::OP_SEND, Some(address)) => Destination::Datagram(address, port),
        (abi::OP_SOCKET, None) => Destination::Socket,
        (abi::OP_BIND, Some(address)) => Destination::Bound(address, port),
        (abi::OP_LISTEN, address) => Destination::Listening(address.map(|address| (address, port))),
        (value, _) => return Err(unknown("operation", value)),
    };
    let protocol = u16::try_from(body.protocol).map_err(|_| unknown("protocol", body.protocol))?;
    Ok(Connect { destination, protocol })
}

/// Fuzz entry: whatever the bytes are, they are an event or an error, and an event is no larger than its bytes.
pub fn fuzz_event(bytes: &[u8]) {
    match Event::try_from(bytes) {
        Ok(Event::Exec { exec, .. }) => {
            assert!(exec.path.len() + exec.args.map_or(0, |args| args.len()) <= bytes.len());
        }
        Ok(Event::File { file, .. }) => assert!(file.path.len() <= bytes.len()),
        Ok(_) | Err(_) => {}
    }
}

#[cfg(test)]
#[path = "event_tests.rs"]
mod tests;
