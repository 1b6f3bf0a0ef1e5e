//! `cargo xtask bench`: release builds, measured. What was measured is written to docs/performance.md.

use std::collections::BTreeMap;
use std::io::BufRead;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::{build, document, ebpf, places, run, setup};

/// `cargo xtask bench`
#[derive(clap::Args, Default)]
pub(crate) struct BenchArguments {
    /// What to measure; everything when not given
    #[arg(value_enum)]
    what: Option<What>,
    /// One JSON object per figure, on standard output
    #[arg(long)]
    json: bool,
    /// Of `product`: only figures whose name contains this (nothing is written to docs/performance.md then)
    #[arg(long, value_name = "TEXT")]
    only: Option<String>,
    /// Of `kernel`: the LSM hooks as well, on this Debian kernel in QEMU; ratios only
    #[arg(long, value_name = "SERIES")]
    lsm: Option<String>,
    /// Builds without optimisation, as the tests have them (`beside` and `product`: those that were built last). What runs in
    /// the kernel is the same
    #[arg(long)]
    quick: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum What {
    /// A decision in the kernel, at 1 to 10,000 rules. Exit status 3: measured, and a target is missed
    Kernel,
    /// Process starts, file opens and connects beside auditd and bpftrace
    Beside,
    /// Hooks, process starts and SSH beside plain OpenSSH
    Product,
    /// `sallyport policy backtest` over a million stored records. Exit status 3: measured, and the target is missed
    Backtest,
    /// From a push to a thousand simulated sensors that report the version. Exit status 3: measured, and the target is
    /// missed
    Push,
}

impl What {
    fn title(self) -> &'static str {
        match self {
            Self::Kernel => "Decisions in the kernel",
            Self::Beside => "Beside auditd and bpftrace",
            Self::Product => "SSH and process starts beside plain OpenSSH",
            Self::Backtest => "Backtest of a million records",
            Self::Push => "A push to a thousand sensors",
        }
    }
}

/// Builds with optimisation, and runs what was asked for.
pub(crate) fn run(arguments: &BenchArguments) -> Result<()> {
    run::need_root(
        "bench",
        "the sensor loads programs into the kernel, and the kernel's counters are root's",
    )?;
    setup::packages(setup::Needed::Bench)?;
    let wanted = |what| arguments.what.is_none_or(|wanted| wanted == what);
    // Each part is written when it was measured, so that one that fails takes no other with it.
    let keep = |what: What, figures: String| match arguments.only {
        Some(_) => Ok(()),
        None => document::write(&BTreeMap::from([(what.title(), figures)])),
    };
    let mut missed = false;
    let mut failed = Vec::new();
    if wanted(What::Kernel) {
        ebpf::ensure_toolchain(&places::root())?;
        ebpf::build(&places::root(), true)?;
        let program = bench_program("kernel", arguments.quick)?;
        let mut figures = String::new();
        missed = kernel(arguments, &program, &mut figures)?;
        if let Some(series) = &arguments.lsm {
            figures += &lsm(&program, series)?;
        }
        keep(What::Kernel, figures)?;
    }
    for what in [What::Backtest, What::Push].into_iter().filter(|what| wanted(*what)) {
        let mut figures = String::new();
        missed |= policy(arguments, what, &mut figures)?;
        keep(what, figures)?;
    }
    if wanted(What::Beside) || wanted(What::Product) {
        let release = build::BuildArguments { release: true, ..build::BuildArguments::default() };
        let programs = if arguments.quick { places::programs(false) } else { build::run(&release)? };
        let note = "Our programs outside of the kernel are unoptimised builds here.\n\n";
        let note = if arguments.quick { note } else { "" };
        for what in [What::Beside, What::Product].into_iter().filter(|what| wanted(*what)) {
            match product(arguments, &programs, what) {
                Ok(figures) => keep(what, format!("{note}{figures}"))?,
                Err(error) => failed.push(format!("{}: {error:#}", what.title())),
            }
        }
    }
    if !failed.is_empty() {
        bail!("not measured: {}", failed.join("; "));
    }
    if missed {
        return Err(Missed.into());
    }
    Ok(())
}

/// Measured, and a target is missed.
#[derive(Debug)]
pub(crate) struct Missed;

impl Missed {
    /// What xtask ends with then.
    pub(crate) const STATUS: u8 = 3;
}

impl std::fmt::Display for Missed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a target is missed; see the figures")
    }
}

impl std::error::Error for Missed {}

