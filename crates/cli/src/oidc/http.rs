//! HTTP to the identity provider: TLS against the system's CAs, plain only on this computer, bounded answers,
//! no redirects (an authorization server's endpoints have none that should be followed).

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use openidconnect::{HttpRequest, HttpResponse};
use url::{Host, Url};

/// Provider metadata, key sets and tokens are a few kilobytes.
const LARGEST_ANSWER: usize = 1 << 20;
const PATIENCE: Duration = Duration::from_secs(30);

/// Why a request to the identity provider failed.
#[derive(Debug, thiserror::Error)]
pub enum HttpError {
    /// The system's CAs.
    #[error("cannot read this computer's trusted certificates")]
    Roots(#[source] std::io::Error),
    /// TLS cannot be set up.
    #[error("cannot set up TLS")]
    Tls(#[source] rustls::Error),
    /// Not https, and not this computer.
    #[error("`{0}` is neither https nor on this computer; tokens are not sent in the clear")]
    Clear(String),
    /// No connection, or it broke.
    #[error("cannot reach `{host}`")]
    Send {
        /// Whom.
        host: String,
        /// Why.
        #[source]
        err: hyper_util::client::legacy::Error,
    },
    /// Too slow.
    #[error("`{0}` did not answer within 30 seconds")]
    Silent(String),
    /// The answer broke off or was too large.
    #[error("the answer of `{host}` broke off or was larger than a megabyte")]
    Body {
        /// Whose.
        host: String,
        /// Why.
        #[source]
        err: Box<dyn std::error::Error + Send + Sync>,
    },
}

/// The client.
#[derive(Clone)]
pub struct HttpClient {
    inner: Client<HttpsConnector<HttpConnector>, Full<Bytes>>,
}

impl HttpClient {
    /// Trusts what this computer trusts (`SSL_CERT_FILE` and `SSL_CERT_DIR` are honoured).
    ///
    /// # Errors
    /// The CAs cannot be read.
    pub fn new() -> Result<Self, HttpError> {
        let tls = HttpsConnectorBuilder::new()
            .with_provider_and_native_roots(Arc::new(rustls::crypto::ring::default_provider()))
            .map_err(HttpError::Roots)?
            .https_or_http()
            .enable_http1()
            .build();
        Ok(Self { inner: Client::builder(TokioExecutor::new()).build(tls) })
    }

    /// Sends one request.
    ///
    /// # Errors
    /// See [`HttpError`].
    pub async fn send(&self, request: HttpRequest) -> Result<HttpResponse, HttpError> {
        let target = request.uri().to_string();
        if !may_send(&target) {
            return Err(HttpError::Clear(target));
        }
        let host = request.uri().host().unwrap_or_default().to_owned();
        let request = request.map(|body| Full::new(Bytes::from(body)));
        let exchange = async {
            let answer = self
                .inner
                .request(request)
                .await
                .map_err(|err| HttpError::Send { host: host.clone(), err })?;
            let (parts, body) = answer.into_parts();
            let body = Limited::new(body, LARGEST_ANSWER)
                .collect()
                .await
                .map_err(|err| HttpError::Body { host: host.clone(), err })?;
            Ok(HttpResponse::from_parts(parts, body.to_bytes().to_vec()))
        };
        tokio::time::timeout(PATIENCE, exchange)
            .await
            .unwrap_or_else(|_| Err(HttpError::Silent(host.clone())))
    }
}

/// Secrets go over TLS, or do not leave this computer.
fn may_send(target: &str) -> bool {
    let Ok(url) = Url::parse(target) else { return false };
    match (url.scheme(), url.host()) {
        ("https", Some(_)) => true,
        ("http", Some(Host::Ipv4(address))) => address.is_loopback(),
        ("http", Some(Host::Ipv6(address))) => address.is_loopback(),
        // RFC 6761: never anything but loopback.
        ("http", Some(Host::Domain(name))) => name == "localhost",
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_http_stays_on_this_computer() {
        for target in
            ["https://idp.example.org/x", "http://127.0.0.1:5556/x", "http://[::1]/", "http://localhost:1/"]
        {
            assert!(may_send(target), "{target}");
        }
        for target in [
            "http://idp.example.org/",
            "http://127.0.0.1.example.org/",
            "http://10.0.0.1/",
            "ftp://localhost/",
            "x",
        ] {
            assert!(!may_send(target), "{target}");
        }
    }
}
