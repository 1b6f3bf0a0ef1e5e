//! Paths of cgroups by id, and the container that a path tells of.
//!
//! The id that the kernel programs send is the inode number of the cgroup's folder in the cgroup2 hierarchy. The process's
//! own `/proc/PID/cgroup` usually names it; if the process is gone, the hierarchy is walked, at most once in a second.

use std::collections::HashMap;
use std::os::unix::fs::DirEntryExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use sallyport_evidence::record::limits;

/// Between two walks.
const WALK_EVERY: Duration = Duration::from_secs(1);
/// Folders that a walk looks at at most.
const WALKED: usize = 65_536;

/// A cgroup.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cgroup {
    /// Path below the hierarchy's root, which is `/`.
    pub path: String,
    /// Id of the container, if the path tells of one.
    pub container: String,
}

/// The cgroups that are known.
#[derive(Debug)]
pub(super) struct Cgroups {
    root: Option<PathBuf>,
    known: Mutex<Known>,
}

#[derive(Debug, Default)]
struct Known {
    by_id: HashMap<u64, Cgroup>,
    walked: Option<Instant>,
}

impl Cgroups {
    pub(super) fn new(root: Option<PathBuf>) -> Self {
        Self { root, known: Mutex::default() }
    }

    /// The cgroup with an id, of which the process is or was a member.
    pub(super) fn find(&self, id: u64, tgid: u32) -> Option<Cgroup> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(cgroup) = known.by_id.get(&id) {
            return Some(cgroup.clone());
        }
        let root = self.root.as_deref()?;
        if let Some(path) = of_process(tgid)
            && std::fs::metadata(root.join(path.trim_start_matches('/'))).is_ok_and(|found| found.ino() == id)
        {
            let cgroup = cgroup(path);
            known.by_id.insert(id, cgroup.clone());
            return Some(cgroup);
        }
        if known.walked.is_none_or(|at| at.elapsed() >= WALK_EVERY) {
            // Also forgets those that are gone; ids are not used twice.
            known.by_id = walk(root);
            known.walked = Some(Instant::now());
        }
        known.by_id.get(&id).cloned()
    }
}

fn of_process(tgid: u32) -> Option<String> {
    let text = std::fs::read_to_string(format!("/proc/{tgid}/cgroup")).ok()?;
    text.lines().find_map(|line| line.strip_prefix("0::")).map(str::to_owned)
}

fn cgroup(path: String) -> Cgroup {
    let container = container_of(&path).unwrap_or_default().to_owned();
    let (path, cut) = crate::records::cut(path, limits::CGROUP);
    Cgroup { path: if cut { format!("{path}…") } else { path }, container }
}

fn walk(root: &Path) -> HashMap<u64, Cgroup> {
    let mut found = HashMap::new();
    if let Ok(metadata) = std::fs::metadata(root) {
        found.insert(metadata.ino(), cgroup("/".into()));
    }
    let mut folders = vec![root.to_owned()];
    while let Some(folder) = folders.pop()
        && found.len() < WALKED
    {
        let Ok(entries) = std::fs::read_dir(&folder) else { continue };
        for entry in entries.flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                let path = entry.path();
                let below = path.strip_prefix(root).unwrap_or(&path);
                found.insert(entry.ino(), cgroup(format!("/{}", below.display())));
                folders.push(path);
            }
        }
    }
    found
}

/// The container's id in a cgroup path: 64 hexadecimal digits, alone (`/docker/ID`, `/kubepods/…/ID`) or in a unit's name
/// (`docker-ID.scope`, `cri-containerd-ID.scope`, `crio-ID.scope`, `libpod-ID.scope`); else the machine of `machine.slice`.
#[must_use]
pub fn container_of(path: &str) -> Option<&str> {
    let is_id = |text: &&str| text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    let by_id = path.rsplit('/').find_map(|part| {
        let part = part.strip_suffix(".scope").unwrap_or(part);
        Some(part).filter(is_id).or_else(|| part.rsplit_once('-').map(|(_, id)| id).filter(is_id))
    });
    by_id.or_else(|| {
        let machine = path.strip_prefix("/machine.slice/")?.split('/').next()?;
        machine.strip_prefix("machine-")?.strip_suffix(".scope")
    })
}
