//! `verify`: recompute the log, and hold it against what was signed and against what was seen before.

use std::path::Path;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use sallyport_contract::v1::{CheckpointRequest, LogRequest};
use sallyport_evidence::{
    Checkpoint,
    note::Verifier,
    verify::{Leaf, LogCheck, Report},
};
use serde_json::json;

use crate::{
    args::Verify,
    clock,
    failure::Failure,
    files,
    gateway::Context,
    out::Look,
    profile::{self, checkpoint_path},
    text::safe,
};

/// A checkpoint is a few lines.
const LARGEST_CHECKPOINT: u64 = 64 << 10;

/// A checkpoint that was seen or kept earlier.
pub struct Earlier {
    /// As signed.
    pub note: String,
    /// What it says.
    pub checkpoint: Checkpoint,
}

/// What the log was held against beside its own checkpoint.
#[derive(Clone, Copy, Debug)]
pub enum History {
    /// Nothing: this computer sees it for the first time, and keeps the checkpoint.
    FirstTime,
    /// A checkpoint from before; so many records are new since.
    Continued(u64),
    /// Nothing, and nothing is kept: it is a copy.
    Unknown,
}

/// Runs it.
///
/// # Errors
/// The log does not verify, or cannot be had.
pub async fn run(context: &Context, args: Verify) -> Result<(), Failure> {
    if let Some(dir) = &args.state_dir {
        return super::verify_offline::run(context, &args, dir);
    }
    let (mut console, profile) = context.console().await?;
    let key = log_key(args.log_key.as_deref().unwrap_or(&profile.log_key))?;
    let seen_path = checkpoint_path(&context.folders, &profile.gateway);
    let seen = earlier(&seen_path, &key)?;
    let given = given(&args, &key)?;

    let newest = console
        .checkpoint(CheckpointRequest {})
        .await
        .map_err(|status| Failure::from_status("asking for the checkpoint", &status))?
        .into_inner();
    let checkpoint = Checkpoint::open(&newest.note, &key).map_err(|err| {
        Failure::failed("the gateway's checkpoint is not acceptable").because(&err).next(
            "its log was not signed with the key pinned at sign-in; ask the gateway's operator why before trusting it",
        )
    })?;
    let notes: Vec<&str> =
        [&seen, &given].into_iter().flatten().map(|earlier| earlier.note.as_str()).collect();
    let mut check = LogCheck::new(&key, notes.into_iter().chain([newest.note.as_str()]));
    let expected =
        [&seen, &given].into_iter().flatten().map(|earlier| earlier.checkpoint.size).max().unwrap_or(0);
    check.expect_at_least(expected);

    let bar = progress(context, checkpoint.size);
    if checkpoint.size > 0 {
        let request = LogRequest { from_index: 0, to_index: checkpoint.size };
        let answer =
            console.log(request).await.map_err(|status| Failure::from_status("reading the log", &status))?;
        let mut entries = answer.into_inner();
        while let Some(entry) =
            entries.message().await.map_err(|status| Failure::from_status("reading the log", &status))?
        {
            check.leaf(Leaf { index: entry.index, hash: None, record: &entry.record });
            bar.inc(1);
        }
    }
    bar.finish_and_clear();
    let report = check.finish();
    let new = checkpoint.size.saturating_sub(seen.as_ref().map_or(0, |seen| seen.checkpoint.size));
    if report.holds() {
        remember(&seen_path, &newest.note)?;
        if let Some(path) = &args.save_checkpoint {
            files::replace(path, newest.note.as_bytes(), 0o644)
                .map_err(|err| Failure::failed("cannot save the checkpoint").because(&err))?;
        }
    }
    let history = if seen.is_some() { History::Continued(new) } else { History::FirstTime };
    say(context, &report, &key, history)
}

/// The checkpoint that `--from-checkpoint` names.
///
/// # Errors
/// There is none, or it is another log's.
pub fn given(args: &Verify, key: &Verifier) -> Result<Option<Earlier>, Failure> {
    let Some(path) = &args.from_checkpoint else { return Ok(None) };
    let none = || Failure::usage(format!("there is no checkpoint in `{}`", path.display()));
    earlier(path, key)?.ok_or_else(none).map(Some)
}

/// Parses the pinned key.
///
/// # Errors
/// There is none, or it is damaged.
pub fn log_key(text: &str) -> Result<Verifier, Failure> {
    if text.is_empty() {
        return Err(Failure::failed("no key of the evidence log is pinned")
            .next("sign in again, or pass --log-key KEY as the gateway's operator gives it"));
    }
    Verifier::parse(text).map_err(|err| Failure::failed("the log's key is not usable").because(&err))
}

/// A checkpoint that lies in a file, if there is one.
///
/// # Errors
/// It is another log's, or was altered.
pub fn earlier(path: &Path, key: &Verifier) -> Result<Option<Earlier>, Failure> {
    let doing = || Failure::failed(format!("cannot use the checkpoint `{}`", path.display()));
    let Some(bytes) = files::read(path, LARGEST_CHECKPOINT).map_err(|err| doing().because(&err))? else {
        return Ok(None);
    };
    let note = String::from_utf8(bytes).map_err(|err| doing().because(&err))?;
    let checkpoint = Checkpoint::open(&note, key).map_err(|err| {
        doing()
            .because(&err)
            .next("it belongs to another log or key, or was altered; find out which before removing it")
    })?;
    Ok(Some(Earlier { note, checkpoint }))
}

