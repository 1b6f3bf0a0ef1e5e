//! Rules that never apply, and rules that others make idle, decided on their conditions for each action.
//!
//! A rule is idle if removing it would change no decision: not what is allowed, not what a violation leads to, not which
//! forbid a person is told of, not what is recorded. For the others that cover it, a few examples are looked for in which
//! it holds and they do not; when there is none left, they cover it (so the smallest set is not tried, only a small one).

use std::collections::{BTreeMap, BTreeSet};

use super::leaves::Idle;
use super::solve::{Found, Model};
use super::{Kind, Report, Sheet, View};
use crate::formula::Formula;
use crate::residual::OPEN_SESSION;
use crate::rule::Rule;

/// Most rules of an action that are compared with one another.
const MAX_RULES: usize = 1_500;
/// Most rules that may cover one together.
const MAX_TOGETHER: usize = 8;

/// What was found of one rule for one action.
enum Fate {
    Never,
    Applies,
    /// These rules together cover it.
    Idle(Vec<String>),
    /// It permits what these rules forbid.
    Shadowed(Vec<String>),
    Unknown,
}

pub(super) fn examine(report: &mut Report, own: &[&Sheet<'_>], views: &mut [View<'_>], idle: &[Idle]) {
    let mut order: Vec<&&Sheet<'_>> = own.iter().collect();
    // Of two that cover each other the later one is told of.
    order.sort_by_key(|sheet| std::cmp::Reverse((&sheet.rule.info.file, sheet.rule.info.line)));
    let mut removed: BTreeSet<&str> = BTreeSet::new();
    let mut never: BTreeSet<&str> = BTreeSet::new();
    for sheet in order {
        let rule = sheet.rule;
        let mut fates: Vec<(&str, Fate)> = Vec::new();
        for view in views.iter().filter(|view| rule.speaks_of(view.action.name())) {
            fates.push((view.action.name(), fate(view, rule, &removed)));
        }
        let unknown = fates.iter().any(|(_, fate)| matches!(fate, Fate::Unknown));
        if unknown {
            report.not_compared.insert(rule.info.id.clone());
        }
        let alive: Vec<&(&str, Fate)> =
            fates.iter().filter(|(_, fate)| !matches!(fate, Fate::Never)).collect();
        if alive.is_empty() && !fates.is_empty() {
            never.insert(&rule.info.id);
            never_applies(report, sheet, views, idle);
            continue;
        }
        let explicit = matches!(&rule.body.action, cedar_policy::pst::ActionConstraint::In(_));
        if alive.len() < fates.len() && explicit && !unknown {
            partly(report, sheet, &fates);
        }
        let by = |pick: fn(&Fate) -> Option<&Vec<String>>| {
            let lists: Option<Vec<&Vec<String>>> = alive.iter().map(|(_, fate)| pick(fate)).collect();
            lists.map(|lists| lists.into_iter().flatten().cloned().collect::<BTreeSet<String>>())
        };
        if let Some(others) = by(|fate| if let Fate::Shadowed(by) = fate { Some(by) } else { None }) {
            shadowed(report, sheet, own, &others);
            removed.insert(&rule.info.id);
        } else if let Some(others) = by(|fate| match fate {
            Fate::Idle(by) | Fate::Shadowed(by) => Some(by),
            _ => None,
        }) {
            covered(report, sheet, own, &others);
            removed.insert(&rule.info.id);
        }
    }
    for part in idle.iter().filter(|part| !never.contains(part.rule.as_str())) {
        if let Some(sheet) = own.iter().find(|sheet| sheet.rule.info.id == part.rule) {
            report.warn(sheet, part.place, Kind::NeverHolds, part.message.clone(), part.help.clone());
        }
    }
}

