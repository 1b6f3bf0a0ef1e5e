//! Reading: `secrets/secret` may not be read. What was read is written to `work/out`.

use std::io::{Error, Read as _, Write as _};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::fs::symlink;
use std::path::Path;

use crate::stage::{Outcome, root, text};
use crate::sys::{self, call, fd, in_child, sh};
use crate::technique::{Person, Technique};
use crate::uring::{self, How};

fn secret() -> String {
    text("secrets/secret")
}

/// Writes down what a descriptor gives.
fn leak(from: OwnedFd) -> Outcome {
    let mut contents = Vec::new();
    std::fs::File::from(from).read_to_end(&mut contents)?;
    std::fs::File::create(root("work/out"))?.write_all(&contents)
}

fn read(path: impl AsRef<Path>) -> Outcome {
    leak(sys::open(path, libc::O_RDONLY)?)
}

/// By `name_to_handle_at` and `open_by_handle_at`: no path is walked.
fn by_handle() -> Outcome {
    // `struct file_handle`: bytes, kind, handle.
    let mut handle = [0u32; 34];
    handle[0] = 128;
    let mount = 0i32;
    let path = sys::c_path(secret());
    call(
        libc::SYS_name_to_handle_at,
        &[sys::HERE, sys::text(&path), handle.as_mut_ptr() as usize, sys::at(&mount), 0],
    )?;
    let folder = sys::open(".", libc::O_RDONLY)?;
    leak(sys::call_fd(libc::SYS_open_by_handle_at, &[fd(&folder), handle.as_ptr() as usize, 0])?)
}

/// From descriptor to descriptor, in the kernel.
fn copied(number: i64) -> Outcome {
    let from = sys::open(secret(), libc::O_RDONLY)?;
    let to = sys::open("out", libc::O_WRONLY | libc::O_CREAT)?;
    let arguments = match number {
        libc::SYS_sendfile => vec![fd(&to), fd(&from), 0, 100],
        _ => vec![fd(&from), 0, fd(&to), 0, 100, 0],
    };
    call(number, &arguments).map(drop)
}

/// A link flips between a permitted file and the secret while it is read.
fn flips() -> Outcome {
    symlink("../permitted/file", "one")?;
    symlink(secret(), "other")?;
    let Some(flipper) = sys::fork()? else {
        let (one, other) = (sys::c_path("one"), sys::c_path("other"));
        loop {
            // RENAME_EXCHANGE
            let arguments = [sys::HERE, sys::text(&one), sys::HERE, sys::text(&other), 2];
            if call(libc::SYS_renameat2, &arguments).is_err() {
                sys::exit(1);
            }
        }
    };
    let mut all = Vec::new();
    let started = std::time::Instant::now();
    let mut tried = 0;
    // The flipper needs the processor, too; on a busy machine it gets it late.
    while tried < 1_000 || started.elapsed() < std::time::Duration::from_millis(300) {
        tried += 1;
        call(libc::SYS_sched_yield, &[])?;
        if let Ok(file) = sys::open("one", libc::O_RDONLY) {
            std::fs::File::from(file).read_to_end(&mut all)?;
        }
    }
    let _ = call(libc::SYS_kill, &[flipper as usize, libc::SIGKILL as usize]);
    std::fs::write("out", all)
}

