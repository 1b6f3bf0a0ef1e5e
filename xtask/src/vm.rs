//! `cargo xtask vm`: the story, or given test programs, on a Debian kernel in QEMU.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::initramfs::Tree;
use crate::{battery, build, kernels, places, qemu, run, setup};

/// `cargo xtask vm`
#[derive(clap::Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct VmArguments {
    #[command(subcommand)]
    task: Option<VmTask>,
    /// Kernel series; all of them when not given
    #[arg(long = "kernel", value_name = "SERIES")]
    kernels: Vec<String>,
    /// A test program to run in the guest instead of the story (may be given more than once)
    #[arg(long = "program", value_name = "FILE")]
    programs: Vec<PathBuf>,
    /// Only boot, to see that the kernels and QEMU work
    #[arg(long, conflicts_with = "programs")]
    boot: bool,
    /// An argument for the test programs, for example a part of a test's name (may be given more than once)
    #[arg(long = "argument", value_name = "TEXT", requires = "programs", allow_hyphen_values = true)]
    program_arguments: Vec<String>,
    /// Races in the test programs count as enough after so many calls
    #[arg(long, default_value_t = 1000, value_name = "N", requires = "programs")]
    flips: u64,
    /// Another word for the kernel's command line (may be given more than once)
    #[arg(long = "boot-parameter", value_name = "TEXT")]
    boot_parameters: Vec<String>,
    /// Give up on a guest that has said nothing for so long
    #[arg(long, default_value_t = 600, value_name = "SECONDS")]
    silence: u64,
    /// Give up on a guest after so long in any case
    #[arg(long, default_value_t = 3600, value_name = "SECONDS")]
    deadline: u64,
    /// Use the programs that were built last
    #[arg(long)]
    no_build: bool,
    /// Fetch the newest kernel of the series again
    #[arg(long)]
    refresh: bool,
}

#[derive(clap::Subcommand)]
enum VmTask {
    /// Try all known ways around the sensor, on every kernel and on this machine (needs root)
    Battery(battery::BatteryArguments),
}

/// What the guest has of Debian's programs: what the story runs, and what a shell user expects.
const SYSTEM_PROGRAMS: &[&str] = &[
    "/usr/bin/bash",
    "/usr/bin/dash",
    "/usr/bin/sh",
    "base64",
    "cat",
    "chmod",
    "cp",
    "cut",
    "date",
    "dd",
    "echo",
    "env",
    "false",
    "head",
    "id",
    "kill",
    "ln",
    "ls",
    "mkdir",
    "mv",
    "nice",
    "printf",
    "ps",
    "rm",
    "seq",
    "setsid",
    "shred",
    "sort",
    "stat",
    "sleep",
    "stty",
    "sync",
    "tail",
    "tee",
    "test",
    "touch",
    "tr",
    "true",
    "truncate",
    "tty",
    "uname",
    "unlink",
    "wc",
    "whoami",
    "yes",
    "grep",
    "sed",
    "perl",
    "ssh",
    "ssh-keygen",
    "scp",
    "sftp",
    "/usr/lib/openssh/sftp-server",
    "mount",
    "umount",
    "dmesg",
];

/// Our programs, below /opt/sallyport/bin in the guest.
const PROGRAMS: &[&str] =
    &["sallyport", "sallyport-gateway", "sallyport-sensor", "sallyport-dev-issuer", "sallyport-demo"];

