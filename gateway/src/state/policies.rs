//! Policy versions: every one that was ever in force is kept.

use super::{State, StateError};
use rusqlite::{OptionalExtension as _, Row, params};

const COLUMNS: &str = "SELECT version, commit_id, author, message, pushed_ms, archive FROM policies";

/// A version as pushed.
#[derive(Clone, Debug)]
pub struct Stored {
    /// Hex SHA-256 of the archive.
    pub version: String,
    /// Git commit, or empty.
    pub commit: String,
    /// Who pushed it.
    pub author: String,
    /// Their message.
    pub message: String,
    /// When, milliseconds since the Unix epoch.
    pub pushed_ms: i64,
    /// The bundle's canonical form.
    pub archive: Vec<u8>,
}

/// Puts a version into force.
///
/// # Errors
/// The database.
pub async fn push(state: &State, stored: Stored) -> Result<(), StateError> {
    state
        .call(move |connection| {
            let Stored { version, commit, author, message, pushed_ms, archive } = stored;
            let sql = "INSERT INTO policies (version, commit_id, author, message, pushed_ms, archive) VALUES (?,?,?,?,?,?)";
            connection.execute(sql, params![version, commit, author, message, pushed_ms, archive])
        })
        .await?;
    Ok(())
}

/// The version in force: the one pushed last.
///
/// # Errors
/// The database.
pub async fn in_force(state: &State) -> Result<Option<Stored>, StateError> {
    state
        .call(|connection| {
            connection.query_row(&format!("{COLUMNS} ORDER BY id DESC LIMIT 1"), [], stored).optional()
        })
        .await
}

/// A version by its full name.
///
/// # Errors
/// The database.
pub async fn by_version(state: &State, version: &str) -> Result<Option<Stored>, StateError> {
    let version = version.to_owned();
    state
        .call(move |connection| {
            let sql = format!("{COLUMNS} WHERE version = ? ORDER BY id DESC LIMIT 1");
            connection.query_row(&sql, [version], stored).optional()
        })
        .await
}

fn stored(row: &Row<'_>) -> rusqlite::Result<Stored> {
    Ok(Stored {
        version: row.get(0)?,
        commit: row.get(1)?,
        author: row.get(2)?,
        message: row.get(3)?,
        pushed_ms: row.get(4)?,
        archive: row.get(5)?,
    })
}
