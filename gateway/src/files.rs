//! Files that hold secrets or state: private from the first byte, whole or absent.

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::Path;

/// Makes a folder (and those above it) of mode 0700; an existing one is given that mode.
///
/// # Errors
/// It cannot be made, or is no folder.
pub fn private_dir(path: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(path)?;
    fs::set_permissions(path, Permissions::from_mode(0o700))
}

/// Reads a secret; if there is none, makes it first, mode 0600, durably.
///
/// # Errors
/// It cannot be read or written, or others may read it.
pub fn secret(path: &Path, make: impl FnOnce() -> String) -> io::Result<String> {
    match fs::metadata(path) {
        Ok(meta) if meta.permissions().mode() & 0o077 != 0 => {
            let problem = format!(
                "others may read it (mode {:o}): run chmod 600 on it",
                meta.permissions().mode() & 0o777
            );
            Err(io::Error::new(io::ErrorKind::PermissionDenied, problem))
        }
        Ok(_) => fs::read_to_string(path),
        Err(err) if err.kind() == io::ErrorKind::NotFound => {
            let text = make();
            write_private(path, text.as_bytes())?;
            Ok(text)
        }
        Err(err) => Err(err),
    }
}

/// Makes an empty file of mode 0600 if there is none; an existing one is given that mode.
///
/// # Errors
/// It cannot be made.
pub fn touch_private(path: &Path) -> io::Result<()> {
    let file = OpenOptions::new().append(true).create(true).mode(0o600).open(path)?;
    file.set_permissions(Permissions::from_mode(0o600))
}

/// Replaces a file, mode 0600, so that after a crash it is the old or the new one.
///
/// # Errors
/// It cannot be written.
pub fn write_private(path: &Path, content: &[u8]) -> io::Result<()> {
    let new = path.with_extension("new");
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
    file.write_all(content)?;
    file.sync_all()?;
    fs::rename(&new, path)?;
    sync_parent(path)
}

/// Makes the entries of the folder that holds `path` durable.
///
/// # Errors
/// The folder cannot be synced.
pub fn sync_parent(path: &Path) -> io::Result<()> {
    match path.parent() {
        Some(folder) => File::open(folder)?.sync_all(),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_private_and_made_once() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a/b");
        private_dir(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o700);
        let file = path.join("key");
        assert_eq!(secret(&file, || "one".into()).unwrap(), "one");
        assert_eq!(secret(&file, || "two".into()).unwrap(), "one");
        assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
        fs::set_permissions(&file, Permissions::from_mode(0o644)).unwrap();
        let err = secret(&file, || "two".into()).unwrap_err();
        assert!(err.to_string().contains("chmod 600"), "{err}");
    }
}
