//! Programs: `programs/mark` may not start. By path, by another name, without a name.

use std::io::Write as _;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::{PermissionsExt as _, symlink};

use crate::stage::{Outcome, root, text};
use crate::sys::{self, call, exec, exec_at, in_child, run, sh};
use crate::technique::{Person, Technique};
use crate::uring;

const COPIES: &str = "a rule on one path says nothing of a copy: use an allow-list, as in the next row";

/// `mark MARKER`
const ARGUMENTS: [&str; 2] = ["mark", "marker"];

fn mark() -> String {
    text("programs/mark")
}

/// Puts a copy of the forbidden program at `work/innocent`.
fn copy() -> Outcome {
    std::fs::copy(mark(), "innocent").map(drop)
}

/// Writes a script that may be executed.
pub(super) fn script(name: &str, contents: &str) -> Outcome {
    std::fs::write(name, contents)?;
    std::fs::set_permissions(name, std::fs::Permissions::from_mode(0o755))
}

/// A program in memory, as a descriptor.
fn memfd() -> std::io::Result<std::os::fd::OwnedFd> {
    let fd = sys::call_fd(libc::SYS_memfd_create, &[c"anything".as_ptr() as usize, 0])?;
    std::fs::File::from(fd.try_clone()?).write_all(&std::fs::read(mark())?)?;
    Ok(fd)
}

fn deep(folders: usize, name: &str) -> Outcome {
    for _ in 0..folders {
        std::fs::create_dir(name)?;
        std::env::set_current_dir(name)?;
    }
    Ok(())
}

/// A link flips between a permitted program and the forbidden one while it is started again and again.
fn flips() -> Outcome {
    symlink(text("permitted/mark"), "one")?;
    symlink(mark(), "other")?;
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
    let started = std::time::Instant::now();
    let mut tried = 0;
    // The flipper needs the processor, too; on a busy machine it gets it late.
    while tried < 60 || started.elapsed() < std::time::Duration::from_millis(300) {
        tried += 1;
        call(libc::SYS_sched_yield, &[])?;
        // The permitted one makes another file, whatever its arguments.
        let _ = run("./one", &ARGUMENTS);
    }
    let _ = call(libc::SYS_kill, &[flipper as usize, libc::SIGKILL as usize]);
    Ok(())
}

