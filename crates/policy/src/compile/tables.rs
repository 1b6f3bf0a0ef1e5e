//! From rules with formulas to automata, tries and decision tables in the arena.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::rc::Rc;

use sallyport_sensor_abi::policy::{Automaton as TableAutomaton, NEEDS_ARGS, PolicyHeader, Word};

use super::{
    FEWER_ARGS, FEWER_RANGES, FEWER_WILDCARDS, MAX_INDEX, MAX_WORDS, TooMuch, about_args, about_connections,
    about_path,
};
use crate::automaton::{self, Automaton};
use crate::formula::{Atom, Atoms};
use crate::table::{Entry, Layer, Rest, decision, merge, refine};
use crate::trie::{self, Classes, Trie};

/// Marks of the atoms about one attribute, their automaton, and the atoms that hold in each of its classes.
type Built = (Vec<bool>, Automaton, Vec<Vec<u32>>);

/// The rules of one action, on their way into the arena.
pub(super) struct Tables<'a> {
    pub(super) atoms: &'a Atoms,
    pub(super) entries: &'a [Entry],
    pub(super) rest: Rest,
}

impl Tables<'_> {
    /// Marks the atoms about one attribute; only those that formulas use.
    fn layer(&self, about: fn(&Atom) -> bool) -> (Vec<bool>, Vec<u32>) {
        let mut used = BTreeSet::new();
        for (_, formula) in &self.rest {
            formula.atoms(&mut used);
        }
        let mut marks = vec![false; self.atoms.len()];
        let list: Vec<u32> = used.into_iter().filter(|atom| about(self.atoms.atom(*atom))).collect();
        for atom in &list {
            marks[*atom as usize] = true;
        }
        (marks, list)
    }

    fn automaton(&self, about: fn(&Atom) -> bool, advice: &'static str) -> Result<Built, TooMuch> {
        let (marks, list) = self.layer(about);
        let atoms = list.iter().map(|id| (*id, &**self.atoms.atom(*id)));
        let (automaton, classes) = automaton::build(atoms).map_err(|automaton::TooLarge| TooMuch {
            what: "entries of an automaton",
            limit: MAX_WORDS,
            advice,
            about,
        })?;
        Ok((marks, automaton, classes))
    }

    pub(super) fn exec(self, header: &mut PolicyHeader, arena: &mut Vec<u32>) -> Result<(), TooMuch> {
        let (on_path, paths, path_classes) = self.automaton(about_path, FEWER_WILDCARDS)?;
        let (on_args, args, arg_classes) = self.automaton(about_args, FEWER_ARGS)?;
        let (on_file, file) = self.layer(|atom| *atom == Atom::Fileless);
        let by_file = refine(self.entries, &self.rest, &Layer { classes: &[vec![], file], about: &on_file });
        // For each class of paths what is left with a file and without.
        let by_path: Vec<Vec<Rc<Rest>>> = by_file
            .iter()
            .map(|rest| refine(self.entries, rest, &Layer { classes: &path_classes, about: &on_path }))
            .collect();
        let mut words: HashMap<Rc<Rest>, Word> = HashMap::new();
        let mut rows: Vec<Vec<Word>> = Vec::new();
        let mut numbers: HashMap<Vec<Word>, u32> = HashMap::new();
        for rest in by_path.iter().flatten() {
            if words.contains_key(rest) {
                continue;
            }
            let word = match decision(self.entries, rest) {
                Some(word) => word,
                None => {
                    let row = self.last_layer(rest, &arg_classes, &on_args);
                    if row.iter().all(|word| *word == row[0]) {
                        row[0]
                    } else {
                        let fresh = numbers.len() as u32;
                        let number = *numbers.entry(row.clone()).or_insert(fresh);
                        if number == fresh {
                            rows.push(row);
                        }
                        NEEDS_ARGS | number
                    }
                }
            };
            words.insert(Rc::clone(rest), word);
            if rows.len() > MAX_INDEX || rows.len() * arg_classes.len() > MAX_WORDS {
                return Err(TooMuch {
                    what: "rows of arguments",
                    limit: MAX_INDEX,
                    advice: FEWER_ARGS,
                    about: about_args,
                });
            }
        }
        let pairs = by_path[0].iter().zip(&by_path[1]).map(|(a, b)| (words[a], words[b]));
        let (merged_paths, first_paths) = merge(pairs);
        let columns =
            (0..arg_classes.len()).map(|class| rows.iter().map(|row| row[class]).collect::<Vec<Word>>());
        let (merged_args, first_args) = merge(columns);
        header.path = write_automaton(&paths.minimise(&merged_paths), first_paths.len(), arena)?;
        header.args = write_automaton(&args.minimise(&merged_args), first_args.len(), arena)?;
        header.exec_table = arena.len() as u32;
        for class in first_paths {
            arena.extend([words[&by_path[0][class]], words[&by_path[1][class]]]);
        }
        header.args_table = arena.len() as u32;
        for row in &rows {
            arena.extend(first_args.iter().map(|class| row[*class]));
        }
        Ok(())
    }

    /// The decisions for each class of the last attribute.
    fn last_layer(&self, rest: &Rest, classes: &[Vec<u32>], about: &[bool]) -> Vec<Word> {
        refine(self.entries, rest, &Layer { classes, about })
            .iter()
            .map(|rest| {
                // Every attribute is decided, so no condition is open.
                decision(self.entries, rest).unwrap_or(sallyport_sensor_abi::policy::DENY)
            })
            .collect()
    }

    pub(super) fn connect(self, header: &mut PolicyHeader, arena: &mut Vec<u32>) -> Result<(), TooMuch> {
        let too_large = || TooMuch {
            what: "entries of addresses and ports",
            limit: MAX_WORDS,
            advice: FEWER_RANGES,
            about: about_connections,
        };
        let (on_protocol, protocols, protocol_classes) = self.protocols();
        let (on_port, ports, port_classes) = self.ports();
        let (on_address, list) = self.layer(|atom| matches!(atom, Atom::Address(_)));
        let mut ranges = Vec::new();
        for id in list {
            if let Atom::Address(prefixes) = &**self.atoms.atom(id) {
                ranges.extend(prefixes.iter().map(|prefix| (*prefix, id)));
            }
        }
        let mut classes = Classes::default();
        let address4 = trie::addresses(&ranges, false, &mut classes).map_err(|_| too_large())?;
        let address6 = trie::addresses(&ranges, true, &mut classes).map_err(|_| too_large())?;
        let address_classes = classes.holding;
        // For each protocol and port what is left for addresses.
        let by_protocol =
            refine(self.entries, &self.rest, &Layer { classes: &protocol_classes, about: &on_protocol });
        let mut numbers: HashMap<Rc<Rest>, u32> = HashMap::new();
        let mut rows: Vec<Vec<Word>> = Vec::new();
        let mut grid: Vec<Vec<u32>> = Vec::new();
        for rest in &by_protocol {
            let by_port = refine(self.entries, rest, &Layer { classes: &port_classes, about: &on_port });
            let mut line = Vec::with_capacity(by_port.len());
            for rest in by_port {
                let fresh = numbers.len() as u32;
                let number = *numbers.entry(Rc::clone(&rest)).or_insert(fresh);
                if number == fresh {
                    rows.push(self.last_layer(&rest, &address_classes, &on_address));
                }
                line.push(number);
                if rows.len() * address_classes.len() > MAX_WORDS {
                    return Err(too_large());
                }
            }
            grid.push(line);
        }
        let (merged_addresses, first_addresses) = merge(
            (0..address_classes.len()).map(|class| rows.iter().map(|row| row[class]).collect::<Vec<Word>>()),
        );
        // Rows that differ as conditions may be equal as decisions.
        let (merged_rows, _) = merge(rows.iter());
        for line in &mut grid {
            for number in line {
                *number = merged_rows[*number as usize];
            }
        }
        let (merged_protocols, first_protocols) = merge(grid.iter());
        let (merged_ports, first_ports) = merge(
            (0..port_classes.len())
                .map(|class| first_protocols.iter().map(|line| grid[*line][class]).collect::<Vec<u32>>()),
        );
        let row_of: HashMap<u32, usize> =
            merged_rows.iter().enumerate().rev().map(|(at, number)| (*number, at)).collect();
        let entries = first_protocols.len() * first_ports.len() * first_addresses.len();
        let address4 = address4.with_classes(&merged_addresses);
        let address6 = address6.with_classes(&merged_addresses);
        let ports = ports.with_classes(&merged_ports);
        if entries + address4.words() + address6.words() + ports.words() > MAX_WORDS {
            return Err(too_large());
        }
        header.address4 = address4.write(arena);
        header.address6 = address6.write(arena);
        header.address_classes = first_addresses.len() as u32;
        header.port = ports.write(arena);
        header.port_classes = first_ports.len() as u32;
        for (protocol, class) in header.protocols.iter_mut().zip(protocols) {
            *protocol = merged_protocols[class as usize] as u8;
        }
        header.connect_table = arena.len() as u32;
        for line in &first_protocols {
            for port in &first_ports {
                let row = &rows[row_of[&grid[*line][*port]]];
                arena.extend(first_addresses.iter().map(|class| row[*class]));
            }
        }
        Ok(())
    }

    /// The class of each protocol number. There are at most 256, so each fits a byte.
    fn protocols(&self) -> (Vec<bool>, Vec<u32>, Vec<Vec<u32>>) {
        let (marks, list) = self.layer(|atom| matches!(atom, Atom::Protocol(_)));
        let mut classes = Classes::default();
        let class_of = (0..=255)
            .map(|number| {
                let holds = |id: &&u32| {
                    matches!(&**self.atoms.atom(**id), Atom::Protocol(all) if all.contains(&number))
                };
                classes.of(list.iter().filter(holds).copied().collect())
            })
            .collect();
        (marks, class_of, classes.holding)
    }

    fn ports(&self) -> (Vec<bool>, Trie, Vec<Vec<u32>>) {
        let (marks, list) = self.layer(|atom| matches!(atom, Atom::Port(_)));
        // Where atoms begin and cease to hold.
        let mut changes: BTreeMap<usize, Vec<(u32, bool)>> = BTreeMap::from([(0, vec![])]);
        for id in list {
            if let Atom::Port(ranges) = &**self.atoms.atom(id) {
                for (low, high) in ranges {
                    changes.entry(usize::from(*low)).or_default().push((id, true));
                    changes.entry(usize::from(*high) + 1).or_default().push((id, false));
                }
            }
        }
        let mut classes = Classes::default();
        let mut holding: BTreeSet<u32> = BTreeSet::new();
        let mut class_of = Vec::with_capacity(65_536);
        let mut class = 0;
        for (port, changes) in changes {
            class_of.resize(port, class);
            if port > usize::from(u16::MAX) {
                break;
            }
            for (id, begins) in changes {
                if begins {
                    holding.insert(id);
                } else {
                    holding.remove(&id);
                }
            }
            class = classes.of(holding.iter().copied().collect());
        }
        class_of.resize(65_536, class);
        (marks, trie::ports(&class_of), classes.holding)
    }
}

/// Appends an automaton to the arena.
fn write_automaton(
    automaton: &Automaton,
    n_classes: usize,
    arena: &mut Vec<u32>,
) -> Result<TableAutomaton, TooMuch> {
    let stride = automaton.n_symbols + 1;
    let base = arena.len();
    if base + automaton.class.len() * stride > MAX_WORDS {
        return Err(TooMuch {
            what: "words in all",
            limit: MAX_WORDS,
            advice: FEWER_WILDCARDS,
            about: |atom| about_path(atom) || about_args(atom),
        });
    }
    let row = |state: u32| (base + state as usize * stride) as u32;
    for (state, class) in automaton.class.iter().enumerate() {
        let next = &automaton.next[state * automaton.n_symbols..(state + 1) * automaton.n_symbols];
        arena.extend(next.iter().map(|state| row(*state)));
        arena.push(*class);
    }
    Ok(TableAutomaton {
        start: row(automaton.start),
        stride: stride as u32,
        classes: n_classes as u32,
        _pad: 0,
        symbols: automaton.symbols,
    })
}
