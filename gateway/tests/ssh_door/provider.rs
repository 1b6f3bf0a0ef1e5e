//! A small OpenID provider for these tests: device flow, signed ID tokens, userinfo.

use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD as BASE64;
use ed25519_dalek::{Signer, SigningKey};
use serde_json::{Value, json};
use std::sync::{Arc, Mutex};
use std::time::{SystemTime, UNIX_EPOCH};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// What the person does with the link.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Person {
    /// Nothing yet.
    Waits,
    /// Signs in.
    SignsIn,
    /// Refuses.
    Refuses,
    /// Lets it expire.
    Forgets,
}

/// The provider.
pub(crate) struct Provider {
    pub(crate) issuer: String,
    pub(crate) state: Mutex<State>,
    key: SigningKey,
}

pub(crate) struct State {
    pub(crate) person: Person,
    /// Links that were asked for.
    pub(crate) n_links: usize,
    /// Token requests.
    pub(crate) n_polls: usize,
    /// Claims beside the required ones.
    pub(crate) claims: Value,
    pub(crate) userinfo: Value,
}

impl Provider {
    pub(crate) async fn start() -> Arc<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
        let issuer = format!("http://{}", listener.local_addr().expect("address"));
        let provider = Arc::new(Self {
            issuer,
            key: SigningKey::from_bytes(&rand::random()),
            state: Mutex::new(State {
                person: Person::SignsIn,
                n_links: 0,
                n_polls: 0,
                claims: json!({"email": "alice@example.org", "email_verified": true}),
                userinfo: json!({"sub": "u1", "groups": ["ops"]}),
            }),
        });
        let server = Arc::clone(&provider);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let server = Arc::clone(&server);
                tokio::spawn(async move { server.serve(stream).await });
            }
        });
        provider
    }

    pub(crate) fn person(&self, person: Person) {
        self.state.lock().expect("lock").person = person;
    }

    /// A signed token with these claims over the usual ones.
    pub(crate) fn token(&self, client: &str, more: &Value) -> String {
        self.token_signed_by(&self.key, client, more)
    }

    pub(crate) fn forged_token(&self, client: &str, more: &Value) -> String {
        self.token_signed_by(&SigningKey::from_bytes(&[7; 32]), client, more)
    }

    fn token_signed_by(&self, key: &SigningKey, client: &str, more: &Value) -> String {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("clock").as_secs();
        let mut claims =
            json!({"iss": self.issuer, "sub": "u1", "aud": client, "iat": now, "exp": now + 300});
        let own = self.state.lock().expect("lock").claims.clone();
        for source in [&own, more] {
            for (name, value) in source.as_object().expect("object") {
                claims[name] = value.clone();
            }
        }
        let head = BASE64.encode(json!({"alg": "EdDSA", "kid": "k1"}).to_string());
        let signed = format!("{head}.{}", BASE64.encode(claims.to_string()));
        let signature = BASE64.encode(key.sign(signed.as_bytes()).to_bytes());
        format!("{signed}.{signature}")
    }

    async fn serve(&self, mut stream: TcpStream) {
        let mut request = Vec::new();
        let mut chunk = [0; 4096];
        loop {
            let text = String::from_utf8_lossy(&request).into_owned();
            if let Some((head, body)) = text.split_once("\r\n\r\n") {
                let length = head
                    .lines()
                    .filter_map(|line| line.split_once(':'))
                    .find(|(name, _)| name.eq_ignore_ascii_case("content-length"))
                    .map_or(0, |(_, value)| value.trim().parse().expect("length"));
                if body.len() >= length {
                    let path = head.split(' ').nth(1).expect("path").to_owned();
                    let (status, answer) = self.answer(&path);
                    let answer = answer.to_string();
                    let response = format!(
                        "HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{answer}",
                        answer.len()
                    );
                    let _ = stream.write_all(response.as_bytes()).await;
                    return;
                }
            }
            match stream.read(&mut chunk).await {
                Ok(n) if n > 0 => request.extend_from_slice(&chunk[..n]),
                _ => return,
            }
        }
    }

    fn answer(&self, path: &str) -> (&'static str, Value) {
        let issuer = &self.issuer;
        match path {
            "/.well-known/openid-configuration" => (
                "200 OK",
                json!({
                    "issuer": issuer,
                    "authorization_endpoint": format!("{issuer}/auth"),
                    "token_endpoint": format!("{issuer}/token"),
                    "jwks_uri": format!("{issuer}/jwks"),
                    "userinfo_endpoint": format!("{issuer}/userinfo"),
                    "device_authorization_endpoint": format!("{issuer}/device"),
                    "response_types_supported": ["code"],
                    "subject_types_supported": ["public"],
                    "id_token_signing_alg_values_supported": ["EdDSA"],
                }),
            ),
            "/jwks" => {
                let x = BASE64.encode(self.key.verifying_key().to_bytes());
                let key = json!({"kty": "OKP", "crv": "Ed25519", "kid": "k1", "use": "sig", "alg": "EdDSA", "x": x});
                ("200 OK", json!({ "keys": [key] }))
            }
            "/userinfo" => ("200 OK", self.state.lock().expect("lock").userinfo.clone()),
            "/device" => {
                let mut state = self.state.lock().expect("lock");
                state.n_links += 1;
                let expires = if state.person == Person::Forgets { 1 } else { 60 };
                (
                    "200 OK",
                    json!({
                        "device_code": "secret",
                        "user_code": "ABCD-EFGH",
                        "verification_uri": format!("{issuer}/activate"),
                        "verification_uri_complete": format!("{issuer}/activate?user_code=ABCD-EFGH"),
                        "expires_in": expires,
                        "interval": 1,
                    }),
                )
            }
            "/token" => {
                let person = {
                    let mut state = self.state.lock().expect("lock");
                    state.n_polls += 1;
                    state.person
                };
                match person {
                    Person::Waits | Person::Forgets => {
                        ("400 Bad Request", json!({"error": "authorization_pending"}))
                    }
                    Person::Refuses => ("400 Bad Request", json!({"error": "access_denied"})),
                    Person::SignsIn => (
                        "200 OK",
                        json!({"access_token": "at", "token_type": "Bearer", "id_token": self.token("sallyport", &json!({}))}),
                    ),
                }
            }
            _ => ("404 Not Found", json!({})),
        }
    }
}
