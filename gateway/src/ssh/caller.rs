//! Who is at the other end of a connection: known, or still signing in.
//!
//! Policy is asked and hosts are reached with an [`Identity`] alone. A [`Pending`] caller has none to give: all
//! that can be done with it is to show its link and to wait for its [`Pending::outcome`].

use super::hosts::Hosts;
use super::slots::Slot;
use crate::authorize::SignInAttempt;
use crate::identity::{Credentials, DeviceSignIn};
use sallyport_evidence::record::Identity;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::task::AbortHandle;

/// Who it is.
#[derive(Clone)]
pub enum Caller {
    /// Proved.
    Known(Arc<Identity>),
    /// Signing in.
    Pending(Arc<Pending>),
}

/// A proved identity, or why there is none, in words for the person.
pub type Outcome = Result<Arc<Identity>, Arc<str>>;

/// A sign-in under way. When the last holder drops it, nobody waits any longer and it is given up.
pub struct Pending {
    /// Where to sign in.
    pub link: String,
    /// The code that the page shows or asks for.
    pub code: String,
    outcome: watch::Receiver<Option<Outcome>>,
    task: AbortHandle,
}

/// What follows a sign-in: who records it, and the key to bind to it.
pub struct Followup {
    /// Records it.
    pub hosts: Arc<dyn Hosts>,
    /// Keeps the binding.
    pub credentials: Credentials,
    /// Fingerprint of a key that the client has proved to hold.
    pub key: Option<String>,
    /// How long the key stays bound.
    pub key_binding: Duration,
    /// The person's client.
    pub client: SocketAddr,
}

impl Pending {
    /// Waits for the person in the background. The slot is given back when it is decided.
    #[must_use]
    pub fn start(sign_in: DeviceSignIn, followup: Followup, slot: Option<Slot>) -> Arc<Self> {
        let (decided, outcome) = watch::channel(None);
        let (link, code) = (sign_in.link.clone(), sign_in.code.clone());
        let task = tokio::spawn(async move {
            let result = finish(sign_in, followup).await;
            decided.send_replace(Some(result));
            drop(slot);
        });
        Arc::new(Self { link, code, outcome, task: task.abort_handle() })
    }

    /// Waits until the person has signed in, refused, or the link has expired. Does not itself keep the sign-in
    /// going.
    ///
    /// # Errors
    /// Why there is no identity, in words for the person.
    pub fn outcome(&self) -> impl Future<Output = Outcome> + Send + use<> {
        let mut outcome = self.outcome.clone();
        async move {
            match outcome.wait_for(Option::is_some).await.as_deref() {
                Ok(Some(decided)) => decided.clone(),
                // The task is gone without a word: it panicked, or the gateway stops.
                _ => Err("the sign-in broke off; connect again".into()),
            }
        }
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn finish(sign_in: DeviceSignIn, followup: Followup) -> Outcome {
    let Followup { hosts, credentials, key, key_binding, client } = followup;
    let proved = sign_in.finish().await.map_err(|err| err.to_string());
    let attempt = SignInAttempt {
        identity: proved.as_ref().ok(),
        method: "device",
        client,
        failure: proved.as_ref().err().map(String::as_str),
    };
    // A sign-in that cannot be recorded is none.
    hosts.sign_in_record(attempt).await.map_err(|refusal| Arc::from(refusal.message))?;
    let identity = proved.map_err(Arc::<str>::from)?;
    if let Some(fingerprint) = key {
        // The sign-in holds without: the next one just asks again.
        if let Err(err) =
            credentials.bind(&fingerprint, &identity, &client.ip().to_string(), key_binding).await
        {
            tracing::warn!(%err, fingerprint, "the key could not be bound");
        }
    }
    Ok(Arc::new(identity))
}
