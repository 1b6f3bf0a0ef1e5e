//! `policy check`: every fault, what is probably a mistake, and where each rule is enforced at what cost.

use sallyport_policy::{
    Bundle, Enforcement, Examination, Finding, Place, Placement, Policy, RuleInfo, Sample, Severity,
};
use serde_json::json;

use super::{load, try_out};
use crate::{
    args::Check,
    failure::Failure,
    gateway::Context,
    out::Look,
    text::{columns, safe, safe_lines},
};

pub(super) fn check(context: &Context, args: &Check) -> Result<(), Failure> {
    let (bundle, policy) = load(context, &args.dir)?;
    let sample = try_out(context, &bundle, &policy)?;
    let found = policy.lint(&bundle);
    let placement = policy.placement();
    let unenforced = placement.iter().filter(|placement| placement.unenforced()).count();
    let failed = found.errors() > 0 || unenforced > 0 || (args.deny_warnings && found.warnings() > 0);
    let out = context.out;
    if out.json {
        out.json(&json!({
            "ok": !failed,
            "version": policy.version(),
            "errors": found.errors() + unenforced,
            "warnings": found.warnings(),
            "findings": found.findings,
            "faults": [],
            "not_compared": found.not_compared,
            "placement": placement,
            "sample": sample,
        }))?;
    } else {
        if !args.quiet {
            report(context, &placement)?;
        }
        findings(context, &found)?;
        sum(context, &policy, &found, &placement, &sample, unenforced)?;
    }
    if failed { Err(Failure::said()) } else { Ok(()) }
}

/// Refuses a bundle in which something does not do what it says; how many warnings there are goes to standard error.
pub(super) fn refuse_errors(context: &Context, bundle: &Bundle, policy: &Policy) -> Result<(), Failure> {
    let found = policy.lint(bundle);
    if found.errors() > 0 {
        let errors = found.findings.iter().filter(|finding| finding.severity == Severity::Error);
        let text: Vec<String> = errors.map(ToString::to_string).collect();
        return Err(Failure::failed("the bundle has errors, so nothing was pushed")
            .why(text.join("\n"))
            .next("correct them; `sallyport policy check` shows all of them with the warnings"));
    }
    if found.warnings() > 0 && !context.out.json {
        eprintln!("sallyport: {}; `sallyport policy check` shows them", count(found.warnings(), "warning"));
    }
    Ok(())
}

fn count(n: usize, what: &str) -> String {
    if n == 1 { format!("1 {what}") } else { format!("{n} {what}s") }
}

/// Where each rule is enforced.
fn report(context: &Context, placement: &[Placement]) -> Result<(), Failure> {
    let out = context.out;
    for rule in placement {
        let RuleInfo { id, file, line, .. } = &rule.rule;
        let effect = if rule.forbids { "forbid" } else { "permit" };
        let watched =
            if rule.monitored { ", only watched: what it would deny goes on and is recorded" } else { "" };
        let head = format!("{} ({effect}{watched})", out.look(Look::Bold, &safe(id, 100)));
        out.line(format!("{head}  {}", out.look(Look::Dim, &format!("{}:{line}", safe(file, 200)))))?;
        if rule.unenforced() {
            out.line(out.look(Look::Red, "    error: nothing enforces it; correct its scope"))?;
        }
        let rows: Vec<Vec<String>> = rule.places.iter().map(|at| place(at, rule.forbids)).collect();
        out.lines(columns(&rows))?;
    }
    Ok(())
}

/// Where a rule is enforced for one action, as a row.
fn place(place: &Place, forbids: bool) -> Vec<String> {
    let how = match (place.lsm, place.tracepoint) {
        (Enforcement::Gateway, _) => Enforcement::Gateway.to_string(),
        // How a denial comes about is said of the rules that deny.
        (_, Enforcement::NotJudged) if !forbids => {
            format!("in the kernel (without BPF LSM: {})", Enforcement::NotJudged)
        }
        _ if !forbids => "in the kernel".to_owned(),
        (lsm, tracepoint) if lsm == tracepoint => lsm.to_string(),
        (lsm, tracepoint) => format!("{lsm} (without BPF LSM: {tracepoint})"),
    };
    let entries = match place.cost.entries {
        0 => String::new(),
        n => count(n, "entry").replace("entrys", "entries"),
    };
    vec![format!("    {}", place.action), entries, how]
}

/// What is probably a mistake.
fn findings(context: &Context, found: &Examination) -> Result<(), Failure> {
    let out = context.out;
    for finding in &found.findings {
        let Finding { severity, .. } = finding;
        let text = safe_lines(&finding.to_string(), 40);
        let (word, look) = match severity {
            Severity::Error => ("error", Look::Red),
            Severity::Warning => ("warning", Look::Yellow),
        };
        let tag = format!("{word} [{}]", finding.code);
        out.line(text.replacen(&tag, &out.look(look, &tag), 1))?;
        out.line("")?;
    }
    Ok(())
}

fn sum(
    context: &Context,
    policy: &Policy,
    found: &Examination,
    placement: &[Placement],
    sample: &Sample,
    unenforced: usize,
) -> Result<(), Failure> {
    let out = context.out;
    if !found.not_compared.is_empty() {
        let shown: Vec<String> = found.not_compared.iter().take(8).map(|id| safe(id, 64)).collect();
        let more = found.not_compared.len().saturating_sub(8);
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        out.line(format!(
            "Not compared with the other rules, which would take too long: {}{more}.",
            shown.join(", ")
        ))?;
    }
    let of = if sample.complete() {
        format!("all {} combinations", sample.tried)
    } else {
        format!("{} of {} combinations", sample.tried, sample.combinations)
    };
    out.line(format!(
        "Compiled for {of} of groups, hosts and local users; the largest tables take {} KiB of the kernel's memory.",
        sample.largest.div_ceil(1024)
    ))?;
    let (errors, warnings) = (found.errors() + unenforced, found.warnings());
    let verdict = match (errors, warnings) {
        (0, 0) => out.look(Look::Green, "No fault"),
        (0, n) => out.look(Look::Yellow, &format!("No fault, {}", count(n, "warning"))),
        (n, 0) => out.look(Look::Red, &count(n, "error")),
        (n, m) => out.look(Look::Red, &format!("{}, {}", count(n, "error"), count(m, "warning"))),
    };
    out.line(format!("{verdict}: {}, version {}", count(placement.len(), "rule"), policy.version()))?;
    Ok(())
}
