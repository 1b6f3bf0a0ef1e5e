//! The sensor held up, starved and shut out: without a signal to it and without a word to its files. Policy permits everything here.

use std::os::fd::AsRawFd as _;
use std::time::Duration;

use crate::stage::{Outcome, Stage, root};
use crate::sys::{self, at, call, call_fd, fd, in_child, run};
use crate::technique::{Person, Technique};

use super::guard::guard;
use super::lineage::cgroups;
use super::processes::{self, Owner};

fn victim(stage: &Stage) -> usize {
    stage.victim as usize
}

fn state() -> std::path::PathBuf {
    root("guarded/state")
}

/// Holds something on the sensor's file in a process that stays for a while.
fn held(hold: impl FnOnce(&std::os::fd::OwnedFd) -> Outcome) -> Outcome {
    let (ready, say_ready) = sys::pipe()?;
    if sys::fork()?.is_none() {
        drop(ready);
        let held = sys::open(state(), libc::O_RDONLY).and_then(|file| {
            hold(&file)?;
            call(libc::SYS_write, &[fd(&say_ready), at(b"r"), 1])?;
            std::thread::sleep(Duration::from_secs(20));
            Ok(())
        });
        sys::exit(i32::from(held.is_err()));
    }
    drop(say_ready);
    let byte = [0u8];
    match call(libc::SYS_read, &[fd(&ready), at(&byte), 1])? {
        1 => Ok(()),
        _ => Err(std::io::Error::other("it does not hold")),
    }
}

/// `struct flock`, from the beginning to the end of the file.
fn whole(kind: i32) -> libc::flock {
    libc::flock { l_type: kind as i16, l_whence: 0, l_start: 0, l_len: 0, l_pid: 0 }
}

/// Whether somebody else holds off what the sensor does to its file.
fn shut_out(with: impl FnOnce(&std::os::fd::OwnedFd) -> Outcome) -> bool {
    sys::open(state(), libc::O_RDWR | libc::O_NONBLOCK).and_then(|file| with(&file)).is_err()
}

/// A word of `/proc/PID/stat`, counted from the state on.
fn stat(stage: &Stage, word: usize) -> Option<String> {
    let text = std::fs::read_to_string(format!("/proc/{}/stat", stage.victim)).ok()?;
    text.rsplit_once(") ")?.1.split(' ').nth(word).map(str::to_owned)
}

const fn owner(name: &'static str, attack: fn(&Stage) -> Outcome) -> Technique {
    guard(name, attack).happened(Stage::victim_dead)
}

const SWITCH: &str = "/proc/sys/kernel/ftrace_enabled";

