//! Tables over address, port and protocol: tries, and one decision table over their classes.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::rc::Rc;

use sallyport_sensor_abi::policy::{Net, Word};

use super::limits::{self, MAX_CELLS, MAX_WORDS, TooMuch};
use super::tables::{Part, last};
use crate::formula::{Atom, Atoms, Prefix};
use crate::mutant;
use crate::table::{Layer, Rest, merge, refine};
use crate::trie::{self, Classes, Trie};

/// The rules of `connect` or `listen`, on their way into the arena.
pub(super) struct NetTables<'a> {
    pub(super) atoms: &'a Atoms,
    pub(super) part: &'a Part,
}

impl NetTables<'_> {
    /// Marks the atoms about one attribute; only those that formulas use.
    fn layer(&self, about: fn(&Atom) -> bool) -> (Vec<bool>, Vec<u32>) {
        let mut used = BTreeSet::new();
        for (_, formula) in &self.part.rest {
            formula.atoms(&mut used);
        }
        let mut marks = vec![false; self.atoms.len()];
        let list: Vec<u32> = used.into_iter().filter(|atom| about(self.atoms.atom(*atom))).collect();
        for atom in &list {
            marks[*atom as usize] = true;
        }
        (marks, list)
    }

    /// Builds and appends the tables.
    pub(super) fn build(&self, header: &mut Net, arena: &mut Vec<u32>) -> Result<(), TooMuch> {
        let too_large = || limits::combinations(limits::about_net);
        let entries = &self.part.entries;
        let (on_protocol, protocols, protocol_classes) = self.protocols();
        let (on_port, ports, port_classes) = self.ports();
        let (on_address, list) = self.layer(|atom| matches!(atom, Atom::Address(_)));
        let mut ranges = Vec::new();
        for id in list {
            if let Atom::Address(prefixes) = &**self.atoms.atom(id) {
                ranges.extend(prefixes.iter().map(|prefix| {
                    let full = Prefix::full(prefix.v6);
                    let wrong = u8::from(mutant::is(mutant::PREFIX) && prefix.length < full);
                    (Prefix { length: prefix.length + wrong, ..*prefix }, id)
                }));
            }
        }
        let mut classes = Classes::default();
        let address4 = trie::addresses(&ranges, false, &mut classes).map_err(|_| too_large())?;
        let address6 = trie::addresses(&ranges, true, &mut classes).map_err(|_| too_large())?;
        let address_classes = classes.holding;
        // For each protocol and port what is left for addresses.
        let by_protocol =
            refine(entries, &self.part.rest, &Layer { classes: &protocol_classes, about: &on_protocol })
                .ok_or_else(too_large)?;
        let mut numbers: HashMap<Rc<Rest>, u32> = HashMap::new();
        let mut rows: Vec<Vec<Word>> = Vec::new();
        let mut grid: Vec<Vec<u32>> = Vec::new();
        for rest in &by_protocol {
            let by_port = refine(entries, rest, &Layer { classes: &port_classes, about: &on_port })
                .ok_or_else(too_large)?;
            let mut line = Vec::with_capacity(by_port.len());
            for rest in by_port {
                let fresh = numbers.len() as u32;
                let number = *numbers.entry(Rc::clone(&rest)).or_insert(fresh);
                if number == fresh {
                    let layer = Layer { classes: &address_classes, about: &on_address };
                    let decided = refine(entries, &rest, &layer).ok_or_else(too_large)?;
                    rows.push(decided.iter().map(|rest| last(entries, rest)).collect());
                }
                line.push(number);
                if rows.len() * address_classes.len() > MAX_CELLS {
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
        let n_entries = first_protocols.len() * first_ports.len() * first_addresses.len();
        let address4 = address4.with_classes(&merged_addresses);
        let address6 = address6.with_classes(&merged_addresses);
        let ports = ports.with_classes(&merged_ports);
        let words = n_entries + address4.words() + address6.words() + ports.words();
        if arena.len() + words > MAX_WORDS {
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
        header.table = arena.len() as u32;
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
                    let end = usize::from(*high) + usize::from(!mutant::is(mutant::PORT));
                    changes.entry(end).or_default().push((id, false));
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
