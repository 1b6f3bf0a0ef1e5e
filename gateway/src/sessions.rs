//! Running sessions: what is known about each, and the one way to end them.

use crate::authorize::EndReason;
use sallyport_contract::v1;
use sallyport_evidence::record::{Identity, Session};
use sallyport_policy::{Principal, Question};
use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;
use tokio::sync::watch;

/// A running session. Shared by its owner (`AuthorizedSession`), its channels, and whoever may end it.
pub(crate) struct LiveSession {
    pub(crate) id: String,
    pub(crate) identity: Identity,
    pub(crate) host: String,
    pub(crate) local_user: String,
    pub(crate) client: SocketAddr,
    pub(crate) expires_at: SystemTime,
    /// The version it was opened under.
    pub(crate) opened_under: String,
    /// The version that permits it now.
    version: Mutex<String>,
    end: watch::Sender<Option<EndReason>>,
}

/// All running sessions. Cheap to clone.
#[derive(Clone, Default)]
pub(crate) struct Sessions(Arc<Mutex<HashMap<String, Arc<LiveSession>>>>);

impl LiveSession {
    /// A new session's id.
    pub(crate) fn new_id() -> String {
        uuid::Uuid::now_v7().to_string()
    }

    pub(crate) fn new(
        id: String,
        identity: Identity,
        host: &str,
        local_user: &str,
        client: SocketAddr,
        expires_at: SystemTime,
        opened_under: &str,
    ) -> Self {
        Self {
            id,
            identity,
            host: host.to_owned(),
            local_user: local_user.to_owned(),
            client,
            expires_at,
            opened_under: opened_under.to_owned(),
            version: Mutex::new(opened_under.to_owned()),
            end: watch::Sender::new(None),
        }
    }

    /// Ends it; the first reason stays. True: it was running.
    pub(crate) fn end(&self, reason: EndReason) -> bool {
        self.end.send_if_modified(|end| {
            let running = end.is_none();
            if running {
                *end = Some(reason);
            }
            running
        })
    }

    /// Why it ended, if it has.
    pub(crate) fn end_reason(&self) -> Option<EndReason> {
        self.end.borrow().clone()
    }

    /// Changes once, when it ends.
    pub(crate) fn end_watch(&self) -> watch::Receiver<Option<EndReason>> {
        self.end.subscribe()
    }

    /// The policy version that permits it now.
    pub(crate) fn policy_version(&self) -> String {
        self.version.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// A new version permits it too.
    pub(crate) fn set_policy_version(&self, version: &str) {
        *self.version.lock().unwrap_or_else(PoisonError::into_inner) = version.to_owned();
    }

    /// Resolves when it ends.
    pub(crate) async fn ended(&self) -> EndReason {
        let mut end = self.end.subscribe();
        match end.wait_for(Option::is_some).await.as_deref() {
            Ok(Some(reason)) => reason.clone(),
            // The sender lives as long as `self`.
            _ => EndReason::Shutdown,
        }
    }

    /// The question whose answer opened it.
    pub(crate) fn question(&self) -> Question {
        Question::OpenSession {
            principal: principal(&self.identity),
            host: self.host.clone(),
            local_user: self.local_user.clone(),
            client_address: self.client.ip(),
        }
    }

    /// For records.
    pub(crate) fn record_part(&self, channel: &str) -> Session {
        Session {
            id: self.id.clone(),
            channel: channel.to_owned(),
            local_user: self.local_user.clone(),
            client: self.client.to_string(),
        }
    }
}

impl Sessions {
    pub(crate) fn add(&self, session: Arc<LiveSession>) {
        self.lock().insert(session.id.clone(), session);
    }
    pub(crate) fn remove(&self, id: &str) {
        self.lock().remove(id);
    }
    pub(crate) fn find(&self, id: &str) -> Option<Arc<LiveSession>> {
        self.lock().get(id).cloned()
    }
    pub(crate) fn all(&self) -> Vec<Arc<LiveSession>> {
        self.lock().values().cloned().collect()
    }
    pub(crate) fn on_host(&self, host: &str) -> Vec<Arc<LiveSession>> {
        self.lock().values().filter(|session| session.host == host).cloned().collect()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<String, Arc<LiveSession>>> {
        // Every critical section is one map operation: a panic cannot leave it half done.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What policy knows of an identity.
pub(crate) fn principal(identity: &Identity) -> Principal {
    Principal {
        user: identity.user.clone(),
        groups: identity.groups.clone(),
        kind: identity.kind.clone(),
        issuer: identity.issuer.clone(),
        on_behalf_of: identity.on_behalf_of.clone(),
    }
}

/// What a sensor is told of an identity.
pub(crate) fn principal_message(identity: &Identity) -> v1::Principal {
    v1::Principal {
        user: identity.user.clone(),
        display_name: identity.name.clone(),
        groups: identity.groups.clone(),
        kind: identity.kind.clone(),
        issuer: identity.issuer.clone(),
        subject: identity.subject.clone(),
        on_behalf_of: identity.on_behalf_of.clone(),
        auth_method: identity.method.clone(),
    }
}
