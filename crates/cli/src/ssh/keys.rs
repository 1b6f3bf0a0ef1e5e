//! A fresh key pair per sign-in, and the certificate that the gateway made for it.

use rand::RngCore;
use russh::keys::ssh_key::{
    Certificate, LineEnding, PrivateKey, PublicKey, certificate::CertType, private::Ed25519Keypair,
};

use super::SshFiles;
use crate::{
    files::{self, FileError},
    text,
};

/// Why key and certificate could not be made or kept.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// Encoding.
    #[error("cannot encode the ssh key")]
    Encode(#[source] russh::keys::ssh_key::Error),
    /// What the gateway sent is no certificate.
    #[error("the gateway sent something that is not an ssh certificate")]
    Certificate(#[source] russh::keys::ssh_key::Error),
    /// It is for something else than was asked.
    #[error("the gateway sent an ssh certificate that is not for this key")]
    NotOurs,
    /// The CA's key.
    #[error("the gateway sent something that is not an ssh host CA key")]
    HostCa(#[source] russh::keys::ssh_key::Error),
    /// Files.
    #[error(transparent)]
    File(#[from] FileError),
}

/// A key pair that exists only in memory so far.
pub struct Pair(PrivateKey);

impl Pair {
    /// A fresh Ed25519 key.
    ///
    /// # Errors
    /// It cannot be encoded.
    pub fn generate(comment: &str) -> Result<Self, KeyError> {
        let mut seed = zeroize::Zeroizing::new([0; 32]);
        rand::rng().fill_bytes(seed.as_mut_slice());
        let mut key = PrivateKey::from(Ed25519Keypair::from_seed(&seed));
        key.set_comment(comment);
        Ok(Self(key))
    }

    /// One line, for the gateway to certify.
    ///
    /// # Errors
    /// It cannot be encoded.
    pub fn public_line(&self) -> Result<String, KeyError> {
        self.0.public_key().to_openssh().map_err(KeyError::Encode)
    }

    /// Checks that the certificate is a user certificate for this key. Its CA is the gateway's own affair: the
    /// certificate is only ever shown to the gateway.
    ///
    /// # Errors
    /// It is not.
    pub fn accept(&self, line: &str) -> Result<Certificate, KeyError> {
        let certificate = Certificate::from_openssh(line.trim()).map_err(KeyError::Certificate)?;
        let ours = certificate.public_key() == self.0.public_key().key_data();
        if ours && certificate.cert_type() == CertType::User {
            Ok(certificate)
        } else {
            Err(KeyError::NotOurs)
        }
    }

    /// Writes key and certificate where ssh will be told to find them.
    ///
    /// # Errors
    /// They cannot be written.
    pub fn keep(&self, files: &SshFiles, certificate: &Certificate) -> Result<(), KeyError> {
        files::private_dir(&files.dir)?;
        // The old certificate goes first: it does not fit the new key.
        files::remove(&files.certificate())?;
        let key = self.0.to_openssh(LineEnding::LF).map_err(KeyError::Encode)?;
        files::replace(&files.key(), key.as_bytes(), 0o600)?;
        let line = certificate.to_openssh().map_err(KeyError::Encode)?;
        files::replace(&files.certificate(), format!("{line}\n").as_bytes(), 0o600)?;
        Ok(())
    }
}

/// The host CA's key as one clean line (type and key, nothing that a server added).
///
/// # Errors
/// It is none.
pub fn host_ca_line(sent: &str) -> Result<String, KeyError> {
    let mut key = PublicKey::from_openssh(sent.trim()).map_err(KeyError::HostCa)?;
    key.set_comment("");
    Ok(key.to_openssh().map_err(KeyError::Encode)?.trim().to_owned())
}

/// Principals of a certificate, to show.
#[must_use]
pub fn principals(certificate: &Certificate) -> String {
    text::safe(&certificate.valid_principals().join(", "), 200)
}

/// Removes key, certificate and what names them. (`Include` passes over a file that is not there.)
///
/// # Errors
/// They cannot be removed.
pub fn forget(files: &SshFiles) -> Result<bool, FileError> {
    let mut any = false;
    for path in [files.key(), files.certificate(), files.known_hosts(), files.config()] {
        any |= files::remove(&path)?;
    }
    Ok(any)
}

#[cfg(test)]
mod tests {
    use russh::keys::ssh_key::certificate::Builder;

    use super::*;

    fn certified(pair: &Pair, kind: CertType) -> String {
        let ca = PrivateKey::from(Ed25519Keypair::from_seed(&[7; 32]));
        let key = pair.0.public_key().key_data().clone();
        let mut builder = Builder::new(vec![1; 16], key, 1, 4_000_000_000).expect("builder");
        builder.cert_type(kind).expect("kind").valid_principal("alice").expect("principal");
        builder.sign(&ca).expect("signed").to_openssh().expect("encoded")
    }

    #[test]
    fn a_certificate_must_be_for_this_key() {
        let (ours, other) = (Pair::generate("sallyport").expect("key"), Pair::generate("x").expect("key"));
        let line = certified(&ours, CertType::User);
        assert_eq!(principals(&ours.accept(&line).expect("ours")), "alice");
        assert!(matches!(other.accept(&line), Err(KeyError::NotOurs)));
        assert!(matches!(ours.accept(&certified(&ours, CertType::Host)), Err(KeyError::NotOurs)));
        assert!(matches!(ours.accept("junk"), Err(KeyError::Certificate(_))));
    }

    #[test]
    fn ssh_keygen_reads_what_is_kept() {
        let dir = tempfile::tempdir().expect("temp dir");
        let files = SshFiles { dir: dir.path().join("sallyport"), user_config: dir.path().join("config") };
        let pair = Pair::generate("sallyport").expect("key");
        let certificate = pair.accept(&certified(&pair, CertType::User)).expect("ours");
        pair.keep(&files, &certificate).expect("kept");
        let shown = std::process::Command::new("ssh-keygen")
            .arg("-L")
            .arg("-f")
            .arg(files.certificate())
            .output()
            .expect("ssh-keygen runs");
        assert!(shown.status.success(), "{}", String::from_utf8_lossy(&shown.stderr));
        let derived = std::process::Command::new("ssh-keygen")
            .arg("-y")
            .arg("-f")
            .arg(files.key())
            .output()
            .expect("runs");
        let line = String::from_utf8(derived.stdout).expect("text");
        assert!(line.starts_with(pair.public_line().expect("line").trim_end_matches(" sallyport")), "{line}");
        assert!(forget(&files).expect("removed"));
        assert!(!files.key().exists() && !files.certificate().exists());
    }

    #[test]
    fn a_ca_line_is_cleaned() {
        let key = PrivateKey::from(Ed25519Keypair::from_seed(&[9; 32]));
        let line = key.public_key().to_openssh().expect("line");
        let cleaned = host_ca_line(&format!("{line} evil comment")).expect("a key");
        assert_eq!(cleaned, line.trim());
        assert!(host_ca_line("ssh-ed25519 AAAA\n* ssh-rsa evil").is_err());
    }
}
