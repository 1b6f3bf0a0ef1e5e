//! The kernel itself: what only root may ask of it, and a confined session may not.

use std::io::Error;
use std::os::fd::OwnedFd;

use crate::bpf;
use crate::stage::{Outcome, Stage, root};
use crate::sys::{self, at, call, call_fd, fd};
use crate::technique::Technique;

/// The call itself succeeded, and the process says so: what it did cannot be seen otherwise without a machine to lose.
fn said(stage: &Stage) -> bool {
    stage.marker().exists()
}

fn say() -> Outcome {
    std::fs::write(root("work/marker"), "")
}

const fn asked(name: &'static str, attack: fn(&Stage) -> Outcome) -> Technique {
    Technique::system(name, attack).group("kernel").happened(said)
}

const MODULE: &str = "/opt/modules/dummy.ko";

fn module_there(_: &Stage) -> bool {
    std::fs::read_to_string("/proc/modules")
        .is_ok_and(|list| list.lines().any(|line| line.starts_with("dummy ")))
}

fn remove_module(_: &Stage) -> Outcome {
    let _ = call(libc::SYS_delete_module, &[c"dummy".as_ptr() as usize, 0]);
    Ok(())
}

fn load_module() -> Outcome {
    let file = sys::open(MODULE, libc::O_RDONLY)?;
    call(libc::SYS_finit_module, &[fd(&file), c"".as_ptr() as usize, 0]).map(drop)
}

fn key(keyring: i32) -> Outcome {
    let arguments = [
        c"user".as_ptr() as usize,
        c"sallyport-battery".as_ptr() as usize,
        at(b"x"),
        1,
        keyring as isize as usize,
    ];
    call(libc::SYS_add_key, &arguments).map(drop)
}

fn perf(kind: u32) -> std::io::Result<OwnedFd> {
    // `struct perf_event_attr`: kind, size, configuration (of software events 0 is the clock).
    let mut attributes = [0u32; 32];
    (attributes[0], attributes[1]) = (kind, 128);
    call_fd(libc::SYS_perf_event_open, &[at(&attributes), 0, usize::MAX, usize::MAX, 0])
}

