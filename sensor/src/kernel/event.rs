//! Events as the sensor speaks of them, decoded from the bytes of the ring buffer.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use sallyport_sensor_abi::event::{self as abi, cause, kind};
use sallyport_sensor_abi::policy::{DENY, END_SESSION, INDEX_MASK, KILL, OBSERVED, UNJUDGED, Word};

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
    /// A connection, an addressed datagram, or a socket that may not be made.
    Connect {
        /// Who, and what was decided.
        head: Head,
        /// Where to.
        connect: Connect,
    },
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
                };
                Self::Exec { head, exec }
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
        },
    })
}

fn judgement(header: &abi::Header) -> Result<Judgement, DecodeError> {
    let word: Word = header.decision;
    let is = |flag: Word| word & flag != 0;
    // Masked, so it fits.
    let rule = (word & INDEX_MASK) as u16;
    Ok(if is(UNJUDGED) {
        Judgement::Unjudged(match header.cause {
            cause::PATH_TOO_LONG => Cause::PathTooLong,
            cause::ARGS_TOO_LONG => Cause::ArgsTooLong,
            cause::READ_FAILED => Cause::ReadFailed,
            cause::NO_POLICY => Cause::NoPolicy,
            cause::SEALED => Cause::Sealed,
            cause::TOO_MANY_TASKS => Cause::TooManyTasks,
            cause::SOCKET_TYPE => Cause::SocketType,
            cause::BUSY => Cause::Busy,
            value => return Err(DecodeError::Unknown { what: "cause", value }),
        })
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
        (value, _) => return Err(unknown("operation", value)),
    };
    let protocol = u16::try_from(body.protocol).map_err(|_| unknown("protocol", body.protocol))?;
    Ok(Connect { destination, protocol })
}

/// Events of one kind.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct KindCounters {
    /// Happened.
    pub seen: u64,
    /// Of those, not reported: the ring was full.
    pub lost: u64,
}

/// Events since the maps were made. For each kind: seen = received + lost.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counters {
    /// [`Event::Fork`].
    pub fork: KindCounters,
    /// [`Event::Exec`].
    pub exec: KindCounters,
    /// [`Event::Exit`].
    pub exit: KindCounters,
    /// [`Event::Connect`].
    pub connect: KindCounters,
}

#[cfg(test)]
#[path = "event_tests.rs"]
mod tests;
