//! Proposals and signed statements in the state database.

use crate::state::{State, StateError, now_ms};
use rusqlite::{Connection, OptionalExtension as _, Row, params};
use sallyport_evidence::record::Identity;
use sallyport_policy::Change;

const TABLES: &str = "
CREATE TABLE IF NOT EXISTS policy_proposals (
    id INTEGER PRIMARY KEY AUTOINCREMENT, version TEXT NOT NULL, base TEXT NOT NULL, identity TEXT NOT NULL,
    change TEXT NOT NULL, author TEXT NOT NULL, message TEXT NOT NULL, signatures TEXT NOT NULL, archive BLOB NOT NULL,
    proposed_ms INTEGER NOT NULL, expires_ms INTEGER NOT NULL, settled_ms INTEGER, outcome TEXT NOT NULL DEFAULT ''
) STRICT;
CREATE UNIQUE INDEX IF NOT EXISTS policy_proposals_pending ON policy_proposals (version) WHERE settled_ms IS NULL;
CREATE TABLE IF NOT EXISTS policy_statements (
    version TEXT NOT NULL, created_ms INTEGER NOT NULL, note TEXT NOT NULL, PRIMARY KEY (version, note)
) STRICT;
";

const COLUMNS: &str = "SELECT id, version, base, identity, change, author, message, signatures, archive, proposed_ms, expires_ms
    FROM policy_proposals WHERE settled_ms IS NULL";

/// A push that waits for another person's approval.
#[derive(Clone, Debug)]
pub struct Proposal {
    pub(super) id: i64,
    /// The version proposed.
    pub version: String,
    /// The one that was in force then.
    pub base: String,
    /// Who proposed it.
    pub identity: Identity,
    /// What policy was asked about it.
    pub change: Change,
    /// Who says to have written it.
    pub author: String,
    /// Why.
    pub message: String,
    /// Signed statements that came with it.
    pub signatures: Vec<String>,
    /// The bundle's canonical form.
    pub archive: Vec<u8>,
    /// When, milliseconds since the Unix epoch.
    pub proposed_ms: i64,
    /// Until when it can be approved.
    pub expires_ms: i64,
}

/// Makes the tables.
pub(crate) fn migrate(connection: &Connection) -> rusqlite::Result<()> {
    connection.execute_batch(TABLES)
}

/// Keeps a proposal.
pub(super) async fn propose(state: &State, proposal: Proposal) -> Result<(), StateError> {
    state
        .call(move |connection| {
            let sql = "INSERT INTO policy_proposals
                (version, base, identity, change, author, message, signatures, archive, proposed_ms, expires_ms)
                VALUES (?,?,?,?,?,?,?,?,?,?)";
            let Proposal { version, base, author, message, archive, proposed_ms, expires_ms, .. } = &proposal;
            let (identity, change) = (json(&proposal.identity), json(&proposal.change));
            let signatures = json(&proposal.signatures);
            connection.execute(
                sql,
                params![version, base, identity, change, author, message, signatures, archive, proposed_ms, expires_ms],
            )
        })
        .await
        .map(drop)
}

/// All that wait, oldest first.
pub(super) async fn pending(state: &State) -> Result<Vec<Proposal>, StateError> {
    state
        .call(|connection| {
            let mut statement = connection.prepare(&format!("{COLUMNS} ORDER BY id"))?;
            statement.query_map([], proposal)?.collect()
        })
        .await
}

/// The one of this version, if it waits.
pub(super) async fn pending_of(state: &State, version: &str) -> Result<Option<Proposal>, StateError> {
    let version = version.to_owned();
    state
        .call(move |connection| {
            connection.query_row(&format!("{COLUMNS} AND version = ?"), [version], proposal).optional()
        })
        .await
}

/// Notes what became of a proposal. False: it was settled before.
pub(super) async fn settle(state: &State, id: i64, outcome: &'static str) -> Result<bool, StateError> {
    state
        .call(move |connection| {
            let sql =
                "UPDATE policy_proposals SET settled_ms = ?, outcome = ? WHERE id = ? AND settled_ms IS NULL";
            connection.execute(sql, params![now_ms(), outcome, id])
        })
        .await
        .map(|n| n > 0)
}

/// Keeps the statements of a version that is about to come into force.
pub(super) async fn keep_statements(
    state: &State,
    version: &str,
    statements: Vec<(u64, String)>,
) -> Result<(), StateError> {
    let version = version.to_owned();
    state
        .call(move |connection| {
            let transaction = connection.transaction()?;
            for (created_ms, note) in &statements {
                let sql =
                    "INSERT OR IGNORE INTO policy_statements (version, created_ms, note) VALUES (?,?,?)";
                transaction.execute(sql, params![version, created_ms, note])?;
            }
            transaction.commit()
        })
        .await
}

/// When the newest statement was made whose version has ever come into force.
pub(super) async fn newest_statement(state: &State) -> Result<Option<u64>, StateError> {
    state
        .call(|connection| {
            let sql = "SELECT max(created_ms) FROM policy_statements
                WHERE version IN (SELECT version FROM policies)";
            connection.query_row(sql, [], |row| row.get(0))
        })
        .await
}

/// The statements that came with a version.
pub(super) async fn statements(state: &State, version: &str) -> Result<Vec<String>, StateError> {
    let version = version.to_owned();
    state
        .call(move |connection| {
            let sql = "SELECT note FROM policy_statements WHERE version = ? ORDER BY created_ms";
            connection.prepare(sql)?.query_map([version], |row| row.get(0))?.collect()
        })
        .await
}

fn proposal(row: &Row<'_>) -> rusqlite::Result<Proposal> {
    Ok(Proposal {
        id: row.get(0)?,
        version: row.get(1)?,
        base: row.get(2)?,
        identity: from_json(row, 3)?,
        change: from_json(row, 4)?,
        author: row.get(5)?,
        message: row.get(6)?,
        signatures: from_json(row, 7)?,
        archive: row.get(8)?,
        proposed_ms: row.get(9)?,
        expires_ms: row.get(10)?,
    })
}

fn json(value: &impl serde::Serialize) -> String {
    // Plain structs of texts and numbers always serialise.
    serde_json::to_string(value).unwrap_or_default()
}

fn from_json<T: serde::de::DeserializeOwned>(row: &Row<'_>, column: usize) -> rusqlite::Result<T> {
    let text: String = row.get(column)?;
    serde_json::from_str(&text).map_err(|err| {
        rusqlite::Error::FromSqlConversionFailure(column, rusqlite::types::Type::Text, Box::new(err))
    })
}
