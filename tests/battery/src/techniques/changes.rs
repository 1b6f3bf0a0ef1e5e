//! Changing: nothing of `locked` and `secrets` may be written, made, removed, renamed or changed. And the places of a real system
//! that start programs by themselves, in virtual machines only.

use std::os::fd::AsRawFd as _;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::Path;

use crate::stage::{Outcome, Stage, root, text};
use crate::sys::{self, at, call, fd, sh};
use crate::technique::Technique;
use crate::uring::{self, How};

fn file() -> String {
    text("locked/file")
}

fn write_to(to: &impl std::os::fd::AsRawFd) -> Outcome {
    call(libc::SYS_write, &[fd(to), at(b"changed"), 7]).map(drop)
}

/// One of the places of a real system: the technique appends to it. The oracle looks for its mark.
const PLACES: [&str; 7] = [
    "/proc/sys/kernel/core_pattern",
    "/etc/cron.d/battery",
    "/var/spool/cron/crontabs/root",
    "/etc/systemd/system/battery.service",
    "/etc/ld.so.preload",
    "/root/.ssh/authorized_keys",
    "/etc/profile.d/battery.sh",
];

fn plant(place: &str) -> Outcome {
    std::fs::write(place, "|/var/lib/sallyport-battery/planted\n")
}

fn planted(_: &Stage) -> bool {
    PLACES.iter().any(|place| std::fs::read_to_string(place).is_ok_and(|text| text.contains("planted")))
}

/// As nobody has planted anything yet.
fn clear(_: &Stage) -> Outcome {
    std::fs::write(PLACES[0], "core\n")?;
    for place in &PLACES[1..] {
        if let Some(folder) = Path::new(place).parent() {
            std::fs::create_dir_all(folder)?;
        }
        if Path::new(place).exists() {
            std::fs::remove_file(place)?;
        }
    }
    Ok(())
}

const fn place(name: &'static str, attack: fn(&Stage) -> Outcome) -> Technique {
    Technique::change(name, attack).prepare(clear).happened(planted).guest_only()
}

fn names(call_number: i64, from: &str, to: &str) -> Outcome {
    let (from, to) = (sys::c_path(from), sys::c_path(to));
    call(call_number, &[sys::HERE, sys::text(&from), sys::HERE, sys::text(&to), 0]).map(drop)
}

