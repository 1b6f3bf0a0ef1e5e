//! One-time join tokens and bearer tokens. Only their hashes are stored.

use super::{State, StateError, now_ms, to_ms};
use rusqlite::{OptionalExtension as _, params};
use sallyport_evidence::record::Identity;
use sha2::{Digest as _, Sha256};
use std::time::{Duration, SystemTime};

/// A token just made: its text is shown once and kept nowhere.
pub struct NewToken {
    /// The token.
    pub secret: String,
    /// Its end, milliseconds since the Unix epoch.
    pub expires_ms: i64,
}

/// Why a join token does not serve.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unusable {
    /// No such token.
    #[error(
        "the join token is not known here; check that it was copied whole, or make a new one with `sallyport-gateway join-token`"
    )]
    Unknown,
    /// Used before.
    #[error("the join token was used before; make a new one with `sallyport-gateway join-token`")]
    Used,
    /// Over.
    #[error("the join token has expired; make a new one with `sallyport-gateway join-token`")]
    Expired,
}

/// Makes a token with which one sensor can join as `host`.
///
/// # Errors
/// The database.
pub async fn create_join(state: &State, host: &str, ttl: Duration) -> Result<NewToken, StateError> {
    let secret = format!("join_{}", hex::encode(rand::random::<[u8; 32]>()));
    let expires_ms = to_ms(SystemTime::now() + ttl);
    let (hash, host) = (hash(&secret), host.to_owned());
    state
        .call(move |connection| {
            connection
                .execute("DELETE FROM join_tokens WHERE expires_ms < ?", [now_ms() - 7 * 86_400_000])?;
            connection.execute(
                "INSERT INTO join_tokens (hash, host, expires_ms) VALUES (?,?,?)",
                params![hash, host, expires_ms],
            )
        })
        .await?;
    Ok(NewToken { secret, expires_ms })
}

/// Uses a join token up; gives the host it was made for.
///
/// # Errors
/// The database.
pub async fn use_join(state: &State, secret: &str) -> Result<Result<String, Unusable>, StateError> {
    let hash = hash(secret);
    state
        .call(move |connection| {
            let now = now_ms();
            // One statement: of two sensors with the same token one wins.
            let sql = "UPDATE join_tokens SET used_ms = ?1 WHERE hash = ?2 AND used_ms IS NULL AND expires_ms > ?1 RETURNING host";
            if let Some(host) = connection.query_row(sql, params![now, hash], |row| row.get(0)).optional()? {
                return Ok(Ok(host));
            }
            let sql = "SELECT used_ms IS NOT NULL FROM join_tokens WHERE hash = ?";
            let used: Option<bool> = connection.query_row(sql, [hash], |row| row.get(0)).optional()?;
            Ok(Err(match used {
                None => Unusable::Unknown,
                Some(true) => Unusable::Used,
                Some(false) => Unusable::Expired,
            }))
        })
        .await
}

/// Makes a bearer token for the console.
///
/// # Errors
/// The database.
pub async fn create_bearer(
    state: &State,
    identity: &Identity,
    expires_at: SystemTime,
) -> Result<NewToken, StateError> {
    let secret = format!("sp_{}", hex::encode(rand::random::<[u8; 32]>()));
    let expires_ms = to_ms(expires_at);
    let (hash, identity) = (hash(&secret), to_json(identity));
    state
        .call(move |connection| {
            connection.execute("DELETE FROM api_tokens WHERE expires_ms < ?", [now_ms()])?;
            connection.execute(
                "INSERT INTO api_tokens (hash, identity, expires_ms) VALUES (?,?,?)",
                params![hash, identity, expires_ms],
            )
        })
        .await?;
    Ok(NewToken { secret, expires_ms })
}

/// Whose bearer token it is, and its end; none: unknown or over.
///
/// # Errors
/// The database.
pub async fn bearer(state: &State, secret: &str) -> Result<Option<(Identity, i64)>, StateError> {
    let hash = hash(secret);
    let found: Option<(String, i64)> = state
        .call(move |connection| {
            let sql = "SELECT identity, expires_ms FROM api_tokens WHERE hash = ? AND expires_ms > ?";
            connection
                .query_row(sql, params![hash, now_ms()], |row| Ok((row.get(0)?, row.get(1)?)))
                .optional()
        })
        .await?;
    Ok(found.and_then(|(json, expires_ms)| Some((serde_json::from_str(&json).ok()?, expires_ms))))
}

/// Forgets a bearer token.
///
/// # Errors
/// The database.
pub async fn forget_bearer(state: &State, secret: &str) -> Result<(), StateError> {
    let hash = hash(secret);
    state.call(move |connection| connection.execute("DELETE FROM api_tokens WHERE hash = ?", [hash])).await?;
    Ok(())
}

pub(super) fn to_json(identity: &Identity) -> String {
    // Serialising strings cannot fail.
    serde_json::to_string(identity).unwrap_or_default()
}

/// The tokens have 256 random bits: a plain hash is enough, there is nothing to guess.
fn hash(secret: &str) -> Vec<u8> {
    Sha256::digest(secret).to_vec()
}
