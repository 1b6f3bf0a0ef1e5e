//! The spool: records on disk until the gateway has them on its own disk.
//!
//! SQLite in WAL mode with `synchronous=FULL`, one writer thread, one commit (one fsync) for everything that
//! waits. Records are numbered here, so numbers have no gaps: a record that finds the spool full is never numbered, only
//! counted, and the count is itself a record. The last fifth of the space is kept for decisions against
//! somebody, sessions, policy and loss; what was simply allowed stops before that.
//!
//! A failed write is fatal: after a failed fsync nobody knows what is on the disk.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use bytes::Bytes;
use rusqlite::{Connection, OptionalExtension, params};
use sallyport_evidence::record::{Kind, Loss, Outcome, Record, Source};
use tokio::sync::{mpsc, oneshot, watch};

/// Requests that may wait for the writer. Each holds at most one batch of kernel events, so this bounds memory; when it
/// is full the ring buffer is not read, and loss is counted by the kernel.
const QUEUE: usize = 64;
/// Records committed together at most.
const COMMIT: usize = 4_096;
/// Between two loss records about a full spool.
const REPORT_EVERY: Duration = Duration::from_secs(10);

/// Why the spool cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SpoolError {
    /// The file cannot be opened or is damaged.
    #[error("the spool `{path}` cannot be used")]
    Open {
        /// The file.
        path: PathBuf,
        /// Cause.
        #[source]
        source: rusqlite::Error,
    },
    /// The writer has stopped after a failed write.
    #[error("the spool has stopped: a write to it failed")]
    Stopped,
}

/// Where records are kept. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Spool {
    requests: mpsc::Sender<Request>,
    newest: watch::Receiver<u64>,
}

/// A run of records of one boot, without gaps.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Batch {
    /// Boot id.
    pub boot: String,
    /// Number of the first.
    pub first_seq: u64,
    /// Stored bytes.
    pub records: Vec<Bytes>,
    /// Place of the last one in the spool; the next read goes on after it.
    pub place: i64,
}

enum Request {
    Append(Vec<Record>, Option<oneshot::Sender<()>>),
    Read { after: i64, limit: usize, reply: oneshot::Sender<Option<Batch>> },
    Forget { boot: String, up_to: u64 },
    Note { name: String, value: Option<u64>, reply: oneshot::Sender<u64> },
}

impl std::fmt::Debug for Request {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Request")
    }
}

impl Spool {
    /// Opens or makes the spool and starts its writer. `maker` is the host's name, `boot` this boot's id, `limit` how many
    /// bytes of records it may hold.
    ///
    /// # Errors
    /// The file cannot be used.
    pub fn open(path: &Path, maker: &str, boot: &str, limit: u64) -> Result<Self, SpoolError> {
        let writer = Writer::open(path, maker, boot, limit)
            .map_err(|source| SpoolError::Open { path: path.into(), source })?;
        let (requests, queue) = mpsc::channel(QUEUE);
        let (newest, newest_seen) = watch::channel(writer.seq);
        std::thread::spawn(move || writer.run(queue, &newest));
        Ok(Self { requests, newest: newest_seen })
    }

    /// Appends records; their `source` is filled in. Waits only while the queue is full.
    ///
    /// # Errors
    /// The writer has stopped.
    pub async fn append(&self, records: Vec<Record>) -> Result<(), SpoolError> {
        self.send(Request::Append(records, None)).await
    }

    /// Appends records and returns when they are on disk.
    ///
    /// # Errors
    /// The writer has stopped.
    pub async fn append_durably(&self, records: Vec<Record>) -> Result<(), SpoolError> {
        let (done, committed) = oneshot::channel();
        self.send(Request::Append(records, Some(done))).await?;
        committed.await.map_err(|_| SpoolError::Stopped)
    }

    /// The oldest records after a place (0: from the start), at most `limit` bytes and one boot; none: there are no more.
    ///
    /// # Errors
    /// The writer has stopped.
    pub async fn read(&self, after: i64, limit: usize) -> Result<Option<Batch>, SpoolError> {
        let (reply, answer) = oneshot::channel();
        self.send(Request::Read { after, limit, reply }).await?;
        answer.await.map_err(|_| SpoolError::Stopped)
    }

    /// Forgets records that the gateway has on disk.
    ///
    /// # Errors
    /// The writer has stopped.
    pub async fn forget(&self, boot: String, up_to: u64) -> Result<(), SpoolError> {
        self.send(Request::Forget { boot, up_to }).await
    }

    /// A number kept beside the records (for counters that must survive a restart): sets it, or reads it (0 if never set).
    ///
    /// # Errors
    /// The writer has stopped.
    pub async fn note(&self, name: &str, value: Option<u64>) -> Result<u64, SpoolError> {
        let (reply, answer) = oneshot::channel();
        self.send(Request::Note { name: name.into(), value, reply }).await?;
        answer.await.map_err(|_| SpoolError::Stopped)
    }

