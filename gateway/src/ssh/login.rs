//! SSH authentication, as a state machine that knows nothing of channels.
//!
//! A client's keys are tried first: one that is bound, or has a live certificate, lets its owner in at once, wherever it
//! stands among the others. The first key that is neither is proved all the same before it is refused, so that it can
//! be bound to the sign-in that follows by keyboard-interactive.

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
    ExpectProof {
        /// Keys were offered.
        has_keys: bool,
        /// Fingerprint of the first key that was proved and is not known here: the one to bind.
        unknown: Option<String>,
    },
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
        Self { door, client, slot: Some(slot), stage: Stage::ExpectProof { has_keys: false, unknown: None } }
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
        let Stage::ExpectProof { has_keys: true, .. } = &self.stage else { return };
        let failure = "no key that was offered is bound or certified here, and nobody signed in";
        let (hosts, client) = (Arc::clone(&self.door.hosts), self.client);
        if !self.may_act() {
            return;
        }
        // Only inside a runtime, which is there whenever a connection ends by itself.
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move {
                let attempt = SignInAttempt { identity: None, method: "key", client, failure: Some(failure) };
                // Nothing follows from it.
                let _ = hosts.sign_in_record(attempt).await;
            });
        }
    }

    /// Strangers cause links at the provider and failures on the record: not without limit.
    fn may_act(&self) -> bool {
        let may = self.door.slots.may_act(self.client.ip());
        if !may {
            tracing::warn!(client = %self.client, "too many failed log-ins or sign-ins; this one is not recorded");
        }
        may
    }

    /// Not this; something else may do.
    fn reject() -> Auth {
        let methods = MethodSet::from(&[MethodKind::PublicKey, MethodKind::KeyboardInteractive][..]);
        Auth::Reject { proceed_with_methods: Some(methods), partial_success: false }
    }

    /// Nothing will do.
    fn give_up() -> Auth {
        Auth::Reject { proceed_with_methods: Some(MethodSet::empty()), partial_success: false }
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
        let standing = self.standing(key).await;
        let Stage::ExpectProof { has_keys, unknown } = &mut self.stage else { return Self::reject() };
        *has_keys = true;
        match standing {
            KeyStanding::Bound(_) | KeyStanding::Certified => Auth::Accept,
            // The first of them is worth a signature.
            KeyStanding::Unknown if unknown.is_none() => Auth::Accept,
            KeyStanding::Unknown => Self::reject(),
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
        if let Stage::ExpectProof { unknown, .. } = &mut self.stage {
            unknown.get_or_insert_with(|| fingerprint(key));
        }
        Self::reject()
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
                if self.may_act() {
                    // It is refused either way.
                    let _ = self.door.hosts.sign_in_record(attempt).await;
                }
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
            Stage::ExpectProof { unknown, .. } => unknown.clone(),
            Stage::ExpectPerson { pending } => return self.show_link(pending),
            Stage::ExpectEnd | Stage::Done(_) => return Self::give_up(),
        };
        if !self.may_act() {
            self.stage = Stage::ExpectEnd;
            return show(
                format!("You cannot sign in to {}", self.door.name),
                "Too many sign-ins were started; try again in a minute.".to_owned(),
            );
        }
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
                let attempt = SignInAttempt {
                    identity: None,
                    method: "device",
                    client: self.client,
                    failure: Some(&failure),
                };
                // It has failed either way.
                let _ = self.door.hosts.sign_in_record(attempt).await;
                self.stage = Stage::ExpectEnd;
                show(format!("You cannot sign in to {}", self.door.name), failure)
            }
        }
    }

    async fn answered(&mut self) -> Auth {
        let Stage::ExpectPerson { pending } = &self.stage else { return Self::give_up() };
        let pending = Arc::clone(pending);
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
                Self::give_up()
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
    Auth::Partial {
        name: Cow::Owned(name),
        instructions: Cow::Owned(instructions),
        prompts: Cow::Borrowed(&[]),
    }
}
