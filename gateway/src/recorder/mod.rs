//! The recorder: one ordered, durable log of records, and the recordings of channels.
//!
//! What is acknowledged has been fsynced. Callers hold a [`Recorder`], one thread owns the log
//! ([`writer`]), readers use connections of their own ([`reader`]). Where the leaves lie is known to
//! [`store`] alone: tiles after C2SP `tlog-tiles` take its place without the others noticing.

pub mod cast;
pub mod reader;
pub mod recording;
pub mod store;
pub mod verify;
pub mod verify_casts;
mod writer;

use bytes::Bytes;
use reader::Reader;
use sallyport_evidence::Record;
use sallyport_evidence::note::Signer;
use sallyport_evidence::record::Kind;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::LazyLock;
use std::time::{Instant, SystemTime, UNIX_EPOCH};
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;

/// `source.maker` of the gateway's own records; no sensor may have this name.
pub const GATEWAY: &str = "gateway";
/// Requests waiting for the writer. One commit takes them all, so this bounds memory, not throughput.
const QUEUE: usize = 1024;

/// When this process started: the gateway's records count from here.
static STARTED: LazyLock<Instant> = LazyLock::new(Instant::now);

/// The log cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// A file or folder.
    #[error("cannot open `{path}`")]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        err: std::io::Error,
    },
    /// The database.
    #[error("cannot open the evidence log `{path}`")]
    Database {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        err: rusqlite::Error,
    },
    /// The log contradicts itself; nothing may be appended to it.
    #[error(
        "the evidence log `{path}` contradicts itself: {what}. Keep a copy, run `sallyport-gateway verify`, and restore the newest intact backup"
    )]
    Inconsistent {
        /// Which.
        path: PathBuf,
        /// How.
        what: String,
    },
    /// The key.
    #[error("the log key `{path}` is not usable: {what}")]
    Key {
        /// Which file.
        path: PathBuf,
        /// Why.
        what: String,
    },
}

/// A record was not acknowledged.
#[derive(Clone, Debug, thiserror::Error)]
pub enum AppendError {
    /// The log failed; the gateway stops.
    #[error("the evidence log cannot be written; the gateway is stopping")]
    Failed,
    /// The record does not fit.
    #[error("the record is too large for the log")]
    TooLarge,
}

/// A batch was not accepted; nothing of it was stored.
#[derive(Clone, Debug, thiserror::Error)]
pub enum IngestError {
    /// The log.
    #[error(transparent)]
    Append(#[from] AppendError),
    /// The sender broke the rules.
    #[error("record {seq} of boot `{boot}` is not acceptable: {why}")]
    Unacceptable {
        /// Its number.
        seq: u64,
        /// Its boot.
        boot: String,
        /// Why.
        why: String,
    },
}

/// A record that is durable.
#[derive(Clone, Debug)]
pub struct Noted {
    /// Leaf index.
    pub index: u64,
    /// What of it is indexed.
    pub head: store::Head,
}

/// Handle to the log. Cheap to clone.
#[derive(Clone)]
pub struct Recorder {
    requests: mpsc::Sender<writer::Request>,
    size: watch::Receiver<u64>,
    reader: Reader,
    key: Arc<str>,
    recordings: Arc<Path>,
    stopped: CancellationToken,
}

impl Recorder {
    /// Opens the log in `dir`, making it if there is none, and starts its writer. `fatal` is cancelled when
    /// the log cannot be written any more: stop the gateway then.
    ///
    /// # Errors
    /// It cannot be opened, or contradicts itself.
    pub fn open(dir: &Path, name: &str, fatal: CancellationToken) -> Result<Self, OpenError> {
        LazyLock::force(&STARTED);
        let recordings = dir.join("recordings");
        for folder in [dir, &recordings] {
            crate::files::private_dir(folder)
                .map_err(|err| OpenError::File { path: folder.to_owned(), err })?;
        }
        let signer = signer(&dir.join("log.key"), name)?;
        let key: Arc<str> = signer.verifier().to_string().into();
        let path = dir.join(store::FILE);
        let store = store::Store::open(&path, signer.verifier())?;
        let reader = Reader::open(&path).map_err(|err| OpenError::Database { path, err })?;
        let (requests, queue) = mpsc::channel(QUEUE);
        let (published, size) = watch::channel(store.size());
        let stopped = CancellationToken::new();
        writer::Writer::new(store, signer, published).spawn(queue, fatal, stopped.clone());
        Ok(Self { requests, size, reader, key, recordings: recordings.into(), stopped })
    }

