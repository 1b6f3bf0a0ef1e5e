//! Files that only root may read, replaced whole or not at all.

use std::fs::{File, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;

use serde::Serialize;
use serde::de::DeserializeOwned;

/// Makes a folder (and its parents) that only its owner can enter.
///
/// # Errors
/// The file system refuses.
pub fn private_dir(path: &Path) -> io::Result<()> {
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path)?;
    std::fs::set_permissions(path, Permissions::from_mode(0o700))
}

/// Writes a file readable by its owner alone: beside it, flushed to the disk, then put in its place.
///
/// # Errors
/// The file system refuses; the old content is still there.
pub fn write_private(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let beside = path.with_extension("new");
    // Not to inherit the permissions of what a killed predecessor left.
    let _ = std::fs::remove_file(&beside);
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&beside)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    std::fs::rename(&beside, path)?;
    match path.parent() {
        Some(parent) => File::open(parent)?.sync_all(),
        None => Ok(()),
    }
}

/// [`write_private`] of JSON.
///
/// # Errors
/// As there.
pub fn write_json<T: Serialize>(path: &Path, value: &T) -> io::Result<()> {
    write_private(path, &serde_json::to_vec(value)?)
}

/// Reads JSON.
///
/// # Errors
/// The file cannot be read, or is something else.
pub fn read_json<T: DeserializeOwned>(path: &Path) -> io::Result<T> {
    Ok(serde_json::from_slice(&std::fs::read(path)?)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_is_replaced_whole_and_private() {
        let dir = tempfile::tempdir().expect("dir");
        let inner = dir.path().join("a/b");
        private_dir(&inner).expect("made");
        let path = inner.join("key");
        write_private(&path, b"one").expect("written");
        write_private(&path, b"two").expect("written again");
        assert_eq!(std::fs::read(&path).expect("read"), b"two");
        let mode = |path: &Path| std::fs::metadata(path).expect("metadata").permissions().mode() & 0o777;
        assert_eq!((mode(&path), mode(&inner)), (0o600, 0o700));
    }
}
