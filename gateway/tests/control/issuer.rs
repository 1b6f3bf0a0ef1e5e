//! An issuer of CI tokens: discovery as GitHub has it (no authorization endpoint), a key set, keys that can be changed.

use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD as BASE64;
use ed25519_dalek::{Signer, SigningKey};
use serde_json::{Value, json};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{SystemTime, UNIX_EPOCH};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

/// The audience that the gateway is configured with.
pub(crate) const AUDIENCE: &str = "https://gateway.test:8443";

pub(crate) struct Issuer {
    pub(crate) url: String,
    /// Name and key.
    key: Mutex<(String, SigningKey)>,
    /// How often the key set was asked for.
    pub(crate) n_asked: AtomicUsize,
}

impl Issuer {
    pub(crate) async fn start() -> Arc<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let issuer = Arc::new(Self {
            url: format!("http://{}", listener.local_addr().unwrap()),
            key: Mutex::new(("k1".into(), SigningKey::from_bytes(&rand::random()))),
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
        if path == "/.well-known/openid-configuration" {
            return json!({
                "issuer": self.url, "jwks_uri": format!("{}/keys", self.url), "response_types_supported": ["id_token"],
                "subject_types_supported": ["public"], "id_token_signing_alg_values_supported": ["EdDSA"],
            });
        }
        self.n_asked.fetch_add(1, Ordering::Relaxed);
        let (kid, key) = self.key.lock().unwrap().clone();
        let x = BASE64.encode(key.verifying_key().to_bytes());
        json!({ "keys": [{"kty": "OKP", "crv": "Ed25519", "kid": kid, "use": "sig", "alg": "EdDSA", "x": x}] })
    }

    /// From now on another key signs.
    pub(crate) fn rotate(&self, kid: &str) {
        *self.key.lock().unwrap() = (kid.into(), SigningKey::from_bytes(&rand::random()));
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
        Self::token_by(&json!({"alg": "EdDSA", "kid": kid}), claims, &key)
    }

    /// A token of this job with one claim changed.
    pub(crate) fn token_with(&self, claim: &str, value: Value) -> String {
        let mut claims = self.claims();
        claims[claim] = value;
        self.token(&claims)
    }

    pub(crate) fn token_by(head: &Value, claims: &Value, key: &SigningKey) -> String {
        let signed = format!("{}.{}", BASE64.encode(head.to_string()), BASE64.encode(claims.to_string()));
        let signature = BASE64.encode(key.sign(signed.as_bytes()).to_bytes());
        format!("{signed}.{signature}")
    }
}