    /// The newest committed number of this boot; closed when the writer has stopped.
    #[must_use]
    pub fn newest(&self) -> watch::Receiver<u64> {
        self.newest.clone()
    }

    async fn send(&self, request: Request) -> Result<(), SpoolError> {
        self.requests.send(request).await.map_err(|_| SpoolError::Stopped)
    }
}

struct Writer {
    db: Connection,
    maker: String,
    boot: String,
    seq: u64,
    limit: u64,
    used: u64,
    /// Records that found no room, by kind, since the last loss record.
    refused: BTreeMap<String, u64>,
    reported: Option<Instant>,
}

impl Writer {
    fn open(path: &Path, maker: &str, boot: &str, limit: u64) -> rusqlite::Result<Self> {
        let db = Connection::open(path)?;
        db.pragma_update(None, "journal_mode", "WAL")?;
        db.pragma_update(None, "synchronous", "FULL")?;
        db.execute_batch(
            "CREATE TABLE IF NOT EXISTS records (place INTEGER PRIMARY KEY AUTOINCREMENT, boot TEXT NOT NULL, seq INTEGER NOT NULL, bytes BLOB NOT NULL, UNIQUE (boot, seq));
             CREATE TABLE IF NOT EXISTS sequences (boot TEXT PRIMARY KEY, last INTEGER NOT NULL);
             CREATE TABLE IF NOT EXISTS notes (name TEXT PRIMARY KEY, value INTEGER NOT NULL);",
        )?;
        let last: Option<i64> = db
            .query_row("SELECT last FROM sequences WHERE boot = ?1", [boot], |row| row.get(0))
            .optional()?;
        let used: i64 =
            db.query_row("SELECT coalesce(sum(length(bytes)), 0) FROM records", [], |row| row.get(0))?;
        Ok(Self {
            db,
            maker: maker.into(),
            boot: boot.into(),
            seq: last.unwrap_or(0).unsigned_abs(),
            limit,
            used: used.unsigned_abs(),
            refused: BTreeMap::new(),
            reported: None,
        })
    }

    fn run(mut self, mut queue: mpsc::Receiver<Request>, newest: &watch::Sender<u64>) {
        while let Some(first) = queue.blocking_recv() {
            let mut requests = vec![first];
            let mut n_records = 0;
            while n_records < COMMIT
                && let Ok(request) = queue.try_recv()
            {
                if let Request::Append(records, _) = &request {
                    n_records += records.len();
                }
                requests.push(request);
            }
            match self.serve(requests) {
                Ok(committed) => {
                    newest.send_if_modified(|seq| std::mem::replace(seq, self.seq) != self.seq);
                    for done in committed {
                        let _ = done.send(());
                    }
                }
                Err(error) => {
                    tracing::error!(%error, "the spool cannot be written; the sensor stops, enforcement goes on");
                    return;
                }
            }
        }
    }

    /// Serves requests in one transaction. Replies to reads go out at once: they only tell what was committed before.
    fn serve(&mut self, requests: Vec<Request>) -> rusqlite::Result<Vec<oneshot::Sender<()>>> {
        let mut committed = Vec::new();
        self.db.execute_batch("BEGIN IMMEDIATE")?;
        for request in requests {
            match request {
                Request::Append(records, done) => {
                    self.report_refused()?;
                    for record in records {
                        self.append(record)?;
                    }
                    committed.extend(done);
                }
                Request::Read { after, limit, reply } => {
                    // What was appended before it in this round is not durable yet: commit, then answer.
                    self.commit()?;
                    let _ = reply.send(self.read(after, limit)?);
                    self.db.execute_batch("BEGIN IMMEDIATE")?;
                }
                Request::Forget { boot, up_to } => self.forget(&boot, up_to)?,
                Request::Note { name, value, reply } => {
                    let _ = reply.send(self.note(&name, value)?);
                }
            }
        }
        self.commit()?;
        Ok(committed)
    }

    fn commit(&mut self) -> rusqlite::Result<()> {
        self.db
            .prepare_cached(
                "INSERT INTO sequences VALUES (?1, ?2) ON CONFLICT (boot) DO UPDATE SET last = ?2",
            )?
            .execute(params![self.boot, self.seq.cast_signed()])?;
        self.db.execute_batch("COMMIT")
    }

    fn append(&mut self, mut record: Record) -> rusqlite::Result<()> {
        record.source = Source { maker: self.maker.clone(), boot: self.boot.clone(), seq: self.seq + 1 };
        let bytes = bytes_of(&mut record);
        let room = if is_reserved(&record) { self.limit } else { self.limit / 5 * 4 };
        if self.used + bytes.len() as u64 > room {
            *self.refused.entry(kind_name(record.kind)).or_default() += 1;
            return Ok(());
        }
        self.db
            .prepare_cached("INSERT INTO records (boot, seq, bytes) VALUES (?1, ?2, ?3)")?
            .execute(params![self.boot, record.source.seq.cast_signed(), bytes])?;
        self.seq += 1;
        self.used += bytes.len() as u64;
        Ok(())
    }

