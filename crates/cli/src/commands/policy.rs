//! `policy …`: check, test, push and show bundles.

use std::{fs, path::Path};

use sallyport_contract::v1::{CurrentPolicyRequest, PushPolicyRequest, PushPolicyResponse};
use sallyport_policy::{Bundle, Diagnostics, Enforcement, Place, Policy, RuleInfo, Sample, TestReport};
use serde_json::json;

use crate::{
    args::{Bundle as BundleArgs, Policy as Command, Push},
    clock,
    failure::Failure,
    gateway::Context,
    git,
    out::Look,
    text::{columns, safe, safe_lines},
};

/// Runs it.
///
/// # Errors
/// Faults in the bundle, or the gateway refuses or cannot be asked.
pub async fn run(context: &Context, command: Command) -> Result<(), Failure> {
    match command {
        Command::Check(BundleArgs { dir }) => check(context, &dir),
        Command::Test(BundleArgs { dir }) => test(context, &dir),
        Command::Push(args) => push(context, &args).await,
        Command::Show { version, extract } => {
            show(context, version.unwrap_or_default(), extract.as_deref()).await
        }
        Command::Version(BundleArgs { dir }) => version(context, &dir),
    }
}

fn read(dir: &Path) -> Result<Bundle, Failure> {
    Bundle::read_dir(dir).map_err(|err| {
        Failure::failed(format!("cannot read a policy bundle from `{}`", dir.display()))
            .because(&err)
            .next("name the folder that holds `bundle.toml` and the `.cedar` files")
    })
}

/// Loads a bundle, or prints every fault.
fn load(context: &Context, dir: &Path) -> Result<(Bundle, Policy), Failure> {
    let bundle = read(dir)?;
    match Policy::load(&bundle) {
        Ok(policy) => Ok((bundle, policy)),
        Err(faults) => {
            print_faults(context, &bundle, &faults)?;
            Err(Failure::said())
        }
    }
}

/// Compiles a policy for a sample of those whom it may concern, or prints what is too large.
fn try_out(context: &Context, bundle: &Bundle, policy: &Policy) -> Result<Sample, Failure> {
    match policy.try_out() {
        Ok(sample) => Ok(sample),
        Err(faults) => {
            print_faults(context, bundle, &faults)?;
            Err(Failure::said())
        }
    }
}

fn print_faults(context: &Context, bundle: &Bundle, faults: &Diagnostics) -> Result<(), Failure> {
    let out = context.out;
    if out.json {
        out.json(&json!({ "ok": false, "version": bundle.version(), "faults": faults.faults }))?;
        return Ok(());
    }
    out.line(safe_lines(&faults.to_string(), 2000))?;
    let count = faults.faults.len();
    let faults = if count == 1 { "1 fault".to_owned() } else { format!("{count} faults") };
    out.line(out.look(Look::Red, &format!("{faults}; the bundle cannot come into force.")))?;
    Ok(())
}

fn check(context: &Context, dir: &Path) -> Result<(), Failure> {
    let (bundle, policy) = load(context, dir)?;
    let sample = try_out(context, &bundle, &policy)?;
    let out = context.out;
    let placement = policy.placement();
    if out.json {
        out.json(&json!({
            "ok": true,
            "version": policy.version(),
            "faults": [],
            "placement": placement,
            "sample": sample,
        }))?;
        return Ok(());
    }
    for rule in &placement {
        let RuleInfo { id, file, line, .. } = &rule.rule;
        let effect = if rule.forbids { "forbid" } else { "permit" };
        let watched =
            if rule.monitored { ", only watched: what it would deny goes on and is recorded" } else { "" };
        let head = format!("{} ({effect}{watched})", out.look(Look::Bold, &safe(id, 100)));
        out.line(format!("{head}  {}", out.look(Look::Dim, &format!("{}:{line}", safe(file, 200)))))?;
        let rows: Vec<Vec<String>> = rule.places.iter().map(|at| place(at, rule.forbids)).collect();
        out.lines(columns(&rows))?;
    }
    let count = placement.len();
    let of = if sample.complete() {
        format!("all {} combinations", sample.tried)
    } else {
        format!("{} of {} combinations", sample.tried, sample.combinations)
    };
    out.line(format!(
        "\nCompiled for {of} of groups, hosts and local users; the largest tables take {} KiB of the kernel's memory.",
        sample.largest.div_ceil(1024)
    ))?;
    out.line(format!("{}: {count} rules, version {}", out.look(Look::Green, "No fault"), policy.version()))?;
    Ok(())
}

