//! `cargo xtask setup`: installs what is missing, and only that.

use std::process::Command;

use anyhow::{Result, bail};

use crate::{ebpf, run};

/// `cargo xtask setup`
#[derive(clap::Args, Default)]
pub(crate) struct SetupArguments {
    /// Everything, also what only tests and benchmarks need
    #[arg(long)]
    all: bool,
}

/// A Debian package, and how to see that what it brings is here already.
struct Package {
    name: &'static str,
    /// Found on PATH, or a file with this absolute name.
    brings: &'static str,
    why: &'static str,
    needed: Needed,
}

/// What a package is needed for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Needed {
    /// Building.
    Build,
    /// The demo on this machine.
    Demo,
    /// Tests, VMs and benchmarks.
    Test,
    /// What benchmarks compare with.
    Bench,
}

const PACKAGES: &[Package] = &[
    Package {
        name: "build-essential",
        brings: "cc",
        why: "a linker, and a C compiler for SQLite",
        needed: Needed::Build,
    },
    Package {
        name: "ca-certificates",
        brings: "/etc/ssl/certs/ca-certificates.crt",
        why: "the certificate authorities that `sallyport login` trusts",
        needed: Needed::Demo,
    },
    Package {
        name: "openssh-client",
        brings: "ssh",
        why: "the real ssh client, which the demo and the tests drive",
        needed: Needed::Demo,
    },
    Package {
        name: "openssh-sftp-server",
        brings: "/usr/lib/openssh/sftp-server",
        why: "the sftp server that sessions start",
        needed: Needed::Demo,
    },
    Package {
        name: "perl-base",
        brings: "perl",
        why: "one of the programs that try to connect",
        needed: Needed::Demo,
    },
    Package {
        name: "openssh-server",
        brings: "/usr/sbin/sshd",
        why: "a plain sshd to compare and measure against (never started as a service here)",
        needed: Needed::Test,
    },
    Package {
        name: "qemu-system-x86",
        brings: "qemu-system-x86_64",
        why: "boots the LSM kernels",
        needed: Needed::Test,
    },
    Package {
        name: "binutils",
        brings: "strip",
        why: "makes the guest's programs small",
        needed: Needed::Test,
    },
    Package {
        name: "xz-utils",
        brings: "xz",
        why: "unpacks kernel modules for the guest",
        needed: Needed::Test,
    },
    Package {
        name: "nodejs",
        brings: "node",
        why: "runs the certified OpenID provider of the tests",
        needed: Needed::Test,
    },
    // Only where node came without npm: a nodejs that brings its own npm conflicts with Debian's package.
    Package {
        name: "npm",
        brings: "npm",
        why: "installs the OpenID provider from its lock file",
        needed: Needed::Test,
    },
    Package {
        name: "auditd",
        brings: "auditd",
        why: "Linux's audit daemon, to compare with (not left running as a service)",
        needed: Needed::Bench,
    },
    Package {
        name: "bpftrace",
        brings: "bpftrace",
        why: "tracing one-liners, to compare with",
        needed: Needed::Bench,
    },
];

/// Does all set-up.
pub(crate) fn run(arguments: &SetupArguments) -> Result<()> {
    packages(if arguments.all { Needed::Test } else { Needed::Demo })?;
    ebpf::ensure_toolchain(&crate::places::root())?;
    if arguments.all {
        nextest()?;
    }
    run::say("all that is needed is here");
    Ok(())
}

/// Installs the Debian packages that `up_to` needs and that are missing.
pub(crate) fn packages(up_to: Needed) -> Result<()> {
    let wanted = |package: &&Package| match up_to {
        Needed::Build => package.needed == Needed::Build,
        Needed::Demo => matches!(package.needed, Needed::Build | Needed::Demo),
        Needed::Test => package.needed != Needed::Bench,
        Needed::Bench => true,
    };
    let missing: Vec<&Package> =
        PACKAGES.iter().filter(wanted).filter(|package| !is_here(package.brings)).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let names: Vec<&str> = missing.iter().map(|package| package.name).collect();
    for package in &missing {
        run::say(format_args!("{} is missing: {}", package.name, package.why));
    }
    if run::find("apt-get").is_none() {
        bail!("this is no Debian or Ubuntu: install what corresponds to {}", names.join(", "));
    }
    if !nix::unistd::geteuid().is_root() {
        bail!("installing needs root: `sudo apt-get install --no-install-recommends {}`", names.join(" "));
    }
    run::quiet("update the package lists", &mut apt(&["update"]))?;
    let mut install = apt(&["install", "--yes", "--no-install-recommends"]);
    run::quiet(&format!("install {}", names.join(", ")), install.args(&names))?;
    if names.contains(&"auditd") && std::path::Path::new("/run/systemd/system").exists() {
        // Debian starts services when it installs them.
        let mut stop = Command::new("systemctl");
        run::quiet("stop the audit service again", stop.args(["disable", "--now", "auditd"]))?;
    }
    Ok(())
}

/// Makes sure of `cargo nextest`, which runs each test in its own process.
pub(crate) fn nextest() -> Result<()> {
    if run::find("cargo-nextest").is_some() {
        return Ok(());
    }
    run::say("cargo-nextest is missing: it runs each test in a process of its own and prints one summary");
    run::quiet(
        "install cargo-nextest (some minutes, once)",
        run::cargo().args(["install", "--locked", "cargo-nextest", "--version", NEXTEST]),
    )
}

/// The newest may need a newer compiler than the pinned one: this one is known to build with it.
const NEXTEST: &str = "0.9.143";

fn is_here(what: &str) -> bool {
    if what.starts_with('/') { std::path::Path::new(what).exists() } else { run::find(what).is_some() }
}

fn apt(arguments: &[&str]) -> Command {
    let mut command = Command::new("apt-get");
    command.env("DEBIAN_FRONTEND", "noninteractive").arg("-q").args(arguments);
    command
}
