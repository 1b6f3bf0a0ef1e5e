//! The OpenID provider: discovery with caching, and what verified tokens prove.

use super::PUBLISHED_KEYS;
use super::claims::{self, ClaimsError};
use super::config::Config;
use super::http::{Http, SetUpError};
use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use openidconnect::core::{
    CoreAuthDisplay, CoreClaimName, CoreClaimType, CoreClientAuthMethod, CoreGrantType, CoreIdToken,
    CoreIdTokenVerifier, CoreJsonWebKey, CoreJweContentEncryptionAlgorithm, CoreJweKeyManagementAlgorithm,
    CoreResponseMode, CoreResponseType, CoreSubjectIdentifierType,
};
use openidconnect::{
    AccessToken, AccessTokenHash, AdditionalProviderMetadata, Audience, ClaimsVerificationError, ClientId,
    ClientSecret, DeviceAuthorizationUrl, DiscoveryError, IssuerUrl, Nonce, ProviderMetadata,
};
use sallyport_evidence::record::Identity;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::str::FromStr;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::Mutex;

/// Discovery documents and keys are kept this long; a token under a key that is not among them refreshes earlier.
const CACHED_FOR: Duration = Duration::from_secs(3600);
/// Tokens under unknown keys cannot make us ask the provider more often than this.
const REFRESH_AT_MOST_EVERY: Duration = Duration::from_secs(10);
/// ID tokens carry a person's claims and groups; no provider's is larger.
const MAX_ID_TOKEN: usize = 64 * 1024;
/// A sign-in proves something that happened now: an ID token older than this is refused, and clocks may differ
/// by as much.
const FRESH_FOR_SECONDS: i64 = 15 * 60;

/// What the discovery document says beyond OpenID Connect Discovery 1.0.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(super) struct DeviceEndpoint {
    /// RFC 8628 section 4.
    pub(super) device_authorization_endpoint: Option<DeviceAuthorizationUrl>,
}
impl AdditionalProviderMetadata for DeviceEndpoint {}

pub(super) type Metadata = ProviderMetadata<
    DeviceEndpoint,
    CoreAuthDisplay,
    CoreClientAuthMethod,
    CoreClaimName,
    CoreClaimType,
    CoreGrantType,
    CoreJweContentEncryptionAlgorithm,
    CoreJweKeyManagementAlgorithm,
    CoreJsonWebKey,
    CoreResponseMode,
    CoreResponseType,
    CoreSubjectIdentifierType,
>;

/// A sign-in failed. `Display` is for the person.
#[derive(Debug, thiserror::Error)]
pub enum SignInError {
    /// The provider cannot be asked.
    #[error(
        "the sign-in service {issuer} cannot be used now ({problem}). Try again later, or tell whoever runs the gateway"
    )]
    Unavailable {
        /// Its issuer URL.
        issuer: String,
        /// What went wrong, with causes.
        problem: String,
    },
    /// It lacks the device flow.
    #[error(
        "the sign-in service {issuer} does not offer the device flow that plain ssh needs; use `sallyport login`"
    )]
    NoDeviceFlow {
        /// Its issuer URL.
        issuer: String,
    },
    /// The person, or the provider, said no.
    #[error("the sign-in was refused")]
    Denied,
    /// Nobody signed in.
    #[error("nobody signed in within the time that the link was good for; connect again for a new link")]
    Expired,
    /// The tokens prove nothing.
    #[error("the sign-in service's answer proves nothing: {0}")]
    Unproved(String),
    /// The tokens prove something that is no identity here.
    #[error(transparent)]
    Claims(#[from] ClaimsError),
}

/// One provider. Cheap to clone.
#[derive(Clone)]
pub struct OpenId {
    pub(super) inner: Arc<Inner>,
}

pub(super) struct Inner {
    pub(super) config: Config,
    pub(super) http: Http,
    pub(super) secret: Option<ClientSecret>,
    known: Mutex<Option<Known>>,
}

struct Known {
    metadata: Arc<Metadata>,
    since: Instant,
}

/// Tokens to verify and what they must be bound to.
struct Presented<'a> {
    id_token: &'a str,
    client_id: &'a str,
    nonce: Option<&'a str>,
    access_token: Option<&'a str>,
    method: &'a str,
}

