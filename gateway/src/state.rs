//! The state database: one SQLite file, one connection, one thread that owns it.
//!
//! Callers send closures and await the answer, so no lock is held over an await and writes are serial.
//! WAL lets `join-token` and `revoke-sensor` write from another process while the gateway runs.

pub mod canaries;
pub mod policies;
pub mod sensors;
pub mod sessions;
pub mod tokens;

use rusqlite::Connection;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::sync::{mpsc, oneshot};

/// Closures waiting for the connection. A caller that finds it full waits: state calls are rare and short.
const QUEUE: usize = 256;
/// Schema of the tables below, in `PRAGMA user_version`.
const VERSION: i64 = 2;

/// Schema 1; what came later is in the modules' migrations.
const TABLES: &str = "
CREATE TABLE sensors (
    host TEXT PRIMARY KEY, joined_ms INTEGER NOT NULL, revoked_ms INTEGER, revoked_why TEXT,
    mode TEXT NOT NULL DEFAULT '', kernel TEXT NOT NULL DEFAULT '', last_seen_ms INTEGER
) STRICT;
CREATE TABLE join_tokens (hash BLOB PRIMARY KEY, host TEXT NOT NULL, expires_ms INTEGER NOT NULL, used_ms INTEGER) STRICT;
CREATE TABLE certificates (serial TEXT PRIMARY KEY, host TEXT NOT NULL, expires_ms INTEGER NOT NULL, revoked_ms INTEGER) STRICT;
CREATE TABLE policies (
    id INTEGER PRIMARY KEY AUTOINCREMENT, version TEXT NOT NULL, commit_id TEXT NOT NULL, author TEXT NOT NULL,
    message TEXT NOT NULL, pushed_ms INTEGER NOT NULL, archive BLOB NOT NULL
) STRICT;
CREATE TABLE sessions (
    id TEXT PRIMARY KEY, user TEXT NOT NULL, host TEXT NOT NULL, local_user TEXT NOT NULL, client TEXT NOT NULL,
    identity TEXT NOT NULL, policy_version TEXT NOT NULL, started_ms INTEGER NOT NULL, ended_ms INTEGER, end_reason TEXT
) STRICT;
CREATE INDEX sessions_open ON sessions (id) WHERE ended_ms IS NULL;
CREATE TABLE channels (
    id TEXT PRIMARY KEY, session TEXT NOT NULL REFERENCES sessions (id), what TEXT NOT NULL,
    started_ms INTEGER NOT NULL, ended_ms INTEGER
) STRICT;
CREATE INDEX channels_session ON channels (session);
CREATE TABLE api_tokens (hash BLOB PRIMARY KEY, identity TEXT NOT NULL, expires_ms INTEGER NOT NULL) STRICT;
CREATE TABLE operator_acts (id INTEGER PRIMARY KEY AUTOINCREMENT, host TEXT NOT NULL, message TEXT NOT NULL) STRICT;
";

type Job = Box<dyn FnOnce(&mut Connection) + Send>;

/// The state could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// The file cannot be opened or migrated.
    #[error("cannot open the state database `{path}`")]
    Open {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        err: rusqlite::Error,
    },
    /// The file cannot be made private.
    #[error("cannot make the state database `{path}` private")]
    Private {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        err: std::io::Error,
    },
    /// A newer program wrote it.
    #[error(
        "the state database `{path}` was written by a newer version of sallyport-gateway; start that version"
    )]
    Newer {
        /// The file.
        path: PathBuf,
    },
    /// A statement failed.
    #[error("the state database refused a statement")]
    Statement(#[from] rusqlite::Error),
    /// The thread is gone: the gateway is stopping.
    #[error("the state database is closed")]
    Closed,
}

/// Handle to the state database. Cheap to clone; the last one closes it.
#[derive(Clone)]
pub struct State {
    jobs: mpsc::Sender<Job>,
}

impl State {
    /// Opens (creating it, mode 0600) and migrates the database file.
    ///
    /// # Errors
    /// The file cannot be opened, or its schema is newer than this program.
    pub fn open(path: &Path) -> Result<Self, StateError> {
        let fail = |err| StateError::Open { path: path.to_owned(), err };
        crate::files::touch_private(path)
            .map_err(|err| StateError::Private { path: path.to_owned(), err })?;
        let mut connection = Connection::open(path).map_err(fail)?;
        let version = configure(&mut connection).map_err(fail)?;
        if version > VERSION {
            return Err(StateError::Newer { path: path.to_owned() });
        }
        let (jobs, mut queue) = mpsc::channel::<Job>(QUEUE);
        std::thread::spawn(move || {
            while let Some(job) = queue.blocking_recv() {
                job(&mut connection);
            }
        });
        Ok(Self { jobs })
    }

    /// Runs `work` on the connection's thread. Several statements that belong together use
    /// `connection.transaction()`.
    ///
    /// # Errors
    /// What `work` returns, or the database is closed.
    pub async fn call<T, F>(&self, work: F) -> Result<T, StateError>
    where
        T: Send + 'static,
        F: FnOnce(&mut Connection) -> rusqlite::Result<T> + Send + 'static,
    {
        let (answer, answered) = oneshot::channel();
        let job: Job = Box::new(move |connection| {
            // The caller may have gone; its work was still done.
            let _ = answer.send(work(connection));
        });
        self.jobs.send(job).await.map_err(|_| StateError::Closed)?;
        Ok(answered.await.map_err(|_| StateError::Closed)??)
    }
}

/// Settings and tables; gives the file's version.
fn configure(connection: &mut Connection) -> rusqlite::Result<i64> {
    connection.busy_timeout(Duration::from_secs(10))?;
    connection.pragma_update(None, "journal_mode", "WAL")?;
    connection.pragma_update(None, "synchronous", "FULL")?;
    connection.pragma_update(None, "foreign_keys", true)?;
    let transaction = connection.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)?;
    let version: i64 = transaction.pragma_query_value(None, "user_version", |row| row.get(0))?;
    if version == 0 {
        transaction.execute_batch(TABLES)?;
    }
    if version < 2 {
        transaction.execute_batch(policies::MIGRATION)?;
        transaction.execute_batch(canaries::MIGRATION)?;
        transaction.pragma_update(None, "user_version", VERSION)?;
    }
    if version <= VERSION {
        crate::identity::store::migrate(&transaction)?;
        crate::changes::table::migrate(&transaction)?;
    }
    transaction.commit()?;
    Ok(version)
}

/// Milliseconds since the Unix epoch, as the tables and the contract keep times.
#[must_use]
pub fn to_ms(time: SystemTime) -> i64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

/// Now, in milliseconds since the Unix epoch.
#[must_use]
pub fn now_ms() -> i64 {
    to_ms(SystemTime::now())
}

#[cfg(test)]
mod tests;
