//! The internal X.509 authority: the gRPC listener's certificate and the sensors' client certificates.
//!
//! Its key never leaves the state folder. A sensor's name is in its certificate as the URI
//! `sallyport://sensor/HOST`; that, not the subject, is what counts.

use crate::files;
use rcgen::string::Ia5String;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, PublicKeyData, SanType, SerialNumber,
};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::sign::CertifiedKey;
use sha2::{Digest as _, Sha256};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;
use time::{Duration, OffsetDateTime};
use x509_parser::prelude::{FromDer as _, GeneralName, ParsedExtension, X509Certificate};

/// Scheme and authority of a sensor's URI.
const SENSOR_URI: &str = "sallyport://sensor/";
/// Life of a sensor's certificate: short, since it is renewed without anybody's help.
const SENSOR_LIFE: Duration = Duration::days(7);
/// Life of the listener's certificate; it is remade in memory well before.
const SERVER_LIFE: Duration = Duration::days(30);
/// Life of the CA.
const CA_LIFE: Duration = Duration::days(3650);
/// Clocks may differ this much.
const SKEW: Duration = Duration::minutes(5);
/// A signing request is no longer than this, in bytes.
const MAX_CSR: usize = 16 * 1024;

/// The authority cannot be opened or cannot sign.
#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    /// A file.
    #[error("cannot read or write `{path}`")]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        err: std::io::Error,
    },
    /// Key or certificate are not usable, or signing failed.
    #[error("the certificate authority in `{path}` cannot be used")]
    Unusable {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        err: rcgen::Error,
    },
    /// The key is refused by the TLS library.
    #[error("the listener's certificate cannot be used")]
    Tls(#[from] rustls::Error),
}

/// A signing request is refused.
#[derive(Debug, thiserror::Error)]
pub enum CsrError {
    /// Too long, not PEM, not PKCS#10, or its signature is false.
    #[error("the certificate signing request is malformed or its signature is false")]
    Malformed,
    /// Signing failed.
    #[error("the certificate could not be signed")]
    Sign(#[source] rcgen::Error),
}

/// The authority.
pub struct Authority {
    dir: PathBuf,
    issuer: Issuer<'static, KeyPair>,
    certificate_pem: String,
    certificate_der: CertificateDer<'static>,
}

/// A certificate issued to a sensor.
#[derive(Clone, Debug)]
pub struct Issued {
    /// The certificate, PEM.
    pub pem: String,
    /// Its serial number, lower-case hex, as [`PeerCertificate::serial`].
    pub serial: String,
    /// Its end, milliseconds since the Unix epoch.
    pub expires_ms: i64,
}

/// What a verified client certificate says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerCertificate {
    /// The sensor's host.
    pub host: String,
    /// Serial number, lower-case hex.
    pub serial: String,
    /// Its end.
    pub expires: SystemTime,
}

impl Authority {
    /// Opens the authority in `dir`, making it at the first start.
    ///
    /// # Errors
    /// Its files are not usable.
    pub fn open(dir: &Path) -> Result<Self, AuthorityError> {
        let (key_path, certificate_path) = (dir.join("ca.key"), dir.join("ca.pem"));
        let file = |path: &Path, err| AuthorityError::File { path: path.to_owned(), err };
        let unusable = |err| AuthorityError::Unusable { path: dir.to_owned(), err };
        let fresh = KeyPair::generate().map_err(unusable)?.serialize_pem();
        let key_pem =
            zeroize::Zeroizing::new(files::secret(&key_path, || fresh).map_err(|err| file(&key_path, err))?);
        let key = KeyPair::from_pem(&key_pem).map_err(unusable)?;
        let certificate_pem = if certificate_path.exists() {
            std::fs::read_to_string(&certificate_path).map_err(|err| file(&certificate_path, err))?
        } else {
            let pem = ca_params().self_signed(&key).map_err(unusable)?.pem();
            files::write_private(&certificate_path, pem.as_bytes())
                .map_err(|err| file(&certificate_path, err))?;
            pem
        };
        let issuer = Issuer::from_ca_cert_pem(&certificate_pem, key).map_err(unusable)?;
        let certificate_der = rustls::pki_types::pem::PemObject::from_pem_slice(certificate_pem.as_bytes())
            .map_err(|_| unusable(rcgen::Error::CouldNotParseCertificate))?;
        Ok(Self { dir: dir.to_owned(), issuer, certificate_pem, certificate_der })
    }

