//! The HTTP interface for CI: `/v1/policy` on the gateway's TLS port, HTTP/2 and HTTP/1.1, beside gRPC.
//!
//! | request | answer |
//! |---|---|
//! | `POST /v1/policy?commit=…&author=…&message=…` | the body is a bundle's archive; `sallyport-signature: BASE64` once for each signed statement. 200: in force; 202: waits for approval |
//! | `GET /v1/policy`, `GET /v1/policy/VERSION` | what is in force, or that version: JSON, or the archive with `accept: application/octet-stream` |
//! | `GET /v1/proposals` | what waits for approval |
//!
//! `authorization: Bearer TOKEN` with a CI job's OpenID token (or a person's token of this gateway). Whatever goes wrong is
//! a problem document (RFC 9457). Nobody uploads before they have proved who they are.

use super::{Changes, Outcome, Proposal, Push, Refused, RefusedKind};
use crate::link::Peer;
use crate::policy::{MAX_ARCHIVE, Pushed};
use crate::state::policies::Stored;
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use http::header::{self, HeaderMap, HeaderValue};
use http::request::Parts;
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full, LengthLimitError, Limited};
use serde_json::{Value, json};
use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::sync::Semaphore;
use tonic::body::Body;
use tonic::codegen::Service;
use tonic::server::NamedService;

/// A body must have arrived by then.
const BODY_WITHIN: Duration = Duration::from_secs(30);
/// Requests that are worked on at once; each may hold an archive.
const AT_ONCE: usize = 16;
/// Header of a signed statement, in base64.
const SIGNATURE: &str = "sallyport-signature";

/// The service. Cheap to clone.
#[derive(Clone)]
pub struct Http {
    changes: Changes,
    places: Arc<Semaphore>,
}

type Answer = Response<Body>;

impl Http {
    /// Serves these changes.
    #[must_use]
    pub fn new(changes: Changes) -> Self {
        Self { changes, places: Arc::new(Semaphore::new(AT_ONCE)) }
    }
}

impl NamedService for Http {
    // What the router sends here: everything below /v1/.
    const NAME: &'static str = "v1";
}

impl Service<Request<Body>> for Http {
    type Response = Answer;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Answer, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let http = self.clone();
        Box::pin(async move { Ok(http.answer(request).await.unwrap_or_else(Problem::answer)) })
    }
}

impl Http {
    async fn answer(&self, request: Request<Body>) -> Result<Answer, Problem> {
        let _place = self.places.try_acquire().map_err(|_| {
            Problem::new(StatusCode::SERVICE_UNAVAILABLE, "busy", "too many requests at once").retry(1)
        })?;
        let (parts, body) = request.into_parts();
        let path = parts.uri.path().trim_end_matches('/').to_owned();
        let (get, post) = (parts.method == Method::GET, parts.method == Method::POST);
        match path.strip_prefix("/v1/").unwrap_or_default().split('/').collect::<Vec<_>>()[..] {
            ["policy"] if post => self.push(&parts, body).await,
            ["policy"] if get => self.version(&parts, "").await,
            ["policy", version] if get => self.version(&parts, version).await,
            ["proposals"] if get => self.proposals(&parts).await,
            ["policy"] => Err(not_allowed("GET, POST")),
            ["policy", _] | ["proposals"] => Err(not_allowed("GET")),
            _ => {
                let text = "there are /v1/policy, /v1/policy/VERSION and /v1/proposals";
                Err(Problem::new(StatusCode::NOT_FOUND, "not-found", text))
            }
        }
    }

