//! The SSH authorities: the gateway's host key, the CA that vouches for host keys, the CA that vouches for people.
//!
//! All three are Ed25519 keys in OpenSSH's own format, each in a file of mode 0600 in the state directory, made at the
//! first start. A person's certificate is good for nothing but this gateway, and only while its serial number
//! is live in the state database.

use crate::identity::Credentials;
use crate::state::StateError;
use russh::keys::ssh_key::certificate::{Builder, CertType};
use russh::keys::ssh_key::private::{Ed25519Keypair, KeypairData};
use russh::keys::ssh_key::{self, LineEnding};
use russh::keys::{Certificate, HashAlg, PrivateKey, PublicKey};
use sallyport_evidence::record::Identity;
use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use zeroize::Zeroizing;

/// Certificates are valid from a little earlier than now: clients' clocks differ.
const CLOCK_SKEW: Duration = Duration::from_secs(5 * 60);
/// Host certificates are made anew for every connection; a day outlives any log-in.
const HOST_CERTIFICATE_LIFETIME: Duration = Duration::from_secs(24 * 3600);

/// An authority cannot be opened or used.
#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    /// A key file.
    #[error("cannot read or create the key file `{path}`")]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        err: io::Error,
    },
    /// A key file's content.
    #[error("`{path}` is not an OpenSSH private key without passphrase")]
    Key {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        err: ssh_key::Error,
    },
    /// Others can read it.
    #[error(
        "`{path}` can be read by others; take their permissions away (chmod 600) and consider the key known to them"
    )]
    Exposed {
        /// The file.
        path: PathBuf,
    },
    /// Signing failed.
    #[error("cannot sign the certificate")]
    Sign(#[source] ssh_key::Error),
    /// The serial number cannot be recorded.
    #[error("cannot record the certificate")]
    State(#[from] StateError),
}

/// The three keys.
pub struct SshAuthority {
    host_key: PrivateKey,
    host_ca: PrivateKey,
    user_ca: PrivateKey,
}

impl SshAuthority {
    /// Opens the keys in `dir`, making those that are missing.
    ///
    /// # Errors
    /// A file cannot be read or made, or is not safe.
    pub fn open(dir: &Path) -> Result<Self, AuthorityError> {
        Ok(Self {
            host_key: open_key(&dir.join("ssh_host_ed25519_key"), "sallyport host key")?,
            host_ca: open_key(&dir.join("ssh_host_ca"), "sallyport host CA")?,
            user_ca: open_key(&dir.join("ssh_user_ca"), "sallyport user CA")?,
        })
    }

    /// The key that every SSH connection to the gateway is under.
    #[must_use]
    pub fn host_key(&self) -> &PrivateKey {
        &self.host_key
    }

    /// The CA of host keys in one line, for `@cert-authority * …` in `known_hosts`.
    #[must_use]
    pub fn host_ca_line(&self) -> String {
        line(&self.host_ca)
    }

    /// The CA of people in one line.
    #[must_use]
    pub fn user_ca_line(&self) -> String {
        line(&self.user_ca)
    }

    /// A certificate of the host key for these host names.
    ///
    /// # Errors
    /// Signing failed.
    pub fn host_certificate(&self, names: &[String]) -> Result<Certificate, AuthorityError> {
        let now = SystemTime::now();
        let sign = || {
            let mut builder = builder(self.host_key.public_key(), now, now + HOST_CERTIFICATE_LIFETIME)?;
            builder.cert_type(CertType::Host)?.key_id(names.first().map_or("", String::as_str))?;
            for name in names {
                builder.valid_principal(name.as_str())?;
            }
            builder.sign(&self.host_ca)
        };
        sign().map_err(AuthorityError::Sign)
    }

    /// A short-lived certificate that lets the holder of `key` in as `identity`. Its serial number is recorded with
    /// the identity and its groups before it is signed.
    ///
    /// # Errors
    /// Recording or signing failed.
    pub async fn issue_user_certificate(
        &self,
        credentials: &Credentials,
        identity: &Identity,
        key: &PublicKey,
        lifetime: Duration,
    ) -> Result<Certificate, AuthorityError> {
        let now = SystemTime::now();
        let expires_at = now + lifetime;
        let serial = credentials.certificate_serial(&fingerprint(key), identity, expires_at).await?;
        let sign = || {
            let mut builder = builder(key, now, expires_at)?;
            builder
                .cert_type(CertType::User)?
                .serial(serial)?
                .key_id(identity.user.as_str())?
                .valid_principal(identity.user.as_str())?
                .extension("permit-pty", "")?
                .comment(format!("{} (sallyport {serial})", identity.user))?;
            builder.sign(&self.user_ca)
        };
        sign().map_err(AuthorityError::Sign)
    }

    /// Whom a presented certificate stands for. The caller has seen proof that the peer holds its key.
    ///
    /// # Errors
    /// Not ours, not valid now, for something else, revoked: the text says which.
    pub async fn identity_of(
        &self,
        credentials: &Credentials,
        certificate: &Certificate,
    ) -> Result<Identity, CertificateRefused> {
        let ca = self.user_ca.public_key().fingerprint(HashAlg::Sha256);
        if certificate.signature_key().fingerprint(HashAlg::Sha256) != ca {
            return Err(CertificateRefused::Foreign);
        }
        if certificate.cert_type() != CertType::User {
            return Err(CertificateRefused::NotForPeople);
        }
        certificate.validate([&ca]).map_err(|_| CertificateRefused::NotValidNow)?;
        // None is ever issued with one; OpenSSH demands that unknown ones refuse.
        if certificate.critical_options().iter().next().is_some() {
            return Err(CertificateRefused::Restricted);
        }
        let key = PublicKey::new(certificate.public_key().clone(), "");
        let identity = credentials
            .certificate(certificate.serial(), &fingerprint(&key))
            .await
            .map_err(|_| CertificateRefused::Unreadable)?
            .ok_or(CertificateRefused::Revoked)?;
        if !certificate.valid_principals().contains(&identity.user) {
            return Err(CertificateRefused::NotForPeople);
        }
        Ok(Identity { method: "certificate".to_owned(), ..identity })
    }
}

/// A certificate proves nothing here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CertificateRefused {
    /// Another CA's.
    #[error("the certificate is of another authority")]
    Foreign,
    /// A host's, or without the person's name.
    #[error("the certificate is not for a person's log-in")]
    NotForPeople,
    /// Its time is over or not yet come, or the signature is wrong.
    #[error("the certificate is not valid now")]
    NotValidNow,
    /// Critical options.
    #[error("the certificate has restrictions unknown here")]
    Restricted,
    /// Revoked, or not in the state database.
    #[error("the certificate is revoked")]
    Revoked,
    /// The state database.
    #[error("the certificate cannot be looked up now")]
    Unreadable,
}

