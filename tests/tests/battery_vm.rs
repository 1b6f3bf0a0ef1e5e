//! The battery of bypasses on a Debian kernel with BPF LSM, in QEMU. `cargo xtask vm battery` runs it on all of them.

use std::process::Command;

use anyhow::{Context, Result};
use sallyport_e2e::programs;

#[test]
fn no_claimed_row_is_lost_on_debian_6_12_with_lsm() -> Result<()> {
    let xtask = match std::env::var_os("SALLYPORT_XTASK") {
        Some(path) => path.into(),
        None => programs::path("xtask").context("build it: `cargo build -p xtask`")?,
    };
    let status = Command::new(xtask)
        .args(["vm", "battery", "--no-build", "--no-page", "--kernel", "6.12"])
        .status()?;
    assert!(status.success(), "claimed rows are lost, or controls failed");
    Ok(())
}
