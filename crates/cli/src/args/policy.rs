//! The grammar of `policy …`.

mod versions;

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueHint};

use super::change::{Archive, Bring, Keygen, Settle, Sign, Verify};
pub use versions::{Canary, EndCanary, List, Rollback, Show, StartCanary};

/// `policy …`.
#[derive(Debug, Subcommand)]
pub enum Policy {
    /// Approve a version that somebody else proposed: it comes into force
    Approve(Settle),
    /// Write a bundle's archive into a file, as the gateway's HTTP interface takes it
    Archive(Archive),
    /// Check a bundle: every fault, and where each rule is enforced
    Check(Bundle),
    /// Make a key pair to sign versions with
    Keygen(Keygen),
    /// List the versions that wait for another person's approval
    Proposals,
    /// Reject a version that somebody else proposed, or withdraw your own
    Reject(Settle),
    /// Run a bundle's test cases
    Test(Bundle),
    /// Make the decisions on the record again under a bundle, and tell what would have been different
    Backtest(super::Backtest),
    /// Compare two policies by what they mean, with an example of each difference
    Diff(super::Diff),
    /// May this person do this there? Why (not), and what would change it
    Explain(Box<super::Explain>),
    /// Propose the least policy that permits what sessions did
    Learn(super::Learn),
    /// Check and test a bundle, then put it in force everywhere
    Push(Push),
    /// Try a bundle on some hosts or in some sessions first; promote it or take it back
    Canary(Canary),
    /// List every version that was ever in force, and hosts that run another than they should
    List(List),
    /// Put an earlier version in force again, as a new change
    Rollback(Rollback),
    /// Show exactly what is in force, or was
    Show(Show),
    /// Sign a bundle's version for a gateway
    Sign(Sign),
    /// Check signatures on a bundle's version, without any gateway
    Verify(Verify),
    /// Print a bundle's version
    Version(Bundle),
}

/// A policy folder.
#[derive(Debug, Args)]
pub struct Bundle {
    /// The bundle's folder
    #[arg(default_value = ".", value_hint = ValueHint::DirPath)]
    pub dir: PathBuf,
}

/// `policy push`.
#[derive(Debug, Args)]
pub struct Push {
    /// The bundle's folder
    #[arg(default_value = ".", value_hint = ValueHint::DirPath)]
    pub dir: PathBuf,
    /// Why; kept with the version [default: the subject of the Git commit]
    #[arg(short, long, value_name = "TEXT")]
    pub message: Option<String>,
    /// Only if this version (or one that begins so) is in force now: nobody pushed in between
    #[arg(long, value_name = "VERSION")]
    pub expect: Option<String>,
    /// Signatures, and as which CI job
    #[command(flatten)]
    pub bring: Bring,
}
