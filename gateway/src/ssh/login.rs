//! SSH authentication, as a state machine that knows nothing of channels.
//!
//! A client's keys are tried first: one that is bound, or has a live certificate, lets its owner in at once. If none
//! is, the client is asked (by keyboard-interactive without prompts) to prove the first of them after all, so that it can
//! be bound, and then shown the link. Rejecting every unknown key on the first round is what lets the bound one among
//! several be found without signing with all of them.

use super::Door;
use super::caller::{Caller, Followup, Pending};
use super::slots::Slot;
use crate::authority::ssh::fingerprint;
use crate::authorize::SignInAttempt;
use crate::identity::KeyStanding;
use russh::keys::{Algorithm, Certificate, PublicKey};
use russh::server::Auth;
use russh::{MethodKind, MethodSet};
use sallyport_evidence::record::Identity;
use std::borrow::Cow;
use std::net::SocketAddr;
use std::sync::Arc;

/// One connection's way in.
pub struct Login {
    door: Arc<Door>,
    client: SocketAddr,
    slot: Option<Slot>,
    stage: Stage,
}

/// Named for what it awaits.
enum Stage {
    /// A key that is known here, or the wish to sign in.
    ExpectKnownKey {
        /// Keys offered so far that mean nothing here.
        unknown: usize,
    },
    /// The answer to an empty question, which leads to [`Stage::ExpectAnyKey`].
    ExpectAnswer,
    /// Proof of any key, to bind it.
    ExpectAnyKey,
    /// The wish to sign in, with the key proved that is to be bound.
    ExpectSignIn { key: String },
    /// The client has shown the link.
    ExpectPerson { pending: Arc<Pending> },
    /// The client has shown why it is over.
    ExpectEnd,
    /// Nothing more.
    Done(Caller),
}

impl Login {
    /// For a connection from outside.
    pub fn new(door: Arc<Door>, client: SocketAddr, slot: Slot) -> Self {
        Self { door, client, slot: Some(slot), stage: Stage::ExpectKnownKey { unknown: 0 } }
    }

    /// For a connection inside another one, which has a caller already.
    pub fn inherited(door: Arc<Door>, client: SocketAddr, caller: Caller) -> Self {
        Self { door, client, slot: None, stage: Stage::Done(caller) }
    }

    /// Who it is, once authentication has succeeded.
    pub fn caller(&self) -> Option<&Caller> {
        match &self.stage {
            Stage::Done(caller) => Some(caller),
            _ => None,
        }
    }

