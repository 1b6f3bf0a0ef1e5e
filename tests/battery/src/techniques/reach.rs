//! Reaching beyond: mounts, roots, namespaces, users and capabilities, where a confined session may have none of it.

use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};

use crate::stage::{Outcome, Stage, root, text};
use crate::sys::{self, call, in_child, run};
use crate::technique::Technique;

const fn reach(name: &'static str, attack: fn(&Stage) -> Outcome) -> Technique {
    Technique::system(name, attack).group("reach")
}

fn say() -> Outcome {
    std::fs::write(root("work/marker"), "")
}

/// Whether a mount is to be seen at `work/on`, in the host's own tree.
fn mounted(_: &Stage) -> bool {
    std::fs::read_to_string("/proc/self/mounts").is_ok_and(|mounts| mounts.contains(&text("work/on")))
}

fn folder(_: &Stage) -> Outcome {
    std::fs::create_dir(root("work/on"))
}

fn mounted_before(stage: &Stage) -> Outcome {
    folder(stage)?;
    sys::mount("none", root("work/on"), "tmpfs", 0, "")
}

/// Whether the program that was to run as root did: it made the file.
fn made_by_root(stage: &Stage) -> bool {
    std::fs::metadata(stage.marker()).is_ok_and(|metadata| metadata.uid() == 0)
}

