//! `policy test`: the bundle's own cases.

use std::path::Path;

use sallyport_policy::TestReport;
use serde_json::json;

use super::load;
use crate::{
    failure::Failure,
    gateway::Context,
    out::Look,
    text::{safe, safe_lines},
};

pub(super) fn test(context: &Context, dir: &Path) -> Result<(), Failure> {
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
pub(super) fn print_tests(context: &Context, report: &TestReport) -> Result<(), Failure> {
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
