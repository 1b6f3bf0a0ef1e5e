//! `cargo xtask build`: the kernel programs, then the programs that ship.

use std::path::PathBuf;

use anyhow::Result;

use crate::{ebpf, places, run, setup};

/// `cargo xtask build`
#[derive(clap::Args, Default)]
pub(crate) struct BuildArguments {
    /// With optimisation, as it ships
    #[arg(long)]
    pub(crate) release: bool,
    /// The tests as well
    #[arg(long)]
    pub(crate) tests: bool,
}

/// Builds everything that runs, and says where it is.
pub(crate) fn run(arguments: &BuildArguments) -> Result<PathBuf> {
    setup::packages(setup::Needed::Build)?;
    ebpf::ensure_toolchain(&places::root())?;
    ebpf::build(&places::root(), arguments.release)?;
    let mut cargo = run::cargo();
    // The same selection as the test runner's, so that nothing is compiled twice with other features.
    cargo.args(["build", "--locked", "--workspace", "--bins"]);
    if arguments.tests {
        cargo.arg("--tests");
    }
    if arguments.release {
        cargo.arg("--release");
    }
    run::loud("build the programs", &mut cargo)?;
    let programs = places::programs(arguments.release);
    run::say(format_args!("the programs are in {}", programs.display()));
    Ok(programs)
}
