//! Operators on what is known and what is not: patterns, `!`, comparison, sets, membership.

use std::collections::BTreeSet;
use std::rc::Rc;

use cedar_policy::pst::{BinaryOp, Expr, PatternElem, UnaryOp};
use sallyport_sensor_abi::policy::operation;

use super::literal::{matches, pieces};
use super::{Folded, Folder, Seen, Value, constant, number, unplaceable};
use crate::formula::{ArgTest, Atom, Formula, Pattern, Prefix, not};
use crate::mutant;
use crate::port::{self, PortExpr};

impl Folder<'_> {
    pub(super) fn like(&mut self, expr: &Expr, value: Value, pattern: &[PatternElem]) -> Folded<Value> {
        let pattern = pieces(pattern);
        let formula = match value {
            Value::Seen(text) => self.matching(text, [pattern]),
            Value::Text(text) => constant(matches(text.as_bytes(), &pattern)),
            Value::Protocol => self.protocols(|name| matches(name.as_bytes(), &pattern)),
            Value::Operation => self.operations(|name| matches(name.as_bytes(), &pattern)),
            Value::Later => return Ok(Value::Later),
            _ => return Err(unplaceable(expr)),
        };
        Ok(Value::Bool(formula))
    }

    /// The text matches one of the patterns.
    pub(super) fn matching(&mut self, seen: Seen, patterns: impl IntoIterator<Item = Pattern>) -> Formula {
        let patterns = patterns.into_iter();
        self.atoms.intern(match seen {
            Seen::File(text) => Atom::File(patterns.map(|pattern| (text, pattern)).collect()),
            Seen::CommandLine => Atom::Args(patterns.map(ArgTest::Line).collect()),
            Seen::Caller => Atom::Caller(patterns.collect()),
        })
    }

    pub(super) fn operations(&mut self, test: impl Fn(&str) -> bool) -> Formula {
        let names = operation::NAMES.iter().zip(0u8..);
        let numbers = names.filter(|(name, _)| test(name)).map(|(_, number)| number);
        let wrong = u8::from(mutant::is(mutant::OPERATION));
        let numbers = numbers.map(|number| (number + wrong) % operation::COUNT as u8).collect();
        self.atoms.intern(Atom::Operation(numbers))
    }

    pub(super) fn protocols(&mut self, test: impl Fn(&str) -> bool) -> Formula {
        let numbers = (0..=255).filter(|n| test(&crate::decide::protocol_name(*n))).collect();
        self.atoms.intern(Atom::Protocol(numbers))
    }

    pub(super) fn unary(&mut self, expr: &Expr, op: UnaryOp, value: Value) -> Folded<Value> {
        let ranges = |list: &[(&str, u8)]| -> BTreeSet<Prefix> {
            list.iter().filter_map(|(text, length)| Some(Prefix::new(text.parse().ok()?, *length))).collect()
        };
        let address = match op {
            UnaryOp::IsIPv4 => ranges(&[("0.0.0.0", 0)]),
            UnaryOp::IsIPV6 => ranges(&[("::", 0)]),
            UnaryOp::IsLoopback => ranges(&[("127.0.0.0", 8), ("::1", 128)]),
            UnaryOp::IsMulticast => ranges(&[("224.0.0.0", 4), ("ff00::", 8)]),
            _ => BTreeSet::new(),
        };
        match (op, value) {
            (_, Value::Later) => Ok(Value::Later),
            (
                UnaryOp::IsIPv4 | UnaryOp::IsIPV6 | UnaryOp::IsLoopback | UnaryOp::IsMulticast,
                Value::Address,
            ) => Ok(Value::Bool(self.atoms.intern(Atom::Address(address)))),
            (
                UnaryOp::IsIPv4 | UnaryOp::IsIPV6 | UnaryOp::IsLoopback | UnaryOp::IsMulticast,
                Value::Range(range),
            ) => Ok(Value::Bool(constant(address.iter().any(|whole| whole.covers(&range))))),
            // There always is an argument.
            (UnaryOp::IsEmpty, Value::Args) => Ok(Value::Bool(Formula::False)),
            (UnaryOp::IsEmpty, Value::Set(elements)) => Ok(Value::Bool(constant(elements.is_empty()))),
            (UnaryOp::Neg, Value::Port(a)) => Ok(Value::Port(Rc::new(PortExpr::Neg(a)))),
            (UnaryOp::Neg, Value::Long(number)) => Ok(number.checked_neg().map_or(Value::Error, Value::Long)),
            _ => Err(unplaceable(expr)),
        }
    }

    pub(super) fn binary(&mut self, expr: &Expr, op: BinaryOp, left: Value, right: Value) -> Folded<Value> {
        use BinaryOp as Op;
        let formula = match op {
            Op::Eq => self.equal(expr, &left, &right)?,
            Op::NotEq => not(self.equal(expr, &left, &right)?),
            Op::Less | Op::LessEq | Op::Greater | Op::GreaterEq => {
                if matches!((&left, &right), (Value::Later, _) | (_, Value::Later)) {
                    return Ok(Value::Later);
                }
                let (Some(a), Some(b)) = (number(&left), number(&right)) else {
                    return Err(unplaceable(expr));
                };
                let test: fn(i64, i64) -> bool = match op {
                    Op::Less => |a, b| a < b,
                    Op::LessEq => |a, b| a <= b,
                    Op::Greater => |a, b| a > b,
                    _ => |a, b| a >= b,
                };
                port::compare(self.atoms, &a, &b, test)
            }
            Op::Add | Op::Sub | Op::Mul => {
                if matches!((&left, &right), (Value::Later, _) | (_, Value::Later)) {
                    return Ok(Value::Later);
                }
                let (Some(a), Some(b)) = (number(&left), number(&right)) else {
                    return Err(unplaceable(expr));
                };
                return Ok(Value::Port(Rc::new(match op {
                    Op::Add => PortExpr::Add(a, b),
                    Op::Sub => PortExpr::Sub(a, b),
                    _ => PortExpr::Mul(a, b),
                })));
            }
            Op::Contains => self.contains(expr, &left, &right)?,
            Op::ContainsAny => self.contains_any(expr, &left, &right)?,
            Op::ContainsAll => self.contains_all(expr, &left, &right)?,
            Op::IsInRange => match (left, right) {
                (Value::Address, Value::Range(range)) => {
                    self.atoms.intern(Atom::Address(BTreeSet::from([range])))
                }
                (Value::Range(range), Value::Address) => self.exactly(range),
                (Value::Range(inner), Value::Range(outer)) => constant(outer.covers(&inner)),
                (Value::Address, Value::Address) => Formula::True,
                (Value::Later, _) | (_, Value::Later) => return Ok(Value::Later),
                _ => return Err(unplaceable(expr)),
            },
            _ => return Err(unplaceable(expr)),
        };
        Ok(Value::Bool(formula))
    }
}
