//! What an issuer signs with: its discovery document's key set, cached.
//!
//! Not the OpenID crate's own discovery: CI systems publish no authorization endpoint, which that one demands.

use crate::identity::http::{Http, SetUpError};
use http::{StatusCode, header};
use openidconnect::core::CoreJsonWebKeySet;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::Mutex;

/// Keys are kept this long; a token under a key that is not among them refreshes earlier.
const CACHED_FOR: Duration = Duration::from_secs(3600);
/// Tokens under unknown keys, or an issuer that does not answer, cannot make us ask more often than this.
const ASK_AT_MOST_EVERY: Duration = Duration::from_secs(10);

/// As much of OpenID Connect Discovery 1.0 as is needed.
#[derive(Deserialize)]
struct Discovery {
    issuer: String,
    jwks_uri: String,
}

/// One issuer's keys.
pub struct Keys {
    issuer: String,
    http: Http,
    asked: Mutex<Option<Asked>>,
}

/// What came of asking.
struct Asked {
    at: Instant,
    answer: Result<Arc<CoreJsonWebKeySet>, String>,
}

impl Keys {
    /// Reads trust anchors; asks nothing yet.
    ///
    /// # Errors
    /// The CA file is unreadable.
    pub fn new(issuer: &str, ca_file: Option<&Path>) -> Result<Self, SetUpError> {
        Ok(Self { issuer: issuer.to_owned(), http: Http::new(ca_file)?, asked: Mutex::new(None) })
    }

    /// The keys, at most an hour old.
    ///
    /// # Errors
    /// They cannot be fetched; in words.
    pub async fn current(&self) -> Result<Arc<CoreJsonWebKeySet>, String> {
        self.at_most(CACHED_FOR).await
    }

    /// The keys after one that is not known came up: asked for again, but not at the pace of whoever sends tokens.
    ///
    /// # Errors
    /// They cannot be fetched; in words.
    pub async fn newer(&self) -> Result<Arc<CoreJsonWebKeySet>, String> {
        self.at_most(ASK_AT_MOST_EVERY).await
    }

    async fn at_most(&self, age: Duration) -> Result<Arc<CoreJsonWebKeySet>, String> {
        // Held while asking, so that many tokens at once ask once.
        let mut asked = self.asked.lock().await;
        if let Some(Asked { at, answer }) = asked.as_ref() {
            let good_for = if answer.is_ok() { age } else { ASK_AT_MOST_EVERY };
            if at.elapsed() < good_for {
                return answer.clone();
            }
        }
        let answer = self.fetch().await.map(Arc::new);
        if let Err(problem) = &answer {
            tracing::warn!(
                issuer = self.issuer,
                problem,
                "the keys of an issuer of CI tokens cannot be fetched"
            );
        }
        *asked = Some(Asked { at: Instant::now(), answer: answer.clone() });
        answer
    }

    async fn fetch(&self) -> Result<CoreJsonWebKeySet, String> {
        let issuer = self.issuer.trim_end_matches('/');
        let found: Discovery = self.document(&format!("{issuer}/.well-known/openid-configuration")).await?;
        if found.issuer != self.issuer {
            return Err("its discovery document speaks of another issuer".to_owned());
        }
        self.document(&found.jwks_uri).await
    }

    async fn document<T: DeserializeOwned>(&self, url: &str) -> Result<T, String> {
        let request = http::Request::get(url).header(header::ACCEPT, "application/json").body(Vec::new());
        let request = request.map_err(|_| "its discovery document names no usable address".to_owned())?;
        let answer = self.http.fetch(request).await.map_err(|err| crate::chain(&err))?;
        if answer.status() != StatusCode::OK {
            return Err(format!("{url} answered {}", answer.status()));
        }
        serde_json::from_slice(answer.body()).map_err(|err| format!("{url} gave something else: {err}"))
    }
}
