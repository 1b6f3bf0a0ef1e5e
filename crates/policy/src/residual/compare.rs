//! Comparisons and sets with what only the kernel knows.

use std::collections::BTreeSet;

use cedar_policy::EvalResult;
use cedar_policy::pst::Expr;

use super::{Folded, Folder, Value, constant, number, unplaceable};
use crate::formula::{ArgTest, Atom, Formula, Pattern, Piece, Prefix, and, choose, not};
use crate::mutant;
use crate::port;

impl Folder<'_> {
    /// The address is this one; false for a range.
    pub(super) fn exactly(&mut self, range: Prefix) -> Formula {
        if range.length == Prefix::full(range.v6) {
            self.atoms.intern(Atom::Address(BTreeSet::from([range])))
        } else {
            Formula::False
        }
    }

    pub(super) fn equal(&mut self, expr: &Expr, left: &Value, right: &Value) -> Folded<Formula> {
        Ok(match (left, right) {
            (Value::Later, _) | (_, Value::Later) => self.later(),
            (Value::Bool(a), Value::Bool(b)) => choose(a.clone(), b.clone(), not(b.clone())),
            (Value::Long(a), Value::Long(b)) => constant(a == b),
            (Value::Text(a), Value::Text(b)) => constant(a == b),
            (Value::Range(a), Value::Range(b)) => constant(a == b),
            (Value::Other(a @ EvalResult::EntityUid(_)), Value::Other(b @ EvalResult::EntityUid(_))) => {
                constant(a == b)
            }
            (Value::Seen(a), Value::Seen(b)) if a == b => Formula::True,
            (Value::Seen(seen), Value::Text(text)) | (Value::Text(text), Value::Seen(seen)) => {
                self.matching(*seen, [exact(text)])
            }
            (Value::Protocol, Value::Protocol) | (Value::Address, Value::Address) => Formula::True,
            (Value::Operation, Value::Operation) => Formula::True,
            (Value::Operation, Value::Text(text)) | (Value::Text(text), Value::Operation) => {
                self.operations(|name| name == text)
            }
            (Value::Args, Value::Args) => Formula::True,
            (Value::Protocol, Value::Text(text)) | (Value::Text(text), Value::Protocol) => {
                self.protocols(|name| name == text)
            }
            (Value::Address, Value::Range(range)) | (Value::Range(range), Value::Address) => {
                self.exactly(*range)
            }
            (Value::Port(_), Value::Port(_) | Value::Long(_)) | (Value::Long(_), Value::Port(_)) => {
                let (Some(a), Some(b)) = (number(left), number(right)) else {
                    return Err(unplaceable(expr));
                };
                port::compare(self.atoms, &a, &b, |a, b| a == b)
            }
            (Value::Set(_) | Value::Args, Value::Set(_) | Value::Args) => {
                let there = self.contains_all(expr, left, right)?;
                and(there, self.contains_all(expr, right, left)?)
            }
            _ => return Err(unplaceable(expr)),
        })
    }

    pub(super) fn contains(&mut self, expr: &Expr, set: &Value, element: &Value) -> Folded<Formula> {
        match (set, element) {
            (Value::Later, _) => Ok(self.later()),
            (Value::Args, Value::Later) => Ok(self.later()),
            (Value::Args, Value::Text(text)) => {
                let args = arguments(std::slice::from_ref(text)).into_iter().map(ArgTest::Some);
                Ok(self.atoms.intern(Atom::Args(args.collect())))
            }
            (Value::Set(elements), element) => {
                // The usual case, at once: one attribute against many texts.
                if let (Value::Seen(seen), Some(texts)) = (element, all_texts(elements)) {
                    return Ok(self.matching(*seen, texts.iter().map(|text| exact(text))));
                }
                let mut any = Formula::False;
                for one in elements {
                    let same = self.equal(expr, one, element)?;
                    any = self.atoms.or(any, same);
                }
                Ok(any)
            }
            _ => Err(unplaceable(expr)),
        }
    }

    pub(super) fn contains_any(&mut self, expr: &Expr, left: &Value, right: &Value) -> Folded<Formula> {
        match (left, right) {
            (Value::Later, _) | (_, Value::Later) => Ok(self.later()),
            (Value::Args, Value::Args) => Ok(Formula::True),
            (Value::Args, Value::Set(elements)) | (Value::Set(elements), Value::Args) => {
                let mut any = Formula::False;
                for element in elements {
                    let there = self.contains(expr, &Value::Args, element)?;
                    any = self.atoms.or(any, there);
                }
                Ok(any)
            }
            (Value::Set(_), Value::Set(elements)) => {
                let mut any = Formula::False;
                for element in elements {
                    let there = self.contains(expr, left, element)?;
                    any = self.atoms.or(any, there);
                }
                Ok(any)
            }
            _ => Err(unplaceable(expr)),
        }
    }

    /// Whether every element of `right` is in `left`.
    pub(super) fn contains_all(&mut self, expr: &Expr, left: &Value, right: &Value) -> Folded<Formula> {
        match (left, right) {
            (Value::Later, _) | (_, Value::Later) => Ok(self.later()),
            (Value::Args, Value::Args) => Ok(Formula::True),
            (Value::Set(elements), Value::Args) => match all_texts(elements) {
                Some(texts) if mutant::is(mutant::EVERY) => {
                    let tests = arguments(&texts).into_iter().map(ArgTest::Some).collect();
                    Ok(self.atoms.intern(Atom::Args(tests)))
                }
                Some(texts) => {
                    let test = ArgTest::Every(arguments(&texts));
                    Ok(self.atoms.intern(Atom::Args(BTreeSet::from([test]))))
                }
                None if elements.iter().any(|e| matches!(e, Value::Later)) => Ok(self.later()),
                None => Err(unplaceable(expr)),
            },
            (Value::Args | Value::Set(_), Value::Set(elements)) => {
                let mut all = Formula::True;
                for element in elements {
                    all = and(all, self.contains(expr, left, element)?);
                }
                Ok(all)
            }
            _ => Err(unplaceable(expr)),
        }
    }
}

fn all_texts(values: &[Value]) -> Option<Vec<String>> {
    values
        .iter()
        .map(|value| match value {
            Value::Text(text) => Some(text.clone()),
            _ => None,
        })
        .collect()
}

/// Arguments never hold a zero byte.
fn arguments(texts: &[String]) -> BTreeSet<Vec<u8>> {
    texts.iter().filter(|text| !text.contains('\0')).map(|text| text.clone().into_bytes()).collect()
}

fn exact(text: &str) -> Pattern {
    if text.is_empty() { vec![] } else { vec![Piece::Bytes(text.as_bytes().to_vec())] }
}
