//! Policy versions: every change of policy that was ever in force is kept, and counted by its serial number.
//!
//! A change is written down in three steps, so that the gateway may die between any two of them: [`begin`] notes what is
//! about to happen, then the log has its record, then [`commit`] makes it count. What a start finds begun and not committed
//! ([`begun`]) is committed if the log has its record, and otherwise [`void`]: it never happened.

use super::{State, StateError, canaries};
use bytes::Bytes;
use rusqlite::{Connection, OptionalExtension as _, Row, params, types::Type};

/// Columns that [`stored`] reads, with and without the archive.
const COLUMNS: &str =
    "id, version, commit_id, author, message, pushed_ms, pushed_by, how, restores, signatures";
/// What was in force for everybody.
const FOR_ALL: &str = "state = 'done' AND how <> 'canary'";

/// Turns the tables of schema 1 into those of schema 2.
pub(super) const MIGRATION: &str = "
ALTER TABLE policies ADD COLUMN pushed_by TEXT NOT NULL DEFAULT '';
ALTER TABLE policies ADD COLUMN how TEXT NOT NULL DEFAULT 'push';
ALTER TABLE policies ADD COLUMN restores INTEGER;
ALTER TABLE policies ADD COLUMN signatures TEXT NOT NULL DEFAULT '[]';
ALTER TABLE policies ADD COLUMN state TEXT NOT NULL DEFAULT 'done';
ALTER TABLE policies ADD COLUMN log_from INTEGER NOT NULL DEFAULT 0;
CREATE INDEX policies_version ON policies (version);
";

/// How a version came into force.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum How {
    /// Installed at the first start, from the folder that the configuration names.
    Start,
    /// Pushed.
    #[default]
    Push,
    /// An earlier version, again.
    Rollback,
    /// On some hosts or for some sessions only.
    Canary,
    /// A canary that went well.
    Promotion,
    /// The version before a canary, again.
    Abort,
}

/// A change of policy.
#[derive(Clone, Debug, Default)]
pub struct Stored {
    /// Counts changes; 0 before it is stored.
    pub serial: u64,
    /// Hex SHA-256 of the archive.
    pub version: String,
    /// Git commit, or empty.
    pub commit: String,
    /// Who wrote it, as Git says.
    pub author: String,
    /// Why.
    pub message: String,
    /// When, milliseconds since the Unix epoch.
    pub pushed_ms: i64,
    /// Who changed it, as proved; empty: the gateway itself.
    pub pushed_by: String,
    /// How it came into force.
    pub how: How,
    /// The change whose content it has again.
    pub restores: Option<u64>,
    /// What authors signed, as it came with the push.
    pub signatures: Vec<String>,
    /// The bundle's canonical form. Empty in lists.
    pub archive: Bytes,
}

/// A change that was begun and neither committed nor voided.
#[derive(Clone, Debug)]
pub struct Begun {
    /// The change.
    pub stored: Stored,
    /// Its record, if there is one, is at this index of the log or behind it.
    pub log_from: u64,
}

impl How {
    const ALL: [Self; 6] =
        [Self::Start, Self::Push, Self::Rollback, Self::Canary, Self::Promotion, Self::Abort];

    /// As kept and shown.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Start => "start",
            Self::Push => "push",
            Self::Rollback => "rollback",
            Self::Canary => "canary",
            Self::Promotion => "promotion",
            Self::Abort => "abort",
        }
    }
}

/// Notes a change that is about to happen; gives its serial number. A canary's plan is noted with it.
///
/// # Errors
/// The database.
pub async fn begin(
    state: &State,
    stored: Stored,
    plan: Option<canaries::Plan>,
    log_from: u64,
) -> Result<u64, StateError> {
    state
        .call(move |connection| {
            let transaction = connection.transaction()?;
            let serial = insert(&transaction, &stored, log_from)?;
            if let Some(plan) = plan {
                canaries::insert(&transaction, serial, &plan)?;
            }
            transaction.commit()?;
            Ok(serial)
        })
        .await
}

fn insert(connection: &Connection, stored: &Stored, log_from: u64) -> rusqlite::Result<u64> {
    let Stored { version, commit, author, message, pushed_ms, pushed_by, how, restores, .. } = stored;
    let signatures = serde_json::to_string(&stored.signatures).unwrap_or_else(|_| "[]".to_owned());
    let sql =
        "INSERT INTO policies (version, commit_id, author, message, pushed_ms, pushed_by, how, restores,
                 signatures, archive, state, log_from) VALUES (?,?,?,?,?,?,?,?,?,?,'begun',?)";
    connection.execute(
        sql,
        params![
            version,
            commit,
            author,
            message,
            pushed_ms,
            pushed_by,
            how.name(),
            restores,
            signatures,
            &stored.archive[..],
            log_from
        ],
    )?;
    connection.query_row("SELECT last_insert_rowid()", [], |row| row.get(0))
}

/// Makes a change count. One that ends a canary ends it in the same transaction.
///
/// # Errors
/// The database.
pub async fn commit(state: &State, serial: u64) -> Result<(), StateError> {
    state
        .call(move |connection| {
            let transaction = connection.transaction()?;
            transaction.execute("UPDATE policies SET state = 'done' WHERE id = ?", [serial])?;
            let sql = "SELECT how, message, pushed_ms FROM policies WHERE id = ?";
            let (how, why, at_ms): (How, String, i64) =
                transaction.query_row(sql, [serial], |row| Ok((how(row, 0)?, row.get(1)?, row.get(2)?)))?;
            match how {
                How::Promotion => canaries::end(&transaction, "promoted", &why, at_ms)?,
                How::Abort => canaries::end(&transaction, "aborted", &why, at_ms)?,
                How::Start | How::Push | How::Rollback | How::Canary => {}
            }
            transaction.commit()
        })
        .await
}