pub(super) const TECHNIQUES: &[Technique] = &[
    reach("mount", |_| sys::mount("none", root("work/on"), "tmpfs", 0, "")).prepare(folder).happened(mounted),
    reach("mount in perl, by number", |_| {
        sys::perl(&format!(
            "my ($a, $b, $c) = ('none', '{}', 'tmpfs'); syscall(165, $a, $b, $c, 0, 0) == 0 or exit 1",
            text("work/on")
        ))
    })
    .prepare(folder)
    .happened(mounted),
    reach("bind mount", |_| sys::mount(root("secrets"), root("work/on"), "", libc::MS_BIND, ""))
        .prepare(folder)
        .happened(mounted),
    reach("fsopen, fsmount, move_mount", |_| {
        let context = sys::call_fd(libc::SYS_fsopen, &[c"tmpfs".as_ptr() as usize, 0])?;
        // FSCONFIG_CMD_CREATE
        call(libc::SYS_fsconfig, &[sys::fd(&context), 6, 0, 0, 0])?;
        let mount = sys::call_fd(libc::SYS_fsmount, &[sys::fd(&context), 0, 0])?;
        let (from, to) = (sys::c_path(""), sys::c_path(root("work/on")));
        // MOVE_MOUNT_F_EMPTY_PATH
        call(libc::SYS_move_mount, &[sys::fd(&mount), sys::text(&from), sys::HERE, sys::text(&to), 4])
            .map(drop)
    })
    .prepare(folder)
    .happened(mounted),
    reach("open_tree, move_mount", |_| {
        let path = sys::c_path(root("secrets"));
        // OPEN_TREE_CLONE
        let mount = sys::call_fd(libc::SYS_open_tree, &[sys::HERE, sys::text(&path), 1])?;
        let (from, to) = (sys::c_path(""), sys::c_path(root("work/on")));
        call(libc::SYS_move_mount, &[sys::fd(&mount), sys::text(&from), sys::HERE, sys::text(&to), 4])
            .map(drop)
    })
    .prepare(folder)
    .happened(mounted),
    reach("remount", |_| sys::mount("none", root("work/on"), "", libc::MS_REMOUNT | libc::MS_RDONLY, ""))
        .prepare(mounted_before)
        .happened(|_| std::fs::write(root("work/on/probe"), "").is_err()),
    reach("mount_setattr", |_| {
        let path = sys::c_path(root("work/on"));
        // `struct mount_attr`: MOUNT_ATTR_RDONLY
        let attributes = [1u64, 0, 0, 0];
        let arguments = [sys::HERE, sys::text(&path), 0, sys::at(&attributes), 32];
        call(libc::SYS_mount_setattr, &arguments).map(drop)
    })
    .prepare(mounted_before)
    .happened(|_| std::fs::write(root("work/on/probe"), "").is_err())
    .unclaimed("no kernel has a hook for it: it changes attributes of a mount that is there"),
    reach("umount", |_| call(libc::SYS_umount2, &[sys::text(&sys::c_path(root("work/on"))), 0]).map(drop))
        .prepare(mounted_before)
        .happened(|stage| !mounted(stage)),
    reach("pivot_root", |_| {
        sys::own_mounts()?;
        std::env::set_current_dir(root("work/on"))?;
        let here = sys::c_path(".");
        call(libc::SYS_pivot_root, &[sys::text(&here), sys::text(&here)])?;
        // The root is the new file system now, which has nothing: the proof goes there, and is looked for through the old one.
        std::fs::write("/marker", "")
    })
    .prepare(mounted_before)
    .happened(|_| root("work/on/marker").exists()),
    reach("chroot", |_| {
        call(libc::SYS_chroot, &[sys::text(&sys::c_path(root("")))])?;
        std::fs::write("/work/marker", "")
    }),
    reach("user namespace (unshare)", |_| {
        call(libc::SYS_unshare, &[libc::CLONE_NEWUSER as usize])?;
        say()
    }),
    reach("user namespace (clone)", |_| {
        let flags = libc::CLONE_NEWUSER as usize | libc::SIGCHLD as usize;
        let child = call(libc::SYS_clone, &[flags, 0, 0, 0, 0])?;
        if child == 0 {
            sys::exit(i32::from(say().is_err()));
        }
        sys::wait(child as i32)
    }),
    reach("user namespace (clone3)", |_| {
        let mut arguments = [0u64; 11];
        (arguments[0], arguments[4]) = (libc::CLONE_NEWUSER as u64, libc::SIGCHLD as u64);
        let child = call(libc::SYS_clone3, &[sys::at(&arguments), 88])?;
        if child == 0 {
            sys::exit(i32::from(say().is_err()));
        }
        sys::wait(child as i32)
    }),
    reach("setuid", |_| {
        call(libc::SYS_setuid, &[65_534])?;
        say()
    }),
    reach("setresuid", |_| {
        call(libc::SYS_setresuid, &[65_534, 65_534, 65_534])?;
        say()
    }),
    reach("setgid", |_| {
        call(libc::SYS_setgid, &[65_534])?;
        say()
    }),
    reach("set-uid program", |_| run("./tool", &["tool", "marker"]))
        .prepare(|_| {
            std::fs::copy(root("programs/mark"), root("work/tool"))?;
            std::fs::set_permissions(root("work/tool"), std::fs::Permissions::from_mode(0o4755))
        })
        .as_nobody()
        .happened(made_by_root),
    reach("capset", |_| {
        let header = [0x2008_0522u32, 0];
        let data = [0u32; 6];
        call(libc::SYS_capset, &[sys::at(&header), sys::at(&data)])?;
        say()
    }),
    reach("mount namespace of an untagged process (setns)", |stage| {
        in_child(|| {
            let file = sys::open(format!("/proc/{}/ns/mnt", stage.victim), libc::O_RDONLY)?;
            call(libc::SYS_setns, &[sys::fd(&file), libc::CLONE_NEWNS as usize])?;
            say()
        })
    }),
    reach("user namespace by a 32-bit call (int 0x80)", |_| {
        // unshare
        sys::call_32(310, [libc::CLONE_NEWUSER as u32, 0, 0, 0])?;
        say()
    })
    .given_up(),
    reach("mount by a 32-bit call (int 0x80)", |_| {
        let target = sys::low(sys::c_path(root("work/on")).as_bytes_with_nul())?;
        let kind = sys::low(b"tmpfs\0")?;
        // mount; of its five arguments the last is not needed.
        sys::call_32(21, [kind, target, kind, 0]).map(drop)
    })
    .prepare(folder)
    .happened(mounted)
    .given_up(),
    reach("remount by its configuration (fspick, fsconfig)", |_| {
        let path = sys::c_path(root("work/on"));
        let context = sys::call_fd(libc::SYS_fspick, &[sys::HERE, sys::text(&path), 0])?;
        // FSCONFIG_SET_FLAG, FSCONFIG_CMD_RECONFIGURE
        call(libc::SYS_fsconfig, &[sys::fd(&context), 0, c"ro".as_ptr() as usize, 0, 0])?;
        call(libc::SYS_fsconfig, &[sys::fd(&context), 7, 0, 0, 0]).map(drop)
    })
    .prepare(mounted_before)
    .happened(|_| std::fs::write(root("work/on/probe"), "").is_err()),
];
