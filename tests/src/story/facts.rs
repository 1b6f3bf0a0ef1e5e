//! What the shipped demo policy says, as far as the story needs to know.

use std::path::PathBuf;

use anyhow::Result;

use crate::programs;

/// The policy of the story and the names in it.
#[derive(Clone, Debug)]
pub struct Facts {
    /// The bundle that the gateway starts with.
    pub bundle: PathBuf,
    /// The bundle that is pushed in the middle.
    pub tightened: PathBuf,
}

/// As in `ssh web-1+root@gateway`.
pub(super) const TARGET: &str = "web-1+root";
/// A program that the policy forbids: `shred -u FILE` destroys a file.
pub(super) const FORBIDDEN_PROGRAM: &str = "/usr/bin/shred";
/// The rule that forbids it.
pub(super) const FORBIDDEN_RULE: &str = "no-shred";
/// An address of this computer that policy forbids to connect to: it plays the production database.
pub(super) const FORBIDDEN_ADDRESS: &str = "127.77.0.1";
/// Its port.
pub(super) const FORBIDDEN_PORT: u16 = 15432;
/// The rule that forbids it.
pub(super) const CONNECT_RULE: &str = "no-production-database";
/// A program that only the tightened policy forbids.
pub(super) const LATER_PROGRAM: &str = "/usr/bin/uname";
/// The rule that forbids it.
pub(super) const LATER_RULE: &str = "no-uname";

impl Facts {
    /// The shipped bundles.
    ///
    /// # Errors
    /// They are not here.
    pub fn new() -> Result<Self> {
        let policies = programs::policies()?;
        Ok(Self { bundle: policies.join("demo"), tightened: policies.join("demo-tightened") })
    }
}
