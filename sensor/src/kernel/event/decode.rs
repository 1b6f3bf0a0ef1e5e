//! From the bytes of the ring buffer to events.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use sallyport_sensor_abi::event::{self as abi, cause, kind};
use sallyport_sensor_abi::policy::{DENY, END_SESSION, INDEX_MASK, KILL, OBSERVED, UNJUDGED, Word};

use super::{
    Cause, Connect, Destination, Event, Exec, File, FileOp, Head, Judgement, Operation, Process, System,
};

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
mod tests;
