//! What names are now: device and inode, without following links.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::CString;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use sallyport_sensor_abi::names::{MAX_NAMES, NAME_BYTES};

use super::{OwnFiles, Registered};
use crate::enrich::{FileId, Mounts};

/// A name that is not registered, and why.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Unregistered {
    /// The name.
    pub name: String,
    /// Why not.
    pub why: &'static str,
}

/// What a look at all names found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Look {
    /// To be in the kernel.
    pub registered: Registered,
    /// What cannot be, except for names of which there is no file now.
    pub unregistered: BTreeSet<Unregistered>,
}

/// Looks up all names: the sensor's own first, then those of policies.
#[must_use]
pub(super) fn look(own: &OwnFiles, names: &BTreeSet<String>, mounts: &Mounts) -> Look {
    let mut look = Look::default();
    let mut folders = BTreeMap::new();
    for (path, flags) in &own.names {
        // Whatever links its configured name goes through: what is guarded is the file itself.
        if let Ok(path) = std::fs::canonicalize(path) {
            look.register(&path, *flags, mounts);
        }
    }
    for name in names {
        let path = Path::new(name);
        // Judged paths have their links resolved: a name through a link is never one of them.
        let folder = path.parent().unwrap_or(path);
        if mounts.may_hang(path) {
            let why = "it lies on a file system that need not answer";
            look.unregistered.insert(Unregistered { name: name.clone(), why });
            continue;
        }
        let is_real = *folders
            .entry(folder.to_owned())
            .or_insert_with(|| std::fs::canonicalize(folder).is_ok_and(|real| real == folder));
        if is_real {
            look.register(path, 0, mounts);
        }
    }
    look
}

impl Look {
    fn register(&mut self, path: &Path, flags: u32, mounts: &Mounts) {
        let Some(id) = id_of(path, mounts) else { return };
        let name = path.to_string_lossy().into_owned();
        let mut refuse = |why| {
            self.unregistered.insert(Unregistered { name: name.clone(), why });
        };
        if path.as_os_str().len() > NAME_BYTES {
            return refuse("it is longer than what can be registered");
        }
        if self.registered.len() >= MAX_NAMES as usize {
            return refuse("there are too many names");
        }
        match self.registered.get_mut(&id) {
            None => drop(self.registered.insert(id, (name, flags))),
            Some((known, known_flags)) if *known == name => *known_flags |= flags,
            Some(_) => refuse("it is the same file as another registered name"),
        }
    }
}

/// Device (of the superblock) and inode of a file; of a link, the link's own.
fn id_of(path: &Path, mounts: &Mounts) -> Option<FileId> {
    let path = CString::new(path.as_os_str().as_bytes()).ok()?;
    // SAFETY: `statx` is integers only, for which all zeros are values.
    #[allow(unsafe_code, reason = "a C structure to be filled in")]
    let mut found: libc::statx = unsafe { std::mem::zeroed() };
    let wanted = libc::STATX_INO | STATX_MNT_ID;
    // SAFETY: `path` ends with a zero byte, and `found` is a live `statx` that is written to.
    #[allow(unsafe_code, reason = "no safe wrapper of statx")]
    let status = unsafe {
        libc::statx(libc::AT_FDCWD, path.as_ptr(), libc::AT_SYMLINK_NOFOLLOW, wanted, &raw mut found)
    };
    if status != 0 {
        return None;
    }
    let by_mount = (found.stx_mask & STATX_MNT_ID != 0).then(|| mounts.device(found.stx_mnt_id)).flatten();
    let device = by_mount.unwrap_or_else(|| Mounts::encode(found.stx_dev_major, found.stx_dev_minor));
    Some((device, found.stx_ino))
}

/// Fills `stx_mnt_id`; since Linux 5.8.
const STATX_MNT_ID: u32 = 0x1000;

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt as _;

    use sallyport_sensor_abi::names::{NAME_GUARDED, NAME_SECRET};

    use super::*;

    fn look(own: &OwnFiles, names: &BTreeSet<String>) -> Look {
        super::look(own, names, &Mounts::read())
    }

    fn names(paths: &[&Path]) -> BTreeSet<String> {
        paths.iter().map(|path| path.display().to_string()).collect()
    }

    #[test]
    fn names_are_looked_up_as_what_they_are_now() {
        let dir = tempfile::tempdir().expect("dir");
        let root = dir.path().canonicalize().expect("real");
        let (file, link, through) = (root.join("a"), root.join("l"), root.join("d/a"));
        let wanted = names(&[&file, &link, &through, &root]);
        let own = OwnFiles::default();
        let before = look(&own, &wanted);
        assert_eq!(before.registered.len(), 1, "only the folder is there: {before:?}");
        std::fs::write(&file, "x").expect("written");
        std::os::unix::fs::symlink(&file, &link).expect("link");
        std::os::unix::fs::symlink(&root, root.join("d")).expect("link to the folder");
        let after = look(&own, &wanted);
        let inode = |path: &Path| std::fs::symlink_metadata(path).expect("there").ino();
        let mut found: Vec<_> =
            after.registered.iter().map(|((_, inode), (name, _))| (*inode, name.clone())).collect();
        let mut expected: Vec<_> =
            [&file, &link, &root].map(|path| (inode(path), path.display().to_string())).to_vec();
        found.sort();
        expected.sort();
        assert_eq!(found, expected, "not the name through a link");
        // Replaced: another inode has the name.
        std::fs::write(root.join("b"), "y").expect("written");
        std::fs::rename(root.join("b"), &file).expect("replaced");
        let replaced = look(&own, &wanted);
        assert!(replaced.registered.keys().any(|(_, found)| *found == inode(&file)));
        assert_ne!(replaced, after);
    }

    #[test]
    fn what_cannot_be_registered_is_told() {
        let dir = tempfile::tempdir().expect("dir");
        let root = dir.path().canonicalize().expect("real");
        let long = root.join("x".repeat(240));
        let (one, two) = (root.join("one"), root.join("two"));
        for path in [&long, &one] {
            std::fs::write(path, "").expect("written");
        }
        std::fs::hard_link(&one, &two).expect("link");
        let look = look(&OwnFiles::default(), &names(&[&long, &one, &two]));
        assert_eq!(look.registered.len(), 1);
        let told: Vec<_> = look.unregistered.iter().map(|name| name.why).collect();
        assert_eq!(told.len(), 2);
        assert!(told.contains(&"it is longer than what can be registered"), "{told:?}");
        assert!(told.contains(&"it is the same file as another registered name"), "{told:?}");
    }

    #[test]
    fn own_files_are_guarded_through_links_and_keep_their_flags() {
        let dir = tempfile::tempdir().expect("dir");
        let root = dir.path().canonicalize().expect("real");
        let (secret, link) = (root.join("secret"), root.join("link"));
        std::fs::write(&secret, "").expect("written");
        std::os::unix::fs::symlink(&secret, &link).expect("link");
        let own = OwnFiles::default().hide([link]).guard([root.clone(), root.join("missing")]);
        let look = look(&own, &names(&[&secret]));
        let flags: BTreeMap<String, u32> = look.registered.into_values().collect();
        assert_eq!(flags[&secret.display().to_string()], NAME_GUARDED | NAME_SECRET);
        assert_eq!(flags[&root.display().to_string()], NAME_GUARDED);
    }
}
