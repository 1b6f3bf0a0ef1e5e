//! Where techniques are tried: files, sockets and processes made anew for every run, and the oracles that look at them from outside.
//!
//! The paths, ports and names are those that the bundle `tests/bundles/battery` speaks of.

use std::cell::RefCell;
use std::fmt::Write as _;
use std::io::Read as _;
use std::net::{TcpListener, UdpSocket};
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::os::unix::net::{SocketAddr as UnixAddress, UnixDatagram, UnixListener};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

use crate::elf;

/// What a technique's steps return.
pub(crate) type Outcome = std::io::Result<()>;

/// Everything lies below this folder.
pub(crate) const ROOT: &str = "/var/lib/sallyport-battery";
/// The port that [`crate::technique::Person::Listed`] may not connect to.
pub(crate) const PORT: u16 = 47_731;
/// The port that nobody forbids.
pub(crate) const OPEN_PORT: u16 = 47_732;
/// The port that may not be listened on.
pub(crate) const LISTEN_PORT: u16 = 47_733;
/// The abstract Unix socket that may not be reached.
pub(crate) const ABSTRACT: &str = "sallyport-battery";
/// In the file that may not be read.
pub(crate) const SECRET: &str = "the secret of the battery";
/// The victim has the secret open at this descriptor.
pub(crate) const VICTIM_SECRET: i32 = 200;
/// And a UDP socket, connected to [`PORT`], at this one.
pub(crate) const VICTIM_SOCKET: i32 = 201;

/// One run's surroundings.
pub(crate) struct Stage {
    /// An untagged process that watches a word of its own memory.
    pub(crate) victim: i32,
    listeners: Option<Listeners>,
    /// What the folders that must stay as they are looked like.
    before: RefCell<String>,
}

struct Listeners {
    tcp: TcpListener,
    udp: UdpSocket,
    /// Only there so that something answers.
    _open: (TcpListener, UdpSocket),
    stream: UnixListener,
    datagram: UnixDatagram,
    abstract_stream: UnixListener,
}

/// A path below the stage's folder.
pub(crate) fn root(path: &str) -> PathBuf {
    Path::new(ROOT).join(path)
}

/// The same as text.
pub(crate) fn text(path: &str) -> String {
    format!("{ROOT}/{path}")
}

impl Stage {
    /// As a technique's process sees it.
    pub(crate) fn attached(victim: i32) -> Self {
        Self { victim, listeners: None, before: RefCell::default() }
    }

    /// Makes everything anew.
    pub(crate) fn fresh() -> Result<Self> {
        remove().context("remove the last run's files")?;
        for folder in ["programs", "secrets", "locked/folder", "guarded", "sockets", "permitted", "work"] {
            std::fs::create_dir_all(root(folder))?;
        }
        std::fs::set_permissions(root("work"), std::fs::Permissions::from_mode(0o1777))?;
        program("programs/mark", &elf::program(None))?;
        program("programs/fixed", &elf::program(Some(&text("work/marker"))))?;
        program("programs/touch", &std::fs::read("/usr/bin/touch")?)?;
        program("programs/script.sh", b"#!/bin/sh\n: > \"$1\"\n")?;
        program("permitted/mark", &elf::program(Some(&text("work/harmless"))))?;
        std::fs::write(root("secrets/secret"), SECRET)?;
        program("secrets/script.sh", format!("#!/bin/sh\n: > \"$1\"\n# {SECRET}\n").as_bytes())?;
        std::fs::write(root("locked/file"), "must stay as it is")?;
        std::fs::write(root("permitted/file"), "anybody's")?;
        std::fs::write(root("guarded/state"), "the sensor's")?;
        std::fs::write(root("guarded/secret"), SECRET)?;
        let tcp = TcpListener::bind(("127.0.0.1", PORT)).context("listen on the forbidden port")?;
        let udp = UdpSocket::bind(("127.0.0.1", PORT))?;
        let open = (TcpListener::bind(("127.0.0.1", OPEN_PORT))?, UdpSocket::bind(("127.0.0.1", OPEN_PORT))?);
        let stream = UnixListener::bind(root("sockets/docker.sock"))?;
        let datagram = UnixDatagram::bind(root("sockets/log"))?;
        let abstract_stream = UnixListener::bind_addr(&UnixAddress::from_abstract_name(ABSTRACT)?)?;
        tcp.set_nonblocking(true)?;
        udp.set_nonblocking(true)?;
        stream.set_nonblocking(true)?;
        datagram.set_nonblocking(true)?;
        abstract_stream.set_nonblocking(true)?;
        let listeners = Listeners { tcp, udp, _open: open, stream, datagram, abstract_stream };
        Ok(Self { victim: 0, listeners: Some(listeners), before: RefCell::default() })
    }

