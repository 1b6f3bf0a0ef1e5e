//! The endpoints.

use std::collections::HashMap;
use std::convert::Infallible;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::Result;
use base64::Engine;
use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};

use crate::config::{Client, Config, User};
use crate::grants::{Code, DEVICE_CODE_LIFE, Device, Grants};
use crate::jobs::{Asked, Jobs};
use crate::pages;
use crate::tokens::Signer;

/// No form is near this.
const LARGEST_BODY: usize = 64 * 1024;
/// Seconds between polls of a device (RFC 8628 section 3.2). Short: demos and tests wait for it.
const POLL_INTERVAL: u64 = 1;
const DEVICE_GRANT: &str = "urn:ietf:params:oauth:grant-type:device_code";

pub(crate) struct Issuer {
    url: String,
    config: Config,
    signer: Signer,
    grants: Mutex<Grants>,
    jobs: Jobs,
}

type Fields = HashMap<String, String>;
type Answer = Response<Full<Bytes>>;

impl Issuer {
    pub(crate) fn new(url: String, config: Config) -> Result<Self> {
        Ok(Self { url, config, signer: Signer::new()?, grants: Mutex::default(), jobs: Jobs::default() })
    }

    fn grants(&self) -> MutexGuard<'_, Grants> {
        self.grants.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Serves until the process ends.
pub(crate) async fn serve(listener: tokio::net::TcpListener, issuer: Issuer) -> Result<()> {
    let issuer = Arc::new(issuer);
    loop {
        let (stream, _) = listener.accept().await?;
        let issuer = Arc::clone(&issuer);
        tokio::spawn(async move {
            let service = hyper::service::service_fn(move |request| {
                let issuer = Arc::clone(&issuer);
                async move { Ok::<_, Infallible>(issuer.answer(request).await) }
            });
            // A client that breaks off is its own concern.
            let _ = hyper::server::conn::http1::Builder::new()
                .serve_connection(TokioIo::new(stream), service)
                .await;
        });
    }
}

impl Issuer {
    async fn answer(&self, request: Request<Incoming>) -> Answer {
        let (parts, body) = request.into_parts();
        let query = fields(parts.uri.query().unwrap_or_default().as_bytes());
        let Ok(body) = Limited::new(body, LARGEST_BODY).collect().await else {
            return oauth_error(StatusCode::PAYLOAD_TOO_LARGE, "invalid_request", "the body is too long");
        };
        let form = fields(&body.to_bytes());
        let authorization = parts
            .headers
            .get(header::AUTHORIZATION)
            .and_then(|value| value.to_str().ok())
            .unwrap_or_default();
        match (&parts.method, parts.uri.path()) {
            (&Method::GET, "/.well-known/openid-configuration") => {
                json_answer(StatusCode::OK, &self.discovery())
            }
            (&Method::GET, "/jwks") => json_answer(StatusCode::OK, &self.signer.key_set()),
            (&Method::GET, "/authorize") => self.ask_authorize(&query),
            (&Method::POST, "/authorize") => self.authorize(&form),
            (&Method::POST, "/device_authorization") => self.device_authorization(&form, authorization),
            (&Method::GET, "/device") => self.ask_device(&query),
            (&Method::POST, "/device/approve") => self.approve_device(&form),
            (&Method::POST, "/token") => self.token(&form, authorization),
            (&Method::GET | &Method::POST, "/userinfo") => self.userinfo(authorization),
            (method, path) => {
                let asked = Asked { method, path, query: &query, form: &form, authorization };
                match self.jobs.answer(&self.url, &asked) {
                    Some((status, value)) => json_answer(status, &value),
                    None => html(StatusCode::NOT_FOUND, pages::done("There is nothing here.")),
                }
            }
        }
    }

    fn discovery(&self) -> Value {
        let at = |path: &str| format!("{}{path}", self.url);
        json!({
            "issuer": self.url,
            "authorization_endpoint": at("/authorize"),
            "token_endpoint": at("/token"),
            "userinfo_endpoint": at("/userinfo"),
            "jwks_uri": at("/jwks"),
            "device_authorization_endpoint": at("/device_authorization"),
            "response_types_supported": ["code"],
            "grant_types_supported": ["authorization_code", DEVICE_GRANT],
            "subject_types_supported": ["public"],
            "id_token_signing_alg_values_supported": ["ES256"],
            "code_challenge_methods_supported": ["S256"],
            "token_endpoint_auth_methods_supported": ["client_secret_basic", "client_secret_post", "none"],
            "scopes_supported": ["openid", "email", "profile", "groups"],
            "claims_supported": ["sub", "email", "email_verified", "name", "groups"],
        })
    }

    fn ask_authorize(&self, query: &Fields) -> Answer {
        if let Err(problem) = self.check_authorize(query) {
            return html(StatusCode::BAD_REQUEST, pages::done(problem));
        }
        let carried: Vec<(&str, &str)> =
            query.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        let shown = format!("<b>{}</b> asks who you are.", pages::escape(text(query, "client_id")));
        html(StatusCode::OK, pages::sign_in(&self.config, "/authorize", &shown, &carried))
    }