/// Where a rule is enforced for one action, as a row.
fn place(place: &Place, forbids: bool) -> Vec<String> {
    let how = match (place.lsm, place.tracepoint) {
        (Enforcement::Gateway, _) => Enforcement::Gateway.to_string(),
        // How a denial comes about is said of the rules that deny.
        _ if !forbids => "in the kernel".to_owned(),
        (lsm, tracepoint) if lsm == tracepoint => lsm.to_string(),
        (lsm, tracepoint) => format!("{lsm} (without BPF LSM: {tracepoint})"),
    };
    vec![format!("    {}", place.action), how]
}

fn test(context: &Context, dir: &Path) -> Result<(), Failure> {
    let (bundle, policy) = load(context, dir)?;
    let report = policy.run_tests(&bundle);
    if context.out.json {
        context.out.json(&json!({
            "passed": report.passed(),
            "version": policy.version(),
            "cases": report.cases,
            "failures": report.failures,
            "uncovered": report.uncovered,
        }))?;
        return if report.passed() { Ok(()) } else { Err(Failure::said()) };
    }
    print_tests(context, &report)
}

/// Failures and rules without a case; then the sum.
fn print_tests(context: &Context, report: &TestReport) -> Result<(), Failure> {
    let out = context.out;
    for failure in &report.failures {
        let place = format!("{}:{}", safe(&failure.file, 200), failure.line);
        out.line(format!("{place}: {}: {}", out.look(Look::Red, "failed"), safe(&failure.case, 300)))?;
        out.line(format!("    {}", safe_lines(&failure.message, 20).replace('\n', "\n    ")))?;
    }
    for rule in &report.uncovered {
        let place = format!("{}:{}", safe(&rule.file, 200), rule.line);
        out.line(format!(
            "{place}: {}: no case calls on rule \"{}\"",
            out.look(Look::Yellow, "untested"),
            safe(&rule.id, 100)
        ))?;
    }
    let failed = report.failures.len();
    if !report.passed() {
        let sum = format!("{failed} of {} cases failed.", report.cases);
        out.line(out.look(Look::Red, &sum))?;
        return Err(Failure::said());
    }
    if report.cases == 0 {
        out.line("No case: put questions with their expected answers into tests/*.toml.")?;
    } else {
        out.line(format!(
            "{}: {} cases, each asked of Cedar and of the kernel's tables",
            out.look(Look::Green, "Passed"),
            report.cases
        ))?;
    }
    Ok(())
}

fn version(context: &Context, dir: &Path) -> Result<(), Failure> {
    let bundle = read(dir)?;
    if context.out.json {
        context.out.json(&json!({ "version": bundle.version() }))?;
    } else {
        context.out.line(bundle.version())?;
    }
    Ok(())
}

async fn push(context: &Context, args: &Push) -> Result<(), Failure> {
    // What the gateway would refuse is told here, with places, before anything is sent.
    let (bundle, policy) = load(context, &args.dir)?;
    try_out(context, &bundle, &policy)?;
    let tests = policy.run_tests(&bundle);
    if !tests.passed() {
        if !context.out.json {
            // It says what failed; what that means for the push comes after it.
            let _ = print_tests(context, &tests);
        }
        return Err(Failure::failed("the bundle's test cases fail, so nothing was pushed")
            .next("correct the rules or the cases; `sallyport policy test` runs them"));
    }
    let origin = git::origin(&args.dir);
    if origin.is_dirty {
        eprintln!("sallyport: the folder differs from its Git commit; the version is marked `-dirty`");
    }
    let request = PushPolicyRequest {
        archive: bundle.to_archive(),
        commit: origin.commit,
        author: origin.author,
        message: args.message.clone().unwrap_or(origin.subject),
    };
    let (mut console, _) = context.console().await?;
    let answer = console
        .push_policy(request)
        .await
        .map_err(|status| Failure::from_status("pushing the policy", &status))?
        .into_inner();
    if context.out.json {
        document(context, &answer)?;
    } else {
        report(context, &answer)?;
    }
    let behind = answer.sensors.iter().any(|sensor| !sensor.error.is_empty());
    if answer.problems.is_empty() && !behind { Ok(()) } else { Err(Failure::said()) }
}

