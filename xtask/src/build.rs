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
}

/// Builds everything that runs, and says where it is.
pub(crate) fn run(arguments: &BuildArguments) -> Result<PathBuf> {
    setup::packages(setup::Needed::Build)?;
    ebpf::ensure_toolchain(&places::root())?;
    let object = ebpf::build(&places::root(), arguments.release)?;
    let mut cargo = run::cargo();
    cargo.args(["build", "--locked", "--workspace", "--bins", "--exclude", "xtask"]);
    if arguments.release {
        cargo.arg("--release");
    }
    cargo.env(ebpf::OBJECT_VARIABLE, &object);
    run::loud("build the programs", &mut cargo)?;
    let programs = places::programs(arguments.release);
    run::say(format_args!("the programs are in {}", programs.display()));
    Ok(programs)
}