    fn report_refused(&mut self) -> rusqlite::Result<()> {
        // Seldom enough that the reports themselves do not fill what is reserved.
        if self.refused.is_empty() || self.reported.is_some_and(|at| at.elapsed() < REPORT_EVERY) {
            return Ok(());
        }
        self.reported = Some(Instant::now());
        for (what, count) in std::mem::take(&mut self.refused) {
            let loss = Loss { what: what.clone(), why: "spool_evicted".into(), count, seen: 0 };
            let seq = self.seq;
            self.append(crate::records::loss_record(&self.maker, loss))?;
            if self.seq == seq {
                // Not even that had room: count on. (`append` has counted the loss record itself as lost; it is not.)
                self.refused.remove("loss");
                *self.refused.entry(what).or_default() += count;
            }
        }
        Ok(())
    }

    fn read(&self, after: i64, limit: usize) -> rusqlite::Result<Option<Batch>> {
        let mut select = self.db.prepare_cached(
            "SELECT place, boot, seq, bytes FROM records WHERE place > ?1 ORDER BY place LIMIT 512",
        )?;
        let mut rows = select.query([after])?;
        let mut batch: Option<Batch> = None;
        let mut n_bytes = 0;
        while let Some(row) = rows.next()? {
            let (place, boot): (i64, String) = (row.get(0)?, row.get(1)?);
            let seq = row.get::<_, i64>(2)?.unsigned_abs();
            let bytes = Bytes::from(row.get::<_, Vec<u8>>(3)?);
            n_bytes += bytes.len();
            match &mut batch {
                None => batch = Some(Batch { boot, first_seq: seq, records: vec![bytes], place }),
                Some(batch) => {
                    let next = batch.first_seq + batch.records.len() as u64;
                    if batch.boot != boot || seq != next || n_bytes > limit {
                        break;
                    }
                    batch.records.push(bytes);
                    batch.place = place;
                }
            }
        }
        Ok(batch)
    }

    fn forget(&mut self, boot: &str, up_to: u64) -> rusqlite::Result<()> {
        let args = params![boot, i64::try_from(up_to).unwrap_or(i64::MAX)];
        let freed: i64 = self
            .db
            .prepare_cached(
                "SELECT coalesce(sum(length(bytes)), 0) FROM records WHERE boot = ?1 AND seq <= ?2",
            )?
            .query_row(args, |row| row.get(0))?;
        self.db.prepare_cached("DELETE FROM records WHERE boot = ?1 AND seq <= ?2")?.execute(args)?;
        self.used = self.used.saturating_sub(freed.unsigned_abs());
        Ok(())
    }

    fn note(&self, name: &str, value: Option<u64>) -> rusqlite::Result<u64> {
        if let Some(value) = value {
            self.db
                .prepare_cached(
                    "INSERT INTO notes VALUES (?1, ?2) ON CONFLICT (name) DO UPDATE SET value = ?2",
                )?
                .execute(params![name, value.cast_signed()])?;
            return Ok(value);
        }
        let value: Option<i64> = self
            .db
            .prepare_cached("SELECT value FROM notes WHERE name = ?1")?
            .query_row([name], |row| row.get(0))
            .optional()?;
        Ok(value.unwrap_or(0).cast_unsigned())
    }
}

/// What must not give way to what was simply allowed.
fn is_reserved(record: &Record) -> bool {
    match &record.decision {
        // What is only watched is not a decision against anybody, and there can be much of it.
        Some(decision) if decision.outcome == Outcome::Observed => {
            record.identity.as_ref().is_none_or(|identity| identity.kind != "unbrokered")
        }
        Some(decision) => decision.outcome != Outcome::Allowed,
        None => !matches!(
            record.kind,
            Kind::Fork
                | Kind::Exit
                | Kind::Exec
                | Kind::Connect
                | Kind::Listen
                | Kind::File
                | Kind::System
                | Kind::Executable
        ),
    }
}

/// The record's bytes; if they are too many, without the arguments, which are the only long part.
fn bytes_of(record: &mut Record) -> Vec<u8> {
    if let Ok(bytes) = record.to_bytes() {
        return bytes;
    }
    if let Some(process) = &mut record.process {
        let n_bytes: usize = process.args.iter().map(|arg| arg.len() + 1).sum();
        process.args_cut_from.get_or_insert(u32::try_from(n_bytes).unwrap_or(u32::MAX));
        process.args.clear();
        process.path.truncate(process.path.floor_char_boundary(8_192));
    }
    record.to_bytes().unwrap_or_default()
}

/// The kind as it stands in records.
#[must_use]
pub fn kind_name(kind: Kind) -> String {
    serde_json::to_value(kind).ok().and_then(|value| value.as_str().map(str::to_owned)).unwrap_or_default()
}

#[cfg(test)]
mod tests;
