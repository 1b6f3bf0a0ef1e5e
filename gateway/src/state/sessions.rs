//! Sessions and channels, for listing and for closing what a crash left open.

use super::{State, StateError, now_ms};
use rusqlite::{Row, params, params_from_iter, types::Value};
use sallyport_evidence::record::Identity;

/// A session.
#[derive(Clone, Debug)]
pub struct SessionRow {
    /// UUID v7.
    pub id: String,
    /// Who.
    pub identity: Identity,
    /// Host.
    pub host: String,
    /// Local user.
    pub local_user: String,
    /// Client's address.
    pub client: String,
    /// Version that authorised it last.
    pub policy_version: String,
    /// Milliseconds since the Unix epoch.
    pub started_ms: i64,
    /// None: running.
    pub ended_ms: Option<i64>,
    /// Why it ended.
    pub end_reason: String,
}

/// A channel.
#[derive(Clone, Debug)]
pub struct ChannelRow {
    /// UUID v7.
    pub id: String,
    /// Its session.
    pub session: String,
    /// What runs in it, for people.
    pub what: String,
    /// Milliseconds since the Unix epoch.
    pub started_ms: i64,
    /// None: running.
    pub ended_ms: Option<i64>,
}

/// Which sessions; empty fields match all.
#[derive(Clone, Debug, Default)]
pub struct Wanted {
    /// Running ones only.
    pub active_only: bool,
    /// Cedar user id.
    pub user: String,
    /// Host.
    pub host: String,
    /// Session id.
    pub id: String,
    /// The newest so many.
    pub limit: u32,
}

/// Adds a session.
///
/// # Errors
/// The database.
pub async fn open(state: &State, row: SessionRow) -> Result<(), StateError> {
    state
        .call(move |connection| {
            let sql = "INSERT INTO sessions (id, user, host, local_user, client, identity, policy_version, started_ms) VALUES (?,?,?,?,?,?,?,?)";
            let identity = super::tokens::to_json(&row.identity);
            connection.execute(
                sql,
                params![row.id, row.identity.user, row.host, row.local_user, row.client, identity, row.policy_version, row.started_ms],
            )
        })
        .await?;
    Ok(())
}

/// Forgets a session whose opening could not be recorded: it never was.
///
/// # Errors
/// The database.
pub async fn forget(state: &State, id: &str) -> Result<(), StateError> {
    let id = id.to_owned();
    state.call(move |connection| connection.execute("DELETE FROM sessions WHERE id = ?", [id])).await?;
    Ok(())
}

/// Ends a session and its channels.
///
/// # Errors
/// The database.
pub async fn close(state: &State, id: &str, reason: &str) -> Result<(), StateError> {
    let (id, reason) = (id.to_owned(), reason.to_owned());
    state
        .call(move |connection| {
            let now = now_ms();
            let transaction = connection.transaction()?;
            let sql = "UPDATE sessions SET ended_ms = ?, end_reason = ? WHERE id = ? AND ended_ms IS NULL";
            transaction.execute(sql, params![now, reason, id])?;
            transaction.execute(
                "UPDATE channels SET ended_ms = ? WHERE session = ? AND ended_ms IS NULL",
                params![now, id],
            )?;
            transaction.commit()
        })
        .await
}

/// A running session is under another policy version now.
///
/// # Errors
/// The database.
pub async fn under_policy(state: &State, id: &str, version: &str) -> Result<(), StateError> {
    let (id, version) = (id.to_owned(), version.to_owned());
    state
        .call(move |connection| {
            connection.execute("UPDATE sessions SET policy_version = ? WHERE id = ?", [version, id])
        })
        .await?;
    Ok(())
}

/// Adds a channel.
///
/// # Errors
/// The database.
pub async fn open_channel(state: &State, row: ChannelRow) -> Result<(), StateError> {
    state
        .call(move |connection| {
            let sql = "INSERT INTO channels (id, session, what, started_ms) VALUES (?,?,?,?)";
            connection.execute(sql, params![row.id, row.session, row.what, row.started_ms])
        })
        .await?;
    Ok(())
}

/// Ends a channel.
///
/// # Errors
/// The database.
pub async fn close_channel(state: &State, id: &str) -> Result<(), StateError> {
    let id = id.to_owned();
    state
        .call(move |connection| {
            connection.execute(
                "UPDATE channels SET ended_ms = ? WHERE id = ? AND ended_ms IS NULL",
                params![now_ms(), id],
            )
        })
        .await?;
    Ok(())
}

/// Sessions, newest first, with their channels.
///
/// # Errors
/// The database.
pub async fn list(state: &State, wanted: Wanted) -> Result<Vec<(SessionRow, Vec<ChannelRow>)>, StateError> {
    state
        .call(move |connection| {
            let mut sql = "SELECT id, identity, host, local_user, client, policy_version, started_ms, ended_ms, end_reason FROM sessions WHERE 1".to_owned();
            let mut values = Vec::new();
            if wanted.active_only {
                sql.push_str(" AND ended_ms IS NULL");
            }
            for (column, value) in [("user", wanted.user), ("host", wanted.host), ("id", wanted.id)] {
                if !value.is_empty() {
                    sql.push_str(&format!(" AND {column} = ?"));
                    values.push(Value::Text(value));
                }
            }
            // Ids are UUID v7: their order is that of time.
            sql.push_str(" ORDER BY id DESC LIMIT ?");
            values.push(Value::Integer(i64::from(wanted.limit)));
            let mut query = connection.prepare_cached(&sql)?;
            let sessions: Vec<SessionRow> =
                query.query_map(params_from_iter(values), session)?.collect::<rusqlite::Result<_>>()?;
            let mut query = connection
                .prepare_cached("SELECT id, session, what, started_ms, ended_ms FROM channels WHERE session = ? ORDER BY id")?;
            let mut listed = Vec::with_capacity(sessions.len());
            for row in sessions {
                let channels = query.query_map([&row.id], channel)?.collect::<rusqlite::Result<_>>()?;
                listed.push((row, channels));
            }
            Ok(listed)
        })
        .await
}

fn session(row: &Row<'_>) -> rusqlite::Result<SessionRow> {
    let identity: String = row.get(1)?;
    Ok(SessionRow {
        id: row.get(0)?,
        identity: serde_json::from_str(&identity).unwrap_or_default(),
        host: row.get(2)?,
        local_user: row.get(3)?,
        client: row.get(4)?,
        policy_version: row.get(5)?,
        started_ms: row.get(6)?,
        ended_ms: row.get(7)?,
        end_reason: row.get::<_, Option<String>>(8)?.unwrap_or_default(),
    })
}

fn channel(row: &Row<'_>) -> rusqlite::Result<ChannelRow> {
    Ok(ChannelRow {
        id: row.get(0)?,
        session: row.get(1)?,
        what: row.get(2)?,
        started_ms: row.get(3)?,
        ended_ms: row.get(4)?,
    })
}
