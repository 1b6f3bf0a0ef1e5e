//! Tokens of CI jobs, as GitHub and GitLab give them. A job is started by posting its claims; then
//!
//! - `/github/idtoken` lends a token for an audience to whoever has the job's request token, as GitHub does at the address
//!   that it puts into `ACTIONS_ID_TOKEN_REQUEST_URL`;
//! - `/gitlab/jobs` gives the token at once, as GitLab puts it into the job's environment.
//!
//! Both issuers publish discovery documents as the real ones do: without an authorization endpoint.

use std::collections::HashMap;
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use http::{Method, StatusCode};
use serde_json::{Value, json};

use crate::rsa::JobSigner;
use crate::tokens::random_text;

type Fields = HashMap<String, String>;

/// GitHub's tokens live for five minutes.
const LIFE_SECONDS: u64 = 300;
/// More than any test starts; then the oldest are forgotten together.
const MOST: usize = 1024;

/// Jobs on the one system.
#[derive(Default)]
pub(crate) struct Jobs {
    /// Claims, by request token.
    running: Mutex<HashMap<String, Fields>>,
    signer: OnceLock<Result<JobSigner, String>>,
}

/// What is asked.
pub(crate) struct Asked<'a> {
    pub(crate) method: &'a Method,
    pub(crate) path: &'a str,
    pub(crate) query: &'a Fields,
    pub(crate) form: &'a Fields,
    pub(crate) authorization: &'a str,
}

impl Jobs {
    /// Answers what is below `/github/` and `/gitlab/`; none: there is nothing there.
    pub(crate) fn answer(&self, url: &str, asked: &Asked<'_>) -> Option<(StatusCode, Value)> {
        let (system, path) = asked.path.strip_prefix('/')?.split_once('/')?;
        if !matches!(system, "github" | "gitlab") {
            return None;
        }
        let issuer = format!("{url}/{system}");
        let signer = match self.signer.get_or_init(|| JobSigner::new().map_err(|error| format!("{error:#}")))
        {
            Ok(signer) => signer,
            Err(why) => return Some((StatusCode::INTERNAL_SERVER_ERROR, json!({ "message": why }))),
        };
        let sign = |claims: &Fields, audience: &str| {
            let signed = signer.sign(&claims_of(&issuer, claims, audience));
            signed.map_err(|_| (StatusCode::INTERNAL_SERVER_ERROR, json!({ "message": "signing failed" })))
        };
        Some(match (asked.method, path) {
            (&Method::GET, ".well-known/openid-configuration") => (StatusCode::OK, discovery(&issuer)),
            (&Method::GET, "jwks") => (StatusCode::OK, signer.key_set()),
            (&Method::POST, "jobs") if system == "github" => {
                let token = random_text();
                let mut jobs = self.running.lock().unwrap_or_else(PoisonError::into_inner);
                if jobs.len() >= MOST {
                    jobs.clear();
                }
                jobs.insert(token.clone(), asked.form.clone());
                (
                    StatusCode::CREATED,
                    json!({ "url": format!("{issuer}/idtoken?api-version=2.0"), "token": token }),
                )
            }
            (&Method::POST, "jobs") => {
                let mut claims = asked.form.clone();
                let audience = claims.remove("aud").unwrap_or_default();
                match sign(&claims, &audience) {
                    Ok(token) => (StatusCode::CREATED, json!({ "id_token": token })),
                    Err(failed) => failed,
                }
            }
            (&Method::GET, "idtoken") => {
                let lent = asked.authorization.strip_prefix("bearer ").unwrap_or_default();
                let jobs = self.running.lock().unwrap_or_else(PoisonError::into_inner);
                let Some(claims) = jobs.get(lent) else {
                    return Some((StatusCode::UNAUTHORIZED, json!({ "message": "no such job" })));
                };
                // Without one GitHub takes the repository owner's address.
                let default = "https://github.com/acme".to_owned();
                match sign(claims, asked.query.get("audience").unwrap_or(&default)) {
                    Ok(token) => (StatusCode::OK, json!({ "count": token.len(), "value": token })),
                    Err(failed) => failed,
                }
            }
            _ => return None,
        })
    }
}

fn claims_of(issuer: &str, claims: &Fields, audience: &str) -> Value {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let mut value = json!({
        "iss": issuer, "aud": audience, "jti": random_text(), "iat": now, "nbf": now - 5, "exp": now + LIFE_SECONDS,
    });
    for (name, claim) in claims {
        value[name] = json!(claim);
    }
    value
}

fn discovery(issuer: &str) -> Value {
    json!({
        "issuer": issuer,
        "jwks_uri": format!("{issuer}/jwks"),
        "subject_types_supported": ["public", "pairwise"],
        "response_types_supported": ["id_token"],
        "id_token_signing_alg_values_supported": ["RS256"],
        "scopes_supported": ["openid"],
    })
}