impl OpenId {
    /// Reads secrets and trust anchors. Does not ask the provider yet: it may be down when the gateway starts.
    ///
    /// # Errors
    /// A file is unreadable.
    pub fn new(config: Config) -> Result<Self, SetUpError> {
        let secret = match &config.client_secret_file {
            None => None,
            Some(path) => {
                let text = std::fs::read_to_string(path)
                    .map_err(|err| SetUpError::Secret { path: path.clone(), err })?;
                Some(ClientSecret::new(text.trim().to_owned()))
            }
        };
        let http = Http::new(config.ca_file.as_deref())?;
        Ok(Self { inner: Arc::new(Inner { config, http, secret, known: Mutex::new(None) }) })
    }

    /// The issuer URL.
    #[must_use]
    pub fn issuer(&self) -> &str {
        &self.inner.config.issuer
    }

    /// The section of the configuration that it was made from.
    #[must_use]
    pub fn config(&self) -> &Config {
        &self.inner.config
    }

    /// Verifies what `sallyport login` got with its authorization code: issuer, audience (the command line's
    /// client), nonce, signature, expiry, freshness.
    ///
    /// # Errors
    /// The tokens prove nothing, or no identity that is good here.
    pub async fn verify_cli_sign_in(
        &self,
        id_token: &str,
        nonce: &str,
        access_token: &str,
    ) -> Result<Identity, SignInError> {
        if nonce.is_empty() {
            return Err(SignInError::Unproved("the nonce is missing".to_owned()));
        }
        self.verify(&Presented {
            id_token,
            client_id: &self.inner.config.cli_client_id,
            nonce: Some(nonce),
            access_token: Some(access_token).filter(|token| !token.is_empty()),
            method: "token",
        })
        .await
    }

    /// Verifies what the gateway's own client got in a device flow. There is no nonce in that flow: the token
    /// came over the gateway's own connection to the provider.
    pub(super) async fn verify_device_sign_in(
        &self,
        id_token: &str,
        access_token: &str,
    ) -> Result<Identity, SignInError> {
        self.verify(&Presented {
            id_token,
            client_id: &self.inner.config.client_id,
            nonce: None,
            access_token: Some(access_token),
            method: "device",
        })
        .await
    }

    async fn verify(&self, presented: &Presented<'_>) -> Result<Identity, SignInError> {
        if presented.id_token.len() > MAX_ID_TOKEN {
            return Err(SignInError::Unproved(format!("the ID token is larger than {MAX_ID_TOKEN} bytes")));
        }
        let mut metadata = self.metadata(CACHED_FOR).await?;
        let mut checked = self.check(&metadata, presented);
        if matches!(checked, Err(ClaimsVerificationError::SignatureVerification(_))) {
            // The provider may have changed its keys since we asked.
            metadata = self.metadata(REFRESH_AT_MOST_EVERY).await?;
            checked = self.check(&metadata, presented);
        }
        let token = checked.map_err(|err| SignInError::Unproved(crate::chain(&err)))?;
        let names = &self.inner.config.claims;
        let userinfo = match presented.access_token {
            Some(access_token) if claims::needs_userinfo(names, &token) => {
                self.userinfo(&metadata, access_token, &token).await?
            }
            _ => None,
        };
        Ok(claims::identity(names, self.issuer(), presented.method, &token, userinfo.as_ref())?)
    }

