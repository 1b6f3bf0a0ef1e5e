//! CI jobs: their OpenID tokens, verified, become an identity of kind `ci` and what policy can ask of a push.
//!
//! [`config`] names the issuers that are trusted, [`keys`] fetches what they sign with, [`claims`] reads a job's claims,
//! [`failures`] bounds what strangers can make us do. A token proves which job asks; whether that job may push is
//! policy's to say: any repository at a public issuer can get a token for any audience.

pub mod claims;
pub mod config;
pub mod failures;
pub mod keys;

pub use claims::Job;
pub use config::Config;

use crate::identity::{PUBLISHED_KEYS, http::SetUpError};
use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use keys::Keys;
use openidconnect::core::{CoreIdToken, CoreIdTokenVerifier, CoreJsonWebKeySet};
use openidconnect::{ClaimsVerificationError, ClientId, IssuerUrl, Nonce, SignatureVerificationError};
use serde_json::Value;
use std::str::FromStr;
use std::sync::Arc;

/// A job's claims are a few kilobytes; larger tokens are not looked at.
const MAX_TOKEN: usize = 16 * 1024;
/// Clocks may differ by as much.
const SKEW_SECONDS: i64 = 60;
/// What is said of a token that proves nothing is cut here: parts of it come from whoever made it.
const MAX_PROBLEM: usize = 300;

/// Why a job's token is not accepted. `Display` is for whoever reads the job's log; it never holds the token.
#[derive(Debug, thiserror::Error)]
pub enum CiError {
    /// There is no `[[ci]]` in the configuration.
    #[error(
        "this gateway takes no tokens of CI jobs; whoever runs it can name the issuer in `[[ci]]` of its configuration"
    )]
    NotConfigured,
    /// Not a token at all, or too large.
    #[error("this is not the OpenID token of a CI job: {0}")]
    Malformed(&'static str),
    /// Of somebody else.
    #[error(
        "the token is issued by `{issuer}`, which this gateway does not trust with CI jobs; it trusts `{trusted}`"
    )]
    UnknownIssuer {
        /// As the token says, shortened.
        issuer: String,
        /// Those that are trusted.
        trusted: String,
    },
    /// The issuer's keys cannot be fetched now.
    #[error(
        "the keys of {issuer} cannot be fetched now ({problem}); try again later, or tell whoever runs the gateway"
    )]
    Unavailable {
        /// Its URL.
        issuer: String,
        /// What went wrong, with causes.
        problem: String,
    },
    /// Signature, audience, time.
    #[error("the token of the CI job proves nothing here: {0}")]
    Unproved(String),
    /// It proves something that is no job.
    #[error(transparent)]
    Claims(#[from] claims::JobError),
}

/// The issuers that are trusted with CI jobs. Cheap to clone.
#[derive(Clone)]
pub struct Ci {
    issuers: Arc<[Issuer]>,
}

struct Issuer {
    config: Config,
    keys: Keys,
}

impl Ci {
    /// Reads trust anchors. Does not ask the issuers yet: they may be down when the gateway starts.
    ///
    /// # Errors
    /// A CA file is unreadable.
    pub fn new(configs: &[Config]) -> Result<Self, SetUpError> {
        let issuer = |config: &Config| {
            let keys = Keys::new(&config.issuer, config.ca_file.as_deref())?;
            Ok(Issuer { config: config.clone(), keys })
        };
        Ok(Self { issuers: configs.iter().map(issuer).collect::<Result<_, SetUpError>>()? })
    }

    /// Whether a bearer token has the form of a signed token, and not of one that the gateway made itself.
    #[must_use]
    pub fn is_meant(token: &str) -> bool {
        token.split('.').count() == 3
    }

    /// Verifies a job's token: issuer, signature, algorithm, audience, times; then reads its claims.
    ///
    /// # Errors
    /// It proves nothing, or the issuer cannot be asked.
    pub async fn verify(&self, token: &str) -> Result<Job, CiError> {
        if self.issuers.is_empty() {
            return Err(CiError::NotConfigured);
        }
        let claimed = unverified_issuer(token)?;
        let issuer = self.issuers.iter().find(|issuer| issuer.config.issuer == claimed).ok_or_else(|| {
            let trusted: Vec<&str> =
                self.issuers.iter().map(|issuer| issuer.config.issuer.as_str()).collect();
            CiError::UnknownIssuer { issuer: shown(&claimed), trusted: trusted.join("`, `") }
        })?;
        issuer.verify(token).await
    }
}

