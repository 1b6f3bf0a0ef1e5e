//! Parts of conditions that can never hold, or always do: wrong ports, protocols, operations, paths, kinds of people.

use cedar_policy::pst::{BinaryOp, Expr, Literal, UnaryOp, Var};
use sallyport_sensor_abi::policy::operation;

use super::solve::{Found, KINDS};
use super::{Kind, Report, Sheet, View};
use crate::diagnostic::nearest;
use crate::expr::parts;
use crate::formula::Formula;

/// A part of a rule's condition that can never hold.
pub(super) struct Idle {
    pub(super) rule: String,
    pub(super) place: (usize, usize),
    pub(super) message: String,
    pub(super) help: String,
    /// The rule needs it to hold.
    pub(super) wanted: bool,
}

/// Warns of what always holds; returns what never does, which may be why a rule never applies.
pub(super) fn examine(report: &mut Report, own: &[&Sheet<'_>], views: &mut [View<'_>]) -> Vec<Idle> {
    let mut idle = Vec::new();
    for sheet in own {
        for leaf in &sheet.leaves {
            // `context has …` guards what follows where a rule is about several actions.
            if matches!(leaf.expr, Expr::Literal(_) | Expr::HasAttr { .. }) {
                continue;
            }
            let mut outcomes = Vec::new();
            for view in views.iter_mut().filter(|view| sheet.rule.speaks_of(view.action.name())) {
                outcomes.push(view.truth(leaf.expr).map_or(Outcome::Open, |formula| outcome(view, &formula)));
            }
            let place = sheet.leaf(leaf);
            if outcomes.is_empty() {
                continue;
            }
            if outcomes.iter().all(|outcome| *outcome == Outcome::Never) {
                let (message, help) = explain(leaf.expr, false);
                let rule = sheet.rule.info.id.clone();
                idle.push(Idle { rule, place, message, help, wanted: leaf.sense == Some(true) });
            } else if outcomes.iter().all(|outcome| *outcome == Outcome::Always) {
                let (message, help) = explain(leaf.expr, true);
                report.warn(sheet, place, Kind::AlwaysHolds, message, help);
            }
        }
    }
    idle
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Outcome {
    Never,
    Always,
    Open,
}

fn outcome(view: &View<'_>, formula: &Formula) -> Outcome {
    match formula {
        Formula::True => return Outcome::Always,
        Formula::False | Formula::Error => return Outcome::Never,
        _ => {}
    }
    if matches!(view.solver.together(&view.atoms, vec![(formula.clone(), true)]), Found::Never) {
        Outcome::Never
    } else if view.solver.always(&view.atoms, formula) {
        Outcome::Always
    } else {
        Outcome::Open
    }
}

/// The attribute that a part looks at.
pub(super) fn subject(expr: &Expr) -> Option<&str> {
    match expr {
        Expr::GetAttr { expr, attr } if matches!(**expr, Expr::Var(Var::Context | Var::Principal)) => {
            Some(attr)
        }
        other => parts(other).into_iter().find_map(|part| subject(part)),
    }
}

/// The texts that a part holds, in the order in which they are counted; patterns as they are written.
pub(super) fn texts(expr: &Expr) -> Vec<String> {
    let mut out = Vec::new();
    fn collect(expr: &Expr, out: &mut Vec<String>) {
        match expr {
            Expr::Literal(Literal::String(text)) => out.push(text.to_string()),
            Expr::Literal(Literal::EntityUID(uid)) => out.push(uid.eid.to_string()),
            _ => {}
        }
        for part in parts(expr) {
            collect(part, out);
        }
        if let Expr::Like { pattern, .. } = expr {
            out.push(written(pattern));
        }
    }
    collect(expr, &mut out);
    out
}

/// A pattern with `*` for what matches anything.
fn written(pattern: &[cedar_policy::pst::PatternElem]) -> String {
    use cedar_policy::pst::PatternElem;
    pattern
        .iter()
        .map(|element| match element {
            PatternElem::Wildcard => '*',
            PatternElem::Char(c) => *c,
        })
        .collect()
}

/// Why a part never holds, or always does, and what to write instead.
fn explain(expr: &Expr, always: bool) -> (String, String) {
    let mut part = expr.to_string();
    if part.chars().count() > 70 {
        part = part.chars().take(67).collect::<String>() + "…";
    }
    let head = if always { format!("`{part}` always holds") } else { format!("`{part}` can never hold") };
    let texts = texts(expr);
    let first = texts.first().map(String::as_str).unwrap_or_default();
    let did_you_mean = |known: &[&str]| {
        nearest(&first.to_lowercase(), known).map_or_else(
            || format!("it is one of \"{}\"", known.join("\", \"")),
            |one| format!("did you mean \"{one}\"?"),
        )
    };
    let empty =
        matches!(expr, Expr::BinaryOp { left, .. } if matches!(&**left, Expr::Set(all) if all.is_empty()));
    let range = parts(expr).into_iter().any(|part| {
        matches!(&**part, Expr::UnaryOp { op: UnaryOp::Ip, expr } if matches!(&**expr, Expr::Literal(Literal::String(text)) if text.contains('/')))
    });
    let equals = matches!(expr, Expr::BinaryOp { op: BinaryOp::Eq | BinaryOp::Contains, .. });
    let (why, help) = match subject(expr) {
        _ if empty => ("the set is empty", "put what is meant into the set, or remove this part".to_owned()),
        Some("port") if always => {
            ("ports are 0 to 65535", "remove this part, or correct the number".to_owned())
        }
        Some("port") => ("ports are 0 to 65535", "correct the number".to_owned()),
        Some("protocol") => (
            "no protocol is called that",
            format!(
                "{}; other protocols are written as their number, \"132\"",
                did_you_mean(&["tcp", "udp", "icmp"])
            ),
        ),
        Some("operation") => ("no operation is called that", did_you_mean(&operation::NAMES)),
        Some("kind") => ("no kind of principal is called that", did_you_mean(&KINDS)),
        Some("address" | "client_address") if equals && range => (
            "an address is never equal to a range",
            "write `context.address.isInRange(ip(\"…\"))`".to_owned(),
        ),
        Some("name") if first.contains('/') => (
            "a name is the last part of the path and holds no slash",
            "compare `context.path` with the whole path, or name the last part only".to_owned(),
        ),
        Some("path" | "caller") if !first.is_empty() && !first.starts_with(['/', '*']) => {
            ("paths begin with a slash", format!("write \"/{first}\", with all folders"))
        }
        Some("args") => ("a program always has an argument, its own name", "remove this part".to_owned()),
        _ if always => ("whatever is asked", "remove this part, or correct it".to_owned()),
        _ => ("whatever is asked", "correct it; as it is the rule is blind here".to_owned()),
    };
    (format!("{head}: {why}"), help)
}
