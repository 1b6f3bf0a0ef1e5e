//! `/init` of the test virtual machines: makes the machine usable, runs what it was asked to, prints one
//! verdict, and powers off. The host believes that line alone.
//!
//! Arguments, from the kernel's command line after `--`: `story` runs the demo's story; `programs` runs every
//! file in /opt/tests, with the arguments in /opt/tests.arguments; `battery` loads the modules that are there and runs the battery of bypasses; `true` only proves that the machine boots.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};
use nix::mount::MsFlags;
use nix::sys::reboot::{RebootMode, reboot};
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, sendto, socket,
};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{Pid, getpid};

/// Every file system that the sensor and the programs in sessions may want.
const MOUNTS: [(&str, &str, &str); 10] = [
    ("proc", "/proc", ""),
    ("sysfs", "/sys", ""),
    ("devtmpfs", "/dev", ""),
    ("devpts", "/dev/pts", "ptmxmode=0666,mode=0620,gid=5"),
    ("tmpfs", "/dev/shm", "mode=1777"),
    ("tmpfs", "/run", "mode=0755"),
    ("cgroup2", "/sys/fs/cgroup", ""),
    ("bpf", "/sys/fs/bpf", "mode=0700"),
    ("tracefs", "/sys/kernel/tracing", ""),
    ("securityfs", "/sys/kernel/security", ""),
];

fn main() {
    if getpid() != Pid::from_raw(1) {
        eprintln!("sallyport-guest-init is the first process of a test virtual machine, and nothing else");
        return;
    }
    let verdict = match prepare().and_then(|()| run()) {
        Ok(()) => "success".to_owned(),
        Err(error) => format!("failure: {error:#}"),
    };
    println!("\nsallyport-guest: {verdict}");
    // With -no-reboot a restart ends QEMU.
    let _ = reboot(RebootMode::RB_AUTOBOOT);
}

fn prepare() -> Result<()> {
    for (kind, at, options) in MOUNTS {
        std::fs::create_dir_all(at).with_context(|| format!("make {at}"))?;
        let none: Option<&str> = None;
        nix::mount::mount(
            Some(kind),
            at,
            Some(kind),
            MsFlags::empty(),
            Some(options).filter(|text| !text.is_empty()).or(none),
        )
        .with_context(|| format!("mount {kind} at {at}"))?;
    }
    for (link, to) in [
        ("/dev/fd", "/proc/self/fd"),
        ("/dev/stdin", "fd/0"),
        ("/dev/stdout", "fd/1"),
        ("/dev/stderr", "fd/2"),
    ] {
        let to = if to.starts_with('/') { to.to_owned() } else { format!("/proc/self/{to}") };
        if !Path::new(link).exists() {
            std::os::unix::fs::symlink(&to, link).with_context(|| format!("link {link}"))?;
        }
    }
    nix::unistd::sethostname("guest")?;
    loopback_up().context("bring up the loopback interface")
}

/// Sets IFF_UP on interface 1, which `lo` always is: an RTM_NEWLINK message (rtnetlink(7)).
fn loopback_up() -> Result<()> {
    const RTM_NEWLINK: u16 = 16;
    const NLM_F_REQUEST: u16 = 1;
    const IFF_UP: u32 = 1;
    const LOOPBACK_INDEX: u32 = 1;
    let mut message = Vec::new();
    // nlmsghdr: length, type, flags, sequence, port
    message.extend_from_slice(&32u32.to_ne_bytes());
    message.extend_from_slice(&RTM_NEWLINK.to_ne_bytes());
    message.extend_from_slice(&NLM_F_REQUEST.to_ne_bytes());
    message.extend_from_slice(&[0; 8]);
    // ifinfomsg: family and padding, type, index, flags, change mask
    message.extend_from_slice(&[0; 4]);
    for word in [LOOPBACK_INDEX, IFF_UP, IFF_UP] {
        message.extend_from_slice(&word.to_ne_bytes());
    }
    let netlink = socket(
        AddressFamily::Netlink,
        SockType::Raw,
        SockFlag::SOCK_CLOEXEC,
        Some(SockProtocol::NetlinkRoute),
    )?;
    use std::os::fd::AsRawFd;
    bind(netlink.as_raw_fd(), &NetlinkAddr::new(0, 0))?;
    sendto(netlink.as_raw_fd(), &message, &NetlinkAddr::new(0, 0), MsgFlags::empty())?;
    Ok(())
}