pub(super) const TECHNIQUES: &[Technique] = &[
    Technique::read("read by absolute path", |_| read(secret())),
    Technique::read("read by relative path", |_| read("../secrets/secret")),
    Technique::read("read with dots and double slashes", |_| read(text("//work/.././secrets///secret"))),
    Technique::read("read for reading and writing", |_| leak(sys::open(secret(), libc::O_RDWR)?)),
    Technique::read("read with cat", |_| sh(&format!("cat {} > out", secret()))),
    Technique::read("read by the shell itself", |_| {
        sh(&format!("read line < {}; echo \"$line\" > out", secret()))
    }),
    Technique::read("read in perl", |_| {
        sys::perl(&format!("open(F, '<', '{}') or exit 1; open(O, '>', 'out'); print O <F>", secret()))
    }),
    Technique::read("read through a symbolic link", |_| {
        symlink(secret(), "innocent")?;
        read("innocent")
    }),
    Technique::read("read through /proc/self/root", |_| read(format!("/proc/self/root{}", secret()))),
    Technique::read("read through /proc/self/cwd", |_| read("/proc/self/cwd/../secrets/secret")),
    Technique::read("read through /proc/PID/root of an untagged process", |stage| {
        read(format!("/proc/{}/root{}", stage.victim, secret()))
    }),
    Technique::read("read through /proc/PID/cwd of an untagged process", |stage| {
        read(format!("/proc/{}/cwd/secret", stage.victim))
    }),
    Technique::read("read through /proc/PID/fd of an untagged process", |stage| {
        read(format!("/proc/{}/fd/{}", stage.victim, crate::stage::VICTIM_SECRET))
    }),
    Technique::read("openat relative to a folder", |_| {
        let folder = sys::open(root("secrets"), libc::O_PATH)?;
        leak(sys::open_at(fd(&folder), "secret", libc::O_RDONLY)?)
    }),
    Technique::read("openat2 with RESOLVE_IN_ROOT", |_| {
        let folder = sys::open(root("secrets"), libc::O_PATH)?;
        let how = [0u64, 0, 0x10];
        let path = sys::c_path("/secret");
        leak(sys::call_fd(libc::SYS_openat2, &[fd(&folder), sys::text(&path), sys::at(&how), 24])?)
    }),
    Technique::read("O_PATH, opened again through /proc/self/fd", |_| {
        let path = sys::open(secret(), libc::O_PATH)?;
        read(format!("/proc/self/fd/{}", path.as_raw_fd()))
    }),
    Technique::read("open_by_handle_at", |_| by_handle()),
    Technique::read("open_by_handle_at (rule on the operation)", |_| by_handle()).by(Person::Confined).both(),
    Technique::read("read through a hard link", |_| {
        std::fs::hard_link(secret(), "innocent")?;
        read("innocent")
    }),
    Technique::read("read through a hard link made by others before", |_| read("innocent"))
        .prepare(|_| std::fs::hard_link(secret(), root("work/innocent"))),
    Technique::read("hard link of an O_PATH descriptor", |_| {
        let path = sys::open(secret(), libc::O_PATH)?;
        let (from, to) = (sys::c_path(""), sys::c_path("innocent"));
        let arguments =
            [fd(&path), sys::text(&from), sys::HERE, sys::text(&to), libc::AT_EMPTY_PATH as usize];
        call(libc::SYS_linkat, &arguments)?;
        read("innocent")
    }),
    Technique::read("read through a bind mount of the file", |_| {
        sys::own_mounts()?;
        std::fs::write("innocent", "")?;
        sys::mount(secret(), "innocent", "", libc::MS_BIND, "")?;
        read("innocent")
    }),
    Technique::read("read through a bind mount of the folder", |_| {
        sys::own_mounts()?;
        std::fs::create_dir("innocent")?;
        sys::mount(root("secrets"), "innocent", "", libc::MS_BIND, "")?;
        read("innocent/secret")
    }),
    Technique::read("read through a mount detached from every tree (open_tree)", |_| {
        let path = sys::c_path(root("secrets"));
        // OPEN_TREE_CLONE
        let tree = sys::call_fd(libc::SYS_open_tree, &[sys::HERE, sys::text(&path), 1])?;
        leak(sys::open_at(fd(&tree), "secret", libc::O_RDONLY)?)
    }),
    Technique::read("read through a bind mount in a user namespace", |_| {
        in_child(|| {
            std::fs::create_dir("innocent")?;
            std::fs::write("out", "")?;
            call(libc::SYS_unshare, &[(libc::CLONE_NEWUSER | libc::CLONE_NEWNS) as usize])?;
            sys::mount(root("secrets"), "innocent", "", libc::MS_BIND, "")?;
            read("innocent/secret")
        })
    }),
    Technique::read("read in a renamed folder", |_| {
        std::fs::rename(root("secrets"), "innocent")?;
        read("innocent/secret")
    }),
    Technique::read("renamed and read", |_| {
        std::fs::rename(secret(), "innocent")?;
        read("innocent")
    }),
    Technique::read("exchanged with a permitted file and read", |_| {
        std::fs::write("innocent", "")?;
        let (one, other) = (sys::c_path(secret()), sys::c_path("innocent"));
        call(libc::SYS_renameat2, &[sys::HERE, sys::text(&one), sys::HERE, sys::text(&other), 2])?;
        read("innocent")
    }),
    Technique::read("read in a chroot", |_| {
        let out = sys::open("out", libc::O_WRONLY | libc::O_CREAT)?;
        call(libc::SYS_chroot, &[sys::text(&sys::c_path(root("secrets")))])?;
        let mut contents = Vec::new();
        std::fs::File::from(sys::open("/secret", libc::O_RDONLY)?).read_to_end(&mut contents)?;
        std::fs::File::from(out).write_all(&contents)
    }),
    Technique::read("read through an overlay", |_| {
        sys::own_mounts()?;
        std::fs::create_dir("merged")?;
        let options = format!("lowerdir={}:{}", text("secrets"), text("permitted"));
        sys::mount("overlay", "merged", "overlay", 0, &options)?;
        read("merged/secret")
    })
    .unclaimed("a file of an overlay is another file; forbid mounts, as in the next row"),
    Technique::read("read through an overlay (rule on mounts)", |_| {
        sys::own_mounts()?;
        std::fs::create_dir("merged")?;
        let options = format!("lowerdir={}:{}", text("secrets"), text("permitted"));
        sys::mount("overlay", "merged", "overlay", 0, &options)?;
        read("merged/secret")
    })
    .by(Person::Confined)
    .both(),
    Technique::read("io_uring openat", |_| leak(uring::open(secret(), libc::O_RDONLY, How::Inline)?))
        .given_up(),
    Technique::read("io_uring openat by a worker", |_| {
        leak(uring::open(secret(), libc::O_RDONLY, How::Worker)?)
    })
    .given_up(),
    Technique::read("io_uring openat by the polling thread", |_| {
        leak(uring::open(secret(), libc::O_RDONLY, How::Poller)?)
    })
    .given_up(),
    Technique::read("io_uring openat2", |_| leak(uring::open2(secret(), libc::O_RDONLY, How::Worker)?))
        .given_up(),
    Technique::read("copy_file_range", |_| copied(libc::SYS_copy_file_range)),
    Technique::read("sendfile", |_| copied(libc::SYS_sendfile)),
    Technique::read("mmap", |_| {
        let file = sys::open(secret(), libc::O_RDONLY)?;
        let start = sys::map(4096, libc::PROT_READ, libc::MAP_SHARED, Some(&file))?;
        let out = sys::open("out", libc::O_WRONLY | libc::O_CREAT)?;
        call(libc::SYS_write, &[fd(&out), start as usize, crate::stage::SECRET.len()]).map(drop)
    }),
    Technique::read("symbolic link flipped while it is read (1,000 times)", |_| flips()),
    Technique::read("path on a page that is served when the kernel reads it", |_| {
        let mut path = secret().into_bytes();
        path.push(0);
        let page = sys::served_page(path)?;
        leak(sys::call_fd(libc::SYS_openat, &[sys::HERE, page as usize, 0, 0])?)
    })
    .given_up(),
    Technique::read("listing a folder", |_| {
        let names: Vec<String> = std::fs::read_dir(root("locked"))?
            .flatten()
            .map(|entry| entry.file_name().to_string_lossy().into_owned())
            .collect();
        if names.is_empty() {
            Err(Error::other("no names"))
        } else {
            std::fs::write("marker", names.join(" "))
        }
    })
    .happened(|stage| stage.marker().exists()),
    Technique::read("descriptor of the file passed in by an untagged process", |_| {
        leak(sys::receive_descriptor(150)?)
    })
    .before(|_| {
        let (ours, theirs) = std::os::unix::net::UnixStream::pair()?;
        // Forked before there is a tag.
        if sys::fork()?.is_none() {
            let sent = sys::open(secret(), libc::O_RDONLY)
                .and_then(|file| sys::send_descriptor(theirs.as_raw_fd() as usize, &file));
            sys::exit(i32::from(sent.is_err()));
        }
        call(libc::SYS_dup3, &[fd(&ours), 150, 0]).map(drop)
    })
    .unclaimed(
        "whoever may read it handed it on; only sockets of the Internet are judged when they are passed",
    ),
    Technique::read("descriptor of the file that was open before the session", |_| {
        leak(sys::call_fd(libc::SYS_dup, &[150])?)
    })
    .before(|_| {
        let file = sys::open(secret(), libc::O_RDONLY)?;
        call(libc::SYS_dup3, &[fd(&file), 150, 0]).map(drop)
    })
    .unclaimed("a session's first process is started by the sensor, with no descriptors but its terminal"),
];
