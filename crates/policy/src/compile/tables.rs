//! From rules with formulas to automata and decision tables in the arena: programs, files, the system.

use std::collections::{BTreeSet, HashMap};
use std::rc::Rc;

use sallyport_sensor_abi::policy::{
    ARGS_DENIAL, ARGS_ROW_WORDS, Automaton as TableAutomaton, DENY, END_SESSION, EXEC_INDEX_FILELESS,
    EXEC_INDEX_SETUID, EXEC_INDICES, INDEX_MASK, KILL, NEEDS_ARGS, PolicyHeader, UNIFORM, Word, operation,
};

use super::limits::{self, MAX_CELLS, MAX_INDEX, MAX_WORDS, TooMuch};
use crate::automaton::{self, Automaton, Weights};
use crate::formula::{Atom, Atoms, Formula};
use crate::mutant;
use crate::residual::Action;
use crate::table::{Effect, Entry, Layer, Rest, decision, merge, refine};

/// The rules of one action, on their way into the arena.
pub(super) struct Part {
    pub(super) action: Action,
    pub(super) entries: Vec<Entry>,
    pub(super) rest: Rest,
}

/// An automaton over one attribute of several actions.
struct Attribute {
    /// Marks of the atoms about it.
    about: Vec<bool>,
    automaton: Automaton,
    /// The atoms that hold in each of its classes.
    classes: Vec<Vec<u32>>,
}

/// Words by class of an automaton, for each combination of a few other attributes; equal columns are there once.
#[derive(Default)]
struct Grid {
    columns: Vec<Vec<Word>>,
    numbers: HashMap<Vec<Word>, u32>,
}

impl Grid {
    fn column(&mut self, words: Vec<Word>) -> u32 {
        let fresh = self.columns.len() as u32;
        let number = *self.numbers.entry(words.clone()).or_insert(fresh);
        if number == fresh {
            self.columns.push(words);
        }
        number
    }
}

/// The tables of all actions in which paths and calling programs count.
pub(super) struct Tables<'a> {
    pub(super) atoms: &'a Atoms,
    pub(super) arena: &'a mut Vec<u32>,
}

