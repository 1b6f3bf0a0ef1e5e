//! Nibble tries: fixed-length keys (addresses, ports) to classes, four bits at a step.
//!
//! Equal subtrees are shared, so a trie's size depends on the ranges it tells apart and not on their number of keys.

use std::collections::{BTreeSet, HashMap};

use crate::formula::Prefix;

/// Most rows of a trie.
const MAX_ROWS: usize = 1 << 17;

/// The ranges need too many rows.
#[derive(Debug)]
pub(crate) struct TooLarge;

/// A trie: rows of 16 entries, each a row of the next level or, on the last level, a class.
#[derive(Debug, Default)]
pub(crate) struct Trie {
    /// By level from the last one (level 0: entries are classes) upwards.
    levels: Vec<Vec<[u32; 16]>>,
    /// Row of the uppermost level.
    root: u32,
}

/// Gives sets of atoms their numbers.
#[derive(Default)]
pub(crate) struct Classes {
    index: HashMap<Vec<u32>, u32>,
    /// The atoms that hold in each class, sorted.
    pub(crate) holding: Vec<Vec<u32>>,
}

impl Classes {
    pub(crate) fn of(&mut self, atoms: Vec<u32>) -> u32 {
        if let Some(class) = self.index.get(&atoms) {
            return *class;
        }
        let class = self.holding.len() as u32;
        self.holding.push(atoms.clone());
        self.index.insert(atoms, class);
        class
    }
}

/// Collects rows, sharing equal ones.
struct Builder {
    levels: Vec<Vec<[u32; 16]>>,
    index: Vec<HashMap<[u32; 16], u32>>,
    rows: usize,
}

impl Builder {
    fn new(depth: usize) -> Self {
        Self { levels: vec![Vec::new(); depth], index: vec![HashMap::new(); depth], rows: 0 }
    }

    fn row(&mut self, level: usize, row: [u32; 16]) -> u32 {
        if let Some(id) = self.index[level].get(&row) {
            return *id;
        }
        let id = self.levels[level].len() as u32;
        self.levels[level].push(row);
        self.index[level].insert(row, id);
        self.rows += 1;
        id
    }

    /// The same class for every key of this level.
    fn uniform(&mut self, level: usize, class: u32) -> u32 {
        (0..=level).fold(class, |below, level| self.row(level, [below; 16]))
    }
}

/// The trie of the atoms' ranges of one family.
pub(crate) fn addresses(ranges: &[(Prefix, u32)], v6: bool, classes: &mut Classes) -> Result<Trie, TooLarge> {
    let depth = usize::from(Prefix::full(v6)) / 4;
    let mut builder = Builder::new(depth);
    let family: Vec<(Prefix, u32)> = ranges.iter().copied().filter(|(range, _)| range.v6 == v6).collect();
    let everywhere = Prefix { v6, bits: 0, length: 0 };
    let root = descend(&mut builder, &everywhere, &family, &BTreeSet::new(), classes)?;
    Ok(Trie { levels: builder.levels, root })
}

/// The row for the addresses in `here`; `within` are ranges that reach into it, `holding` atoms that hold in all of it.
fn descend(
    builder: &mut Builder,
    here: &Prefix,
    within: &[(Prefix, u32)],
    holding: &BTreeSet<u32>,
    classes: &mut Classes,
) -> Result<u32, TooLarge> {
    if builder.rows > MAX_ROWS {
        return Err(TooLarge);
    }
    let level = usize::from(Prefix::full(here.v6) - here.length) / 4 - 1;
    let mut row = [0; 16];
    for (nibble, entry) in row.iter_mut().enumerate() {
        let length = here.length + 4;
        let bits = here.bits | (nibble as u128) << (128 - u32::from(length));
        let child = Prefix { v6: here.v6, bits, length };
        let mut inside: Vec<(Prefix, u32)> = Vec::new();
        let mut holding = holding.clone();
        for (range, atom) in within {
            if range.covers(&child) {
                holding.insert(*atom);
            } else if child.covers(range) {
                inside.push((*range, *atom));
            }
        }
        *entry = if inside.is_empty() {
            let class = classes.of(holding.into_iter().collect());
            if level == 0 { class } else { builder.uniform(level - 1, class) }
        } else {
            descend(builder, &child, &inside, &holding, classes)?
        };
    }
    Ok(builder.row(level, row))
}

/// The trie of ports; `class` is that of each port.
pub(crate) fn ports(class: &[u32]) -> Trie {
    let mut builder = Builder::new(4);
    let mut below: Vec<u32> = class.to_vec();
    for level in 0..4 {
        below = below
            .chunks(16)
            .map(|chunk| {
                let mut row = [0; 16];
                row.copy_from_slice(chunk);
                builder.row(level, row)
            })
            .collect();
    }
    Trie { levels: builder.levels, root: below[0] }
}

impl Trie {
    /// Replaces classes, and shares again what has become equal.
    pub(crate) fn with_classes(&self, merged: &[u32]) -> Self {
        let mut builder = Builder::new(self.levels.len());
        let mut new_of: Vec<u32> = merged.to_vec();
        for (level, rows) in self.levels.iter().enumerate() {
            new_of =
                rows.iter().map(|row| builder.row(level, row.map(|entry| new_of[entry as usize]))).collect();
        }
        Self { root: new_of[self.root as usize], levels: builder.levels }
    }

    /// Tells an address of each class; it may tell several.
    pub(crate) fn examples(&self, tell: &mut impl FnMut(u32, u128)) {
        let mut seen = std::collections::HashSet::new();
        let mut open = vec![(self.levels.len(), self.root, 0u128)];
        let depth = self.levels.len();
        while let Some((level, row, bits)) = open.pop() {
            if level == 0 {
                tell(row, bits);
            } else if seen.insert((level, row)) {
                let shift = 124 - 4 * (depth - level) as u32;
                for (nibble, entry) in self.levels[level - 1][row as usize].iter().enumerate() {
                    open.push((level - 1, *entry, bits | (nibble as u128) << shift));
                }
            }
        }
    }

    /// Words it takes in an arena.
    pub(crate) fn words(&self) -> usize {
        self.levels.iter().map(|rows| rows.len() * 16).sum()
    }

    /// Appends it to an arena; returns the place of its first row.
    pub(crate) fn write(&self, arena: &mut Vec<u32>) -> u32 {
        let mut begins = Vec::new();
        let mut at = arena.len();
        for rows in &self.levels {
            begins.push(at as u32);
            at += rows.len() * 16;
        }
        for (level, rows) in self.levels.iter().enumerate() {
            for row in rows {
                arena.extend(row.map(|entry| match level {
                    0 => entry,
                    _ => begins[level - 1] + entry * 16,
                }));
            }
        }
        begins.last().map_or(0, |begin| begin + self.root * 16)
    }
}