/// Boots every kernel that was asked for; says of each what came of it.
pub(crate) fn run(arguments: &VmArguments) -> Result<()> {
    if let Some(VmTask::Battery(arguments)) = &arguments.task {
        return battery::run(arguments);
    }
    setup::packages(setup::Needed::Test)?;
    if !arguments.no_build {
        build::run(&build::BuildArguments::default())?;
    }
    let names: Vec<&str> = match arguments.kernels.is_empty() {
        true => kernels::SERIES.iter().map(|series| series.name).collect(),
        false => arguments.kernels.iter().map(String::as_str).collect(),
    };
    let what = match (arguments.boot, arguments.programs.is_empty()) {
        (true, _) => "true",
        (false, true) => "story",
        (false, false) => "programs",
    };
    let ours = if what == "story" { PROGRAMS } else { &[] };
    let mut guest = guest(ours, &arguments.programs)?;
    if what == "programs" {
        tests(&mut guest, arguments)?;
    }
    let guest = guest.archive()?;
    let initramfs = places::cache().join(format!("guest-{}.cpio", std::process::id()));
    let mut failed = Vec::new();
    for name in names {
        let series = kernels::series(name)?;
        let kernel = kernels::kernel(series, arguments.refresh)?;
        std::fs::write(&initramfs, [guest.as_slice(), &modules(&kernel)?].concat())
            .context("write the guest's file system")?;
        run::say(format_args!("boot {} in QEMU, software emulation", kernel.version));
        let boot_parameters: Vec<&str> = series
            .arguments
            .iter()
            .copied()
            .chain(arguments.boot_parameters.iter().map(String::as_str))
            .collect();
        let machine = qemu::Machine {
            kernel: &kernel.image,
            initramfs: &initramfs,
            kernel_arguments: &boot_parameters,
            arguments: &[what.to_owned()],
            deadline: Duration::from_secs(arguments.deadline),
            silence: Duration::from_secs(arguments.silence),
            log: &places::cache().join(format!("console-{name}-{}.log", std::process::id())),
        };
        let started = std::time::Instant::now();
        let mut said = Vec::new();
        let booted = qemu::boot(&machine, |line| {
            println!("{name} | {:>4} s | {line}", started.elapsed().as_secs());
            said.push(line.to_owned());
        });
        if let Err(error) = booted {
            failed.push((name, format!("{error:#}"), said));
        }
    }
    let _ = std::fs::remove_file(&initramfs);
    if failed.is_empty() {
        return Ok(());
    }
    for (name, error, said) in &failed {
        explain(name, error, said);
    }
    let names: Vec<&str> = failed.iter().map(|(name, ..)| *name).collect();
    bail!("failed on kernel {}", names.join(" and "));
}

/// Lines of a console that are shown again when a guest has failed.
const TAIL: usize = 40;

/// What a failed guest said, once more and last: a log may be cut anywhere but at its end.
fn explain(kernel: &str, error: &str, said: &[String]) {
    println!("\n=== the end of kernel {kernel}'s console");
    for line in &said[said.len().saturating_sub(TAIL)..] {
        println!("{line}");
    }
    println!("=== kernel {kernel} failed: {error}");
    let is_fault = |line: &&String| {
        line.starts_with("FAIL")
            || line.starts_with("error: ")
            || line.ends_with("... FAILED")
            || line.contains("panicked at")
    };
    for line in said.iter().filter(is_fault) {
        println!("=== {line}");
    }
}

/// What the sensor's tests of kernel programs run besides what the story does.
const TEST_PROGRAMS: &[&str] =
    &["busybox", "chroot", "find", "mkfifo", "nsenter", "setpriv", "sysctl", "timeout", "unshare", "mktemp"];

/// Arguments of the test programs, what they run, and the sensor where they were built to look for it.
fn tests(tree: &mut Tree, arguments: &VmArguments) -> Result<()> {
    for program in TEST_PROGRAMS {
        if run::find(program).is_some() {
            tree.system_program(program)?;
        }
    }
    let sensor = places::programs(false).join("sallyport-sensor");
    if sensor.exists() {
        tree.program(&sensor.to_string_lossy(), &sensor)?;
    }
    // What needs BPF LSM is ignored elsewhere.
    let mut lines = vec!["--include-ignored".to_owned(), "--test-threads=1".to_owned()];
    lines.extend(arguments.program_arguments.iter().cloned());
    tree.file("opt/tests.arguments", 0o644, lines.join("\n"));
    tree.file("opt/tests.flips", 0o644, arguments.flips.to_string());
    Ok(())
}

/// The series that `cargo xtask test` boots; the others are for `cargo xtask vm`.
const TESTED: [&str; 2] = ["6.1", "6.12"];

/// Fetches the kernels of the tests, so that a test run can go on without the network.
pub(crate) fn prepare() -> Result<()> {
    for name in TESTED {
        kernels::kernel(kernels::series(name)?, false)?;
    }
    Ok(())
}

