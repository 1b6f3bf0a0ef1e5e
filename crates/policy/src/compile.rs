//! Compiling: a policy, for one person on one host as one local user, becomes tables for the kernel.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::rc::Rc;

use cedar_policy::{Context, Entities, Request, RestrictedExpression, pst};
use sallyport_sensor_abi::policy::{Automaton as TableAutomaton, NEEDS_ARGS, PolicyHeader, Word};

use crate::automaton::{self, Automaton};
use crate::entities::uid;
use crate::formula::{Atom, Atoms, Formula};
use crate::kernel::KernelPolicy;
use crate::load::Policy;
use crate::question::Principal;
use crate::residual::{self, Action, Given};
use crate::rule::Rule;
use crate::table::{Effect, Entry, Layer, Rest, decision, merge, refine};
use crate::trie::{self, Classes, Trie};

/// Most words that one compiled policy may take: a quarter of the arena.
pub(crate) const MAX_WORDS: usize = 1 << 22;
/// A decision has 16 bits for a rule or a row.
const MAX_INDEX: usize = 0xffff;

/// Why a policy cannot be compiled for somebody.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CompileError {
    /// A table would be too large.
    #[error("the rules together need too large a table ({what}, at most {limit}) for {person} on {host}: mostly {}; {advice}", rules.join(", "))]
    TooLarge {
        /// What there is too much of.
        what: &'static str,
        /// How much there may be.
        limit: usize,
        /// For whom it was compiled.
        person: String,
        /// Where.
        host: String,
        /// The rules that contribute most.
        rules: Vec<String>,
        /// What to do.
        advice: &'static str,
    },
    /// A condition cannot be judged by the kernel (found earlier by [`Policy::load`], as a rule).
    #[error("rule {rule}: cannot judge `{part}` in the kernel: {why}")]
    Unplaceable {
        /// The rule.
        rule: String,
        /// The part of its condition.
        part: String,
        /// Why not.
        why: &'static str,
    },
    /// The names of person, host or user make no valid question.
    #[error("`{person}` on `{host}` makes no valid question to the policy")]
    Names {
        /// The person.
        person: String,
        /// The host.
        host: String,
    },
}

/// What an automaton or a table costs.
#[derive(Debug)]
struct TooMuch {
    what: &'static str,
    limit: usize,
    advice: &'static str,
    /// The attribute that is to blame.
    about: fn(&Atom) -> bool,
}

const FEWER_WILDCARDS: &str =
    "use fewer patterns with `*` inside, and put texts that are treated alike into one set";
const FEWER_ARGS: &str = "every condition on arguments that stands alone doubles the table; join those that are treated alike in one rule with `containsAny`";
const FEWER_RANGES: &str = "join rules that treat addresses and ports alike";

impl Policy {
    /// Compiles for one person, host and local user. The tables give the answers of [`Self::decide`].
    pub fn compile(
        &self,
        principal: &Principal,
        host: &str,
        local_user: &str,
    ) -> Result<KernelPolicy, CompileError> {
        let entities = self.inner.known.with(principal, Some(host));
        let mut rules = vec![self.default_rule().clone()];
        let mut indices: BTreeMap<&str, u32> = BTreeMap::new();
        let mut arena = Vec::new();
        let mut header = PolicyHeader::EMPTY;
        for action in [Action::Exec, Action::Connect] {
            let mut atoms = Atoms::default();
            let left = self.fold(&mut atoms, action, principal, host, local_user, &entities)?;
            let numbers: Vec<u32> = left
                .iter()
                .map(|(rule, _)| {
                    *indices.entry(&rule.info.id).or_insert_with(|| {
                        rules.push(rule.info.clone());
                        rules.len() as u32 - 1
                    })
                })
                .collect();
            let entries = entries(&left, &numbers);
            let rest = left.iter().zip(0..).map(|((_, formula), at)| (at, formula.clone())).collect();
            let tables = Tables { atoms: &atoms, entries: &entries, rest };
            let built = match action {
                Action::Exec => tables.exec(&mut header, &mut arena),
                Action::Connect => tables.connect(&mut header, &mut arena),
            };
            built.map_err(|error| CompileError::TooLarge {
                what: error.what,
                limit: error.limit,
                person: principal.user.clone(),
                host: host.to_owned(),
                rules: blamed(&atoms, &left, error.about),
                advice: error.advice,
            })?;
        }
        if arena.len() > MAX_WORDS || rules.len() > MAX_INDEX {
            return Err(CompileError::TooLarge {
                what: "words in all",
                limit: MAX_WORDS,
                person: principal.user.clone(),
                host: host.to_owned(),
                rules: rules.iter().skip(1).take(8).map(|rule| rule.id.clone()).collect(),
                advice: FEWER_WILDCARDS,
            });
        }
        header.words = arena.len() as u32;
        Ok(KernelPolicy { header, arena, rules })
    }

