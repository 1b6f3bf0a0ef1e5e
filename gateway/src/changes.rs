//! Changes of policy from outside: who brings one, who has signed it, who else must agree.
//!
//! Everything that puts a version into force at somebody's request comes through [`Changes`], whether it comes by gRPC
//! (`console`) or by HTTP ([`http`]), from a person or from a CI job ([`caller`]). Signatures are checked ([`signatures`])
//! before policy is asked, because policy may ask for them; what lacks only an approval waits for one ([`proposals`]).
//! Each attempt is on the record, and what is refused changes nothing.

pub mod back;
pub mod caller;
pub mod config;
pub mod http;
pub mod proposals;
pub mod push;
pub mod signatures;
pub mod table;

pub use caller::Caller;
pub use config::Rules;
pub use push::{Outcome, Push};
pub use table::Proposal;

use crate::authorize::{Authorizer, Refusal, RefusalKind};
use crate::ci::failures::{Failures, TooMany};
use crate::ci::{Ci, CiError};
use crate::policy::PolicyError;
use crate::recorder::draft;
use crate::state::{State, StateError};
use sallyport_evidence::record::{Decision, Identity, Kind, Outcome as Came, Session};
use std::net::SocketAddr;
use std::sync::Arc;

/// The gate before the policy store. Cheap to clone.
#[derive(Clone)]
pub struct Changes {
    inner: Arc<Inner>,
}

struct Inner {
    gateway: String,
    rules: Rules,
    authorizer: Authorizer,
    state: State,
    ci: Ci,
    failures: Failures,
    /// One change at a time: each is judged against what the one before left in force.
    changing: tokio::sync::Mutex<()>,
}

/// A change was not made. `Display` is the text for whoever asked: what, why, what to do next.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{message}")]
pub struct Refused {
    /// What kind of refusal.
    pub kind: RefusedKind,
    /// The text.
    pub message: String,
}

/// Kinds of refusals.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RefusedKind {
    /// Nobody has proved who asks.
    Unauthenticated,
    /// Too many failures from there; seconds to wait.
    TooMany(u64),
    /// Policy does not permit it.
    Denied,
    /// Not signed as it must be.
    Signature,
    /// What was sent cannot be understood.
    Malformed,
    /// Not possible as things are now.
    Conflict,
    /// There is no such version.
    NotFound,
    /// It cannot be recorded, or something else that is needed is not there now.
    Unavailable,
    /// The gateway's own fault.
    Internal,
}

impl Refused {
    pub(crate) fn new(kind: RefusedKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into() }
    }
}

impl From<Refusal> for Refused {
    fn from(refusal: Refusal) -> Self {
        let kind = match refusal.kind {
            RefusalKind::Unrecorded => RefusedKind::Unavailable,
            _ => RefusedKind::Denied,
        };
        Self { kind, message: refusal.message }
    }
}

impl From<StateError> for Refused {
    fn from(err: StateError) -> Self {
        tracing::error!(err = %crate::chain(&err), "a change of policy failed");
        Self::new(
            RefusedKind::Internal,
            "the gateway's state cannot be used; whoever runs it can look into its log",
        )
    }
}

impl From<PolicyError> for Refused {
    fn from(err: PolicyError) -> Self {
        match err {
            PolicyError::State(err) => err.into(),
            PolicyError::Unrecorded => Self::new(RefusedKind::Unavailable, err.to_string()),
            PolicyError::NotNow(text) => Self::new(RefusedKind::Conflict, text),
            PolicyError::NoVersion(text) => Self::new(RefusedKind::NotFound, text),
            other => {
                tracing::error!(err = %crate::chain(&other), "a change of policy failed");
                Self::new(RefusedKind::Internal, other.to_string())
            }
        }
    }
}

impl From<TooMany> for Refused {
    fn from(too_many: TooMany) -> Self {
        Self::new(RefusedKind::TooMany(too_many.seconds), too_many.to_string())
    }
}

impl From<CiError> for Refused {
    fn from(err: CiError) -> Self {
        let kind = match err {
            CiError::Unavailable { .. } => RefusedKind::Unavailable,
            _ => RefusedKind::Unauthenticated,
        };
        Self::new(kind, err.to_string())
    }
}

/// What a record says of a change, beside who acted.
struct Note<'a> {
    action: &'a str,
    came: Came,
    version: &'a str,
    rule: &'a str,
    message: &'a str,
}

impl Changes {
    /// The gate, for what is configured.
    #[must_use]
    pub fn new(gateway: &str, rules: Rules, authorizer: Authorizer, state: State, ci: Ci) -> Self {
        let (failures, changing) = (Failures::default(), tokio::sync::Mutex::default());
        let gateway = gateway.to_owned();
        Self { inner: Arc::new(Inner { gateway, rules, authorizer, state, ci, failures, changing }) }
    }

    /// The version in force; empty: none.
    #[must_use]
    pub fn version_in_force(&self) -> String {
        self.inner.authorizer.policies().version()
    }

    /// What changes must bring.
    #[must_use]
    pub fn rules(&self) -> &Rules {
        &self.inner.rules
    }

    /// Puts an attempt or a change on the record, durably.
    async fn record(
        &self,
        by: Option<&Identity>,
        client: Option<SocketAddr>,
        note: Note<'_>,
    ) -> Result<(), Refused> {
        let mut record = draft(Kind::Policy);
        record.identity = by.cloned();
        record.session = client.map(|client| Session { client: client.to_string(), ..Session::default() });
        record.decision = Some(Decision {
            action: note.action.to_owned(),
            outcome: note.came,
            policy: note.version.to_owned(),
            rule: note.rule.to_owned(),
            reason: String::new(),
            point: "gateway".to_owned(),
        });
        record.message = Some(note.message.chars().take(8192).collect());
        self.inner.authorizer.record(record).await.map(drop).map_err(|_| {
            let message =
                "nothing is changed now, because it cannot be recorded; tell whoever runs the gateway";
            Refused::new(RefusedKind::Unavailable, message)
        })
    }

    /// Puts a refusal on the record and gives it back; if that fails, the refusal says so.
    async fn refused(&self, caller: &Caller, action: &str, refused: Refused) -> Refused {
        let (version, message) =
            (self.inner.authorizer.policies().version(), format!("{action} refused: {refused}"));
        let note = Note { action, came: Came::Blocked, version: &version, rule: "", message: &message };
        match self.record(Some(&caller.identity), Some(caller.client), note).await {
            Ok(()) => refused,
            Err(unrecorded) => unrecorded,
        }
    }
}
