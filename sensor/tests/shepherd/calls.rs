//! Small programs that try what a session may have given up: this test binary, run again by a session's shell.

use std::io::{Error, Read as _, Write as _};
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;

type Outcome = std::io::Result<()>;

/// What makes a run of the test binary one of the helper.
const VARIABLE: &str = "SALLYPORT_TRY";

/// A function `try` for bash that runs this binary as the helper, prints `works` or the error's number, and has its status.
pub(crate) fn shell_function() -> String {
    let exe = std::env::current_exe().expect("own path");
    format!(
        "try() {{ {VARIABLE}=\"$*\" {} --exact calls::helper --nocapture | grep -E '^(tried|namespace|read)'; return ${{PIPESTATUS[0]}}; }}; ",
        exe.display()
    )
}

/// Not a test: does nothing unless a session runs this binary as the helper.
#[test]
#[expect(clippy::disallowed_methods, reason = "libtest would add lines of its own")]
fn helper() {
    let Ok(line) = std::env::var(VARIABLE) else { return };
    let words: Vec<&str> = line.split(' ').collect();
    let outcome = attempt(&words);
    let number = |error: Error| error.raw_os_error().map_or_else(|| error.to_string(), |n| n.to_string());
    // libtest may have begun a line.
    println!("\ntried: {}", outcome.map_or_else(number, |()| "works".into()));
    std::process::exit(0);
}

fn attempt(words: &[&str]) -> Outcome {
    let number = |n: usize| -> i64 { words[n].parse().expect("a number") };
    match words[0] {
        // The plain call, with whatever arguments.
        "call" => {
            let arguments: Vec<i64> = (2..words.len()).map(number).collect();
            call(number(1), &arguments).map(drop)
        }
        "write-memory" => write_memory(number(1), number(2), words[3].as_bytes()),
        "write-mem-file" => {
            use std::os::unix::fs::FileExt as _;
            let file = std::fs::File::options().write(true).open(format!("/proc/{}/mem", words[1]))?;
            file.write_all_at(words[3].as_bytes(), number(2).cast_unsigned())
        }
        "take-descriptor" => {
            let process = descriptor(call(libc::SYS_pidfd_open, &[number(1), 0])?);
            let taken = call(libc::SYS_pidfd_getfd, &[i64::from(process.as_raw_fd()), number(2), 0])?;
            std::fs::File::from(descriptor(taken)).write_all(b"taken")
        }
        "attach" => {
            call(libc::SYS_ptrace, &[i64::from(libc::PTRACE_ATTACH), number(1), 0, 0])?;
            nix::sys::wait::waitpid(nix::unistd::Pid::from_raw(number(1) as i32), None)?;
            call(libc::SYS_ptrace, &[i64::from(libc::PTRACE_DETACH), number(1), 0, 0]).map(drop)
        }
        "mount" => Ok(nix::mount::mount(
            Some("none"),
            words[1],
            Some("tmpfs"),
            nix::mount::MsFlags::empty(),
            None::<&str>,
        )?),
        "mount-new" => mount_new(words[1]),
        "umount" => Ok(nix::mount::umount(words[1])?),
        "chroot" => {
            nix::unistd::chroot(words[1])?;
            std::fs::write("/mark", "in")
        }
        "unshare" => {
            call(libc::SYS_unshare, &[number(1)])?;
            println!("\nnamespace {}", std::fs::read_link("/proc/thread-self/ns/uts")?.display());
            Ok(())
        }
        "clone" => clone(number(1)),
        "add-key" => add_key(words[1]),
        "handle" => open_by_handle(words[1]),
        "type" => words[1..]
            .join(" ")
            .bytes()
            .chain(*b"\n")
            .try_for_each(|byte| call(libc::SYS_ioctl, &[0, 0x5412, (&raw const byte) as i64]).map(drop)),
        "become" => {
            call(libc::SYS_setuid, &[number(1)])?;
            std::fs::write(words[2], "mine")
        }
        "force-buffer" => {
            let socket = std::net::UdpSocket::bind("127.0.0.1:0")?;
            // `SO_RCVBUFFORCE`, which takes CAP_NET_ADMIN.
            let size = 100_000_i32;
            let (fd, pointer) = (i64::from(socket.as_raw_fd()), (&raw const size) as i64);
            call(libc::SYS_setsockopt, &[fd, i64::from(libc::SOL_SOCKET), 33, pointer, 4]).map(drop)
        }
        "threads" => {
            for _ in 0..50 {
                std::thread::spawn(|| ()).join().map_err(|_| Error::other("a thread failed"))?;
            }
            Ok(())
        }
        "ia32" => ia32(),
        other => panic!("no operation `{other}`"),
    }
}

