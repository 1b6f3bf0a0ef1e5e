//! `policy check`: every fault, and where each rule is enforced.

use std::path::Path;

use sallyport_policy::{Enforcement, Place, RuleInfo};
use serde_json::json;

use super::{load, try_out};
use crate::{
    failure::Failure,
    gateway::Context,
    out::Look,
    text::{columns, safe},
};

pub(super) fn check(context: &Context, dir: &Path) -> Result<(), Failure> {
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
