//! Sensors, their certificates, and what an operator did while the gateway may not have been running.

use super::{State, StateError, now_ms};
use rusqlite::{OptionalExtension as _, params};

/// A sensor as last seen.
#[derive(Clone, Debug, Default)]
pub struct Known {
    /// Host name.
    pub host: String,
    /// `lsm`, `tracepoint`, or empty.
    pub mode: String,
    /// Kernel release, or empty.
    pub kernel: String,
}

/// A sensor joined (again): it is no longer revoked; certificates that were revoked stay so.
///
/// # Errors
/// The database.
pub async fn joined(state: &State, host: &str) -> Result<(), StateError> {
    let host = host.to_owned();
    state
        .call(move |connection| {
            let sql = "INSERT INTO sensors (host, joined_ms) VALUES (?,?) ON CONFLICT (host) DO UPDATE
                       SET joined_ms = excluded.joined_ms, revoked_ms = NULL, revoked_why = NULL";
            connection.execute(sql, params![host, now_ms()])
        })
        .await?;
    Ok(())
}

/// A certificate was issued.
///
/// # Errors
/// The database.
pub async fn certified(state: &State, serial: &str, host: &str, expires_ms: i64) -> Result<(), StateError> {
    let (serial, host) = (serial.to_owned(), host.to_owned());
    state
        .call(move |connection| {
            connection
                .execute("DELETE FROM certificates WHERE expires_ms < ?", [now_ms() - 30 * 86_400_000])?;
            let sql = "INSERT INTO certificates (serial, host, expires_ms) VALUES (?,?,?)";
            connection.execute(sql, params![serial, host, expires_ms])
        })
        .await?;
    Ok(())
}

/// Is this certificate one that was issued to that host, and neither it nor the host revoked?
///
/// # Errors
/// The database.
pub async fn is_valid(state: &State, serial: &str, host: &str) -> Result<bool, StateError> {
    let (serial, host) = (serial.to_owned(), host.to_owned());
    state
        .call(move |connection| {
            let sql = "SELECT 1 FROM certificates c JOIN sensors s ON s.host = c.host
                       WHERE c.serial = ? AND c.host = ? AND c.revoked_ms IS NULL AND s.revoked_ms IS NULL";
            Ok(connection.query_row(sql, params![serial, host], |_| Ok(())).optional()?.is_some())
        })
        .await
}

/// Revokes a host's sensor and all its certificates; false: there is none.
///
/// # Errors
/// The database.
pub async fn revoke(state: &State, host: &str, reason: &str) -> Result<bool, StateError> {
    let (host, reason) = (host.to_owned(), reason.to_owned());
    state
        .call(move |connection| {
            let transaction = connection.transaction()?;
            let now = now_ms();
            let sql = "UPDATE sensors SET revoked_ms = ?, revoked_why = ? WHERE host = ?";
            let known = transaction.execute(sql, params![now, reason, host])? > 0;
            let sql = "UPDATE certificates SET revoked_ms = ? WHERE host = ? AND revoked_ms IS NULL";
            transaction.execute(sql, params![now, host])?;
            transaction.execute(
                "UPDATE join_tokens SET used_ms = ? WHERE host = ? AND used_ms IS NULL",
                params![now, host],
            )?;
            transaction.commit()?;
            Ok(known)
        })
        .await
}

/// Hosts whose sensors are revoked.
///
/// # Errors
/// The database.
pub async fn revoked(state: &State) -> Result<Vec<String>, StateError> {
    state
        .call(|connection| {
            let mut query =
                connection.prepare_cached("SELECT host FROM sensors WHERE revoked_ms IS NOT NULL")?;
            query.query_map([], |row| row.get(0))?.collect()
        })
        .await
}

/// Remembers what a sensor said about its computer.
///
/// # Errors
/// The database.
pub async fn seen(state: &State, known: Known) -> Result<(), StateError> {
    state
        .call(move |connection| {
            let sql = "UPDATE sensors SET mode = ?, kernel = ?, last_seen_ms = ? WHERE host = ?";
            connection.execute(sql, params![known.mode, known.kernel, now_ms(), known.host])
        })
        .await?;
    Ok(())
}

/// All sensors that joined and are not revoked.
///
/// # Errors
/// The database.
pub async fn all(state: &State) -> Result<Vec<Known>, StateError> {
    state
        .call(|connection| {
            let sql = "SELECT host, mode, kernel FROM sensors WHERE revoked_ms IS NULL ORDER BY host";
            let mut query = connection.prepare_cached(sql)?;
            let rows = query.query_map([], |row| {
                Ok(Known { host: row.get(0)?, mode: row.get(1)?, kernel: row.get(2)? })
            })?;
            rows.collect()
        })
        .await
}

/// Leaves a note of what an operator did on the command line; the running gateway puts it on the record.
///
/// # Errors
/// The database.
pub async fn note_act(state: &State, host: &str, message: &str) -> Result<(), StateError> {
    let (host, message) = (host.to_owned(), message.to_owned());
    state
        .call(move |connection| {
            connection
                .execute("INSERT INTO operator_acts (host, message) VALUES (?,?)", params![host, message])
        })
        .await?;
    Ok(())
}

/// Notes not on the record yet: id, host, message.
///
/// # Errors
/// The database.
pub async fn acts(state: &State) -> Result<Vec<(i64, String, String)>, StateError> {
    state
        .call(|connection| {
            let mut query =
                connection.prepare_cached("SELECT id, host, message FROM operator_acts ORDER BY id")?;
            query.query_map([], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?.collect()
        })
        .await
}

/// The note is on the record.
///
/// # Errors
/// The database.
pub async fn act_recorded(state: &State, id: i64) -> Result<(), StateError> {
    state.call(move |connection| connection.execute("DELETE FROM operator_acts WHERE id = ?", [id])).await?;
    Ok(())
}
