//! Decision tables: rules with formulas, decided attribute by attribute.
//!
//! The atoms of one attribute split its values into classes. For each class the formulas become simpler; after the last
//! attribute every one is a constant. What is left of all rules after a step is a [`Rest`]; equal ones are
//! computed once.

use std::cell::Cell;
use std::collections::{BTreeSet, HashMap};
use std::rc::Rc;

use sallyport_sensor_abi::policy::{DENY, END_SESSION, KILL, OBSERVED, QUIET, Word};

use crate::formula::Formula;
use crate::mutant;
use crate::question::OnViolation;

/// What a rule does when its condition holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Effect {
    Forbid,
    Permit,
    /// A forbid that is only watched.
    Watch,
}

/// A rule as the tables have it.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    pub(crate) effect: Effect,
    pub(crate) on_violation: OnViolation,
    /// A permit that is not recorded.
    pub(crate) quiet: bool,
    /// Among rules of the same effect that hold, the lowest decides.
    pub(crate) rank: u32,
    /// Index in the compiled policy's list.
    pub(crate) index: u32,
}

/// What is left of the rules: their numbers in the list of entries, with what is left of their conditions.
/// In ascending order; without those that can no longer matter.
pub(crate) type Rest = Vec<(u32, Formula)>;

/// The classes of one attribute: for each the atoms that hold, all others being false.
pub(crate) struct Layer<'a> {
    pub(crate) classes: &'a [Vec<u32>],
    /// Whether an atom is about this attribute.
    pub(crate) about: &'a [bool],
}

/// Most rules, over all classes of an attribute, that may still be open after it.
const MAX_OPEN: usize = 1 << 23;

/// Decides one attribute: what is left of `rest` in each class. None if that is too much.
pub(crate) fn refine(entries: &[Entry], rest: &Rest, layer: &Layer<'_>) -> Option<Vec<Rc<Rest>>> {
    // First for "no atom of this attribute holds"; then for each class only the rules that its atoms concern.
    let nothing = |atom: u32| layer.about[atom as usize].then_some(false);
    let base: Vec<Formula> = rest.iter().map(|(_, formula)| formula.assign(&nothing)).collect();
    let mut concerns: HashMap<u32, Vec<u32>> = HashMap::new();
    for (position, (_, formula)) in rest.iter().enumerate() {
        let mut atoms = BTreeSet::new();
        formula.atoms(&mut atoms);
        for atom in atoms.into_iter().filter(|atom| layer.about[*atom as usize]) {
            concerns.entry(atom).or_default().push(position as u32);
        }
    }
    let lasting: Vec<u32> = (0..rest.len() as u32).filter(|at| !gone(&base[*at as usize])).collect();
    let stamps: Vec<Cell<u32>> = vec![Cell::new(u32::MAX); layer.about.len()];
    let untouched: Rc<Rest> = Rc::new(prune(
        entries,
        lasting.iter().map(|at| (rest[*at as usize].0, base[*at as usize].clone())).collect(),
    ));
    let mut results = Vec::with_capacity(layer.classes.len());
    let mut open = 0;
    for (number, holding) in layer.classes.iter().enumerate() {
        let mut touched: Vec<u32> =
            holding.iter().filter_map(|atom| concerns.get(atom)).flatten().copied().collect();
        if touched.is_empty() {
            results.push(Rc::clone(&untouched));
            continue;
        }
        touched.sort_unstable();
        touched.dedup();
        for atom in holding {
            stamps[*atom as usize].set(number as u32);
        }
        let value =
            |atom: u32| layer.about[atom as usize].then(|| stamps[atom as usize].get() == number as u32);
        let mut left: Rest = Vec::new();
        let mut next = 0;
        for at in &lasting {
            while next < touched.len() && touched[next] < *at {
                push(&mut left, rest, touched[next], &value);
                next += 1;
            }
            if next < touched.len() && touched[next] == *at {
                continue;
            }
            left.push((rest[*at as usize].0, base[*at as usize].clone()));
        }
        for at in &touched[next..] {
            push(&mut left, rest, *at, &value);
        }
        left.sort_by_key(|(entry, _)| *entry);
        let left = prune(entries, left);
        open += left.len();
        if open > MAX_OPEN {
            return None;
        }
        results.push(Rc::new(left));
    }
    Some(results)
}

