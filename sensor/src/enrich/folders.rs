//! Paths of current folders, by device and inode.
//!
//! Filled from `/proc/PID/cwd`, which counts only if it is still the folder of the event. A folder's path is believed for
//! [`FRESH`]: folders can be renamed.

use std::collections::HashMap;
use std::fs::File;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use sallyport_evidence::record::limits;

use super::{FileId, executables::identify, mounts};

/// So long a path is believed.
const FRESH: Duration = Duration::from_secs(10);
/// Folders remembered; when there are more, all are forgotten.
const REMEMBERED: usize = 8_192;

/// A folder's path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Folder {
    /// As text; bytes that are no UTF-8 are replaced.
    pub path: String,
    /// It is longer than [`limits::PATH_ELSEWHERE`].
    pub cut: bool,
}

/// The folders that are known.
#[derive(Debug, Default)]
pub(super) struct Folders {
    known: Mutex<HashMap<FileId, (Folder, Instant)>>,
}

impl Folders {
    /// The path of a folder that a process was in.
    pub(super) fn path(&self, id: FileId, tgid: u32) -> Option<Folder> {
        let now = Instant::now();
        if let Some((folder, at)) = self.known.lock().unwrap_or_else(PoisonError::into_inner).get(&id)
            && now.duration_since(*at) < FRESH
        {
            return Some(folder.clone());
        }
        if mounts::may_hang(id.0, tgid) {
            return None;
        }
        let link = format!("/proc/{tgid}/cwd");
        // PATH: the folder itself is not opened.
        let file =
            File::options().read(true).custom_flags(libc::O_PATH | libc::O_CLOEXEC).open(&link).ok()?;
        let metadata = file.metadata().ok()?;
        if !identify(&file, &metadata, tgid, id) {
            return None;
        }
        let path = std::fs::read_link(&link).ok()?;
        let folder = folder(path.as_os_str().as_bytes());
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= REMEMBERED {
            known.clear();
        }
        known.insert(id, (folder.clone(), now));
        Some(folder)
    }
}

/// The path as it is kept.
pub(crate) fn folder(bytes: &[u8]) -> Folder {
    let (path, cut) =
        crate::records::cut(String::from_utf8_lossy(bytes).into_owned(), limits::PATH_ELSEWHERE);
    Folder { path, cut }
}
