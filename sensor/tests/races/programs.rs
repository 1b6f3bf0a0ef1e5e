//! Programs: argument memory, the path's memory and a symbolic link are changed while `execve` runs.
#![expect(unsafe_code, reason = "execve on memory that another thread changes")]

use std::ffi::CString;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::sync::atomic::{AtomicU8, Ordering};

use sallyport_sensor_abi::policy::{DENY, Word};

use crate::host::Host;
use crate::racer::{Racer, Score, race};
use crate::tables::{BY_ARGS, Tables};
use crate::{report, wanted};

const RULE: Word = DENY | 1;
/// Without a session this many are enough to see that the race can be won.
const CONTROL: u64 = 500;

/// How often `truncate -s +1` ran on it.
fn size(path: &Path) -> u64 {
    std::fs::metadata(path).map_or(0, |metadata| metadata.len())
}

/// Races without a session, then within one. `hit` grows by a byte each time that what is forbidden ran.
fn both(host: &Host, name: &str, hit: &Path) {
    let control = Racer::start(&format!("{name} {CONTROL}"), host.folder.path()).go();
    let hits = size(hit);
    assert!(hits >= 5, "{name}: without a session only {hits} of {} got through", control.calls);
    std::fs::remove_file(hit).expect("remove");
    let racer = Racer::start(&format!("{name} {}", wanted()), host.folder.path());
    host.kernel.tag(racer.pid(), 1, 1).expect("tag");
    let score = racer.go();
    assert_eq!(size(hit), 0, "{name}: leaked in {score:?}");
    report(name, score.flipped, hits, control.calls);
}

/// `run-a`, which does nothing, and `run-b`, which adds a byte to a file.
fn two_programs(host: &Host) {
    std::fs::copy("/usr/bin/true", host.file("run-a")).expect("copy");
    std::fs::copy("/usr/bin/truncate", host.file("run-b")).expect("copy");
    host.session(1, &Tables::allow_all().path(host.file("run-b").to_str().expect("UTF-8"), RULE));
}

#[tokio::test]
async fn arguments_that_change_during_execve() {
    let host = Host::start();
    let tables = Tables::allow_all().path("/usr/bin/truncate", BY_ARGS).argument("mark-b", RULE);
    host.session(1, &tables);
    both(&host, "argv", &host.file("mark-b"));
    assert!(size(&host.file("mark-a")) > 0, "what is permitted ran, too");
}

#[tokio::test]
async fn a_path_that_changes_during_execve() {
    let host = Host::start();
    two_programs(&host);
    both(&host, "path", &host.file("hit"));
}

#[tokio::test]
async fn a_link_that_changes_during_execve() {
    let host = Host::start();
    two_programs(&host);
    std::os::unix::fs::symlink("run-a", host.file("link")).expect("link");
    std::os::unix::fs::symlink("run-b", host.file("other")).expect("link");
    both(&host, "symlink", &host.file("hit"));
}

/// A text that ends in `a` or `b` and that `execve` reads while another thread changes that.
struct Text {
    bytes: Box<[AtomicU8]>,
    last: usize,
}

impl Text {
    fn new(text: &[u8]) -> Self {
        let bytes = text.iter().chain(&[0]).map(|byte| AtomicU8::new(*byte)).collect();
        Self { bytes, last: text.len() - 1 }
    }

    fn flip(&self) {
        self.bytes[self.last].fetch_xor(b'a' ^ b'b', Ordering::Relaxed);
    }

    fn is_permitted(&self) -> bool {
        self.bytes[self.last].load(Ordering::Relaxed) == b'a'
    }

    fn pointer(&self) -> *mut libc::c_char {
        self.bytes.as_ptr().cast_mut().cast()
    }
}

/// Starts a program and waits for its end; whether it could be started and how it ended does not matter.
///
/// `posix_spawn` shares the memory with the child until its `execve` is over, so the other thread goes on to change it.
fn spawn(path: *const libc::c_char, args: &[*mut libc::c_char]) {
    let mut pid = 0;
    let environment = [std::ptr::null_mut()];
    // SAFETY: terminated lists of terminated texts, all alive; that bytes change meanwhile is what is tried.
    let status = unsafe {
        libc::posix_spawn(
            &raw mut pid,
            path,
            std::ptr::null(),
            std::ptr::null(),
            args.as_ptr(),
            environment.as_ptr(),
        )
    };
    if status == 0 {
        // SAFETY: no status is asked for.
        unsafe { libc::waitpid(pid, std::ptr::null_mut(), 0) };
    }
}

fn texts<const N: usize>(texts: [&str; N]) -> [CString; N] {
    texts.map(|text| CString::new(text).expect("no zero"))
}

pub(crate) fn race_argv(words: &[&str]) -> Score {
    let mark = Text::new(b"mark-a");
    let fixed = texts(["/usr/bin/truncate", "-s", "+1"]);
    let [program, size, one] = [0, 1, 2].map(|i: usize| fixed[i].as_ptr().cast_mut());
    let args = [program, size, one, mark.pointer(), std::ptr::null_mut()];
    race(
        words[1].parse().expect("a number"),
        || mark.flip(),
        || mark.is_permitted(),
        || spawn(program, &args),
    )
}

pub(crate) fn race_path(words: &[&str]) -> Score {
    let folder = std::env::current_dir().expect("folder");
    let path = Text::new(folder.join("run-a").as_os_str().as_bytes());
    let fixed = texts(["run", "-s", "+1", "hit"]);
    let [name, size, one, hit] = [0, 1, 2, 3].map(|i: usize| fixed[i].as_ptr().cast_mut());
    let args = [name, size, one, hit, std::ptr::null_mut()];
    race(
        words[1].parse().expect("a number"),
        || path.flip(),
        || path.is_permitted(),
        || spawn(path.pointer(), &args),
    )
}

pub(crate) fn race_symlink(words: &[&str]) -> Score {
    let fixed = texts(["link", "-s", "+1", "hit"]);
    let [name, size, one, hit] = [0, 1, 2, 3].map(|i: usize| fixed[i].as_ptr().cast_mut());
    let args = [name, size, one, hit, std::ptr::null_mut()];
    race(
        words[1].parse().expect("a number"),
        exchange_links,
        || std::fs::read_link("link").is_ok_and(|to| to.as_os_str().as_bytes().ends_with(b"-a")),
        || spawn(name, &args),
    )
}

/// Exchanges `link` and `other` at once.
pub(crate) fn exchange_links() {
    let here = libc::AT_FDCWD;
    // SAFETY: terminated names.
    unsafe {
        libc::renameat2(here, c"link".as_ptr(), here, c"other".as_ptr(), libc::RENAME_EXCHANGE);
    }
}