impl Tables<'_> {
    /// Everything but [`super::net`].
    pub(super) fn build(&mut self, parts: &[Part], header: &mut PolicyHeader) -> Result<(), TooMuch> {
        let exec = || parts.iter().filter(|part| part.action == Action::Exec);
        let files = || parts.iter().filter(|part| matches!(part.action, Action::File(_)));
        let system = || parts.iter().filter(|part| part.action == Action::System);
        let callers = self.attribute(exec().chain(files()).chain(system()), limits::about_caller, false)?;
        let paths = self.attribute(exec(), limits::about_path, true)?;
        let file_paths = self.attribute(files(), limits::about_path, true)?;

        let mut rows = Rows::default();
        let mut exec_grid = Grid::default();
        // For each combination of flags, for each class of callers: a column.
        let mut exec_columns: Vec<Vec<u32>> = Vec::new();
        for part in exec() {
            let flags = (0..EXEC_INDICES).map(|index| {
                let mut holding = Vec::new();
                for (bit, atom) in [(EXEC_INDEX_FILELESS, Atom::Fileless), (EXEC_INDEX_SETUID, Atom::Setuid)]
                {
                    if index & bit != 0 && !mutant::is(mutant::FLAGS) {
                        holding.extend(self.atoms.find(&atom));
                    }
                }
                holding
            });
            let about = self.about(|atom| matches!(atom, Atom::Fileless | Atom::Setuid));
            let flags: Vec<Vec<u32>> = flags.collect();
            exec_columns = self.columns(
                part,
                &Layer { classes: &flags, about: &about },
                &callers,
                &paths,
                &mut exec_grid,
                &mut rows,
            )?;
        }
        let mut file_grid = Grid::default();
        let mut file_columns: Vec<Vec<u32>> = Vec::new();
        for part in files() {
            let fileless: Vec<u32> = self.atoms.find(&Atom::Fileless).into_iter().collect();
            let classes = [vec![], fileless];
            let about = self.about(|atom| *atom == Atom::Fileless);
            let layer = Layer { classes: &classes, about: &about };
            file_columns.extend(self.columns(
                part,
                &layer,
                &callers,
                &file_paths,
                &mut file_grid,
                &mut rows,
            )?);
        }
        let system_words = match system().next() {
            Some(part) => self.system(part, &callers)?,
            None => Vec::new(),
        };

        // Callers that nothing treats differently are one class.
        let (merged_callers, first_callers) = merge((0..callers.classes.len()).map(|caller| {
            let column = |line: &Vec<u32>| line[caller];
            let words = system_words.iter().map(|line: &Vec<Word>| line[caller]);
            exec_columns.iter().chain(&file_columns).map(column).chain(words).collect::<Vec<u32>>()
        }));
        header.caller = self.write(&callers, &merged_callers, first_callers.len())?;
        let (merged, first) = merge_rows(&exec_grid, paths.classes.len());
        header.path = self.write(&paths, &merged, first.len())?;
        header.exec_table = self.arena.len() as u32;
        self.room(first.len() * exec_columns.len() * first_callers.len(), limits::about_path)?;
        for class in first {
            for line in &exec_columns {
                self.arena.extend(
                    first_callers.iter().map(|caller| exec_grid.columns[line[*caller] as usize][class]),
                );
            }
        }
        let (merged, first) = merge_rows(&file_grid, file_paths.classes.len());
        header.file = self.write(&file_paths, &merged, first.len())?;
        header.file_table = self.arena.len() as u32;
        self.room(first.len() * file_columns.len() * first_callers.len(), limits::about_path)?;
        for (op, lines) in file_columns.chunks(2).enumerate() {
            let begin = self.arena.len();
            for class in &first {
                for line in lines {
                    self.arena.extend(
                        first_callers.iter().map(|caller| file_grid.columns[line[*caller] as usize][*class]),
                    );
                }
            }
            let words = &self.arena[begin..];
            if let Some(word) = words.first().filter(|first| words.iter().all(|word| word == *first)) {
                header.uniform[op] = UNIFORM | *word;
            }
        }
        header.system_table = self.arena.len() as u32;
        for line in &system_words {
            self.arena.extend(first_callers.iter().map(|caller| line[*caller]));
        }
        header.args_rows = self.arena.len() as u32;
        rows.write(self.arena)
    }

    /// Marks the atoms of one kind.
    fn about(&self, kind: impl Fn(&Atom) -> bool) -> Vec<bool> {
        (0..self.atoms.len() as u32).map(|atom| kind(self.atoms.atom(atom))).collect()
    }

    /// The automaton over an attribute of these rules.
    fn attribute<'p>(
        &self,
        parts: impl Iterator<Item = &'p Part>,
        about: fn(&Atom) -> bool,
        weighed: bool,
    ) -> Result<Attribute, TooMuch> {
        let mut used = BTreeSet::new();
        let mut sets: Vec<(&[Entry], &Rest)> = Vec::new();
        for part in parts {
            for (_, formula) in &part.rest {
                formula.atoms(&mut used);
            }
            sets.push((&part.entries, &part.rest));
        }
        let weights = if weighed { Weights::new(&sets) } else { Weights::default() };
        let list = used.iter().map(|id| (*id, &**self.atoms.atom(*id))).filter(|(_, atom)| about(atom));
        let (automaton, classes) =
            automaton::build(list, &weights).map_err(|automaton::TooLarge| limits::states(about))?;
        Ok(Attribute { about: self.about(about), automaton, classes })
    }

    /// For each class of `first` a line: for each class of callers the number of its column in the grid.
    fn columns(
        &self,
        part: &Part,
        first: &Layer<'_>,
        callers: &Attribute,
        paths: &Attribute,
        grid: &mut Grid,
        rows: &mut Rows,
    ) -> Result<Vec<Vec<u32>>, TooMuch> {
        let too_much = || limits::combinations(limits::about_path);
        let entries = &part.entries;
        let callers = Layer { classes: &callers.classes, about: &callers.about };
        let paths = Layer { classes: &paths.classes, about: &paths.about };
        let mut known: HashMap<Rc<Rest>, u32> = HashMap::new();
        let mut words: HashMap<Rc<Rest>, Word> = HashMap::new();
        let mut lines = Vec::new();
        for rest in refine(entries, &part.rest, first).ok_or_else(too_much)? {
            let mut line = Vec::with_capacity(callers.classes.len());
            for rest in refine(entries, &rest, &callers).ok_or_else(too_much)? {
                if let Some(column) = known.get(&rest) {
                    line.push(*column);
                    continue;
                }
                if (grid.columns.len() + 1) * paths.classes.len() > MAX_CELLS {
                    return Err(too_much());
                }
                let mut column = Vec::with_capacity(paths.classes.len());
                for rest in refine(entries, &rest, &paths).ok_or_else(too_much)? {
                    let word = match words.get(&rest) {
                        Some(word) => *word,
                        None => {
                            let word = match decision(entries, &rest) {
                                Some(word) => word,
                                None => rows.row(self.atoms, entries, &rest)?,
                            };
                            words.insert(rest, word);
                            word
                        }
                    };
                    column.push(word);
                }
                let column = grid.column(column);
                known.insert(rest, column);
                line.push(column);
            }
            lines.push(line);
        }
        Ok(lines)
    }

    /// For each operation, inside and outside, a line: for each class of callers the word.
    fn system(&self, part: &Part, callers: &Attribute) -> Result<Vec<Vec<Word>>, TooMuch> {
        let too_much = || limits::combinations(limits::about_caller);
        let entries = &part.entries;
        let all = 0..self.atoms.len() as u32;
        let classes: Vec<Vec<u32>> = (0..operation::COUNT)
            .map(|number| {
                let holds = |id: &u32| {
                    matches!(&**self.atoms.atom(*id), Atom::Operation(all) if all.contains(&(number as u8)))
                };
                all.clone().filter(holds).collect()
            })
            .collect();
        let on_operation = self.about(|atom| matches!(atom, Atom::Operation(_)));
        let on_outside = self.about(|atom| *atom == Atom::Outside);
        let outside = [vec![], self.atoms.find(&Atom::Outside).into_iter().collect()];
        let mut lines = Vec::new();
        let by_operation = Layer { classes: &classes, about: &on_operation };
        for rest in refine(entries, &part.rest, &by_operation).ok_or_else(too_much)? {
            let by_outside = Layer { classes: &outside, about: &on_outside };
            for rest in refine(entries, &rest, &by_outside).ok_or_else(too_much)? {
                let by_caller = Layer { classes: &callers.classes, about: &callers.about };
                let words = refine(entries, &rest, &by_caller).ok_or_else(too_much)?;
                lines.push(words.iter().map(|rest| last(entries, rest)).collect());
            }
        }
        Ok(lines)
    }

    /// Whether so many more words fit.
    fn room(&self, words: usize, about: fn(&Atom) -> bool) -> Result<(), TooMuch> {
        if self.arena.len() + words > MAX_WORDS { Err(limits::words(about)) } else { Ok(()) }
    }

    /// Appends an attribute's automaton, with classes merged.
    fn write(
        &mut self,
        attribute: &Attribute,
        merged: &[u32],
        n_classes: usize,
    ) -> Result<TableAutomaton, TooMuch> {
        let automaton = attribute.automaton.minimise(merged);
        let stride = automaton.n_symbols + 1;
        self.room(automaton.class.len() * stride, |atom| {
            limits::about_path(atom) || limits::about_caller(atom)
        })?;
        Ok(TableAutomaton {
            start: append(&automaton, self.arena),
            stride: stride as u32,
            classes: n_classes as u32,
            _pad: 0,
            symbols: automaton.symbols,
        })
    }
}

