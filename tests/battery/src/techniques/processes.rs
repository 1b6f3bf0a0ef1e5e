//! Other processes: an untagged one may not be traced, written to, signalled or held up.

use std::io::Error;
use std::os::fd::OwnedFd;

use crate::server::WATCHED;
use crate::stage::{Outcome, Stage};
use crate::sys::{self, at, call, call_fd, fd};
use crate::technique::Technique;

use super::lineage::cgroups;

/// The word that the victim watches, at the same address in all processes.
fn watched() -> usize {
    at(&WATCHED)
}

fn victim(stage: &Stage) -> usize {
    stage.victim as usize
}

/// A handle on the victim.
fn pidfd(stage: &Stage) -> std::io::Result<OwnedFd> {
    call_fd(libc::SYS_pidfd_open, &[victim(stage), 0])
}

const fn traced(name: &'static str, attack: fn(&Stage) -> Outcome) -> Technique {
    Technique::system(name, attack).group("processes").happened(Stage::victim_changed)
}

const fn killed(name: &'static str, attack: fn(&Stage) -> Outcome) -> Technique {
    Technique::system(name, attack).group("processes").happened(Stage::victim_dead)
}

const SIGKILL: usize = libc::SIGKILL as usize;

pub(super) fn seize_and_write(stage: &Stage) -> Outcome {
    // PTRACE_ATTACH, then PTRACE_POKEDATA.
    call(libc::SYS_ptrace, &[16, victim(stage), 0, 0])?;
    call(libc::SYS_wait4, &[victim(stage), 0, 0x4000_0000, 0])?;
    call(libc::SYS_ptrace, &[5, victim(stage), watched(), 1])?;
    call(libc::SYS_ptrace, &[17, victim(stage), 0, 0]).map(drop)
}

pub(super) fn write_memory(stage: &Stage) -> Outcome {
    let value = 1u32;
    let (from, to) = ([at(&value), 4], [watched(), 4]);
    call(libc::SYS_process_vm_writev, &[victim(stage), at(&from), 1, at(&to), 1, 0]).map(drop)
}

pub(super) fn write_mem_file(stage: &Stage) -> Outcome {
    let memory = sys::open(format!("/proc/{}/mem", stage.victim), libc::O_WRONLY)?;
    let value = 1u32;
    call(libc::SYS_pwrite64, &[fd(&memory), at(&value), 4, watched()]).map(drop)
}

/// A signal that a pipe's end of input, or rather its beginning, sends: the kernel sends it, in the name of who asked for it.
pub(super) fn owner_signal(stage: &Stage) -> Outcome {
    let (read, write) = sys::pipe()?;
    // F_SETSIG, F_SETOWN, and then signals are wanted.
    call(libc::SYS_fcntl, &[fd(&read), 10, SIGKILL])?;
    call(libc::SYS_fcntl, &[fd(&read), libc::F_SETOWN as usize, victim(stage)])?;
    call(libc::SYS_fcntl, &[fd(&read), libc::F_SETFL as usize, libc::O_ASYNC as usize])?;
    call(libc::SYS_write, &[fd(&write), at(b"x"), 1]).map(drop)
}

/// How a file is told whom to signal.
pub(super) enum Owner {
    /// `F_SETOWN_EX`, whose argument lies in memory.
    Structure,
    /// `F_SETOWN` of a process group.
    Group,
    /// `FIOSETOWN` or `SIOCSPGRP`, of a socket.
    Ioctl(usize),
}

