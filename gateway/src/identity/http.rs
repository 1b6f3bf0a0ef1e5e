//! The HTTP client towards the OpenID provider: HTTPS with the system's trust anchors and an optional extra CA; plain
//! http to loopback addresses alone; no redirects; bounded time and size.

use super::config::is_loopback_http;
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper_rustls::HttpsConnector;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use openidconnect::{AsyncHttpClient, HttpRequest, HttpResponse};
use rustls::RootCertStore;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

/// Answers are small JSON documents; a key set with certificate chains of a big provider is under 100 kB.
const MAX_ANSWER: usize = 1024 * 1024;
/// A person is waiting: an answer later than this is no answer.
const TIMEOUT: Duration = Duration::from_secs(10);

/// The client cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum SetUpError {
    /// The extra CA file.
    #[error("cannot read certificates from `{path}`: {problem}")]
    CaFile {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// The client secret's file.
    #[error("cannot read the client secret from `{path}`")]
    Secret {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        err: std::io::Error,
    },
    /// TLS cannot be set up.
    #[error("cannot set up TLS")]
    Tls(#[source] rustls::Error),
}

/// The provider gave no usable answer.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// The URL may not be fetched.
    #[error("`{0}` is neither https nor a loopback address")]
    Insecure(String),
    /// Not reachable, or TLS failed.
    #[error("cannot reach {host}")]
    Unreachable {
        /// Its host.
        host: String,
        /// Why.
        #[source]
        err: hyper_util::client::legacy::Error,
    },
    /// The answer broke off or was too large.
    #[error("the answer of {host} is unusable: {problem}")]
    Answer {
        /// Its host.
        host: String,
        /// What is wrong with it.
        problem: String,
    },
    /// No answer in time.
    #[error("{host} did not answer within {} seconds", TIMEOUT.as_secs())]
    TimedOut {
        /// Its host.
        host: String,
    },
}

/// The client. Cheap to clone.
#[derive(Clone)]
pub struct Http {
    client: Client<HttpsConnector<HttpConnector>, Full<bytes::Bytes>>,
}

impl Http {
    /// Makes the client; reads the trust anchors.
    ///
    /// # Errors
    /// The extra CA file is unreadable.
    pub fn new(ca_file: Option<&Path>) -> Result<Self, SetUpError> {
        let mut roots = RootCertStore::empty();
        // Unreadable system anchors leave a smaller set; a provider that needs them is then reported as
        // untrusted when it is asked.
        let system = rustls_native_certs(&mut roots);
        tracing::debug!(anchors = system, "system trust anchors loaded");
        if let Some(path) = ca_file {
            add_file(&mut roots, path)?;
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let tls = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(SetUpError::Tls)?
            .with_root_certificates(roots)
            .with_no_client_auth();
        let connector = hyper_rustls::HttpsConnectorBuilder::new()
            .with_tls_config(tls)
            .https_or_http()
            .enable_http1()
            .build();
        Ok(Self { client: Client::builder(TokioExecutor::new()).build(connector) })
    }

    /// Fetches once: no redirects are followed, which is how an issuer could be made to ask inner services.
    ///
    /// # Errors
    /// No answer, or not in time, or too large.
    pub async fn fetch(&self, request: HttpRequest) -> Result<HttpResponse, FetchError> {
        let url = request.uri().to_string();
        let host = request.uri().authority().map_or_else(|| url.clone(), ToString::to_string);
        let permitted =
            url::Url::parse(&url).is_ok_and(|url| url.scheme() == "https" || is_loopback_http(&url));
        if !permitted {
            return Err(FetchError::Insecure(url));
        }
        let request = request.map(|body| Full::new(bytes::Bytes::from(body)));
        let answer = async {
            let response = self
                .client
                .request(request)
                .await
                .map_err(|err| FetchError::Unreachable { host: host.clone(), err })?;
            let (parts, body) = response.into_parts();
            let body = Limited::new(body, MAX_ANSWER).collect().await.map_err(|err| {
                let problem = if err.downcast_ref::<LengthLimitError>().is_some() {
                    format!("it is larger than {MAX_ANSWER} bytes")
                } else {
                    err.to_string()
                };
                FetchError::Answer { host: host.clone(), problem }
            })?;
            Ok(HttpResponse::from_parts(parts, body.to_bytes().to_vec()))
        };
        tokio::time::timeout(TIMEOUT, answer)
            .await
            .unwrap_or_else(|_| Err(FetchError::TimedOut { host: host.clone() }))
    }
}

impl<'c> AsyncHttpClient<'c> for Http {
    type Error = FetchError;
    type Future = Pin<Box<dyn Future<Output = Result<HttpResponse, FetchError>> + Send + 'c>>;

    fn call(&'c self, request: HttpRequest) -> Self::Future {
        Box::pin(self.fetch(request))
    }
}

fn rustls_native_certs(roots: &mut RootCertStore) -> usize {
    let found = rustls_native_certs::load_native_certs();
    for err in &found.errors {
        tracing::warn!(%err, "some of the system's trust anchors are unreadable");
    }
    roots.add_parsable_certificates(found.certs).0
}

fn add_file(roots: &mut RootCertStore, path: &Path) -> Result<(), SetUpError> {
    let fail = |problem: String| SetUpError::CaFile { path: path.to_owned(), problem };
    let certificates = CertificateDer::pem_file_iter(path).map_err(|err| fail(err.to_string()))?;
    let mut n_added = 0;
    for certificate in certificates {
        let certificate = certificate.map_err(|err| fail(err.to_string()))?;
        roots.add(certificate).map_err(|err| fail(err.to_string()))?;
        n_added += 1;
    }
    if n_added == 0 {
        return Err(fail("there is no PEM certificate in it".to_owned()));
    }
    Ok(())
}
