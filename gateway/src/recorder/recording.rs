//! A channel's recording on disk: opened before anything runs, written while it runs, hashed at its end.

use super::cast::{Cast, Header, Stream};
use sha2::{Digest as _, Sha256};
use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use tokio::task::JoinHandle;

/// Encoded bytes that are written at once; so much of the newest output a crash may take at most …
const WRITE_AT: usize = 256 * 1024;
/// … or as much as came in this time.
const WRITE_EVERY: Duration = Duration::from_millis(100);
/// The file is fsynced this often while output flows.
const SYNC_EVERY: Duration = Duration::from_secs(2);

/// The recording failed.
#[derive(Debug, thiserror::Error)]
#[error("the recording `{path}` cannot be written")]
pub struct RecordingError {
    /// The file.
    pub path: PathBuf,
    /// Why.
    #[source]
    pub err: io::Error,
}

/// Proof that a channel's recording is open. Only [`RecordingOpen::create`] makes one, and no channel is
/// started without.
pub struct RecordingOpen {
    path: PathBuf,
    sink: Option<Sink>,
    cast: Cast,
    started: Instant,
    unwritten_since: Option<Instant>,
    synced: Instant,
    /// An fsync under way: output need not wait for it, only for the one before.
    syncing: Option<JoinHandle<io::Result<()>>>,
}

/// A finished recording.
#[derive(Clone, Debug)]
pub struct Finished {
    /// SHA-256 of the file.
    pub sha256: String,
    /// Its size.
    pub bytes: u64,
}

struct Sink {
    file: File,
    hash: Sha256,
    bytes: u64,
}

/// Where a channel's recording lies. `None` for ids that are not UUIDs: they must not become paths.
#[must_use]
pub fn path(folder: &Path, session: &str, channel: &str) -> Option<PathBuf> {
    let is_id = |id: &str| uuid::Uuid::try_parse(id).is_ok_and(|parsed| parsed.to_string() == id);
    (is_id(session) && is_id(channel)).then(|| folder.join(session).join(format!("{channel}.cast")))
}

impl RecordingOpen {
    /// Creates the file, with its header durable on return.
    ///
    /// # Errors
    /// It exists or cannot be written.
    pub async fn create(path: PathBuf, header: &Header) -> Result<Self, RecordingError> {
        let mut cast = Cast::new(header);
        let head = cast.take();
        let file = path.clone();
        let sink = blocking(&path, move || {
            if let Some(folder) = file.parent() {
                crate::files::private_dir(folder)?;
                crate::files::sync_parent(folder)?;
            }
            let opened = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&file)?;
            let mut sink = Sink { file: opened, hash: Sha256::new(), bytes: 0 };
            sink.write(&head)?;
            sink.file.sync_all()?;
            crate::files::sync_parent(&file)?;
            Ok(sink)
        })
        .await?;
        let now = Instant::now();
        Ok(Self {
            path,
            sink: Some(sink),
            cast,
            started: now,
            unwritten_since: None,
            synced: now,
            syncing: None,
        })
    }

    /// Output of the channel.
    pub fn output(&mut self, stream: Stream, data: &[u8]) {
        self.cast.output(self.started.elapsed(), stream, data);
        self.touched();
    }

    /// A new terminal size.
    pub fn resize(&mut self, columns: u32, rows: u32) {
        self.cast.resize(self.started.elapsed(), columns, rows);
        self.touched();
    }

    /// A marker.
    pub fn marker(&mut self, label: &str) {
        self.cast.marker(self.started.elapsed(), label);
        self.touched();
    }

    /// When [`Self::write_due`] wants to be called at the latest; none: nothing waits.
    #[must_use]
    pub fn deadline(&self) -> Option<Instant> {
        self.unwritten_since.map(|since| since + WRITE_EVERY)
    }

    /// Writes if enough waits. Await it before taking more output: this bounds memory.
    ///
    /// # Errors
    /// The disk; the session must end.
    pub async fn write_due(&mut self) -> Result<(), RecordingError> {
        let late = self.deadline().is_some_and(|at| Instant::now() >= at);
        if self.cast.pending() < WRITE_AT && !late {
            return Ok(());
        }
        self.write().await?;
        if self.synced.elapsed() >= SYNC_EVERY {
            self.synced = Instant::now();
            self.sync_done().await?;
            self.start_sync()?;
        }
        Ok(())
    }

    /// Ends it: writes and fsyncs everything.
    ///
    /// # Errors
    /// The disk.
    pub async fn finish(mut self, status: Option<u32>) -> Result<Finished, RecordingError> {
        self.cast.end(self.started.elapsed(), status);
        self.write().await?;
        self.sync_done().await?;
        self.start_sync()?;
        self.sync_done().await?;
        match self.sink {
            Some(sink) => Ok(Finished { sha256: hex::encode(sink.hash.finalize()), bytes: sink.bytes }),
            None => Err(gone(&self.path)),
        }
    }

    /// A recording whose disk fails: its file is open for reading only.
    #[cfg(test)]
    pub(crate) async fn failing(path: PathBuf, header: &Header) -> Self {
        let mut recording = Self::create(path.clone(), header).await.unwrap();
        recording.sink = File::open(path).ok().map(|file| Sink { file, hash: Sha256::new(), bytes: 0 });
        recording
    }

    fn touched(&mut self) {
        self.unwritten_since.get_or_insert_with(Instant::now);
    }

    async fn write(&mut self) -> Result<(), RecordingError> {
        self.unwritten_since = None;
        let data = self.cast.take();
        // Gone after a failed write: it stays failed.
        let mut sink = self.sink.take().ok_or_else(|| gone(&self.path))?;
        let sink = blocking(&self.path, move || sink.write(&data).map(|()| sink)).await?;
        self.sink = Some(sink);
        Ok(())
    }

    fn start_sync(&mut self) -> Result<(), RecordingError> {
        let sink = self.sink.as_ref().ok_or_else(|| gone(&self.path))?;
        let file = sink.file.try_clone().map_err(|err| RecordingError { path: self.path.clone(), err })?;
        self.syncing = Some(tokio::task::spawn_blocking(move || file.sync_data()));
        Ok(())
    }

    async fn sync_done(&mut self) -> Result<(), RecordingError> {
        let Some(syncing) = self.syncing.take() else { return Ok(()) };
        let done = syncing.await.unwrap_or_else(|_| Err(io::Error::other("the writer was stopped")));
        done.map_err(|err| RecordingError { path: self.path.clone(), err })
    }
}

