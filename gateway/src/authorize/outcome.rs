//! What authorisation says to people: refusals, reasons, targets.

use crate::policy::short;
use sallyport_evidence::record::Identity;
use sallyport_policy::RuleInfo;
use std::net::SocketAddr;

/// Why somebody may not do something. `Display` is the text for the person: what, why, what to do next.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{message}")]
pub struct Refusal {
    /// What kind of refusal.
    pub kind: RefusalKind,
    /// The text for the person.
    pub message: String,
}

/// Kinds of refusals.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RefusalKind {
    /// Policy does not permit it.
    Policy,
    /// Policy permits several local users; one must be named.
    Ambiguous,
    /// No sensor of that name is connected.
    Offline,
    /// The decision cannot be recorded, so nothing may happen.
    Unrecorded,
}

/// A target as shown to one person.
#[derive(Clone, Debug)]
pub struct TargetInfo {
    /// Host name.
    pub host: String,
    /// Local users this person may be there.
    pub local_users: Vec<String>,
    /// Its sensor is connected now.
    pub connected: bool,
    /// `lsm`, `tracepoint`, or empty when never connected.
    pub mode: String,
    /// Kernel release.
    pub kernel: String,
    /// Policy version its sensor reports.
    pub policy_version: String,
    /// How that differs from what it should be; empty: not at all.
    pub policy_trouble: String,
}

/// Why a session must end. `Display` is shown to the person.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EndReason {
    /// The grant's time is over.
    #[error("the grant for this session has ended")]
    GrantOver,
    /// A new policy version no longer permits it.
    #[error("policy {version} no longer permits this session")]
    PolicyChanged {
        /// Short version.
        version: String,
    },
    /// Somebody with `end_sessions` ended it.
    #[error("ended by {by}: {reason}")]
    Ended {
        /// Who.
        by: String,
        /// Why.
        reason: String,
    },
    /// The sensor's certificate was revoked.
    #[error("the sensor on {host} was revoked")]
    SensorRevoked {
        /// Its host.
        host: String,
    },
    /// Evidence of it can no longer be kept.
    #[error("this session can no longer be recorded")]
    Unrecorded,
    /// Its owner closed it.
    #[error("{0}")]
    Closed(String),
    /// The gateway stops.
    #[error("the gateway is shutting down")]
    Shutdown,
}

/// One attempt to sign in, for the record.
#[derive(Clone, Debug)]
pub struct SignInAttempt<'a> {
    /// Who, if it was proved.
    pub identity: Option<&'a Identity>,
    /// `device`, `key`, `certificate`, `token`.
    pub method: &'a str,
    /// The person's client.
    pub client: SocketAddr,
    /// Why it failed; none if it succeeded.
    pub failure: Option<&'a str>,
}

/// The refusal of a policy: by which rule, why, and whom to ask.
pub(super) fn policy_refusal(what: &str, rule: Option<&RuleInfo>, version: &str) -> Refusal {
    let mut message = format!("{what}: ");
    match rule {
        Some(rule) => {
            message.push_str(&format!("rule \"{}\"", rule.id));
            if !rule.reason.is_empty() {
                message.push_str(&format!(": {}", rule.reason));
            }
        }
        None => message.push_str(&format!("no rule of policy {} permits it", short(version))),
    }
    match rule.map(|rule| rule.contact.as_str()).filter(|contact| !contact.is_empty()) {
        Some(contact) => message.push_str(&format!(". Ask {contact}")),
        None => message.push_str(". Ask whoever keeps the policy"),
    }
    Refusal { kind: RefusalKind::Policy, message }
}

/// What cannot be recorded must not happen.
pub(super) fn unrecorded(err: &dyn std::error::Error) -> Refusal {
    tracing::error!(err = %crate::chain(err), "refused because it cannot be recorded");
    let message =
        "nothing is permitted now, because it cannot be recorded; tell whoever runs the gateway".to_owned();
    Refusal { kind: RefusalKind::Unrecorded, message }
}
