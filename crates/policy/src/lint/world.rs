//! Everybody at once: formulas about person, host and local user, for rules that are looked at by themselves.
//!
//! What a rule says of the host is tabulated over classes of hosts that no rule tells apart: the listed ones, one that is
//! not listed, and one in each host group that has none yet. Groups, users and texts stay conditions. What fits none
//! of this is [`Known::Free`]: both true and false are thought possible, so that a finding is never based on it.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use cedar_policy::pst::{self, BinaryOp, Expr, Literal, Var};
use cedar_policy::{
    Context, Entities, Entity, EntityUid, EvalResult, Expression, Request, RestrictedExpression,
};

use crate::entities::uid;
use crate::expr::parts;
use crate::formula::{Atom, Atoms, Formula, Known, KnownText, Pattern, Piece, and, choose, not};
use crate::load::Inner;
use crate::residual::{Action, Unknown, pieces};

/// Most classes of hosts that are told apart.
const MAX_CLASSES: usize = 512;
/// Name of the person and of hosts that nobody can have: no name holds a zero byte.
const NOBODY: &str = "\0";

/// The classes for which an expression is true, and those for which it fails.
type Table = (BTreeSet<u32>, BTreeSet<u32>);

/// What there is besides the rules.
pub(crate) struct World {
    entities: Entities,
    /// One host of each class; the first is not listed anywhere. Empty: there are too many.
    hosts: Vec<EntityUid>,
    /// Group by group: those that it lies in, itself included.
    above: BTreeMap<String, BTreeSet<String>>,
    /// Expressions over the host alone, by action's kind and text: where true, where an error.
    tables: RefCell<HashMap<String, Table>>,
}

impl World {
    pub(crate) fn new(inner: &Inner) -> Self {
        let known = &inner.known;
        let literal: HashSet<String> =
            inner.rules.values().flat_map(|rule| named_hosts(&rule.body)).collect();
        let mut hosts = vec![uid("Host", NOBODY)];
        let mut added: Vec<Entity> = vec![Entity::new_no_attrs(hosts[0].clone(), HashSet::new())];
        let mut seen = HashSet::new();
        let mut inhabited: HashSet<EntityUid> = HashSet::new();
        let mut groups = Vec::new();
        for entity in known.entities.iter() {
            match entity.uid().type_name().to_string().as_str() {
                "Host" => {
                    let (_, _, parents) = entity.clone().into_inner();
                    for parent in &parents {
                        inhabited.insert(parent.clone());
                        inhabited.extend(known.entities.ancestors(parent).into_iter().flatten().cloned());
                    }
                    let parents: BTreeSet<EntityUid> = parents.into_iter().collect();
                    let tags: BTreeSet<String> = entity
                        .tags()
                        .map(|(name, value)| {
                            let value = value.map(|value| value.to_string()).unwrap_or_default();
                            format!("{name}\0{value}")
                        })
                        .collect();
                    let own = literal.contains(entity.uid().id().unescaped()).then(|| entity.uid());
                    if seen.insert((parents, tags, own)) {
                        hosts.push(entity.uid());
                    }
                }
                "HostGroup" => groups.push(entity.uid()),
                _ => {}
            }
        }
        for group in groups.into_iter().filter(|group| !inhabited.contains(group)) {
            let host = uid("Host", &format!("{NOBODY}{}", group.id().unescaped()));
            added.push(Entity::new_no_attrs(host.clone(), HashSet::from([group])));
            hosts.push(host);
        }
        if let Some(person) = nobody() {
            added.push(person);
        }
        let entities = known.entities.clone().upsert_entities(added, None).unwrap_or_else(|_| {
            hosts.clear();
            Entities::empty()
        });
        if hosts.len() > MAX_CLASSES {
            hosts.clear();
        }
        let mut above = BTreeMap::new();
        for group in known.uids.iter().filter(|uid| uid.type_name().to_string() == "Group") {
            let mut all: BTreeSet<String> = known
                .entities
                .ancestors(group)
                .into_iter()
                .flatten()
                .map(|uid| uid.id().unescaped().to_owned())
                .collect();
            all.insert(group.id().unescaped().to_owned());
            above.insert(group.id().unescaped().to_owned(), all);
        }
        Self { entities, hosts, above, tables: RefCell::default() }
    }

    /// Numbers of the classes of resources that an action can have.
    pub(crate) fn classes(&self, action: Action) -> std::ops::Range<u32> {
        match action {
            Action::Gateway(name) if name != crate::residual::OPEN_SESSION => 0..1,
            _ => 0..self.hosts.len().max(1) as u32,
        }
    }

    /// The groups that whoever is in this group is in.
    pub(crate) fn above(&self, group: &str) -> Option<&BTreeSet<String>> {
        self.above.get(group)
    }

