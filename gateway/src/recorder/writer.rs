//! The log's only writer: takes what waits, commits it at once, acknowledges after the fsync.

use super::store::{Head, NewLeaf, Store};
use super::{AppendError, GATEWAY, IngestError, Noted, draft, now_ns};
use bytes::Bytes;
use sallyport_evidence::Record;
use sallyport_evidence::merkle::Frontier;
use sallyport_evidence::note::Signer;
use sallyport_evidence::record::{Kind, Loss, MAX_BYTES, Source};
use sallyport_evidence::verify::MISSING;
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;

/// Leaves in one commit: bounds its memory (with records of some hundred bytes, a few MiB) and its time.
const COMMIT_LEAVES: usize = 8192;
/// A checkpoint is signed at the latest after this many leaves …
const CHECKPOINT_LEAVES: u64 = 10_000;
/// … or this long after the first one not covered.
const CHECKPOINT_EVERY: Duration = Duration::from_secs(1);
/// Records in one batch of a sensor.
pub(super) const BATCH_RECORDS: usize = 4096;

pub(super) enum Request {
    Append { record: Box<Record>, reply: oneshot::Sender<Result<u64, AppendError>> },
    Ingest { batch: Batch, reply: oneshot::Sender<Result<(u64, Vec<Noted>), AppendError>> },
    Stop,
}

/// A sensor's batch whose form is sound.
pub(super) struct Batch {
    maker: String,
    boot: String,
    leaves: Vec<NewLeaf>,
}

/// Who waits for the commit.
enum Waiting {
    Append(oneshot::Sender<Result<u64, AppendError>>, u64),
    Ingest(oneshot::Sender<Result<(u64, Vec<Noted>), AppendError>>, u64, Vec<Noted>),
}

pub(super) struct Writer {
    store: Store,
    signer: Signer,
    size: watch::Sender<u64>,
    boot: String,
    seq: u64,
    signed_size: u64,
    unsigned_since: Option<Instant>,
}

impl Batch {
    pub(super) fn check(
        maker: &str,
        boot: String,
        first_seq: u64,
        records: Vec<Bytes>,
    ) -> Result<Self, IngestError> {
        let wrong =
            |seq: u64, why: &str| IngestError::Unacceptable { seq, boot: boot.clone(), why: why.to_owned() };
        if maker == GATEWAY || boot.is_empty() || boot.len() > 64 {
            return Err(wrong(first_seq, "its maker or boot id is not possible"));
        }
        if records.len() > BATCH_RECORDS {
            return Err(wrong(first_seq, "the batch holds too many records"));
        }
        let count = records.len() as u64;
        if first_seq == 0 || first_seq.checked_add(count).is_none_or(|end| i64::try_from(end).is_err()) {
            return Err(wrong(first_seq, "its number is not possible"));
        }
        let mut leaves = Vec::with_capacity(records.len());
        for (seq, record) in (first_seq..).zip(records) {
            if record.len() > MAX_BYTES {
                return Err(wrong(seq, "it is larger than a leaf may be"));
            }
            let head: Head =
                serde_json::from_slice(&record).map_err(|err| wrong(seq, &format!("not a record: {err}")))?;
            let Source { maker: of, boot: b, seq: n } = &head.source;
            if of != maker || *b != boot || *n != seq {
                return Err(wrong(seq, "its source is not the sensor, boot and number it was sent under"));
            }
            // One host cannot speak for another.
            if head.host.as_deref().is_some_and(|host| host != maker) {
                return Err(wrong(seq, "it speaks for another host"));
            }
            leaves.push(NewLeaf { bytes: record.to_vec(), head });
        }
        Ok(Self { maker: maker.to_owned(), boot, leaves })
    }
}

/// Fuzz entry: any bytes of a sensor are refused or taken as a record, never a panic.
pub(super) fn fuzz_batch(bytes: &[u8]) {
    let records = bytes.split(|&b| b == 0).map(Bytes::copy_from_slice).collect();
    if let Ok(batch) = Batch::check("web-1", "b".to_owned(), 1, records) {
        for leaf in &batch.leaves {
            let _ = leaf.head.marker();
        }
    }
}

impl Writer {
    pub(super) fn new(store: Store, signer: Signer, size: watch::Sender<u64>) -> Self {
        let boot = uuid::Uuid::now_v7().to_string();
        Self { store, signer, size, boot, seq: 0, signed_size: 0, unsigned_since: None }
    }

    /// Runs on a thread of its own until told to stop; then cancels `stopped`. On a failed write, `fatal` first.
    pub(super) fn spawn(
        mut self,
        mut queue: mpsc::Receiver<Request>,
        fatal: CancellationToken,
        stopped: CancellationToken,
    ) {
        std::thread::spawn(move || {
            let outcome = self.run(&mut queue);
            if let Err(err) = outcome {
                // After a failed fsync the kernel may have dropped the pages: trying again could
                // "succeed" without the data. Only a restart, which reads the disk, tells what is there.
                tracing::error!(%err, "the evidence log cannot be written; stopping the gateway");
                fatal.cancel();
            }
            queue.close();
            drop(queue);
            stopped.cancel();
        });
    }

