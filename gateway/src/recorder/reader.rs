//! Reading and searching the log: a few connections of their own, never in the writer's way.

use bytes::Bytes;
use rusqlite::{Connection, OpenFlags, OptionalExtension as _, params_from_iter, types::Value};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::Semaphore;

/// Readers at once: more would only contend for the disk.
const READERS: usize = 4;

/// One entry of the log.
#[derive(Clone, Debug)]
pub struct Entry {
    /// Leaf index.
    pub index: u64,
    /// The record's bytes.
    pub record: Bytes,
}

/// Which entries; empty fields match all.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    /// Session id.
    pub session: String,
    /// Cedar user id.
    pub user: String,
    /// Host.
    pub host: String,
    /// Kind.
    pub kind: String,
    /// Outcome.
    pub outcome: String,
}

/// The log cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("the evidence log cannot be read")]
pub struct ReadError(#[from] rusqlite::Error);

/// Handle for reading. Cheap to clone.
#[derive(Clone)]
pub struct Reader {
    path: Arc<Path>,
    idle: Arc<Mutex<Vec<Connection>>>,
    permits: Arc<Semaphore>,
}

impl Reader {
    pub(super) fn open(path: &Path) -> rusqlite::Result<Self> {
        let first = connect(path)?;
        Ok(Self {
            path: path.into(),
            idle: Arc::new(Mutex::new(vec![first])),
            permits: Arc::new(Semaphore::new(READERS)),
        })
    }

    /// Entries with `from <= index < to` that match, oldest first, `limit` at most.
    ///
    /// # Errors
    /// The database.
    pub async fn range(
        &self,
        filter: &Filter,
        from: u64,
        to: u64,
        limit: usize,
    ) -> Result<Vec<Entry>, ReadError> {
        let filter = filter.clone();
        self.with(move |connection| select(connection, &filter, from, to, limit, "ASC")).await
    }

    /// The newest `limit` entries below `to` that match, oldest first.
    ///
    /// # Errors
    /// The database.
    pub async fn newest(&self, filter: &Filter, to: u64, limit: usize) -> Result<Vec<Entry>, ReadError> {
        let filter = filter.clone();
        let mut entries =
            self.with(move |connection| select(connection, &filter, 0, to, limit, "DESC")).await?;
        entries.reverse();
        Ok(entries)
    }

    /// The newest checkpoint's note.
    ///
    /// # Errors
    /// The database.
    pub async fn checkpoint(&self) -> Result<Option<String>, ReadError> {
        self.with(|connection| {
            connection
                .query_row("SELECT note FROM checkpoints ORDER BY size DESC LIMIT 1", [], |row| row.get(0))
                .optional()
        })
        .await
    }

    /// How many things were blocked or killed in a session.
    ///
    /// # Errors
    /// The database.
    pub async fn denials(&self, session: String) -> Result<u32, ReadError> {
        self.with(move |connection| {
            let sql = "SELECT count(*) FROM leaves WHERE session = ? AND outcome IN ('blocked', 'killed')";
            connection.prepare_cached(sql)?.query_row([session], |row| row.get(0))
        })
        .await
    }

    async fn with<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Connection) -> rusqlite::Result<T> + Send + 'static,
    ) -> Result<T, ReadError> {
        // The semaphore is never closed.
        let _permit = self.permits.acquire().await;
        let (path, idle) = (self.path.clone(), self.idle.clone());
        let done = tokio::task::spawn_blocking(move || {
            let ready = idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
            let connection = match ready {
                Some(connection) => connection,
                None => connect(&path)?,
            };
            let result = work(&connection);
            idle.lock().unwrap_or_else(PoisonError::into_inner).push(connection);
            result
        });
        done.await.unwrap_or(Err(rusqlite::Error::InvalidQuery)).map_err(ReadError)
    }
}

/// A connection that cannot write.
///
/// # Errors
/// The file cannot be opened.
pub fn connect(path: &Path) -> rusqlite::Result<Connection> {
    let path: PathBuf = path.to_owned();
    let connection = Connection::open_with_flags(
        path,
        OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX,
    )?;
    connection.busy_timeout(std::time::Duration::from_secs(10))?;
    Ok(connection)
}

fn select(
    connection: &Connection,
    filter: &Filter,
    from: u64,
    to: u64,
    limit: usize,
    order: &str,
) -> rusqlite::Result<Vec<Entry>> {
    let clamp = |n: u64| Value::Integer(i64::try_from(n).unwrap_or(i64::MAX));
    let mut sql = "SELECT idx, record FROM leaves WHERE idx >= ? AND idx < ?".to_owned();
    let mut values = vec![clamp(from), clamp(to)];
    let Filter { session, user, host, kind, outcome } = filter;
    for (column, value) in
        [("session", session), ("user", user), ("host", host), ("kind", kind), ("outcome", outcome)]
    {
        if !value.is_empty() {
            sql.push_str(&format!(" AND {column} = ?"));
            values.push(Value::Text(value.clone()));
        }
    }
    sql.push_str(&format!(" ORDER BY idx {order} LIMIT ?"));
    values.push(clamp(limit as u64));
    let mut query = connection.prepare_cached(&sql)?;
    let rows = query.query_map(params_from_iter(values), |row| {
        Ok(Entry { index: row.get(0)?, record: Bytes::from(row.get::<_, Vec<u8>>(1)?) })
    })?;
    rows.collect()
}