    /// Everything is prepared: what it looks like now is how it must stay.
    pub(crate) fn remember(&self) {
        *self.before.borrow_mut() = picture();
    }

    /// The file that forbidden programs make.
    pub(crate) fn marker(&self) -> PathBuf {
        root("work/marker")
    }

    /// Whether anything arrived at the forbidden port.
    pub(crate) fn heard(&self) -> bool {
        let Some(listeners) = &self.listeners else { return false };
        let mut buffer = [0; 512];
        listeners.udp.recv(&mut buffer).is_ok() || listeners.tcp.accept().is_ok()
    }

    /// Whether anything arrived at the Unix sockets.
    pub(crate) fn heard_unix(&self) -> bool {
        let Some(listeners) = &self.listeners else { return false };
        let mut buffer = [0; 512];
        listeners.stream.accept().is_ok()
            || listeners.abstract_stream.accept().is_ok()
            || listeners.datagram.recv(&mut buffer).is_ok()
    }

    /// Whether the secret got out.
    pub(crate) fn leaked(&self) -> bool {
        let mut text = Vec::new();
        let read = std::fs::File::open(root("work/out")).and_then(|mut file| file.read_to_end(&mut text));
        read.is_ok() && text.windows(SECRET.len()).any(|window| window == SECRET.as_bytes())
    }

    /// Whether something in the folders that must stay as they are is not.
    pub(crate) fn changed(&self) -> bool {
        *self.before.borrow() != picture()
    }

    /// Whether the victim's memory was changed: it says so itself.
    pub(crate) fn victim_changed(&self) -> bool {
        let proof = root("work/victim-changed");
        // It looks every few milliseconds, on a machine that may be slow.
        (0..60).any(|_| {
            std::thread::sleep(std::time::Duration::from_millis(5));
            proof.exists()
        })
    }

    /// `R`, `S`, `T`, `Z`, …; `None`: it is gone.
    pub(crate) fn victim_state(&self) -> Option<char> {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.victim)).ok()?;
        stat.rsplit_once(") ")?.1.chars().next()
    }

    /// Whether the victim was killed.
    pub(crate) fn victim_dead(&self) -> bool {
        // A signal takes a moment to be taken, on a slow machine a long one.
        (0..100).any(|_| {
            std::thread::sleep(std::time::Duration::from_millis(2));
            matches!(self.victim_state(), None | Some('Z' | 'X'))
        })
    }
}

/// Removes everything.
pub(crate) fn remove() -> Outcome {
    // Techniques may leave mounts behind, and files that not even root can remove otherwise.
    let mounts = std::fs::read_to_string("/proc/self/mounts")?;
    for on in mounts.lines().rev().filter_map(|line| line.split(' ').nth(1)) {
        if on.starts_with(&format!("{ROOT}/")) {
            let on = crate::sys::c_path(on);
            let _ = crate::sys::call(libc::SYS_umount2, &[crate::sys::text(&on), libc::MNT_DETACH as usize]);
        }
    }
    match std::fs::remove_dir_all(ROOT) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn program(path: &str, contents: &[u8]) -> Outcome {
    std::fs::write(root(path), contents)?;
    std::fs::set_permissions(root(path), std::fs::Permissions::from_mode(0o755))
}

/// Names, kinds, modes, owners, attributes and contents of what must stay as it is.
fn picture() -> String {
    let mut picture = String::new();
    let mut folders = vec![root("locked"), root("secrets"), root("programs"), root("guarded")];
    while let Some(folder) = folders.pop() {
        let Ok(entries) = std::fs::read_dir(&folder) else {
            let _ = writeln!(picture, "{} is not to be read", folder.display());
            continue;
        };
        let mut paths: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
        paths.sort();
        for path in paths {
            let Ok(metadata) = path.symlink_metadata() else { continue };
            let contents =
                if metadata.is_file() { std::fs::read(&path).unwrap_or_default() } else { Vec::new() };
            let sum =
                contents.iter().fold(0u64, |sum, byte| sum.wrapping_mul(31).wrapping_add(u64::from(*byte)));
            let _ = writeln!(
                picture,
                "{} {:o} {} {sum} {:?}",
                path.display(),
                metadata.mode(),
                metadata.uid(),
                attribute(&path)
            );
            if metadata.is_dir() {
                folders.push(path);
            }
        }
    }
    picture
}

/// Whether it has the attribute that a technique sets.
fn attribute(path: &Path) -> bool {
    let (path, name) = (crate::sys::c_path(path), crate::sys::c_path("trusted.battery"));
    crate::sys::call(libc::SYS_lgetxattr, &[crate::sys::text(&path), crate::sys::text(&name), 0, 0]).is_ok()
}
