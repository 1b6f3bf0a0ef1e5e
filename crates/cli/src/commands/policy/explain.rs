//! `policy explain`: may this person do this there, and why (not).

use std::path::Path;

use sallyport_policy::{Details, Examined, Explanation, Policy, Question, RuleInfo, Verdict};
use serde_json::json;

use super::{load, source};
use crate::{
    args::Explain,
    failure::Failure,
    gateway::Context,
    out::{Look, Out},
    text::safe,
};

pub(super) async fn explain(context: &Context, args: Explain) -> Result<(), Failure> {
    let (dir, words) = match args.words.split_first() {
        Some((first, rest)) if !Question::is_action(first) && Path::new(first).is_dir() => {
            (first.as_str(), rest)
        }
        _ => (".", args.words.as_slice()),
    };
    let principal = args.who.principal().ok_or_else(|| {
        Failure::usage("nobody is named")
            .next("say who acts with `--user NAME`, and their groups with `--group NAME`")
    })?;
    let details = Details {
        caller: Some(args.caller),
        fileless: args.fileless,
        setuid: args.setuid,
        outside: args.outside,
        client: args.client,
        args: args.args,
    };
    let question =
        Question::asked(principal, &args.host, &args.local_user, words, details).map_err(|why| {
            Failure::usage(safe(&why, 600)).next("`sallyport policy explain --help` shows the forms")
        })?;
    let policy = if args.in_force || args.version.is_some() {
        source::at_gateway(context, args.version.as_deref().unwrap_or_default()).await?
    } else {
        load(context, Path::new(dir))?.1
    };
    let explanation = policy.explain(&question);
    if context.out.json {
        document(context.out, &policy, &question, &explanation)?;
    } else {
        print(context.out, &policy, &question, &explanation)?;
    }
    if explanation.answer.allowed { Ok(()) } else { Err(Failure::said()) }
}

fn document(out: Out, policy: &Policy, question: &Question, found: &Explanation) -> Result<(), Failure> {
    let principal = question.principal();
    out.json(&json!({
        "version": policy.version(),
        "question": {
            "principal": principal,
            "action": question.action(),
            "host": question.host(),
            "local_user": question.local_user(),
            "text": question.to_string(),
        },
        "allowed": found.answer.allowed,
        "verdict": Verdict::of(&found.answer),
        "rule": found.answer.rule.as_ref().unwrap_or_else(|| policy.default_rule()),
        "observed": found.answer.observed,
        "recorded": !found.answer.quiet,
        "session_limit_seconds": found.answer.session_limit.map(|limit| limit.as_secs()),
        "holding": found.holding,
        "enforced": found.place,
        "to_change": found.remedy,
    }))?;
    Ok(())
}

fn print(out: Out, policy: &Policy, question: &Question, found: &Explanation) -> Result<(), Failure> {
    let answer = &found.answer;
    let verdict = Verdict::of(answer).name();
    let look = if answer.allowed { Look::Green } else { Look::Red };
    let who = &question.principal().user;
    let place = match (question.host(), question.local_user()) {
        (Some(host), Some(user)) => format!(" on {} as {}", safe(host, 100), safe(user, 60)),
        _ => " at the gateway".to_owned(),
    };
    out.line(format!(
        "{}: {}{place}: {}",
        out.look(look, verdict),
        safe(who, 100),
        safe(&question.to_string(), 400)
    ))?;
    if found.holding.iter().all(|held| held.monitored) && !answer.allowed {
        out.line("  no rule permits it (default-deny)")?;
    }
    for held in &found.holding {
        let effect = match (held.forbids, held.monitored) {
            (true, true) => "watches it",
            (true, false) => "forbids it",
            (false, _) if answer.allowed => "permits it",
            (false, _) => "would permit it",
        };
        let violation = match held.rule.on_violation.name() {
            name if held.forbids && name != "block" => format!(", on violation: {name}"),
            _ => String::new(),
        };
        out.line(format!("  {} {effect}{violation}", rule(out, &held.rule)))?;
        if !held.rule.reason.is_empty() {
            out.line(format!("      {}", safe(&held.rule.reason, 300)))?;
        }
    }
    if let Some(limit) = answer.session_limit {
        out.line(format!("  the session may last {}", crate::clock::span(limit)))?;
    }
    if answer.quiet {
        out.line("  it is not recorded")?;
    }
    if let Some(place) = &found.place {
        let (lsm, other) = (place.lsm.to_string(), place.tracepoint.to_string());
        let without = if lsm == other { String::new() } else { format!(" (without BPF LSM: {other})") };
        out.line(format!("  judged {lsm}{without}"))?;
    }
    remedy(out, found)?;
    out.line(out.look(Look::Dim, &format!("policy {}", policy.version())))?;
    Ok(())
}

fn remedy(out: Out, found: &Explanation) -> Result<(), Failure> {
    let remedy = &found.remedy;
    out.line("")?;
    if found.answer.allowed {
        if let [only] = remedy.relies_on.as_slice() {
            out.line(format!("Without {} it would be denied.", rule(out, only)))?;
        } else {
            out.line(format!(
                "{} permits hold; without all of them it would be denied.",
                remedy.relies_on.len()
            ))?;
        }
        return near(out, "The forbids that come nearest:", &remedy.near);
    }
    for forbid in &remedy.lift {
        out.line(format!("To allow it, lift {}.", rule(out, forbid)))?;
    }
    if remedy.permitted {
        return Ok(());
    }
    if remedy.near.is_empty() {
        out.line("To allow it, write a permit: no rule permits anything like it.")?;
        return Ok(());
    }
    let heading = match remedy.lift.as_slice() {
        [] => "The permits that come nearest:",
        _ => "It would need a permit, too. Those that come nearest:",
    };
    near(out, heading, &remedy.near)
}

fn near(out: Out, heading: &str, near: &[Examined]) -> Result<(), Failure> {
    if near.is_empty() {
        return Ok(());
    }
    out.line(heading)?;
    for examined in near {
        out.line(format!("  {}", rule(out, &examined.rule)))?;
        for unmet in &examined.unmet {
            out.line(format!("    not met: {}", safe(&unmet.part, 400)))?;
            out.line(format!("      since {}", safe(&unmet.because, 400)))?;
        }
    }
    Ok(())
}

/// A rule with its place.
fn rule(out: Out, rule: &RuleInfo) -> String {
    let place = out.look(Look::Dim, &format!("({}:{})", safe(&rule.file, 200), rule.line));
    format!("\"{}\" {place}", out.look(Look::Bold, &safe(&rule.id, 100)))
}
