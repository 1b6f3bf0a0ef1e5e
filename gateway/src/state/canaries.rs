//! Canaries: versions that are in force on some hosts, or for some sessions, until they are promoted or aborted.
//!
//! Each belongs to a change in `policies`, whose serial number it has. At most one runs.

use super::{State, StateError};
use rusqlite::{Connection, OptionalExtension as _, Row, params, types::Type};

/// Turns the tables of schema 1 into those of schema 2.
pub(super) const MIGRATION: &str = "
CREATE TABLE canaries (
    serial INTEGER PRIMARY KEY REFERENCES policies (id), plan TEXT NOT NULL, state TEXT NOT NULL DEFAULT 'running',
    why TEXT NOT NULL DEFAULT '', ended_ms INTEGER, denials INTEGER NOT NULL DEFAULT 0,
    decisions INTEGER NOT NULL DEFAULT 0
) STRICT;
";

/// What is tried where, and how it ends.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Plan {
    /// Hosts; none: all.
    pub hosts: Vec<String>,
    /// How many of a thousand sessions there.
    pub share: u16,
    /// It is promoted then, unless too much was denied.
    pub until_ms: i64,
    /// More denials abort it.
    pub max_denials: Option<u64>,
    /// More denials of a thousand decisions abort it.
    pub max_denial_ratio: Option<u32>,
}

/// A canary.
#[derive(Clone, Debug)]
pub struct Canary {
    /// Of its change.
    pub serial: u64,
    /// Its version.
    pub version: String,
    /// When it was started.
    pub started_ms: i64,
    /// Its records begin at this index of the log.
    pub log_from: u64,
    /// What is tried.
    pub plan: Plan,
    /// `running`, `promoted` or `aborted`.
    pub state: String,
    /// Why it ended.
    pub why: String,
    /// When it ended.
    pub ended_ms: Option<i64>,
    /// What was denied under it, as counted at its end.
    pub denials: u64,
    /// What was decided under it, as counted at its end.
    pub decisions: u64,
}

/// The canary that runs.
///
/// # Errors
/// The database.
pub async fn running(state: &State) -> Result<Option<Canary>, StateError> {
    newest(state, " AND c.ended_ms IS NULL").await
}

/// The newest canary, running or not.
///
/// # Errors
/// The database.
pub async fn last(state: &State) -> Result<Option<Canary>, StateError> {
    newest(state, "").await
}

/// Notes what was counted: what is shown when it has ended.
///
/// # Errors
/// The database.
pub async fn counted(state: &State, serial: u64, denials: u64, decisions: u64) -> Result<(), StateError> {
    state
        .call(move |connection| {
            let sql = "UPDATE canaries SET denials = ?, decisions = ? WHERE serial = ?";
            connection.execute(sql, params![denials, decisions, serial]).map(drop)
        })
        .await
}

pub(super) fn insert(connection: &Connection, serial: u64, plan: &Plan) -> rusqlite::Result<()> {
    let plan = serde_json::to_string(plan).unwrap_or_default();
    connection.execute("INSERT INTO canaries (serial, plan) VALUES (?, ?)", params![serial, plan]).map(drop)
}

pub(super) fn end(connection: &Connection, state: &str, why: &str, at_ms: i64) -> rusqlite::Result<()> {
    let sql = "UPDATE canaries SET state = ?, why = ?, ended_ms = ? WHERE ended_ms IS NULL";
    connection.execute(sql, params![state, why, at_ms]).map(drop)
}

async fn newest(state: &State, filter: &'static str) -> Result<Option<Canary>, StateError> {
    state
        .call(move |connection| {
            let sql = format!(
                "SELECT c.serial, p.version, p.pushed_ms, p.log_from, c.plan, c.state, c.why, c.ended_ms, c.denials,
                   c.decisions FROM canaries c JOIN policies p ON p.id = c.serial WHERE p.state = 'done'{filter}
                   ORDER BY c.serial DESC LIMIT 1"
            );
            connection.query_row(&sql, [], canary).optional()
        })
        .await
}

fn canary(row: &Row<'_>) -> rusqlite::Result<Canary> {
    let plan: String = row.get(4)?;
    let plan = serde_json::from_str(&plan)
        .map_err(|err| rusqlite::Error::FromSqlConversionFailure(4, Type::Text, Box::new(err)))?;
    Ok(Canary {
        serial: row.get(0)?,
        version: row.get(1)?,
        started_ms: row.get(2)?,
        log_from: row.get(3)?,
        plan,
        state: row.get(5)?,
        why: row.get(6)?,
        ended_ms: row.get(7)?,
        denials: row.get(8)?,
        decisions: row.get(9)?,
    })
}
