//! An issuer of CI tokens: discovery as GitHub has it (no authorization endpoint), a key set, keys that can be changed.
//! It signs with EdDSA, where many tokens are made, or with RS256 as GitHub and GitLab do.

use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD as BASE64;
use ed25519_dalek::{Signer, SigningKey};
use openidconnect::core::{CoreJwsSigningAlgorithm, CoreRsaPrivateSigningKey};
use openidconnect::{JsonWebKeyId, PrivateSigningKey as _};
use serde_json::{Value, json};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{SystemTime, UNIX_EPOCH};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

/// The audience that the gateway is configured with.
pub(crate) const AUDIENCE: &str = "https://gateway.test:8443";

/// What signs.
#[derive(Clone)]
pub(crate) enum Key {
    Ed25519(SigningKey),
    /// In the PEM form of PKCS #1.
    Rsa(String),
}

impl Key {
    pub(crate) fn ed25519() -> Self {
        Self::Ed25519(SigningKey::from_bytes(&rand::random()))
    }

    /// Of 2048 bits. (openssl comes with ca-certificates.)
    pub(crate) fn rsa() -> Self {
        let made = Command::new("openssl").args(["genrsa", "-traditional", "2048"]).output().unwrap();
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        Self::Rsa(String::from_utf8(made.stdout).unwrap())
    }

    /// How a token's head names what it is signed with.
    pub(crate) fn algorithm(&self) -> &'static str {
        match self {
            Self::Ed25519(_) => "EdDSA",
            Self::Rsa(_) => "RS256",
        }
    }

    pub(crate) fn sign(&self, text: &str) -> Vec<u8> {
        match self {
            Self::Ed25519(key) => key.sign(text.as_bytes()).to_bytes().to_vec(),
            Self::Rsa(pem) => {
                let key = CoreRsaPrivateSigningKey::from_pem(pem, None).unwrap();
                key.sign(&CoreJwsSigningAlgorithm::RsaSsaPkcs1V15Sha256, text.as_bytes()).unwrap()
            }
        }
    }

    /// The public half, as a key set has it.
    fn published(&self, kid: &str) -> Value {
        match self {
            Self::Ed25519(key) => {
                let x = BASE64.encode(key.verifying_key().to_bytes());
                json!({"kty": "OKP", "crv": "Ed25519", "kid": kid, "use": "sig", "alg": "EdDSA", "x": x})
            }
            Self::Rsa(pem) => {
                let key =
                    CoreRsaPrivateSigningKey::from_pem(pem, Some(JsonWebKeyId::new(kid.into()))).unwrap();
                let mut value = serde_json::to_value(key.as_verification_key()).unwrap();
                value["alg"] = json!("RS256");
                value
            }
        }
    }
}

pub(crate) struct Issuer {
    pub(crate) url: String,
    /// Name and key.
    key: Mutex<(String, Key)>,
    /// How often the key set was asked for.
    pub(crate) n_asked: AtomicUsize,
}

impl Issuer {
    pub(crate) async fn start() -> Arc<Self> {
        Self::start_with(Key::ed25519()).await
    }

    pub(crate) async fn start_with(key: Key) -> Arc<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let issuer = Arc::new(Self {
            url: format!("http://{}", listener.local_addr().unwrap()),
            key: Mutex::new(("k1".into(), key)),
            n_asked: AtomicUsize::new(0),
        });
        let server = Arc::clone(&issuer);
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let mut request = vec![0; 8192];
                let n = stream.read(&mut request).await.unwrap_or_default();
                let request = String::from_utf8_lossy(&request[..n]).into_owned();
                let answer = server.answer(request.split(' ').nth(1).unwrap_or_default()).to_string();
                let head = format!(
                    "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
                    answer.len()
                );
                let _ = stream.write_all(format!("{head}{answer}").as_bytes()).await;
            }
        });
        issuer
    }

    fn answer(&self, path: &str) -> Value {
        let (kid, key) = self.key.lock().unwrap().clone();
        if path == "/.well-known/openid-configuration" {
            return json!({
                "issuer": self.url, "jwks_uri": format!("{}/keys", self.url), "response_types_supported": ["id_token"],
                "subject_types_supported": ["public"], "id_token_signing_alg_values_supported": [key.algorithm()],
            });
        }
        self.n_asked.fetch_add(1, Ordering::Relaxed);
        json!({ "keys": [key.published(&kid)] })
    }

    /// The key that signs.
    pub(crate) fn key(&self) -> Key {
        self.key.lock().unwrap().1.clone()
    }

    /// From now on another key signs, of the same kind.
    pub(crate) fn rotate(&self, kid: &str) {
        let mut key = self.key.lock().unwrap();
        let new = if matches!(key.1, Key::Rsa(_)) { Key::rsa() } else { Key::ed25519() };
        *key = (kid.into(), new);
    }

    /// The claims of a job on the main branch, for production.
    pub(crate) fn claims(&self) -> Value {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
        json!({
            "iss": self.url, "aud": AUDIENCE, "sub": "repo:acme/policies:environment:production",
            "iat": now, "nbf": now - 5, "exp": now + 300, "repository": "acme/policies", "ref": "refs/heads/main",
            "ref_protected": "true", "environment": "production", "actor": "octocat", "sha": "c0".repeat(20),
            "workflow_ref": "acme/policies/.github/workflows/push.yml@refs/heads/main",
        })
    }

    pub(crate) fn token(&self, claims: &Value) -> String {
        let (kid, key) = self.key.lock().unwrap().clone();
        Self::token_by(&json!({"alg": key.algorithm(), "kid": kid}), claims, &key)
    }

    /// A token of this job with one claim changed.
    pub(crate) fn token_with(&self, claim: &str, value: Value) -> String {
        let mut claims = self.claims();
        claims[claim] = value;
        self.token(&claims)
    }

    pub(crate) fn token_by(head: &Value, claims: &Value, key: &Key) -> String {
        Self::token_signed(head, claims, |text| key.sign(text))
    }

    /// A token with whatever `sign` makes of its head and claims.
    pub(crate) fn token_signed(head: &Value, claims: &Value, sign: impl FnOnce(&str) -> Vec<u8>) -> String {
        let signed = format!("{}.{}", BASE64.encode(head.to_string()), BASE64.encode(claims.to_string()));
        let signature = BASE64.encode(sign(&signed));
        format!("{signed}.{signature}")
    }
}
