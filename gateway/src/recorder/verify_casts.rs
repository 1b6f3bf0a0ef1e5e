//! Verifying recordings: every file against the hash that its channel's close put on the record.

use super::recording::{self, Finished};
use super::{reader, store};
use sallyport_evidence::Record;
use sha2::{Digest as _, Sha256};
use std::fmt;
use std::io::{self, Read as _};
use std::path::Path;

/// Faults kept in full; the rest are counted.
const MAX_FAULTS: usize = 50;

/// What was found.
#[derive(Clone, Debug, Default)]
pub struct CastReport {
    /// Recordings whose files are what the log says.
    pub intact: u64,
    /// Recordings that are not, one sentence each; the first of them.
    pub faults: Vec<String>,
    /// Faults beyond those.
    pub more_faults: u64,
}

impl CastReport {
    /// No fault was found.
    #[must_use]
    pub fn holds(&self) -> bool {
        self.faults.is_empty()
    }
}

impl fmt::Display for CastReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} recordings are what the log says", self.intact)?;
        for fault in &self.faults {
            write!(f, "\nFAULT: {fault}")?;
        }
        if self.more_faults > 0 {
            write!(f, "\nand {} more faults", self.more_faults)?;
        }
        Ok(())
    }
}

/// The words with which a channel's close states its recording; read back by [`stated`].
#[must_use]
pub fn statement(done: &Finished) -> String {
    format!("recording of {} bytes, sha256 {}", done.bytes, done.sha256)
}

/// Size and hash out of a close's message; none: it states none.
fn stated(message: &str) -> Option<Finished> {
    let (_, rest) = message.rsplit_once("; recording of ")?;
    let (bytes, sha256) = rest.split_once(" bytes, sha256 ")?;
    Some(Finished { bytes: bytes.parse().ok()?, sha256: sha256.to_owned() })
}

/// Checks all recordings of the log in `dir`. What it says is worth as much as the log: verify that too.
///
/// # Errors
/// The log cannot be read.
pub fn verify(dir: &Path) -> rusqlite::Result<CastReport> {
    let connection = reader::connect(&dir.join(store::FILE))?;
    let mut query =
        connection.prepare("SELECT idx, record FROM leaves WHERE kind = 'channel_close' ORDER BY idx")?;
    let mut rows = query.query([])?;
    let mut report = CastReport::default();
    while let Some(row) = rows.next()? {
        let index: u64 = row.get(0)?;
        let record = Record::from_bytes(row.get_ref(1)?.as_blob().unwrap_or_default()).ok();
        let stated = record.as_ref().and_then(|record| stated(record.message.as_deref()?));
        // A close without a recording says why, and an altered record is the log's fault.
        let (Some(stated), Some(session)) = (stated, record.and_then(|record| record.session)) else {
            continue;
        };
        let name = format!("recording {}/{} (record {index})", session.id, session.channel);
        let path = recording::path(&dir.join("recordings"), &session.id, &session.channel);
        match path.as_deref().map(digest) {
            Some(Ok(found)) if found.sha256 == stated.sha256 && found.bytes == stated.bytes => {
                report.intact += 1
            }
            Some(Ok(found)) => {
                report.fault(format!(
                    "{name} was altered: it has {} bytes, {} were recorded",
                    found.bytes, stated.bytes
                ));
            }
            Some(Err(err)) => report.fault(format!("{name} cannot be read: {err}")),
            None => report.fault(format!("{name} has an impossible name")),
        }
    }
    Ok(report)
}

impl CastReport {
    fn fault(&mut self, text: String) {
        if self.faults.len() < MAX_FAULTS {
            self.faults.push(text);
        } else {
            self.more_faults += 1;
        }
    }
}

fn digest(path: &Path) -> io::Result<Finished> {
    let mut file = std::fs::File::open(path)?;
    let (mut hash, mut bytes, mut buffer) = (Sha256::new(), 0, vec![0; 64 * 1024]);
    loop {
        let n = file.read(&mut buffer)?;
        if n == 0 {
            return Ok(Finished { sha256: hex::encode(hash.finalize()), bytes });
        }
        hash.update(&buffer[..n]);
        bytes += n as u64;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_statement_is_read_back() {
        let done = Finished { sha256: "ab".repeat(32), bytes: 7 };
        let message = format!("exit status 0; {}", statement(&done));
        let read = stated(&message).unwrap();
        assert_eq!((read.sha256, read.bytes), (done.sha256, done.bytes));
        assert!(stated("exit status 0; its recording failed: disk full").is_none());
    }
}