/// How keys are named in the state database and in the log: `SHA256:…`.
#[must_use]
pub fn fingerprint(key: &PublicKey) -> String {
    key.fingerprint(HashAlg::Sha256).to_string()
}

fn builder(key: &PublicKey, now: SystemTime, until: SystemTime) -> Result<Builder, ssh_key::Error> {
    let nonce: [u8; Builder::RECOMMENDED_NONCE_SIZE] = rand::random();
    let seconds = |at: SystemTime| at.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    Builder::new(nonce, key, seconds(now - CLOCK_SKEW), seconds(until))
}

fn line(key: &PrivateKey) -> String {
    // Encoding an Ed25519 key into a string cannot fail.
    key.public_key().to_openssh().unwrap_or_default()
}

fn open_key(path: &Path, comment: &str) -> Result<PrivateKey, AuthorityError> {
    let file = |err| AuthorityError::File { path: path.to_owned(), err };
    match fs::metadata(path) {
        Ok(metadata) if metadata.permissions().mode() & 0o077 != 0 => {
            Err(AuthorityError::Exposed { path: path.to_owned() })
        }
        Ok(_) => {
            let pem = Zeroizing::new(fs::read(path).map_err(file)?);
            let key = PrivateKey::from_openssh(&*pem)
                .map_err(|err| AuthorityError::Key { path: path.to_owned(), err })?;
            if key.is_encrypted() {
                return Err(AuthorityError::Key { path: path.to_owned(), err: ssh_key::Error::Encrypted });
            }
            Ok(key)
        }
        Err(err) if err.kind() == io::ErrorKind::NotFound => make_key(path, comment),
        Err(err) => Err(file(err)),
    }
}