    fn run(&mut self, queue: &mut mpsc::Receiver<Request>) -> rusqlite::Result<()> {
        // Checkpoint at start: what a killed predecessor left unsigned is signed now.
        self.commit(Vec::new(), true)?;
        let Ok(runtime) = tokio::runtime::Builder::new_current_thread().enable_time().build() else {
            return Err(rusqlite::Error::InvalidQuery);
        };
        loop {
            let wait = self.unsigned_since.map(|since| CHECKPOINT_EVERY.saturating_sub(since.elapsed()));
            let first = runtime.block_on(async {
                match wait {
                    None => Ok(queue.recv().await),
                    Some(wait) => tokio::time::timeout(wait, queue.recv()).await,
                }
            });
            let mut stop = false;
            let mut leaves = Vec::new();
            let mut waiting = Vec::new();
            match first {
                Err(_) => {
                    self.commit(Vec::new(), true)?;
                    continue;
                }
                Ok(None) => stop = true,
                Ok(Some(request)) => stop |= self.take(request, &mut leaves, &mut waiting),
            }
            while !stop && leaves.len() < COMMIT_LEAVES {
                match queue.try_recv() {
                    Ok(request) => stop |= self.take(request, &mut leaves, &mut waiting),
                    Err(_) => break,
                }
            }
            // On an error the replies are dropped: the callers learn that it failed.
            self.commit(leaves, stop)?;
            for waiter in waiting {
                // A caller that has gone does not mind.
                match waiter {
                    Waiting::Append(reply, index) => drop(reply.send(Ok(index))),
                    Waiting::Ingest(reply, seq, noted) => drop(reply.send(Ok((seq, noted)))),
                }
            }
            if stop {
                return Ok(());
            }
        }
    }

    /// Adds a request's leaves; true: stop after this commit.
    fn take(&mut self, request: Request, leaves: &mut Vec<NewLeaf>, waiting: &mut Vec<Waiting>) -> bool {
        match request {
            Request::Append { record, reply } => match self.own(*record) {
                Ok(leaf) => {
                    waiting.push(Waiting::Append(reply, self.store.size() + leaves.len() as u64));
                    leaves.push(leaf);
                }
                Err(err) => drop(reply.send(Err(err))),
            },
            Request::Ingest { batch, reply } => {
                // The same boot may be twice in one commit.
                let in_commit = leaves.iter().rev().map(|l| &l.head.source);
                let newest = in_commit
                    .filter(|source| source.maker == batch.maker && source.boot == batch.boot)
                    .map(|source| source.seq)
                    .next()
                    .unwrap_or_else(|| self.store.newest_seq(&batch.maker, &batch.boot));
                let last = batch.leaves.last().map_or(newest, |leaf| leaf.head.source.seq);
                let mut noted = Vec::new();
                let mut fresh =
                    batch.leaves.into_iter().filter(|leaf| leaf.head.source.seq > newest).peekable();
                let missing = fresh.peek().map_or(0, |leaf| leaf.head.source.seq - newest - 1);
                if missing > 0
                    && let Ok(leaf) = self.own(missing_record(&batch.maker, newest, missing))
                {
                    leaves.push(leaf);
                }
                for leaf in fresh {
                    noted.push(Noted {
                        index: self.store.size() + leaves.len() as u64,
                        head: leaf.head.clone(),
                    });
                    leaves.push(leaf);
                }
                waiting.push(Waiting::Ingest(reply, newest.max(last), noted));
            }
            Request::Stop => return true,
        }
        false
    }

    /// Numbers a record of the gateway's own.
    fn own(&mut self, mut record: Record) -> Result<NewLeaf, AppendError> {
        record.source = Source { maker: GATEWAY.to_owned(), boot: self.boot.clone(), seq: self.seq + 1 };
        let bytes = record.to_bytes().map_err(|_| AppendError::TooLarge)?;
        let head = serde_json::from_slice(&bytes).map_err(|_| AppendError::TooLarge)?;
        self.seq += 1;
        Ok(NewLeaf { bytes, head })
    }

    fn commit(&mut self, leaves: Vec<NewLeaf>, sign_now: bool) -> rusqlite::Result<()> {
        let size = self.store.size() + leaves.len() as u64;
        let waited = self.unsigned_since.is_some_and(|since| since.elapsed() >= CHECKPOINT_EVERY);
        let due = sign_now || waited || size - self.signed_size >= CHECKPOINT_LEAVES;
        if leaves.is_empty() && !due {
            return Ok(());
        }
        let signer = &self.signer;
        self.store.commit(&leaves, now_ns(), |frontier| due.then(|| sign(signer, frontier)).flatten())?;
        if due {
            self.signed_size = size;
            self.unsigned_since = None;
        } else {
            self.unsigned_since.get_or_insert_with(Instant::now);
        }
        // Followers look as soon as this changes: it comes after the commit.
        self.size.send_if_modified(|published| std::mem::replace(published, size) != size);
        Ok(())
    }
}

fn sign(signer: &Signer, frontier: &Frontier) -> Option<String> {
    let origin = signer.verifier().name().to_owned();
    let checkpoint = sallyport_evidence::Checkpoint { origin, size: frontier.size(), root: frontier.root() };
    checkpoint.sign(signer).inspect_err(|err| tracing::error!(%err, "cannot sign a checkpoint")).ok()
}

fn missing_record(maker: &str, newest: u64, count: u64) -> Record {
    let mut record = draft(Kind::Loss);
    record.host = Some(maker.to_owned());
    record.loss = Some(Loss { what: "record".into(), why: MISSING.into(), count, seen: newest + count });
    record.message =
        Some(format!("{count} records of {maker} never arrived, from its number {}", newest + 1));
    record
}
