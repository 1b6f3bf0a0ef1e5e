//! What of policy is on disk: the accepted orders (`orders.json`), the bundles that they name, and the names of earlier ones.
//!
//! A bundle is written before the order that names it, and removed after no order does: whenever the sensor is killed, the
//! orders on disk are whole, and so are their bundles.

use std::io;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use sallyport_evidence::order::WHOLE;
use sha2::{Digest, Sha256};

use super::orders::{Accepted, Held};
use crate::files;

const ORDERS: &str = "orders.json";
const HISTORY: &str = "history";
/// As sensors before orders were signed kept the only bundle.
const UNSIGNED: &str = "bundle";
/// How many earlier versions a host remembers.
const REMEMBERED: usize = 64;

/// The folder.
#[derive(Debug)]
pub(super) struct Kept {
    folder: PathBuf,
}

impl Kept {
    pub(super) fn open(folder: PathBuf) -> io::Result<Self> {
        files::private_dir(&folder)?;
        Ok(Self { folder })
    }

    /// The accepted orders.
    pub(super) fn held(&self) -> io::Result<Held> {
        match files::read_json(&self.folder.join(ORDERS)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => self.unsigned(),
            result => result,
        }
    }

    /// A sensor before this one kept a bundle and nothing else.
    fn unsigned(&self) -> io::Result<Held> {
        let archive = match std::fs::read(self.folder.join(UNSIGNED)) {
            Ok(archive) => archive,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Held::default()),
            Err(error) => return Err(error),
        };
        let version = hex::encode(Sha256::digest(&archive));
        files::write_private(&self.bundle(&version), &archive)?;
        Ok(Held { stable: Some(Accepted { version, share: WHOLE, ..Accepted::default() }), canary: None })
    }

    /// A bundle that an accepted order names, if it is whole.
    pub(super) fn archive(&self, version: &str) -> io::Result<Bytes> {
        let archive = std::fs::read(self.bundle(version))?;
        if hex::encode(Sha256::digest(&archive)) == version {
            Ok(archive.into())
        } else {
            Err(io::Error::new(io::ErrorKind::InvalidData, "its content is not what its name says"))
        }
    }

    /// Keeps orders, and the bundle that is new with them.
    pub(super) fn keep(&self, held: &Held, version: &str, archive: &[u8]) -> io::Result<()> {
        let path = self.bundle(version);
        if self.archive(version).is_err() {
            files::write_private(&path, archive)?;
        }
        files::write_json(&self.folder.join(ORDERS), held)?;
        let _ = std::fs::remove_file(self.folder.join(UNSIGNED));
        let named = |name: &str| {
            let orders = held.stable.iter().chain(&held.canary);
            orders.map(|order| format!("{}.bundle", order.version)).any(|kept| kept == name)
        };
        for entry in std::fs::read_dir(&self.folder)?.flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            if name.ends_with(".bundle") && !named(&name) {
                let _ = std::fs::remove_file(entry.path());
            }
        }
        Ok(())
    }

    /// Earlier versions, oldest first.
    pub(super) fn history(&self) -> Vec<String> {
        let history = std::fs::read_to_string(self.folder.join(HISTORY)).unwrap_or_default();
        history.lines().map(str::to_owned).collect()
    }

    /// Adds what is no longer in force.
    pub(super) fn remember(&self, history: &mut Vec<String>, gone: &[String]) -> io::Result<()> {
        history.retain(|version| !gone.contains(version));
        history.extend_from_slice(gone);
        let surplus = history.len().saturating_sub(REMEMBERED);
        history.drain(..surplus);
        files::write_private(&self.folder.join(HISTORY), history.join("\n").as_bytes())
    }

    fn bundle(&self, version: &str) -> PathBuf {
        self.folder.join(format!("{version}.bundle"))
    }
}

/// Forgets the orders of a gateway: those of the next one count anew.
///
/// # Errors
/// The file system refuses.
pub fn forget(state_dir: &Path) -> io::Result<()> {
    match std::fs::remove_dir_all(super::folder(state_dir)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn accepted(serial: u64, archive: &[u8]) -> Accepted {
        let version = hex::encode(Sha256::digest(archive));
        Accepted { serial, version, share: WHOLE, ..Accepted::default() }
    }

    #[test]
    fn orders_and_their_bundles_are_kept_and_others_are_not() {
        let dir = tempfile::tempdir().expect("dir");
        let kept = Kept::open(dir.path().join("policy")).expect("open");
        assert_eq!(kept.held().expect("nothing yet"), Held::default());
        let (one, two) = (accepted(1, b"one"), accepted(2, b"two"));
        let held = Held { stable: Some(one.clone()), canary: None };
        kept.keep(&held, &one.version, b"one").expect("kept");
        let held = Held { stable: Some(one.clone()), canary: Some(two.clone()) };
        kept.keep(&held, &two.version, b"two").expect("kept");
        assert_eq!(kept.held().expect("held"), held);
        assert_eq!(kept.archive(&one.version).expect("one"), "one");
        assert_eq!(kept.archive(&two.version).expect("two"), "two");
        kept.keep(&Held { stable: Some(two.clone()), canary: None }, &two.version, b"two").expect("kept");
        assert!(kept.archive(&one.version).is_err(), "no order names it any more");
        std::fs::write(kept.bundle(&two.version), b"twO").expect("written");
        assert!(kept.archive(&two.version).is_err(), "a damaged bundle was given out");
    }

    #[test]
    fn what_an_earlier_sensor_kept_is_taken_over() {
        let dir = tempfile::tempdir().expect("dir");
        let kept = Kept::open(dir.path().to_owned()).expect("open");
        std::fs::write(dir.path().join(UNSIGNED), b"one").expect("written");
        let held = kept.held().expect("held");
        let stable = held.stable.clone().expect("one");
        assert_eq!((stable.serial, stable.statement.as_str()), (0, ""));
        assert_eq!(kept.archive(&stable.version).expect("one"), "one");
    }

    #[test]
    fn a_joined_host_begins_anew() {
        let dir = tempfile::tempdir().expect("dir");
        forget(dir.path()).expect("nothing to forget");
        let kept = Kept::open(super::super::folder(dir.path())).expect("open");
        let one = accepted(9, b"one");
        kept.keep(&Held { stable: Some(one.clone()), canary: None }, &one.version, b"one").expect("kept");
        forget(dir.path()).expect("forgotten");
        let kept = Kept::open(super::super::folder(dir.path())).expect("open");
        assert_eq!(kept.held().expect("held"), Held::default());
    }
}
