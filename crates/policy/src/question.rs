//! What is asked of a policy, and what it answers.

use std::net::IpAddr;
use std::time::Duration;

use sallyport_sensor_abi::policy::{file_op, operation};
use serde::{Deserialize, Serialize};

use crate::change::Change;

/// Who acts: what the identity provider's token said.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Principal {
    /// Unique name; in policies `User::"…"`.
    pub user: String,
    /// Groups from the token; in policies `Group::"…"`. Unknown ones are harmless.
    pub groups: Vec<String>,
    /// `human`, `ci`, `agent` or `unbrokered`.
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
        /// The file is set-uid or set-gid.
        setuid: bool,
        /// Resolved path of the program that starts it.
        caller: String,
    },
    /// May this be done to a file, folder or Unix socket?
    File {
        /// Who.
        principal: Principal,
        /// Name of the host.
        host: String,
        /// Local user of the session.
        local_user: String,
        /// What.
        op: FileOp,
        /// Resolved absolute path; of an abstract Unix socket `@` and its name.
        path: String,
        /// It has no name in any directory.
        fileless: bool,
        /// Resolved path of the program that does it.
        caller: String,
    },
    /// May this be asked of the system?
    System {
        /// Who.
        principal: Principal,
        /// Name of the host.
        host: String,
        /// Local user of the session.
        local_user: String,
        /// What.
        operation: Operation,
        /// It is done to a process that is not of the session.
        outside: bool,
        /// Resolved path of the program that asks.
        caller: String,
    },
    /// May a socket listen there, or be bound to it?
    Listen {
        /// Who.
        principal: Principal,
        /// Name of the host.
        host: String,
        /// Local user of the session.
        local_user: String,
        /// Where; an IPv4-mapped address is judged as IPv4, the unspecified one stands for every address.
        address: IpAddr,
        /// Port; 0: one that the kernel chooses.
        port: u16,
        /// IP protocol number (6: TCP, 17: UDP).
        protocol: u8,
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
        /// Which change of policy it is about; the default for actions that are not about one.
        change: Change,
    },
}

impl Question {
    /// Name of the Cedar action.
    pub fn action(&self) -> &'static str {
        match self {
            Self::OpenSession { .. } => "open_session",
            Self::Exec { .. } => "exec",
            Self::File { op, .. } => op.name(),
            Self::System { .. } => "system",
            Self::Connect { .. } => "connect",
            Self::Listen { .. } => "listen",
            Self::Gateway { action, .. } => action.name(),
        }
    }

    /// Who asks.
    pub fn principal(&self) -> &Principal {
        match self {
            Self::OpenSession { principal, .. }
            | Self::Exec { principal, .. }
            | Self::File { principal, .. }
            | Self::System { principal, .. }
            | Self::Connect { principal, .. }
            | Self::Listen { principal, .. }
            | Self::Gateway { principal, .. } => principal,
        }
    }

    /// The host concerned; none for what is done to the gateway.
    pub fn host(&self) -> Option<&str> {
        match self {
            Self::OpenSession { host, .. }
            | Self::Exec { host, .. }
            | Self::File { host, .. }
            | Self::System { host, .. }
            | Self::Connect { host, .. }
            | Self::Listen { host, .. } => Some(host),
            Self::Gateway { .. } => None,
        }
    }

    /// The local user concerned; none for what is done to the gateway.
    pub fn local_user(&self) -> Option<&str> {
        match self {
            Self::OpenSession { local_user, .. }
            | Self::Exec { local_user, .. }
            | Self::File { local_user, .. }
            | Self::System { local_user, .. }
            | Self::Connect { local_user, .. }
            | Self::Listen { local_user, .. } => Some(local_user),
            Self::Gateway { .. } => None,
        }
    }
}

/// Something done to a file, folder or Unix socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FileOp(u32);

impl FileOp {
    /// All of them.
    pub fn all() -> impl Iterator<Item = Self> {
        (0..file_op::COUNT).map(Self)
    }

    /// The one with this number of [`file_op`].
    pub fn new(number: u32) -> Option<Self> {
        (number < file_op::COUNT).then_some(Self(number))
    }

    /// The one with this name: that of the Cedar action.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::all().find(|op| op.name() == name)
    }

    /// Number, as in [`file_op`].
    pub fn number(self) -> u32 {
        self.0
    }

    /// Name of the Cedar action.
    pub fn name(self) -> &'static str {
        file_op::NAMES[self.0 as usize]
    }
}

/// Something asked of the system: what `context.operation` can be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Operation(u32);

impl Operation {
    /// All of them.
    pub fn all() -> impl Iterator<Item = Self> {
        (0..operation::COUNT).map(Self)
    }

    /// The one with this number of [`operation`].
    pub fn new(number: u32) -> Option<Self> {
        (number < operation::COUNT).then_some(Self(number))
    }

    /// The one with this name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::all().find(|operation| operation.name() == name)
    }

    /// Number, as in [`operation`].
    pub fn number(self) -> u32 {
        self.0
    }

    /// Its name in policies.
    pub fn name(self) -> &'static str {
        operation::NAMES[self.0 as usize]
    }
}

/// What can be done to Sallyport itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GatewayAction {
    /// Put a policy version into force.
    PushPolicy,
    /// Approve a version that somebody else proposed.
    ApprovePolicy,
    /// Read records and recordings.
    ReadEvidence,
    /// Add and remove hosts.
    ManageSensors,
    /// End other people's sessions.
    EndSessions,
}

impl GatewayAction {
    /// All of them.
    pub const ALL: [Self; 5] =
        [Self::PushPolicy, Self::ApprovePolicy, Self::ReadEvidence, Self::ManageSensors, Self::EndSessions];

    /// Name of the Cedar action.
    pub fn name(self) -> &'static str {
        match self {
            Self::PushPolicy => "push_policy",
            Self::ApprovePolicy => "approve_policy",
            Self::ReadEvidence => "read_evidence",
            Self::ManageSensors => "manage_sensors",
            Self::EndSessions => "end_sessions",
        }
    }

    /// Whether it is about one change of policy.
    pub fn is_about_a_change(self) -> bool {
        matches!(self, Self::PushPolicy | Self::ApprovePolicy)
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
    /// It was allowed, and so ordinary that it is not recorded (`@record("none")`).
    pub quiet: bool,
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
