//! The folder of pins: who is in charge of it, what is in it.
//!
//! `maps/NAME`; `links-N/PROGRAM` and `programs-N/PROGRAM` for generation N of the programs.

use std::fs::File;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};

use super::{KernelError, mounts};

/// The right to change the pins; held by one process at a time, freed by the kernel when that ends.
#[derive(Debug)]
pub(super) struct PinLock {
    _folder: Flock<File>,
}

/// Makes the folder if needed and takes charge of it.
pub(super) fn open(pin_dir: &Path) -> Result<PinLock, KernelError> {
    mounts::ensure_bpffs(pin_dir)?;
    let pin = |source: std::io::Error| KernelError::Pin { path: pin_dir.into(), source: source.into() };
    std::fs::create_dir_all(pin_dir.join("maps")).map_err(pin)?;
    std::os::unix::fs::chown(pin_dir, Some(0), Some(0)).map_err(pin)?;
    std::fs::set_permissions(pin_dir, std::os::unix::fs::PermissionsExt::from_mode(0o700)).map_err(pin)?;
    let folder = File::open(pin_dir).map_err(pin)?;
    let lock = Flock::lock(folder, FlockArg::LockExclusiveNonblock).map_err(|(_, errno)| match errno {
        Errno::EWOULDBLOCK => KernelError::InUse { path: pin_dir.into() },
        _ => pin(errno.into()),
    })?;
    Ok(PinLock { _folder: lock })
}

/// Whether a process is in charge of the folder now. Takes no lock, which would be in the way of one that starts.
pub(super) fn in_charge(pin_dir: &Path) -> bool {
    use std::os::unix::fs::MetadataExt as _;
    let Ok(meta) = std::fs::metadata(pin_dir) else { return false };
    let (major, minor) = (nix::sys::stat::major(meta.dev()), nix::sys::stat::minor(meta.dev()));
    // `1: FLOCK  ADVISORY  WRITE 812 00:1b:4711 0 EOF`
    let place = format!("{major:02x}:{minor:02x}:{}", meta.ino());
    let locks = std::fs::read_to_string("/proc/locks").unwrap_or_default();
    locks.lines().any(|line| {
        let mut fields = line.split_whitespace();
        line.contains(" FLOCK ") && fields.any(|field| field == place)
    })
}

/// `maps/NAME`.
pub(super) fn map(pin_dir: &Path, name: &str) -> PathBuf {
    pin_dir.join("maps").join(name)
}

/// Folder of a generation's links.
pub(super) fn links(pin_dir: &Path, generation: u64) -> PathBuf {
    pin_dir.join(format!("links-{generation}"))
}

/// Folder of a generation's programs.
pub(super) fn programs(pin_dir: &Path, generation: u64) -> PathBuf {
    pin_dir.join(format!("programs-{generation}"))
}

/// The generations that have links, whether complete or not.
pub(super) fn generations(pin_dir: &Path) -> Result<Vec<u64>, KernelError> {
    let mut found = Vec::new();
    let pin = |source: std::io::Error| KernelError::Pin { path: pin_dir.into(), source: source.into() };
    for entry in std::fs::read_dir(pin_dir).map_err(pin)? {
        let name = entry.map_err(pin)?.file_name();
        let name = name.to_string_lossy();
        if let Some(number) = name.strip_prefix("links-").or(name.strip_prefix("programs-"))
            && let Ok(number) = number.parse()
        {
            found.push(number);
        }
    }
    Ok(found)
}

/// Removes a generation's links (which detaches its programs) and programs.
pub(super) fn remove_generation(pin_dir: &Path, generation: u64) -> Result<(), KernelError> {
    remove_tree(&links(pin_dir, generation))?;
    remove_tree(&programs(pin_dir, generation))
}

/// Removes everything.
pub(super) fn remove_all(pin_dir: &Path) -> Result<(), KernelError> {
    if !pin_dir.exists() {
        return Ok(());
    }
    let _lock = open(pin_dir)?;
    // Links first: nothing may be judged by maps that are going.
    for generation in generations(pin_dir)? {
        remove_generation(pin_dir, generation)?;
    }
    remove_tree(pin_dir)
}

fn remove_tree(path: &Path) -> Result<(), KernelError> {
    match std::fs::remove_dir_all(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(KernelError::Pin { path: path.into(), source: error.into() })
        }
        _ => Ok(()),
    }
}