/// The guest's file system, without what belongs to one kernel.
pub(crate) fn guest(ours: &[&str], programs: &[PathBuf]) -> Result<Tree> {
    let built = places::programs(false);
    let mut tree = Tree::with_skeleton();
    tree.program("init", &built.join("sallyport-guest-init"))?;
    for program in ours {
        tree.program(&format!("opt/sallyport/bin/{program}"), &built.join(program))?;
    }
    for program in programs {
        let name = program.file_name().context("a test program needs a name")?.to_string_lossy();
        tree.program(&format!("opt/tests/{name}"), program)?;
    }
    for program in SYSTEM_PROGRAMS {
        // `sh` may be any shell, and some names are only built into shells.
        if program.starts_with('/') || run::find(program).is_some() {
            tree.system_program(program)?;
        }
    }
    perl(&mut tree)?;
    bundles(&mut tree)?;
    accounts(&mut tree);
    Ok(tree)
}

/// A kernel's modules below /opt/modules, to follow the guest's file system (the kernel unpacks one archive after another), and
/// `LIST` with their names, in the order in which they can be loaded.
pub(crate) fn modules(kernel: &kernels::Kernel) -> Result<Vec<u8>> {
    let mut tree = Tree::default();
    let mut list = String::new();
    for module in &kernel.modules {
        let name = module.file_name().unwrap_or_default().to_string_lossy();
        tree.file(&format!("opt/modules/{name}"), 0o644, std::fs::read(module)?);
        list.push_str(&format!("{name}\n"));
    }
    tree.file("opt/modules/LIST", 0o644, list);
    tree.archive()
}

/// The modules that Debian's essential perl has: sockets among them.
fn perl(tree: &mut Tree) -> Result<()> {
    for folder in ["/usr/lib/x86_64-linux-gnu/perl-base", "/usr/lib/aarch64-linux-gnu/perl-base"] {
        let folder = std::path::Path::new(folder);
        if folder.exists() {
            tree.system_folder(folder, &|path| path.ends_with("unicore"))?;
        }
    }
    Ok(())
}

/// The shipped bundles and those of the tests, where the story looks for them beside the programs.
fn bundles(tree: &mut Tree) -> Result<()> {
    for (from, to) in [("policies", "policies"), ("tests/bundles", "bundles")] {
        let from = places::root().join(from);
        let mut folders = vec![from.clone()];
        while let Some(folder) = folders.pop() {
            let entries = std::fs::read_dir(&folder).with_context(|| format!("read {}", folder.display()))?;
            for entry in entries {
                let path = entry?.path();
                if path.is_dir() {
                    folders.push(path);
                } else {
                    let name = path.strip_prefix(&from)?.to_string_lossy().into_owned();
                    tree.file(&format!("opt/sallyport/{to}/{name}"), 0o644, std::fs::read(&path)?);
                }
            }
        }
    }
    Ok(())
}

fn accounts(tree: &mut Tree) {
    let passwd = "root:x:0:0:root:/root:/bin/bash\n\
                  app:x:1000:1000:app:/home/app:/bin/bash\n\
                  nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n";
    tree.file("etc/passwd", 0o644, passwd);
    tree.file("etc/group", 0o644, "root:x:0:\ntty:x:5:\napp:x:1000:\nnogroup:x:65534:\n");
    tree.file("etc/shadow", 0o600, "root:*:19000:0:99999:7:::\napp:*:19000:0:99999:7:::\n");
    tree.file("etc/shells", 0o644, "/bin/sh\n/bin/bash\n/usr/bin/bash\n");
    tree.file("etc/nsswitch.conf", 0o644, "passwd: files\ngroup: files\nhosts: files\n");
    tree.file("etc/hosts", 0o644, "127.0.0.1 localhost\n::1 localhost\n");
    tree.file("etc/os-release", 0o644, "PRETTY_NAME=\"Sallyport test guest\"\nID=sallyport-guest\n");
    tree.directory("home/app", 0o755);
    // What an HTTPS client of any kind wants to find before it talks to anybody.
    let certificates = "/etc/ssl/certs/ca-certificates.crt";
    if let Ok(bundle) = std::fs::read(certificates) {
        tree.file(certificates, 0o644, bundle);
    }
}