    /// The CA certificate, PEM.
    #[must_use]
    pub fn certificate_pem(&self) -> &str {
        &self.certificate_pem
    }

    /// The CA certificate, DER.
    #[must_use]
    pub fn certificate_der(&self) -> &CertificateDer<'static> {
        &self.certificate_der
    }

    /// SHA-256 of the CA certificate's DER, hex: what `sallyport-sensor join --ca-sha256` takes.
    #[must_use]
    pub fn fingerprint(&self) -> String {
        hex::encode(Sha256::digest(&self.certificate_der))
    }

    /// A fresh key and certificate for the listener, with the CA after it so that a joining sensor can
    /// check the CA's fingerprint.
    ///
    /// # Errors
    /// Signing failed.
    pub fn server_key(&self, names: &[String]) -> Result<CertifiedKey, AuthorityError> {
        let unusable = |err| AuthorityError::Unusable { path: self.dir.clone(), err };
        let key = KeyPair::generate().map_err(unusable)?;
        let mut params = CertificateParams::new(names).map_err(unusable)?;
        leaf(&mut params, names.first().map_or("sallyport-gateway", String::as_str), SERVER_LIFE);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        let certificate = params.signed_by(&key, &self.issuer).map_err(unusable)?;
        let private = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let signing = rustls::crypto::ring::sign::any_supported_type(&private)?;
        Ok(CertifiedKey::new(vec![certificate.der().clone(), self.certificate_der.clone()], signing))
    }

    /// When to make the next [`Self::server_key`].
    #[must_use]
    pub fn server_renewal() -> std::time::Duration {
        (SERVER_LIFE / 3_i32).unsigned_abs()
    }

    /// Issues a client certificate to the sensor of `host` for the key of a signing request. Nothing else of the
    /// request is used: names and uses are ours to say.
    ///
    /// # Errors
    /// The request is not acceptable, or signing failed.
    pub fn issue_sensor(&self, host: &str, csr_pem: &str) -> Result<Issued, CsrError> {
        if csr_pem.len() > MAX_CSR {
            return Err(CsrError::Malformed);
        }
        let request = CertificateSigningRequestParams::from_pem(csr_pem).map_err(|_| CsrError::Malformed)?;
        self.sign_sensor(host, &request.public_key, SENSOR_LIFE).map_err(CsrError::Sign)
    }

    fn sign_sensor(
        &self,
        host: &str,
        key: &impl PublicKeyData,
        life: Duration,
    ) -> Result<Issued, rcgen::Error> {
        let mut params = CertificateParams::default();
        let serial = leaf(&mut params, host, life);
        params.subject_alt_names = vec![SanType::URI(Ia5String::try_from(format!("{SENSOR_URI}{host}"))?)];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        let expires_ms = params.not_after.unix_timestamp() * 1000;
        let pem = params.signed_by(key, &self.issuer)?.pem();
        Ok(Issued { pem, serial, expires_ms })
    }
}

/// Reads a client certificate that TLS has verified against our CA. `None`: it is not a sensor's.
#[must_use]
pub fn peer(der: &CertificateDer<'_>) -> Option<PeerCertificate> {
    let (rest, certificate) = X509Certificate::from_der(der).ok()?;
    if !rest.is_empty() {
        return None;
    }
    let names = certificate.extensions().iter().find_map(|extension| match extension.parsed_extension() {
        ParsedExtension::SubjectAlternativeName(names) => Some(names),
        _ => None,
    })?;
    let [GeneralName::URI(uri)] = names.general_names.as_slice() else { return None };
    let host = uri.strip_prefix(SENSOR_URI).filter(|host| is_host_name(host))?;
    let expires = u64::try_from(certificate.validity().not_after.timestamp()).ok()?;
    Some(PeerCertificate {
        host: host.to_owned(),
        serial: hex::encode(certificate.raw_serial()),
        expires: SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(expires),
    })
}

/// Whether `host` can name a host: what fits into SSH target names, Cedar ids, paths and certificates alike.
#[must_use]
pub fn is_host_name(host: &str) -> bool {
    let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '-' | '.' | '_');
    (1..=63).contains(&host.len())
        && host.chars().all(allowed)
        && host.starts_with(|c: char| c.is_ascii_alphanumeric())
        && !host.contains("..")
        && host != crate::recorder::GATEWAY
}