    /// Everything that needs no network. Returns the verified claims.
    fn check(
        &self,
        metadata: &Metadata,
        presented: &Presented<'_>,
    ) -> Result<Value, ClaimsVerificationError> {
        let other = |problem: String| ClaimsVerificationError::Other(problem);
        let token = CoreIdToken::from_str(presented.id_token)
            .map_err(|_| other("the ID token is not a JSON web token".to_owned()))?;
        let trusted = &self.inner.config.trusted_audiences;
        let verifier = CoreIdTokenVerifier::new_public_client(
            ClientId::new(presented.client_id.to_owned()),
            metadata.issuer().clone(),
            metadata.jwks().clone(),
        )
        .set_allowed_algs(PUBLISHED_KEYS)
        .set_other_audience_verifier_fn(|audience: &Audience| trusted.contains(audience));
        let nonce = |found: Option<&Nonce>| match (presented.nonce, found) {
            (None, _) => Ok(()),
            (Some(expected), Some(found)) if found.secret() == expected => Ok(()),
            (Some(_), Some(_)) => Err("it is not the one that was sent".to_owned()),
            (Some(_), None) => Err("the token has none".to_owned()),
        };
        let verified = token.claims(&verifier, nonce)?;
        let age = now_seconds() - verified.issue_time().timestamp();
        if !(-FRESH_FOR_SECONDS..=FRESH_FOR_SECONDS).contains(&age) {
            return Err(other(format!(
                "the ID token was issued {age} seconds ago; sign in again, and check the clocks"
            )));
        }
        if let (Some(expected), Some(access_token)) = (verified.access_token_hash(), presented.access_token) {
            let key = token.signing_key(&verifier).map_err(ClaimsVerificationError::SignatureVerification)?;
            let alg = token.signing_alg().map_err(ClaimsVerificationError::SignatureVerification)?;
            let found = AccessTokenHash::from_token(&AccessToken::new(access_token.to_owned()), alg, key)
                .map_err(|err| other(err.to_string()))?;
            if found != *expected {
                return Err(other("the access token does not belong to the ID token".to_owned()));
            }
        }
        // The signature covers these bytes; the crate's typed claims leave out what providers add.
        presented
            .id_token
            .split('.')
            .nth(1)
            .and_then(|payload| BASE64_URL_SAFE_NO_PAD.decode(payload).ok())
            .and_then(|payload| serde_json::from_slice(&payload).ok())
            .ok_or_else(|| other("the ID token's claims are not JSON".to_owned()))
    }

    /// The userinfo endpoint's claims; `None` if the provider has no such endpoint.
    async fn userinfo(
        &self,
        metadata: &Metadata,
        access_token: &str,
        token: &Value,
    ) -> Result<Option<Value>, SignInError> {
        let Some(endpoint) = metadata.userinfo_endpoint() else { return Ok(None) };
        let unproved = |problem: &str| SignInError::Unproved(format!("its userinfo endpoint {problem}"));
        let request = http::Request::get(endpoint.as_str())
            .header(http::header::AUTHORIZATION, format!("Bearer {access_token}"))
            .header(http::header::ACCEPT, "application/json")
            .body(Vec::new())
            .map_err(|_| unproved("cannot be asked with this access token"))?;
        let response = self.inner.http.fetch(request).await.map_err(|err| self.unavailable(&err))?;
        if !response.status().is_success() {
            return Err(unproved(&format!("answered {}", response.status())));
        }
        let claims: Value =
            serde_json::from_slice(response.body()).map_err(|_| unproved("did not answer with JSON"))?;
        // OpenID Connect Core 5.3.2: without this, another person's claims could be slipped in.
        if claims.get("sub").is_none() || claims.get("sub") != token.get("sub") {
            return Err(unproved("speaks of somebody else"));
        }
        Ok(Some(claims))
    }

    /// The provider's metadata, at most `max_age` old.
    pub(super) async fn metadata(&self, max_age: Duration) -> Result<Arc<Metadata>, SignInError> {
        // Held while asking, so that many sign-ins at once ask once.
        let mut known = self.inner.known.lock().await;
        if let Some(known) = known.as_ref().filter(|known| known.since.elapsed() < max_age) {
            return Ok(Arc::clone(&known.metadata));
        }
        let issuer =
            IssuerUrl::new(self.inner.config.issuer.clone()).map_err(|err| self.unavailable(&err))?;
        let metadata = Metadata::discover_async(issuer, &self.inner.http).await.map_err(|err| match err {
            DiscoveryError::Request(err) => self.unavailable(&err),
            DiscoveryError::Response(status, _, _) => {
                self.unavailable_because(&format!("it answered {status}"))
            }
            err => self.unavailable(&err),
        })?;
        let metadata = Arc::new(metadata);
        *known = Some(Known { metadata: Arc::clone(&metadata), since: Instant::now() });
        Ok(metadata)
    }

    pub(super) fn unavailable(&self, err: &dyn std::error::Error) -> SignInError {
        self.unavailable_because(&crate::chain(err))
    }

    pub(super) fn unavailable_because(&self, problem: &str) -> SignInError {
        tracing::warn!(issuer = self.issuer(), problem, "the OpenID provider is unavailable");
        SignInError::Unavailable { issuer: self.issuer().to_owned(), problem: problem.to_owned() }
    }
}

fn now_seconds() -> i64 {
    time::OffsetDateTime::now_utc().unix_timestamp()
}
