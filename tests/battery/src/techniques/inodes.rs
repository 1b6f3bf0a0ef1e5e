//! Files by other doors: names that a session gives them itself, attributes that have calls of their own, queues, 32-bit calls.

use std::io::Read as _;

use crate::stage::{Outcome, SECRET, Stage, root, text};
use crate::sys::{self, at, call, call_fd, fd};
use crate::technique::Technique;
use crate::uring;

/// A file that only the rule on its folder protects: no rule names it.
fn unnamed() -> String {
    text("secrets/script.sh")
}

/// Copies what it reads to `work/out`.
fn leak(path: &str) -> Outcome {
    std::fs::write("out", std::fs::read(path)?)
}

/// Where a technique's process has a file open before it is tagged.
const OPENED: usize = 150;

const QUEUE: &std::ffi::CStr = c"sallyport-battery";

/// A message queue with the secret in it.
fn queue(_: &Stage) -> Outcome {
    if !std::fs::exists("/dev/mqueue")? {
        std::fs::create_dir("/dev/mqueue")?;
    }
    if !std::fs::read_to_string("/proc/self/mounts")?.contains(" /dev/mqueue ") {
        sys::mount("none", "/dev/mqueue", "mqueue", 0, "")?;
    }
    let _ = call(libc::SYS_mq_unlink, &[QUEUE.as_ptr() as usize]);
    let flags = (libc::O_RDWR | libc::O_CREAT) as usize;
    let queue = call_fd(libc::SYS_mq_open, &[QUEUE.as_ptr() as usize, flags, 0o644, 0])?;
    call(libc::SYS_mq_timedsend, &[fd(&queue), SECRET.as_ptr() as usize, SECRET.len(), 0, 0]).map(drop)
}

/// `system.posix_acl_access`: version, then tag, permissions and id of each entry.
fn access_list() -> Vec<u8> {
    let mut list = 2u32.to_ne_bytes().to_vec();
    for (tag, permissions, id) in
        [(1u16, 6u16, u32::MAX), (2, 7, 65_534), (4, 4, u32::MAX), (16, 7, u32::MAX), (32, 4, u32::MAX)]
    {
        list.extend(tag.to_ne_bytes());
        list.extend(permissions.to_ne_bytes());
        list.extend(id.to_ne_bytes());
    }
    list
}

fn locked() -> std::ffi::CString {
    sys::c_path(root("locked/file"))
}

fn flags_of(path: std::path::PathBuf) -> u64 {
    let flags = 0u64;
    let got = sys::open(path, libc::O_RDONLY)
        .and_then(|file| call(libc::SYS_ioctl, &[fd(&file), 0x8008_6601, at(&flags)]));
    if got.is_ok() { sys::written(&flags) } else { 0 }
}

pub(super) const TECHNIQUES: &[Technique] = &[
    Technique::read("linked out of a folder and read (rule on the folder)", |_| {
        std::fs::hard_link(unnamed(), "innocent")?;
        leak("innocent")
    }),
    Technique::read("moved out of a folder and read (rule on the folder)", |_| {
        std::fs::rename(unnamed(), "innocent")?;
        leak("innocent")
    }),
    Technique::read("exchanged out of a folder and read (rule on the folder)", |_| {
        std::fs::write("innocent", "")?;
        let (one, other) = (sys::c_path(unnamed()), sys::c_path("innocent"));
        // RENAME_EXCHANGE
        call(libc::SYS_renameat2, &[sys::HERE, sys::text(&other), sys::HERE, sys::text(&one), 2])?;
        leak("innocent")
    }),
    Technique::read("linked within a bind mount and read (rule on the folder)", |_| {
        sys::own_mounts()?;
        std::fs::create_dir("all")?;
        sys::mount(root(""), "all", "", libc::MS_BIND, "")?;
        std::fs::hard_link("all/secrets/script.sh", "all/work/innocent")?;
        leak("all/work/innocent")
    }),
    Technique::read("linked within a bind mount and read", |_| {
        sys::own_mounts()?;
        std::fs::create_dir("all")?;
        sys::mount(root(""), "all", "", libc::MS_BIND, "")?;
        std::fs::hard_link("all/secrets/secret", "all/work/innocent")?;
        leak("all/work/innocent")
    }),
    Technique::read("opened with the kernel's own mark of an exec (0x20)", |_| {
        let file = sys::open(root("secrets/secret"), libc::O_RDONLY | 0x20)?;
        let mut contents = Vec::new();
        std::fs::File::from(file).read_to_end(&mut contents)?;
        std::fs::write("out", contents)
    }),
    Technique::read("read by a 32-bit call (int 0x80)", |_| {
        let path = sys::low(sys::c_path(root("secrets/secret")).as_bytes_with_nul())?;
        // open
        let file = sys::call_32(5, [path, 0, 0, 0])?;
        leak(&format!("/proc/self/fd/{file}"))
    })
    .given_up(),
    Technique::read("a message queue, opened without its mount (mq_open)", |_| {
        let queue = call_fd(libc::SYS_mq_open, &[QUEUE.as_ptr() as usize, libc::O_RDONLY as usize, 0, 0])?;
        let mut message = [0u8; 8192];
        let arguments = [fd(&queue), message.as_mut_ptr() as usize, message.len(), 0, 0];
        let length = call(libc::SYS_mq_timedreceive, &arguments)?;
        std::fs::write("out", &message[..length])
    })
    .prepare(queue)
    .guest_only(),
    Technique::change("linked out of a folder and written (rule on the folder)", |_| {
        std::fs::hard_link(unnamed(), "innocent")?;
        std::fs::write("innocent", "changed")
    }),
    Technique::change("an access list (POSIX ACL)", |_| {
        let list = access_list();
        let name = c"system.posix_acl_access".as_ptr() as usize;
        call(libc::SYS_setxattr, &[sys::text(&locked()), name, list.as_ptr() as usize, list.len(), 0])
            .map(drop)
    })
    .happened(|_| {
        let name = c"system.posix_acl_access".as_ptr() as usize;
        call(libc::SYS_getxattr, &[sys::text(&locked()), name, 0, 0]).is_ok()
    }),
    Technique::change("flags, such as immutable (FS_IOC_SETFLAGS)", |_| {
        // The session had it open already, or got it from somebody who may read it.
        let flags = 0x40u64;
        // FS_NODUMP_FL: the one that harms nobody.
        call(libc::SYS_ioctl, &[OPENED, 0x4008_6602, at(&flags)]).map(drop)
    })
    .before(|_| {
        let file = sys::open(root("locked/file"), libc::O_RDONLY)?;
        call(libc::SYS_dup3, &[fd(&file), OPENED, 0]).map(drop)
    })
    .happened(|_| flags_of(root("locked/file")) & 0x40 != 0),
    Technique::change("io_uring sets an extended attribute", |_| {
        uring::set_attribute(&locked(), c"trusted.battery", b"x")
    })
    .given_up(),
    Technique::change("what the kernel starts to load a module (modprobe)", |_| {
        std::fs::write("/proc/sys/kernel/modprobe", "/var/lib/sallyport-battery/planted")
    })
    .prepare(|_| std::fs::write("/proc/sys/kernel/modprobe", "/sbin/modprobe"))
    .happened(|_| {
        std::fs::read_to_string("/proc/sys/kernel/modprobe").is_ok_and(|text| text.contains("planted"))
    })
    .guest_only(),
];
