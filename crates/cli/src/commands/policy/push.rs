//! `policy push`: puts a bundle in force everywhere. What comes before and after it is the same for `policy canary`.

use std::path::Path;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget};
use sallyport_contract::v1::{PushPolicyRequest, PushPolicyResponse, SensorPolicy};
use serde_json::json;
use tonic::{Response, Status};

use super::{check::refuse_errors, load, sign::brought, test::print_tests, try_out};
use crate::{
    args::{Bring, Push},
    clock,
    failure::Failure,
    gateway::Context,
    git,
    out::Look,
    text::{safe, safe_lines},
};

pub(super) async fn push(context: &Context, args: &Push) -> Result<(), Failure> {
    let mut request = prepare(context, &args.dir, args.message.as_deref(), &args.bring)?;
    request.expect_version = args.expect.clone().unwrap_or_default();
    let mut console = context.console_to_push(&args.bring).await?;
    let answer = until_answered(context, console.push_policy(request)).await;
    finish(context, "pushing the policy", answer)
}

/// Waits for what the gateway answers when the hosts have, or have had time to. Says so on a terminal, and not with `--json`.
pub(super) async fn until_answered<T>(context: &Context, answer: impl Future<Output = T>) -> T {
    let bar = if context.out.json {
        ProgressBar::hidden()
    } else {
        let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
        bar.with_message("waiting until the hosts say that they enforce it")
    };
    bar.enable_steady_tick(Duration::from_millis(200));
    let answer = answer.await;
    bar.finish_and_clear();
    answer
}

/// Checks and tests a bundle, and says where it comes from.
pub(super) fn prepare(
    context: &Context,
    dir: &Path,
    message: Option<&str>,
    bring: &Bring,
) -> Result<PushPolicyRequest, Failure> {
    // What the gateway would refuse is told here, with places, before anything is sent.
    let (bundle, policy) = load(context, dir)?;
    try_out(context, &bundle, &policy)?;
    refuse_errors(context, &bundle, &policy)?;
    let tests = policy.run_tests(&bundle);
    if !tests.passed() {
        if !context.out.json {
            // It says what failed; what that means for the push comes after it.
            let _ = print_tests(context, &tests, false);
        }
        return Err(Failure::failed("the bundle's test cases fail, so nothing was pushed")
            .next("correct the rules or the cases; `sallyport policy test` runs them"));
    }
    let origin = git::origin(dir);
    if origin.is_dirty {
        eprintln!("sallyport: the folder differs from its Git commit; the version is marked `-dirty`");
    }
    Ok(PushPolicyRequest {
        archive: bundle.to_archive(),
        signatures: brought(dir, &bring.signature)?,
        commit: origin.commit,
        author: origin.author,
        message: message.map_or(origin.subject, str::to_owned),
        ..PushPolicyRequest::default()
    })
}

/// Tells what a change of policy led to.
pub(super) fn finish(
    context: &Context,
    doing: &str,
    answer: Result<Response<PushPolicyResponse>, Status>,
) -> Result<(), Failure> {
    told(context, &answer.map_err(|status| Failure::from_status(doing, &status))?.into_inner())
}

/// Says what a push, or an approval, led to.
pub(super) fn told(context: &Context, answer: &PushPolicyResponse) -> Result<(), Failure> {
    if context.out.json {
        document(context, answer)?;
    } else {
        report(context, answer)?;
    }
    // Until a sensor says that it enforces the version, its sessions may still be under the one before.
    let behind = answer.sensors.iter().any(|sensor| !sensor.error.is_empty() || !enforces(sensor, answer));
    if answer.problems.is_empty() && !behind { Ok(()) } else { Err(Failure::said()) }
}

/// Whether a sensor enforces the version, for everybody or as a canary.
fn enforces(sensor: &SensorPolicy, answer: &PushPolicyResponse) -> bool {
    sensor.version == answer.version || sensor.canary_version == answer.version
}

fn document(context: &Context, answer: &PushPolicyResponse) -> Result<(), Failure> {
    let sensors: Vec<serde_json::Value> = answer
        .sensors
        .iter()
        .map(|sensor| {
            let SensorPolicy { host, version, error, serial, canary_version, drift, .. } = sensor;
            json!({
                "host": host, "version": version, "error": error, "serial": serial,
                "canary_version": canary_version, "drift": drift,
            })
        })
        .collect();
    context.out.json(&json!({
        "accepted": answer.problems.is_empty(),
        "version": answer.version,
        "serial": answer.serial,
        "unchanged": answer.unchanged,
        "previous_version": answer.previous_version,
        "problems": answer.problems,
        "sensors": sensors,
        "waits_until_ms": (answer.waits_until_ms > 0).then_some(answer.waits_until_ms),
    }))?;
    Ok(())
}

fn report(context: &Context, answer: &PushPolicyResponse) -> Result<(), Failure> {
    let out = context.out;
    if !answer.problems.is_empty() {
        out.line(out.look(Look::Red, "The gateway refused the bundle; the version before stays in force."))?;
        for problem in &answer.problems {
            out.line(safe_lines(problem, 30))?;
        }
        return Ok(());
    }
    if answer.waits_until_ms > 0 {
        let until = clock::minute_ms(answer.waits_until_ms);
        out.line(format!("{}: {}", out.look(Look::Yellow, "Proposed"), safe(&answer.version, 64)))?;
        out.line(format!("  not in force yet: another person must approve it until {until}, with"))?;
        out.line(format!(
            "  sallyport policy approve {}",
            safe(answer.version.get(..12).unwrap_or_default(), 12)
        ))?;
        return Ok(());
    }
    let (version, serial) = (safe(&answer.version, 64), answer.serial);
    if answer.unchanged {
        out.line(format!("{}: {version} (serial {serial})", out.look(Look::Green, "In force already")))?;
        out.line("  nothing was changed")?;
        return sensors(context, answer, |sensor| !sensor.error.is_empty() || !enforces(sensor, answer));
    }
    out.line(format!("{}: {version} (serial {serial})", out.look(Look::Green, "In force")))?;
    if !answer.previous_version.is_empty() {
        out.line(format!("  before:  {}", safe(&answer.previous_version, 64)))?;
    }
    if answer.sensors.is_empty() {
        out.line("  no sensor that it is for is connected; each takes the version when it connects")?;
    }
    sensors(context, answer, |_| true)
}

/// What each sensor enforces, of those that are wanted.
fn sensors(
    context: &Context,
    answer: &PushPolicyResponse,
    wanted: impl Fn(&SensorPolicy) -> bool,
) -> Result<(), Failure> {
    let out = context.out;
    for sensor in answer.sensors.iter().filter(|sensor| wanted(sensor)) {
        let host = safe(&sensor.host, 80);
        if !sensor.error.is_empty() {
            let why = safe(&sensor.error, 300);
            out.line(format!("  {}", out.look(Look::Red, &format!("{host}: NOT in force: {why}"))))?;
        } else if sensor.canary_version == answer.version {
            out.line(format!("  {host}: in force as a canary"))?;
        } else if enforces(sensor, answer) {
            out.line(format!("  {host}: in force, in running sessions too"))?;
        } else {
            let has = if sensor.version.is_empty() { "none".to_owned() } else { safe(&sensor.version, 12) };
            out.line(format!(
                "  {}",
                out.look(Look::Yellow, &format!("{host}: has not answered yet (has {has})"))
            ))?;
        }
    }
    Ok(())
}
