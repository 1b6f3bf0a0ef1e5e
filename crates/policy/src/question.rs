//! What is asked of a policy, and what it answers.

use std::net::IpAddr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Who acts: what the identity provider's token said.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Principal {
    /// Unique name; in policies `User::"…"`.
    pub user: String,
    /// Groups from the token; in policies `Group::"…"`. Unknown ones are harmless.
    pub groups: Vec<String>,
    /// `human`, `ci` or `agent`.
    pub kind: String,
    /// Issuer of the token.
    pub issuer: String,
    /// On whose behalf an agent acts; empty if nobody's.
    pub on_behalf_of: String,
}

/// A question to the policy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Question {
    /// May this person open a session there as that local user?
    OpenSession {
        /// Who.
        principal: Principal,
        /// Name of the host; it need not be known to the bundle.
        host: String,
        /// Local user on the host.
        local_user: String,
        /// Where the client connects from; an IPv4-mapped address is judged as IPv4.
        client_address: IpAddr,
    },
    /// May this program run in the session?
    Exec {
        /// Who.
        principal: Principal,
        /// Name of the host.
        host: String,
        /// Local user of the session.
        local_user: String,
        /// Resolved absolute path of the executable. Bytes that are not UTF-8 are given as U+FFFD.
        path: String,
        /// All arguments, `argv[0]` included. None at all means one that is empty, as Linux does it.
        args: Vec<String>,
        /// The file has no name in any directory.
        fileless: bool,
    },
    /// May this connection be opened, or this datagram be sent, in the session?
    Connect {
        /// Who.
        principal: Principal,
        /// Name of the host.
        host: String,
        /// Local user of the session.
        local_user: String,
        /// Destination; an IPv4-mapped address is judged as IPv4, the unspecified one as loopback.
        address: IpAddr,
        /// Destination port.
        port: u16,
        /// IP protocol number (6: TCP, 17: UDP).
        protocol: u8,
    },
    /// May this person do something to Sallyport itself?
    Gateway {
        /// Who.
        principal: Principal,
        /// What.
        action: GatewayAction,
    },
}

impl Question {
    /// Name of the Cedar action.
    pub fn action(&self) -> &'static str {
        match self {
            Self::OpenSession { .. } => "open_session",
            Self::Exec { .. } => "exec",
            Self::Connect { .. } => "connect",
            Self::Gateway { action, .. } => action.name(),
        }
    }

    /// Who asks.
    pub fn principal(&self) -> &Principal {
        match self {
            Self::OpenSession { principal, .. }
            | Self::Exec { principal, .. }
            | Self::Connect { principal, .. }
            | Self::Gateway { principal, .. } => principal,
        }
    }

    /// The host concerned; none for what is done to the gateway.
    pub fn host(&self) -> Option<&str> {
        match self {
            Self::OpenSession { host, .. } | Self::Exec { host, .. } | Self::Connect { host, .. } => {
                Some(host)
            }
            Self::Gateway { .. } => None,
        }
    }
}

/// What can be done to Sallyport itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GatewayAction {
    /// Put a policy version into force.
    PushPolicy,
    /// Read records and recordings.
    ReadEvidence,
    /// Add and remove hosts.
    ManageSensors,
    /// End other people's sessions.
    EndSessions,
}

impl GatewayAction {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::PushPolicy, Self::ReadEvidence, Self::ManageSensors, Self::EndSessions];

    /// Name of the Cedar action.
    pub fn name(self) -> &'static str {
        match self {
            Self::PushPolicy => "push_policy",
            Self::ReadEvidence => "read_evidence",
            Self::ManageSensors => "manage_sensors",
            Self::EndSessions => "end_sessions",
        }
    }

    /// The action with this name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|action| action.name() == name)
    }
}

/// The answer to a [`Question`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// Whether it may be done.
    pub allowed: bool,
    /// The rule that decided. None: no rule permits it (see [`crate::Policy::default_rule`]).
    pub rule: Option<RuleInfo>,
    /// It was allowed, but this monitored rule would have denied it.
    pub observed: Option<RuleInfo>,
    /// For an allowed session: how long it may last; the shortest limit of all permits that apply.
    pub session_limit: Option<Duration>,
}

/// A rule, as people are told about it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RuleInfo {
    /// `@id`, unique in the bundle.
    pub id: String,
    /// `@reason`; empty if a permit has none.
    pub reason: String,
    /// Whom to ask.
    pub contact: String,
    /// What happens besides the denial.
    pub on_violation: OnViolation,
    /// File in the bundle.
    pub file: String,
    /// Line where the rule begins, from 1.
    pub line: u32,
}

/// What a violation leads to. Stronger ones come later in the order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnViolation {
    /// The action is denied.
    #[default]
    Block,
    /// The action is denied and the process killed.
    Kill,
    /// The action is denied and the session ended.
    EndSession,
}

impl OnViolation {
    /// The value of `@on_violation`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Block => "block",
            Self::Kill => "kill",
            Self::EndSession => "end_session",
        }
    }
}