pub(super) const TECHNIQUES: &[Technique] = &[
    Technique::change("write", |_| write_to(&sys::open(file(), libc::O_WRONLY)?)),
    Technique::change("write by the shell", |_| sh(&format!("echo changed >> {}", file()))),
    Technique::change("write through a symbolic link", |_| {
        symlink(file(), "innocent")?;
        write_to(&sys::open("innocent", libc::O_WRONLY)?)
    }),
    Technique::change("write through a hard link made by others before", |_| {
        write_to(&sys::open("innocent", libc::O_WRONLY)?)
    })
    .prepare(|_| std::fs::hard_link(file(), root("work/innocent"))),
    Technique::change("write through /proc/self/fd of an O_PATH descriptor", |_| {
        let path = sys::open(file(), libc::O_PATH)?;
        write_to(&sys::open(format!("/proc/self/fd/{}", path.as_raw_fd()), libc::O_WRONLY)?)
    }),
    Technique::change("write through /proc/PID/fd of an untagged process", |stage| {
        let path = format!("/proc/{}/fd/{}", stage.victim, crate::stage::VICTIM_SECRET);
        write_to(&sys::open(path, libc::O_WRONLY)?)
    }),
    Technique::change("write through a shared mapping", |_| {
        let file = sys::open(file(), libc::O_RDWR)?;
        let start = sys::map(4096, libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED, Some(&file))?;
        sys::put(start, b"changed");
        Ok(())
    }),
    Technique::change("io_uring opens it for writing", |_| {
        write_to(&uring::open(file(), libc::O_WRONLY, How::Worker)?)
    })
    .given_up(),
    Technique::change("truncate", |_| {
        call(libc::SYS_truncate, &[sys::text(&sys::c_path(file())), 0]).map(drop)
    }),
    Technique::change("open with O_TRUNC", |_| sys::open(file(), libc::O_WRONLY | libc::O_TRUNC).map(drop)),
    Technique::change("open read-only with O_TRUNC", |_| {
        sys::open(file(), libc::O_RDONLY | libc::O_TRUNC).map(drop)
    }),
    Technique::change("copy_file_range into it", |_| {
        let (from, to) =
            (sys::open("../permitted/file", libc::O_RDONLY)?, sys::open(file(), libc::O_WRONLY)?);
        call(libc::SYS_copy_file_range, &[fd(&from), 0, fd(&to), 0, 9, 0]).map(drop)
    }),
    Technique::change("make a file (open with O_CREAT)", |_| {
        sys::open(root("locked/new"), libc::O_WRONLY | libc::O_CREAT).map(drop)
    }),
    Technique::change("make a file (mknod)", |_| {
        let path = sys::c_path(root("locked/new"));
        call(libc::SYS_mknodat, &[sys::HERE, sys::text(&path), 0o100_644, 0]).map(drop)
    }),
    Technique::change("make a device (mknod)", |_| {
        let path = sys::c_path(root("locked/new"));
        call(libc::SYS_mknodat, &[sys::HERE, sys::text(&path), 0o020_644, 0x0103]).map(drop)
    }),
    Technique::change("make a folder", |_| std::fs::create_dir(root("locked/new"))),
    Technique::change("make a symbolic link", |_| symlink("anything", root("locked/new"))),
    Technique::change("make a hard link there", |_| {
        std::fs::hard_link(root("permitted/file"), root("locked/new"))
    }),
    Technique::change("give a nameless file (O_TMPFILE) a name there", |_| {
        let arguments = [sys::HERE, c".".as_ptr() as usize, (libc::O_TMPFILE | libc::O_RDWR) as usize, 0o644];
        let nameless = sys::call_fd(libc::SYS_openat, &arguments)?;
        let from = sys::c_path(format!("/proc/self/fd/{}", nameless.as_raw_fd()));
        let to = sys::c_path(root("locked/new"));
        let follow = libc::AT_SYMLINK_FOLLOW as usize;
        call(libc::SYS_linkat, &[sys::HERE, sys::text(&from), sys::HERE, sys::text(&to), follow]).map(drop)
    }),
    Technique::change("make a socket there (bind)", |_| {
        std::os::unix::net::UnixListener::bind(root("locked/new")).map(drop)
    }),
    Technique::change("make a file relative to a folder descriptor", |_| {
        let folder = sys::open(root("locked/folder"), libc::O_PATH)?;
        sys::open_at(fd(&folder), "new", libc::O_WRONLY | libc::O_CREAT).map(drop)
    }),
    Technique::change("move a file there", |_| {
        std::fs::write("innocent", "")?;
        std::fs::rename("innocent", root("locked/new"))
    }),
    Technique::change("replace the file by rename", |_| {
        std::fs::write("innocent", "")?;
        std::fs::rename("innocent", file())
    }),
    Technique::change("exchange the file with another", |_| {
        std::fs::write("innocent", "")?;
        let (one, other) = (sys::c_path("innocent"), sys::c_path(file()));
        call(libc::SYS_renameat2, &[sys::HERE, sys::text(&one), sys::HERE, sys::text(&other), 2]).map(drop)
    }),
    Technique::change("rename the file away", |_| std::fs::rename(file(), "innocent")),
    Technique::change("remove the file", |_| std::fs::remove_file(file())),
    Technique::change("remove the file relative to a folder descriptor", |_| {
        let folder = sys::open(root("locked"), libc::O_PATH)?;
        call(libc::SYS_unlinkat, &[fd(&folder), c"file".as_ptr() as usize, 0]).map(drop)
    }),
    Technique::change("remove a folder", |_| std::fs::remove_dir(root("locked/folder"))),
    Technique::change("rename the folder of the files", |_| {
        names(libc::SYS_renameat2, &text("locked"), "innocent")
    }),
    Technique::change("change the mode", |_| {
        std::fs::set_permissions(file(), std::fs::Permissions::from_mode(0o777))
    }),
    Technique::change("change the mode by descriptor", |_| {
        let file = sys::open(file(), libc::O_PATH)?;
        let path = sys::c_path(format!("/proc/self/fd/{}", file.as_raw_fd()));
        call(libc::SYS_fchmodat, &[sys::HERE, sys::text(&path), 0o777]).map(drop)
    }),
    Technique::change("change the owner", |_| {
        let path = sys::c_path(file());
        call(libc::SYS_fchownat, &[sys::HERE, sys::text(&path), 1000, 1000, 0]).map(drop)
    }),
    Technique::change("set an extended attribute", |_| {
        let (path, name) = (sys::c_path(file()), sys::c_path("trusted.battery"));
        call(libc::SYS_setxattr, &[sys::text(&path), sys::text(&name), at(b"x"), 1, 0]).map(drop)
    }),
    Technique::change("io_uring removes it", |_| {
        uring::on_paths(uring::OP_UNLINKAT, &sys::c_path(file()), None)
    })
    .given_up(),
    Technique::change("io_uring renames it", |_| {
        uring::on_paths(uring::OP_RENAMEAT, &sys::c_path(file()), Some(&sys::c_path("innocent")))
    })
    .given_up(),
    Technique::change("io_uring makes a folder", |_| {
        uring::on_paths(uring::OP_MKDIRAT, &sys::c_path(root("locked/new")), None)
    })
    .given_up(),
    Technique::change("io_uring makes a hard link there", |_| {
        let (from, to) = (sys::c_path(root("permitted/file")), sys::c_path(root("locked/new")));
        uring::on_paths(uring::OP_LINKAT, &from, Some(&to))
    })
    .given_up(),
    Technique::change("write in perl, through a bind mount", |_| {
        sys::own_mounts()?;
        std::fs::create_dir("innocent")?;
        sys::mount(root("locked"), "innocent", "", libc::MS_BIND, "")?;
        sys::perl("open(F, '>>', 'innocent/file') or exit 1; print F 'changed'")
    }),
    Technique::change("the kernel's process accounting writes there", |_| {
        let path = sys::c_path(file());
        call(libc::SYS_acct, &[sys::text(&path)])?;
        let _ = sh("true");
        call(libc::SYS_acct, &[0]).map(drop)
    })
    .guest_only(),
    Technique::change("a core dump lands there", |_| {
        let limit = [u64::MAX, u64::MAX];
        call(libc::SYS_prlimit64, &[0, libc::RLIMIT_CORE as usize, at(&limit), 0])?;
        std::env::set_current_dir(root("locked"))?;
        let _ = sys::in_child(|| {
            let own = call(libc::SYS_getpid, &[])?;
            call(libc::SYS_kill, &[own, libc::SIGQUIT as usize]).map(drop)
        });
        Ok(())
    })
    .prepare(clear)
    .guest_only(),
    Technique::change("set the time of last change", |_| {
        let path = sys::c_path(file());
        let times = [1u64, 0, 1, 0];
        call(libc::SYS_utimensat, &[sys::HERE, sys::text(&path), at(&times), 0]).map(drop)
    })
    .happened(|_| {
        use std::os::unix::fs::MetadataExt as _;
        std::fs::metadata(file()).is_ok_and(|metadata| metadata.mtime() == 1)
    })
    .unclaimed("times are not judged: the kernel has no hook for them before 6.x that names the file"),
    place("core_pattern", |_| plant(PLACES[0])),
    place("cron's folder", |_| plant(PLACES[1])),
    place("cron's spool", |_| plant(PLACES[2])),
    place("systemd's folder of units", |_| plant(PLACES[3])),
    place("ld.so.preload", |_| plant(PLACES[4])),
    place("authorized_keys", |_| plant(PLACES[5])),
    place("profile.d, by rename", |_| {
        plant("innocent")?;
        std::fs::rename("innocent", PLACES[6])
    }),
    place("cron's spool, by a link from elsewhere", |_| {
        symlink("/var/spool/cron", "innocent")?;
        plant("innocent/crontabs/root")
    }),
];