/// What becomes of a rule for one action, without those that were found to be idle.
fn fate(view: &View<'_>, rule: &Rule, removed: &BTreeSet<&str>) -> Fate {
    let Some(mine) = view.formula(rule) else { return Fate::Unknown };
    let solve = |demands| view.solver.together(&view.atoms, demands);
    let example = match solve(vec![(mine.clone(), true)]) {
        Found::Never => return Fate::Never,
        Found::Unknown => return Fate::Unknown,
        Found::Sometimes(example) => example,
    };
    if view.rules.len() > MAX_RULES {
        return Fate::Unknown;
    }
    let others = |wanted: &dyn Fn(&Rule) -> bool| {
        let list: Vec<(&str, &Formula)> = view
            .rules
            .iter()
            .filter(|other| other.rule.info.id != rule.info.id && wanted(other.rule))
            .filter(|other| !removed.contains(other.rule.info.id.as_str()))
            .filter_map(|other| Some((other.rule.info.id.as_str(), other.formula.as_ref()?)))
            .collect();
        list
    };
    let open_session = view.action.name() == OPEN_SESSION;
    let mut unknown = false;
    if !rule.forbids {
        let forbids = others(&|other| other.forbids && !other.monitored);
        match cover(view, mine, &example, &forbids) {
            Some(Some(by)) => return Fate::Shadowed(by),
            Some(None) => {}
            None => unknown = true,
        }
    }
    let stronger = others(&|other| makes_idle(other, rule, open_session));
    match cover(view, mine, &example, &stronger) {
        Some(Some(by)) => Fate::Idle(by),
        Some(None) if !unknown => Fate::Applies,
        _ => Fate::Unknown,
    }
}

/// Whether `other`, where both hold, leaves nothing for `rule` to decide.
fn makes_idle(other: &Rule, rule: &Rule, open_session: bool) -> bool {
    if other.forbids != rule.forbids {
        return false;
    }
    if !rule.forbids {
        let recorded = !other.quiet || rule.quiet;
        let limited = !open_session
            || match (other.session_limit, rule.session_limit) {
                (_, None) => true,
                (None, Some(_)) => false,
                (Some(other), Some(own)) => other <= own,
            };
        return recorded && limited;
    }
    if other.monitored != rule.monitored {
        return rule.monitored;
    }
    let same_words = other.info.reason == rule.info.reason && other.info.contact == rule.info.contact;
    other.info.on_violation >= rule.info.on_violation
        && (same_words || other.precedence() < rule.precedence())
}

/// Rules that cover a condition together. None: too much work. Some(None): they do not.
fn cover(
    view: &View<'_>,
    mine: &Formula,
    example: &Model,
    others: &[(&str, &Formula)],
) -> Option<Option<Vec<String>>> {
    let holding = |example: &Model| -> Vec<usize> {
        (0..others.len()).filter(|at| example.holds(&view.atoms, others[*at].1)).collect()
    };
    let first = holding(example);
    if first.is_empty() {
        return Some(None);
    }
    let without = |these: &[usize]| {
        let mut demands = vec![(mine.clone(), true)];
        demands.extend(these.iter().map(|at| (others[*at].1.clone(), false)));
        view.solver.together(&view.atoms, demands)
    };
    let names = |these: &[usize]| these.iter().map(|at| others[*at].0.to_owned()).collect();
    let mut unknown = false;
    for at in first.iter().take(MAX_TOGETHER) {
        match without(&[*at]) {
            Found::Never => return Some(Some(names(&[*at]))),
            Found::Unknown => unknown = true,
            Found::Sometimes(_) => {}
        }
    }
    let mut together = vec![first[0]];
    while together.len() < MAX_TOGETHER {
        match without(&together) {
            Found::Never => return Some(Some(names(&together))),
            Found::Unknown => return None,
            Found::Sometimes(example) => {
                let more = holding(&example).into_iter().find(|at| !together.contains(at));
                match more {
                    Some(at) => together.push(at),
                    None => return if unknown { None } else { Some(None) },
                }
            }
        }
    }
    None
}