/// The decision when every attribute is decided, so that no condition is open.
pub(super) fn last(entries: &[Entry], rest: &Rest) -> Word {
    decision(entries, rest).unwrap_or(sallyport_sensor_abi::policy::DENY)
}

/// Merges classes whose words are equal in every column.
fn merge_rows(grid: &Grid, classes: usize) -> (Vec<u32>, Vec<usize>) {
    merge((0..classes).map(|class| grid.columns.iter().map(|column| column[class]).collect::<Vec<Word>>()))
}

/// Appends an automaton's rows; returns where it starts.
fn append(automaton: &Automaton, arena: &mut Vec<u32>) -> u32 {
    let stride = automaton.n_symbols + 1;
    let base = arena.len();
    let row = |state: u32| (base + state as usize * stride) as u32;
    for (state, class) in automaton.class.iter().enumerate() {
        let next = &automaton.next[state * automaton.n_symbols..(state + 1) * automaton.n_symbols];
        arena.extend(next.iter().map(|state| row(*state)));
        arena.push(*class);
    }
    row(automaton.start)
}

/// Rows of arguments: for each set of rules that is still open when everything else is known, an automaton of its own.
#[derive(Default)]
struct Rows {
    rows: Vec<Row>,
    numbers: HashMap<RowKey, u32>,
    words: usize,
}