    /// Appends a record of the gateway's own; its `source` is filled in. Durable on return; gives its index.
    ///
    /// # Errors
    /// Not durable: what it describes must not go ahead.
    pub async fn append(&self, record: Record) -> Result<u64, AppendError> {
        let (reply, answer) = oneshot::channel();
        self.request(writer::Request::Append { record: Box::new(record), reply }).await?;
        answer.await.map_err(|_| AppendError::Failed)?
    }

    /// Takes a batch of a sensor's records: exactly once, in order. On return all up to the batch's end are
    /// durable; gives the highest contiguous number and what was new.
    ///
    /// # Errors
    /// Nothing was stored.
    pub async fn ingest(
        &self,
        maker: &str,
        boot: String,
        first_seq: u64,
        records: Vec<Bytes>,
    ) -> Result<(u64, Vec<Noted>), IngestError> {
        let batch = writer::Batch::check(maker, boot, first_seq, records)?;
        let (reply, answer) = oneshot::channel();
        self.request(writer::Request::Ingest { batch, reply }).await?;
        Ok(answer.await.map_err(|_| AppendError::Failed)??)
    }

    /// Signs a checkpoint over all there is, stops the writer and waits for it. Later appends fail.
    pub async fn stop(&self) {
        if self.request(writer::Request::Stop).await.is_ok() {
            self.stopped.cancelled().await;
        }
    }

    /// How many leaves are durable; changes are seen as they happen.
    #[must_use]
    pub fn size(&self) -> watch::Receiver<u64> {
        self.size.clone()
    }

    /// Reads and searches.
    #[must_use]
    pub fn reader(&self) -> &Reader {
        &self.reader
    }

    /// The log's verifier key, to pin.
    #[must_use]
    pub fn key(&self) -> &str {
        &self.key
    }

    /// Folder of the recordings.
    #[must_use]
    pub fn recordings(&self) -> &Path {
        &self.recordings
    }

    async fn request(&self, request: writer::Request) -> Result<(), AppendError> {
        self.requests.send(request).await.map_err(|_| AppendError::Failed)
    }
}

/// An empty record of `kind` with the present time; [`Recorder::append`] fills in its source.
#[must_use]
pub fn draft(kind: Kind) -> Record {
    Record {
        time_ns: now_ns(),
        boot_ns: u64::try_from(STARTED.elapsed().as_nanos()).unwrap_or(u64::MAX),
        ..Record::empty(kind)
    }
}

/// Fuzz entry for what sensors send as records.
pub fn fuzz_batch(bytes: &[u8]) {
    writer::fuzz_batch(bytes);
}

/// Wall clock, nanoseconds since the Unix epoch.
#[must_use]
pub fn now_ns() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

/// The log's key: made at the first start, never again.
fn signer(path: &Path, name: &str) -> Result<Signer, OpenError> {
    let unusable = |what: &str| OpenError::Key { path: path.to_owned(), what: what.to_owned() };
    let text = crate::files::secret(path, || hex::encode(rand::random::<[u8; 32]>()))
        .map_err(|err| OpenError::File { path: path.to_owned(), err })?;
    let seed = hex::decode(text.trim()).ok().and_then(|bytes| <[u8; 32]>::try_from(bytes).ok());
    let seed = seed.ok_or_else(|| unusable("it does not hold 64 hexadecimal digits"))?;
    Signer::new(name, &seed).ok_or_else(|| unusable("the gateway's name cannot be a key's name"))
}

#[cfg(test)]
mod tests;
