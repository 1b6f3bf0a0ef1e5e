//! `policy list`, `policy rollback`, `policy canary`: which versions were and are in force, and where.

use sallyport_contract::v1::{
    Canary, EndCanaryRequest, ListPoliciesRequest, ListPoliciesResponse, PolicyVersion,
    RollBackPolicyRequest, SensorPolicy, StartCanaryRequest,
};
use serde_json::json;

use super::push::{finish, prepare, until_answered};
use crate::{
    args::{EndCanary, List, Rollback, StartCanary},
    clock,
    failure::Failure,
    gateway::Context,
    out::Look,
    text::{columns, safe},
};

/// Digits of a version that people are shown.
const SHORT: usize = 12;

pub(super) async fn list(context: &Context, args: &List) -> Result<(), Failure> {
    let (mut console, _) = context.console().await?;
    let answer = console
        .list_policies(ListPoliciesRequest { limit: args.limit })
        .await
        .map_err(|status| Failure::from_status("listing policy versions", &status))?
        .into_inner();
    if context.out.json { document(context, &answer) } else { print(context, &answer) }
}

pub(super) async fn roll_back(context: &Context, args: &Rollback) -> Result<(), Failure> {
    let request = RollBackPolicyRequest {
        version: args.version.clone().unwrap_or_default(),
        reason: args.message.clone().unwrap_or_default(),
        expect_version: args.expect.clone().unwrap_or_default(),
    };
    let (mut console, _) = context.console().await?;
    let answer = until_answered(context, console.roll_back_policy(request)).await;
    finish(context, "rolling the policy back", answer)
}

pub(super) async fn start(context: &Context, args: &StartCanary) -> Result<(), Failure> {
    let push = prepare(context, &args.dir, args.message.as_deref(), &args.bring)?;
    let seconds = u32::try_from(args.lasts.as_secs()).unwrap_or(u32::MAX);
    let request = StartCanaryRequest {
        push: Some(push),
        hosts: args.hosts.clone(),
        share: args.share.unwrap_or(0).into(),
        // Less than a second is nothing to the gateway, which takes nothing for its default.
        seconds: seconds.max(1),
        max_denials: args.max_denials,
        max_denial_ratio: args.max_denial_ratio.unwrap_or(0).into(),
    };
    let mut console = context.console_to_push(&args.bring).await?;
    let answer = until_answered(context, console.start_canary(request)).await;
    finish(context, "starting the canary", answer)
}

pub(super) async fn end(context: &Context, how: &EndCanary) -> Result<(), Failure> {
    let (promote, why) = match how {
        EndCanary::Promote(why) => (true, why),
        EndCanary::Abort(why) => (false, why),
    };
    let request = EndCanaryRequest { promote, reason: why.message.clone().unwrap_or_default() };
    let (mut console, _) = context.console().await?;
    let answer = until_answered(context, console.end_canary(request)).await;
    finish(context, "ending the canary", answer)
}

fn document(context: &Context, answer: &ListPoliciesResponse) -> Result<(), Failure> {
    let version = |v: &PolicyVersion| {
        json!({
            "serial": v.serial,
            "version": v.version,
            "in_force": v.serial == answer.serial_in_force,
            "how": v.how,
            "commit": v.commit,
            "author": v.author,
            "pushed_by": v.pushed_by,
            "pushed_at_ms": v.pushed_at_ms,
            "message": v.message,
            "signatures": v.signatures,
            "sensors": running(answer, v).len(),
        })
    };
    let canary = answer.canary.as_ref().map(|c| {
        json!({
            "serial": c.serial,
            "version": c.version,
            "state": c.state,
            "why": c.why,
            "hosts": c.hosts,
            "share_permille": c.share,
            "started_at_ms": c.started_at_ms,
            "until_ms": c.until_ms,
            "ended_at_ms": c.ended_at_ms,
            "denials": c.denials,
            "decisions": c.decisions,
            "max_denials": (c.max_denials != u64::MAX).then_some(c.max_denials),
            "max_denial_ratio_permille": (c.max_denial_ratio != 0).then_some(c.max_denial_ratio),
        })
    });
    let sensor = |s: &SensorPolicy| {
        json!({
            "host": s.host,
            "connected": s.connected,
            "version": s.version,
            "serial": s.serial,
            "canary_version": s.canary_version,
            "error": s.error,
            "drift": s.drift,
        })
    };
    context.out.json(&json!({
        "versions": answer.versions.iter().map(version).collect::<Vec<_>>(),
        "canary": canary,
        "sensors": answer.sensors.iter().map(sensor).collect::<Vec<_>>(),
    }))?;
    Ok(())
}