fn never_applies(report: &mut Report, sheet: &Sheet<'_>, views: &mut [View<'_>], idle: &[Idle]) {
    let id = &sheet.rule.info.id;
    let kind = Kind::NeverApplies;
    let does = if sheet.rule.forbids { "it forbids nothing" } else { "it permits nothing" };
    let mut parts: Vec<&Idle> = idle.iter().filter(|part| part.rule == *id).collect();
    parts.sort_by_key(|part| !part.wanted);
    if let Some(part) = parts.first() {
        let message = format!("rule `{id}` never applies, {does}: {}", part.message);
        report.error(sheet, part.place, kind, message, part.help.clone());
        return;
    }
    // Is it the condition by itself?
    let mut alone = true;
    for view in views.iter_mut().filter(|view| sheet.rule.speaks_of(view.action.name())) {
        let (action, world) = (view.action, view.world);
        let condition = crate::residual::open_condition(&sheet.rule.body, action, &mut view.atoms, world);
        let possible = condition.is_ok_and(|formula| {
            !matches!(view.solver.together(&view.atoms, vec![(formula, true)]), Found::Never)
        });
        alone &= !possible;
    }
    if alone {
        let message = format!("rule `{id}` never applies, {does}: its condition contradicts itself");
        let help = "parts joined by `&&` exclude each other (and what `unless` takes away); join alternatives by `||`";
        report.error(sheet, sheet.clause(0), kind, message, help);
    } else {
        let message =
            format!("rule `{id}` never applies, {does}: no question fits both its scope and its condition");
        let help = "compare person, action and host of the scope with what the condition asks for";
        report.error(sheet, sheet.parts.effect, kind, message, help);
    }
}

/// Some of the listed actions can never be meant.
fn partly(report: &mut Report, sheet: &Sheet<'_>, fates: &[(&str, Fate)]) {
    for (action, _) in fates.iter().filter(|(_, fate)| matches!(fate, Fate::Never)) {
        let written = format!("Action::\"{action}\"");
        let place = sheet
            .chunk
            .text
            .find(&written)
            .map_or(sheet.parts.effect, |at| (sheet.chunk.offset + at, written.len()));
        let message =
            format!("rule `{}` never applies to `{action}`: its condition excludes that", sheet.rule.info.id);
        report.warn(
            sheet,
            place,
            Kind::NeverForAction,
            message,
            "remove the action, or make a rule of its own for it",
        );
    }
}

fn list(own: &[&Sheet<'_>], others: &BTreeSet<String>) -> String {
    let place = |id: &String| {
        let found = own.iter().find(|sheet| sheet.rule.info.id == *id);
        found.map_or(format!("`{id}`"), |sheet| format!("`{id}` ({}:{})", sheet.file, sheet.rule.info.line))
    };
    let places: BTreeMap<&String, String> = others.iter().map(|id| (id, place(id))).collect();
    let places: Vec<String> = places.into_values().collect();
    if let [one] = places.as_slice() { one.clone() } else { format!("{} together", places.join(", ")) }
}

fn covered(report: &mut Report, sheet: &Sheet<'_>, own: &[&Sheet<'_>], others: &BTreeSet<String>) {
    let (id, others) = (&sheet.rule.info.id, list(own, others));
    let (does, kind) =
        if sheet.rule.forbids { ("forbids", Kind::IdleForbid) } else { ("permits", Kind::IdlePermit) };
    let message = format!("rule `{id}` changes nothing: all that it {does} is decided by {others}");
    let help = "remove it, or narrow the other rule";
    report.warn(sheet, sheet.parts.effect, kind, message, help);
}

fn shadowed(report: &mut Report, sheet: &Sheet<'_>, own: &[&Sheet<'_>], others: &BTreeSet<String>) {
    let (id, others) = (&sheet.rule.info.id, list(own, others));
    let message = format!(
        "rule `{id}` permits nothing: all of it is forbidden by {others}, and a forbid beats a permit"
    );
    let help = "remove it, or make an exception in the forbid with `unless`";
    report.warn(sheet, sheet.parts.effect, Kind::ShadowedPermit, message, help);
}