pub(super) const TECHNIQUES: &[Technique] = &[
    asked("bpf: make a map", |_| {
        bpf::map()?;
        say()
    }),
    asked("bpf: load a program", |_| {
        bpf::program()?;
        say()
    }),
    asked("bpf: by its number in perl", |_| {
        bpf::lift_limit()?;
        // BPF_MAP_CREATE of an array.
        sys::perl(
            "my $a = pack('L5x108', 2, 4, 8, 1, 0); syscall(321, 0, $a, 72) >= 0 or exit 1; open(F, '>', 'marker')",
        )
    }),
    asked("perf_event_open", |_| {
        perf(1)?;
        say()
    }),
    asked("a module from a file (finit_module)", |_| load_module())
        .prepare(remove_module)
        .happened(module_there)
        .guest_only(),
    asked("a module from memory (init_module)", |_| {
        let module = std::fs::read(MODULE)?;
        let arguments = [module.as_ptr() as usize, module.len(), c"".as_ptr() as usize];
        call(libc::SYS_init_module, &arguments).map(drop)
    })
    .prepare(remove_module)
    .happened(module_there)
    .guest_only(),
    asked("a module removed (delete_module)", |_| {
        call(libc::SYS_delete_module, &[c"dummy".as_ptr() as usize, 0]).map(drop)
    })
    .prepare(|stage| {
        remove_module(stage)?;
        load_module()
    })
    .happened(|stage| !module_there(stage))
    .unclaimed("no kernel has a hook for taking a module out; it takes CAP_SYS_MODULE")
    .guest_only(),
    asked("another kernel (kexec_load)", |_| {
        // Nothing to load: whoever may ask at all may do this.
        call(libc::SYS_kexec_load, &[0, 0, 0, 0])?;
        say()
    })
    .guest_only(),
    asked("/dev/mem", |_| {
        sys::open("/dev/mem", libc::O_RDONLY)?;
        say()
    })
    .guest_only(),
    asked("the processor's ports (iopl)", |_| {
        call(libc::SYS_iopl, &[3])?;
        say()
    })
    .guest_only(),
    asked("a range of ports (ioperm)", |_| {
        call(libc::SYS_ioperm, &[0x80, 1, 1])?;
        say()
    })
    .guest_only(),
    asked("tracing the kernel's functions (kprobe_events)", |_| {
        std::fs::write("/sys/kernel/tracing/kprobe_events", "p:battery do_exit\n")?;
        say()
    })
    .prepare(|_| {
        let _ = std::fs::write("/sys/kernel/tracing/kprobe_events", "");
        Ok(())
    })
    .guest_only(),
    asked("debugfs", |_| {
        sys::own_mounts()?;
        std::fs::create_dir("debug")?;
        sys::mount("none", "debug", "debugfs", 0, "")?;
        say()
    })
    .guest_only(),
    asked("a key in the user's keyring", |_| {
        // KEY_SPEC_USER_KEYRING
        key(-4)?;
        say()
    })
    .unclaimed("the user's own keyring is the session's own, too"),
    asked("io_uring with a polling thread", |_| {
        let file = crate::uring::open(root("permitted/file"), libc::O_RDONLY, crate::uring::How::Poller)?;
        drop(file);
        say()
    })
    .given_up(),
    asked("input into a terminal (TIOCSTI)", |_| {
        let main = sys::open("/dev/ptmx", libc::O_RDWR | libc::O_NOCTTY)?;
        let zero = 0i32;
        // TIOCSPTLCK, TIOCGPTN
        call(libc::SYS_ioctl, &[fd(&main), 0x4004_5431, at(&zero)])?;
        let number = 0i32;
        call(libc::SYS_ioctl, &[fd(&main), 0x8004_5430, at(&number)])?;
        let terminal = sys::open(format!("/dev/pts/{number}"), libc::O_RDWR)?;
        call(libc::SYS_ioctl, &[fd(&terminal), libc::TIOCSTI as usize, at(b"\n")])?;
        // The line is there to be read, by whoever reads the terminal.
        let byte = [0u8];
        match call(libc::SYS_read, &[fd(&terminal), at(&byte), 1])? {
            1 => say(),
            _ => Err(Error::other("nothing to read")),
        }
    }),
    asked("the computer's clock", |_| {
        let now = [0u64; 2];
        call(libc::SYS_clock_gettime, &[libc::CLOCK_REALTIME as usize, at(&now)])?;
        call(libc::SYS_clock_settime, &[libc::CLOCK_REALTIME as usize, at(&now)])?;
        say()
    })
    .guest_only(),
    asked("the computer's name", |_| {
        call(libc::SYS_sethostname, &[c"guest".as_ptr() as usize, 5])?;
        say()
    })
    .unclaimed("no kernel has a hook for it; nothing of ours trusts it")
    .guest_only(),
    asked("swapping to a file", |_| {
        std::fs::write("swap", [0; 40_960])?;
        let path = sys::c_path("swap");
        match call(libc::SYS_swapon, &[sys::text(&path), 0]) {
            // It is no swap file: whoever gets that far was not refused.
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => say(),
            other => other.map(drop),
        }
    })
    .lsm_only("it has no hook in tracepoint mode")
    .guest_only(),
    asked("swapping to a file, by a 32-bit call (int 0x80)", |_| {
        std::fs::write("swap", [0; 40_960])?;
        let path = sys::low(b"swap\0")?;
        match sys::call_32(87, [path, 0, 0, 0]) {
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => say(),
            other => other.map(drop),
        }
    })
    .given_up()
    .guest_only(),
    asked("steering the kernel's audit (CAP_AUDIT_CONTROL)", |_| {
        let socket = call_fd(libc::SYS_socket, &[libc::AF_NETLINK as usize, libc::SOCK_RAW as usize, 9])?;
        // `struct nlmsghdr`: length, AUDIT_SET with request and acknowledgement; `struct audit_status`: which, and the
        // length of its queue.
        let mut message = [0u32; 15];
        (message[0], message[1], message[4], message[10]) = (60, 0x0005_03e9, 0x10, 8192);
        call(libc::SYS_write, &[fd(&socket), at(&message), 60])?;
        // NLMSG_ERROR: the header, then the number.
        let answer = [0i32; 64];
        call(libc::SYS_read, &[fd(&socket), at(&answer), 256])?;
        match sys::written(&answer)[4] {
            0 => say(),
            error => Err(Error::from_raw_os_error(-error)),
        }
    })
    .lsm_only("it has no hook in tracepoint mode")
    .guest_only(),
    asked("a policy of another security module (AppArmor)", |_| {
        sys::open("/sys/kernel/security/apparmor/.load", libc::O_WRONLY)?;
        say()
    })
    .lsm_only("files have no hook in tracepoint mode that comes in time")
    .guest_only(),
    asked("a keyboard of one's own (/dev/uinput)", |_| {
        match sys::open("uinput", libc::O_WRONLY) {
            // No driver: whoever gets that far was not refused.
            Err(error) if matches!(error.raw_os_error(), Some(libc::ENXIO | libc::ENODEV)) => say(),
            other => {
                drop(other?);
                say()
            }
        }
    })
    .prepare(|_| {
        let path = sys::c_path(root("work/uinput"));
        call(libc::SYS_mknodat, &[sys::HERE, sys::text(&path), 0o020_600, 10 << 8 | 223]).map(drop)
    })
    .lsm_only("files have no hook in tracepoint mode that comes in time")
    .guest_only(),
    asked("a program that the kernel starts to fetch a key (request_key)", |_| {
        let name = sys::c_path(format!("sallyport-battery-{}", std::process::id()));
        // KEY_SPEC_THREAD_KEYRING. There is no such key in the end, but somebody was asked for it.
        let arguments = [c"user".as_ptr() as usize, sys::text(&name), c"x".as_ptr() as usize, usize::MAX];
        match call(libc::SYS_request_key, &arguments) {
            Err(error) if error.raw_os_error() == Some(libc::EPERM) => Err(error),
            _ => Ok(()),
        }
    })
    .prepare(|_| {
        super::exec::script("/sbin/request-key", "#!/bin/sh\n: > /var/lib/sallyport-battery/work/marker\n")
    })
    .lsm_only("it is refused where all keys are")
    .guest_only(),
    asked("settings of the kernel (sysctl)", |_| {
        std::fs::write("/proc/sys/kernel/randomize_va_space", "2")?;
        say()
    })
    .unclaimed("a file of the kernel's: forbid write_file below /proc/sys")
    .guest_only(),
];
