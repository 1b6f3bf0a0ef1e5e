//! The sensor itself: its processes, maps, pins, links and files, of which a stand-in is made for every run. Here the session is one that
//! policy permits everything.

use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;

use crate::bpf;
use crate::stage::{Outcome, Stage, root};
use crate::sys::{self, call};
use crate::technique::{Person, Technique};

use super::{lineage::cgroups, processes};

const NO_HOOK: &str = "it has no hook in tracepoint mode";

pub(super) const fn guard(name: &'static str, attack: fn(&Stage) -> Outcome) -> Technique {
    Technique::guard(name, attack).by(Person::Permitted).lsm_only(NO_HOOK)
}

/// A file system for pins, as the sensor's.
fn pins() -> PathBuf {
    root("work/pins")
}

fn file_system(_: &Stage) -> Outcome {
    std::fs::create_dir(pins())?;
    sys::mount("none", pins(), "bpf", 0, "")
}

fn map(stage: &Stage) -> Outcome {
    file_system(stage)?;
    keep(bpf::map()?, "map")
}

/// Pins it, and writes down its number for the technique.
fn keep(object: std::os::fd::OwnedFd, name: &str) -> Outcome {
    std::fs::write(root("work/number"), bpf::number(&object)?.to_string())?;
    bpf::pin(&object, &pins().join(name))
}

fn number() -> std::io::Result<u32> {
    std::fs::read_to_string("number")?.parse().map_err(std::io::Error::other)
}

fn written(_: &Stage) -> bool {
    bpf::pinned(&pins().join("map")).and_then(|map| bpf::read(&map)).is_ok_and(|value| value == 42)
}

fn gone(_: &Stage) -> bool {
    !pins().join("map").exists()
}

fn cgroup() -> std::io::Result<PathBuf> {
    let folder = PathBuf::from(cgroups()?).join("sallyport-battery-link");
    std::fs::create_dir_all(&folder)?;
    Ok(folder)
}

fn link(stage: &Stage) -> Outcome {
    file_system(stage)?;
    keep(bpf::link(&cgroup()?)?, "link")
}

fn detached(_: &Stage) -> bool {
    bpf::pinned(&pins().join("link")).and_then(|link| bpf::attached(&link)).is_ok_and(|attached| !attached)
}

fn path(of: &str) -> std::ffi::CString {
    sys::c_path(pins().join(of))
}

fn signal(stage: &Stage, number: i32) -> Outcome {
    call(libc::SYS_kill, &[stage.victim as usize, number as usize]).map(drop)
}

pub(super) const TECHNIQUES: &[Technique] = &[
    guard("a map is opened by its pin and written", |_| bpf::write(&bpf::pinned(&pins().join("map"))?, 42))
        .prepare(map)
        .happened(written),
    guard("a map is found by its number and written", |_| bpf::write(&bpf::map_by_number(number()?)?, 42))
        .prepare(map)
        .happened(written),
    guard("a link is detached", |_| bpf::detach(&bpf::link_by_number(number()?)?))
        .prepare(link)
        .happened(detached),
    guard("a pin is removed", |_| std::fs::remove_file(pins().join("map"))).prepare(map).happened(gone),
    guard("a pin is removed by rm", |_| sys::sh("rm -f pins/map")).prepare(map).happened(gone),
    guard("a pin is renamed", |_| std::fs::rename(pins().join("map"), pins().join("other")))
        .prepare(map)
        .happened(gone),
    guard("the file system of the pins is unmounted", |_| {
        call(libc::SYS_umount2, &[sys::text(&path("")), 0]).map(drop)
    })
    .prepare(map)
    .happened(gone),
    guard("the file system of the pins is unmounted lazily", |_| {
        call(libc::SYS_umount2, &[sys::text(&path("")), libc::MNT_DETACH as usize]).map(drop)
    })
    .prepare(map)
    .happened(gone),
    guard("something is mounted over the pins", |_| sys::mount("none", pins(), "tmpfs", 0, ""))
        .prepare(map)
        .happened(gone),
    guard("the file system of the pins is moved", |_| {
        std::fs::create_dir("elsewhere")?;
        // MS_MOVE is refused where mounts are shared: a tree of one's own is not.
        sys::mount(pins(), "elsewhere", "", libc::MS_MOVE, "")
    })
    .prepare(|stage| {
        map(stage)?;
        // Where the parent mount is shared nothing can be moved.
        if std::fs::read_to_string("/proc/self/mountinfo")?
            .lines()
            .any(|line| line.contains(" / / ") && line.contains("shared:"))
        {
            return Err(std::io::Error::other("mounts are shared here"));
        }
        Ok(())
    })
    .happened(gone),
    guard("the sensor is killed", |stage| signal(stage, libc::SIGKILL)).happened(Stage::victim_dead),
    guard("the sensor is stopped", |stage| signal(stage, libc::SIGSTOP)).happened(|stage| {
        std::thread::sleep(std::time::Duration::from_millis(10));
        stage.victim_state() == Some('T')
    }),
    guard("the sensor gets a signal from a pipe (F_SETOWN)", processes::owner_signal)
        .happened(Stage::victim_dead),
    guard("the sensor is traced", processes::seize_and_write).happened(Stage::victim_changed),
    guard("the sensor's memory is written (process_vm_writev)", processes::write_memory)
        .happened(Stage::victim_changed),
    guard("the sensor's memory is written (/proc/PID/mem)", processes::write_mem_file)
        .happened(Stage::victim_changed),
    file("the sensor's file is written", |_| std::fs::write(state(), "changed")),
    file("the sensor's file is removed", |_| std::fs::remove_file(state())),
    file("the sensor's file is replaced by rename", |_| {
        std::fs::write("innocent", "")?;
        std::fs::rename("innocent", state())
    }),
    file("the sensor's folder is renamed", |_| std::fs::rename(root("guarded"), "innocent")),
    file("the sensor's file is written through a bind mount", |_| {
        sys::own_mounts()?;
        std::fs::create_dir("innocent")?;
        sys::mount(root("guarded"), "innocent", "", libc::MS_BIND, "")?;
        std::fs::write("innocent/state", "changed")
    }),
    file("the sensor's file gets another mode", |_| {
        std::fs::set_permissions(state(), std::fs::Permissions::from_mode(0o777))
    }),
    file("a file appears in the sensor's folder", |_| std::fs::write(root("guarded/new"), "")),
    file("something is mounted over the sensor's folder", |_| {
        sys::mount("none", root("guarded"), "tmpfs", 0, "")
    }),
    file("the sensor's secret is read", |_| {
        std::fs::copy(root("guarded/secret"), root("work/out")).map(drop)
    })
    .happened(Stage::leaked),
    file("the sensor's secret is read through a hard link", |_| {
        std::fs::hard_link(root("guarded/secret"), "innocent")?;
        std::fs::copy("innocent", root("work/out")).map(drop)
    })
    .happened(Stage::leaked),
];

fn state() -> PathBuf {
    root("guarded/state")
}

const fn file(name: &'static str, attack: fn(&Stage) -> Outcome) -> Technique {
    guard(name, attack).happened(Stage::changed)
}
