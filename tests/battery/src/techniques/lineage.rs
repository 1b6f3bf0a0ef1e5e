//! Shedding the tag: whatever a process makes of itself, `programs/mark` may not start.

use std::io::Error;

use crate::stage::{Outcome, root, text};
use crate::sys::{self, at, call, exec, in_child, run, sh};
use crate::technique::Technique;

const ARGUMENTS: [&str; 2] = ["mark", "marker"];

fn mark() -> String {
    text("programs/mark")
}

/// Becomes the forbidden program in a process that nobody waits for.
fn orphan(levels: usize) -> Outcome {
    if sys::fork()?.is_some() {
        return Ok(());
    }
    let _ = call(libc::SYS_setsid, &[]);
    if levels > 1 {
        sys::exit(i32::from(orphan(levels - 1).is_err()));
    }
    let _ = exec(mark(), &ARGUMENTS);
    sys::exit(1)
}

fn unshared(flags: i32) -> Outcome {
    in_child(|| {
        call(libc::SYS_unshare, &[flags as usize])?;
        run(mark(), &ARGUMENTS)
    })
}

/// The machine's cgroup2 hierarchy.
pub(super) fn cgroups() -> std::io::Result<String> {
    let mounts = std::fs::read_to_string("/proc/self/mounts")?;
    let found = mounts.lines().find(|line| line.split(' ').nth(2) == Some("cgroup2"));
    let place = found.and_then(|line| line.split(' ').nth(1));
    place.map(str::to_owned).ok_or_else(|| Error::other("no cgroup2 here"))
}

pub(super) const TECHNIQUES: &[Technique] = &[
    Technique::exec("double fork and setsid", |_| orphan(2)).group("lineage"),
    Technique::exec("setsid in a shell's background", |_| {
        sh(&format!("setsid sh -c '({} marker &)'", mark()))
    })
    .group("lineage"),
    Technique::exec("three orphans deep", |_| orphan(3)).group("lineage"),
    Technique::exec("nohup-like daemon with everything closed", |_| {
        in_child(|| {
            for descriptor in 3..64 {
                let _ = call(libc::SYS_close, &[descriptor]);
            }
            // Signal 1 is ignored from here on: SIG_IGN.
            let action = [1usize, 0, 0, 0];
            call(libc::SYS_rt_sigaction, &[libc::SIGHUP as usize, at(&action), 0, 8])?;
            orphan(1)
        })
    })
    .group("lineage"),
    Technique::exec("a subreaper of one's own", |_| {
        in_child(|| {
            call(libc::SYS_prctl, &[libc::PR_SET_CHILD_SUBREAPER as usize, 1])?;
            orphan(2)?;
            // Two to wait for: the one between, and the orphan itself.
            for _ in 0..2 {
                let _ = call(libc::SYS_wait4, &[usize::MAX, 0, 0, 0]);
            }
            Ok(())
        })
    })
    .group("lineage"),
    Technique::exec("clone with the parent's parent (CLONE_PARENT)", |_| {
        in_child(|| {
            let flags = libc::CLONE_PARENT as usize;
            if call(libc::SYS_clone, &[flags, 0, 0, 0, 0])? == 0 {
                let _ = exec(mark(), &ARGUMENTS);
                sys::exit(1);
            }
            Ok(())
        })
    })
    .group("lineage"),
    Technique::exec("clone3", |_| {
        let mut arguments = [0u64; 11];
        arguments[4] = libc::SIGCHLD as u64;
        let child = call(libc::SYS_clone3, &[at(&arguments), 88])?;
        if child == 0 {
            let _ = exec(mark(), &ARGUMENTS);
            sys::exit(1);
        }
        sys::wait(child as i32)
    })
    .group("lineage"),
    Technique::exec("fork from a thread, which then execs", |_| {
        let thread = std::thread::spawn(|| run(mark(), &ARGUMENTS));
        thread.join().unwrap_or_else(|_| Err(Error::other("the thread ended")))
    })
    .group("lineage"),
    Technique::exec("exec of another program first", |_| {
        run("/bin/sh", &["sh", "-c", &format!("exec /bin/sh -c 'exec {} marker'", mark())])
    })
    .group("lineage"),
    Technique::exec("another cgroup", |_| {
        in_child(|| {
            let folder = format!("{}/sallyport-battery-{}", cgroups()?, std::process::id());
            std::fs::create_dir(&folder)?;
            std::fs::write(format!("{folder}/cgroup.procs"), "0")?;
            let ran = run(mark(), &ARGUMENTS);
            std::fs::write(format!("{}/cgroup.procs", cgroups()?), "0")?;
            std::fs::remove_dir(folder)?;
            ran
        })
    })
    .group("lineage")
    .always(),
    Technique::exec("another login uid", |_| {
        in_child(|| {
            std::fs::write("/proc/self/loginuid", "4242")?;
            run(mark(), &ARGUMENTS)
        })
    })
    .group("lineage"),
    Technique::exec("another user", |_| {
        in_child(|| {
            call(libc::SYS_setgid, &[65_534])?;
            call(libc::SYS_setuid, &[65_534])?;
            run(mark(), &ARGUMENTS)
        })
    })
    .group("lineage"),
    Technique::exec("a pid namespace", |_| unshared(libc::CLONE_NEWPID)).group("lineage"),
    Technique::exec("a user namespace (unshare -r)", |_| unshared(libc::CLONE_NEWUSER)).group("lineage"),
    Technique::exec("every namespace at once", |_| {
        unshared(
            libc::CLONE_NEWUSER
                | libc::CLONE_NEWNS
                | libc::CLONE_NEWPID
                | libc::CLONE_NEWNET
                | libc::CLONE_NEWUTS
                | libc::CLONE_NEWIPC
                | libc::CLONE_NEWCGROUP,
        )
    })
    .group("lineage"),
    Technique::exec("the namespaces of an untagged process", |stage| {
        in_child(|| {
            for name in ["mnt", "pid", "net"] {
                let file = sys::open(format!("/proc/{}/ns/{name}", stage.victim), libc::O_RDONLY)?;
                call(libc::SYS_setns, &[sys::fd(&file), 0])?;
            }
            std::env::set_current_dir(root("work"))?;
            run(mark(), &ARGUMENTS)
        })
    })
    .group("lineage"),
    Technique::exec("two hundred children, the last one execs", |_| {
        for _ in 0..200 {
            in_child(|| Ok(()))?;
        }
        run(mark(), &ARGUMENTS)
    })
    .group("lineage"),
    Technique::exec("after a flood of events that nobody reads", |_| {
        // Allowed or not, each is an event: reading folders, and starting programs that are not there to be started.
        for _ in 0..2_000 {
            drop(sys::open("/proc/self", libc::O_RDONLY | libc::O_DIRECTORY));
        }
        run(mark(), &ARGUMENTS)
    })
    .group("lineage"),
    Technique::exec("the first thread ends, another execs", |_| {
        in_child(|| {
            std::thread::spawn(|| {
                std::thread::sleep(std::time::Duration::from_millis(30));
                let _ = exec(mark(), &ARGUMENTS);
                sys::exit(1);
            });
            // This thread only.
            call(libc::SYS_exit, &[0]).map(drop)
        })
    })
    .group("lineage"),
    Technique::exec("a child of a 32-bit call (int 0x80)", |_| {
        // fork
        let child = sys::call_32(2, [0; 4])?;
        if child == 0 {
            let _ = exec(mark(), &ARGUMENTS);
            sys::exit(1);
        }
        sys::wait(child as i32)
    })
    .given_up()
    .group("lineage"),
];
