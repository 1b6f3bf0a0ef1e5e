//! `policy diff`: what two policies treat differently, not how they are written.

use std::collections::BTreeSet;

use sallyport_policy::{Becomes, Diff, Difference, Effect, Scope};
use serde_json::json;

use super::source;
use crate::{
    args::Diff as Args,
    failure::Failure,
    gateway::Context,
    out::{Look, Out},
    text::safe,
};

pub(super) async fn diff(context: &Context, args: Args) -> Result<(), Failure> {
    let (before, after) = match (args.policies.as_slice(), args.in_force) {
        ([after], true) => (source::at_gateway(context, "").await?, source::named(context, after).await?),
        ([before, after], false) => {
            (source::named(context, before).await?, source::named(context, after).await?)
        }
        (_, true) => return Err(Failure::usage("with `--in-force`, name one policy: what would come after")),
        (_, false) => {
            return Err(Failure::usage("name two policies")
                .next("or one, and `--in-force` for what it is compared with"));
        }
    };
    let scope = Scope {
        people: args.who.principal().into_iter().collect(),
        hosts: args.hosts,
        local_users: args.local_users,
    };
    let diff = Diff::new(&before, &after, &scope)
        .map_err(|err| Failure::failed("the policies cannot be compared").because(&err))?;
    let out = context.out;
    if out.json {
        let all: Vec<serde_json::Value> = diff.differences.iter().map(document).collect();
        out.json(&json!({
            "before": before.version(),
            "after": after.version(),
            "same": diff.is_empty(),
            "differences": all,
            "situations": diff.situations,
            "distinct": diff.distinct,
            "left_out": diff.left_out,
        }))?;
    } else {
        print(out, &diff)?;
    }
    if args.exit_code && !diff.is_empty() { Err(Failure::said()) } else { Ok(()) }
}

fn document(difference: &Difference) -> serde_json::Value {
    let example = difference.example.as_ref().map(|question| {
        json!({
            "text": question.to_string(),
            "principal": question.principal(),
            "host": question.host(),
            "local_user": question.local_user(),
        })
    });
    json!({
        "change": difference.change,
        "action": difference.action,
        "before": difference.before,
        "after": difference.after,
        "classes": difference.classes,
        "example": example,
        "concerns": difference.concerns,
    })
}

fn print(out: Out, diff: &Diff) -> Result<(), Failure> {
    let told = diff.differences.iter().filter(|difference| difference.example.is_some());
    for difference in told.clone() {
        let look = match difference.change {
            Becomes::Allowed => Look::Green,
            Becomes::Forbidden => Look::Red,
            _ => Look::Yellow,
        };
        let head = out.look(look, &format!("{} {}", difference.action, difference.change.name()));
        let size = match difference.classes {
            1 => String::new(),
            n => format!("  ({n} combinations of what rules tell apart)"),
        };
        out.line(format!("{head}{size}"))?;
        out.line(format!("  before:  {}", effect(&difference.before)))?;
        out.line(format!("  after:   {}", effect(&difference.after)))?;
        if let Some(question) = &difference.example {
            out.line(format!("  example: {}", safe(&question.to_string(), 500)))?;
        }
        out.line(format!("  whom:    {}", whom(difference)))?;
    }
    let count = told.count();
    if count == 0 {
        out.line(format!("{}.", out.look(Look::Green, "No difference in meaning")))?;
    } else {
        let plural = if count == 1 { "difference" } else { "differences" };
        out.line(format!(
            "\n{count} {plural} in meaning; each example was asked of Cedar's authorizer under both."
        ))?;
    }
    let note = format!(
        "Compared for {} combinations of person, host and local user, {} of them different.",
        diff.situations, diff.distinct
    );
    out.line(out.look(Look::Dim, &note))?;
    if diff.left_out > 0 {
        out.line(out.look(
            Look::Yellow,
            &format!(
                "{} combinations were left out: narrow it down with --user, --group, --host, --as.",
                diff.left_out
            ),
        ))?;
    }
    Ok(())
}

fn effect(effect: &Effect) -> String {
    let limit = match effect.session_limit {
        Some(seconds) => format!(", for {}", crate::clock::span(std::time::Duration::from_secs(seconds))),
        None => String::new(),
    };
    format!("{}{limit} by \"{}\"", effect.verdict.name(), safe(&effect.rule, 100))
}

/// Whom it concerns: people, then hosts, then local users.
fn whom(difference: &Difference) -> String {
    let list = |each: fn(&sallyport_policy::Concern) -> &str| {
        let all: BTreeSet<&str> =
            difference.concerns.iter().map(each).filter(|text| !text.is_empty()).collect();
        let shown: Vec<String> = all.iter().take(4).map(|text| safe(text, 120)).collect();
        match all.len() {
            0 => String::new(),
            n @ 0..=4 => shown[..n].join("; "),
            n => format!("{}; and {} more", shown.join("; "), n - 4),
        }
    };
    let (people, hosts) = (list(|concern| &concern.person), list(|concern| &concern.host));
    if hosts.is_empty() {
        return people;
    }
    format!("{people}, on {hosts}, as {}", list(|concern| &concern.local_user))
}