impl Sink {
    fn write(&mut self, data: &[u8]) -> io::Result<()> {
        self.file.write_all(data)?;
        self.hash.update(data);
        self.bytes += data.len() as u64;
        Ok(())
    }
}

/// Closes a recording that a crash left open: drops a torn last line, adds a marker, fsyncs, hashes.
///
/// # Errors
/// It cannot be read or written.
pub fn recover(path: &Path) -> Result<Finished, RecordingError> {
    let fail = |err| RecordingError { path: path.to_owned(), err };
    let mut file = OpenOptions::new().read(true).write(true).open(path).map_err(fail)?;
    let mut recover = || -> io::Result<Finished> {
        let mut hash = Sha256::new();
        let mut whole = 0u64;
        let mut line = Vec::new();
        let mut buffer = vec![0; 64 * 1024];
        loop {
            let n = file.read(&mut buffer)?;
            if n == 0 {
                break;
            }
            line.extend_from_slice(&buffer[..n]);
            if let Some(end) = line.iter().rposition(|&b| b == b'\n') {
                hash.update(&line[..=end]);
                whole += end as u64 + 1;
                line.drain(..=end);
            }
        }
        file.set_len(whole)?;
        io::Seek::seek(&mut file, io::SeekFrom::Start(whole))?;
        let note = b"[0.000000,\"m\",\"the gateway was restarted; what came in the last moments before may be missing\"]\n";
        file.write_all(note)?;
        file.sync_all()?;
        hash.update(note);
        Ok(Finished { sha256: hex::encode(hash.finalize()), bytes: whole + note.len() as u64 })
    };
    recover().map_err(fail)
}

fn gone(path: &Path) -> RecordingError {
    RecordingError { path: path.to_owned(), err: io::Error::other("an earlier write failed") }
}

async fn blocking<T: Send + 'static>(
    path: &Path,
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> Result<T, RecordingError> {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|_| Err(io::Error::other("the writer was stopped")))
        .map_err(|err| RecordingError { path: path.to_owned(), err })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header() -> Header {
        Header { size: (80, 24), term: None, timestamp: 1, title: "t".into(), command: Some("ls".into()) }
    }

    #[tokio::test]
    async fn a_recording_is_written_hashed_and_never_reused() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("s/c.cast");
        let mut recording = RecordingOpen::create(file.clone(), &header()).await.unwrap();
        assert!(std::fs::read_to_string(&file).unwrap().ends_with("}\n"));
        recording.output(Stream::Stdout, b"hello\n");
        assert!(recording.deadline().is_some());
        tokio::time::sleep(WRITE_EVERY).await;
        recording.write_due().await.unwrap();
        assert!(std::fs::read_to_string(&file).unwrap().contains("hello"));
        let finished = recording.finish(Some(0)).await.unwrap();
        let content = std::fs::read(&file).unwrap();
        assert_eq!(finished.sha256, hex::encode(Sha256::digest(&content)));
        assert_eq!(finished.bytes, content.len() as u64);
        assert!(RecordingOpen::create(file, &header()).await.is_err());
    }

    #[test]
    fn a_torn_recording_is_closed_readably() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("c.cast");
        std::fs::write(&file, "{\"version\":3}\n[0.1,\"o\",\"a\"]\n[0.2,\"o\",\"to").unwrap();
        let finished = recover(&file).unwrap();
        let content = std::fs::read_to_string(&file).unwrap();
        for line in content.lines() {
            serde_json::from_str::<serde_json::Value>(line).unwrap();
        }
        assert_eq!(content.lines().count(), 3);
        assert_eq!(finished.sha256, hex::encode(Sha256::digest(&content)));
    }

    #[test]
    fn ids_cannot_leave_the_folder() {
        let id = uuid::Uuid::now_v7().to_string();
        assert!(path(Path::new("/r"), &id, &id).is_some());
        for bad in ["..", "../../etc/passwd", "", "a/b", &id.to_uppercase()] {
            assert!(path(Path::new("/r"), &id, bad).is_none() || *bad == id);
            assert!(path(Path::new("/r"), bad, &id).is_none() || *bad == id);
        }
    }
}