    /// The condition of a rule's scope, but for the action.
    pub(crate) fn scope(&self, body: &pst::Template, action: Action, atoms: &mut Atoms) -> Formula {
        let is = |kind: &pst::EntityType, name: &str| kind.to_string() == name;
        let principal = match &body.principal {
            pst::PrincipalConstraint::Any => Formula::True,
            pst::PrincipalConstraint::Eq(pst::EntityOrSlot::Entity(one)) => member(one, false, atoms),
            pst::PrincipalConstraint::In(pst::EntityOrSlot::Entity(group)) => member(group, true, atoms),
            pst::PrincipalConstraint::Is(kind) if is(kind, "User") => Formula::True,
            pst::PrincipalConstraint::IsIn(kind, pst::EntityOrSlot::Entity(group)) if is(kind, "User") => {
                member(group, true, atoms)
            }
            _ => Formula::False,
        };
        let own = if self.classes(action).len() == 1 && !action.on_host() { "Gateway" } else { "Host" };
        let resource = match &body.resource {
            pst::ResourceConstraint::Any => Formula::True,
            pst::ResourceConstraint::Is(kind) => {
                if is(kind, own) {
                    Formula::True
                } else {
                    Formula::False
                }
            }
            pst::ResourceConstraint::Eq(pst::EntityOrSlot::Entity(one)) => {
                self.on_resource(&format!("resource == {}", written(one)), action, atoms)
            }
            pst::ResourceConstraint::In(pst::EntityOrSlot::Entity(group)) => {
                self.on_resource(&format!("resource in {}", written(group)), action, atoms)
            }
            pst::ResourceConstraint::IsIn(kind, pst::EntityOrSlot::Entity(group)) if is(kind, own) => {
                self.on_resource(&format!("resource in {}", written(group)), action, atoms)
            }
            _ => Formula::False,
        };
        and(principal, resource)
    }

    /// An expression over the resource alone, evaluated by Cedar for each class.
    fn on_resource(&self, text: &str, action: Action, atoms: &mut Atoms) -> Formula {
        if self.hosts.is_empty() {
            return atoms.intern(Atom::Known(Known::Free(text.to_owned())));
        }
        let key = format!("{}{text}", if action.on_host() { "" } else { "\0" });
        let mut tables = self.tables.borrow_mut();
        let (holds, fails) = tables.entry(key).or_insert_with(|| {
            let Ok(expression) = text.parse::<Expression>() else { return Default::default() };
            let (mut holds, mut fails) = (BTreeSet::new(), BTreeSet::new());
            for class in self.classes(action) {
                let resource = if action.on_host() {
                    self.hosts[class as usize].clone()
                } else {
                    uid("Gateway", "gateway")
                };
                let request = Request::new(
                    uid("User", NOBODY),
                    uid("Action", action.name()),
                    resource,
                    Context::empty(),
                    None,
                );
                let Ok(request) = request else { continue };
                match cedar_policy::eval_expression(&request, &self.entities, &expression) {
                    Ok(EvalResult::Bool(true)) => holds.insert(class),
                    Ok(_) => false,
                    Err(_) => fails.insert(class),
                };
            }
            (holds, fails)
        });
        // Labels are given to hosts later, too.
        if holds.is_empty() && reads_labels(text) {
            return atoms.intern(Atom::Known(Known::Free(text.to_owned())));
        }
        let all = self.classes(action).len();
        let mut formula = |set: &BTreeSet<u32>| match set.len() {
            n if n == all => Formula::True,
            _ => atoms.intern(Atom::Known(Known::Hosts(set.clone()))),
        };
        let (holds, fails) = (formula(holds), formula(fails));
        choose(fails, Formula::Error, holds)
    }
}

impl Unknown for World {
    fn truth(&self, expr: &Expr, action: Action, atoms: &mut Atoms) -> Formula {
        if let Some(formula) = about_principal(expr, atoms) {
            return formula;
        }
        if let Some((text, patterns)) = about_text(expr) {
            let formula = atoms.intern(Atom::Known(Known::Text(text, patterns)));
            let negated = matches!(expr, Expr::BinaryOp { op: BinaryOp::NotEq, .. });
            return if negated { not(formula) } else { formula };
        }
        let text = expr.to_string();
        if only_resource(expr) {
            return self.on_resource(&text, action, atoms);
        }
        atoms.intern(Atom::Known(Known::Free(text)))
    }
}

fn reads_labels(text: &str) -> bool {
    text.contains("getTag") || text.contains("hasTag")
}

/// A person of whom nothing is true, so that expressions can be evaluated.
fn nobody() -> Option<Entity> {
    let empty = || RestrictedExpression::new_string(String::new());
    let attributes = ["kind", "issuer", "on_behalf_of"].map(|name| (name.to_owned(), empty()));
    Entity::new(uid("User", NOBODY), attributes.into(), HashSet::new()).ok()
}

fn written(uid: &pst::EntityUID) -> String {
    format!("{}::{}", uid.ty, pst_text(&uid.eid))
}

/// A text as Cedar writes it.
fn pst_text(text: &str) -> String {
    Expr::Literal(Literal::String(text.into())).to_string()
}