    async fn push(&self, parts: &Parts, body: Body) -> Result<Answer, Problem> {
        let caller = self.caller(parts).await?;
        let declared =
            parts.headers.get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse().ok());
        if declared.is_some_and(|length: usize| length > MAX_ARCHIVE) {
            return Err(too_large());
        }
        let body = Limited::new(body, MAX_ARCHIVE).collect();
        let body = tokio::time::timeout(BODY_WITHIN, body).await.map_err(|_| {
            let text = format!("the archive did not arrive within {} seconds", BODY_WITHIN.as_secs());
            Problem::new(StatusCode::REQUEST_TIMEOUT, "too-slow", text)
        })?;
        let archive = body.map_err(|err| match err.downcast_ref::<LengthLimitError>() {
            Some(_) => too_large(),
            None => Problem::new(StatusCode::BAD_REQUEST, "cut", "the archive broke off"),
        })?;
        let mut push = Push {
            archive: archive.to_bytes().to_vec(),
            signatures: signatures(&parts.headers)?,
            ..Push::default()
        };
        for (name, value) in url::form_urlencoded::parse(parts.uri.query().unwrap_or_default().as_bytes()) {
            match &*name {
                "commit" => push.commit = value.into_owned(),
                "author" => push.author = value.into_owned(),
                "message" => push.message = value.into_owned(),
                other => {
                    let text = format!("`{other}` is no parameter; there are commit, author and message");
                    return Err(Problem::new(StatusCode::BAD_REQUEST, "malformed", text));
                }
            }
        }
        match self.changes.push(&caller, push).await? {
            Outcome::Done(pushed) if pushed.problems.is_empty() => {
                Ok(document(StatusCode::OK, &in_force(&pushed)))
            }
            Outcome::Done(pushed) => {
                let text = "the bundle has faults; the version before stays in force";
                let problem = Problem::new(StatusCode::UNPROCESSABLE_ENTITY, "faults", text);
                let more = json!({ "problems": pushed.problems, "version_in_force": pushed.previous });
                Err(problem.with(more))
            }
            Outcome::Waits(proposal) => Ok(document(StatusCode::ACCEPTED, &waiting(&proposal))),
        }
    }

    async fn version(&self, parts: &Parts, version: &str) -> Result<Answer, Problem> {
        let caller = self.caller(parts).await?;
        let (stored, signatures) = self.changes.version(&caller, version).await?;
        let Stored { version, commit, author, message, pushed_ms, archive, .. } = stored;
        let accepts = parts.headers.get(header::ACCEPT).and_then(|value| value.to_str().ok());
        if accepts.is_some_and(|accepts| accepts.contains("application/octet-stream")) {
            let mut answer = answer(StatusCode::OK, "application/octet-stream", archive.to_vec());
            if let Ok(version) = HeaderValue::from_str(&version) {
                answer.headers_mut().insert("sallyport-version", version);
            }
            return Ok(answer);
        }
        Ok(document(
            StatusCode::OK,
            &json!({
                "version": version, "commit": commit, "author": author, "message": message,
                "pushed_at_ms": pushed_ms, "signatures": signatures,
            }),
        ))
    }

    async fn proposals(&self, parts: &Parts) -> Result<Answer, Problem> {
        let caller = self.caller(parts).await?;
        let proposals = self.changes.proposals(&caller).await?;
        let list: Vec<Value> = proposals.iter().map(waiting).collect();
        Ok(document(StatusCode::OK, &json!({ "proposals": list })))
    }

    async fn caller(&self, parts: &Parts) -> Result<super::Caller, Problem> {
        let client = parts.extensions.get::<Peer>().map(|peer| peer.address);
        let client = client.ok_or_else(|| {
            Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", "the connection has no address")
        })?;
        let sent = parts.headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
        let token = sent.and_then(|sent| {
            let (scheme, token) = sent.split_once(' ')?;
            scheme.eq_ignore_ascii_case("bearer").then_some(token.trim())
        });
        Ok(self.changes.caller(token, client).await?)
    }
}

fn signatures(headers: &HeaderMap) -> Result<Vec<String>, Problem> {
    let decoded = |value: &HeaderValue| {
        let bytes = BASE64_STANDARD.decode(value.as_bytes()).ok()?;
        String::from_utf8(bytes).ok()
    };
    headers
        .get_all(SIGNATURE)
        .iter()
        .map(|value| {
            let text = format!("the header `{SIGNATURE}` is not a signed statement in base64");
            decoded(value).ok_or_else(|| Problem::new(StatusCode::BAD_REQUEST, "malformed", text))
        })
        .collect()
}

fn in_force(pushed: &Pushed) -> Value {
    let sensors: Vec<Value> = pushed
        .sensors
        .iter()
        .map(|sensor| json!({ "host": sensor.host, "version": sensor.version, "error": sensor.error }))
        .collect();
    json!({
        "state": "in_force", "version": pushed.version, "previous_version": pushed.previous, "problems": [],
        "sensors": sensors,
    })
}

