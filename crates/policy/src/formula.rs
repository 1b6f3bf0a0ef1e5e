//! Conditions over what the kernel sees: boolean formulas with Cedar's treatment of errors.
//!
//! Cedar evaluates from left to right, stops when the result is certain, and an error ends the evaluation of the policy,
//! which then counts for nothing. So a formula has three values, and `false && error` is false while
//! `error && false` is an error.

use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;
use std::rc::Rc;

use sallyport_sensor_abi::policy::operation;

use crate::mutant;

/// A formula over [`Atoms`].
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Formula {
    True,
    False,
    Error,
    Atom(u32),
    Not(Rc<Formula>),
    And(Rc<Formula>, Rc<Formula>),
    Or(Rc<Formula>, Rc<Formula>),
    If(Rc<Formula>, Rc<Formula>, Rc<Formula>),
}

/// Which text an atom looks at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Text {
    Path,
    Name,
}

/// What a file is asked for.
pub(crate) type FileTest = (Text, Pattern);

/// What the arguments are asked for.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum ArgTest {
    /// Some argument is this one.
    Some(Vec<u8>),
    /// Every argument is one of these.
    Every(BTreeSet<Vec<u8>>),
    /// The arguments, joined by one space, match the pattern.
    Line(Pattern),
}

/// Part of a pattern: bytes that must be there, or anything.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Piece {
    Bytes(Vec<u8>),
    Any,
}

/// A pattern: pieces in order. Without [`Piece::Any`] it is one exact text.
pub(crate) type Pattern = Vec<Piece>;

/// A range of addresses of one family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Prefix {
    pub(crate) v6: bool,
    /// The first address of the range; an IPv4 address in the upper 32 bits.
    pub(crate) bits: u128,
    pub(crate) length: u8,
}

impl Prefix {
    pub(crate) fn new(address: IpAddr, length: u8) -> Self {
        let (v6, bits) = match address {
            IpAddr::V4(address) => (false, u128::from(u32::from(address)) << 96),
            IpAddr::V6(address) => (true, u128::from(address)),
        };
        Self { v6, bits: bits & mask(length), length }
    }

    /// Whether every address of `other` is in this range.
    pub(crate) fn covers(&self, other: &Self) -> bool {
        self.v6 == other.v6 && self.length <= other.length && other.bits & mask(self.length) == self.bits
    }

    /// The length of a single address.
    pub(crate) fn full(v6: bool) -> u8 {
        if v6 { 128 } else { 32 }
    }
}

fn mask(length: u8) -> u128 {
    u128::MAX.checked_shl(128 - u32::from(length)).unwrap_or(0)
}

/// Something that is true or false of an action; never an error.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Atom {
    /// The file has no name.
    Fileless,
    /// The file is set-uid or set-gid.
    Setuid,
    /// What is acted upon is a process outside of the session.
    Outside,
    /// Path or name match one of the patterns.
    File(BTreeSet<FileTest>),
    /// The calling program's path matches one of the patterns.
    Caller(BTreeSet<Pattern>),
    /// The operation is one of these numbers.
    Operation(BTreeSet<u8>),
    /// The arguments pass one of these tests.
    Args(BTreeSet<ArgTest>),
    /// The address is in one of these ranges.
    Address(BTreeSet<Prefix>),
    /// The port is in one of these ranges, ends included; disjoint and ascending.
    Port(Vec<(u16, u16)>),
    /// The protocol is one of these numbers.
    Protocol(BTreeSet<u8>),
    /// Something about person, host or local user; only while a bundle is examined for everybody at once.
    Known(Known),
}

/// What is known once person, host and local user are, and open as long as a rule is looked at by itself.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Known {
    /// The person is in this group, directly or through others.
    Group(String),
    /// The person is this one.
    User(String),
    /// The host is of one of these classes (`lint::world`).
    Hosts(BTreeSet<u32>),
    /// A text matches one of the patterns.
    Text(KnownText, BTreeSet<Pattern>),
    /// Something else; nothing is assumed about it.
    Free(String),
}

/// A text that is known once person and local user are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum KnownText {
    LocalUser,
    Kind,
    Issuer,
    OnBehalfOf,
}

/// The atoms of a compilation, each once.
#[derive(Default)]
pub(crate) struct Atoms {
    list: Vec<Rc<Atom>>,
    index: HashMap<Rc<Atom>, u32>,
}

impl Atoms {
    pub(crate) fn atom(&self, id: u32) -> &Rc<Atom> {
        &self.list[id as usize]
    }

    pub(crate) fn len(&self) -> usize {
        self.list.len()
    }

    /// The number of an atom, if it is here.
    pub(crate) fn find(&self, atom: &Atom) -> Option<u32> {
        self.index.get(atom).copied()
    }

