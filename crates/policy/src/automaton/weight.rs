//! What still matters: once a rule is certain, what could only make weaker ones hold need not be told apart.
//!
//! Without this, a thousand folders and a thousand names would need a million states: in each folder the automaton would have to
//! recognise each name, although the rule on the folder has decided already.

use std::collections::HashMap;

use crate::formula::Formula;
use crate::mutant;
use crate::table::{Effect, Entry, Rest};

/// The best rank of each effect; [`u32::MAX`]: none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Best {
    forbid: u32,
    permit: u32,
    watch: u32,
}

impl Best {
    const NONE: Self = Self { forbid: u32::MAX, permit: u32::MAX, watch: u32::MAX };

    fn take(&mut self, entry: &Entry) {
        let rank = match entry.effect {
            Effect::Forbid => &mut self.forbid,
            Effect::Permit => &mut self.permit,
            Effect::Watch => &mut self.watch,
        };
        *rank = (*rank).min(entry.rank);
    }

    fn join(&mut self, other: &Self) {
        self.forbid = self.forbid.min(other.forbid);
        self.permit = self.permit.min(other.permit);
        self.watch = self.watch.min(other.watch);
    }

    /// Where `certain` holds, what could bring about `self` cannot change the decision any more. `even`: nor can what could
    /// bring about a certain rule once more.
    fn beaten_by(&self, certain: &Self, even: bool) -> bool {
        let beaten = |rank: u32, best: u32| rank == u32::MAX || rank > best || even && rank == best;
        beaten(self.forbid, certain.forbid)
            && (certain.forbid != u32::MAX
                || beaten(self.permit, certain.permit) && beaten(self.watch, certain.watch))
    }
}

/// For each atom which rules it can bring about, and which it makes certain; for each of several sets of rules.
#[derive(Debug, Default)]
pub(crate) struct Weights {
    uses: HashMap<u32, Vec<Best>>,
    makes_certain: HashMap<u32, Vec<Best>>,
    /// What is certain from the beginning.
    certain: Vec<Best>,
}

impl Weights {
    /// For rules that are decided with the same automaton.
    pub(crate) fn new(parts: &[(&[Entry], &Rest)]) -> Self {
        let nothing = vec![Best::NONE; parts.len()];
        let mut weights = Self { certain: nothing.clone(), ..Self::default() };
        for (at, (entries, rest)) in parts.iter().enumerate() {
            for (entry, formula) in *rest {
                let entry = &entries[*entry as usize];
                match formula {
                    Formula::True => weights.certain[at].take(entry),
                    Formula::Atom(atom) => {
                        weights.makes_certain.entry(*atom).or_insert_with(|| nothing.clone())[at].take(entry);
                    }
                    _ => {}
                }
                let mut atoms = std::collections::BTreeSet::new();
                formula.atoms(&mut atoms);
                for atom in atoms {
                    weights.uses.entry(atom).or_insert_with(|| nothing.clone())[at].take(entry);
                }
            }
        }
        weights
    }

    /// What is certain where these atoms hold.
    pub(crate) fn certain(&self, atoms: &[u32]) -> Vec<Best> {
        let mut certain = self.certain.clone();
        for atom in atoms {
            for (best, more) in certain.iter_mut().zip(self.makes_certain.get(atom).into_iter().flatten()) {
                best.join(more);
            }
        }
        certain
    }

    /// What these atoms together can bring about.
    pub(crate) fn reach<'a>(&self, atoms: impl Iterator<Item = &'a u32>) -> Vec<Best> {
        let mut all = vec![Best::NONE; self.certain.len()];
        for atom in atoms {
            for (best, more) in all.iter_mut().zip(self.uses.get(atom).into_iter().flatten()) {
                best.join(more);
            }
        }
        all
    }

    /// Whether an atom that holds makes no difference where `certain` holds.
    pub(crate) fn idle(&self, atom: u32, certain: &[Best]) -> bool {
        self.uses.get(&atom).is_some_and(|uses| all_beaten(uses, certain, mutant::is(mutant::WEIGHT)))
    }
}

/// Whether nothing of `reach` can matter where `certain` holds. Without sets of rules, everything matters.
pub(crate) fn beaten(reach: &[Best], certain: &[Best]) -> bool {
    !reach.is_empty() && all_beaten(reach, certain, true)
}

fn all_beaten(these: &[Best], certain: &[Best], even: bool) -> bool {
    these.iter().zip(certain).all(|(these, certain)| these.beaten_by(certain, even))
}