fn run() -> Result<()> {
    // The last one: the kernel hands on options of its own that it does not know.
    match std::env::args().next_back().as_deref() {
        Some("story") => {
            // The guest's kernel has BPF LSM on: settling for less would be a failure, not a skip.
            // Emulation is slow, and slower still beside others on the same processors.
            let mut demo = Command::new("/opt/sallyport/bin/sallyport-demo");
            program(demo.args(["--expect-mode", "lsm"]).env("SALLYPORT_SLOWNESS", "5"))
        }
        Some("programs") => {
            let mut files: Vec<_> = std::fs::read_dir("/opt/tests")?
                .collect::<Result<Vec<_>, _>>()?
                .iter()
                .map(std::fs::DirEntry::path)
                .collect();
            files.sort();
            // One a line.
            let arguments = std::fs::read_to_string("/opt/tests.arguments")?;
            let flips = std::fs::read_to_string("/opt/tests.flips")?;
            let mut failed = Vec::new();
            for file in files {
                println!("sallyport-guest runs {}", file.display());
                let mut command = Command::new(&file);
                command.args(arguments.lines());
                // Emulation is slow, and its times say nothing.
                command
                    .current_dir("/tmp")
                    .env("SALLYPORT_EMULATED", "1")
                    .env("SALLYPORT_FLIPS", flips.trim());
                // The verifier is slow there, too.
                command.env("SALLYPORT_TEST_WARM", "1");
                if let Err(error) = program(&mut command) {
                    failed.push(format!("{error:#}"));
                }
            }
            anyhow::ensure!(failed.is_empty(), "{}", failed.join("; "));
            Ok(())
        }
        Some("battery") => {
            modules("/opt/modules")?;
            // One argument a line.
            let arguments = std::fs::read_to_string("/opt/battery.arguments")?;
            program(Command::new("/opt/sallyport/bin/sallyport-battery").args(arguments.lines()))
        }
        Some("true") => Ok(()),
        other => bail!("the kernel's command line asks for {other:?}, which is not known"),
    }
}

/// Loads the modules of a folder, in the order of its list. Not all kernels have all; `dummy` is there to be loaded by others.
fn modules(folder: &str) -> Result<()> {
    for name in std::fs::read_to_string(format!("{folder}/LIST"))?.lines().filter(|name| *name != "dummy.ko")
    {
        let file = std::fs::File::open(format!("{folder}/{name}"))?;
        if let Err(error) = nix::kmod::finit_module(file, c"", nix::kmod::ModuleInitFlags::empty()) {
            println!("module {name} cannot be loaded: {error}");
        }
    }
    Ok(())
}

/// Runs a program to its end, and takes over orphans meanwhile, as the first process must.
fn program(command: &mut Command) -> Result<()> {
    let shown = command.get_program().to_string_lossy().into_owned();
    let child = command
        .env("PATH", "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin")
        .env("HOME", "/root")
        .env("TERM", "dumb")
        .spawn()
        .with_context(|| format!("start {shown}"))?;
    let wanted = Pid::from_raw(i32::try_from(child.id())?);
    loop {
        match waitpid(None, None).context("wait for children")? {
            WaitStatus::Exited(pid, 0) if pid == wanted => return Ok(()),
            WaitStatus::Exited(pid, status) if pid == wanted => bail!("{shown} ended with status {status}"),
            WaitStatus::Signaled(pid, signal, _) if pid == wanted => bail!("{shown} was killed by {signal}"),
            _ => {}
        }
    }
}
