//! The only place that mints sessions: Cedar is asked, the answer is on the record, and only then an
//! [`AuthorizedSession`] exists.

use sallyport_evidence::record::Identity;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::SystemTime;

/// Asks policy and mints sessions. Cheap to clone.
#[derive(Clone)]
pub struct Authorizer {
    inner: Arc<Inner>,
}

struct Inner {}

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
}

/// Actions on the gateway itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GatewayAction {
    /// Push a policy bundle.
    PushPolicy,
    /// Read events, recordings and the log of others.
    ReadEvidence,
    /// Make join tokens, revoke sensors.
    ManageSensors,
    /// End others' sessions.
    EndSessions,
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

/// A session that policy permits and whose opening is durably on record. Only [`Authorizer`] makes one.
/// Dropping it closes the session: channels are ended and `session_close` is recorded.
pub struct AuthorizedSession {
    pub(crate) id: String,
    pub(crate) identity: Identity,
    pub(crate) host: String,
    pub(crate) local_user: String,
    pub(crate) client: SocketAddr,
    pub(crate) policy_version: String,
    pub(crate) expires_at: SystemTime,
}

impl Authorizer {
    /// Asks policy whether `identity` may be `local_user` on `host` (with none: resolves the only one
    /// permitted), and records the answer durably before returning it.
    ///
    /// # Errors
    /// Not permitted, not connected, or not recordable.
    pub async fn open_session(
        &self,
        identity: &Identity,
        host: &str,
        local_user: Option<&str>,
        client: SocketAddr,
    ) -> Result<AuthorizedSession, Refusal> {
        let _ = (&self.inner, identity, local_user, client);
        Err(Refusal { kind: RefusalKind::Offline, message: format!("{host} is not connected") })
    }

    /// The hosts and local users that `identity` may reach.
    #[must_use]
    pub fn targets(&self, identity: &Identity) -> Vec<TargetInfo> {
        let _ = identity;
        Vec::new()
    }

    /// May `identity` do `action` on the gateway?
    ///
    /// # Errors
    /// Policy does not permit it.
    pub fn gateway_action(&self, identity: &Identity, action: GatewayAction) -> Result<(), Refusal> {
        let _ = (identity, action);
        Err(Refusal { kind: RefusalKind::Policy, message: "no rule permits it".to_owned() })
    }

    /// Records a sign-in or a failed one; durable on return.
    ///
    /// # Errors
    /// It cannot be recorded: treat the sign-in as failed.
    pub async fn sign_in_record(&self, attempt: SignInAttempt<'_>) -> Result<(), Refusal> {
        let _ = attempt;
        Ok(())
    }
}

impl AuthorizedSession {
    /// Session id (UUID v7).
    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }
    /// Who.
    #[must_use]
    pub fn identity(&self) -> &Identity {
        &self.identity
    }
    /// The host.
    #[must_use]
    pub fn host(&self) -> &str {
        &self.host
    }
    /// The local user on the host.
    #[must_use]
    pub fn local_user(&self) -> &str {
        &self.local_user
    }
    /// The person's client.
    #[must_use]
    pub fn client(&self) -> SocketAddr {
        self.client
    }
    /// Policy version that authorised it (hex SHA-256).
    #[must_use]
    pub fn policy_version(&self) -> &str {
        &self.policy_version
    }
    /// The grant's end.
    #[must_use]
    pub fn expires_at(&self) -> SystemTime {
        self.expires_at
    }
    /// Resolves when the session must end, with the reason. Every call resolves, also after the fact.
    pub async fn ended(&self) -> EndReason {
        std::future::pending().await
    }
    /// Ends the session and waits until its close is durably on record. `reason` goes into the record:
    /// `client closed the connection`, or an [`EndReason`]'s text. Dropping does the same in the background.
    pub async fn close(self, reason: &str) {
        let _ = reason;
    }
}