fn document(context: &Context, answer: &PushPolicyResponse) -> Result<(), Failure> {
    let sensors: Vec<serde_json::Value> = answer
        .sensors
        .iter()
        .map(|sensor| json!({ "host": sensor.host, "version": sensor.version, "error": sensor.error }))
        .collect();
    context.out.json(&json!({
        "accepted": answer.problems.is_empty(),
        "version": answer.version,
        "previous_version": answer.previous_version,
        "problems": answer.problems,
        "sensors": sensors,
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
    let same = answer.version == answer.previous_version;
    out.line(format!("{}: {}", out.look(Look::Green, "In force"), safe(&answer.version, 64)))?;
    if same {
        out.line("  it was in force already")?;
    } else if !answer.previous_version.is_empty() {
        out.line(format!("  before:  {}", safe(&answer.previous_version, 64)))?;
    }
    if answer.sensors.is_empty() {
        out.line("  no sensor is connected; each takes the version when it connects")?;
    }
    for sensor in &answer.sensors {
        let host = safe(&sensor.host, 80);
        if !sensor.error.is_empty() {
            let why = safe(&sensor.error, 300);
            out.line(format!("  {}", out.look(Look::Red, &format!("{host}: NOT in force: {why}"))))?;
        } else if sensor.version == answer.version {
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

async fn show(context: &Context, version: String, extract: Option<&Path>) -> Result<(), Failure> {
    let (mut console, _) = context.console().await?;
    let policy = console
        .current_policy(CurrentPolicyRequest { version })
        .await
        .map_err(|status| Failure::from_status("asking for the policy", &status))?
        .into_inner();
    let bundle = Bundle::from_archive(&policy.archive)
        .map_err(|err| Failure::failed("the gateway sent a bundle that cannot be read").because(&err))?;
    // The version is the content's hash: what is shown is what is in force, or this fails.
    if bundle.version() != policy.version {
        return Err(Failure::failed("the gateway sent a bundle that does not have the version it says")
            .why(format!("said {}, content is {}", safe(&policy.version, 64), bundle.version())));
    }
    if let Some(dir) = extract {
        write_files(&bundle, dir)?;
    }
    let out = context.out;
    if out.json {
        let files: Vec<&str> = bundle.paths().collect();
        out.json(&json!({
            "version": policy.version,
            "commit": policy.commit,
            "author": policy.author,
            "pushed_at_ms": policy.pushed_at_ms,
            "files": files,
        }))?;
        return Ok(());
    }
    let or_none = |text: &str| if text.is_empty() { "–".to_owned() } else { safe(text, 200) };
    out.line(format!("version: {}", policy.version))?;
    out.line(format!("commit:  {}", or_none(&policy.commit)))?;
    out.line(format!("author:  {}", or_none(&policy.author)))?;
    out.line(format!("pushed:  {}", clock::minute_ms(policy.pushed_at_ms)))?;
    match extract {
        Some(dir) => out.line(format!("Wrote {} files into {}.", bundle.paths().count(), dir.display()))?,
        None => {
            for path in bundle.paths() {
                out.line(format!("\n{}", out.look(Look::Bold, &format!("── {}", safe(path, 200)))))?;
                let content = String::from_utf8_lossy(bundle.file(path).unwrap_or_default());
                out.lines(content.lines().map(|line| safe(line, 2000)))?;
            }
        }
    }
    Ok(())
}

/// Only into a folder that is empty: nothing is overwritten.
fn write_files(bundle: &Bundle, dir: &Path) -> Result<(), Failure> {
    let cannot =
        |err: std::io::Error| Failure::failed(format!("cannot write into `{}`", dir.display())).because(&err);
    fs::create_dir_all(dir).map_err(cannot)?;
    if fs::read_dir(dir).map_err(cannot)?.next().is_some() {
        return Err(Failure::usage(format!("`{}` is not empty", dir.display())));
    }
    for path in bundle.paths() {
        // `from_archive` refuses such paths; a server must not choose where files go even if that fails.
        let plain = Path::new(path).components().all(|part| matches!(part, std::path::Component::Normal(_)));
        if !plain {
            return Err(Failure::failed(format!(
                "the bundle has a file outside of itself: `{}`",
                safe(path, 200)
            )));
        }
        let target = dir.join(path);
        if let Some(parent) = target.parent() {
            fs::create_dir_all(parent).map_err(cannot)?;
        }
        fs::write(&target, bundle.file(path).unwrap_or_default()).map_err(cannot)?;
    }
    Ok(())
}