    fn check_authorize(&self, query: &Fields) -> Result<(), &'static str> {
        if self.client(text(query, "client_id")).is_none() {
            return Err("This client is not known.");
        }
        // RFC 8252 section 7.3: native clients listen on loopback; nothing else is served here.
        let redirect = url::Url::parse(text(query, "redirect_uri")).ok();
        let loopback = redirect.is_some_and(|url| {
            url.scheme() == "http" && matches!(url.host_str(), Some("127.0.0.1" | "[::1]" | "localhost"))
        });
        if !loopback {
            return Err("The redirect address is not a loopback address.");
        }
        if text(query, "response_type") != "code" {
            return Err("Only the authorization code flow is served.");
        }
        if text(query, "code_challenge_method") != "S256" || text(query, "code_challenge").is_empty() {
            return Err("PKCE with S256 is required.");
        }
        Ok(())
    }

    fn authorize(&self, form: &Fields) -> Answer {
        if let Err(problem) = self.check_authorize(form) {
            return html(StatusCode::BAD_REQUEST, pages::done(problem));
        }
        let Ok(mut redirect) = url::Url::parse(text(form, "redirect_uri")) else {
            return html(StatusCode::BAD_REQUEST, pages::done("The redirect address is not an address."));
        };
        let user = text(form, "user");
        if text(form, "answer") == "deny" || !self.config.users.contains_key(user) {
            redirect.query_pairs_mut().append_pair("error", "access_denied");
        } else {
            let code = self.grants().issue_code(Code {
                user: user.to_owned(),
                client_id: text(form, "client_id").to_owned(),
                redirect_uri: text(form, "redirect_uri").to_owned(),
                challenge: text(form, "code_challenge").to_owned(),
                nonce: form.get("nonce").cloned(),
            });
            redirect.query_pairs_mut().append_pair("code", &code);
        }
        if let Some(state) = form.get("state") {
            redirect.query_pairs_mut().append_pair("state", state);
        }
        redirect.query_pairs_mut().append_pair("iss", &self.url);
        let mut answer = html(StatusCode::SEE_OTHER, String::new());
        if let Ok(value) = redirect.as_str().parse() {
            answer.headers_mut().insert(header::LOCATION, value);
        }
        answer
    }

    fn device_authorization(&self, form: &Fields, authorization: &str) -> Answer {
        if self.authenticated(form, authorization).is_none() {
            return oauth_error(StatusCode::UNAUTHORIZED, "invalid_client", "unknown client or wrong secret");
        }
        let (device_code, user_code) = self.grants().start_device();
        let page = format!("{}/device", self.url);
        json_answer(
            StatusCode::OK,
            &json!({
                "device_code": device_code,
                "user_code": user_code,
                "verification_uri": page,
                "verification_uri_complete": format!("{page}?user_code={user_code}"),
                "expires_in": DEVICE_CODE_LIFE.as_secs(),
                "interval": POLL_INTERVAL,
            }),
        )
    }

    fn ask_device(&self, query: &Fields) -> Answer {
        let code = text(query, "user_code");
        if code.is_empty() {
            return html(StatusCode::OK, pages::enter_code("It is shown in your terminal."));
        }
        if !self.grants().is_pending(code) {
            return html(StatusCode::OK, pages::enter_code("Nothing waits for that code. Is it right?"));
        }
        let shown = format!("A terminal shows the code <b>{}</b>. Is it yours?", pages::escape(code));
        html(StatusCode::OK, pages::sign_in(&self.config, "/device/approve", &shown, &[("user_code", code)]))
    }

    fn approve_device(&self, form: &Fields) -> Answer {
        let user = text(form, "user");
        let answer = match text(form, "answer") {
            "deny" => Device::Denied,
            _ if self.config.users.contains_key(user) => Device::Approved { user: user.to_owned() },
            _ => return html(StatusCode::BAD_REQUEST, pages::done("There is no such person.")),
        };
        if !self.grants().settle_device(text(form, "user_code"), &answer) {
            return html(StatusCode::BAD_REQUEST, pages::done("Nothing waits for that code."));
        }
        html(StatusCode::OK, pages::done("You may close this page and go back to the terminal."))
    }

