//! The demo's story on Debian kernels with BPF LSM, in QEMU. `xtask` boots them; the guest's verdict decides.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result};
use sallyport_e2e::programs;

/// `cargo xtask test` says where xtask is; a bare `cargo nextest run` finds it beside the programs.
fn xtask() -> Result<PathBuf> {
    match std::env::var_os("SALLYPORT_XTASK") {
        Some(path) => Ok(path.into()),
        None => programs::path("xtask").context("build it: `cargo build -p xtask`"),
    }
}

fn story_on(kernel: &str) -> Result<()> {
    let status = Command::new(xtask()?).args(["vm", "--no-build", "--kernel", kernel]).status()?;
    assert!(status.success(), "the story did not hold on kernel {kernel}");
    Ok(())
}

#[test]
fn the_story_holds_on_debian_6_1_with_lsm() -> Result<()> {
    story_on("6.1")
}

#[test]
fn the_story_holds_on_debian_6_12_with_lsm() -> Result<()> {
    story_on("6.12")
}
