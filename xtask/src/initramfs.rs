//! Writes the virtual machine's whole file system as an initramfs: the `newc` cpio format of
//! Documentation/driver-api/early-userspace/buffer-format.rst.

use std::collections::BTreeMap;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::{places, run};

/// Mode bits of a directory, a regular file, a symbolic link and a character device (`man 7 inode`).
const DIRECTORY: u32 = 0o040_000;
const REGULAR: u32 = 0o100_000;
const LINK: u32 = 0o120_000;
const CHARACTER: u32 = 0o020_000;

enum Node {
    Directory { mode: u32 },
    File { mode: u32, contents: Vec<u8> },
    Link { to: String },
    Device { mode: u32, major: u32, minor: u32 },
}

/// A file system being put together. Paths have no leading slash.
#[derive(Default)]
pub(crate) struct Tree {
    nodes: BTreeMap<String, Node>,
}

impl Tree {
    /// The folders, links and devices that every program expects, `/usr` merged as in Debian.
    pub(crate) fn with_skeleton() -> Self {
        let mut tree = Self::default();
        for folder in
            ["dev", "etc", "mnt", "opt", "proc", "root", "run", "sys", "usr/bin", "usr/sbin", "var/lib"]
        {
            tree.directory(folder, 0o755);
        }
        tree.directory("tmp", 0o1777);
        for merged in ["bin", "sbin", "lib", "lib64"] {
            tree.directory(&format!("usr/{merged}"), 0o755);
            tree.link(merged, &format!("usr/{merged}"));
        }
        // The kernel opens /dev/console for init before init can mount anything.
        tree.device("dev/console", 0o600, 5, 1);
        tree.device("dev/null", 0o666, 1, 3);
        tree
    }

    /// A directory, and those above it.
    pub(crate) fn directory(&mut self, path: &str, mode: u32) {
        let mut parent = String::new();
        for part in path.split('/').filter(|part| !part.is_empty()) {
            if !parent.is_empty() {
                parent.push('/');
            }
            parent.push_str(part);
            self.nodes.entry(parent.clone()).or_insert(Node::Directory { mode: 0o755 });
        }
        self.nodes.insert(parent, Node::Directory { mode });
    }

    /// A file with these contents.
    pub(crate) fn file(&mut self, path: &str, mode: u32, contents: impl Into<Vec<u8>>) {
        let path = path.trim_start_matches('/');
        if let Some((folder, _)) = path.rsplit_once('/')
            && !self.nodes.contains_key(folder)
        {
            self.directory(folder, 0o755);
        }
        self.nodes.insert(path.to_owned(), Node::File { mode, contents: contents.into() });
    }

    /// A symbolic link.
    pub(crate) fn link(&mut self, path: &str, to: &str) {
        self.nodes.insert(path.trim_start_matches('/').to_owned(), Node::Link { to: to.to_owned() });
    }

    fn device(&mut self, path: &str, mode: u32, major: u32, minor: u32) {
        self.nodes.insert(path.to_owned(), Node::Device { mode, major, minor });
    }

    /// A program of ours at `path`, without debugging information, and the libraries it needs.
    pub(crate) fn program(&mut self, path: &str, from: &Path) -> Result<()> {
        self.libraries(from)?;
        self.file(path, 0o755, stripped(from)?);
        Ok(())
    }

    /// A program of the machine under its own name, and the libraries it needs.
    pub(crate) fn system_program(&mut self, name: &str) -> Result<()> {
        let found = if name.starts_with('/') { Some(PathBuf::from(name)) } else { run::find(name) };
        let found = found.filter(|path| path.exists()).with_context(|| format!("`{name}` is not here"))?;
        // Alternatives (`nc`, `awk`) and merged folders are resolved: the guest has the real file, and
        // the name as a link to it.
        let real = found.canonicalize()?;
        self.libraries(&real)?;
        let (found, real_text) = (merged(&found), merged(&real));
        self.file(&real_text, 0o755, std::fs::read(&real)?);
        if found != real_text {
            self.link(&found, &format!("/{real_text}"));
        }
        Ok(())
    }

    /// A folder of the machine under its own name, without what `skip` names.
    pub(crate) fn system_folder(&mut self, folder: &Path, skip: &dyn Fn(&Path) -> bool) -> Result<()> {
        for entry in std::fs::read_dir(folder).with_context(|| format!("read {}", folder.display()))? {
            let path = entry?.path();
            if skip(&path) {
                continue;
            }
            let metadata = std::fs::metadata(&path)?;
            if metadata.is_dir() {
                self.system_folder(&path, skip)?;
            } else {
                self.file(&merged(&path), metadata.permissions().mode() & 0o7777, std::fs::read(&path)?);
            }
        }
        Ok(())
    }

    /// What the dynamic linker would load for `program`.
    fn libraries(&mut self, program: &Path) -> Result<()> {
        let listed = Command::new("ldd").arg(program).output().context("start ldd")?;
        // A static program: ldd says so and fails.
        for line in String::from_utf8_lossy(&listed.stdout).lines() {
            if line.contains("not found") {
                bail!("{} needs a library that is not here: {}", program.display(), line.trim());
            }
            let path = line.split("=> ").last().and_then(|rest| rest.split_whitespace().next());
            let Some(path) = path.filter(|path| path.starts_with('/')) else { continue };
            let at = merged(Path::new(path));
            if !self.nodes.contains_key(&at) {
                self.file(&at, 0o755, std::fs::read(path).with_context(|| format!("read {path}"))?);
            }
        }
        Ok(())
    }

