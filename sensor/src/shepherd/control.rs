//! Connections to the shepherd's socket: telling links from control, reading commands, writing reports.

use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};

use nix::sys::socket::{getsockopt, setsockopt, sockopt};
use nix::unistd::Uid;

use super::protocol::{CONTROL, Command, LINK, MAX_LINE, Report, line};

/// Connections that have not yet said what they are, or are control, at most.
pub(crate) const MAX_CONNECTIONS: usize = 8;
/// Wanted send buffer of the socket.
const SOCKET_BYTES: usize = 1 << 20;

/// Takes one waiting connection, if it comes from our own user.
pub(crate) fn accept(listener: &UnixListener) -> Option<UnixStream> {
    let (stream, _) = listener.accept().ok()?;
    let peer = getsockopt(&stream, sockopt::PeerCredentials).ok()?;
    let trusted = peer.uid() == Uid::effective().as_raw() || peer.uid() == 0;
    if !trusted || stream.set_nonblocking(true).is_err() {
        return None;
    }
    let _ = setsockopt(&stream, sockopt::SndBuf, &SOCKET_BYTES);
    Some(stream)
}

/// What a new connection turned out to be.
#[derive(Debug)]
pub(crate) enum Kind {
    /// It has not said.
    Unknown(UnixStream),
    /// JSON lines.
    Control(UnixStream),
    /// Frames.
    Link(UnixStream),
    /// Closed, or it said nonsense.
    Gone,
}

/// Reads the first byte, if it is there.
pub(crate) fn classify(mut stream: UnixStream) -> Kind {
    let mut first = [0u8; 1];
    match stream.read(&mut first) {
        Ok(1) if first[0] == CONTROL => Kind::Control(stream),
        Ok(1) if first[0] == LINK => Kind::Link(stream),
        Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {
            Kind::Unknown(stream)
        }
        _ => Kind::Gone,
    }
}

/// A control connection.
#[derive(Debug)]
pub(crate) struct Control {
    stream: UnixStream,
    incoming: Vec<u8>,
}

impl Control {
    pub(crate) fn new(stream: UnixStream) -> Self {
        Self { stream, incoming: Vec::new() }
    }

    pub(crate) fn stream(&self) -> &UnixStream {
        &self.stream
    }

    /// Reads what is there. `None`: the connection is gone, or says nonsense, and is to be dropped.
    pub(crate) fn read(&mut self) -> Option<Vec<Command>> {
        let mut buffer = [0u8; 4096];
        match self.stream.read(&mut buffer) {
            Ok(0) => return None,
            Ok(n) => self.incoming.extend_from_slice(&buffer[..n]),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
            Err(_) => return None,
        }
        let mut commands = Vec::new();
        while let Some(end) = self.incoming.iter().position(|byte| *byte == b'\n') {
            commands.push(serde_json::from_slice(&self.incoming[..end]).ok()?);
            self.incoming.drain(..=end);
        }
        (self.incoming.len() < MAX_LINE).then_some(commands)
    }

    /// Writes a report. `false`: drop the connection (a sensor that does not read a few hundred bytes is gone).
    pub(crate) fn write(&mut self, report: &Report) -> bool {
        self.stream.write_all(&line(report)).is_ok()
    }
}