fn waiting(proposal: &Proposal) -> Value {
    json!({
        "state": "waits_for_approval", "version": proposal.version, "previous_version": proposal.base, "problems": [],
        "sensors": [], "proposed_by": proposal.identity.user, "on_behalf_of": proposal.identity.on_behalf_of,
        "commit": proposal.change.commit, "message": proposal.message, "signed_by": proposal.change.signed_by,
        "proposed_at_ms": proposal.proposed_ms, "expires_at_ms": proposal.expires_ms,
    })
}

/// Something went wrong: RFC 9457.
struct Problem {
    status: StatusCode,
    kind: &'static str,
    detail: String,
    more: Box<Value>,
    header: Option<(header::HeaderName, String)>,
}

impl Problem {
    fn new(status: StatusCode, kind: &'static str, detail: impl Into<String>) -> Self {
        Self { status, kind, detail: detail.into(), more: Box::new(json!({})), header: None }
    }

    fn with(self, more: Value) -> Self {
        Self { more: Box::new(more), ..self }
    }

    fn retry(self, seconds: u64) -> Self {
        Self { header: Some((header::RETRY_AFTER, seconds.to_string())), ..self }
    }

    fn answer(self) -> Answer {
        let mut value = *self.more;
        value["type"] = json!(format!("urn:sallyport:problem:{}", self.kind));
        value["title"] = json!(self.status.canonical_reason().unwrap_or("problem"));
        value["status"] = json!(self.status.as_u16());
        value["detail"] = json!(self.detail);
        let mut answer = answer(self.status, "application/problem+json", value.to_string());
        if let Some((name, text)) = self.header
            && let Ok(text) = HeaderValue::from_str(&text)
        {
            answer.headers_mut().insert(name, text);
        }
        answer
    }
}

impl From<Refused> for Problem {
    fn from(refused: Refused) -> Self {
        let Refused { kind, message } = refused;
        let (status, name) = match kind {
            RefusedKind::Unauthenticated => (StatusCode::UNAUTHORIZED, "unauthenticated"),
            RefusedKind::TooMany(_) => (StatusCode::TOO_MANY_REQUESTS, "too-many-failures"),
            RefusedKind::Denied => (StatusCode::FORBIDDEN, "denied"),
            RefusedKind::Signature => (StatusCode::UNPROCESSABLE_ENTITY, "signature"),
            RefusedKind::Malformed => (StatusCode::BAD_REQUEST, "malformed"),
            RefusedKind::Conflict => (StatusCode::CONFLICT, "conflict"),
            RefusedKind::NotFound => (StatusCode::NOT_FOUND, "not-found"),
            RefusedKind::Unavailable => (StatusCode::SERVICE_UNAVAILABLE, "unavailable"),
            RefusedKind::Internal => (StatusCode::INTERNAL_SERVER_ERROR, "internal"),
        };
        let problem = Self::new(status, name, message);
        match kind {
            RefusedKind::TooMany(seconds) => problem.retry(seconds),
            RefusedKind::Unavailable => problem.retry(10),
            RefusedKind::Unauthenticated => {
                Self { header: Some((header::WWW_AUTHENTICATE, "Bearer".to_owned())), ..problem }
            }
            _ => problem,
        }
    }
}

fn too_large() -> Problem {
    let text = format!("a bundle's archive has {MAX_ARCHIVE} bytes at most");
    Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "too-large", text)
}

fn not_allowed(methods: &str) -> Problem {
    let problem = Problem::new(StatusCode::METHOD_NOT_ALLOWED, "method", format!("it takes {methods}"));
    Problem { header: Some((header::ALLOW, methods.to_owned())), ..problem }
}

fn document(status: StatusCode, value: &Value) -> Answer {
    answer(status, "application/json", value.to_string())
}

fn answer(status: StatusCode, kind: &'static str, body: impl Into<Bytes>) -> Answer {
    let mut answer = Response::new(Body::new(Full::new(body.into())));
    *answer.status_mut() = status;
    let headers = answer.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    answer
}
