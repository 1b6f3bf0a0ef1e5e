//! The file systems that are needed: bpffs for pins, cgroup2 to attach to.

use std::fs::File;
use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::statfs::{BPF_FS_MAGIC, CGROUP2_SUPER_MAGIC, FsType, statfs};

/// Where distributions mount it.
const BPFFS: &str = "/sys/fs/bpf";

/// A file system is missing and cannot be mounted.
#[derive(Debug, thiserror::Error)]
pub enum MountError {
    /// No bpffs.
    #[error("cannot mount a bpf file system on {BPFFS}")]
    Bpffs(#[source] nix::Error),
    /// Pins must be on a bpffs.
    #[error("`{0}` is not on a bpf file system; choose a folder below {BPFFS}")]
    NotBpffs(PathBuf),
    /// No cgroup2.
    #[error("no cgroup2 hierarchy is mounted, and none can be mounted on `{path}`")]
    Cgroup {
        /// Where it was tried.
        path: PathBuf,
        /// Cause.
        #[source]
        source: std::io::Error,
    },
    /// Not a cgroup2.
    #[error("`{0}` is not the root of a cgroup2 hierarchy")]
    NotCgroup(PathBuf),
}

fn is(path: &Path, magic: FsType) -> bool {
    statfs(path).is_ok_and(|found| found.filesystem_type() == magic)
}

/// The nearest ancestor that exists.
fn existing(path: &Path) -> &Path {
    path.ancestors().find(|path| path.exists()).unwrap_or(Path::new("/"))
}

/// Sees to it that `pin_dir` is, or will be, on a bpffs.
pub(super) fn ensure_bpffs(pin_dir: &Path) -> Result<(), MountError> {
    if is(existing(pin_dir), BPF_FS_MAGIC) {
        return Ok(());
    }
    if pin_dir.starts_with(BPFFS) {
        mount(
            Some("bpf"),
            BPFFS,
            Some("bpf"),
            MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC | MsFlags::MS_RELATIME,
            Some("mode=700"),
        )
        .map_err(MountError::Bpffs)?;
        return Ok(());
    }
    Err(MountError::NotBpffs(pin_dir.into()))
}

/// The root of the cgroup2 hierarchy, if one is mounted: the unified and the hybrid place, then any.
pub(super) fn cgroup2() -> Option<PathBuf> {
    let usual = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"].map(PathBuf::from);
    usual.into_iter().find(|path| is(path, CGROUP2_SUPER_MAGIC)).or_else(|| {
        let mounts = std::fs::read_to_string("/proc/self/mounts").ok()?;
        mounts.lines().find_map(|line| {
            let mut fields = line.split(' ');
            let (_, path, kind) = (fields.next(), fields.next()?, fields.next()?);
            (kind == "cgroup2").then(|| PathBuf::from(path))
        })
    })
}

/// Opens the root of the cgroup2 hierarchy, mounting it for a moment if it is nowhere. What is attached stays
/// attached to the hierarchy, wherever that is mounted.
pub(super) fn open_cgroup(given: Option<&Path>) -> Result<File, MountError> {
    let open =
        |path: &Path| File::open(path).map_err(|source| MountError::Cgroup { path: path.into(), source });
    if let Some(path) = given {
        return if is(path, CGROUP2_SUPER_MAGIC) {
            open(path)
        } else {
            Err(MountError::NotCgroup(path.into()))
        };
    }
    if let Some(path) = cgroup2() {
        return open(&path);
    }
    let path = PathBuf::from("/run/sallyport-cgroup2");
    let failed = |source: std::io::Error| MountError::Cgroup { path: path.clone(), source };
    std::fs::create_dir_all(&path).map_err(failed)?;
    mount(Some("cgroup2"), &path, Some("cgroup2"), MsFlags::empty(), None::<&str>)
        .map_err(|errno| failed(errno.into()))?;
    let folder = open(&path);
    // The descriptor keeps it alive.
    let _ = umount2(&path, MntFlags::MNT_DETACH);
    let _ = std::fs::remove_dir(&path);
    folder
}
