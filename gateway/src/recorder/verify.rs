//! Verifying the log in place, offline or beside a running gateway: reads one consistent snapshot.

use super::{reader, store};
use sallyport_evidence::note;
use sallyport_evidence::verify::{Leaf, LogCheck, Report};
use std::path::{Path, PathBuf};

/// The log cannot be checked.
#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    /// The database.
    #[error("cannot read the evidence log `{path}`")]
    Database {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        err: rusqlite::Error,
    },
    /// The key.
    #[error("cannot tell the log's key from `{path}`; give it with --log-key")]
    Key {
        /// The file.
        path: PathBuf,
    },
}

/// The verifier key that belongs to the private key in `dir`.
///
/// # Errors
/// There is no usable key.
pub fn own_key(dir: &Path, name: &str) -> Result<note::Verifier, VerifyError> {
    let path = dir.join("log.key");
    if !path.exists() {
        return Err(VerifyError::Key { path });
    }
    let signer = super::signer(&path, name).map_err(|_| VerifyError::Key { path })?;
    Ok(signer.verifier().clone())
}

/// Checks the log in `dir` against `key`.
///
/// # Errors
/// It cannot be read. A log that is not sound is no error: see the report.
pub fn verify(dir: &Path, key: &note::Verifier, expected_size: u64) -> Result<Report, VerifyError> {
    let path = dir.join(store::FILE);
    check(&path, key, expected_size).map_err(|err| VerifyError::Database { path, err })
}

fn check(path: &Path, key: &note::Verifier, expected_size: u64) -> rusqlite::Result<Report> {
    let mut connection = reader::connect(path)?;
    // One transaction: checkpoints and leaves of the same moment.
    let snapshot = connection.transaction()?;
    let mut query = snapshot.prepare("SELECT note FROM checkpoints ORDER BY size")?;
    let notes: Vec<String> = query.query_map([], |row| row.get(0))?.collect::<Result<_, _>>()?;
    let mut check = LogCheck::new(key, notes.iter().map(String::as_str));
    check.expect_at_least(expected_size);
    let mut query = snapshot.prepare("SELECT idx, hash, record FROM leaves ORDER BY idx")?;
    let mut rows = query.query([])?;
    while let Some(row) = rows.next()? {
        let hash = row.get_ref(1)?.as_blob().ok().and_then(|hash| hash.try_into().ok());
        // A hash that is no hash names its leaf as altered.
        let hash = Some(hash.unwrap_or([0; 32]));
        let record = row.get_ref(2)?.as_blob().unwrap_or_default();
        check.leaf(Leaf { index: row.get(0)?, hash, record });
    }
    Ok(check.finish())
}
