//! Joining: trades a one-time token for a certificate, having made sure first that the other side is the gateway.
//!
//! The gateway's CA is known beforehand, by its certificate or by the SHA-256 of that. The token is sent only on a connection
//! that this CA vouches for.

use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::{DigitallySignedStruct, RootCertStore, SignatureScheme};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use sallyport_contract::v1::enrolment_client::EnrolmentClient;
use sallyport_contract::v1::{HostFacts, JoinRequest};
use sallyport_evidence::note::Verifier;
use sha2::{Digest, Sha256};
use tonic::transport::{Certificate, ClientTlsConfig, Endpoint, Uri};

use crate::credentials::{Credentials, CredentialsError, is_certificate, key_and_request};

const TIMEOUT: Duration = Duration::from_secs(20);

/// How the gateway's CA is known.
#[derive(Clone, Debug)]
pub enum Anchor {
    /// The certificate, PEM.
    Pem(String),
    /// SHA-256 of the certificate's DER.
    Sha256([u8; 32]),
}

/// Joining failed; the token may still be good unless the gateway refused it.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    /// The URL is not one.
    #[error("`{0}` is not a gateway URL; it must be like https://gateway.example.org:8443")]
    Url(String),
    /// No connection.
    #[error("{0} cannot be reached")]
    Connect(String, #[source] Box<dyn std::error::Error + Send + Sync>),
    /// The wrong CA, or none.
    #[error(
        "{0} did not show a certificate of the CA with the given SHA-256; check the fingerprint, or that this is the right gateway"
    )]
    Untrusted(String),
    /// Refused.
    #[error("the gateway refused to let this host join: {0}")]
    Refused(String),
    /// Credentials.
    #[error(transparent)]
    Credentials(#[from] CredentialsError),
}

/// Joins and returns the credentials to keep.
///
/// # Errors
/// See [`JoinError`].
pub async fn join(
    gateway: &str,
    anchor: Anchor,
    token: &str,
    facts: HostFacts,
) -> Result<Credentials, JoinError> {
    let uri: Uri = gateway.parse().map_err(|_| JoinError::Url(gateway.into()))?;
    let host = uri
        .host()
        .filter(|_| uri.scheme_str() == Some("https"))
        .ok_or_else(|| JoinError::Url(gateway.into()))?;
    let ca_pem = match anchor {
        Anchor::Pem(pem) => pem,
        Anchor::Sha256(pin) => fetch_ca(gateway, host, uri.port_u16().unwrap_or(443), pin).await?,
    };
    let connect = |source: tonic::transport::Error| JoinError::Connect(gateway.into(), source.into());
    let tls =
        ClientTlsConfig::new().ca_certificate(Certificate::from_pem(&ca_pem)).domain_name(unbracketed(host));
    let channel = Endpoint::from_shared(gateway.to_owned())
        .and_then(|endpoint| endpoint.connect_timeout(TIMEOUT).timeout(TIMEOUT).tls_config(tls))
        .map_err(connect)?
        .connect()
        .await
        .map_err(connect)?;
    let (key_pem, csr_pem) = key_and_request(&facts.hostname)?;
    let request = JoinRequest { token: token.to_owned(), csr_pem, facts: Some(facts) };
    let answer = EnrolmentClient::new(channel)
        .join(request)
        .await
        .map_err(|status| JoinError::Refused(status.message().to_owned()))?
        .into_inner();
    if !is_certificate(&answer.certificate_pem) || !is_certificate(&answer.ca_pem) || answer.host.is_empty() {
        return Err(CredentialsError::Certificate.into());
    }
    Verifier::parse(&answer.policy_key).map_err(CredentialsError::PolicyKey)?;
    Ok(Credentials {
        gateway: gateway.to_owned(),
        host: answer.host,
        key_pem,
        certificate_pem: answer.certificate_pem,
        ca_pem: answer.ca_pem,
        policy_key: answer.policy_key,
    })
}

/// `[::1]` in a URL is `::1` as a name.
pub(crate) fn unbracketed(host: &str) -> &str {
    host.trim_start_matches('[').trim_end_matches(']')
}

/// Connects once to get the CA's certificate out of the chain that the gateway shows, if it has the given SHA-256 and the
/// gateway's own certificate is valid under it.
async fn fetch_ca(gateway: &str, host: &str, port: u16, pin: [u8; 32]) -> Result<String, JoinError> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier = Arc::new(Pinned { pin, found: std::sync::Mutex::new(None), provider: provider.clone() });
    let unreachable =
        |error: Box<dyn std::error::Error + Send + Sync>| JoinError::Connect(gateway.into(), error);
    let mut config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| unreachable(error.into()))?
        .dangerous()
        .with_custom_certificate_verifier(verifier.clone())
        .with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec()];
    let name =
        ServerName::try_from(unbracketed(host).to_owned()).map_err(|_| JoinError::Url(gateway.into()))?;
    let talk = async {
        let tcp = tokio::net::TcpStream::connect((unbracketed(host), port)).await?;
        tokio_rustls::TlsConnector::from(Arc::new(config)).connect(name, tcp).await
    };
    let connected =
        tokio::time::timeout(TIMEOUT, talk).await.map_err(|elapsed| unreachable(elapsed.into()))?;
    let found = verifier.found.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clone();
    match (connected, found) {
        (Ok(_), Some(der)) => Ok(pem_of(&der)),
        (Err(error), Some(_)) => Err(unreachable(error.into())),
        (Err(error), None) if !is_certificate_fault(&error) => Err(unreachable(error.into())),
        _ => Err(JoinError::Untrusted(gateway.into())),
    }
}

fn is_certificate_fault(error: &std::io::Error) -> bool {
    error.kind() == std::io::ErrorKind::InvalidData
}

fn pem_of(der: &[u8]) -> String {
    let text = base64::engine::general_purpose::STANDARD.encode(der);
    let lines: Vec<&str> =
        text.as_bytes().chunks(64).filter_map(|line| std::str::from_utf8(line).ok()).collect();
    format!("-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n", lines.join("\n"))
}

/// Trusts a chain that contains the CA with the pinned SHA-256 and whose first certificate is valid under that CA.
#[derive(Debug)]
struct Pinned {
    pin: [u8; 32],
    found: std::sync::Mutex<Option<Vec<u8>>>,
    provider: Arc<rustls::crypto::CryptoProvider>,
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let unknown = || rustls::Error::InvalidCertificate(rustls::CertificateError::UnknownIssuer);
        let ca = intermediates.iter().find(|der| Sha256::digest(der)[..] == self.pin).ok_or_else(unknown)?;
        let mut roots = RootCertStore::empty();
        roots.add(ca.clone().into_owned())?;
        let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), self.provider.clone())
            .build()
            .map_err(|error| rustls::Error::General(error.to_string()))?;
        let verified =
            verifier.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)?;
        *self.found.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = Some(ca.to_vec());
        Ok(verified)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls12_signature(
            message,
            cert,
            dss,
            &self.provider.signature_verification_algorithms,
        )
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(
            message,
            cert,
            dss,
            &self.provider.signature_verification_algorithms,
        )
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