/// Fuzz entry: no bytes make the certificate reader panic.
pub fn fuzz_peer(bytes: &[u8]) {
    let _ = peer(&CertificateDer::from(bytes));
}

fn ca_params() -> CertificateParams {
    let mut params = CertificateParams::default();
    leaf(&mut params, "Sallyport CA", CA_LIFE);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}

/// What all certificates have; gives the serial number.
fn leaf(params: &mut CertificateParams, name: &str, life: Duration) -> String {
    let mut subject = DistinguishedName::new();
    subject.push(DnType::CommonName, name);
    params.distinguished_name = subject;
    let now = OffsetDateTime::now_utc();
    params.not_before = now - SKEW;
    params.not_after = now + life;
    params.use_authority_key_identifier_extension = true;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    // Positive, and without a leading zero byte that DER would drop or add.
    let mut serial: [u8; 16] = rand::random();
    serial[0] = (serial[0] & 0x3f) | 0x40;
    params.serial_number = Some(SerialNumber::from_slice(&serial));
    hex::encode(serial)
}

/// The listener's certificate, replaceable while it serves.
#[derive(Debug)]
pub struct Rotating(std::sync::RwLock<Arc<CertifiedKey>>);

impl Rotating {
    /// Starts with `key`.
    #[must_use]
    pub fn new(key: CertifiedKey) -> Self {
        Self(std::sync::RwLock::new(Arc::new(key)))
    }
    /// New handshakes get `key`.
    pub fn replace(&self, key: CertifiedKey) {
        *self.0.write().unwrap_or_else(std::sync::PoisonError::into_inner) = Arc::new(key);
    }
}

impl rustls::server::ResolvesServerCert for Rotating {
    fn resolve(&self, _: rustls::server::ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.read().unwrap_or_else(std::sync::PoisonError::into_inner).clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn csr(name: &str) -> String {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new([name.to_owned()]).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.serialize_request(&key).unwrap().pem().unwrap()
    }

    #[test]
    fn issues_for_the_host_and_not_for_what_the_request_says() {
        let dir = tempfile::tempdir().unwrap();
        let authority = Authority::open(dir.path()).unwrap();
        let issued = authority.issue_sensor("web-1", &csr("db-1")).unwrap();
        let der: CertificateDer<'static> =
            rustls::pki_types::pem::PemObject::from_pem_slice(issued.pem.as_bytes()).unwrap();
        let peer = peer(&der).unwrap();
        assert_eq!((peer.host.as_str(), &peer.serial), ("web-1", &issued.serial));
        let (_, certificate) = X509Certificate::from_der(&der).unwrap();
        assert!(!certificate.is_ca());
        assert_eq!(certificate.subject().to_string(), "CN=web-1");
        let again = Authority::open(dir.path()).unwrap();
        assert_eq!(again.fingerprint(), authority.fingerprint());
    }

    #[test]
    fn other_certificates_are_not_sensors() {
        let dir = tempfile::tempdir().unwrap();
        let authority = Authority::open(dir.path()).unwrap();
        let server = authority.server_key(&["localhost".into(), "127.0.0.1".into()]).unwrap();
        assert_eq!(server.cert.len(), 2);
        assert_eq!(peer(&server.cert[0]), None);
        assert_eq!(peer(authority.certificate_der()), None);
        for junk in [&b""[..], b"\x30\x82\xff\xff", &[0x30; 64]] {
            fuzz_peer(junk);
        }
        assert!(matches!(authority.issue_sensor("web-1", "junk"), Err(CsrError::Malformed)));
        let tampered = csr("x").replacen('A', "B", 3);
        assert!(authority.issue_sensor("web-1", &tampered).is_err());
    }

    #[test]
    fn host_names() {
        for good in ["web-1", "db.prod.example", "a", "10.0.0.1", "x_y"] {
            assert!(is_host_name(good), "{good}");
        }
        let long = "a".repeat(64);
        for bad in ["", "Web", "a b", "a/b", "..", "a..b", "-a", "a+root", "gateway", "é", &long] {
            assert!(!is_host_name(bad), "{bad}");
        }
    }
}
