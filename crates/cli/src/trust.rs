//! Which gateway is the right one: its CA, given as a file, pinned by fingerprint, or looked at by a person once.
//!
//! A gateway sends its CA with its certificate. [`presented_ca`] only collects it; nothing is sent to the other
//! side but the handshake. The connection that is then used trusts that CA alone and is checked in full.

use std::{fmt::Write as _, io, sync::Arc, time::Duration};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use rustls::{
    ClientConfig, DigitallySignedStruct, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature},
    pki_types::{CertificateDer, ServerName, UnixTime},
};
use sha2::{Digest, Sha256};
use tokio::{net::TcpStream, time::timeout};
use tokio_rustls::TlsConnector;

use crate::profile::Address;

/// A handshake that takes longer is a dead network.
const PATIENCE: Duration = Duration::from_secs(15);

/// Why the CA could not be had.
#[derive(Debug, thiserror::Error)]
pub enum TrustError {
    /// Not 64 hexadecimal digits.
    #[error("a SHA-256 fingerprint has 64 hexadecimal digits")]
    Fingerprint,
    /// No connection.
    #[error("cannot connect to {gateway}")]
    Connect {
        /// To whom.
        gateway: Address,
        /// Why.
        #[source]
        err: io::Error,
    },
    /// No answer in time.
    #[error("{gateway} does not answer")]
    Silent {
        /// Who.
        gateway: Address,
    },
    /// Not a name that TLS knows.
    #[error("`{0}` is not a host name or an IP address")]
    Name(String),
    /// None of the certificates has the fingerprint.
    #[error("{gateway} presents no certificate with that fingerprint; its CA has {found}")]
    NotPresented {
        /// Who.
        gateway: Address,
        /// What it presents.
        found: String,
    },
    /// No certificate at all.
    #[error("{gateway} presents no certificate")]
    Nothing {
        /// Who.
        gateway: Address,
    },
}

/// A CA certificate, not yet trusted by anyone.
#[derive(Clone, Debug)]
pub struct PresentedCa {
    der: CertificateDer<'static>,
}

impl PresentedCa {
    /// SHA-256 of the certificate, 64 hexadecimal digits.
    #[must_use]
    pub fn fingerprint(&self) -> String {
        hex::encode(Sha256::digest(&self.der))
    }

    /// PEM.
    #[must_use]
    pub fn pem(&self) -> String {
        let mut pem = "-----BEGIN CERTIFICATE-----\n".to_owned();
        for line in STANDARD.encode(&self.der).as_bytes().chunks(64) {
            // Base64 is ASCII, and writing to a string cannot fail.
            let _ = writeln!(pem, "{}", String::from_utf8_lossy(line));
        }
        pem.push_str("-----END CERTIFICATE-----\n");
        pem
    }
}

/// Reads a fingerprint: hexadecimal, with or without `sha256:` and colons.
///
/// # Errors
/// It is none.
pub fn parse_fingerprint(text: &str) -> Result<[u8; 32], TrustError> {
    let lower = text.trim().to_ascii_lowercase();
    let digits: String =
        lower.strip_prefix("sha256:").unwrap_or(&lower).chars().filter(|c| *c != ':').collect();
    let mut fingerprint = [0; 32];
    hex::decode_to_slice(digits, &mut fingerprint).map_err(|_| TrustError::Fingerprint)?;
    Ok(fingerprint)
}

/// The CA that the gateway presents; with a fingerprint, the certificate that has it and no other.
///
/// # Errors
/// See [`TrustError`].
pub async fn presented_ca(gateway: &Address, pin: Option<[u8; 32]>) -> Result<PresentedCa, TrustError> {
    let chain = presented(gateway).await?;
    // The CA comes last, if at all; a single certificate may be its own CA.
    let last = chain.last().cloned().ok_or_else(|| TrustError::Nothing { gateway: gateway.clone() })?;
    let last = PresentedCa { der: last };
    let Some(pin) = pin else { return Ok(last) };
    chain
        .into_iter()
        .find(|der| Sha256::digest(der).as_slice() == pin)
        .map(|der| PresentedCa { der })
        .ok_or_else(|| TrustError::NotPresented { gateway: gateway.clone(), found: last.fingerprint() })
}

async fn presented(gateway: &Address) -> Result<Vec<CertificateDer<'static>>, TrustError> {
    let provider = Arc::new(ring::default_provider());
    let connect_error = |err| TrustError::Connect { gateway: gateway.clone(), err };
    let mut config = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(|err| connect_error(io::Error::other(err)))?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Collect { provider }))
        .with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec()];
    let host = gateway.host();
    let name = ServerName::try_from(host.clone()).map_err(|_| TrustError::Name(host.clone()))?;
    let handshake = async {
        let tcp = TcpStream::connect((host.as_str(), gateway.port())).await?;
        TlsConnector::from(Arc::new(config)).connect(name, tcp).await
    };
    let stream = timeout(PATIENCE, handshake)
        .await
        .map_err(|_| TrustError::Silent { gateway: gateway.clone() })?
        .map_err(connect_error)?;
    let (_, session) = stream.get_ref();
    Ok(session.peer_certificates().unwrap_or_default().iter().map(|der| der.clone().into_owned()).collect())
}

/// Accepts any certificate: only for looking at it.
#[derive(Debug)]
struct Collect {
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Collect {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, cert, signed, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, signed, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fingerprints() {
        let digits = "ab".repeat(32);
        assert_eq!(parse_fingerprint(&digits).expect("plain"), [0xab; 32]);
        assert_eq!(
            parse_fingerprint(&format!("SHA256:{}", digits.to_uppercase())).expect("prefixed"),
            [0xab; 32]
        );
        let colons = ["ab"; 32].join(":");
        assert_eq!(parse_fingerprint(&colons).expect("colons"), [0xab; 32]);
        for bad in ["", "ab", &digits[1..], "zz".repeat(32).as_str()] {
            assert!(parse_fingerprint(bad).is_err(), "{bad}");
        }
    }
}
