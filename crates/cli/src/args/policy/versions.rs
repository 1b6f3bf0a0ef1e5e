//! The grammar of what changes and lists versions: `policy canary`, `policy list`, `policy rollback`, `policy show`.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand, ValueHint};

use super::super::change::Bring;
use crate::clock;

/// `policy canary`.
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct Canary {
    /// How it ends; without this, one is started.
    #[command(subcommand)]
    pub end: Option<EndCanary>,
    /// What is tried, and where.
    #[command(flatten)]
    pub start: StartCanary,
}

/// `policy canary DIR`.
#[derive(Debug, Args)]
pub struct StartCanary {
    /// The bundle's folder
    #[arg(default_value = ".", value_hint = ValueHint::DirPath)]
    pub dir: PathBuf,
    /// On these hosts, or the hosts of these host groups of the bundle [default: all]
    #[arg(long, value_name = "HOST|GROUP,…", value_delimiter = ',')]
    pub hosts: Vec<String>,
    /// In this share of sessions there, like 10% [default: all]
    #[arg(long, value_name = "PERCENT", value_parser = share)]
    pub share: Option<u16>,
    /// So long; then it is in force everywhere, unless too much was denied
    #[arg(long = "for", value_name = "DURATION", value_parser = clock::parse_duration, default_value = "15m")]
    pub lasts: Duration,
    /// More denials than this take it back [default: 10, unless a ratio is given]
    #[arg(long, value_name = "N")]
    pub max_denials: Option<u64>,
    /// More denials than this share of all decisions take it back, like 2.5% (from 20 decisions on)
    #[arg(long, value_name = "PERCENT", value_parser = share)]
    pub max_denial_ratio: Option<u16>,
    /// Why; kept with the version [default: the subject of the Git commit]
    #[arg(short, long, value_name = "TEXT")]
    pub message: Option<String>,
    /// Signatures, and as which CI job
    #[command(flatten)]
    pub bring: Bring,
}

/// `policy canary promote|abort`.
#[derive(Debug, Subcommand)]
pub enum EndCanary {
    /// Put the canary's version in force everywhere now
    Promote(Why),
    /// Take the canary back now: what is in force elsewhere is in force everywhere again
    Abort(Why),
}

/// A reason.
#[derive(Debug, Args)]
pub struct Why {
    /// Why; kept on the record
    #[arg(short, long, value_name = "TEXT")]
    pub message: Option<String>,
}

/// `policy list`.
#[derive(Debug, Args)]
pub struct List {
    /// At most so many changes, the newest; 0 for all
    #[arg(short = 'n', long, value_name = "N", default_value_t = 20)]
    pub limit: u32,
}

/// `policy rollback`.
#[derive(Debug, Args)]
pub struct Rollback {
    /// Version, or its first digits (4 at least) [default: the one before]
    pub version: Option<String>,
    /// Why; kept on the record
    #[arg(short, long, value_name = "TEXT")]
    pub message: Option<String>,
    /// Only if this version (or one that begins so) is in force now
    #[arg(long, value_name = "VERSION")]
    pub expect: Option<String>,
}

/// `policy show`.
#[derive(Debug, Args)]
pub struct Show {
    /// Version, or its first digits (4 at least) [default: the one in force]
    pub version: Option<String>,
    /// Write the bundle's files into this folder, which must be empty or missing: it checks, tests and pushes as the
    /// same version, with all it included in a folder `include`
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub extract: Option<PathBuf>,
}

/// A share as `10%` or `2.5%`, in thousandths.
fn share(text: &str) -> Result<u16, String> {
    let wrong = || "not a share; write it like `10%` or `2.5%`, up to 100%".to_owned();
    let number = text.trim().strip_suffix('%').ok_or_else(wrong)?.trim();
    let (whole, tenth) = number.split_once('.').unwrap_or((number, "0"));
    let digits = |text: &str| !text.is_empty() && text.len() <= 3 && text.bytes().all(|b| b.is_ascii_digit());
    if !digits(whole) || !digits(tenth) || tenth.len() > 1 {
        return Err(wrong());
    }
    let (whole, tenth): (u16, u16) =
        (whole.parse().map_err(|_| wrong())?, tenth.parse().map_err(|_| wrong())?);
    let share = whole * 10 + tenth;
    if (1..=1000).contains(&share) { Ok(share) } else { Err(wrong()) }
}

#[cfg(test)]
mod tests {
    use super::share;

    #[test]
    fn shares_are_percent_with_a_tenth_at_most() {
        for (text, expected) in [("10%", 100), ("2.5%", 25), ("100%", 1000), ("0.1%", 1), (" 7 %", 70)] {
            assert_eq!(share(text), Ok(expected), "{text}");
        }
        for wrong in ["10", "0%", "100.1%", "101%", "-1%", "1.25%", "%", ".5%", "ten%", "1e1%"] {
            assert!(share(wrong).is_err(), "{wrong}");
        }
    }
}
