//! A small OpenID provider: discovery, keys, and a token endpoint that insists on PKCE.

use std::{
    collections::HashMap,
    convert::Infallible,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::{Request, Response, StatusCode, body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use openidconnect::{
    AccessToken, Audience, EmptyAdditionalClaims, EmptyExtraTokenFields, EndUserEmail, IssuerUrl,
    JsonWebKeyId, Nonce, PrivateSigningKey, StandardClaims, SubjectIdentifier,
    core::{
        CoreEdDsaPrivateSigningKey, CoreIdToken, CoreIdTokenClaims, CoreIdTokenFields, CoreJsonWebKeySet,
        CoreJwsSigningAlgorithm, CoreTokenResponse, CoreTokenType,
    },
};
use rcgen::{KeyPair, PKCS_ED25519};
use serde_json::json;
use sha2::{Digest, Sha256};
use tokio::net::TcpListener;
use url::{Url, form_urlencoded};

/// The public client of the command.
pub(crate) const CLIENT: &str = "sallyport-cli";

/// What was asked at the authorization endpoint.
struct Asked {
    challenge: String,
    nonce: String,
    redirect: String,
}

/// The provider.
#[derive(Clone)]
pub(crate) struct Issuer {
    pub(crate) url: String,
    asked: Arc<Mutex<HashMap<String, Asked>>>,
    key_pem: Arc<str>,
}

impl Issuer {
    pub(crate) async fn start() -> Self {
        let tcp = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address: SocketAddr = tcp.local_addr().expect("an address");
        let key = KeyPair::generate_for(&PKCS_ED25519).expect("a key");
        let issuer = Self {
            url: format!("http://{address}"),
            asked: Arc::default(),
            key_pem: key.serialize_pem().into(),
        };
        let serving = issuer.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = tcp.accept().await {
                let issuer = serving.clone();
                tokio::spawn(async move {
                    let service = service_fn(move |request| {
                        let issuer = issuer.clone();
                        async move { Ok::<_, Infallible>(issuer.respond(request).await) }
                    });
                    let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
                });
            }
        });
        issuer
    }

    /// The person signs in: what the browser would do with the address. Gives where the browser is sent.
    pub(crate) fn approve(&self, authorize_url: &str) -> String {
        let url = Url::parse(authorize_url).expect("an address");
        assert!(authorize_url.starts_with(&format!("{}/authorize", self.url)), "{authorize_url}");
        let query: HashMap<String, String> = url.query_pairs().into_owned().collect();
        assert_eq!(query["client_id"], CLIENT);
        assert_eq!(query["response_type"], "code");
        assert_eq!(query["code_challenge_method"], "S256");
        assert!(query["scope"].split(' ').any(|scope| scope == "openid"), "{}", query["scope"]);
        let code = format!("code-{}", self.lock().len());
        let asked = Asked {
            challenge: query["code_challenge"].clone(),
            nonce: query["nonce"].clone(),
            redirect: query["redirect_uri"].clone(),
        };
        self.lock().insert(code.clone(), asked);
        let mut back = Url::parse(&query["redirect_uri"]).expect("an address");
        back.query_pairs_mut()
            .append_pair("code", &code)
            .append_pair("state", &query["state"])
            .append_pair("iss", &self.url);
        back.to_string()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<String, Asked>> {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn key(&self) -> CoreEdDsaPrivateSigningKey {
        CoreEdDsaPrivateSigningKey::from_ed25519_pem(&self.key_pem, Some(JsonWebKeyId::new("k1".to_owned())))
            .expect("a key")
    }

    async fn respond(&self, request: Request<Incoming>) -> Response<Full<Bytes>> {
        let path = request.uri().path().to_owned();
        let body = request.into_body().collect().await.expect("a body").to_bytes();
        let (status, answer) = match path.as_str() {
            "/.well-known/openid-configuration" => (StatusCode::OK, self.configuration()),
            "/jwks" => {
                let keys = CoreJsonWebKeySet::new(vec![self.key().as_verification_key()]);
                (StatusCode::OK, serde_json::to_value(keys).expect("json"))
            }
            "/token" => match self.tokens(&body) {
                Some(tokens) => (StatusCode::OK, tokens),
                None => (StatusCode::BAD_REQUEST, json!({ "error": "invalid_grant" })),
            },
            _ => (StatusCode::NOT_FOUND, json!({})),
        };
        Response::builder()
            .status(status)
            .header("content-type", "application/json")
            .body(Full::new(Bytes::from(answer.to_string())))
            .expect("a response")
    }

    fn configuration(&self) -> serde_json::Value {
        let url = &self.url;
        json!({
            "issuer": url,
            "authorization_endpoint": format!("{url}/authorize"),
            "token_endpoint": format!("{url}/token"),
            "jwks_uri": format!("{url}/jwks"),
            "response_types_supported": ["code"],
            "subject_types_supported": ["public"],
            "id_token_signing_alg_values_supported": ["EdDSA"],
        })
    }

    fn tokens(&self, body: &[u8]) -> Option<serde_json::Value> {
        let form: HashMap<String, String> = form_urlencoded::parse(body).into_owned().collect();
        // A code is good once.
        let asked = self.lock().remove(form.get("code")?)?;
        let proved = URL_SAFE_NO_PAD.encode(Sha256::digest(form.get("code_verifier")?));
        if proved != asked.challenge
            || form.get("redirect_uri")? != &asked.redirect
            || form.get("client_id")? != CLIENT
        {
            return None;
        }
        let access = AccessToken::new("access-secret".to_owned());
        let now = std::time::SystemTime::now();
        let expires = now + std::time::Duration::from_secs(300);
        let claims = CoreIdTokenClaims::new(
            IssuerUrl::new(self.url.clone()).ok()?,
            vec![Audience::new(CLIENT.to_owned())],
            expires.into(),
            now.into(),
            StandardClaims::new(SubjectIdentifier::new("alice".to_owned()))
                .set_email(Some(EndUserEmail::new("alice@example.org".to_owned()))),
            EmptyAdditionalClaims {},
        )
        .set_nonce(Some(Nonce::new(asked.nonce)));
        // The access token's hash is left out: the library that signs has none for Ed25519.
        let id_token =
            CoreIdToken::new(claims, &self.key(), CoreJwsSigningAlgorithm::EdDsa, None, None).ok()?;
        let answer = CoreTokenResponse::new(
            access,
            CoreTokenType::Bearer,
            CoreIdTokenFields::new(Some(id_token), EmptyExtraTokenFields {}),
        );
        serde_json::to_value(answer).ok()
    }
}
