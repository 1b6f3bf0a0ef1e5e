//! `cargo xtask demo`: the whole product on this machine, driven by a real ssh client.

use std::os::unix::process::CommandExt;
use std::process::Command;

use anyhow::{Context, Result};

use crate::{build, run, setup};

/// `cargo xtask demo`
#[derive(clap::Args, Default)]
pub(crate) struct DemoArguments {
    /// Leave everything running at the end, and print how to try it by hand
    #[arg(long)]
    keep: bool,
}

/// Builds, then becomes the demo program: Ctrl-C and the exit status are its own.
pub(crate) fn run(arguments: &DemoArguments) -> Result<()> {
    run::need_root("demo", "the sensor loads programs into the kernel and starts sessions as local users")?;
    setup::packages(setup::Needed::Demo)?;
    let programs = build::run(&build::BuildArguments::default())?;
    let mut demo = Command::new(programs.join("sallyport-demo"));
    if arguments.keep {
        demo.arg("--keep");
    }
    Err(demo.exec()).context("start the demo")
}
