//! Arithmetic on the port: there are only 65,536 of them, so anything computed from one is tabulated.

use std::rc::Rc;

use crate::formula::{Atom, Atoms, Formula, choose};

/// A number that depends on the port.
#[derive(Debug)]
pub(crate) enum PortExpr {
    Port,
    Long(i64),
    Neg(Rc<PortExpr>),
    Add(Rc<PortExpr>, Rc<PortExpr>),
    Sub(Rc<PortExpr>, Rc<PortExpr>),
    Mul(Rc<PortExpr>, Rc<PortExpr>),
}

impl PortExpr {
    /// The value for a port; none on overflow, which Cedar treats as an error.
    fn at(&self, port: u16) -> Option<i64> {
        match self {
            Self::Port => Some(i64::from(port)),
            Self::Long(number) => Some(*number),
            Self::Neg(a) => a.at(port)?.checked_neg(),
            Self::Add(a, b) => a.at(port)?.checked_add(b.at(port)?),
            Self::Sub(a, b) => a.at(port)?.checked_sub(b.at(port)?),
            Self::Mul(a, b) => a.at(port)?.checked_mul(b.at(port)?),
        }
    }
}

/// The ports for which a comparison of two numbers holds, and those for which it fails with an error.
pub(crate) fn compare(atoms: &mut Atoms, a: &PortExpr, b: &PortExpr, test: fn(i64, i64) -> bool) -> Formula {
    let outcome = |port: u16| Some(test(a.at(port)?, b.at(port)?));
    let simple = |port: u16| outcome(port) == Some(true);
    let plain = |a: &PortExpr| matches!(a, PortExpr::Port | PortExpr::Long(_));
    if plain(a) && plain(b) {
        let bound = |a: &PortExpr| match a {
            PortExpr::Long(number) => Some(*number),
            _ => None,
        };
        // Comparing with a constant, the outcome changes only around that constant.
        let constant = bound(a).or(bound(b)).unwrap_or(0).clamp(-1, 65_536);
        let near = [0, constant - 1, constant, constant + 1, 65_535];
        let mut cuts: Vec<i64> = near.into_iter().filter(|n| (0..=65_535).contains(n)).collect();
        cuts.push(65_536);
        cuts.sort_unstable();
        cuts.dedup();
        let pieces = cuts.windows(2).filter_map(|pair| {
            let (low, high) = (u16::try_from(pair[0]).ok()?, u16::try_from(pair[1] - 1).ok()?);
            simple(low).then_some((low, high))
        });
        return atoms.intern(Atom::Port(crate::formula::ranges(pieces.collect())));
    }
    let collect = |wanted: Option<bool>| {
        let ports = (0..=u16::MAX).filter(|port| outcome(*port) == wanted);
        crate::formula::ranges(ports.map(|port| (port, port)).collect())
    };
    let holds = atoms.intern(Atom::Port(collect(Some(true))));
    let fails = atoms.intern(Atom::Port(collect(None)));
    choose(fails, Formula::Error, holds)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comparisons_with_a_constant_agree_with_counting() {
        let tests: [fn(i64, i64) -> bool; 5] =
            [|a, b| a < b, |a, b| a <= b, |a, b| a > b, |a, b| a >= b, |a, b| a == b];
        for constant in [i64::MIN, -1, 0, 1, 443, 65_534, 65_535, 65_536, i64::MAX] {
            for test in tests {
                for swapped in [false, true] {
                    let mut atoms = Atoms::default();
                    let (mut a, mut b) = (PortExpr::Port, PortExpr::Long(constant));
                    if swapped {
                        std::mem::swap(&mut a, &mut b);
                    }
                    let formula = compare(&mut atoms, &a, &b, test);
                    for port in (0..=u16::MAX).step_by(7).chain([442, 443, 444, 65_535]) {
                        let expected = a.at(port).zip(b.at(port)).is_some_and(|(a, b)| test(a, b));
                        let holds = formula.assign(&|id| match &**atoms.atom(id) {
                            Atom::Port(ranges) => {
                                Some(ranges.iter().any(|(low, high)| (*low..=*high).contains(&port)))
                            }
                            _ => None,
                        });
                        assert_eq!(holds == Formula::True, expected, "{port} {constant}");
                    }
                }
            }
        }
    }

    #[test]
    fn overflow_is_an_error() {
        let mut atoms = Atoms::default();
        let product = PortExpr::Mul(Rc::new(PortExpr::Port), Rc::new(PortExpr::Long(i64::MAX)));
        let formula = compare(&mut atoms, &product, &PortExpr::Long(0), |a, b| a >= b);
        let at = |port: u16| {
            formula.assign(&|id| match &**atoms.atom(id) {
                Atom::Port(ranges) => Some(ranges.iter().any(|(l, h)| (*l..=*h).contains(&port))),
                _ => None,
            })
        };
        assert_eq!(at(1), Formula::True);
        assert_eq!(at(2), Formula::Error);
    }
}