/// Says that a change never happened. Its serial number is not used again.
///
/// # Errors
/// The database.
pub async fn void(state: &State, serial: u64) -> Result<(), StateError> {
    state
        .call(move |connection| {
            connection.execute("UPDATE policies SET state = 'void' WHERE id = ?", [serial]).map(drop)
        })
        .await
}

/// What was begun, oldest first.
///
/// # Errors
/// The database.
pub async fn begun(state: &State) -> Result<Vec<Begun>, StateError> {
    state
        .call(|connection| {
            let sql = format!(
                "SELECT {COLUMNS}, archive, log_from FROM policies WHERE state = 'begun' ORDER BY id"
            );
            let mut query = connection.prepare(&sql)?;
            let rows =
                query.query_map([], |row| Ok(Begun { stored: whole(row)?, log_from: row.get(11)? }))?;
            rows.collect()
        })
        .await
}

/// The version in force for everybody: the one that was changed to last. A canary is not.
///
/// # Errors
/// The database.
pub async fn in_force(state: &State) -> Result<Option<Stored>, StateError> {
    one(state, format!("{FOR_ALL} ORDER BY id DESC LIMIT 1"), String::new()).await
}

/// The newest change to a version, by its full name.
///
/// # Errors
/// The database.
pub async fn by_version(state: &State, version: &str) -> Result<Option<Stored>, StateError> {
    one(state, "state = 'done' AND version = ?1 ORDER BY id DESC LIMIT 1".to_owned(), version.to_owned())
        .await
}

/// A change by its serial number.
///
/// # Errors
/// The database.
pub async fn by_serial(state: &State, serial: u64) -> Result<Option<Stored>, StateError> {
    one(state, "state = 'done' AND id = ?1".to_owned(), serial.to_string()).await
}

/// What was in force for everybody before a version was, so that rolling back twice goes two versions back.
///
/// # Errors
/// The database.
pub async fn before(state: &State, current: &Stored) -> Result<Option<Stored>, StateError> {
    let origin = current.restores.unwrap_or(current.serial);
    let filter = format!("{FOR_ALL} AND id < {origin} AND version <> ?1 ORDER BY id DESC LIMIT 1");
    one(state, filter, current.version.clone()).await
}

/// The versions whose names begin so, newest first.
///
/// # Errors
/// The database.
pub async fn beginning_with(state: &State, digits: &str) -> Result<Vec<String>, StateError> {
    let digits = digits.to_owned();
    state
        .call(move |connection| {
            let sql =
                "SELECT version FROM policies WHERE state = 'done' AND substr(version, 1, length(?1)) = ?1
                         GROUP BY version ORDER BY max(id) DESC LIMIT 10";
            let mut query = connection.prepare_cached(sql)?;
            query.query_map([digits], |row| row.get(0))?.collect()
        })
        .await
}

/// All changes, newest first, without their archives.
///
/// # Errors
/// The database.
pub async fn list(state: &State, limit: u32) -> Result<Vec<Stored>, StateError> {
    state
        .call(move |connection| {
            let sql = format!("SELECT {COLUMNS} FROM policies WHERE state = 'done' ORDER BY id DESC LIMIT ?");
            let mut query = connection.prepare_cached(&sql)?;
            query.query_map([limit], stored)?.collect()
        })
        .await
}

/// The only one that fits.
async fn one(state: &State, filter: String, value: String) -> Result<Option<Stored>, StateError> {
    state
        .call(move |connection| {
            let sql = format!("SELECT {COLUMNS}, archive FROM policies WHERE {filter}");
            let mut query = connection.prepare_cached(&sql)?;
            let values: &[&dyn rusqlite::ToSql] = if query.parameter_count() == 0 { &[] } else { &[&value] };
            query.query_row(values, whole).optional()
        })
        .await
}

fn whole(row: &Row<'_>) -> rusqlite::Result<Stored> {
    Ok(Stored { archive: row.get::<_, Vec<u8>>(10)?.into(), ..stored(row)? })
}

fn stored(row: &Row<'_>) -> rusqlite::Result<Stored> {
    let signatures: String = row.get(9)?;
    let signatures = serde_json::from_str(&signatures)
        .map_err(|err| rusqlite::Error::FromSqlConversionFailure(9, Type::Text, Box::new(err)))?;
    Ok(Stored {
        serial: row.get(0)?,
        version: row.get(1)?,
        commit: row.get(2)?,
        author: row.get(3)?,
        message: row.get(4)?,
        pushed_ms: row.get(5)?,
        pushed_by: row.get(6)?,
        how: how(row, 7)?,
        restores: row.get(8)?,
        signatures,
        archive: Bytes::new(),
    })
}

fn how(row: &Row<'_>, column: usize) -> rusqlite::Result<How> {
    let name: String = row.get(column)?;
    let unknown = || {
        let what = format!("`{name}` is no way for a policy to come into force");
        rusqlite::Error::FromSqlConversionFailure(column, Type::Text, what.into())
    };
    How::ALL.into_iter().find(|how| how.name() == name).ok_or_else(unknown)
}
