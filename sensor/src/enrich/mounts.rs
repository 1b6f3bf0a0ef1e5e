//! Which file system a device is, by `/proc/PID/mountinfo`.

use std::collections::HashMap;
use std::ffi::OsString;
use std::fs::File;
use std::os::fd::AsRawFd as _;
use std::os::unix::ffi::OsStringExt as _;
use std::path::{Path, PathBuf};

/// File systems whose answers depend on somebody who may not give them: a server, or a process of the session itself.
const MAY_HANG: [&str; 10] =
    ["fuse", "fuseblk", "nfs", "nfs4", "cifs", "smb3", "ceph", "afs", "autofs", "ncpfs"];

/// A line of mountinfo, as far as it is needed.
struct Mount<'a> {
    id: &'a str,
    device: u32,
    point: &'a str,
    kind: &'a str,
}

/// The mounts that this process sees.
#[derive(Debug)]
pub(crate) struct Mounts(HashMap<u64, Seen>);

#[derive(Debug)]
struct Seen {
    device: u32,
    point: PathBuf,
    may_hang: bool,
}

impl Mounts {
    /// Of this moment.
    pub(crate) fn read() -> Self {
        let text = read("self").unwrap_or_default();
        let seen = |mount: Mount<'_>| {
            let (device, point) = (mount.device, unescape(mount.point));
            Some((mount.id.parse().ok()?, Seen { device, point, may_hang: is_slow(mount.kind) }))
        };
        Self(mounts(&text).filter_map(seen).collect())
    }

    /// The device of a mount's superblock.
    pub(crate) fn device(&self, id: u64) -> Option<u32> {
        self.0.get(&id).map(|mount| mount.device)
    }

    /// Where it is mounted.
    pub(crate) fn point(&self, id: u64) -> Option<&Path> {
        self.0.get(&id).map(|mount| mount.point.as_path())
    }

    /// Whether looking a path up may wait for ever: a mount on its way need not answer.
    pub(crate) fn may_hang(&self, path: &Path) -> bool {
        self.0.values().any(|mount| mount.may_hang && path.starts_with(&mount.point))
    }

    /// `major << 20 | minor`.
    pub(crate) fn encode(major: u32, minor: u32) -> u32 {
        kernel_device(major.into(), minor.into())
    }
}

fn is_slow(kind: &str) -> bool {
    MAY_HANG.contains(&kind.split('.').next().unwrap_or_default())
}

/// Spaces and the like are written as `\040`.
fn unescape(point: &str) -> PathBuf {
    let mut bytes = Vec::with_capacity(point.len());
    let mut rest = point.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        let code =
            after.get(..3).and_then(|code| u8::from_str_radix(std::str::from_utf8(code).ok()?, 8).ok());
        match code.filter(|_| *first == b'\\') {
            Some(code) => {
                bytes.push(code);
                rest = &after[3..];
            }
            None => {
                bytes.push(*first);
                rest = after;
            }
        }
    }
    PathBuf::from(OsString::from_vec(bytes))
}

/// `major << 20 | minor`, from what `stat` says.
pub(crate) fn encode(device: u64) -> u32 {
    kernel_device(nix::sys::stat::major(device), nix::sys::stat::minor(device))
}

/// The device of the superblock that an open file's mount shows; none if that mount is not in the process's namespace nor in ours.
pub(crate) fn device_of(file: &File, tgid: u32) -> Option<u32> {
    let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", file.as_raw_fd())).ok()?;
    let id = info.lines().find_map(|line| line.strip_prefix("mnt_id:"))?.trim();
    let find = |text: String| mounts(&text).find(|mount| mount.id == id).map(|mount| mount.device);
    read("self").and_then(find).or_else(|| read(&tgid.to_string()).and_then(find))
}

/// Whether opening a file on that device may wait for ever. One that is not mounted anywhere we can see counts as such.
pub(super) fn may_hang(device: u32, tgid: u32) -> bool {
    let find = |text: String| {
        let kind = mounts(&text).find(|mount| mount.device == device).map(|mount| mount.kind.to_owned());
        kind.map(|kind| is_slow(&kind))
    };
    read("self").and_then(find).or_else(|| read(&tgid.to_string()).and_then(find)).unwrap_or(true)
}

fn read(process: &str) -> Option<String> {
    std::fs::read_to_string(format!("/proc/{process}/mountinfo")).ok()
}

/// `36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw`, proc(5).
fn mounts(text: &str) -> impl Iterator<Item = Mount<'_>> {
    text.lines().filter_map(|line| {
        let mut words = line.split(' ');
        let (id, device, point) = (words.next()?, words.nth(1)?, words.nth(1)?);
        let (major, minor) = device.split_once(':')?;
        let kind = line.split_once(" - ")?.1.split(' ').next()?;
        Some(Mount { id, device: kernel_device(major.parse().ok()?, minor.parse().ok()?), point, kind })
    })
}

fn kernel_device(major: u64, minor: u64) -> u32 {
    // 12 and 20 bits, as in the kernel's `dev_t`.
    u32::try_from((major & 0xfff) << 20 | (minor & 0xf_ffff)).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mountinfo_is_read_with_and_without_optional_fields() {
        let text = "36 35 98:0 /a /b\\040c rw,noatime master:1 shared:2 - ext3 /dev/root rw\n\
            37 35 0:45 / /home/u/x rw - fuse.sshfs u@h: rw\nrubbish\n";
        let found: Vec<_> =
            mounts(text).map(|mount| (mount.id, mount.device, unescape(mount.point), mount.kind)).collect();
        let expected =
            [("36", 98 << 20, "/b c".into(), "ext3"), ("37", 45, "/home/u/x".into(), "fuse.sshfs")];
        assert_eq!(found, expected);
    }

    #[test]
    fn this_program_lies_on_a_file_system_that_answers() {
        let file = File::open("/proc/self/exe").expect("this program");
        let device = device_of(&file, std::process::id()).expect("its mount");
        assert!(!may_hang(device, std::process::id()));
        assert!(may_hang(0xfff << 20 | 0xf_ffff, std::process::id()), "no such device");
    }
}