    /// The connection is over. Clients that tried keys and gave up are on the record; port scanners, which try
    /// nothing, are not.
    pub fn abandon(&mut self) {
        let failure = match &self.stage {
            Stage::ExpectKnownKey { unknown } if *unknown > 0 => "no key that was offered is bound or certified here",
            Stage::ExpectAnswer | Stage::ExpectAnyKey | Stage::ExpectSignIn { .. } => "the log-in was given up",
            _ => return,
        };
        let (hosts, client) = (Arc::clone(&self.door.hosts), self.client);
        // Only inside a runtime, which is there whenever a connection ends by itself.
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move {
                let attempt = SignInAttempt { identity: None, method: "key", client, failure: Some(failure) };
                // Nothing follows from it.
                let _ = hosts.sign_in_record(attempt).await;
            });
        }
    }

    /// What may be tried: without methods named, those that are offered at first.
    fn next(methods: &[MethodKind], partial_success: bool) -> Auth {
        Auth::Reject { proceed_with_methods: Some(MethodSet::from(methods)), partial_success }
    }

    fn reject() -> Auth {
        Self::next(&[MethodKind::PublicKey, MethodKind::KeyboardInteractive], false)
    }

    /// The method `none`: inside another connection nothing more is asked.
    pub fn none(&self) -> Auth {
        if self.caller().is_some() { Auth::Accept } else { Self::reject() }
    }

    /// A key is offered without proof.
    pub async fn offered(&mut self, key: &PublicKey, algorithm: &Algorithm) -> Auth {
        if self.caller().is_some() {
            return Auth::Accept;
        }
        // RFC 8332 replaced SHA-1 signatures.
        if matches!(algorithm, Algorithm::Rsa { hash: None } | Algorithm::Dsa) {
            return Self::reject();
        }
        match (self.standing(key).await, &mut self.stage) {
            (KeyStanding::Bound(_) | KeyStanding::Certified, _) | (_, Stage::ExpectAnyKey) => Auth::Accept,
            (KeyStanding::Unknown, Stage::ExpectKnownKey { unknown }) => {
                *unknown += 1;
                Self::reject()
            }
            (KeyStanding::Unknown, _) => Self::reject(),
        }
    }

    /// A key is proved.
    pub async fn proved(&mut self, key: &PublicKey) -> Auth {
        if self.caller().is_some() {
            return Auth::Accept;
        }
        if let KeyStanding::Bound(identity) = self.standing(key).await {
            return self.admit(Identity { method: "key".to_owned(), ..*identity }).await;
        }
        self.stage = Stage::ExpectSignIn { key: fingerprint(key) };
        Self::next(&[MethodKind::KeyboardInteractive], true)
    }

    /// A certificate, and its key, are proved.
    pub async fn certified(&mut self, certificate: &Certificate) -> Auth {
        if self.caller().is_some() {
            return Auth::Accept;
        }
        match self.door.authority.identity_of(&self.door.credentials, certificate).await {
            Ok(identity) => self.admit(identity).await,
            Err(refused) => {
                tracing::info!(client = %self.client, key_id = certificate.key_id(), %refused, "certificate refused");
                let failure = refused.to_string();
                let attempt = SignInAttempt {
                    identity: None,
                    method: "certificate",
                    client: self.client,
                    failure: Some(&failure),
                };
                // It is refused either way.
                let _ = self.door.hosts.sign_in_record(attempt).await;
                Self::reject()
            }
        }
    }

    /// Keyboard-interactive: the wish to start it, and the client's answers, of which there is nothing to read.
    pub async fn interactive(&mut self, is_answer: bool) -> Auth {
        if self.caller().is_some() {
            return Auth::Accept;
        }
        if is_answer { self.answered().await } else { self.asked().await }
    }

    async fn asked(&mut self) -> Auth {
        let key = match &self.stage {
            Stage::ExpectKnownKey { unknown } if *unknown > 0 => {
                self.stage = Stage::ExpectAnswer;
                return show(String::new(), String::new());
            }
            Stage::ExpectPerson { pending } => return self.show_link(pending),
            Stage::ExpectEnd | Stage::Done(_) => return Self::next(&[], false),
            Stage::ExpectSignIn { key } => Some(key.clone()),
            Stage::ExpectKnownKey { .. } | Stage::ExpectAnswer | Stage::ExpectAnyKey => None,
        };
        match self.door.openid.start_device_sign_in().await {
            Ok(sign_in) => {
                let followup = Followup {
                    hosts: Arc::clone(&self.door.hosts),
                    credentials: self.door.credentials.clone(),
                    key,
                    key_binding: self.door.config.key_binding,
                    client: self.client,
                };
                let pending = Pending::start(sign_in, followup, self.slot.take());
                let question = self.show_link(&pending);
                self.stage = Stage::ExpectPerson { pending };
                question
            }
            Err(err) => {
                let failure = err.to_string();
                let attempt =
                    SignInAttempt { identity: None, method: "device", client: self.client, failure: Some(&failure) };
                // It has failed either way.
                let _ = self.door.hosts.sign_in_record(attempt).await;
                self.stage = Stage::ExpectEnd;
                show(format!("You cannot sign in to {}", self.door.name), failure)
            }
        }
    }

    async fn answered(&mut self) -> Auth {
        let pending = match &self.stage {
            Stage::ExpectPerson { pending } => Arc::clone(pending),
            Stage::ExpectAnswer => {
                self.stage = Stage::ExpectAnyKey;
                return Self::next(&[MethodKind::PublicKey, MethodKind::KeyboardInteractive], true);
            }
            _ => return Self::next(&[], false),
        };
        match tokio::time::timeout(self.door.config.sign_in_wait, pending.outcome()).await {
            Ok(Ok(identity)) => self.accept(Caller::Known(identity)),
            Ok(Err(failure)) => {
                self.stage = Stage::ExpectEnd;
                show(format!("You are not signed in to {}", self.door.name), failure.to_string())
            }
            // Some clients show nothing of this method. Whoever has not signed in by now gets in as nobody in
            // particular, is shown the link in the session, and is held there.
            Err(_) => self.accept(Caller::Pending(pending)),
        }
    }

    async fn admit(&mut self, identity: Identity) -> Auth {
        let attempt = SignInAttempt {
            identity: Some(&identity),
            method: &identity.method,
            client: self.client,
            failure: None,
        };
        // A log-in that cannot be recorded is none.
        match self.door.hosts.sign_in_record(attempt).await {
            Ok(()) => self.accept(Caller::Known(Arc::new(identity))),
            Err(refusal) => {
                tracing::error!(client = %self.client, %refusal, "log-in refused");
                Self::next(&[], false)
            }
        }
    }

    fn accept(&mut self, caller: Caller) -> Auth {
        self.slot = None;
        self.stage = Stage::Done(caller);
        Auth::Accept
    }

    async fn standing(&self, key: &PublicKey) -> KeyStanding {
        match self.door.credentials.standing(&fingerprint(key)).await {
            Ok(standing) => standing,
            Err(err) => {
                tracing::error!(%err, "key bindings cannot be read");
                KeyStanding::Unknown
            }
        }
    }

    fn show_link(&self, pending: &Pending) -> Auth {
        show(
            format!("Sign in to {}", self.door.name),
            format!(
                "Open this link:\n\n  {}\n\nand check that it shows the code {}. Then this log-in goes on by itself.",
                pending.link, pending.code
            ),
        )
    }
}

/// A question without prompts: clients show it and answer at once, no key is to be pressed.
fn show(name: String, instructions: String) -> Auth {
    Auth::Partial { name: Cow::Owned(name), instructions: Cow::Owned(instructions), prompts: Cow::Borrowed(&[]) }
}