    fn token(&self, form: &Fields, authorization: &str) -> Answer {
        let Some(client) = self.authenticated(form, authorization) else {
            return oauth_error(StatusCode::UNAUTHORIZED, "invalid_client", "unknown client or wrong secret");
        };
        let granted = match text(form, "grant_type") {
            "authorization_code" => self
                .grants()
                .redeem_code(
                    text(form, "code"),
                    &client.client_id,
                    text(form, "redirect_uri"),
                    text(form, "code_verifier"),
                )
                .map(|code| (code.user, code.nonce))
                .ok_or(("invalid_grant", "the code is used, too old, or not yours")),
            DEVICE_GRANT => match self.grants().poll_device(text(form, "device_code")) {
                Some(Device::Approved { user }) => Ok((user, None)),
                Some(Device::Pending) => Err(("authorization_pending", "nobody has signed in yet")),
                Some(Device::Denied) => Err(("access_denied", "the person refused")),
                None => Err(("expired_token", "the code is unknown or too old")),
            },
            _ => Err(("unsupported_grant_type", "authorization_code and device_code are served")),
        };
        let (user, nonce) = match granted {
            Ok(granted) => granted,
            Err((error, description)) => return oauth_error(StatusCode::BAD_REQUEST, error, description),
        };
        self.issue(&user, nonce, &client.client_id)
    }

    fn issue(&self, user: &str, nonce: Option<String>, client_id: &str) -> Answer {
        let Some(known) = self.config.users.get(user) else {
            return oauth_error(StatusCode::BAD_REQUEST, "invalid_grant", "there is no such person");
        };
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let mut claims = about(user, known);
        claims["iss"] = json!(self.url);
        claims["aud"] = json!(client_id);
        claims["iat"] = json!(now);
        claims["auth_time"] = json!(now);
        claims["exp"] = json!(now + 3600);
        if let Some(nonce) = nonce {
            claims["nonce"] = json!(nonce);
        }
        let Ok(id_token) = self.signer.sign(&claims) else {
            return oauth_error(StatusCode::INTERNAL_SERVER_ERROR, "server_error", "signing failed");
        };
        let access_token = self.grants().issue_token(user.to_owned());
        json_answer(
            StatusCode::OK,
            &json!({
                "access_token": access_token, "token_type": "Bearer", "expires_in": 3600, "id_token": id_token,
            }),
        )
    }

    fn userinfo(&self, authorization: &str) -> Answer {
        let token = authorization.strip_prefix("Bearer ").unwrap_or_default();
        let user = self.grants().user_of_token(token).cloned();
        match user.and_then(|user| self.config.users.get(&user).map(|known| about(&user, known))) {
            Some(claims) => json_answer(StatusCode::OK, &claims),
            None => oauth_error(StatusCode::UNAUTHORIZED, "invalid_token", "unknown or too old"),
        }
    }

    fn client(&self, id: &str) -> Option<&Client> {
        [&self.config.gateway, &self.config.cli].into_iter().find(|client| client.client_id == id)
    }

    /// The client, if it is known and has shown the secret that it has (RFC 6749 section 2.3.1).
    fn authenticated(&self, form: &Fields, authorization: &str) -> Option<&Client> {
        let basic = authorization.strip_prefix("Basic ").and_then(|encoded| {
            let decoded = base64::engine::general_purpose::STANDARD.decode(encoded).ok()?;
            let (id, secret) = std::str::from_utf8(&decoded)
                .ok()?
                .split_once(':')
                .map(|(a, b)| (a.to_owned(), b.to_owned()))?;
            Some((decoded_part(&id), decoded_part(&secret)))
        });
        let (id, secret) = basic
            .unwrap_or_else(|| (text(form, "client_id").to_owned(), text(form, "client_secret").to_owned()));
        let client = self.client(&id)?;
        match &client.client_secret {
            Some(expected) => (*expected == secret).then_some(client),
            None => Some(client),
        }
    }
}

fn decoded_part(part: &str) -> String {
    url::form_urlencoded::parse(format!("v={part}").as_bytes())
        .next()
        .map(|(_, value)| value.into_owned())
        .unwrap_or_default()
}

fn about(user: &str, known: &User) -> Value {
    json!({
        "sub": user, "email": known.email, "email_verified": true, "name": known.name, "groups": known.groups,
    })
}

fn text<'a>(fields: &'a Fields, name: &str) -> &'a str {
    fields.get(name).map(String::as_str).unwrap_or_default()
}

fn fields(encoded: &[u8]) -> Fields {
    url::form_urlencoded::parse(encoded).into_owned().collect()
}

fn html(status: StatusCode, page: String) -> Answer {
    answer(status, "text/html; charset=utf-8", page)
}

fn json_answer(status: StatusCode, value: &Value) -> Answer {
    answer(status, "application/json", value.to_string())
}

fn oauth_error(status: StatusCode, error: &str, description: &str) -> Answer {
    json_answer(status, &json!({ "error": error, "error_description": description }))
}

fn answer(status: StatusCode, kind: &'static str, body: String) -> Answer {
    let mut answer = Response::new(Full::new(Bytes::from(body)));
    *answer.status_mut() = status;
    let headers = answer.headers_mut();
    headers.insert(header::CONTENT_TYPE, header::HeaderValue::from_static(kind));
    headers.insert(header::CACHE_CONTROL, header::HeaderValue::from_static("no-store"));
    answer
}
