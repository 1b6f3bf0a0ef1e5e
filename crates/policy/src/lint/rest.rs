//! The bundle as a whole: names that nothing else knows, groups without members, sessions that cannot begin.

use std::collections::BTreeSet;

use cedar_policy::pst::{self, BinaryOp, Expr, Literal};

use super::solve::Found;
use super::{Kind, Report, View, wide};
use crate::bundle::{Bundle, ENTITIES};
use crate::diagnostic::nearest;
use crate::expr::parts;
use crate::formula::Atom;
use crate::load::Policy;
use crate::residual::{Action, OPEN_SESSION};
use crate::rule::DEFAULT_RULE;

pub(super) fn examine(report: &mut Report, policy: &Policy, bundle: &Bundle, views: &mut [View<'_>]) {
    let mut mentioned = Mentioned::default();
    for rule in policy.inner.rules.values() {
        mentioned.rule(&rule.body);
    }
    cases(report, policy, bundle, &mut mentioned);
    entities(report, policy, bundle, &mentioned);
    labels(report, policy, bundle);
    sessions(report, policy, bundle, views);
    names_that_move(report, policy, bundle, views);
}

/// What rules and cases speak of.
#[derive(Default)]
struct Mentioned {
    groups: BTreeSet<String>,
    host_groups: BTreeSet<String>,
}

impl Mentioned {
    fn rule(&mut self, body: &pst::Template) {
        match &body.principal {
            pst::PrincipalConstraint::In(pst::EntityOrSlot::Entity(uid))
            | pst::PrincipalConstraint::IsIn(_, pst::EntityOrSlot::Entity(uid)) => self.entity(uid),
            _ => {}
        }
        match &body.resource {
            pst::ResourceConstraint::In(pst::EntityOrSlot::Entity(uid))
            | pst::ResourceConstraint::IsIn(_, pst::EntityOrSlot::Entity(uid)) => self.entity(uid),
            _ => {}
        }
        for clause in body.clauses() {
            let (pst::Clause::When(expr) | pst::Clause::Unless(expr)) = clause;
            self.expr(expr);
        }
    }

    fn expr(&mut self, expr: &Expr) {
        if let Expr::Literal(Literal::EntityUID(uid)) = expr {
            self.entity(uid);
        }
        parts(expr).into_iter().for_each(|part| self.expr(part));
    }

    fn entity(&mut self, uid: &pst::EntityUID) {
        match uid.ty.to_string().as_str() {
            "Group" => self.groups.insert(uid.eid.to_string()),
            "HostGroup" => self.host_groups.insert(uid.eid.to_string()),
            _ => false,
        };
    }
}

/// Names in the bundle's cases.
fn cases(report: &mut Report, policy: &Policy, bundle: &Bundle, mentioned: &mut Mentioned) {
    let ids: Vec<&str> = policy.inner.rules.keys().map(String::as_str).chain([DEFAULT_RULE]).collect();
    let declared: Vec<&str> = of_kind(policy, "Group");
    let used: BTreeSet<&str> = mentioned.groups.iter().map(String::as_str).collect();
    let hosts: Vec<&str> = policy.inner.known.hosts.iter().map(String::as_str).collect();
    let mut in_cases = BTreeSet::new();
    for (file, content) in &bundle.files {
        if !(file.starts_with("tests/") && file.ends_with(".toml")) {
            continue;
        }
        let Ok(text) = std::str::from_utf8(content) else { continue };
        let Ok(table) = text.parse::<toml::Table>() else { continue };
        let source = (file.as_str(), text);
        let people = table.get("people").and_then(toml::Value::as_table).into_iter().flatten();
        for group in people.flat_map(|(_, person)| array(person.get("groups"))) {
            in_cases.insert(group.to_owned());
            if declared.contains(&group) || used.contains(group) {
                continue;
            }
            // A case may well ask about somebody in another group; one letter off is a slip.
            let Some(near) = nearest(group, &declared) else { continue };
            let message = format!("no rule and no entity knows the group `{group}`");
            let help = format!("did you mean \"{near}\"?");
            report.elsewhere(source, quoted(text, "groups", group), Kind::UnknownGroup, message, help);
        }
        let stand_ins = table.get("hosts").and_then(toml::Value::as_table);
        let cases = table.get("case").and_then(toml::Value::as_array).into_iter().flatten();
        for case in cases {
            for key in ["rule", "observed"] {
                let Some(id) = case.get(key).and_then(toml::Value::as_str) else { continue };
                if !ids.contains(&id) {
                    let message = format!("there is no rule `{id}`");
                    let help = nearest(id, &ids).map_or_else(
                        || "name the rule's `@id`; `default-deny` stands for no rule".to_owned(),
                        |near| format!("did you mean \"{near}\"?"),
                    );
                    report.elsewhere(source, quoted(text, key, id), Kind::UnknownRule, message, help);
                }
            }
            let Some(host) = case.get("where").and_then(toml::Value::as_str) else { continue };
            let known = hosts.contains(&host) || stand_ins.is_some_and(|all| all.contains_key(host));
            if let (false, Some(near)) = (known, nearest(host, &hosts)) {
                let message = format!("no host is called `{host}`, so it is in no host group");
                let help = format!("did you mean \"{near}\"?");
                report.elsewhere(source, quoted(text, "where", host), Kind::UnknownHost, message, help);
            }
        }
    }
    mentioned.groups.extend(in_cases);
}

/// Entities that nothing uses.
fn entities(report: &mut Report, policy: &Policy, bundle: &Bundle, mentioned: &Mentioned) {
    let Some(text) = bundle.file(ENTITIES).and_then(|content| std::str::from_utf8(content).ok()) else {
        return;
    };
    let known = &policy.inner.known.entities;
    let own = |id: &str| text.contains(&serde_json::Value::from(id).to_string());
    let hosts = !policy.inner.known.hosts.is_empty();
    for uid in &policy.inner.known.uids {
        let (kind, id) = (uid.type_name().to_string(), uid.id().unescaped());
        if !own(id) {
            continue;
        }
        let place = defined(text, id);
        // It counts as used if something that lies in it, or that it lies in, is.
        let near = |names: &BTreeSet<String>| {
            names.iter().any(|name| {
                let other = crate::entities::uid(&kind, name);
                other == *uid || known.is_ancestor_of(&other, uid) || known.is_ancestor_of(uid, &other)
            })
        };
        match kind.as_str() {
            "Group" if !near(&mentioned.groups) => {
                let message = format!("no rule and no case speaks of the group `{id}`");
                let help = "remove it, or write the rules for it";
                report.elsewhere((ENTITIES, text), place, Kind::UnusedGroup, message, help);
            }
            "HostGroup" if hosts => {
                let inhabited =
                    policy.inner.known.uids.iter().any(|host| {
                        host.type_name().to_string() == "Host" && known.is_ancestor_of(uid, host)
                    });
                if !inhabited {
                    let rules =
                        if near(&mentioned.host_groups) { "; rules for it apply nowhere" } else { "" };
                    let message = format!("no host is in the host group `{id}`{rules}");
                    let help = format!(
                        "give a host the parent {{\"type\": \"HostGroup\", \"id\": \"{id}\"}}, or remove the group"
                    );
                    report.elsewhere((ENTITIES, text), place, Kind::EmptyHostGroup, message, help);
                }
            }
            _ => {}
        }
    }
}

/// Labels that no host has.
fn labels(report: &mut Report, policy: &Policy, bundle: &Bundle) {
    let mut known: BTreeSet<String> = BTreeSet::new();
    for entity in policy.inner.known.entities.iter() {
        known.extend(entity.tags().map(|(name, _)| name.to_owned()));
    }
    if policy.inner.known.hosts.is_empty() {
        return;
    }
    let names: Vec<&str> = known.iter().map(String::as_str).collect();
    for sheet in super::sheets(policy, bundle) {
        for leaf in &sheet.leaves {
            let Expr::BinaryOp { op: BinaryOp::HasTag, right, .. } = leaf.expr else { continue };
            let Expr::Literal(Literal::String(label)) = &**right else { continue };
            if names.contains(&label.as_str()) {
                continue;
            }
            let message = format!("no host has the label `{label}`");
            let help = nearest(label, &names).map_or_else(
                || format!("give hosts the label in {ENTITIES}: \"tags\": {{\"{label}\": \"…\"}}"),
                |near| format!("did you mean \"{near}\"?"),
            );
            report.warn(&sheet, sheet.leaf(leaf), Kind::UnknownLabel, message, help);
        }
    }
}

/// A bundle that opens sessions must let them begin, and must let somebody replace it.
fn sessions(report: &mut Report, policy: &Policy, bundle: &Bundle, views: &mut [View<'_>]) {
    // One without hosts is made to be included.
    if policy.inner.known.hosts.is_empty() {
        return;
    }
    let sheets = super::sheets(policy, bundle);
    let Some(opens) = sheets.iter().find(|sheet| !sheet.rule.forbids && sheet.rule.speaks_of(OPEN_SESSION))
    else {
        return;
    };
    let mut possible = |name: &str, atom: Option<Atom>| {
        let Some(view) = views.iter_mut().find(|view| view.action.name() == name) else { return true };
        let demand = atom.map(|atom| view.atoms.intern(atom));
        let permits: Vec<_> = view
            .rules
            .iter()
            .filter(|ruled| !ruled.rule.forbids)
            .map(|ruled| ruled.formula.clone())
            .collect();
        permits.into_iter().any(|formula| {
            let Some(formula) = formula else { return true };
            let demands = std::iter::once(formula).chain(demand.clone()).map(|one| (one, true)).collect();
            !matches!(view.solver.together(&view.atoms, demands), Found::Never)
        })
    };
    let include =
        "include the pack that has it (`include = [\"pack:base\"]` in bundle.toml), or write a permit";
    let set_user = crate::question::Operation::from_name("set_user").map_or(0, |it| it.number() as u8);
    let begins = possible("system", Some(Atom::Operation(BTreeSet::from([set_user]))));
    let runs = possible(Action::Exec.name(), None);
    let pushes = possible("push_policy", None);
    if !begins {
        let message = "sessions are opened, but none can begin: nothing permits `system` with `set_user`, by which a session becomes its user";
        report.warn(opens, opens.parts.effect, Kind::SessionsCannotBegin, message, include);
    }
    if !runs {
        let message = "sessions are opened, but nothing can be run in them: no rule permits `exec`";
        report.warn(opens, opens.parts.effect, Kind::SessionsWithoutPrograms, message, include);
    }
    if !pushes {
        let message = "nobody may push the next version of this policy: no rule permits `push_policy`";
        let help = "permit it to a group: `permit (principal in Group::\"security\", action == Action::\"push_policy\", resource);`";
        report.warn(opens, opens.parts.effect, Kind::NobodyPushes, message, help);
    }
}

/// Forbids by name where the same program may run under another name.
fn names_that_move(report: &mut Report, policy: &Policy, bundle: &Bundle, views: &mut [View<'_>]) {
    let Some(view) = views.iter_mut().find(|view| view.action == Action::Exec) else { return };
    let permits: Vec<(String, _)> = view
        .rules
        .iter()
        // Whoever says `@wide` knows that programs can be brought along.
        .filter(|ruled| !ruled.rule.forbids && !ruled.rule.wide)
        .filter_map(|ruled| Some((ruled.rule.info.id.clone(), ruled.formula.clone()?)))
        .collect();
    let mut open = None;
    for (id, formula) in permits {
        let Some(example) = wide::example(view, &formula) else { continue };
        let forbidden = view.rules.iter().any(|ruled| {
            ruled.rule.forbids
                && !ruled.rule.monitored
                && ruled.formula.as_ref().is_some_and(|formula| example.holds(&view.atoms, formula))
        });
        if !forbidden {
            open = Some((id, example));
            break;
        }
    }
    let Some((id, example)) = open else { return };
    let path = String::from_utf8_lossy(example.path().unwrap_or(b"/tmp/x")).into_owned();
    let path = crate::diagnostic::printable(&path);
    for sheet in super::sheets(policy, bundle) {
        if !sheet.rule.forbids || !sheet.rule.speaks_of(Action::Exec.name()) {
            continue;
        }
        let by_name = sheet
            .leaves
            .iter()
            .find(|leaf| leaf.sense == Some(true) && super::leaves::subject(leaf.expr) == Some("name"));
        let by_path = sheet.leaves.iter().any(|leaf| super::leaves::subject(leaf.expr) == Some("path"));
        if let (Some(leaf), false) = (by_name, by_path) {
            let message =
                format!("a copy under another name still runs: rule `{id}` permits programs like `{path}`");
            let help =
                "permit programs of the system's folders only (`pack:base` does), or forbid by path as well";
            report.warn(&sheet, sheet.leaf(leaf), Kind::NameOnlyForbid, message, help);
        }
    }
}

fn of_kind<'a>(policy: &'a Policy, kind: &str) -> Vec<&'a str> {
    let uids = policy.inner.known.uids.iter().filter(|uid| uid.type_name().to_string() == kind);
    uids.map(|uid| uid.id().unescaped()).collect()
}

fn array(value: Option<&toml::Value>) -> impl Iterator<Item = &str> {
    value.and_then(toml::Value::as_array).into_iter().flatten().filter_map(toml::Value::as_str)
}

/// Where a value stands: in a line that begins with its key, else anywhere.
fn quoted(text: &str, key: &str, value: &str) -> (usize, usize) {
    let written = format!("\"{value}\"");
    let mut begin = 0;
    for line in text.split_inclusive('\n') {
        if let (true, Some(at)) = (line.trim_start().starts_with(key), line.find(&written)) {
            return (begin + at, written.len());
        }
        begin += line.len();
    }
    (text.find(&written).unwrap_or(0), written.len())
}

/// Where an entity is listed.
fn defined(text: &str, id: &str) -> (usize, usize) {
    let written = serde_json::Value::from(id).to_string();
    let listed = text.match_indices("\"uid\"").find_map(|(at, _)| {
        let inside = text.get(at..)?.split('}').next()?;
        inside.find(&written).map(|n| at + n)
    });
    (listed.or_else(|| text.find(&written)).unwrap_or(0), written.len())
}
