//! The record: one envelope for everything that is evidence, whoever made it.
//!
//! A record is serialised once, by its maker, to JSON; those bytes are spooled, sent, hashed and stored, and
//! never serialised again. Readers parse them and ignore fields they do not know.

mod acts;

use serde::{Deserialize, Serialize};

pub use acts::{Endpoint, FileAction, Process, SystemAction, limits};

/// Version of the envelope, in [`Record::schema`].
pub const SCHEMA: u16 = 1;
/// Largest record in bytes: tlog-tiles entry bundles count lengths in 16 bits.
pub const MAX_BYTES: usize = 65_535;

/// One record.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// [`SCHEMA`].
    pub schema: u16,
    /// Who made it and its place in that maker's sequence.
    pub source: Source,
    /// What it is about.
    pub kind: Kind,
    /// Wall clock, nanoseconds since the Unix epoch.
    pub time_ns: u64,
    /// Nanoseconds since the maker's boot, suspend included.
    pub boot_ns: u64,
    /// The host it happened on; none for what happens at the gateway alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<String>,
    /// Who acted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub identity: Option<Identity>,
    /// In which session.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session: Option<Session>,
    /// What was decided, by which policy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub decision: Option<Decision>,
    /// The process that acted (or, for exec, the program that was to run).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub process: Option<Process>,
    /// The network endpoint it acted on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<Endpoint>,
    /// The file or Unix socket it acted on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file: Option<FileAction>,
    /// What it asked of the system.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub system: Option<SystemAction>,
    /// What was lost, counted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub loss: Option<Loss>,
    /// One sentence for people, where the fields above do not say it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
}

/// Maker and sequence: `seq` has no gaps per (`maker`, `boot`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Source {
    /// Host name of the sensor, or `gateway`.
    pub maker: String,
    /// Boot id of the host for sensors; for a gateway, the id of its process start.
    pub boot: String,
    /// 1, 2, 3…
    pub seq: u64,
}

/// Kinds of records.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// Somebody proved who they are, or failed to.
    SignIn,
    /// A session was authorised or refused.
    SessionOpen,
    /// A session ended.
    SessionClose,
    /// A channel (shell, command, subsystem) was started.
    ChannelOpen,
    /// A channel ended.
    ChannelClose,
    /// A process was forked.
    Fork,
    /// A program was started or refused.
    Exec,
    /// A process ended.
    Exit,
    /// A connection or datagram was made or refused.
    Connect,
    /// A socket was bound or set to listen, or that was refused.
    Listen,
    /// Something was done to a file or Unix socket, or refused.
    File,
    /// Something was asked of the system (mounts, other processes, the kernel itself), or refused.
    System,
    /// What a program file holds: follows the exec records that came before its hash was known, and has the
    /// `exec_id` of the first of them.
    Executable,
    /// A policy version was pushed, refused, or came into force on a host.
    Policy,
    /// A sensor joined, connected, renewed, was refused or revoked.
    Sensor,
    /// Evidence was lost, and how much.
    Loss,
    /// Evidence was read, exported or administered.
    Access,
}

/// A person, CI job or AI agent.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// Stable id: the Cedar `User` entity id.
    pub user: String,
    /// Name to show.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub name: String,
    /// Groups from the token's claims.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub groups: Vec<String>,
    /// `human`, `ci`, `agent`, or `unbrokered` for a log-in that did not come through a gateway.
    pub kind: String,
    /// OpenID issuer.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub issuer: String,
    /// `sub` claim.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub subject: String,
    /// For agents: whom they act for.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub on_behalf_of: String,
    /// How it was proved this time: `device`, `key`, `certificate`, `token`.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub method: String,
}

/// The session and channel a record belongs to.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Session {
    /// Session id (UUID v7).
    pub id: String,
    /// Channel id within it.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub channel: String,
    /// Local user on the host.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub local_user: String,
    /// Address of the person's client.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub client: String,
}

/// What was decided, by what, and what came of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Decision {
    /// The Cedar action.
    pub action: String,
    /// What came of it.
    pub outcome: Outcome,
    /// Policy version (hex SHA-256 of the bundle's canonical form).
    pub policy: String,
    /// `@id` of the determining rule; empty: no rule permits it.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub rule: String,
    /// The rule's `@reason`, or why it could not be judged.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub reason: String,
    /// Where it was enforced: `gateway`, `kernel-lsm`, `kernel-exec`, `kernel-cgroup`, `kernel-tracepoint`.
    pub point: String,
}

/// Outcomes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// Went ahead.
    Allowed,
    /// Refused before it happened.
    Blocked,
    /// Killed at its first instruction.
    Killed,
    /// Went ahead; a monitored rule would have refused.
    Observed,
}

/// Counted loss.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Loss {
    /// What was lost: an event kind (`exec`, `connect`, …); `session`: events of all kinds of the session that the record
    /// names, which are in the counts by kind, too.
    pub what: String,
    /// Why: `ring_full`, `spool_evicted`, `undecodable`.
    pub why: String,
    /// How many since the last loss record of this kind and cause.
    pub count: u64,
    /// How many were seen in all since boot.
    pub seen: u64,
}

impl Record {
    /// A record of which nothing but its kind is known.
    #[must_use]
    pub fn empty(kind: Kind) -> Self {
        Self {
            schema: SCHEMA,
            source: Source { maker: String::new(), boot: String::new(), seq: 0 },
            kind,
            time_ns: 0,
            boot_ns: 0,
            host: None,
            identity: None,
            session: None,
            decision: None,
            process: None,
            endpoint: None,
            file: None,
            system: None,
            loss: None,
            message: None,
        }
    }

    /// The bytes that are hashed, sent and stored. Fields too long for the limit are the maker's concern.
    ///
    /// # Errors
    /// The record is larger than [`MAX_BYTES`].
    pub fn to_bytes(&self) -> Result<Vec<u8>, TooLarge> {
        // Serialising plain structs of strings and integers into memory cannot fail.
        let bytes = serde_json::to_vec(self).unwrap_or_default();
        if bytes.is_empty() || bytes.len() > MAX_BYTES {
            return Err(TooLarge { bytes: bytes.len() });
        }
        Ok(bytes)
    }

    /// Parses stored bytes.
    ///
    /// # Errors
    /// They are not a record.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, serde_json::Error> {
        serde_json::from_slice(bytes)
    }
}

/// A record does not fit into an entry of the log.
#[derive(Debug, thiserror::Error)]
#[error("the record takes {bytes} bytes, the log takes {MAX_BYTES} at most")]
pub struct TooLarge {
    /// Its size.
    pub bytes: usize,
}

#[cfg(test)]
mod tests;
