//! What sensor and shepherd say to each other, beside the channel's frames.
//!
//! The spec goes in on standard input, one [`Ready`] line comes out on standard output. After that the shepherd's
//! Unix socket: a connection begins with one byte, [`CONTROL`] (then JSON lines, [`Command`] in and [`Report`] out) or
//! [`LINK`] (then [`crate::frames`]; a new one replaces the old one).

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::filter::Refusals;

/// First byte of a connection that carries JSON lines.
pub const CONTROL: u8 = b'C';
/// First byte of a connection that carries channel frames.
pub const LINK: u8 = b'L';
/// Longest JSON line in bytes, newline included.
pub const MAX_LINE: usize = 64 << 10;
/// Name of the socket in a channel's directory.
pub const SOCKET: &str = "sock";

/// All that a shepherd needs to know. Holds no secrets, but environment values: so never an argument.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Spec {
    /// The channel.
    pub channel_id: String,
    /// Local account to become.
    pub local_user: String,
    /// What to run.
    pub work: Work,
    /// Terminal; none: three pipes.
    pub pty: Option<Pty>,
    /// Variables the client sent and the configuration accepts.
    pub env: Vec<(String, Vec<u8>)>,
    /// `ip port` of the person's client.
    pub client: String,
    /// `ip port` of this host, as the person's tools know it.
    pub server: String,
    /// Where the socket is made: a directory only root can enter.
    pub directory: PathBuf,
    /// Candidates for `Subsystem sftp`, the first that exists is taken.
    pub sftp_server: Vec<PathBuf>,
    /// No gateway attached for so long: the channel ends by itself. Milliseconds.
    pub reattach_grace_ms: u64,
    /// From SIGHUP to SIGKILL when a channel must end. Milliseconds.
    pub hangup_grace_ms: u64,
    /// What the leader gives up before it becomes the user.
    pub refusals: Refusals,
    /// Said before anything else: on the terminal, or nowhere if there is none.
    pub announcement: String,
}

/// What the leader executes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Work {
    /// The login shell.
    Shell,
    /// The login shell with `-c` and these bytes.
    Command(Vec<u8>),
    /// `sftp`.
    Subsystem(String),
}

/// A terminal.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pty {
    /// `TERM`.
    pub term: String,
    /// Columns, rows, width and height in pixels.
    pub size: [u16; 4],
    /// RFC 4254 section 8.
    pub modes: Vec<u8>,
}

/// The one line on standard output.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ready {
    /// The leader waits for [`Command::Go`].
    Leader {
        /// Its process id.
        pid: u32,
        /// The shepherd's.
        shepherd: u32,
    },
    /// Nothing was started, and why.
    Refused(String),
}

/// Sensor to shepherd.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Command {
    /// The leader is tagged: let it run.
    Go,
    /// Put this line into the output, in order.
    Notice(String),
    /// The session is over: as if the client hung up, with a last word.
    End(String),
}

/// Shepherd to sensor. [`Report::State`] is the first on every control connection, then on every change.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Report {
    /// Where it stands.
    State {
        /// The leader's process id.
        leader: u32,
        /// The leader was let go.
        running: bool,
        /// How it ended: exit code, or `SIG…`; none while it lives.
        exit: Option<String>,
    },
    /// All output, the exit included, was taken by the gateway (or nobody came for it): the shepherd ends now.
    Done {
        /// How the leader ended.
        exit: String,
        /// Whether the gateway took everything.
        delivered: bool,
    },
}

/// The socket of a channel whose directory this is.
#[must_use]
pub fn socket_path(directory: &Path) -> PathBuf {
    directory.join(SOCKET)
}

/// One JSON line.
#[must_use]
pub fn line<T: Serialize>(message: &T) -> Vec<u8> {
    // Plain enums of strings and integers: serialising into memory cannot fail.
    let mut line = serde_json::to_vec(message).unwrap_or_default();
    line.push(b'\n');
    line
}
