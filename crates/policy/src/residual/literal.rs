//! Patterns and address ranges as they are written.

use std::collections::BTreeSet;

use cedar_policy::pst::{Expr, Literal, PatternElem, UnaryOp};

use crate::formula::{Pattern, Piece, Prefix};

pub(crate) fn pieces(pattern: &[PatternElem]) -> Pattern {
    let mut out = Pattern::new();
    for element in pattern {
        match (element, out.last_mut()) {
            (PatternElem::Wildcard, Some(Piece::Any)) => {}
            (PatternElem::Wildcard, _) => out.push(Piece::Any),
            (PatternElem::Char(c), Some(Piece::Bytes(bytes))) => {
                bytes.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes());
            }
            (PatternElem::Char(c), _) => {
                out.push(Piece::Bytes(c.encode_utf8(&mut [0; 4]).as_bytes().to_vec()));
            }
        }
    }
    out
}

/// Whether a text matches a pattern; linear in the product of their lengths.
pub(crate) fn matches(text: &[u8], pattern: &[Piece]) -> bool {
    let mut ends: BTreeSet<usize> = BTreeSet::from([0]);
    for piece in pattern {
        ends = match piece {
            Piece::Any => ends.first().map(|first| (*first..=text.len()).collect()).unwrap_or_default(),
            Piece::Bytes(bytes) => ends
                .into_iter()
                .filter(|at| text[*at..].starts_with(bytes))
                .map(|at| at + bytes.len())
                .collect(),
        };
    }
    ends.contains(&text.len())
}

/// `ip("…")` with a literal.
pub(super) fn range(expr: &Expr) -> Option<Prefix> {
    let Expr::UnaryOp { op: UnaryOp::Ip, expr } = expr else { return None };
    let Expr::Literal(Literal::String(text)) = &**expr else { return None };
    parse_range(text)
}

/// An address or a range, as texts have it.
pub(crate) fn parse_range(text: &str) -> Option<Prefix> {
    let (address, length) = match text.split_once('/') {
        Some((address, length)) => (address, Some(length.parse().ok()?)),
        None => (text, None),
    };
    let address: std::net::IpAddr = address.parse().ok()?;
    let full = Prefix::full(address.is_ipv6());
    Some(Prefix::new(address, length.unwrap_or(full).min(full)))
}
