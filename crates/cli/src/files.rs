//! Private files: written whole or not at all, readable by their owner alone.

use std::{
    fs::{self, DirBuilder, OpenOptions},
    io::{self, Read, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
};

/// Why a file could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// Reading.
    #[error("cannot read `{}`", path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        err: io::Error,
    },
    /// Writing.
    #[error("cannot write `{}`", path.display())]
    Write {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        err: io::Error,
    },
    /// Larger than it can sensibly be.
    #[error("`{}` is larger than {limit} bytes, which it should never be", path.display())]
    TooLarge {
        /// Which.
        path: PathBuf,
        /// The most that is read.
        limit: u64,
    },
    /// Others may read a file that holds a secret.
    #[error("`{}` holds a secret and other users may read it; run `chmod 600` on it", path.display())]
    Exposed {
        /// Which.
        path: PathBuf,
    },
}

/// Makes a directory (and those above it) that only the owner may enter.
///
/// # Errors
/// It cannot be made.
pub fn private_dir(path: &Path) -> Result<(), FileError> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(|err| FileError::Write { path: path.to_owned(), err })
}

/// Replaces a file at once: a reader sees the old or the new content, and a crash leaves one of them. A
/// symbolic link is followed, so that a linked `~/.ssh/config` stays a link.
///
/// # Errors
/// It cannot be written.
pub fn replace(path: &Path, content: &[u8], mode: u32) -> Result<(), FileError> {
    let target = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let write = || -> io::Result<()> {
        let name = target.file_name().unwrap_or_default().to_string_lossy();
        let fresh = target.with_file_name(format!(".{name}.{}", std::process::id()));
        // One left by a crashed process with our id; `create_new` refuses anything that appears meanwhile.
        let _ = fs::remove_file(&fresh);
        let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(&fresh)?;
        let written = file.write_all(content).and_then(|()| file.sync_all());
        let moved = written.and_then(|()| fs::rename(&fresh, &target));
        if moved.is_err() {
            let _ = fs::remove_file(&fresh);
        }
        moved
    };
    write().map_err(|err| FileError::Write { path: path.to_owned(), err })
}

/// Reads a file of at most `limit` bytes; none if there is none.
///
/// # Errors
/// It cannot be read or is larger.
pub fn read(path: &Path, limit: u64) -> Result<Option<Vec<u8>>, FileError> {
    let file = match fs::File::open(path) {
        Ok(file) => file,
        Err(err) if err.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(err) => return Err(FileError::Read { path: path.to_owned(), err }),
    };
    let mut content = Vec::new();
    file.take(limit + 1)
        .read_to_end(&mut content)
        .map_err(|err| FileError::Read { path: path.to_owned(), err })?;
    if content.len() as u64 > limit {
        return Err(FileError::TooLarge { path: path.to_owned(), limit });
    }
    Ok(Some(content))
}

/// As [`read`], for a file with a secret: refuses one that others may read.
///
/// # Errors
/// As [`read`], or others may read it.
pub fn read_secret(path: &Path, limit: u64) -> Result<Option<Vec<u8>>, FileError> {
    if let Ok(facts) = fs::metadata(path)
        && facts.permissions().mode() & 0o077 != 0
    {
        return Err(FileError::Exposed { path: path.to_owned() });
    }
    read(path, limit)
}

/// Removes a file; says whether there was one.
///
/// # Errors
/// It is there and cannot be removed.
pub fn remove(path: &Path) -> Result<bool, FileError> {
    match fs::remove_file(path) {
        Ok(()) => Ok(true),
        Err(err) if err.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(err) => Err(FileError::Write { path: path.to_owned(), err }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replaced_whole_and_private() {
        let dir = tempfile::tempdir().expect("temp dir");
        let path = dir.path().join("secret");
        replace(&path, b"one", 0o600).expect("written");
        replace(&path, b"two", 0o600).expect("replaced");
        assert_eq!(read_secret(&path, 10).expect("read"), Some(b"two".to_vec()));
        assert_eq!(fs::metadata(&path).expect("there").permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::read_dir(dir.path()).expect("listed").count(), 1, "nothing is left behind");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).expect("chmod");
        assert!(matches!(read_secret(&path, 10), Err(FileError::Exposed { .. })));
        assert!(matches!(read(&path, 2), Err(FileError::TooLarge { .. })));
    }

    #[test]
    fn a_link_stays_a_link() {
        let dir = tempfile::tempdir().expect("temp dir");
        let (real, link) = (dir.path().join("real"), dir.path().join("link"));
        fs::write(&real, "old").expect("written");
        std::os::unix::fs::symlink(&real, &link).expect("linked");
        replace(&link, b"new", 0o600).expect("replaced");
        assert!(fs::symlink_metadata(&link).expect("there").is_symlink());
        assert_eq!(fs::read(&real).expect("read"), b"new");
    }
}