/// As [`owner_signal`], by other calls.
pub(super) fn signal_by(stage: &Stage, owner: Owner) -> Outcome {
    let (read, write) = match owner {
        Owner::Ioctl(_) => {
            let (one, other) = std::os::unix::net::UnixStream::pair()?;
            (one.into(), other.into())
        }
        _ => sys::pipe()?,
    };
    call(libc::SYS_fcntl, &[fd(&read), 10, SIGKILL])?;
    match owner {
        Owner::Structure => {
            // `struct f_owner_ex`: F_OWNER_PID, number.
            let structure = [1i32, stage.victim];
            call(libc::SYS_fcntl, &[fd(&read), 15, at(&structure)])?;
        }
        Owner::Group => {
            let group = (-stage.victim) as isize as usize;
            call(libc::SYS_fcntl, &[fd(&read), libc::F_SETOWN as usize, group])?;
        }
        Owner::Ioctl(command) => {
            call(libc::SYS_ioctl, &[fd(&read), command, at(&stage.victim)])?;
        }
    }
    call(libc::SYS_fcntl, &[fd(&read), libc::F_SETFL as usize, libc::O_ASYNC as usize])?;
    call(libc::SYS_write, &[fd(&write), at(b"x"), 1]).map(drop)
}

/// `struct siginfo`: number, error, code (SI_QUEUE is -1).
fn queued(stage: &Stage, number: i64) -> Outcome {
    let mut information = [0i32; 32];
    information[0] = libc::SIGKILL;
    information[2] = -1;
    let arguments = match number {
        libc::SYS_rt_sigqueueinfo => vec![victim(stage), SIGKILL, at(&information)],
        _ => vec![victim(stage), victim(stage), SIGKILL, at(&information)],
    };
    call(number, &arguments).map(drop)
}

