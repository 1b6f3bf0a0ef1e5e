//! Walking over Cedar expressions in their public form (`cedar_policy::pst`).

use std::collections::BTreeSet;
use std::sync::Arc;

use cedar_policy::pst::{Expr, Literal, Var};

/// The direct parts of an expression.
pub(crate) fn parts(expr: &Expr) -> Vec<&Arc<Expr>> {
    match expr {
        Expr::UnaryOp { expr, .. }
        | Expr::GetAttr { expr, .. }
        | Expr::HasAttr { expr, .. }
        | Expr::Like { expr, .. } => vec![expr],
        Expr::BinaryOp { left, right, .. } => vec![left, right],
        Expr::Is { expr, in_expr, .. } => std::iter::once(expr).chain(in_expr).collect(),
        Expr::IfThenElse { cond, then_expr, else_expr } => vec![cond, then_expr, else_expr],
        Expr::Set(elements) => elements.iter().collect(),
        Expr::Record(fields) => fields.values().collect(),
        _ => vec![],
    }
}

/// Collects every string literal.
pub(crate) fn strings(expr: &Expr, into: &mut BTreeSet<String>) {
    if let Expr::Literal(Literal::String(text)) = expr {
        into.insert(text.to_string());
    }
    for part in parts(expr) {
        strings(part, into);
    }
}

/// Whether an expression reads one of these attributes of the context.
pub(crate) fn reads(expr: &Expr, attributes: &[&str]) -> bool {
    match expr {
        Expr::GetAttr { expr, attr } if matches!(**expr, Expr::Var(Var::Context)) => {
            attributes.contains(&attr.as_str())
        }
        other => parts(other).into_iter().any(|part| reads(part, attributes)),
    }
}

/// A part of a condition that is true or false, and holds no smaller one.
#[derive(Clone, Debug)]
pub(crate) struct Leaf<'a> {
    pub(crate) expr: &'a Expr,
    /// Which clause it is in.
    pub(crate) clause: usize,
    /// The rule can apply because this holds (true), because it does not (false), or both.
    pub(crate) sense: Option<bool>,
    /// Numbers, in the rule's conditions, of the texts it holds.
    pub(crate) quoted: std::ops::Range<usize>,
    /// Numbers of the numbers it holds.
    pub(crate) numbers: std::ops::Range<usize>,
}

/// The leaves of a rule's conditions, in order, with the count of all quoted texts and numbers.
pub(crate) fn leaves(body: &cedar_policy::pst::Template) -> (Vec<Leaf<'_>>, usize, usize) {
    use cedar_policy::pst::Clause;
    let mut out = Vec::new();
    let mut counted = (0, 0);
    for (clause, one) in body.clauses().iter().enumerate() {
        let (expr, sense) = match one {
            Clause::When(expr) => (expr, true),
            Clause::Unless(expr) => (expr, false),
        };
        split(expr, clause, Some(sense), &mut counted, &mut out);
    }
    (out, counted.0, counted.1)
}

fn split<'a>(
    expr: &'a Expr,
    clause: usize,
    sense: Option<bool>,
    counted: &mut (usize, usize),
    out: &mut Vec<Leaf<'a>>,
) {
    use cedar_policy::pst::{BinaryOp, UnaryOp};
    match expr {
        Expr::UnaryOp { op: UnaryOp::Not, expr } => split(expr, clause, sense.map(|it| !it), counted, out),
        Expr::BinaryOp { op: BinaryOp::And | BinaryOp::Or, left, right } => {
            split(left, clause, sense, counted, out);
            split(right, clause, sense, counted, out);
        }
        Expr::IfThenElse { cond, then_expr, else_expr } => {
            split(cond, clause, None, counted, out);
            split(then_expr, clause, sense, counted, out);
            split(else_expr, clause, sense, counted, out);
        }
        _ => {
            let before = *counted;
            count(expr, counted);
            let (quoted, numbers) = (before.0..counted.0, before.1..counted.1);
            out.push(Leaf { expr, clause, sense, quoted, numbers });
        }
    }
}

/// Counts texts and numbers as they are written, in order.
fn count(expr: &Expr, counted: &mut (usize, usize)) {
    match expr {
        Expr::Literal(Literal::String(_) | Literal::EntityUID(_)) => counted.0 += 1,
        Expr::Literal(Literal::Long(_)) => counted.1 += 1,
        _ => {}
    }
    for part in parts(expr) {
        count(part, counted);
    }
    if matches!(expr, Expr::Like { .. }) {
        counted.0 += 1;
    }
}