pub(super) const TECHNIQUES: &[Technique] = &[
    owner("the sensor gets a signal from a pipe (F_SETOWN_EX)", |stage| {
        processes::signal_by(stage, Owner::Structure)
    }),
    owner("the sensor gets a signal from a socket (FIOSETOWN)", |stage| {
        processes::signal_by(stage, Owner::Ioctl(0x8901))
    }),
    owner("the sensor gets a signal from a socket (SIOCSPGRP)", |stage| {
        processes::signal_by(stage, Owner::Ioctl(0x8902))
    }),
    owner("the sensor's process group gets a signal from a pipe (F_SETOWN)", |stage| {
        processes::signal_by(stage, Owner::Group)
    }),
    owner("the sensor's process group is killed", |stage| {
        call(libc::SYS_kill, &[(-stage.victim) as isize as usize, libc::SIGKILL as usize]).map(drop)
    }),
    owner("the sensor is killed by a handle on it (pidfd_send_signal)", |stage| {
        let process = call_fd(libc::SYS_pidfd_open, &[victim(stage), 0])?;
        call(libc::SYS_pidfd_send_signal, &[fd(&process), libc::SIGKILL as usize, 0, 0]).map(drop)
    }),
    guard("a descriptor of the sensor's is taken (pidfd_getfd)", |stage| {
        let process = call_fd(libc::SYS_pidfd_open, &[victim(stage), 0])?;
        let number = crate::stage::VICTIM_SOCKET as usize;
        drop(call_fd(libc::SYS_pidfd_getfd, &[fd(&process), number, 0])?);
        std::fs::write("marker", "")
    })
    .happened(|stage| stage.marker().exists()),
    guard("the sensor's file is locked (flock)", |_| {
        held(|file| call(libc::SYS_flock, &[fd(file), libc::LOCK_EX as usize]).map(drop))
    })
    .happened(|_| {
        shut_out(|file| {
            call(libc::SYS_flock, &[fd(file), (libc::LOCK_EX | libc::LOCK_NB) as usize]).map(drop)
        })
    }),
    guard("the sensor's file is locked for reading (fcntl)", |_| {
        held(|file| {
            let lock = whole(libc::F_RDLCK);
            call(libc::SYS_fcntl, &[fd(file), libc::F_SETLK as usize, at(&lock)]).map(drop)
        })
    })
    .happened(|_| {
        shut_out(|file| {
            let lock = whole(libc::F_WRLCK);
            call(libc::SYS_fcntl, &[fd(file), libc::F_SETLK as usize, at(&lock)]).map(drop)
        })
    }),
    guard("a lease on the sensor's file", |_| {
        held(|file| {
            call(libc::SYS_fcntl, &[fd(file), libc::F_SETLEASE as usize, libc::F_RDLCK as usize]).map(drop)
        })
    })
    .happened(|_| shut_out(|_| Ok(()))),
    guard("the sensor's priority", |stage| call(libc::SYS_setpriority, &[0, victim(stage), 15]).map(drop))
        .happened(|stage| stat(stage, 16).as_deref() == Some("15")),
    guard("the sensor is scheduled last (SCHED_IDLE)", |stage| {
        let parameter = 0i32;
        call(libc::SYS_sched_setscheduler, &[victim(stage), 5, at(&parameter)]).map(drop)
    })
    .happened(|stage| stat(stage, 38).as_deref() == Some("5")),
    guard("the sensor may use one processor only", |stage| {
        let first = 1u64;
        call(libc::SYS_sched_setaffinity, &[victim(stage), 8, at(&first)]).map(drop)
    })
    .happened(|stage| {
        std::fs::read_to_string(format!("/proc/{}/status", stage.victim)).is_ok_and(|status| {
            status.lines().any(|line| line.strip_prefix("Cpus_allowed_list:").map(str::trim) == Some("0"))
        })
    }),
    guard("the sensor's limits (prlimit)", |stage| {
        let limit = [1u64, 1];
        call(libc::SYS_prlimit64, &[victim(stage), libc::RLIMIT_NOFILE as usize, at(&limit), 0]).map(drop)
    })
    .happened(|stage| {
        std::fs::read_to_string(format!("/proc/{}/limits", stage.victim)).is_ok_and(|limits| {
            let mut words = limits.lines().filter_map(|line| line.strip_prefix("Max open files"));
            words.any(|rest| rest.split_whitespace().next() == Some("1"))
        })
    }),
    guard("the sensor is the first to go when memory is short (oom_score_adj)", |stage| {
        std::fs::write(format!("/proc/{}/oom_score_adj", stage.victim), "1000")
    })
    .happened(|stage| {
        std::fs::read_to_string(format!("/proc/{}/oom_score_adj", stage.victim))
            .is_ok_and(|text| text.trim() == "1000")
    }),
    guard("a child is born in the sensor's control group (CLONE_INTO_CGROUP)", |_| {
        let folder = sys::open(format!("{}/sallyport-battery", cgroups()?), libc::O_PATH)?;
        let mut arguments = [0u64; 11];
        (arguments[0], arguments[4], arguments[10]) =
            (1 << 33, libc::SIGCHLD as u64, folder.as_raw_fd() as u64);
        let child = call(libc::SYS_clone3, &[at(&arguments), 88])?;
        if child == 0 {
            let group = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
            let there = group.contains("/sallyport-battery") && std::fs::write("marker", "").is_ok();
            sys::exit(i32::from(!there));
        }
        sys::wait(child as i32)
    })
    .prepare(|_| {
        processes::remove_cgroup()?;
        std::fs::create_dir_all(format!("{}/sallyport-battery", cgroups()?))
    })
    .happened(|stage| stage.marker().exists()),
    guard("the calls of LSM programs are switched off (ftrace_enabled)", |_| {
        in_child(|| {
            let off = std::fs::write(SWITCH, "0");
            let ran = run(root("programs/mark"), &["mark", "marker"]);
            if off.is_ok() {
                std::fs::write(SWITCH, "1")?;
            }
            off.and(ran)
        })
    })
    .by(Person::Listed)
    .prepare(|_| std::fs::write(SWITCH, "1"))
    .happened(|stage| stage.marker().exists())
    .guest_only(),
    guard("the system request key (/proc/sysrq-trigger)", |_| {
        // Help: the one letter that changes nothing.
        std::fs::write("/proc/sysrq-trigger", "h")?;
        std::fs::write("marker", "")
    })
    .happened(|stage| stage.marker().exists())
    .guest_only(),
    guard("the sensor's file cannot be changed any more (immutable)", |_| {
        let file = sys::open(state(), libc::O_RDONLY)?;
        // FS_IOC_SETFLAGS, and FS_NODUMP_FL, which harms nobody.
        let flags = 0x40u64;
        call(libc::SYS_ioctl, &[fd(&file), 0x4008_6602, at(&flags)])?;
        std::fs::write("marker", "")
    })
    .happened(|stage| stage.marker().exists()),
];
