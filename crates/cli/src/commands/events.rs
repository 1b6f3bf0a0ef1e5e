//! `events`: records of the log, once or as they come.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use sallyport_contract::v1::{EventsRequest, LogEntry};
use sallyport_evidence::record::{MAX_BYTES, Record};
use serde_json::{json, value::RawValue};
use tonic::Code;

use crate::{
    args::Events,
    clock,
    failure::Failure,
    gateway::Context,
    out::Out,
    record_line::{self, KINDS, OUTCOMES},
    text,
};

/// With `--follow`, how often a lost gateway is tried again before giving up.
const RETRIES: u32 = 20;

/// Runs it.
///
/// # Errors
/// The gateway refuses or cannot be asked.
pub async fn run(context: &Context, args: Events) -> Result<(), Failure> {
    let since = args.since.as_deref().map(parse_since).transpose()?;
    known("kind", args.kind.as_deref(), &KINDS)?;
    known("outcome", args.outcome.as_deref(), &OUTCOMES)?;
    let limit = args.limit.unwrap_or(match (since, args.follow) {
        (Some(_), _) => 0,
        (None, true) => 10,
        (None, false) => 100,
    });
    let mut request = EventsRequest {
        follow: args.follow,
        session_id: args.session.unwrap_or_default(),
        user: args.user.unwrap_or_default(),
        host: args.host.unwrap_or_default(),
        kind: args.kind.unwrap_or_default(),
        outcome: args.outcome.unwrap_or_default(),
        from_index: 0,
        limit,
    };
    let mut failures = 0;
    loop {
        let seen = request.from_index;
        let failure = match stream(context, &mut request, since).await {
            Ok(()) if !args.follow => return Ok(()),
            // The gateway is restarting.
            Ok(()) => Failure::unreachable("the gateway ended the stream"),
            Err(failure) => failure,
        };
        let may_retry =
            args.follow && failure.exit() == crate::failure::Exit::Unreachable && !failure.is_said();
        failures = if request.from_index > seen { 1 } else { failures + 1 };
        // Nothing was seen yet: that is a wrong address or a gateway that is down, not an interruption.
        if !may_retry || failures > RETRIES || request.from_index == 0 {
            return Err(failure);
        }
        tokio::time::sleep(Duration::from_secs(u64::from(failures.min(10)))).await;
    }
}

/// Prints what comes and moves `from_index` behind it, so that the next try goes on there.
async fn stream(context: &Context, request: &mut EventsRequest, since: Option<u64>) -> Result<(), Failure> {
    let doing = "reading the log";
    let (mut console, _) = context.console().await?;
    let answer =
        console.events(request.clone()).await.map_err(|status| Failure::from_status(doing, &status))?;
    let mut entries = answer.into_inner();
    loop {
        let entry = match entries.message().await {
            Ok(Some(entry)) => entry,
            Ok(None) => return Ok(()),
            // What a stream that was cut in the middle looks like.
            Err(status) if matches!(status.code(), Code::Unknown | Code::Cancelled) => {
                return Err(Failure::unreachable("the connection to the gateway broke").why(status.message()));
            }
            Err(status) => return Err(Failure::from_status(doing, &status)),
        };
        request.from_index = entry.index.saturating_add(1);
        request.limit = 0;
        show(context.out, &entry, since)?;
    }
}

fn show(out: Out, entry: &LogEntry, since: Option<u64>) -> Result<(), Failure> {
    let record = if entry.record.len() > MAX_BYTES { None } else { Record::from_bytes(&entry.record).ok() };
    if let (Some(since), Some(record)) = (since, &record)
        && record.time_ns < since
    {
        return Ok(());
    }
    if out.json {
        return json_line(out, entry);
    }
    match record {
        Some(record) => out.line(record_line::line(out, entry.index, &record))?,
        None => out.line(format!("(a record that this version does not understand)  #{}", entry.index))?,
    }
    Ok(())
}

/// The record as it is in the log, not as this version understands it.
fn json_line(out: Out, entry: &LogEntry) -> Result<(), Failure> {
    match serde_json::from_slice::<&RawValue>(&entry.record) {
        // A line break between tokens is valid JSON, but would end the line.
        Ok(raw) if !raw.get().contains('\n') => {
            out.line(format!("{{\"index\":{},\"record\":{}}}", entry.index, text::safe_json(raw.get())))?;
        }
        Ok(raw) => {
            let value: serde_json::Value = serde_json::from_str(raw.get()).unwrap_or_default();
            out.json(&json!({ "index": entry.index, "record": value }))?;
        }
        Err(_) => {
            out.json(&json!({ "index": entry.index, "record": null, "hex": hex::encode(&entry.record) }))?
        }
    }
    Ok(())
}

/// Nanoseconds since the Unix epoch of a moment in words.
///
/// # Errors
/// It is no moment.
pub fn parse_since(text: &str) -> Result<u64, Failure> {
    let moment = clock::parse_since(text, SystemTime::now()).map_err(|_| {
        Failure::usage(format!("`{}` is no moment", crate::text::safe(text, 60)))
            .next("write how long ago (`2h`), a date (`2026-11-22`) or a time (`2026-11-22T13:00:00Z`)")
    })?;
    let since = moment.duration_since(UNIX_EPOCH).unwrap_or_default();
    Ok(u64::try_from(since.as_nanos()).unwrap_or(u64::MAX))
}

/// A misspelt filter would match nothing, which looks like "nothing happened".
fn known(what: &str, given: Option<&str>, all: &[&str]) -> Result<(), Failure> {
    match given {
        Some(given) if !all.contains(&given) => {
            Err(Failure::usage(format!("there is no {what} `{}`", text::safe(given, 60)))
                .next(format!("use one of: {}", all.join(", "))))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_and_outcomes_are_those_of_the_record() {
        use sallyport_evidence::record::{Kind, Outcome};
        for kind in KINDS {
            assert!(serde_json::from_value::<Kind>(json!(kind)).is_ok(), "{kind}");
        }
        for outcome in OUTCOMES {
            assert!(serde_json::from_value::<Outcome>(json!(outcome)).is_ok(), "{outcome}");
        }
        assert!(known("kind", Some("exce"), &KINDS).is_err());
    }
}
