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
    /// Check a bundle: every fault, what is probably a mistake, and where each rule is enforced
    Check(Check),
    /// Make a key pair to sign versions with
    Keygen(Keygen),
    /// List the versions that wait for another person's approval
    Proposals,
    /// Reject a version that somebody else proposed, or withdraw your own
    Reject(Settle),
    /// Run a bundle's test cases
    Test(Test),
    /// Write a page for people: who may do what where, and why
    Docs(Docs),
    /// Lay a bundle's rules out in Cedar's own form
    Fmt(Fmt),
    /// Write a bundle to begin with
    Init(Init),
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

/// `policy check`.
#[derive(Debug, Args)]
pub struct Check {
    /// The bundle's folder
    #[arg(default_value = ".", value_hint = ValueHint::DirPath)]
    pub dir: PathBuf,
    /// Fail on warnings, too
    #[arg(long)]
    pub deny_warnings: bool,
    /// Print faults and warnings only, not where each rule is enforced
    #[arg(short, long)]
    pub quiet: bool,
}

/// `policy test`.
#[derive(Debug, Args)]
pub struct Test {
    /// The bundle's folder
    #[arg(default_value = ".", value_hint = ValueHint::DirPath)]
    pub dir: PathBuf,
    /// Write the results into this file, in JUnit's XML form
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub junit: Option<PathBuf>,
    /// List the conditions that were not seen both true and false
    #[arg(long)]
    pub coverage: bool,
    /// Fail if a rule has no case, too
    #[arg(long)]
    pub deny_untested: bool,
}

/// `policy docs`.
#[derive(Debug, Args)]
pub struct Docs {
    /// The bundle's folder
    #[arg(default_value = ".", value_hint = ValueHint::DirPath)]
    pub dir: PathBuf,
    /// Write the page (Markdown) into this file [default: standard output]
    #[arg(short, long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub out: Option<PathBuf>,
}

/// `policy fmt`.
#[derive(Debug, Args)]
pub struct Fmt {
    /// The bundle's folder, or one `.cedar` file
    #[arg(default_value = ".", value_hint = ValueHint::AnyPath)]
    pub path: PathBuf,
    /// Change nothing: print what would change, and fail if there is anything
    #[arg(long)]
    pub check: bool,
}

/// `policy init`.
#[derive(Debug, Args)]
pub struct Init {
    /// The folder, which must be empty or missing
    #[arg(default_value = ".", value_hint = ValueHint::DirPath)]
    pub dir: PathBuf,
    /// The bundle's name [default: the folder's]
    #[arg(long)]
    pub name: Option<String>,
    /// The identity provider's group whose people may open sessions
    #[arg(long, default_value = "engineers")]
    pub group: String,
    /// The group that may replace the policy, approve what another one of it pushed, and read the evidence
    #[arg(long, default_value = "security")]
    pub admins: String,
    /// A host that they may enter, as it was named when it joined; may be repeated
    #[arg(long = "host", value_name = "NAME", default_values = ["web-1"])]
    pub hosts: Vec<String>,
    /// A local user as whom they may work; may be repeated
    #[arg(long = "user", value_name = "NAME", default_values = ["root"])]
    pub users: Vec<String>,
    /// Whom people ask when they are stopped
    #[arg(long, value_name = "TEXT", default_value = "security@example.org")]
    pub contact: String,
    /// A pack to include beside `base`; may be repeated
    #[arg(long = "pack", value_name = "NAME")]
    pub packs: Vec<String>,
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