/// Symbols, transitions, classes, start, the word of each class, and the word without arguments.
type RowKey = (Vec<u8>, Vec<u32>, Vec<u32>, u32, Vec<Word>, Word);

struct Row {
    automaton: Automaton,
    words: Vec<Word>,
    /// See [`ARGS_DENIAL`].
    denial: Word,
}

/// The word of rules that deny whatever the arguments are, and with the same consequence; else 0. The arguments would only tell
/// which rule it is.
fn denial(entries: &[Entry], rest: &Rest, words: &[Word]) -> Word {
    let certain = |(entry, formula): &&(u32, Formula)| {
        entries[*entry as usize].effect == Effect::Forbid && *formula == Formula::True
    };
    let certain: Rest = rest.iter().filter(certain).cloned().collect();
    let word = last(entries, &certain);
    const CONSEQUENCE: Word = DENY | KILL | END_SESSION;
    if words.iter().all(|found| found & CONSEQUENCE == word & CONSEQUENCE) { word } else { 0 }
}

impl Rows {
    /// The word of rules that only the arguments decide.
    fn row(&mut self, atoms: &Atoms, entries: &[Entry], rest: &Rest) -> Result<Word, TooMuch> {
        let mut used = BTreeSet::new();
        for (_, formula) in rest {
            formula.atoms(&mut used);
        }
        let weights = Weights::new(&[(entries, rest)]);
        let list = used.iter().map(|id| (*id, &**atoms.atom(*id)));
        let (automaton, classes) = automaton::build(list, &weights)
            .map_err(|automaton::TooLarge| limits::states(limits::about_args))?;
        let mut about = vec![false; atoms.len()];
        for atom in &used {
            about[*atom as usize] = true;
        }
        let decided = refine(entries, rest, &Layer { classes: &classes, about: &about })
            .ok_or_else(|| limits::combinations(limits::about_args))?;
        let words: Vec<Word> = decided.iter().map(|rest| last(entries, rest)).collect();
        let (merged, first) = merge(words.iter());
        if let [only] = first.as_slice() {
            return Ok(words[*only]);
        }
        let denial = denial(entries, rest, &words);
        let automaton = automaton.minimise(&merged);
        let words: Vec<Word> = first.into_iter().map(|class| words[class]).collect();
        let key = (
            automaton.symbols.to_vec(),
            automaton.next.clone(),
            automaton.class.clone(),
            automaton.start,
            words.clone(),
            denial,
        );
        let fresh = self.rows.len() as u32;
        let number = *self.numbers.entry(key).or_insert(fresh);
        if number == fresh {
            self.words +=
                ARGS_ROW_WORDS as usize + automaton.class.len() * (automaton.n_symbols + 1) + words.len();
            self.rows.push(Row { automaton, words, denial });
        }
        if self.rows.len() > MAX_INDEX || self.words > MAX_WORDS {
            return Err(limits::rows());
        }
        Ok(NEEDS_ARGS | number & INDEX_MASK)
    }

    /// Appends the descriptions, then what they lead to.
    fn write(self, arena: &mut Vec<u32>) -> Result<(), TooMuch> {
        if arena.len() + self.words > MAX_WORDS {
            return Err(limits::words(limits::about_args));
        }
        let begin = arena.len();
        arena.resize(begin + self.rows.len() * ARGS_ROW_WORDS as usize, 0);
        for (number, row) in self.rows.iter().enumerate() {
            let start = append(&row.automaton, arena);
            let table = arena.len() as u32;
            arena.extend(&row.words);
            let at = begin + number * ARGS_ROW_WORDS as usize;
            arena[at..at + 3].copy_from_slice(&[start, row.automaton.n_symbols as u32, table]);
            arena[at + ARGS_DENIAL as usize] = row.denial;
            let symbols = row.automaton.symbols.as_chunks::<4>().0;
            for (word, bytes) in arena[at + 4..at + ARGS_ROW_WORDS as usize].iter_mut().zip(symbols) {
                *word = u32::from_le_bytes(*bytes);
            }
        }
        Ok(())
    }
}