fn make_key(path: &Path, comment: &str) -> Result<PrivateKey, AuthorityError> {
    let file = |err| AuthorityError::File { path: path.to_owned(), err };
    let broken = |err| AuthorityError::Key { path: path.to_owned(), err };
    let seed: Zeroizing<[u8; 32]> = Zeroizing::new(rand::random());
    let pair = KeypairData::Ed25519(Ed25519Keypair::from_seed(&seed));
    let key = PrivateKey::new(pair, comment).map_err(broken)?;
    let pem = key.to_openssh(LineEnding::LF).map_err(broken)?;
    // Written beside and renamed: a crash leaves no half a key, which the next start could not read.
    let half = path.with_extension("new");
    let mut out =
        OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&half).map_err(file)?;
    out.write_all(pem.as_bytes()).and_then(|()| out.sync_all()).map_err(file)?;
    fs::rename(&half, path).map_err(file)?;
    Ok(key)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::State;

    fn alice() -> Identity {
        Identity {
            user: "alice@example.org".into(),
            groups: vec!["ops".into()],
            kind: "human".into(),
            ..Identity::default()
        }
    }

    fn some_key() -> PublicKey {
        let pair = KeypairData::Ed25519(Ed25519Keypair::from_seed(&rand::random()));
        PrivateKey::new(pair, "").expect("key").public_key().clone()
    }

    #[test]
    fn keys_survive_and_are_private() {
        let dir = tempfile::tempdir().expect("temp dir");
        let first = SshAuthority::open(dir.path()).expect("opens");
        let again = SshAuthority::open(dir.path()).expect("opens");
        assert_eq!(first.host_ca_line(), again.host_ca_line());
        assert_ne!(first.host_ca_line(), first.user_ca_line());
        for entry in fs::read_dir(dir.path()).expect("lists") {
            let path = entry.expect("entry").path();
            assert_eq!(
                fs::metadata(&path).expect("metadata").permissions().mode() & 0o777,
                0o600,
                "{}",
                path.display()
            );
        }
        let exposed = dir.path().join("ssh_user_ca");
        fs::set_permissions(&exposed, fs::Permissions::from_mode(0o644)).expect("chmod");
        assert!(matches!(SshAuthority::open(dir.path()), Err(AuthorityError::Exposed { .. })));
    }

    #[tokio::test]
    async fn a_certificate_is_good_here_and_nowhere_else() {
        let (dir, elsewhere) = (tempfile::tempdir().expect("dir"), tempfile::tempdir().expect("dir"));
        let authority = SshAuthority::open(dir.path()).expect("opens");
        let other = SshAuthority::open(elsewhere.path()).expect("opens");
        let credentials = Credentials::new(State::open(&dir.path().join("state.db")).expect("opens"));
        let (key, hour) = (some_key(), Duration::from_secs(3600));
        let certificate =
            authority.issue_user_certificate(&credentials, &alice(), &key, hour).await.expect("issues");
        let identity = authority.identity_of(&credentials, &certificate).await.expect("good");
        assert_eq!((identity.user.as_str(), identity.method.as_str()), ("alice@example.org", "certificate"));
        assert_eq!(identity.groups, ["ops"]);
        let refused = other.identity_of(&credentials, &certificate).await;
        assert_eq!(refused, Err(CertificateRefused::Foreign));
        // A foreign CA with a serial that is live here.
        let foreign = other.issue_user_certificate(&credentials, &alice(), &key, hour).await.expect("issues");
        assert_eq!(authority.identity_of(&credentials, &foreign).await, Err(CertificateRefused::Foreign));
        credentials.revoke_certificate(certificate.serial()).await.expect("revokes");
        assert_eq!(authority.identity_of(&credentials, &certificate).await, Err(CertificateRefused::Revoked));
    }

    #[tokio::test]
    async fn an_ended_certificate_and_a_hosts_certificate_are_refused() {
        let dir = tempfile::tempdir().expect("dir");
        let authority = SshAuthority::open(dir.path()).expect("opens");
        let credentials = Credentials::new(State::open(&dir.path().join("state.db")).expect("opens"));
        let ended =
            authority.issue_user_certificate(&credentials, &alice(), &some_key(), Duration::ZERO).await;
        let refused = authority.identity_of(&credentials, &ended.expect("issues")).await;
        assert_eq!(refused, Err(CertificateRefused::NotValidNow));
        let host = authority.host_certificate(&["web-1".to_owned()]).expect("signs");
        assert_eq!(host.valid_principals(), ["web-1"]);
        assert_eq!(authority.identity_of(&credentials, &host).await, Err(CertificateRefused::Foreign));
    }
}
