//! SHA-256 of executables, cached by what the file is and when it last changed.
//!
//! What is hashed must be what was executed: the file is opened by `/proc/PID/exe` or by its path, and counts only if device
//! and inode are those of the event. While a program runs its file cannot be written to; a file that was reached by
//! path and changed after the event is not taken. Files on file systems that somebody else answers for (FUSE, network)
//! are not opened.

use std::collections::HashMap;
use std::fs::File;
use std::io::Read as _;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::Path;
use std::sync::mpsc::Receiver;
use std::sync::{Arc, Mutex, PoisonError};

use sha2::{Digest as _, Sha256};
use tokio::sync::mpsc;

use super::{Answer, FileId, Question, mounts};

/// Largest file that is hashed, in bytes.
const LARGEST: u64 = 512 << 20;
/// Hashes remembered; when there are more, all are forgotten and made again as they are needed.
const REMEMBERED: usize = 16_384;

/// What a file's content depends on: file, change time, size.
type Version = (FileId, i64, i64, u64);

/// The hashes that are known.
#[derive(Clone, Debug, Default)]
pub struct Hashes {
    known: Arc<Mutex<HashMap<Version, String>>>,
}

/// What is known of a file's hash.
#[derive(Debug)]
pub enum Found {
    /// The hash.
    Known(String),
    /// It must be made.
    Pending(Pending),
    /// It cannot be had.
    No,
}

/// A file to be hashed.
#[derive(Debug)]
pub struct Pending {
    question: Question,
    file: File,
    version: Version,
}

impl Hashes {
    /// The hash of the executable that a question is about.
    #[must_use]
    pub fn look(&self, question: Question) -> Found {
        let Some((id, path)) = &question.executable else { return Found::No };
        if mounts::may_hang(id.0, question.tgid) {
            return Found::No;
        }
        let of_process = format!("/proc/{}/exe", question.tgid);
        let opened = open(Path::new(&of_process), *id, question.tgid)
            .or_else(|| open(path, *id, question.tgid).filter(|(_, version)| unchanged(version, &question)));
        let Some((file, version)) = opened else { return Found::No };
        if version.3 > LARGEST {
            return Found::No;
        }
        match self.known.lock().unwrap_or_else(PoisonError::into_inner).get(&version) {
            Some(hash) => Found::Known(hash.clone()),
            None => Found::Pending(Pending { question, file, version }),
        }
    }

    fn remember(&self, version: Version, hash: String) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= REMEMBERED {
            known.clear();
        }
        known.insert(version, hash);
    }
}

/// Not changed since it was executed, as far as its change time tells (which has the resolution of the kernel's tick).
fn unchanged((_, seconds, nanos, _): &Version, question: &Question) -> bool {
    let changed = seconds.saturating_mul(1_000_000_000).saturating_add(*nanos);
    u64::try_from(changed).is_ok_and(|changed| changed <= question.time_ns)
}

/// Opens a regular file if it is the wanted one.
fn open(path: &Path, wanted: FileId, tgid: u32) -> Option<(File, Version)> {
    // NONBLOCK: somebody may have put a pipe there meanwhile.
    let file = File::options()
        .read(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY | libc::O_CLOEXEC)
        .open(path)
        .ok()?;
    let version = version(&file, wanted, tgid)?;
    Some((file, version))
}

fn version(file: &File, wanted: FileId, tgid: u32) -> Option<Version> {
    let metadata = file.metadata().ok()?;
    let is_wanted = metadata.is_file() && identify(file, &metadata, tgid, wanted);
    is_wanted.then(|| (wanted, metadata.ctime(), metadata.ctime_nsec(), metadata.size()))
}

/// Whether an open file is the one that the kernel programs named. File systems with several devices (btrfs, overlay) show another
/// device to `stat` than their superblock has; then the mount tells.
pub(crate) fn identify(
    file: &File,
    metadata: &std::fs::Metadata,
    tgid: u32,
    (device, inode): FileId,
) -> bool {
    metadata.ino() == inode
        && (mounts::encode(metadata.dev()) == device || mounts::device_of(file, tgid) == Some(device))
}

/// The hashing thread.
pub(super) fn hash_all(pending: &Receiver<Pending>, hashes: &Hashes, answers: &mpsc::Sender<Answer>) {
    while let Ok(Pending { question, mut file, version }) = pending.recv() {
        let known = hashes.known.lock().unwrap_or_else(PoisonError::into_inner).get(&version).cloned();
        let hash = known.or_else(|| {
            let hash = hash(&mut file)?;
            // The file may have been changed while it was read: then nobody knows which content that was.
            (self::version(&file, version.0, question.tgid)? == version).then_some(hash)
        });
        if let Some(hash) = &hash {
            hashes.remember(version, hash.clone());
        }
        let answer = Answer {
            id: question.id,
            tgid: question.tgid,
            started: question.started,
            executable: Some(version.0),
            sha256: hash,
            ..Answer::default()
        };
        if answers.blocking_send(answer).is_err() {
            return;
        }
    }
}

fn hash(file: &mut File) -> Option<String> {
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 256 << 10];
    loop {
        let n = file.read(&mut buffer).ok()?;
        if n == 0 {
            return Some(hex::encode(hash.finalize()));
        }
        hash.update(&buffer[..n]);
    }
}
