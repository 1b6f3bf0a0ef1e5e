//! `policy test`: the bundle's own cases, and what they cover.

use std::fs;

use sallyport_policy::{Condition, TestReport};
use serde_json::json;

use super::{junit, load};
use crate::{
    args::Test,
    failure::Failure,
    gateway::Context,
    out::Look,
    text::{safe, safe_lines},
};

pub(super) fn test(context: &Context, args: &Test) -> Result<(), Failure> {
    let (bundle, policy) = load(context, &args.dir)?;
    let report = policy.run_tests(&bundle);
    if let Some(file) = &args.junit {
        fs::write(file, junit::document(policy.name(), &report)).map_err(|err| {
            Failure::failed(format!("cannot write the results into `{}`", file.display())).because(&err)
        })?;
    }
    let passed = report.passed() && (report.uncovered.is_empty() || !args.deny_untested);
    if context.out.json {
        context.out.json(&json!({
            "passed": passed,
            "version": policy.version(),
            "cases": report.cases,
            "failures": report.failures,
            "uncovered": report.uncovered,
            "rules": policy.rules().count(),
            "conditions": report.conditions,
        }))?;
    } else {
        print_tests(context, &report, args.coverage)?;
    }
    if passed { Ok(()) } else { Err(Failure::said()) }
}

/// Failures, rules without a case, and, if wanted, conditions that were not seen both ways; then the sum.
pub(super) fn print_tests(context: &Context, report: &TestReport, coverage: bool) -> Result<(), Failure> {
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
    let covered = report.conditions.iter().filter(|condition| condition.covered()).count();
    if coverage {
        for condition in report.conditions.iter().filter(|condition| !condition.covered()) {
            let Condition { rule, file, line, column, clause, .. } = condition;
            let place = format!("{}:{line}:{column}", safe(file, 200));
            let what = condition.missing();
            out.line(format!(
                "{place}: {}: the `{clause}` of rule \"{}\"",
                out.look(Look::Yellow, what),
                safe(rule, 100)
            ))?;
        }
    }
    let failed = report.failures.len();
    if !report.passed() {
        let sum = format!("{failed} of {} cases failed.", report.cases);
        out.line(out.look(Look::Red, &sum))?;
        return Err(Failure::said());
    }
    if report.cases == 0 {
        out.line("No case: put questions with their expected answers into tests/*.toml.")?;
        return Ok(());
    }
    out.line(format!(
        "{}: {} cases, each asked of Cedar and of the kernel's tables",
        out.look(Look::Green, "Passed"),
        report.cases
    ))?;
    let all = report.conditions.len();
    if all > 0 {
        let hint = if coverage || covered == all { "" } else { "; --coverage lists the others" };
        out.line(format!("Conditions seen both true and false: {covered} of {all}{hint}."))?;
    }
    Ok(())
}