/// The person is this one, or in this group.
fn member(entity: &pst::EntityUID, inside: bool, atoms: &mut Atoms) -> Formula {
    let id = entity.eid.to_string();
    match (entity.ty.to_string().as_str(), inside) {
        ("User", _) => atoms.intern(Atom::Known(Known::User(id))),
        ("Group", true) => atoms.intern(Atom::Known(Known::Group(id))),
        _ => Formula::False,
    }
}

/// `principal == User::"…"`, `principal in Group::"…"`, `principal is User`.
fn about_principal(expr: &Expr, atoms: &mut Atoms) -> Option<Formula> {
    let principal = |expr: &Expr| matches!(expr, Expr::Var(Var::Principal));
    let entity = |expr: &Expr| match expr {
        Expr::Literal(Literal::EntityUID(uid)) => Some(uid.clone()),
        _ => None,
    };
    match expr {
        Expr::BinaryOp { op: BinaryOp::Eq, left, right } => {
            let other = if principal(left) { right } else { left };
            (principal(left) || principal(right)).then_some(())?;
            Some(member(&entity(other)?, false, atoms))
        }
        Expr::BinaryOp { op: BinaryOp::NotEq, left, right } => {
            let other = if principal(left) { right } else { left };
            (principal(left) || principal(right)).then_some(())?;
            Some(not(member(&entity(other)?, false, atoms)))
        }
        Expr::BinaryOp { op: BinaryOp::In, left, right } if principal(left) => {
            if let Expr::Set(elements) = &**right {
                let mut any = Formula::False;
                for element in elements {
                    let one = member(&entity(element)?, true, atoms);
                    any = atoms.or(any, one);
                }
                return Some(any);
            }
            Some(member(&entity(right)?, true, atoms))
        }
        Expr::Is { expr, entity_type, in_expr } if principal(expr) => {
            if entity_type.to_string() != "User" {
                return Some(Formula::False);
            }
            match in_expr {
                None => Some(Formula::True),
                Some(group) => Some(member(&entity(group)?, true, atoms)),
            }
        }
        _ => None,
    }
}

/// A comparison of a text that is known later with literals.
fn about_text(expr: &Expr) -> Option<(KnownText, BTreeSet<Pattern>)> {
    let text = |expr: &Expr| match expr {
        Expr::GetAttr { expr, attr } => match (&**expr, attr.as_str()) {
            (Expr::Var(Var::Context), "local_user") => Some(KnownText::LocalUser),
            (Expr::Var(Var::Principal), "kind") => Some(KnownText::Kind),
            (Expr::Var(Var::Principal), "issuer") => Some(KnownText::Issuer),
            (Expr::Var(Var::Principal), "on_behalf_of") => Some(KnownText::OnBehalfOf),
            _ => None,
        },
        _ => None,
    };
    let literal = |expr: &Expr| match expr {
        Expr::Literal(Literal::String(text)) if text.is_empty() => Some(vec![]),
        Expr::Literal(Literal::String(text)) => Some(vec![Piece::Bytes(text.as_bytes().to_vec())]),
        _ => None,
    };
    match expr {
        Expr::BinaryOp { op: BinaryOp::Eq | BinaryOp::NotEq, left, right } => {
            let (seen, other) = match (text(left), text(right)) {
                (Some(seen), _) => (seen, right),
                (_, Some(seen)) => (seen, left),
                _ => return None,
            };
            Some((seen, BTreeSet::from([literal(other)?])))
        }
        Expr::BinaryOp { op: BinaryOp::Contains, left, right } => {
            let Expr::Set(elements) = &**left else { return None };
            let patterns: Option<BTreeSet<Pattern>> =
                elements.iter().map(|element| literal(element)).collect();
            Some((text(right)?, patterns?))
        }
        Expr::Like { expr, pattern } => Some((text(expr)?, BTreeSet::from([pieces(pattern)]))),
        _ => None,
    }
}

/// Of the variables it looks at the resource alone.
fn only_resource(expr: &Expr) -> bool {
    match expr {
        Expr::Var(var) => matches!(var, Var::Resource),
        Expr::Slot(_) => false,
        other => parts(other).into_iter().all(|part| only_resource(part)),
    }
}

/// Ids of the hosts that a rule names.
fn named_hosts(body: &pst::Template) -> BTreeSet<String> {
    fn collect(expr: &Expr, into: &mut BTreeSet<String>) {
        if let Expr::Literal(Literal::EntityUID(uid)) = expr {
            into.insert(uid.eid.to_string());
        }
        for part in parts(expr) {
            collect(part, into);
        }
    }
    let mut names = BTreeSet::new();
    match &body.resource {
        pst::ResourceConstraint::Eq(pst::EntityOrSlot::Entity(one))
        | pst::ResourceConstraint::In(pst::EntityOrSlot::Entity(one)) => {
            names.insert(one.eid.to_string());
        }
        _ => {}
    }
    for clause in body.clauses() {
        let (pst::Clause::When(expr) | pst::Clause::Unless(expr)) = clause;
        collect(expr, &mut names);
    }
    names
}
