//! Bounds of compiled tables. Crossing one is an error that names the rules.

use crate::formula::Atom;

/// Most words that one compiled policy may take: half of the arena, so that its successor fits beside it.
pub(crate) const MAX_WORDS: usize = sallyport_sensor_abi::ARENA_WORDS as usize / 2;
/// Most words while compiling, before equal columns and rows are merged.
pub(super) const MAX_CELLS: usize = 1 << 24;
/// A decision has 16 bits for a rule or a row.
pub(super) const MAX_INDEX: usize = 0xffff;

/// What an automaton or a table costs.
#[derive(Debug)]
pub(super) struct TooMuch {
    pub(super) what: &'static str,
    pub(super) limit: usize,
    pub(super) advice: &'static str,
    /// The attribute that is to blame.
    pub(super) about: fn(&Atom) -> bool,
}

const FEWER_WILDCARDS: &str =
    "use fewer patterns with `*` inside, and put texts that are treated alike into one set";
const FEWER_ARGS: &str = "conditions on arguments of the same programs multiply when they are joined by `&&`; join those that are treated alike in one rule with `containsAny`";
const FEWER_RANGES: &str = "join rules that treat addresses and ports alike";

/// An automaton has too many states.
pub(super) fn states(about: fn(&Atom) -> bool) -> TooMuch {
    let advice = if about(&Atom::Args(Default::default())) { FEWER_ARGS } else { FEWER_WILDCARDS };
    TooMuch { what: "entries of an automaton", limit: MAX_WORDS, advice, about }
}

/// Too many combinations of classes.
pub(super) fn combinations(about: fn(&Atom) -> bool) -> TooMuch {
    let advice = if about(&Atom::Address(Default::default())) { FEWER_RANGES } else { FEWER_WILDCARDS };
    TooMuch { what: "combinations of conditions", limit: MAX_CELLS, advice, about }
}

/// Too many rows of arguments.
pub(super) fn rows() -> TooMuch {
    TooMuch { what: "rows of arguments", limit: MAX_INDEX, advice: FEWER_ARGS, about: about_args }
}

/// It does not fit into the arena.
pub(super) fn words(about: fn(&Atom) -> bool) -> TooMuch {
    TooMuch { what: "words in all", limit: MAX_WORDS, advice: FEWER_WILDCARDS, about }
}

pub(super) fn about_path(atom: &Atom) -> bool {
    matches!(atom, Atom::File(_))
}

pub(super) fn about_caller(atom: &Atom) -> bool {
    matches!(atom, Atom::Caller(_))
}

pub(super) fn about_args(atom: &Atom) -> bool {
    matches!(atom, Atom::Args(_))
}

pub(super) fn about_net(atom: &Atom) -> bool {
    matches!(atom, Atom::Address(_) | Atom::Port(_) | Atom::Protocol(_))
}
