//! Which conditions a bundle's cases have seen both true and false.
//!
//! A condition is a `when` or `unless` of one of the bundle's own rules. It is asked whenever a case's person, action and
//! host fit the rule's scope; one that has only ever been true could be left out without a case noticing.

use std::collections::BTreeMap;

use cedar_policy::{EvalResult, Expression, pst};
use serde::Serialize;

use crate::bundle::Bundle;
use crate::decide::request;
use crate::load::Policy;
use crate::question::Question;

/// A condition, and what cases have seen of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Condition {
    /// Id of its rule.
    pub rule: String,
    /// File in the bundle.
    pub file: String,
    /// Line of its `when` or `unless`, from 1.
    pub line: u32,
    /// Column, from 1.
    pub column: u32,
    /// `when` or `unless`.
    pub clause: &'static str,
    /// Some case saw it true.
    pub seen_true: bool,
    /// Some case saw it false.
    pub seen_false: bool,
}

impl Condition {
    /// Seen both true and false.
    pub fn covered(&self) -> bool {
        self.seen_true && self.seen_false
    }

    /// What no case has seen, in words.
    pub fn missing(&self) -> &'static str {
        match (self.seen_true, self.seen_false) {
            (true, true) => "nothing is missing",
            (true, false) => "never seen false",
            (false, true) => "never seen true",
            (false, false) => "never asked",
        }
    }
}

/// Collects what cases see.
pub(crate) struct Watch {
    rules: BTreeMap<String, Watched>,
}

struct Watched {
    scope: Vec<Expression>,
    conditions: Vec<(Expression, Condition)>,
}

impl Watch {
    pub(crate) fn new(policy: &Policy, bundle: &Bundle) -> Self {
        let rules = crate::lint::clauses(policy, bundle).into_iter().filter_map(|(id, places)| {
            let rule = policy.inner.rules.get(&id)?;
            let conditions = rule.body.clauses().iter().zip(places).filter_map(|(clause, place)| {
                let (expr, clause) = match clause {
                    pst::Clause::When(expr) => (expr, "when"),
                    pst::Clause::Unless(expr) => (expr, "unless"),
                };
                let condition = Condition {
                    rule: id.clone(),
                    file: rule.info.file.clone(),
                    line: place.0,
                    column: place.1,
                    clause,
                    seen_true: false,
                    seen_false: false,
                };
                Some((expr.to_string().parse().ok()?, condition))
            });
            let conditions: Vec<_> = conditions.collect();
            let scope = scope(&rule.body).into_iter().filter_map(|text| text.parse().ok()).collect();
            Some((id, Watched { scope, conditions }))
        });
        Self { rules: rules.collect() }
    }

    /// Asks the conditions of every rule whose scope a question fits. `policy` may know more hosts than the bundle.
    pub(crate) fn ask(&mut self, policy: &Policy, question: &Question) {
        let Some(entities) = policy.inner.known.with(question.principal(), question.host()) else { return };
        let Some(request) = request(question) else { return };
        let eval =
            |expression: &Expression| match cedar_policy::eval_expression(&request, &entities, expression) {
                Ok(EvalResult::Bool(value)) => Some(value),
                _ => None,
            };
        for (id, watched) in &mut self.rules {
            let speaks = policy.inner.rules.get(id).is_some_and(|rule| rule.speaks_of(question.action()));
            if !speaks || !watched.scope.iter().all(|part| eval(part) == Some(true)) {
                continue;
            }
            for (expression, condition) in &mut watched.conditions {
                match eval(expression) {
                    Some(true) => condition.seen_true = true,
                    Some(false) => condition.seen_false = true,
                    None => {}
                }
            }
        }
    }

    /// By file and place.
    pub(crate) fn conditions(self) -> Vec<Condition> {
        let all = self.rules.into_values().flat_map(|watched| watched.conditions);
        let mut all: Vec<Condition> = all.map(|(_, condition)| condition).collect();
        all.sort_by(|a, b| (&a.file, a.line, a.column).cmp(&(&b.file, b.line, b.column)));
        all
    }
}

/// The scope, but for the action, as expressions.
fn scope(body: &pst::Template) -> Vec<String> {
    let written = |uid: &pst::EntityUID| {
        let id = pst::Expr::Literal(pst::Literal::String(uid.eid.clone()));
        format!("{}::{id}", uid.ty)
    };
    let principal = match &body.principal {
        pst::PrincipalConstraint::Eq(pst::EntityOrSlot::Entity(one)) => {
            format!("principal == {}", written(one))
        }
        pst::PrincipalConstraint::In(pst::EntityOrSlot::Entity(group)) => {
            format!("principal in {}", written(group))
        }
        pst::PrincipalConstraint::Is(kind) => format!("principal is {kind}"),
        pst::PrincipalConstraint::IsIn(kind, pst::EntityOrSlot::Entity(group)) => {
            format!("principal is {kind} in {}", written(group))
        }
        _ => "true".to_owned(),
    };
    let resource = match &body.resource {
        pst::ResourceConstraint::Eq(pst::EntityOrSlot::Entity(one)) => {
            format!("resource == {}", written(one))
        }
        pst::ResourceConstraint::In(pst::EntityOrSlot::Entity(group)) => {
            format!("resource in {}", written(group))
        }
        pst::ResourceConstraint::Is(kind) => format!("resource is {kind}"),
        pst::ResourceConstraint::IsIn(kind, pst::EntityOrSlot::Entity(group)) => {
            format!("resource is {kind} in {}", written(group))
        }
        _ => "true".to_owned(),
    };
    vec![principal, resource]
}