    /// The formula that is this atom; a constant where it can never or must always hold.
    pub(crate) fn intern(&mut self, atom: Atom) -> Formula {
        match &atom {
            Atom::File(tests) if tests.is_empty() => return Formula::False,
            Atom::File(tests) if tests.iter().any(|(_, p)| *p == [Piece::Any]) => {
                return Formula::True;
            }
            Atom::Known(Known::Hosts(classes)) if classes.is_empty() => return Formula::False,
            Atom::Known(Known::Text(_, patterns)) if patterns.is_empty() => return Formula::False,
            Atom::Caller(patterns) if patterns.is_empty() => return Formula::False,
            Atom::Caller(patterns) if patterns.contains(&vec![Piece::Any]) => return Formula::True,
            Atom::Operation(numbers) if numbers.is_empty() => return Formula::False,
            Atom::Operation(numbers) if numbers.len() == operation::COUNT as usize => return Formula::True,
            Atom::Args(tests) if tests.is_empty() => return Formula::False,
            Atom::Args(tests) if tests.contains(&ArgTest::Line(vec![Piece::Any])) => {
                return Formula::True;
            }
            Atom::Address(ranges) if ranges.is_empty() => return Formula::False,
            Atom::Port(ranges) if ranges.is_empty() => return Formula::False,
            Atom::Port(ranges) if ranges.as_slice() == [(0, u16::MAX)] => return Formula::True,
            Atom::Protocol(numbers) if numbers.is_empty() => return Formula::False,
            Atom::Protocol(numbers) if numbers.len() == 256 => return Formula::True,
            _ => {}
        }
        let atom = Rc::new(atom);
        if let Some(id) = self.index.get(&atom) {
            return Formula::Atom(*id);
        }
        let id = self.list.len() as u32;
        self.list.push(Rc::clone(&atom));
        self.index.insert(atom, id);
        Formula::Atom(id)
    }

    /// `a || b`. Alternatives over one thing become one atom: fewer atoms, smaller tables.
    pub(crate) fn or(&mut self, a: Formula, b: Formula) -> Formula {
        if let Formula::Atom(right) = b {
            // Atoms never err, so they may change places.
            let (rest, left) = match &a {
                Formula::Atom(left) => (None, *left),
                Formula::Or(rest, last) => match **last {
                    Formula::Atom(left) => (Some(Rc::clone(rest)), left),
                    _ => return or(a, b),
                },
                _ => return or(a, b),
            };
            if let Some(both) = union(self.atom(left), self.atom(right)) {
                let both = self.intern(both);
                return match rest {
                    None => both,
                    Some(rest) => or(Rc::unwrap_or_clone(rest), both),
                };
            }
        }
        or(a, b)
    }
}

/// The atom that holds where one of the two does.
fn union(a: &Atom, b: &Atom) -> Option<Atom> {
    fn join<T: Ord + Clone>(a: &BTreeSet<T>, b: &BTreeSet<T>) -> BTreeSet<T> {
        a.union(b).cloned().collect()
    }
    Some(match (a, b) {
        (Atom::File(a), Atom::File(b)) => Atom::File(join(a, b)),
        (Atom::Caller(a), Atom::Caller(b)) => Atom::Caller(join(a, b)),
        (Atom::Operation(a), Atom::Operation(b)) => Atom::Operation(join(a, b)),
        (Atom::Args(a), Atom::Args(b)) => Atom::Args(join(a, b)),
        (Atom::Address(a), Atom::Address(b)) => Atom::Address(join(a, b)),
        (Atom::Protocol(a), Atom::Protocol(b)) => Atom::Protocol(join(a, b)),
        (Atom::Port(a), Atom::Port(b)) => Atom::Port(ranges(a.iter().chain(b).copied().collect())),
        _ => return None,
    })
}

/// Sorts and joins ranges.
pub(crate) fn ranges(mut all: Vec<(u16, u16)>) -> Vec<(u16, u16)> {
    all.sort_unstable();
    let mut out: Vec<(u16, u16)> = Vec::new();
    for (low, high) in all {
        match out.last_mut() {
            Some((_, end)) if u32::from(low) <= u32::from(*end) + 1 => *end = (*end).max(high),
            _ => out.push((low, high)),
        }
    }
    out
}

/// `!a`.
pub(crate) fn not(a: Formula) -> Formula {
    match a {
        Formula::True => Formula::False,
        Formula::False => Formula::True,
        Formula::Error if mutant::is(mutant::ERROR) => Formula::True,
        Formula::Error => Formula::Error,
        Formula::Not(inner) => Rc::unwrap_or_clone(inner),
        other => Formula::Not(Rc::new(other)),
    }
}

