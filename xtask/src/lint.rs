//! `cargo xtask lint`: formatting, clippy, the repository's own rules.

use anyhow::{Result, bail};

use crate::{deps, run, tidy};

/// Runs all of them and fails at the end, so that one run shows every fault.
pub(crate) fn run() -> Result<()> {
    let mut failed = Vec::new();
    let mut step = |name: &str, outcome: Result<()>| {
        if let Err(error) = outcome {
            eprintln!("error: {error:#}");
            failed.push(name.to_owned());
        }
    };
    step("formatting", run::loud("check formatting", run::cargo().args(["fmt", "--all", "--check"])));
    step(
        "clippy",
        run::loud(
            "run clippy",
            run::cargo().args([
                "clippy",
                "--locked",
                "--workspace",
                "--all-targets",
                "--quiet",
                "--",
                "-D",
                "warnings",
            ]),
        ),
    );
    step("repository rules", tidy::check());
    step("dependency directions", deps::check());
    if run::find("cargo-deny").is_some() {
        step(
            "licences and sources",
            run::loud("run cargo-deny", run::cargo().args(["deny", "check", "bans", "licenses", "sources"])),
        );
    } else {
        run::say(
            "skipped: licences and sources (cargo-deny is not installed: `cargo install --locked cargo-deny`)",
        );
    }
    if failed.is_empty() {
        return Ok(());
    }
    bail!("lint failed: {}", failed.join(", "))
}