/// Builds one of the benchmarks, and says where it is.
fn bench_program(name: &str, quick: bool) -> Result<PathBuf> {
    let mut build = run::cargo();
    // The selection of all other builds, so that nothing is compiled twice with other features.
    build.args(["bench", "--locked", "--workspace", "--bench", name, "--no-run"]);
    if quick {
        build.args(["--profile", "dev"]);
    }
    run::loud(&format!("build the benchmark `{name}`"), &mut build)?;
    let listed = run::output(build.args(["--message-format", "json"]))?;
    listed
        .lines()
        .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
        .filter(|message| message["target"]["name"] == name && message["target"]["kind"][0] == "bench")
        .find_map(|message| message["executable"].as_str().map(PathBuf::from))
        .context("cargo does not say where the benchmark is")
}

/// True if a target is missed.
fn kernel(arguments: &BenchArguments, program: &Path, figures: &mut String) -> Result<bool> {
    run::say("measure decisions in the kernel");
    measured(arguments, Command::new(program), figures)
}

/// What policy costs outside of the kernel. True if a target is missed.
fn policy(arguments: &BenchArguments, what: What, figures: &mut String) -> Result<bool> {
    let release = build::BuildArguments { release: true, ..build::BuildArguments::default() };
    let programs = if arguments.quick { places::programs(false) } else { build::run(&release)? };
    let name = if what == What::Push { "push" } else { "backtest" };
    let mut command = Command::new(bench_program(name, arguments.quick)?);
    if what == What::Push {
        command.env("SALLYPORT_PROGRAMS", &programs);
    } else {
        command.arg("--program").arg(programs.join("sallyport"));
        command.arg("--policies").arg(places::root().join("policies"));
    }
    run::say(format_args!("measure: {}", what.title()));
    let busy = std::fs::read_to_string("/proc/loadavg")?;
    let busy = busy.split_whitespace().next().unwrap_or("an unknown number of").to_owned();
    let missed = measured(arguments, command, figures)?;
    let note = if arguments.quick { "An unoptimised build. " } else { "" };
    *figures = format!(
        "{note}In the minute before it began, {busy} processes ran or waited for a processor on average.\n\n{figures}"
    );
    Ok(missed)
}

/// Runs a benchmark that writes its figures to a file. True if a target is missed.
fn measured(arguments: &BenchArguments, mut command: Command, figures: &mut String) -> Result<bool> {
    let file = tempfile::NamedTempFile::new()?;
    command.arg("--markdown").arg(file.path());
    if arguments.json {
        command.arg("--json");
    }
    let status = command.status().context("start the benchmark")?;
    let missed = match status.code() {
        Some(0) => false,
        Some(code) if code == i32::from(Missed::STATUS) => true,
        _ => bail!("the benchmark failed ({status})"),
    };
    *figures = std::fs::read_to_string(file.path())?;
    Ok(missed)
}

/// The same program on an LSM kernel in QEMU.
fn lsm(program: &Path, series: &str) -> Result<String> {
    const MARK: &str = "figures: ";
    build::run(&build::BuildArguments::default())?;
    let mut vm = Command::new(std::env::current_exe()?);
    vm.args(["vm", "--no-build", "--kernel", series, "--deadline", "1800", "--program"]).arg(program);
    let mut vm = vm.stdout(Stdio::piped()).spawn().context("start the virtual machine")?;
    let mut figures = format!("\n### The same with LSM hooks, on Debian's kernel {series} in QEMU\n\n");
    for line in std::io::BufReader::new(vm.stdout.take().context("no output")?).lines() {
        let line = line?;
        println!("{line}");
        if let Some(at) = line.find(MARK) {
            figures += &line[at + MARK.len()..];
            figures.push('\n');
        }
    }
    let status = vm.wait()?;
    if !status.success() {
        bail!("the virtual machine failed ({status})");
    }
    Ok(figures)
}

/// A part of `sallyport-bench`.
fn product(arguments: &BenchArguments, programs: &Path, what: What) -> Result<String> {
    let file = tempfile::NamedTempFile::new()?;
    let mut bench = Command::new(programs.join("sallyport-bench"));
    bench.arg("--markdown").arg(file.path());
    if what == What::Beside {
        bench.arg("--beside");
    }
    if arguments.json {
        bench.arg("--json");
    }
    if let Some(only) = &arguments.only {
        bench.args(["--only", only]);
    }
    run::loud(&format!("measure: {}", what.title()), &mut bench)?;
    std::fs::read_to_string(file.path()).context("read the figures")
}