#[expect(unsafe_code, reason = "the system calls themselves are tried")]
fn call(number: i64, arguments: &[i64]) -> std::io::Result<i64> {
    let mut all = [0; 6];
    all[..arguments.len()].copy_from_slice(arguments);
    let [a, b, c, d, e, f] = all;
    // SAFETY: pointers among the arguments are null or to live memory of the caller's that is large enough, or to no
    // memory of this process; whatever the call does happens to this process, which is there for it.
    let result = unsafe { libc::syscall(number, a, b, c, d, e, f) };
    if result < 0 { Err(Error::last_os_error()) } else { Ok(result) }
}

#[expect(unsafe_code, reason = "descriptors that the standard library does not make")]
fn descriptor(fd: i64) -> OwnedFd {
    // SAFETY: the kernel has just given it to us.
    unsafe { OwnedFd::from_raw_fd(fd as i32) }
}

fn write_memory(process: i64, address: i64, bytes: &[u8]) -> Outcome {
    let local = [bytes.as_ptr() as i64, bytes.len() as i64];
    let remote = [address, bytes.len() as i64];
    let (local, remote) = (local.as_ptr() as i64, remote.as_ptr() as i64);
    call(libc::SYS_process_vm_writev, &[process, local, 1, remote, 1, 0]).map(drop)
}

fn mount_new(folder: &str) -> Outcome {
    let c = |text: &str| std::ffi::CString::new(text).expect("no zero");
    let (kind, empty, folder) = (c("tmpfs"), c(""), c(folder));
    let context = descriptor(call(libc::SYS_fsopen, &[kind.as_ptr() as i64, 0])?);
    // FSCONFIG_CMD_CREATE.
    call(libc::SYS_fsconfig, &[i64::from(context.as_raw_fd()), 6, 0, 0, 0])?;
    let mount = descriptor(call(libc::SYS_fsmount, &[i64::from(context.as_raw_fd()), 0, 0])?);
    let (from, empty) = (i64::from(mount.as_raw_fd()), empty.as_ptr() as i64);
    let (at, to) = (i64::from(libc::AT_FDCWD), folder.as_ptr() as i64);
    // MOVE_MOUNT_F_EMPTY_PATH.
    call(libc::SYS_move_mount, &[from, empty, at, to, 4]).map(drop)
}

/// The child writes its namespace and ends.
fn clone(flags: i64) -> Outcome {
    match call(libc::SYS_clone, &[flags | i64::from(libc::SIGCHLD)])? {
        0 => {
            let name = std::fs::read_link("/proc/thread-self/ns/uts")?;
            let line = [b"\nnamespace ", name.as_os_str().as_bytes(), b"\n"].concat();
            call(libc::SYS_write, &[1, line.as_ptr() as i64, line.len() as i64])?;
            call(libc::SYS_exit_group, &[0]).map(drop)
        }
        child => Ok(nix::sys::wait::waitpid(nix::unistd::Pid::from_raw(child as i32), None).map(drop)?),
    }
}

/// Into the user's keyring, where the key outlives the process.
fn add_key(name: &str) -> Outcome {
    let (kind, name) = (c"user", std::ffi::CString::new(name).expect("no zero"));
    let payload = b"x";
    let (kind, name, payload) = (kind.as_ptr() as i64, name.as_ptr() as i64, payload.as_ptr() as i64);
    // KEY_SPEC_USER_KEYRING.
    call(libc::SYS_add_key, &[kind, name, payload, 1, -4]).map(drop)
}

/// Reads the file without its path, and prints it.
fn open_by_handle(path: &str) -> Outcome {
    // `struct file_handle`: size, type, bytes.
    let mut handle = [0_u32; 34];
    handle[0] = 128;
    let mut mount = 0_i32;
    let name = std::ffi::CString::new(path).expect("no zero");
    let (name, room, id) = (name.as_ptr() as i64, handle.as_mut_ptr() as i64, (&raw mut mount) as i64);
    call(libc::SYS_name_to_handle_at, &[i64::from(libc::AT_FDCWD), name, room, id, 0])?;
    let folder = std::fs::File::open(std::path::Path::new(path).parent().expect("a folder"))?;
    let opened = call(libc::SYS_open_by_handle_at, &[i64::from(folder.as_raw_fd()), room, 0])?;
    let mut text = String::new();
    std::fs::File::from(descriptor(opened)).read_to_string(&mut text)?;
    println!("\nread {text}");
    Ok(())
}

/// `getpid` as a 32-bit program asks for it.
#[cfg(target_arch = "x86_64")]
#[expect(unsafe_code, reason = "an instruction of another ABI")]
fn ia32() -> Outcome {
    let result: u64;
    // SAFETY: number 20 is `getpid` there: no arguments, no memory. It changes rax, and r8 to r11 on some kernels.
    unsafe {
        std::arch::asm!("int 0x80", inout("rax") 20_u64 => result, out("r8") _, out("r9") _, out("r10") _, out("r11") _);
    }
    if result == u64::from(std::process::id()) { Ok(()) } else { Err(Error::other("no number")) }
}

#[cfg(not(target_arch = "x86_64"))]
fn ia32() -> Outcome {
    Err(Error::other("there is no such ABI here"))
}
