//! A million stored records, made by the recorder's own store, and `sallyport policy backtest` over them.
//!
//! What the command says of a twentieth of the people is held against Cedar's authorizer, asked about each of their records
//! anew. Started by `cargo xtask bench backtest`. Exit status 3: measured, and the target is missed.

mod brute;
mod bundles;
mod records;

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use clap::Parser;
use nix::sys::resource::{UsageWho, getrusage};
use sallyport_gateway::recorder::store;
use serde_json::Value;

/// What a million records may take, in seconds, on two cores.
const TARGET: f64 = 30.0;
/// Of how many people one is looked at again.
const ONE_IN: u64 = 20;

#[derive(Parser)]
struct Arguments {
    /// How many records
    #[arg(long, default_value_t = 1_000_000)]
    records: u64,
    /// The command
    #[arg(long)]
    program: PathBuf,
    /// The shipped policies, which the bundles include
    #[arg(long)]
    policies: PathBuf,
    /// Write the figures as Markdown as well
    #[arg(long)]
    markdown: Option<PathBuf>,
    /// One JSON object, on standard output
    #[arg(long)]
    json: bool,
}

/// How long the command took, and what it needed.
struct Cost {
    wall: Duration,
    processor: Duration,
    peak_mib: i64,
}

fn main() -> Result<ExitCode> {
    let arguments = Arguments::parse();
    let folder = tempfile::tempdir()?;
    let bundles = bundles::write(folder.path(), &arguments.policies, records::HOSTS)?;
    let before = bundles::load(&bundles.before)?;
    let begun = Instant::now();
    let candidate = bundles::load(&bundles.candidate)?;
    let checked = begun.elapsed();
    let begun = Instant::now();
    let sample = candidate.try_out().map_err(|faults| anyhow::anyhow!("{faults}"))?;
    let (tried, tables) = (begun.elapsed(), sample.different);
    let state = folder.path().join("state");
    std::fs::create_dir(&state)?;
    let begun = Instant::now();
    let bytes = records::fill(&state.join(store::FILE), arguments.records, &before)?;
    let each = bytes / arguments.records.max(1);
    eprintln!(
        "{} records, {each} bytes each, stored in {:.1} s",
        arguments.records,
        seconds(begun.elapsed())
    );

    let (report, cost) = backtest(&arguments.program, &state, &bundles.candidate)?;
    let decisions = report["decisions"].as_u64().unwrap_or(0);
    ensure!(
        decisions == arguments.records,
        "{decisions} decisions were made again, not {}",
        arguments.records
    );
    let begun = Instant::now();
    let sample = brute::judge(&before, &candidate, arguments.records, |person| person % ONE_IN == 3)?;
    sample.compare(&report)?;
    let brute = seconds(begun.elapsed());
    eprintln!(
        "correct: {} of the records, judged one by one by Cedar's authorizer in {brute:.1} s, give the same {} lines of changes",
        sample.records,
        sample.changes.len()
    );

    let wall = seconds(cost.wall);
    let rate = decisions as f64 / wall;
    let changes = report["changes"].as_array().map_or(0, Vec::len);
    let cores = std::thread::available_parallelism().map_or(1, |n| n.get());
    let missed = wall * 1_000_000.0 / decisions.max(1) as f64 > TARGET;
    if arguments.json {
        let figure = serde_json::json!({
            "records": decisions, "seconds": wall, "processor_seconds": seconds(cost.processor),
            "peak_mib": cost.peak_mib, "records_per_second": rate, "cores": cores, "changes": changes,
            "tables": report["tables"], "compared": sample.records, "target_seconds": TARGET, "met": !missed,
        });
        println!("{figure}");
    }
    let text = format!(
        "`sallyport policy backtest` of a bundle with {} rules and {} hosts over {decisions} stored records of {} \
         people, {each} bytes each; {cores} cores.\n\n\
         | seconds | of processors | records/s | MiB at most | lines of changes | tables made |\n\
         |---|---|---|---|---|---|\n\
         | {wall:.1} | {:.1} | {rate:.0} | {} | {changes} | {} |\n\n\
         | target | at most | measured | |\n|---|---|---|---|\n\
         | a million records | {TARGET} s | {wall:.1} s | {} |\n\n\
         The bundle itself is read and checked in {} ms, and tried out as a push does, with {tables} different tables, in \
         {} ms.\n\n\
         In the same run {} of the records (all of every {ONE_IN}th person) were judged one by one by Cedar's \
         authorizer, which took {brute:.1} s: the same {} lines of changes, with the same counts, rules and outcomes.\n",
        candidate.rules().count(),
        records::HOSTS,
        records::PEOPLE,
        seconds(cost.processor),
        cost.peak_mib,
        report["tables"],
        if missed { "**missed**" } else { "met" },
        checked.as_millis(),
        tried.as_millis(),
        sample.records,
        sample.changes.len(),
    );
    eprintln!("{text}");
    if let Some(file) = &arguments.markdown {
        std::fs::write(file, text)?;
    }
    Ok(ExitCode::from(if missed { 3 } else { 0 }))
}

/// Runs the command, as a person would.
fn backtest(program: &Path, state: &Path, candidate: &Path) -> Result<(Value, Cost)> {
    let begun = Instant::now();
    let ran = Command::new(program)
        .args(["--json", "policy", "backtest", "--since", "7d", "--state-dir"])
        .args([state, candidate])
        .output()
        .context("start sallyport")?;
    let wall = begun.elapsed();
    ensure!(ran.status.success(), "the backtest failed: {}", String::from_utf8_lossy(&ran.stderr));
    // It is the only child.
    let used = getrusage(UsageWho::RUSAGE_CHILDREN)?;
    let time = |value: nix::sys::time::TimeVal| {
        Duration::from_micros((value.tv_sec() * 1_000_000 + value.tv_usec()).unsigned_abs())
    };
    let processor = time(used.user_time()) + time(used.system_time());
    let report = serde_json::from_slice(&ran.stdout).context("read what it said")?;
    Ok((report, Cost { wall, processor, peak_mib: used.max_rss() / 1024 }))
}

fn seconds(duration: Duration) -> f64 {
    duration.as_secs_f64()
}