pub(super) const TECHNIQUES: &[Technique] = &[
    traced("ptrace attaches and writes", seize_and_write),
    traced("process_vm_writev", write_memory),
    traced("/proc/PID/mem", write_mem_file),
    traced("io_uring writes /proc/PID/mem", |stage| {
        let path = format!("/proc/{}/mem", stage.victim);
        let memory = crate::uring::open(path, libc::O_WRONLY, crate::uring::How::Worker)?;
        let value = 1u32;
        call(libc::SYS_pwrite64, &[fd(&memory), at(&value), 4, watched()]).map(drop)
    })
    .given_up(),
    traced("ptrace from a grandchild", |stage| sys::in_child(|| seize_and_write(stage))),
    traced("being traced by an untagged process (PTRACE_TRACEME)", |_| {
        call(libc::SYS_ptrace, &[0, 0, 0, 0])?;
        std::fs::write("marker", "")
    })
    .lsm_only("tracepoint mode closes off what the session does to others, not what it has done to itself")
    .happened(|stage| stage.marker().exists()),
    traced("reading an untagged process's memory", |stage| {
        let value = [0u8; 4];
        let (to, from) = ([at(&value), 4], [watched(), 4]);
        call(libc::SYS_process_vm_readv, &[victim(stage), at(&to), 1, at(&from), 1, 0])?;
        std::fs::write("marker", "")
    })
    .happened(|stage| stage.marker().exists()),
    traced("reading an untagged process's environment", |stage| {
        let text = std::fs::read(format!("/proc/{}/environ", stage.victim))?;
        if text.is_empty() { Err(Error::other("nothing there")) } else { std::fs::write("marker", "") }
    })
    .unclaimed("it reads and does not trace: forbid read_file below /proc")
    .happened(|stage| stage.marker().exists()),
    traced("pidfd_getfd of an untagged process's file", |stage| {
        let process = pidfd(stage)?;
        let number = crate::stage::VICTIM_SECRET as usize;
        let file = call_fd(libc::SYS_pidfd_getfd, &[fd(&process), number, 0])?;
        drop(file);
        std::fs::write("marker", "")
    })
    .happened(|stage| stage.marker().exists()),
    killed("kill", |stage| call(libc::SYS_kill, &[victim(stage), SIGKILL]).map(drop)),
    killed("kill in a shell", |stage| sys::sh(&format!("kill -9 {}", stage.victim))),
    killed("tkill", |stage| call(libc::SYS_tkill, &[victim(stage), SIGKILL]).map(drop)),
    killed("tgkill", |stage| call(libc::SYS_tgkill, &[victim(stage), victim(stage), SIGKILL]).map(drop)),
    killed("kill of its process group", |stage| {
        call(libc::SYS_kill, &[(-stage.victim) as isize as usize, SIGKILL]).map(drop)
    }),
    killed("rt_sigqueueinfo", |stage| queued(stage, libc::SYS_rt_sigqueueinfo)),
    killed("rt_tgsigqueueinfo", |stage| queued(stage, libc::SYS_rt_tgsigqueueinfo)),
    killed("pidfd_send_signal", |stage| {
        let process = pidfd(stage)?;
        call(libc::SYS_pidfd_send_signal, &[fd(&process), SIGKILL, 0, 0]).map(drop)
    }),
    killed("signal of a pipe that the victim is made owner of (F_SETOWN)", owner_signal),
    killed("signal of a pipe, its owner given in a structure (F_SETOWN_EX)", |stage| {
        signal_by(stage, Owner::Structure)
    }),
    killed("signal of a socket that the victim is made owner of (FIOSETOWN)", |stage| {
        signal_by(stage, Owner::Ioctl(0x8901))
    }),
    killed("signal of a pipe that the victim's process group is made owner of", |stage| {
        signal_by(stage, Owner::Group)
    }),
    killed("a limit of processor time that it is over already (prlimit)", |stage| {
        let limit = [0u64, 0];
        call(libc::SYS_prlimit64, &[victim(stage), libc::RLIMIT_CPU as usize, at(&limit), 0])?;
        // It uses little time: the limit of 0 seconds is looked at when a whole one has passed. A limit is proof enough.
        Ok(())
    })
    .happened(|stage| {
        std::fs::read_to_string(format!("/proc/{}/limits", stage.victim)).is_ok_and(|limits| {
            limits.lines().any(|line| line.starts_with("Max cpu time") && !line.contains("unlimited"))
        })
    })
    .unclaimed("limits of other processes are not judged"),
    killed("cgroup.kill", |stage| {
        let folder = cgroup_of_victim(stage)?;
        std::fs::write(format!("{folder}/cgroup.kill"), "1")
    })
    .prepare(|_| remove_cgroup())
    .lsm_only("files have no hook in tracepoint mode that comes in time")
    .always(),
    killed("a frozen cgroup", |stage| {
        let folder = cgroup_of_victim(stage)?;
        std::fs::write(format!("{folder}/cgroup.freeze"), "1")
    })
    .prepare(|_| remove_cgroup())
    .happened(|_| {
        cgroups().is_ok_and(|at| {
            std::fs::read_to_string(format!("{at}/sallyport-battery/cgroup.freeze"))
                .is_ok_and(|text| text.trim() == "1")
        })
    })
    .lsm_only("files have no hook in tracepoint mode that comes in time")
    .always(),
    killed("the priority of an untagged process", |stage| {
        call(libc::SYS_setpriority, &[0, victim(stage), 15]).map(drop)
    })
    .happened(|stage| {
        std::fs::read_to_string(format!("/proc/{}/stat", stage.victim)).is_ok_and(|stat| {
            stat.rsplit_once(") ").and_then(|(_, rest)| rest.split(' ').nth(16)) == Some("15")
        })
    })
    .unclaimed("priorities of other processes are not judged"),
];

pub(super) fn remove_cgroup() -> Outcome {
    if let Ok(at) = cgroups() {
        let _ = std::fs::remove_dir(format!("{at}/sallyport-battery"));
    }
    Ok(())
}

fn cgroup_of_victim(stage: &Stage) -> std::io::Result<String> {
    let folder = format!("{}/sallyport-battery", cgroups()?);
    std::fs::create_dir_all(&folder)?;
    std::fs::write(format!("{folder}/cgroup.procs"), stage.victim.to_string())?;
    Ok(folder)
}