/// The connected hosts that run this change.
fn running<'a>(answer: &'a ListPoliciesResponse, version: &PolicyVersion) -> Vec<&'a SensorPolicy> {
    let runs = |sensor: &&SensorPolicy| {
        let stable = sensor.version == version.version && sensor.serial == version.serial;
        sensor.connected && (stable || version.how == "canary" && sensor.canary_version == version.version)
    };
    answer.sensors.iter().filter(runs).collect()
}

fn print(context: &Context, answer: &ListPoliciesResponse) -> Result<(), Failure> {
    let out = context.out;
    if answer.versions.is_empty() {
        out.line(
            "No policy was ever in force here: everything is denied. `sallyport policy push` brings one.",
        )?;
        return Ok(());
    }
    let head = ["", "SERIAL", "VERSION", "WHEN", "HOW", "BY", "AUTHOR", "COMMIT", "HOSTS", "WHY"];
    let mut rows = vec![head.map(str::to_owned).to_vec()];
    let tried = answer.canary.as_ref().filter(|canary| canary.state == "running");
    rows.extend(answer.versions.iter().map(|version| {
        let mark = if version.serial == answer.serial_in_force {
            "*"
        } else if tried.is_some_and(|canary| canary.serial == version.serial) {
            "~"
        } else {
            ""
        };
        let hosts = running(answer, version).len();
        vec![
            mark.to_owned(),
            version.serial.to_string(),
            shortened(&version.version),
            clock::minute_ms(version.pushed_at_ms),
            safe(&version.how, 12),
            or_dash(&version.pushed_by, 40),
            or_dash(&version.author, 40),
            or_dash(version.commit.get(..SHORT).unwrap_or(&version.commit), SHORT),
            if hosts == 0 { "–".to_owned() } else { hosts.to_string() },
            safe(&version.message, 80),
        ]
    }));
    let mut lines = columns(&rows).into_iter();
    if let Some(head) = lines.next() {
        out.line(out.look(Look::Bold, &head))?;
    }
    for (line, row) in lines.zip(&rows[1..]) {
        out.line(if row[0] == "*" { out.look(Look::Green, &line) } else { line })?;
    }
    out.line("* in force   ~ canary   HOSTS: connected ones that run it")?;
    if let Some(canary) = &answer.canary {
        out.line("")?;
        for line in describe(canary) {
            out.line(out.look(if canary.state == "running" { Look::Yellow } else { Look::Dim }, &line))?;
        }
    }
    let drifting: Vec<_> = answer.sensors.iter().filter(|sensor| !sensor.drift.is_empty()).collect();
    out.line("")?;
    if drifting.is_empty() {
        out.line(out.look(Look::Green, "No drift: every host that ever joined runs what it should."))?;
        return Ok(());
    }
    let hosts = answer.sensors.len();
    out.line(out.look(
        Look::Red,
        &format!("Drift: {} of {hosts} hosts do not run what they should.", drifting.len()),
    ))?;
    for sensor in drifting {
        out.line(format!("  {}: {}", safe(&sensor.host, 80), safe(&sensor.drift, 400)))?;
    }
    Ok(())
}

/// A canary, in two or three lines.
fn describe(canary: &Canary) -> Vec<String> {
    let percent = |n: u32| {
        if n.is_multiple_of(10) { format!("{} %", n / 10) } else { format!("{}.{} %", n / 10, n % 10) }
    };
    let sessions = if canary.share == 1000 {
        "all sessions".to_owned()
    } else {
        format!("{} of sessions", percent(canary.share))
    };
    let hosts =
        if canary.hosts.is_empty() { "all hosts".to_owned() } else { safe(&canary.hosts.join(", "), 200) };
    let (version, state) = (shortened(&canary.version), safe(&canary.state, 20));
    let mut lines =
        vec![format!("Canary {version} (serial {}), {state}: {sessions} on {hosts}", canary.serial)];
    let mut bounds = Vec::new();
    if canary.max_denials != u64::MAX {
        bounds.push(format!("more than {} denials", canary.max_denials));
    }
    if canary.max_denial_ratio != 0 {
        bounds.push(format!("more than {} denials among them", percent(canary.max_denial_ratio)));
    }
    lines.push(format!(
        "  {} denials of {} decisions; taken back at {}",
        canary.denials,
        canary.decisions,
        bounds.join(" or at ")
    ));
    lines.push(if canary.ended_at_ms == 0 {
        format!(
            "  in force everywhere at {}, or with `sallyport policy canary promote`",
            clock::minute_ms(canary.until_ms)
        )
    } else {
        format!("  ended {}: {}", clock::minute_ms(canary.ended_at_ms), safe(&canary.why, 300))
    });
    lines
}

fn shortened(version: &str) -> String {
    safe(version.get(..SHORT).unwrap_or(version), SHORT)
}

fn or_dash(text: &str, limit: usize) -> String {
    if text.is_empty() { "–".to_owned() } else { safe(text, limit) }
}