pub(super) const TECHNIQUES: &[Technique] = &[
    Technique::exec("absolute path", |_| run(mark(), &ARGUMENTS)),
    Technique::exec("relative path", |_| run("../programs/mark", &ARGUMENTS)),
    Technique::exec("dots and double slashes", |_| run(text("//work/.././programs///mark"), &ARGUMENTS)),
    Technique::exec("symbolic link", |_| {
        symlink(mark(), "innocent")?;
        run("./innocent", &ARGUMENTS)
    }),
    Technique::exec("symbolic link to the folder", |_| {
        symlink(text("programs"), "tools")?;
        run("tools/mark", &ARGUMENTS)
    }),
    Technique::exec("/proc/self/root", |_| run(format!("/proc/self/root{}", mark()), &ARGUMENTS)),
    Technique::exec("/proc/self/cwd", |_| run("/proc/self/cwd/../programs/mark", &ARGUMENTS)),
    Technique::exec("/proc/self/fd of an O_PATH descriptor", |_| {
        let fd = sys::open(mark(), libc::O_PATH)?;
        run(format!("/proc/self/fd/{}", fd.as_raw_fd()), &ARGUMENTS)
    }),
    Technique::exec("/proc/PID/root of an untagged process", |stage| {
        run(format!("/proc/{}/root{}", stage.victim, mark()), &ARGUMENTS)
    }),
    Technique::exec("execveat with AT_EMPTY_PATH", |_| {
        let fd = sys::open(mark(), libc::O_PATH)?;
        in_child(|| Err(exec_at(sys::fd(&fd), "", &ARGUMENTS, libc::AT_EMPTY_PATH)))
    }),
    Technique::exec("execveat relative to a folder", |_| {
        let folder = sys::open(root("programs"), libc::O_PATH)?;
        in_child(|| Err(exec_at(sys::fd(&folder), "mark", &ARGUMENTS, 0)))
    }),
    Technique::exec("descriptor opened by io_uring", |_| {
        let fd = uring::open(mark(), libc::O_RDONLY, uring::How::Worker)?;
        in_child(|| Err(exec_at(sys::fd(&fd), "", &ARGUMENTS, libc::AT_EMPTY_PATH)))
    })
    .given_up(),
    Technique::exec("copy (rule on a path)", |_| {
        copy()?;
        run("./innocent", &ARGUMENTS)
    })
    .unclaimed(COPIES),
    Technique::exec("copy (allow-list)", |_| {
        copy()?;
        run("./innocent", &ARGUMENTS)
    })
    .by(Person::Allowlisted),
    Technique::exec("hard link", |_| {
        std::fs::hard_link(mark(), "innocent")?;
        run("./innocent", &ARGUMENTS)
    }),
    Technique::exec("hard link made by others before", |_| run("./innocent", &ARGUMENTS))
        .prepare(|_| std::fs::hard_link(mark(), root("work/innocent"))),
    Technique::exec("hard link made by others before (rule on the folder)", |_| {
        run("./innocent", &ARGUMENTS)
    })
    .prepare(|_| std::fs::hard_link(root("programs/fixed"), root("work/innocent")))
    .unclaimed(
        "only files that a rule names by themselves are known by other names; folders are known as such",
    ),
    Technique::exec("bind mount of the file", |_| {
        sys::own_mounts()?;
        std::fs::write("innocent", "")?;
        sys::mount(mark(), "innocent", "", libc::MS_BIND, "")?;
        run("./innocent", &ARGUMENTS)
    }),
    Technique::exec("bind mount of the folder", |_| {
        sys::own_mounts()?;
        std::fs::create_dir("tools")?;
        sys::mount(root("programs"), "tools", "", libc::MS_BIND, "")?;
        run("tools/mark", &ARGUMENTS)
    }),
    Technique::exec("renamed folder", |_| {
        std::fs::rename(root("programs"), "tools")?;
        run("tools/mark", &ARGUMENTS)
    }),
    Technique::exec("renamed program", |_| {
        std::fs::rename(mark(), "innocent")?;
        run("./innocent", &ARGUMENTS)
    }),
    Technique::exec("chroot", |_| {
        in_child(|| {
            call(libc::SYS_chroot, &[sys::text(&sys::c_path(root("")))])?;
            Err(exec("/programs/mark", &ARGUMENTS))
        })
    }),
    Technique::exec("chroot to the program's folder", |_| {
        in_child(|| {
            call(libc::SYS_chroot, &[sys::text(&sys::c_path(root("programs")))])?;
            Err(exec("/mark", &ARGUMENTS))
        })
    }),
    Technique::exec("bind mount in a user namespace", |_| {
        in_child(|| {
            call(libc::SYS_unshare, &[(libc::CLONE_NEWUSER | libc::CLONE_NEWNS) as usize])?;
            std::fs::create_dir("tools")?;
            sys::mount(root("programs"), "tools", "", libc::MS_BIND, "")?;
            Err(exec("tools/mark", &ARGUMENTS))
        })
    }),
    Technique::exec("overlay over the folder", |_| {
        sys::own_mounts()?;
        for folder in ["upper", "inner", "merged"] {
            std::fs::create_dir(folder)?;
        }
        let options = format!(
            "lowerdir={},upperdir={},workdir={}",
            text("programs"),
            text("work/upper"),
            text("work/inner")
        );
        sys::mount("overlay", "merged", "overlay", 0, &options)?;
        run("merged/mark", &ARGUMENTS)
    })
    .unclaimed(
        "a file of an overlay is another file; forbid mounts, or use an allow-list, as in the next row",
    ),
    Technique::exec("overlay over the folder (allow-list)", |_| {
        sys::own_mounts()?;
        std::fs::create_dir("merged")?;
        let options = format!("lowerdir={}:{}", text("programs"), text("permitted"));
        sys::mount("overlay", "merged", "overlay", 0, &options)?;
        run("merged/mark", &ARGUMENTS)
    })
    .by(Person::Allowlisted),
    Technique::exec("memfd and fexecve", |_| {
        let fd = memfd()?;
        in_child(|| Err(exec_at(sys::fd(&fd), "", &ARGUMENTS, libc::AT_EMPTY_PATH)))
    })
    .by(Person::Allowlisted),
    Technique::exec("memfd through /proc/self/fd (rule on programs without a name)", |_| {
        let fd = memfd()?;
        in_child(|| Err(exec(format!("/proc/self/fd/{}", fd.as_raw_fd()), &ARGUMENTS)))
    }),
    Technique::exec("O_TMPFILE", |_| {
        let fd = sys::call_fd(
            libc::SYS_openat,
            &[sys::HERE, c".".as_ptr() as usize, (libc::O_TMPFILE | libc::O_RDWR) as usize, 0o755],
        )?;
        std::fs::File::from(fd.try_clone()?).write_all(&std::fs::read(mark())?)?;
        let reading = sys::open(format!("/proc/self/fd/{}", fd.as_raw_fd()), libc::O_RDONLY)?;
        drop(fd);
        in_child(|| Err(exec_at(sys::fd(&reading), "", &ARGUMENTS, libc::AT_EMPTY_PATH)))
    })
    .by(Person::Allowlisted),
    Technique::exec("copy, opened, deleted, executed", |_| {
        copy()?;
        let fd = sys::open("innocent", libc::O_RDONLY)?;
        std::fs::remove_file("innocent")?;
        in_child(|| Err(exec_at(sys::fd(&fd), "", &ARGUMENTS, libc::AT_EMPTY_PATH)))
    })
    .by(Person::Allowlisted),
    Technique::exec("the program itself, opened, deleted, executed", |_| {
        let fd = sys::open(mark(), libc::O_RDONLY)?;
        std::fs::remove_file(mark())?;
        in_child(|| Err(exec_at(sys::fd(&fd), "", &ARGUMENTS, libc::AT_EMPTY_PATH)))
    }),
    Technique::exec("script with the program as interpreter", |_| {
        script("innocent", &format!("#!{} marker\n", mark()))?;
        run("./innocent", &["innocent"])
    }),
    Technique::exec("chain of two scripts", |_| {
        script("second", &format!("#!{} marker\n", mark()))?;
        script("first", &format!("#!{}\n", text("work/second")))?;
        // The last interpreter's first argument is the text after its name.
        run("./first", &["first"])
    }),
    Technique::exec("forbidden script", |_| run(text("programs/script.sh"), &["script", "marker"]))
        .lsm_only("tracepoint mode sees the interpreter, not the script"),
    Technique::exec("forbidden script through a symbolic link", |_| {
        symlink(text("programs/script.sh"), "innocent")?;
        run("./innocent", &["script", "marker"])
    })
    .lsm_only("tracepoint mode sees the interpreter, not the script"),
    Technique::exec("script given to its interpreter (rule on exec)", |_| {
        run("/bin/sh", &["sh", &text("programs/script.sh"), "marker"])
    })
    .unclaimed("the shell reads it: forbid read_file as well, as in the next row"),
    Technique::exec("script given to its interpreter (rule on read_file)", |_| {
        run("/bin/sh", &["sh", &text("secrets/script.sh"), "marker"])
    })
    .lsm_only("files have no hook in tracepoint mode that comes in time"),
    Technique::exec("script on standard input (rule on read_file)", |_| {
        sh(&format!("sh -s marker < {}", text("secrets/script.sh")))
    })
    .lsm_only("files have no hook in tracepoint mode that comes in time"),
    Technique::exec("base64 decoded into a shell", |_| {
        // ../programs/mark marker
        sh("echo Li4vcHJvZ3JhbXMvbWFyayBtYXJrZXIK | base64 -d | sh")
    }),
    Technique::exec("perl's exec", |_| sys::perl(&format!("exec('{}', 'marker')", mark()))),
    Technique::exec("bash -c exec -a", |_| {
        run("/bin/bash", &["bash", "-c", &format!("exec -a innocent {} marker", mark())])
    }),
    Technique::exec("env, xargs and nice in front", |_| sh(&format!("env -i nice -n 5 {} marker", mark()))),
    Technique::exec("vfork", |_| std::process::Command::new(mark()).arg("marker").status().map(drop)),
    Technique::exec("exec in a thread", |_| {
        in_child(|| {
            let thread = std::thread::spawn(|| exec(mark(), &ARGUMENTS));
            Err(thread.join().unwrap_or_else(|_| std::io::Error::other("the thread ended")))
        })
    }),
    Technique::exec("binfmt_misc", |_| {
        let folder = root("work/formats");
        std::fs::create_dir(&folder)?;
        sys::mount("none", &folder, "binfmt_misc", 0, "")?;
        let line = format!(":battery:E::battery::{}:", text("work/middle"));
        script("middle", &format!("#!{} marker\n", mark()))?;
        script("innocent.battery", "anything")?;
        std::fs::write(folder.join("register"), line)?;
        let ran = run("./innocent.battery", &["innocent"]);
        std::fs::write(folder.join("battery"), "-1")?;
        ran
    })
    .guest_only(),
    Technique::exec("symbolic link flipped while it is started (60 times)", |_| flips()),
    Technique::exec("path on a page that is served when the kernel reads it", |_| {
        in_child(|| {
            let mut path = mark().into_bytes();
            path.push(0);
            let page = sys::served_page(path)?;
            let arguments = [c"mark".as_ptr() as usize, c"marker".as_ptr() as usize, 0];
            call(libc::SYS_execve, &[page as usize, arguments.as_ptr() as usize, 0]).map(drop)
        })
    })
    .given_up(),
    Technique::exec("hard link below three hundred folders", |_| {
        in_child(|| {
            deep(300, "d")?;
            std::fs::hard_link(mark(), "innocent")?;
            Err(exec("./innocent", &["mark", &text("work/marker")]))
        })
    })
    .always(),
    Technique::exec("copy at a path longer than any that is judged", |_| {
        in_child(|| {
            deep(24, &"d".repeat(250))?;
            std::fs::copy(mark(), "innocent")?;
            Err(exec("./innocent", &["mark", &text("work/marker")]))
        })
    })
    .by(Person::Allowlisted)
    .always(),
    Technique::exec("descriptor that was open before the session", |_| {
        in_child(|| Err(exec_at(INHERITED, "", &ARGUMENTS, libc::AT_EMPTY_PATH)))
    })
    .before(|_| {
        let fd = sys::open(mark(), libc::O_RDONLY)?;
        call(libc::SYS_dup3, &[sys::fd(&fd), INHERITED, 0]).map(drop)
    }),
    Technique::exec("from a current folder that was renamed", |_| {
        in_child(|| {
            std::env::set_current_dir(root("programs"))?;
            std::fs::rename(root("programs"), root("work/tools"))?;
            Err(exec("./mark", &["mark", &text("work/marker")]))
        })
    }),
    Technique::exec("mount detached from every tree", |_| {
        in_child(|| {
            sys::own_mounts()?;
            std::fs::create_dir("tools")?;
            sys::mount(root("programs"), "tools", "", libc::MS_BIND, "")?;
            let folder = sys::open("tools", libc::O_PATH)?;
            call(libc::SYS_umount2, &[sys::text(&sys::c_path("tools")), libc::MNT_DETACH as usize])?;
            Err(exec_at(sys::fd(&folder), "mark", &ARGUMENTS, 0))
        })
    }),
    Technique::exec("/proc/PID/exe of an untagged process that runs it", |_| {
        let process = std::fs::read_to_string("process")?;
        run(format!("/proc/{process}/exe"), &ARGUMENTS)
    })
    .before(|_| {
        // Opening the queue for writing, it waits for somebody who reads.
        call(libc::SYS_mknodat, &[sys::HERE, c"queue".as_ptr() as usize, 0o010_644, 0])?;
        let Some(process) = sys::fork()? else {
            let _ = exec(mark(), &["mark", "queue"]);
            sys::exit(1);
        };
        for _ in 0..1_000 {
            if std::fs::read_link(format!("/proc/{process}/exe"))? == std::path::Path::new(&mark()) {
                return std::fs::write("process", process.to_string());
            }
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        Err(std::io::Error::other("it does not start"))
    }),
    Technique::exec("32-bit execve (int 0x80)", |_| {
        in_child(|| {
            let path = sys::low(sys::c_path(mark()).as_bytes_with_nul())?;
            let (name, marker) = (sys::low(b"mark\0")?, sys::low(b"marker\0")?);
            let arguments: Vec<u8> = [name, marker, 0].iter().flat_map(|word| word.to_ne_bytes()).collect();
            sys::call_32(11, [path, sys::low(&arguments)?, 0, 0]).map(drop)
        })
    })
    .given_up(),
];

/// A number that nothing else uses.
const INHERITED: usize = 150;
