//! The battery of bypasses on this computer's kernel, in tracepoint mode: nothing that the threat model claims may be lost.

use std::process::Command;

use anyhow::{Context, Result};
use sallyport_e2e::programs;

#[test]
fn no_claimed_row_is_lost_on_this_kernel() -> Result<()> {
    let xtask = match std::env::var_os("SALLYPORT_XTASK") {
        Some(path) => path.into(),
        None => programs::path("xtask").context("build it: `cargo build -p xtask`")?,
    };
    let status =
        Command::new(xtask).args(["vm", "battery", "--no-build", "--no-page", "--native"]).status()?;
    assert!(status.success(), "claimed rows are lost, or controls failed");
    Ok(())
}