/// `a && b`.
pub(crate) fn and(a: Formula, b: Formula) -> Formula {
    match (a, b) {
        (Formula::True, b) => b,
        (Formula::False, _) => Formula::False,
        (Formula::Error, _) => Formula::Error,
        (a, Formula::True) => a,
        (a, Formula::False) if a.is_sure() => Formula::False,
        (a, b) => Formula::And(Rc::new(a), Rc::new(b)),
    }
}

/// `a || b`.
pub(crate) fn or(a: Formula, b: Formula) -> Formula {
    match (a, b) {
        (Formula::False, b) => b,
        (Formula::True, _) => Formula::True,
        (Formula::Error, _) => Formula::Error,
        (a, Formula::False) => a,
        (a, Formula::True) if a.is_sure() => Formula::True,
        (a, b) => Formula::Or(Rc::new(a), Rc::new(b)),
    }
}

/// `if a then b else c`.
pub(crate) fn choose(a: Formula, b: Formula, c: Formula) -> Formula {
    match a {
        Formula::True => b,
        Formula::False => c,
        Formula::Error => Formula::Error,
        a if b == c && a.is_sure() => b,
        a => match (b, c) {
            (Formula::True, Formula::False) => a,
            (Formula::False, Formula::True) => not(a),
            (b, c) => Formula::If(Rc::new(a), Rc::new(b), Rc::new(c)),
        },
    }
}

impl Formula {
    /// It cannot be an error.
    fn is_sure(&self) -> bool {
        match self {
            Self::True | Self::False | Self::Atom(_) => true,
            Self::Error => false,
            Self::Not(a) => a.is_sure(),
            Self::And(a, b) | Self::Or(a, b) => a.is_sure() && b.is_sure(),
            Self::If(a, b, c) => a.is_sure() && b.is_sure() && c.is_sure(),
        }
    }

    /// Replaces the atoms that `value` knows, and simplifies.
    pub(crate) fn assign(&self, value: &impl Fn(u32) -> Option<bool>) -> Self {
        match self {
            Self::True | Self::False | Self::Error => self.clone(),
            Self::Atom(id) => match value(*id) {
                None => self.clone(),
                Some(true) => Self::True,
                Some(false) => Self::False,
            },
            Self::Not(a) => not(a.assign(value)),
            Self::And(a, b) => match a.assign(value) {
                Self::False => Self::False,
                Self::Error => Self::Error,
                a => and(a, b.assign(value)),
            },
            Self::Or(a, b) => match a.assign(value) {
                Self::True => Self::True,
                Self::Error => Self::Error,
                a => or(a, b.assign(value)),
            },
            Self::If(a, b, c) => match a.assign(value) {
                Self::True => b.assign(value),
                Self::False => c.assign(value),
                Self::Error => Self::Error,
                a => choose(a, b.assign(value), c.assign(value)),
            },
        }
    }

    /// Collects the atoms it speaks of.
    pub(crate) fn atoms(&self, into: &mut BTreeSet<u32>) {
        match self {
            Self::True | Self::False | Self::Error => {}
            Self::Atom(id) => {
                into.insert(*id);
            }
            Self::Not(a) => a.atoms(into),
            Self::And(a, b) | Self::Or(a, b) => {
                a.atoms(into);
                b.atoms(into);
            }
            Self::If(a, b, c) => {
                a.atoms(into);
                b.atoms(into);
                c.atoms(into);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_are_cedars() {
        let atom = Formula::Atom(0);
        assert_eq!(and(Formula::False, Formula::Error), Formula::False);
        assert_eq!(and(Formula::Error, Formula::False), Formula::Error);
        assert_eq!(or(Formula::True, Formula::Error), Formula::True);
        assert_eq!(not(Formula::Error), Formula::Error);
        // The left side may still err, so this is not simply false.
        let risky = and(atom.clone(), Formula::Error);
        assert_ne!(and(risky.clone(), Formula::False), Formula::False);
        assert_eq!(and(risky.clone(), Formula::False).assign(&|_| Some(true)), Formula::Error);
        assert_eq!(and(risky, Formula::False).assign(&|_| Some(false)), Formula::False);
        assert_eq!(choose(atom, Formula::True, Formula::False), Formula::Atom(0));
    }

    #[test]
    fn alternatives_become_one_atom() {
        let mut atoms = Atoms::default();
        let port = |atoms: &mut Atoms, p| atoms.intern(Atom::Port(vec![(p, p)]));
        let (a, b) = (port(&mut atoms, 22), port(&mut atoms, 23));
        let fileless = atoms.intern(Atom::Fileless);
        let left = atoms.or(fileless.clone(), a);
        let whole = atoms.or(left, b);
        let both = atoms.intern(Atom::Port(vec![(22, 23)]));
        assert_eq!(whole, or(fileless, both));
    }
}