    /// The cpio archive.
    pub(crate) fn archive(&self) -> Result<Vec<u8>> {
        let mut out = Vec::new();
        for (number, (path, node)) in (1u32..).zip(&self.nodes) {
            let (mode, contents, device): (u32, &[u8], (u32, u32)) = match node {
                Node::Directory { mode } => (DIRECTORY | mode, &[], (0, 0)),
                Node::File { mode, contents } => (REGULAR | mode, contents, (0, 0)),
                Node::Link { to } => (LINK | 0o777, to.as_bytes(), (0, 0)),
                Node::Device { mode, major, minor } => (CHARACTER | mode, &[], (*major, *minor)),
            };
            entry(&mut out, number, path, mode, contents, device)?;
        }
        entry(&mut out, 0, "TRAILER!!!", 0, &[], (0, 0))?;
        Ok(out)
    }
}

fn entry(
    out: &mut Vec<u8>,
    inode: u32,
    path: &str,
    mode: u32,
    contents: &[u8],
    device: (u32, u32),
) -> Result<()> {
    let links: u32 = if mode & DIRECTORY != 0 { 2 } else { 1 };
    let size = u32::try_from(contents.len()).context("a file of the guest is over 4 GiB")?;
    let name = u32::try_from(path.len() + 1)?;
    // magic, ino, mode, uid, gid, nlink, mtime, filesize, devmajor, devminor, rdevmajor, rdevminor,
    // namesize, check
    write!(out, "070701")?;
    for field in [inode, mode, 0, 0, links, 0, size, 0, 0, device.0, device.1, name, 0] {
        write!(out, "{field:08x}")?;
    }
    out.extend_from_slice(path.as_bytes());
    out.push(0);
    pad(out);
    out.extend_from_slice(contents);
    pad(out);
    Ok(())
}

fn pad(out: &mut Vec<u8>) {
    out.resize(out.len().next_multiple_of(4), 0);
}

/// The path in a file system where /bin, /sbin, /lib and /lib64 are links into /usr.
fn merged(path: &Path) -> String {
    let text = path.to_string_lossy();
    let text = text.trim_start_matches('/');
    for folder in ["bin/", "sbin/", "lib/", "lib64/"] {
        if text.starts_with(folder) {
            return format!("usr/{text}");
        }
    }
    text.to_owned()
}

/// Copies of our programs without debugging information are kept by the original's time and size.
fn stripped(program: &Path) -> Result<Vec<u8>> {
    let metadata = std::fs::metadata(program).with_context(|| format!("find {}", program.display()))?;
    let folder = places::cache().join("stripped");
    std::fs::create_dir_all(&folder)?;
    let modified = metadata.modified()?.duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    let name = program.file_name().unwrap_or_default().to_string_lossy();
    let copy = folder.join(format!("{name}-{}-{}", metadata.len(), modified.as_nanos()));
    if !copy.exists() {
        for old in std::fs::read_dir(&folder)? {
            let old = old?;
            let same = old.file_name().to_str().is_some_and(|other| is_copy_of(other, &name));
            if same {
                let _ = std::fs::remove_file(old.path());
            }
        }
        let partial = folder.join(format!("{name}.{}", std::process::id()));
        run::output(Command::new("strip").arg("-o").arg(&partial).arg(program))?;
        std::fs::rename(&partial, &copy)?;
    }
    Ok(std::fs::read(&copy)?)
}

/// `NAME-SIZE-TIME`
fn is_copy_of(file: &str, name: &str) -> bool {
    file.strip_prefix(name).and_then(|rest| rest.strip_prefix('-')).is_some_and(|rest| {
        let mut numbers = rest.split('-');
        let numeric =
            |text: Option<&str>| text.is_some_and(|text| text.bytes().all(|byte| byte.is_ascii_digit()));
        numeric(numbers.next()) && numeric(numbers.next()) && numbers.next().is_none()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_archive_lists_folders_before_what_is_in_them() -> Result<()> {
        let mut tree = Tree::with_skeleton();
        tree.file("opt/sallyport/hello", 0o644, *b"hello");
        let archive = tree.archive()?;
        let find = |text: &str| archive.windows(text.len()).position(|window| window == text.as_bytes());
        let (folder, file) = (find("opt/sallyport\0"), find("opt/sallyport/hello\0"));
        assert!(folder.is_some() && folder < file);
        assert_eq!(archive.len() % 4, 0);
        assert!(archive.starts_with(b"070701"));
        Ok(())
    }

    #[test]
    fn merged_folders_move_below_usr() {
        assert_eq!(merged(Path::new("/lib64/ld-linux-x86-64.so.2")), "usr/lib64/ld-linux-x86-64.so.2");
        assert_eq!(merged(Path::new("/usr/bin/ssh")), "usr/bin/ssh");
    }

    #[test]
    fn stripped_copies_are_told_apart_by_whole_name() {
        assert!(is_copy_of("sallyport-123-456", "sallyport"));
        assert!(!is_copy_of("sallyport-sensor-123-456", "sallyport"));
    }
}