fn remember(path: &Path, note: &str) -> Result<(), Failure> {
    let keep = || {
        if let Some(dir) = path.parent() {
            files::private_dir(dir)?;
        }
        files::replace(path, note.as_bytes(), 0o600)
    };
    keep().map_err(|err| Failure::failed("cannot keep the checkpoint for the next time").because(&err))
}

/// On standard error, on a terminal, and not with `--json`.
#[must_use]
pub fn progress(context: &Context, records: u64) -> ProgressBar {
    if context.out.json {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::with_draw_target(Some(records), ProgressDrawTarget::stderr());
    if let Ok(style) =
        ProgressStyle::with_template("{bar:30} {human_pos}/{human_len} records, {per_sec}, {eta} left")
    {
        bar.set_style(style);
    }
    bar
}

/// Prints what is proved, or the faults.
///
/// # Errors
/// There are faults.
pub fn say(context: &Context, report: &Report, key: &Verifier, history: History) -> Result<(), Failure> {
    let out = context.out;
    let proved = report.proved.as_ref();
    if out.json {
        out.json(&json!({
            "holds": report.holds(),
            "log": report.origin,
            "key": key.to_string(),
            "records": report.leaves,
            "proved_records": proved.map_or(0, |checkpoint| checkpoint.size),
            "root": proved.map(|checkpoint| hex::encode(checkpoint.root)),
            "newest_record_ns": report.proved_time_ns,
            "unproved_records": report.unproved(),
            "new_since_last": if let History::Continued(new) = history { Some(new) } else { None },
            "first_time": matches!(history, History::FirstTime),
            "records_owned_up_as_lost": report.owned_up,
            "anchored_elsewhere": false,
            "faults": report.faults.iter().map(ToString::to_string).collect::<Vec<_>>(),
            "more_faults": report.more_faults,
        }))?;
        return if report.holds() { Ok(()) } else { Err(Failure::said()) };
    }
    if !report.holds() {
        out.line(out.look(Look::Red, "The log does NOT verify."))?;
        for fault in &report.faults {
            out.line(format!("  {}", safe(&fault.to_string(), 400)))?;
        }
        if report.more_faults > 0 {
            out.line(format!("  and {} more faults", report.more_faults))?;
        }
        if let Some(proved) = proved {
            out.line(format!("Proved as signed: the first {} records.", proved.size))?;
        }
        out.line("Keep the log, its checkpoints and this output as they are, and tell your security team.")?;
        return Err(Failure::said());
    }
    let Some(proved) = proved else {
        out.line("The log is empty: no record, and no checkpoint to hold it against.")?;
        return Ok(());
    };
    out.line(format!(
        "{}: {} records are exactly those that were signed.",
        out.look(Look::Green, "Verified"),
        proved.size
    ))?;
    out.line(format!("  root:       {}", hex::encode(proved.root)))?;
    out.line(format!(
        "  checkpoint: of {} records, the newest from {}",
        proved.size,
        clock::stamp_ns(report.proved_time_ns)
    ))?;
    out.line(format!("  key:        {}", safe(&key.to_string(), 200)))?;
    out.line(match history {
        History::Continued(new) => {
            format!("  history:    continues the checkpoint seen before; {new} records are new since")
        }
        History::FirstTime => {
            "  history:    first time on this computer; the checkpoint is kept for the next time".to_owned()
        }
        History::Unknown => {
            "  history:    not held against an earlier checkpoint; name one with --from-checkpoint".to_owned()
        }
    })?;
    if report.unproved() > 0 {
        out.line(format!(
            "  unproved:   {} newer records are not under a checkpoint yet",
            report.unproved()
        ))?;
    }
    if report.owned_up > 0 {
        out.line(format!("  loss:       {} records never arrived; the log says so itself", report.owned_up))?;
    }
    out.line("  anchoring:  not anchored elsewhere: keep a checkpoint (--save-checkpoint) out of the gateway's reach")?;
    Ok(())
}

/// The key to hold a copy of the log against, given or pinned; and, if it is the pinned one, the newest
/// checkpoint that this computer saw.
///
/// # Errors
/// There is no key.
pub fn offline_trust(context: &Context, args: &Verify) -> Result<(Verifier, Option<Earlier>), Failure> {
    let gateway = context.gateway().ok();
    let pinned = gateway.as_ref().and_then(|gateway| profile::load(&context.folders, gateway).ok().flatten());
    let pinned = pinned.map(|profile| profile.log_key).unwrap_or_default();
    let key = log_key(args.log_key.as_deref().unwrap_or(&pinned))?;
    let seen = match gateway {
        Some(gateway) if key.to_string() == pinned => {
            earlier(&checkpoint_path(&context.folders, &gateway), &key)?
        }
        _ => None,
    };
    Ok((key, seen))
}