fn push(left: &mut Rest, rest: &Rest, at: u32, value: &impl Fn(u32) -> Option<bool>) {
    let (entry, formula) = &rest[at as usize];
    let formula = formula.assign(value);
    if !gone(&formula) {
        left.push((*entry, formula));
    }
}

/// The rule can no longer hold. An erring policy is skipped by Cedar.
fn gone(formula: &Formula) -> bool {
    matches!(formula, Formula::False | Formula::Error)
}

/// Drops what can no longer change the decision.
fn prune(entries: &[Entry], rest: Rest) -> Rest {
    let best = |effect: Effect| {
        rest.iter()
            .filter(|(entry, formula)| entries[*entry as usize].effect == effect && *formula == Formula::True)
            .map(|(entry, _)| entries[*entry as usize].rank)
            .min()
    };
    let (forbid, permit, watch) = (best(Effect::Forbid), best(Effect::Permit), best(Effect::Watch));
    let no_permit = !rest.iter().any(|(entry, _)| entries[*entry as usize].effect == Effect::Permit);
    rest.into_iter()
        .filter(|(entry, _)| {
            let entry = &entries[*entry as usize];
            let within = |best: Option<u32>| best.is_none_or(|best| entry.rank <= best);
            match entry.effect {
                Effect::Forbid if mutant::is(mutant::FORBID) => permit.is_none() && within(forbid),
                Effect::Permit if mutant::is(mutant::FORBID) => within(permit),
                Effect::Forbid => within(forbid),
                Effect::Permit => forbid.is_none() && within(permit),
                Effect::Watch => forbid.is_none() && !no_permit && within(watch),
            }
        })
        .collect()
}

/// The decision, if no condition is open any more.
pub(crate) fn decision(entries: &[Entry], rest: &Rest) -> Option<Word> {
    if rest.iter().any(|(_, formula)| *formula != Formula::True) {
        return None;
    }
    let best = |effect: Effect| {
        rest.iter()
            .map(|(entry, _)| &entries[*entry as usize])
            .filter(|entry| entry.effect == effect)
            .min_by_key(|entry| entry.rank)
    };
    Some(match (best(Effect::Forbid), best(Effect::Permit), best(Effect::Watch)) {
        (None, Some(permit), Some(_)) if mutant::is(mutant::WATCH) => permit.index,
        (None, Some(permit), None) if mutant::is(mutant::QUIET) => permit.index,
        (Some(forbid), _, _) => {
            let also = match forbid.on_violation {
                OnViolation::Block => 0,
                OnViolation::Kill => KILL,
                OnViolation::EndSession => END_SESSION,
            };
            DENY | also | forbid.index
        }
        (None, Some(_), Some(watch)) => OBSERVED | watch.index,
        (None, Some(permit), None) if permit.quiet => QUIET | permit.index,
        (None, Some(permit), None) => permit.index,
        (None, None, _) => DENY,
    })
}

/// Numbers equal things alike: the number of each, and the first of each number.
pub(crate) fn merge<T: std::hash::Hash + Eq>(things: impl Iterator<Item = T>) -> (Vec<u32>, Vec<usize>) {
    let mut numbers: HashMap<T, u32> = HashMap::new();
    let mut firsts = Vec::new();
    let merged = things
        .enumerate()
        .map(|(at, thing)| {
            *numbers.entry(thing).or_insert_with(|| {
                firsts.push(at);
                firsts.len() as u32 - 1
            })
        })
        .collect();
    (merged, firsts)
}
