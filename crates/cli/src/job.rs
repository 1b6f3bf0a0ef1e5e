//! As which CI job we run: finding the job's OpenID token, on GitHub by asking for one.
//!
//! Tokens come from the environment, a file or the CI system's own endpoint, never from the command line, and are printed
//! nowhere.

use std::{env, path::Path};

use http::{StatusCode, header};
use serde::Deserialize;
use zeroize::Zeroizing;

use crate::{args::Bring, failure::Failure, files, oidc::http::HttpClient, profile::Address};

/// Where a token lies that the pipeline's definition asked for (GitLab: `id_tokens`).
const TOKEN: &str = "SALLYPORT_ID_TOKEN";
/// Where GitHub lends tokens to jobs with the permission `id-token: write`, and what it lends them for.
const GITHUB_URL: &str = "ACTIONS_ID_TOKEN_REQUEST_URL";
const GITHUB_TOKEN: &str = "ACTIONS_ID_TOKEN_REQUEST_TOKEN";
/// Tokens have a few kilobytes.
const LARGEST: u64 = 64 << 10;

/// A job's OpenID token.
pub type Token = Zeroizing<String>;

/// The job's token, if this is a CI job, or it is said where the token lies.
///
/// # Errors
/// It is said where, and it is not there; or GitHub does not lend one.
pub async fn token(bring: &Bring, gateway: &Address) -> Result<Option<Token>, Failure> {
    if let Some(name) = &bring.token_env {
        let missing = || {
            Failure::usage(format!("the environment variable `{name}` is empty or not set"))
                .next("name the variable that the pipeline puts the job's OpenID token into")
        };
        return variable(name).map(Some).ok_or_else(missing);
    }
    if let Some(path) = &bring.token_file {
        return from_file(path).map(Some);
    }
    if let Some(token) = variable(TOKEN) {
        return Ok(Some(token));
    }
    let (Some(url), Some(lent)) = (variable(GITHUB_URL), variable(GITHUB_TOKEN)) else { return Ok(None) };
    let audience = bring.audience.clone().unwrap_or_else(|| gateway.to_string());
    from_github(&url, &lent, &audience).await.map(Some)
}

/// What to do in a CI job that has no token.
#[must_use]
pub fn advice() -> Option<&'static str> {
    let is_set = |name: &str| env::var_os(name).is_some_and(|value| !value.is_empty());
    if is_set("GITHUB_ACTIONS") {
        return Some("give the job `permissions: id-token: write`, so that it may ask GitHub for a token");
    }
    let gitlab = "give the job `id_tokens: SALLYPORT_ID_TOKEN: aud: https://GATEWAY:PORT`";
    is_set("GITLAB_CI").then_some(gitlab)
}

fn variable(name: &str) -> Option<Token> {
    let value = Zeroizing::new(env::var(name).ok()?);
    let token = value.trim();
    (!token.is_empty()).then(|| Zeroizing::new(token.to_owned()))
}

fn from_file(path: &Path) -> Result<Token, Failure> {
    let cannot = || Failure::failed(format!("cannot read a token from `{}`", path.display()));
    let bytes = files::read(path, LARGEST).map_err(|err| cannot().because(&err))?;
    let bytes = Zeroizing::new(bytes.ok_or_else(|| cannot().why("there is no such file"))?);
    let text = std::str::from_utf8(&bytes).map_err(|_| cannot().why("it is not text"))?.trim();
    if text.is_empty() {
        return Err(cannot().why("it is empty"));
    }
    Ok(Zeroizing::new(text.to_owned()))
}

#[derive(Deserialize)]
struct Lent {
    value: String,
}

async fn from_github(url: &str, lent: &str, audience: &str) -> Result<Token, Failure> {
    let cannot = || Failure::failed("cannot get an OpenID token from GitHub");
    let mut address =
        url::Url::parse(url).map_err(|_| cannot().why(format!("{GITHUB_URL} is no address")))?;
    address.query_pairs_mut().append_pair("audience", audience);
    let request = http::Request::get(address.as_str())
        .header(header::AUTHORIZATION, format!("bearer {lent}"))
        .header(header::ACCEPT, "application/json")
        .body(Vec::new())
        .map_err(|_| cannot().why(format!("{GITHUB_TOKEN} is no token")))?;
    let client = HttpClient::new().map_err(|err| cannot().because(&err))?;
    let answer = client.send(request).await.map_err(|err| cannot().because(&err))?;
    if answer.status() != StatusCode::OK {
        return Err(cannot().why(format!("it answered {}", answer.status())));
    }
    let lent: Lent =
        serde_json::from_slice(answer.body()).map_err(|_| cannot().why("it answered something else"))?;
    Ok(Zeroizing::new(lent.value))
}
