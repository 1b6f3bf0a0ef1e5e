//! The SSH door: unmodified `ssh`, `scp`, `sftp` and `ssh -J` come in here.
//!
//! [`listener`] accepts, [`login`] finds out who it is (or [`caller::Pending`] that somebody is signing in),
//! [`connection`] (with its callbacks in `handler`) turns what russh calls into inboxes and tasks, [`channel`] runs one shell or command on its host, [`jump`] ends the inner
//! connection of `ssh -J`. What a client sends is held in bounded [`inbox`]es; nothing waits inside a callback.

pub mod address;
pub mod caller;
pub mod channel;
pub mod config;
pub mod connection;
pub mod cut;
mod handler;
pub mod hosts;
pub mod inbox;
pub mod jump;
pub mod listener;
pub mod listing;
pub mod login;
pub mod shared;
pub mod slots;
pub mod terminal;
pub mod tunnel;
pub mod work;

use crate::authority::ssh::{AuthorityError, SshAuthority};
use crate::identity::{Credentials, OpenId};
use hosts::Hosts;
use russh::keys::Algorithm;
use russh::server::Config as ServerConfig;
use russh::{MethodKind, MethodSet, Preferred, SshId, cipher};
use slots::Slots;
use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// Largest packet that clients may send us. OpenSSH's are half of it.
const PACKET: u32 = 65_535;
/// Output waiting in russh for one connection, in pieces of a packet of the client's (OpenSSH: 32 KiB).
const PIECES: usize = 32;
/// More keys than this in one agent are no keys but a search.
const MAX_AUTH_ATTEMPTS: usize = 32;

/// russh's own list leaves AES-128-GCM out, which is what OpenSSH is fastest with.
const CIPHERS: &[cipher::Name] = &[
    cipher::CHACHA20_POLY1305,
    cipher::AES_128_GCM,
    cipher::AES_256_GCM,
    cipher::AES_256_CTR,
    cipher::AES_192_CTR,
    cipher::AES_128_CTR,
];

/// Everything that a connection needs.
pub struct Door {
    /// `[ssh]`.
    pub config: config::Config,
    /// What the gateway calls itself.
    pub name: String,
    /// The name by which people reach it.
    pub host: String,
    /// Policy, sessions, the record.
    pub hosts: Arc<dyn Hosts>,
    /// The device flow.
    pub openid: OpenId,
    /// Key bindings and certificates.
    pub credentials: Credentials,
    /// Host key and CAs.
    pub authority: Arc<SshAuthority>,
    /// Connections without an identity.
    pub slots: Arc<Slots>,
    /// Cancelled when the gateway shuts down.
    pub shutdown: CancellationToken,
}

impl Door {
    /// Joins what the door needs. `name` is the gateway's, and its host name where `[ssh] host` is left out.
    #[must_use]
    pub fn new(
        config: config::Config,
        name: String,
        hosts: Arc<dyn Hosts>,
        openid: OpenId,
        credentials: Credentials,
        authority: Arc<SshAuthority>,
        shutdown: CancellationToken,
    ) -> Arc<Self> {
        let host = config.host.clone().unwrap_or_else(|| name.clone());
        let slots = Slots::new(config.max_pending, config.max_pending_per_address);
        Arc::new(Self { config, name, host, hosts, openid, credentials, authority, slots, shutdown })
    }

    /// The names in the certificate that connections from outside are under.
    fn names(&self) -> Vec<String> {
        let address = self.config.listen.ip();
        let by_address = (!address.is_unspecified()).then(|| address.to_string());
        std::iter::once(self.host.clone()).chain(by_address).collect()
    }

    /// russh's configuration for a connection that is to be under a certificate for `names`.
    fn server_config(&self, names: &[String]) -> Result<Arc<ServerConfig>, AuthorityError> {
        let certificate = self.authority.host_certificate(names)?;
        let mut preferred = Preferred::DEFAULT;
        // RFC 8332: no SHA-1 signatures.
        let keys = preferred.key.iter().filter(|key| !matches!(key, Algorithm::Rsa { hash: None }));
        preferred.key = Cow::Owned(keys.cloned().collect());
        preferred.cipher = Cow::Borrowed(CIPHERS);
        Ok(Arc::new(ServerConfig {
            server_id: SshId::Standard(Cow::Borrowed("SSH-2.0-Sallyport")),
            methods: MethodSet::from(&[MethodKind::PublicKey, MethodKind::KeyboardInteractive][..]),
            // There is no password to guess: a key is rejected at once, so that the right one is found at once.
            auth_rejection_time: Duration::ZERO,
            auth_rejection_time_initial: None,
            keys: vec![self.authority.host_key().clone()],
            certificates: vec![certificate],
            window_size: inbox::WINDOW,
            maximum_packet_size: PACKET,
            // Nothing is ever read from there: see `inbox`.
            channel_buffer_size: 1,
            event_buffer_size: PIECES,
            preferred,
            max_auth_attempts: MAX_AUTH_ATTEMPTS,
            inactivity_timeout: None,
            keepalive_interval: Some(self.config.keepalive),
            keepalive_max: self.config.keepalive_max,
            nodelay: true,
            ..ServerConfig::default()
        }))
    }
}