    /// The rules that can apply, with what is left of their conditions.
    fn fold(
        &self,
        atoms: &mut Atoms,
        action: Action,
        principal: &Principal,
        host: &str,
        local_user: &str,
        entities: &Entities,
    ) -> Result<Vec<(&Rule, Formula)>, CompileError> {
        let names = || CompileError::Names { person: principal.user.clone(), host: host.to_owned() };
        let person = uid("User", &principal.user);
        let place = uid("Host", host);
        let known = [("local_user".to_owned(), RestrictedExpression::new_string(local_user.to_owned()))];
        let context = Context::from_pairs(known).map_err(|_| names())?;
        let request =
            Request::new(person.clone(), uid("Action", action.name()), place.clone(), context, None)
                .map_err(|_| names())?;
        let given = Given { request: &request, entities };
        let within = |thing: &cedar_policy::EntityUid, group: &pst::EntityUID| {
            let group = uid_of(group);
            group.as_ref().is_some_and(|group| thing == group || entities.is_ancestor_of(group, thing))
        };
        let mut left = Vec::new();
        for rule in self.inner.rules.values().filter(|rule| rule.speaks_of(action.name())) {
            let principal_fits = match &rule.body.principal {
                pst::PrincipalConstraint::Any => true,
                pst::PrincipalConstraint::Eq(pst::EntityOrSlot::Entity(one)) => {
                    uid_of(one).as_ref() == Some(&person)
                }
                pst::PrincipalConstraint::In(pst::EntityOrSlot::Entity(group)) => within(&person, group),
                pst::PrincipalConstraint::Is(kind) => kind.to_string() == "User",
                pst::PrincipalConstraint::IsIn(kind, pst::EntityOrSlot::Entity(group)) => {
                    kind.to_string() == "User" && within(&person, group)
                }
                _ => false,
            };
            let resource_fits = match &rule.body.resource {
                pst::ResourceConstraint::Any => true,
                pst::ResourceConstraint::Eq(pst::EntityOrSlot::Entity(one)) => {
                    uid_of(one).as_ref() == Some(&place)
                }
                pst::ResourceConstraint::In(pst::EntityOrSlot::Entity(group)) => within(&place, group),
                pst::ResourceConstraint::Is(kind) => kind.to_string() == "Host",
                pst::ResourceConstraint::IsIn(kind, pst::EntityOrSlot::Entity(group)) => {
                    kind.to_string() == "Host" && within(&place, group)
                }
                _ => false,
            };
            if !principal_fits || !resource_fits {
                continue;
            }
            let formula = residual::condition(&rule.body, action, atoms, Some(&given)).map_err(|fault| {
                CompileError::Unplaceable { rule: rule.info.id.clone(), part: fault.part, why: fault.why }
            })?;
            if !matches!(formula, Formula::False | Formula::Error) {
                left.push((rule, formula));
            }
        }
        Ok(left)
    }
}

fn uid_of(uid: &pst::EntityUID) -> Option<cedar_policy::EntityUid> {
    let kind = uid.ty.to_string().parse().ok()?;
    Some(cedar_policy::EntityUid::from_type_name_and_id(kind, cedar_policy::EntityId::new(&uid.eid)))
}

/// The rules for the tables, in the same order. Ranks say which of several rules that hold is named.
fn entries(rules: &[(&Rule, Formula)], indices: &[u32]) -> Vec<Entry> {
    let mut by_strength: Vec<usize> = (0..rules.len()).collect();
    // Stable: rules of equal strength stay in order of their ids.
    by_strength.sort_by_key(|at| std::cmp::Reverse(rules[*at].0.info.on_violation));
    let mut ranks = vec![0; rules.len()];
    for (rank, at) in by_strength.into_iter().enumerate() {
        ranks[at] = rank as u32;
    }
    let entry = |(at, (rule, _)): (usize, &(&Rule, Formula))| {
        let effect = match (rule.forbids, rule.monitored) {
            (false, _) => Effect::Permit,
            (true, false) => Effect::Forbid,
            (true, true) => Effect::Watch,
        };
        // `@on_violation` does not count for permits.
        let rank = if rule.forbids { ranks[at] } else { at as u32 };
        Entry { effect, on_violation: rule.info.on_violation, rank, index: indices[at] }
    };
    rules.iter().enumerate().map(entry).collect()
}

/// The rules with the most atoms about what there was too much of; at most eight.
fn blamed(atoms: &Atoms, rules: &[(&Rule, Formula)], about: fn(&Atom) -> bool) -> Vec<String> {
    let mut counted: Vec<(usize, &str)> = rules
        .iter()
        .map(|(rule, formula)| {
            let mut used = BTreeSet::new();
            formula.atoms(&mut used);
            let count = used.iter().filter(|atom| about(atoms.atom(**atom))).count();
            (count, rule.info.id.as_str())
        })
        .filter(|(count, _)| *count > 0)
        .collect();
    counted.sort_by_key(|(count, id)| (std::cmp::Reverse(*count), *id));
    let more = counted.len().saturating_sub(8);
    let mut names: Vec<String> = counted.iter().take(8).map(|(_, id)| format!("`{id}`")).collect();
    if more > 0 {
        names.push(format!("and {more} more"));
    }
    names
}

fn about_path(atom: &Atom) -> bool {
    matches!(atom, Atom::File(_))
}

fn about_args(atom: &Atom) -> bool {
    matches!(atom, Atom::Args(_))
}

fn about_connections(atom: &Atom) -> bool {
    matches!(atom, Atom::Address(_) | Atom::Port(_))
}

/// The rules of one action, on their way into the arena.
struct Tables<'a> {
    atoms: &'a Atoms,
    entries: &'a [Entry],
    rest: Rest,
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

    fn automaton(
        &self,
        about: fn(&Atom) -> bool,
        advice: &'static str,
    ) -> Result<(Vec<bool>, Automaton, Vec<Vec<u32>>), TooMuch> {
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

    fn exec(self, header: &mut PolicyHeader, arena: &mut Vec<u32>) -> Result<(), TooMuch> {
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

    fn connect(self, header: &mut PolicyHeader, arena: &mut Vec<u32>) -> Result<(), TooMuch> {
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
