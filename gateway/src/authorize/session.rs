//! The proof that a session was authorised, and its end.

use super::{Authorizer, EndReason};
use crate::recorder::draft;
use crate::sensors::registry::Sensors;
use crate::sessions::LiveSession;
use crate::state;
use sallyport_evidence::record::{Identity, Kind, Record};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

/// A session that policy permits and whose opening is durably on record. Only [`Authorizer`] makes one.
/// Dropping it closes the session: channels are ended and `session_close` is recorded.
pub struct AuthorizedSession {
    pub(super) live: Arc<LiveSession>,
    pub(super) authorizer: Authorizer,
    pub(super) closed: bool,
}

impl AuthorizedSession {
    /// Session id (UUID v7).
    #[must_use]
    pub fn id(&self) -> &str {
        &self.live.id
    }
    /// Who.
    #[must_use]
    pub fn identity(&self) -> &Identity {
        &self.live.identity
    }
    /// The host.
    #[must_use]
    pub fn host(&self) -> &str {
        &self.live.host
    }
    /// The local user on the host.
    #[must_use]
    pub fn local_user(&self) -> &str {
        &self.live.local_user
    }
    /// The person's client.
    #[must_use]
    pub fn client(&self) -> SocketAddr {
        self.live.client
    }
    /// Policy version that authorised it (hex SHA-256).
    #[must_use]
    pub fn policy_version(&self) -> &str {
        &self.live.opened_under
    }
    /// The grant's end.
    #[must_use]
    pub fn expires_at(&self) -> SystemTime {
        self.live.expires_at
    }
    /// Resolves when the session must end, with the reason. Every call resolves, also after the fact.
    pub async fn ended(&self) -> EndReason {
        self.live.ended().await
    }
    /// Ends the session and waits until its close is durably on record. `reason` goes into the record unless the
    /// session was ended for another before: `client closed the connection`. Dropping does the same in the background.
    pub async fn close(mut self, reason: &str) {
        self.closed = true;
        self.live.end(EndReason::Closed(reason.to_owned()));
        self.authorizer.close_session(self.live.clone()).await;
    }

    pub(crate) fn live(&self) -> &Arc<LiveSession> {
        &self.live
    }
    pub(crate) fn sensors(&self) -> &Sensors {
        &self.authorizer.inner.sensors
    }
}

impl Drop for AuthorizedSession {
    fn drop(&mut self) {
        if !self.closed {
            self.live.end(EndReason::Closed("the client has gone".to_owned()));
            let (authorizer, live) = (self.authorizer.clone(), self.live.clone());
            authorizer.inner.sensors.clone().background(async move { authorizer.close_session(live).await });
        }
    }
}

impl Authorizer {
    /// Writes a session's end down, after the ends of its channels, which its own end brings about.
    async fn close_session(&self, live: Arc<LiveSession>) {
        self.inner.sensors.channels_gone(&live.id).await;
        self.inner.sessions.remove(&live.id);
        let reason = live.end_reason().map(|reason| reason.to_string()).unwrap_or_default();
        if let Err(err) = self.inner.recorder.append(close_record(&live, &reason)).await {
            tracing::error!(session = live.id, %err, "the session's end is not on the record");
        }
        if let Err(err) = state::sessions::close(&self.inner.state, &live.id, &reason).await {
            tracing::warn!(session = live.id, %err, "cannot note the session's end");
        }
    }
}

/// Ends a session when its grant is over, or stops when it ended before.
pub(super) async fn end_in_time(authorizer: Authorizer, live: Arc<LiveSession>) {
    loop {
        let left = live.expires_at.duration_since(SystemTime::now()).unwrap_or_default();
        if left.is_zero() {
            authorizer.end_session(&live, EndReason::GrantOver);
            return;
        }
        // In steps, because the wall clock may be set while we sleep.
        tokio::select! {
            _ = live.ended() => return,
            () = tokio::time::sleep(left.min(Duration::from_secs(30))) => {}
        }
    }
}

/// `session_close` of a running session.
fn close_record(live: &LiveSession, reason: &str) -> Record {
    let mut record = draft(Kind::SessionClose);
    record.host = Some(live.host.clone());
    record.identity = Some(live.identity.clone());
    record.session = Some(live.record_part(""));
    record.message = Some(reason.to_owned());
    record
}
