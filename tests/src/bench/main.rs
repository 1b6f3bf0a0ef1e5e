//! `sallyport-bench`: what Sallyport costs, beside plain OpenSSH on the same computer.
//!
//! Started by `cargo xtask bench`, with release builds. Every figure is printed with its baseline and their
//! ratio; ratios are what to look at, since absolute times are those of this computer.

mod beside;
mod figures;
mod hooks;
mod load;
mod memory;
mod others;
mod starts;
mod transfers;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::Parser;
use sallyport_e2e::bundles;
use sallyport_e2e::plain_sshd::PlainSshd;
use sallyport_e2e::ssh::Ssh;
use sallyport_e2e::{Stage, StageOptions, wait};

use figures::Figures;

/// As in `ssh web-1+root@gateway`.
const TARGET: &str = "web-1+root";

#[derive(Parser)]
#[command(name = "sallyport-bench", about = "What Sallyport costs, beside plain OpenSSH (needs root)")]
struct Arguments {
    /// One JSON object per figure, on standard output
    #[arg(long)]
    json: bool,
    /// Only figures whose name contains this
    #[arg(long, value_name = "TEXT")]
    only: Option<String>,
    /// Compare with auditd and bpftrace instead
    #[arg(long)]
    beside: bool,
    /// Write the figures as Markdown as well
    #[arg(long, value_name = "FILE")]
    markdown: Option<PathBuf>,
    /// Work as this load for so many milliseconds: what is compared
    #[arg(long, hide = true, num_args = 2)]
    load: Vec<u64>,
}

/// What the benchmarks run against.
struct Bench {
    stage: Stage,
    sshd: PlainSshd,
    alice: Ssh,
    only: Option<String>,
}

impl Bench {
    /// Was this group of figures asked for?
    fn wants(&self, group: &str) -> bool {
        self.only.as_ref().is_none_or(|only| group.contains(only.as_str()))
    }
}

fn main() -> ExitCode {
    match run(Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: Arguments) -> Result<()> {
    if let [load, time] = arguments.load[..] {
        return load::run(usize::try_from(load)?, Duration::from_millis(time));
    }
    wait::end_on_ctrl_c()?;
    let mut figures = Figures::new(arguments.json);
    if arguments.beside {
        let folder = tempfile::tempdir()?;
        let comparison = beside::measure(folder.path())?;
        comparison.add_to(&mut figures);
        return write(arguments.markdown.as_deref(), &comparison.markdown());
    }
    // Before anything of ours is loaded.
    let before = starts::outside().context("process starts without the sensor")?;
    let others = hooks::programs().unwrap_or_default();

    eprintln!("starting gateway, sensor, and a plain sshd to compare with");
    let mut stage = Stage::start(&StageOptions { bundle: bundles::small()?, ..StageOptions::default() })?;
    let sshd = PlainSshd::start(&stage.folder().join("sshd"))?;
    let person = stage.signed_in("alice")?;
    let target = stage.wait_for_sensor(&person)?;
    let alice = stage.ssh_with_certificate(&person)?;
    eprintln!("kernel {}, mode {}", target["kernel"], target["mode"]);
    let mut bench = Bench { stage, sshd, alice, only: arguments.only };
    if bench.wants("hook") {
        hooks::measure(&mut bench, &others, &mut figures)?;
    }
    if bench.wants("process starts") {
        starts::measure(&mut bench, before, &mut figures)?;
    }
    if bench.wants("session set-up") {
        transfers::set_up(&bench, &mut figures)?;
    }
    if bench.wants("echo") {
        transfers::echo(&bench, &mut figures)?;
    }
    if bench.wants("bulk") {
        transfers::bulk(&bench, &mut figures)?;
    }
    if bench.wants("memory") {
        memory::measure(&mut bench, &mut figures)?;
    }
    write(arguments.markdown.as_deref(), &figures.markdown())?;
    figures.finish()
}

fn write(file: Option<&Path>, text: &str) -> Result<()> {
    let Some(file) = file else { return Ok(()) };
    std::fs::write(file, text).with_context(|| format!("write {}", file.display()))
}
