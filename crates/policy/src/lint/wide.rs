//! Rules so wide that they are probably mistakes.

use std::collections::BTreeSet;

use super::solve::{Found, Model};
use super::{Kind, Report, Sheet, View};
use crate::formula::{Atom, Formula, Known, KnownText, Pattern, Piece, Text};
use crate::residual::{Action, OPEN_SESSION};

/// Folders that people write to; copies of any program can be put there.
pub(super) const WRITABLE: [&str; 5] = ["/home/", "/tmp/", "/var/tmp/", "/dev/shm/", "/run/user/"];

pub(super) fn examine(report: &mut Report, own: &[&Sheet<'_>], views: &mut [View<'_>]) {
    for sheet in own {
        if sheet.rule.forbids {
            locked_out(report, sheet, views);
            continue;
        }
        // That is told by itself.
        let by_name = super::literals::by_name(sheet).is_some();
        let mut wide: Vec<(&'static str, String)> = Vec::new();
        for view in views.iter_mut().filter(|view| sheet.rule.speaks_of(view.action.name())) {
            if by_name && view.action == Action::Exec {
                continue;
            }
            if let Some(what) = permits(view, sheet) {
                wide.push((view.action.name(), what));
            }
        }
        if sheet.rule.wide {
            if wide.is_empty() {
                let message = "`@wide` is not needed: the permit is not as wide as that";
                let help = "remove the annotation, so that it does not hide a later mistake";
                report.warn(sheet, sheet.annotation("wide"), Kind::NeedlessWide, message, help);
            }
            continue;
        }
        if let Some((_, first)) = wide.first() {
            let id = &sheet.rule.info.id;
            let everything = sheet.rule.body.clauses().is_empty()
                && matches!(sheet.rule.body.action, cedar_policy::pst::ActionConstraint::Any);
            let what = if everything { "every action".to_owned() } else { first.clone() };
            let more = match wide.len() - 1 {
                0 => String::new(),
                _ if everything => String::new(),
                n => format!(" (and {n} more)"),
            };
            let message = format!("rule `{id}` permits {what}{more}; that is probably more than is meant");
            let help = "narrow it by group, host group, folder, address or operation; if it is meant, say why: \
                        `@wide(\"…\")`";
            report.warn(sheet, sheet.parts.effect, Kind::WidePermit, message, help);
        }
    }
}

/// What a permit permits for an action that is probably too much.
fn permits(view: &mut View<'_>, sheet: &Sheet<'_>) -> Option<String> {
    let formula = view.formula(sheet.rule)?.clone();
    match view.action {
        Action::Gateway(name) => {
            let anyone = formula.assign(&|id| anyone(view.atoms.atom(id)));
            let holds =
                matches!(view.solver.together(&view.atoms, vec![(anyone, true)]), Found::Sometimes(_));
            holds.then(|| match name {
                OPEN_SESSION => "sessions to everybody on every host, in whatever group they are".to_owned(),
                name => format!("`{name}` to everybody, in whatever group they are"),
            })
        }
        Action::Exec => every_path(view, &formula, &|_| false)
            .then(|| "any program, also one that the person brought along".to_owned())
            .or_else(|| brought(view, &formula, "programs")),
        Action::File(op) => match sallyport_sensor_abi::policy::file_op::NAMES[op as usize] {
            "map_code" => every_path(view, &formula, &|_| false)
                .then(|| "code from any file, so any program through the loader".to_owned())
                .or_else(|| brought(view, &formula, "code")),
            "connect_unix" => every_path(view, &formula, &|_| false)
                .then(|| "every Unix socket, those of service managers and container engines too".to_owned()),
            _ => None,
        },
        Action::System => {
            let about = |atom: &Atom| matches!(atom, Atom::Operation(_));
            every(view, &formula, &about, None)
                .then(|| "every operation, modules, mounts and tracing too".to_owned())
        }
        Action::Connect | Action::Listen => {
            let about = |atom: &Atom| matches!(atom, Atom::Address(_) | Atom::Port(_));
            let wide = [6, 17].into_iter().any(|protocol| every(view, &formula, &about, Some(protocol)));
            wide.then(|| {
                if view.action == Action::Connect {
                    "connections to every address and port".to_owned()
                } else {
                    "listening on every address and port".to_owned()
                }
            })
        }
    }
}

/// The values for a person of whom nothing is known on a host that is not listed.
fn anyone(atom: &Atom) -> Option<bool> {
    match atom {
        Atom::Known(Known::Group(_) | Known::User(_) | Known::Free(_)) => Some(false),
        Atom::Known(Known::Hosts(classes)) => Some(classes.contains(&0)),
        Atom::Known(Known::Text(KnownText::Issuer | KnownText::OnBehalfOf, _)) => Some(false),
        Atom::Known(Known::Text(KnownText::Kind, patterns)) => {
            Some(patterns.iter().any(|pattern| crate::residual::matches(b"human", pattern)))
        }
        _ => None,
    }
}

fn every_path(view: &View<'_>, formula: &Formula, also: &dyn Fn(&Atom) -> bool) -> bool {
    every(view, formula, &|atom| matches!(atom, Atom::File(_)) || also(atom), None)
}

/// Whether, for somebody somewhere, it holds for all values of some attributes.
fn every(view: &View<'_>, formula: &Formula, about: &dyn Fn(&Atom) -> bool, protocol: Option<u8>) -> bool {
    let formula = formula.assign(&|id| match &**view.atoms.atom(id) {
        Atom::Protocol(all) => protocol.map(|protocol| all.contains(&protocol)),
        Atom::Fileless | Atom::Outside | Atom::Setuid => Some(false),
        _ => None,
    });
    let Found::Sometimes(example) = view.solver.together(&view.atoms, vec![(formula.clone(), true)]) else {
        return false;
    };
    let open = formula.assign(&|id| {
        let atom = view.atoms.atom(id);
        (!about(atom)).then(|| example.holds(&view.atoms, &Formula::Atom(id)))
    });
    view.solver.always(&view.atoms, &open)
}

/// A permit of programs in folders that people write to.
fn brought(view: &mut View<'_>, formula: &Formula, what: &str) -> Option<String> {
    let path = example_path(view, formula)?;
    let shown = crate::diagnostic::printable(&String::from_utf8_lossy(&path));
    Some(format!("{what} in folders that people write to, like `{shown}`"))
}

/// A path in a folder that people write to for which a formula holds.
pub(super) fn example(view: &mut View<'_>, formula: &Formula) -> Option<Model> {
    let tests: BTreeSet<(Text, Pattern)> = WRITABLE
        .iter()
        .map(|folder| (Text::Path, vec![Piece::Bytes(folder.as_bytes().to_vec()), Piece::Any]))
        .collect();
    let writable = view.atoms.intern(Atom::File(tests));
    match view.solver.together(&view.atoms, vec![(formula.clone(), true), (writable, true)]) {
        Found::Sometimes(model) => Some(*model),
        _ => None,
    }
}

fn example_path(view: &mut View<'_>, formula: &Formula) -> Option<Vec<u8>> {
    example(view, formula)?.path().map(<[u8]>::to_vec)
}

/// A forbid of everything that somebody needs to get in, or to take the forbid back.
fn locked_out(report: &mut Report, sheet: &Sheet<'_>, views: &[View<'_>]) {
    if sheet.rule.monitored {
        return;
    }
    let mut closed = Vec::new();
    for view in views.iter().filter(|view| sheet.rule.speaks_of(view.action.name())) {
        if !matches!(view.action.name(), OPEN_SESSION | "push_policy" | "exec") {
            continue;
        }
        if view.formula(sheet.rule).is_some_and(|formula| view.solver.always(&view.atoms, formula)) {
            closed.push(view.action.name());
        }
    }
    if !closed.is_empty() {
        let message = format!(
            "rule `{}` forbids {} to everybody, everywhere",
            sheet.rule.info.id,
            closed.iter().map(|action| format!("`{action}`")).collect::<Vec<_>>().join(", ")
        );
        let help =
            "give it a condition, a group or a host group; no permit can make an exception from a forbid";
        report.warn(sheet, sheet.parts.effect, Kind::ForbidsEverything, message, help);
    }
}
