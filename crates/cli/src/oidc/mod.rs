//! Signing in with OpenID Connect: authorization code with PKCE (RFC 7636) on a loopback redirect (RFC 8252).

pub mod browser;
pub mod http;
pub mod loopback;

use std::time::Duration;

use openidconnect::{
    AccessTokenHash, AuthorizationCode, ClientId, CsrfToken, IssuerUrl, Nonce, OAuth2TokenResponse as _,
    PkceCodeChallenge, RedirectUrl, RequestTokenError, Scope, TokenResponse as _,
    core::{CoreAuthenticationFlow, CoreClient, CoreProviderMetadata},
};

use tokio::sync::mpsc;

use self::{
    http::{HttpClient, HttpError},
    loopback::{Listener, LoopbackError},
};
use crate::text;

/// Who may sign people in, as the gateway says.
#[derive(Clone, Debug)]
pub struct Provider {
    /// OpenID issuer.
    pub issuer: String,
    /// Public client.
    pub client_id: String,
    /// Scopes to ask for, `openid` among them or not.
    pub scopes: Vec<String>,
}

/// What the identity provider attests.
pub struct Proof {
    /// ID token, checked here and again by the gateway.
    pub id_token: String,
    /// The nonce that it must carry.
    pub nonce: String,
    /// Access token, for the userinfo endpoint.
    pub access_token: String,
}

/// Why the sign-in with the identity provider failed.
#[derive(Debug, thiserror::Error)]
pub enum SignInError {
    /// The issuer is not a URL.
    #[error("the gateway names an identity provider that is not an address: `{0}`")]
    Issuer(String),
    /// Its configuration cannot be read.
    #[error("cannot read the identity provider's configuration at {issuer}")]
    Discovery {
        /// Where.
        issuer: String,
        /// Why.
        #[source]
        err: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The listener for the browser's answer.
    #[error(transparent)]
    Loopback(#[from] LoopbackError),
    /// HTTP.
    #[error(transparent)]
    Http(#[from] HttpError),
    /// It said no.
    #[error("the identity provider refused: {0}")]
    Refused(String),
    /// The answer comes from another issuer than was asked (RFC 9207).
    #[error("the answer claims to come from another identity provider: `{0}`")]
    MixedUp(String),
    /// The code cannot be exchanged.
    #[error("cannot exchange the authorization code for tokens")]
    Exchange(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// No ID token.
    #[error("the identity provider sent no ID token; it must support OpenID Connect")]
    NoIdToken,
    /// The ID token is wrong.
    #[error("the ID token is not valid")]
    Invalid(#[source] Box<dyn std::error::Error + Send + Sync>),
}

/// Runs the sign-in. `show` gets the address to open, once the listener waits for the answer; `pasted` gives
/// lines that a person enters instead.
///
/// # Errors
/// See [`SignInError`].
pub async fn sign_in(
    provider: &Provider,
    patience: Duration,
    pasted: Option<mpsc::Receiver<String>>,
    show: impl FnOnce(&str),
) -> Result<Proof, SignInError> {
    let http = HttpClient::new()?;
    let send = |request| {
        let http = http.clone();
        async move { http.send(request).await }
    };
    let issuer =
        IssuerUrl::new(provider.issuer.clone()).map_err(|_| SignInError::Issuer(provider.issuer.clone()))?;
    let metadata = CoreProviderMetadata::discover_async(issuer.clone(), &send)
        .await
        .map_err(|err| SignInError::Discovery { issuer: provider.issuer.clone(), err: Box::new(err) })?;
    let listener = Listener::open().await?;
    let redirect = RedirectUrl::new(listener.redirect_uri())
        .map_err(|_| SignInError::Issuer(listener.redirect_uri()))?;
    let client =
        CoreClient::from_provider_metadata(metadata, ClientId::new(provider.client_id.clone()), None)
            .set_redirect_uri(redirect);
    let (challenge, verifier) = PkceCodeChallenge::new_random_sha256();
    let scopes = provider.scopes.iter().filter(|scope| *scope != "openid").cloned().map(Scope::new);
    let (address, state, nonce) = client
        .authorize_url(CoreAuthenticationFlow::AuthorizationCode, CsrfToken::new_random, Nonce::new_random)
        .add_scopes(scopes)
        .set_pkce_challenge(challenge)
        .url();

    show(address.as_str());
    let answer = listener.answer(state.secret(), patience, pasted).await?;
    if let Some(from) = answer.issuer.filter(|from| *from != provider.issuer) {
        return Err(SignInError::MixedUp(text::safe(&from, 200)));
    }
    let code = answer.code.map_err(|refusal| SignInError::Refused(text::safe(&refusal, 300)))?;

    let exchange = client
        .exchange_code(AuthorizationCode::new(code))
        .map_err(|err| SignInError::Exchange(Box::new(err)))?;
    let tokens =
        exchange.set_pkce_verifier(verifier).request_async(&send).await.map_err(|err| match err {
            // Its Display says only that the server answered with an error.
            RequestTokenError::ServerResponse(answer) => {
                SignInError::Refused(text::safe(&answer.to_string(), 300))
            }
            other => SignInError::Exchange(Box::new(other)),
        })?;
    let id_token = tokens.id_token().ok_or(SignInError::NoIdToken)?;
    let verifier = client.id_token_verifier();
    let claims = id_token.claims(&verifier, &nonce).map_err(|err| SignInError::Invalid(Box::new(err)))?;
    if let Some(expected) = claims.access_token_hash() {
        let invalid = |err: Box<dyn std::error::Error + Send + Sync>| SignInError::Invalid(err);
        let algorithm = id_token.signing_alg().map_err(|err| invalid(Box::new(err)))?;
        let key = id_token.signing_key(&verifier).map_err(|err| invalid(Box::new(err)))?;
        let actual = AccessTokenHash::from_token(tokens.access_token(), algorithm, key)
            .map_err(|err| invalid(Box::new(err)))?;
        if actual != *expected {
            return Err(invalid("the access token is not the one it was issued with".into()));
        }
    }
    Ok(Proof {
        id_token: id_token.to_string(),
        nonce: nonce.secret().clone(),
        access_token: tokens.access_token().secret().clone(),
    })
}