impl Issuer {
    async fn verify(&self, token: &str) -> Result<Job, CiError> {
        let unavailable = |problem| CiError::Unavailable { issuer: self.config.issuer.clone(), problem };
        let mut keys = self.keys.current().await.map_err(unavailable)?;
        let mut checked = self.check(token, &keys);
        if matches!(
            checked,
            Err(ClaimsVerificationError::SignatureVerification(SignatureVerificationError::NoMatchingKey))
        ) {
            // The issuer may have new keys since we asked.
            keys = self.keys.newer().await.map_err(unavailable)?;
            checked = self.check(token, &keys);
        }
        let claims = checked.map_err(|err| CiError::Unproved(shown(&crate::chain(&err))))?;
        Ok(claims::job(&self.config, &claims)?)
    }

    /// Everything that needs no network. Gives the verified claims.
    fn check(&self, token: &str, keys: &CoreJsonWebKeySet) -> Result<Value, ClaimsVerificationError> {
        let other = |problem: &str| ClaimsVerificationError::Other(problem.to_owned());
        let issuer = IssuerUrl::new(self.config.issuer.clone()).map_err(|_| other("the issuer is no URL"))?;
        let parsed = CoreIdToken::from_str(token)
            .map_err(|_| other("it is not a JSON web token with the claims of OpenID"))?;
        let audience = ClientId::new(self.config.audience.clone());
        let verifier = CoreIdTokenVerifier::new_public_client(audience, issuer, keys.clone())
            .set_allowed_algs(PUBLISHED_KEYS);
        let verified = parsed.claims(&verifier, |_: Option<&Nonce>| Ok(()))?;
        let now = time::OffsetDateTime::now_utc().unix_timestamp();
        if verified.issue_time().timestamp() > now + SKEW_SECONDS {
            return Err(other("it says that it was issued in the future; check the clocks"));
        }
        // The signature covers these bytes; the crate's typed claims leave out what CI systems add.
        let claims = payload(token).ok_or_else(|| other("its claims are not JSON"))?;
        match claims.get("nbf") {
            None => {}
            Some(from) => match from.as_f64() {
                #[expect(clippy::cast_precision_loss, reason = "seconds of this millennium are exact")]
                Some(from) if from <= (now + SKEW_SECONDS) as f64 => {}
                Some(_) => return Err(other("it is not valid yet (`nbf`); check the clocks")),
                None => return Err(other("its claim `nbf` is not a time")),
            },
        }
        Ok(claims)
    }
}

/// Which issuer to ask. Proves nothing.
fn unverified_issuer(token: &str) -> Result<String, CiError> {
    if token.len() > MAX_TOKEN {
        return Err(CiError::Malformed("it is larger than 16 KiB"));
    }
    let claims = payload(token).ok_or(CiError::Malformed("it is not a JSON web token"))?;
    let issuer = claims.get("iss").and_then(Value::as_str);
    issuer.map(str::to_owned).ok_or(CiError::Malformed("it names no issuer"))
}

/// A token's claims, unverified.
fn payload(token: &str) -> Option<Value> {
    let mut parts = token.split('.');
    let (_, payload, _, None) = (parts.next()?, parts.next()?, parts.next()?, parts.next()) else {
        return None;
    };
    let claims = BASE64_URL_SAFE_NO_PAD.decode(payload).ok()?;
    serde_json::from_slice(&claims).ok().filter(Value::is_object)
}

/// Text that may come from whoever made the token: short, on one line.
fn shown(text: &str) -> String {
    text.chars().take(MAX_PROBLEM).map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

/// Fuzz entry: any bytes, as a token and as claims, are refused or read, never a panic.
pub fn fuzz_job(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let _ = unverified_issuer(text);
    let _ = CoreIdToken::from_str(text);
    if let Ok(claims) = serde_json::from_str::<Value>(text) {
        for kind in [config::Kind::Github, config::Kind::Gitlab, config::Kind::Generic] {
            if let Ok(job) = claims::job(&Config::sample(kind), &claims) {
                assert!(!job.identity().user.chars().any(char::is_control));
            }
        }
    }
}

#[cfg(test)]
mod tests;
