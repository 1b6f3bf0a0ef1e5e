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
