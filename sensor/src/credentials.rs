//! Who this sensor is to the gateway: its key (made here, never sent), certificate, the gateway's CA, where the gateway is.

use std::path::{Path, PathBuf};

use rcgen::{CertificateParams, KeyPair};
use sallyport_evidence::note::Verifier;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use x509_parser::pem::Pem;

use crate::files;

/// What joining gave. Kept in `state_dir/identity.json`, readable by root alone.
#[derive(Clone, Serialize, Deserialize)]
pub struct Credentials {
    /// The gateway's URL.
    pub gateway: String,
    /// This host's name, as the gateway knows it.
    pub host: String,
    /// Private key, PKCS#8 PEM.
    pub key_pem: String,
    /// Certificate chain, leaf first.
    pub certificate_pem: String,
    /// The only trust anchor.
    pub ca_pem: String,
    /// What the gateway signs its orders of policy with, in signed-note form. Empty: not known yet.
    #[serde(default)]
    pub policy_key: String,
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Credentials")
            .field("gateway", &self.gateway)
            .field("host", &self.host)
            .finish_non_exhaustive()
    }
}

/// Credentials cannot be had or made.
#[derive(Debug, thiserror::Error)]
pub enum CredentialsError {
    /// Never joined.
    #[error(
        "this host has not joined a gateway; make a token there (`sallyport-gateway join-token --host NAME`) and run `sallyport-sensor join`"
    )]
    NotJoined,
    /// The file is damaged or cannot be read.
    #[error("`{path}` cannot be used; join again")]
    File {
        /// The file.
        path: PathBuf,
        /// Cause.
        #[source]
        source: std::io::Error,
    },
    /// A key or request cannot be made.
    #[error("a key cannot be made")]
    Key(#[source] rcgen::Error),
    /// The certificate is no certificate.
    #[error("the gateway's answer holds no usable certificate")]
    Certificate,
    /// The key for orders is none.
    #[error(
        "the gateway's answer holds no key for its orders of policy; it may be older than this sensor: upgrade it"
    )]
    PolicyKey(#[source] sallyport_evidence::note::NoteError),
}

impl Credentials {
    /// Where they are kept.
    #[must_use]
    pub fn path(state_dir: &Path) -> PathBuf {
        state_dir.join("identity.json")
    }

    /// Reads them.
    ///
    /// # Errors
    /// The host has not joined, or the file is damaged.
    pub fn load(state_dir: &Path) -> Result<Self, CredentialsError> {
        let path = Self::path(state_dir);
        files::read_json(&path).map_err(|source| match source.kind() {
            std::io::ErrorKind::NotFound => CredentialsError::NotJoined,
            _ => CredentialsError::File { path, source },
        })
    }

    /// Keeps them.
    ///
    /// # Errors
    /// The disk does not take them.
    pub fn save(&self, state_dir: &Path) -> Result<(), CredentialsError> {
        let path = Self::path(state_dir);
        files::write_json(&path, self).map_err(|source| CredentialsError::File { path, source })
    }

    /// The key that orders of policy are verified with, if it is known.
    #[must_use]
    pub fn policy_verifier(&self) -> Option<Verifier> {
        Verifier::parse(&self.policy_key).ok()
    }

    /// From when to when the certificate is valid: Unix time in seconds.
    ///
    /// # Errors
    /// It is not a certificate.
    pub fn validity(&self) -> Result<(i64, i64), CredentialsError> {
        let der = first_der(&self.certificate_pem).ok_or(CredentialsError::Certificate)?;
        let (_, certificate) =
            x509_parser::parse_x509_certificate(&der).map_err(|_| CredentialsError::Certificate)?;
        let validity = certificate.validity();
        Ok((validity.not_before.timestamp(), validity.not_after.timestamp()))
    }
}

/// A new key and a signing request for it, both PEM.
///
/// # Errors
/// The system has no randomness, or the library fails.
pub fn key_and_request(name: &str) -> Result<(String, String), CredentialsError> {
    let key = KeyPair::generate().map_err(CredentialsError::Key)?;
    let mut params = CertificateParams::default();
    params.distinguished_name.push(rcgen::DnType::CommonName, name);
    let request =
        params.serialize_request(&key).and_then(|request| request.pem()).map_err(CredentialsError::Key)?;
    Ok((key.serialize_pem(), request))
}

/// Whether a certificate chain is one: at least its first certificate can be read.
#[must_use]
pub fn is_certificate(pem: &str) -> bool {
    first_der(pem).is_some_and(|der| x509_parser::parse_x509_certificate(&der).is_ok())
}

/// SHA-256 of the first certificate's DER, hex.
#[must_use]
pub fn fingerprint(pem: &str) -> Option<String> {
    first_der(pem).map(|der| hex::encode(Sha256::digest(der)))
}

fn first_der(pem: &str) -> Option<Vec<u8>> {
    Pem::iter_from_buffer(pem.as_bytes())
        .flatten()
        .find(|block| block.label == "CERTIFICATE")
        .map(|block| block.contents)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn they_are_kept_and_never_shown() {
        let dir = tempfile::tempdir().expect("dir");
        assert!(matches!(Credentials::load(dir.path()), Err(CredentialsError::NotJoined)));
        let (key_pem, request) = key_and_request("web-1").expect("a key");
        assert!(request.contains("CERTIFICATE REQUEST") && key_pem.contains("PRIVATE KEY"));
        let key = KeyPair::from_pem(&key_pem).expect("key");
        let certificate_pem = CertificateParams::default().self_signed(&key).expect("certificate").pem();
        let credentials = Credentials {
            gateway: "https://gateway:8443".into(),
            host: "web-1".into(),
            key_pem: key_pem.clone(),
            ca_pem: certificate_pem.clone(),
            certificate_pem,
            policy_key: String::new(),
        };
        credentials.save(dir.path()).expect("saved");
        let loaded = Credentials::load(dir.path()).expect("loaded");
        assert_eq!(loaded.host, "web-1");
        assert!(!format!("{loaded:?}").contains("PRIVATE"));
        let (from, to) = loaded.validity().expect("validity");
        assert!(from < to);
        assert_eq!(fingerprint(&loaded.ca_pem).map(|hex| hex.len()), Some(64));
    }
}
