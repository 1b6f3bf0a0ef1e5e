//! Files: the path's memory and a symbolic link are changed while `openat` runs.
#![expect(unsafe_code, reason = "system calls on memory that another thread changes")]

use std::path::Path;
use std::sync::atomic::{AtomicU8, Ordering};

use sallyport_sensor::kernel::Mode;
use sallyport_sensor_abi::policy::{DENY, file_op};

use crate::host::Host;
use crate::programs::exchange_links;
use crate::racer::{Racer, Score, race};
use crate::tables::Tables;
use crate::{report, wanted};

fn size(path: &Path) -> u64 {
    std::fs::metadata(path).map_or(0, |metadata| metadata.len())
}

/// What is written to `file-a` is permitted, to `file-b` not.
fn both(name: &str) {
    let host = Host::start();
    assert_eq!(host.kernel.mode(), Mode::Lsm, "in tracepoint mode opening files is not judged in the kernel");
    for file in ["file-a", "file-b"] {
        std::fs::write(host.file(file), "").expect("write");
    }
    std::os::unix::fs::symlink("file-a", host.file("link")).expect("link");
    std::os::unix::fs::symlink("file-b", host.file("other")).expect("link");
    let forbidden = host.file("file-b");
    let forbidden = forbidden.to_str().expect("UTF-8");
    host.session(1, &Tables::allow_all().file(file_op::WRITE, forbidden, DENY | 1));
    let enough = wanted();
    let control = Racer::start(&format!("{name} {enough}"), host.folder.path()).go();
    let hits = size(&host.file("file-b"));
    assert!(hits >= 5, "{name}: without a session only {hits} of {} got through", control.calls);
    let permitted = size(&host.file("file-a"));
    let racer = Racer::start(&format!("{name} {enough}"), host.folder.path());
    host.kernel.tag(racer.pid(), 1, 1).expect("tag");
    let score = racer.go();
    assert_eq!(size(&host.file("file-b")), hits, "{name}: leaked in {score:?}");
    assert!(size(&host.file("file-a")) > permitted, "{name}: what is permitted was not written");
    report(name, score.flipped, hits, control.calls);
}

#[tokio::test]
#[ignore = "needs BPF LSM; `cargo xtask vm --program` runs it"]
async fn a_path_that_changes_during_open() {
    both("open-path");
}

#[tokio::test]
#[ignore = "needs BPF LSM; `cargo xtask vm --program` runs it"]
async fn a_link_that_changes_during_open() {
    both("open-symlink");
}

/// Adds a byte to the file.
fn write(path: *const libc::c_char) {
    // SAFETY: a terminated text that is alive (that a byte changes is what is tried); the descriptor is closed once.
    unsafe {
        let fd = libc::open(path, libc::O_WRONLY | libc::O_APPEND);
        if fd >= 0 {
            libc::write(fd, c"x".as_ptr().cast(), 1);
            libc::close(fd);
        }
    }
}

pub(crate) fn race_path(words: &[&str]) -> Score {
    let path = b"file-a\0".map(AtomicU8::new);
    race(
        words[1].parse().expect("a number"),
        || {
            path[5].fetch_xor(b'a' ^ b'b', Ordering::Relaxed);
        },
        || path[5].load(Ordering::Relaxed) == b'a',
        || write(path.as_ptr().cast()),
    )
}

pub(crate) fn race_symlink(words: &[&str]) -> Score {
    race(
        words[1].parse().expect("a number"),
        exchange_links,
        || std::fs::read_link("link").is_ok_and(|to| to.as_os_str() == "file-a"),
        || write(c"link".as_ptr()),
    )
}
