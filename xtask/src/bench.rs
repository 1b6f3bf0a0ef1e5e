//! `cargo xtask bench`: release builds, measured beside plain OpenSSH.

use std::os::unix::process::CommandExt;
use std::process::Command;

use anyhow::{Context, Result};

use crate::{build, run, setup};

/// `cargo xtask bench`
#[derive(clap::Args, Default)]
pub(crate) struct BenchArguments {
    /// One JSON object per figure, on standard output
    #[arg(long)]
    json: bool,
    /// Only figures whose name contains this
    #[arg(long, value_name = "TEXT")]
    only: Option<String>,
}

/// Builds with optimisation, then becomes the benchmark program.
pub(crate) fn run(arguments: &BenchArguments) -> Result<()> {
    run::need_root(
        "bench",
        "the sensor loads programs into the kernel, and the kernel's counters are root's",
    )?;
    setup::packages(setup::Needed::Test)?;
    let programs = build::run(&build::BuildArguments { release: true, ..build::BuildArguments::default() })?;
    let mut bench = Command::new(programs.join("sallyport-bench"));
    if arguments.json {
        bench.arg("--json");
    }
    if let Some(only) = &arguments.only {
        bench.args(["--only", only]);
    }
    Err(bench.exec()).context("start the benchmarks")
}
