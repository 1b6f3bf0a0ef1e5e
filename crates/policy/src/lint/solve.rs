//! Whether conditions can hold together, decided attribute by attribute as the tables are, with an example if they can.
//!
//! The atoms about one attribute split its values into classes (`automaton`, `trie`); for each class the formulas become
//! simpler, until none is open. So "no" is a proof. The work is bounded; what would exceed the bound is told as unknown.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeSet, HashMap, HashSet};
use std::rc::Rc;

use sallyport_sensor_abi::policy::operation;

use super::world::World;
use crate::automaton::{self, Weights};
use crate::formula::{ArgTest, Atom, Atoms, Formula, Known, KnownText, Pattern, Piece, Prefix, Text};
use crate::residual::{Action, matches};
use crate::trie::{self, Classes};

/// Steps of one question.
const MAX_STEPS: usize = 60_000;
/// Steps of all questions about a bundle.
const MAX_ALL_STEPS: usize = 12_000_000;
/// Most groups, or free conditions, that are tried in all combinations.
const MAX_FREE: usize = 9;
/// Most conditions whose texts have a `*` that is not their end, in one automaton: these multiply.
const MAX_WILD: usize = 8;
/// Most such texts.
const MAX_PATTERNS: usize = 64;
/// Most bytes of texts in one automaton.
const MAX_BYTES: usize = 20_000;
/// What `principal.kind` can be.
pub(crate) const KINDS: [&str; 4] = ["human", "ci", "agent", "unbrokered"];

/// A condition, and whether it must hold; not to hold includes an error.
pub(crate) type Demand = (Formula, bool);

/// The answer to whether conditions can hold together.
#[derive(Debug)]
pub(crate) enum Found {
    Never,
    /// With an example: the atoms that hold in it are the only ones.
    Sometimes(Box<Model>),
    /// Too much work.
    Unknown,
}

/// An example: which of the atoms hold that were looked at, and values for all other atoms to be tried on.
#[derive(Clone, Debug, Default)]
pub(crate) struct Model {
    decided: HashMap<u32, bool>,
    file: Option<Vec<u8>>,
    caller: Option<Vec<u8>>,
    args: Option<Vec<u8>>,
    address: Option<Prefix>,
    port: Option<u16>,
    protocol: Option<u8>,
    operation: Option<u8>,
    class: Option<u32>,
    groups: BTreeSet<String>,
    texts: Vec<(KnownText, Vec<u8>)>,
}

/// One attribute.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Layer {
    Fileless,
    Setuid,
    Outside,
    Operation,
    Protocol,
    Hosts,
    Person,
    Text(KnownText),
    Free,
    Port,
    Address,
    Caller,
    File,
    Args,
}

const LAYERS: [Layer; 17] = [
    Layer::Fileless,
    Layer::Setuid,
    Layer::Outside,
    Layer::Operation,
    Layer::Protocol,
    Layer::Hosts,
    Layer::Person,
    Layer::Text(KnownText::LocalUser),
    Layer::Text(KnownText::Kind),
    Layer::Text(KnownText::Issuer),
    Layer::Text(KnownText::OnBehalfOf),
    Layer::Free,
    Layer::Port,
    Layer::Address,
    Layer::Caller,
    Layer::File,
    Layer::Args,
];

/// A value of an attribute, as an example of its class.
#[derive(Clone, Debug)]
enum Value {
    None,
    Bytes(Vec<u8>),
    Number(u32),
    Address(Prefix),
    Groups(BTreeSet<String>),
}

/// The atoms that hold in each class of an attribute, with a value.
type Split = Rc<Vec<(Vec<u32>, Value)>>;

/// Splits that were made, by attribute and atoms; none: too much work.
type Splits = HashMap<(Layer, Vec<u32>), Option<Split>>;

/// Decides conditions about one action.
pub(crate) struct Solver<'a> {
    world: &'a World,
    action: Action,
    steps: Cell<usize>,
    /// Left for all questions.
    left: &'a Cell<usize>,
    splits: RefCell<Splits>,
}

/// Steps for all questions about a bundle.
pub(crate) fn allowance() -> Cell<usize> {
    Cell::new(MAX_ALL_STEPS)
}

impl<'a> Solver<'a> {
    pub(crate) fn new(world: &'a World, action: Action, left: &'a Cell<usize>) -> Self {
        Self { world, action, steps: Cell::new(0), left, splits: RefCell::default() }
    }

    /// Whether all demands can be met at once.
    pub(crate) fn together(&self, atoms: &Atoms, demands: Vec<Demand>) -> Found {
        self.steps.set(MAX_STEPS);
        let mut model = Model::default();
        let mut failed = HashSet::new();
        match self.search(atoms, 0, demands, &mut model, &mut failed) {
            Some(true) => Found::Sometimes(Box::new(model)),
            Some(false) => Found::Never,
            None => Found::Unknown,
        }
    }

    /// Whether a condition holds always.
    pub(crate) fn always(&self, atoms: &Atoms, formula: &Formula) -> bool {
        matches!(self.together(atoms, vec![(formula.clone(), false)]), Found::Never)
    }

    /// None: too much work.
    fn search(
        &self,
        atoms: &Atoms,
        layer: usize,
        demands: Vec<Demand>,
        model: &mut Model,
        failed: &mut HashSet<(usize, Vec<Demand>)>,
    ) -> Option<bool> {
        let mut open: Vec<Demand> = Vec::with_capacity(demands.len());
        for (formula, wanted) in demands {
            match (&formula, wanted) {
                (Formula::True, true) | (Formula::False | Formula::Error, false) => {}
                (Formula::True, false) | (Formula::False | Formula::Error, true) => return Some(false),
                _ => open.push((formula, wanted)),
            }
        }
        if open.is_empty() {
            return Some(true);
        }
        let at = *LAYERS.get(layer)?;
        let mut used = BTreeSet::new();
        for (formula, _) in &open {
            formula.atoms(&mut used);
        }
        let mine: Vec<u32> = used.into_iter().filter(|id| layer_of(atoms.atom(*id)) == at).collect();
        if mine.is_empty() {
            return self.search(atoms, layer + 1, open, model, failed);
        }
        let key = (layer, open);
        if failed.contains(&key) {
            return Some(false);
        }
        let split = self.split(atoms, at, &mine)?;
        for (holding, value) in split.iter() {
            let left = self.left.get().checked_sub(1)?;
            self.left.set(left);
            self.steps.set(self.steps.get().checked_sub(1)?);
            let assigned =
                |id: u32| mine.binary_search(&id).is_ok().then(|| holding.binary_search(&id).is_ok());
            let next = key.1.iter().map(|(formula, wanted)| (formula.assign(&assigned), *wanted)).collect();
            if self.search(atoms, layer + 1, next, model, failed)? {
                model.decided.extend(mine.iter().map(|id| (*id, holding.binary_search(id).is_ok())));
                model.take(at, value);
                return Some(true);
            }
        }
        failed.insert(key);
        Some(false)
    }

    /// The classes of an attribute by these atoms. None: too much work.
    fn split(&self, atoms: &Atoms, layer: Layer, mine: &[u32]) -> Option<Split> {
        let key = (layer, mine.to_vec());
        if let Some(known) = self.splits.borrow().get(&key) {
            return known.clone();
        }
        let split = self.make_split(atoms, layer, mine).map(Rc::new);
        self.splits.borrow_mut().insert(key, split.clone());
        split
    }

    fn make_split(&self, atoms: &Atoms, layer: Layer, mine: &[u32]) -> Option<Vec<(Vec<u32>, Value)>> {
        let numbered = |range: std::ops::RangeInclusive<u32>, test: &dyn Fn(&Atom, u32) -> bool| {
            let mut seen = HashSet::new();
            let classes = range.filter_map(|number| {
                let holding: Vec<u32> =
                    mine.iter().copied().filter(|id| test(atoms.atom(*id), number)).collect();
                seen.insert(holding.clone()).then_some((holding, Value::Number(number)))
            });
            Some(classes.collect())
        };
        match layer {
            Layer::Fileless | Layer::Setuid | Layer::Outside => {
                Some(vec![(vec![], Value::None), (mine.to_vec(), Value::None)])
            }
            Layer::Operation => numbered(
                0..=operation::COUNT - 1,
                &|atom, number| matches!(atom, Atom::Operation(all) if all.contains(&(number as u8))),
            ),
            Layer::Protocol => numbered(
                0..=255,
                &|atom, number| matches!(atom, Atom::Protocol(all) if all.contains(&(number as u8))),
            ),
            Layer::Hosts => {
                let classes = self.world.classes(self.action);
                numbered(
                    classes.start..=classes.end - 1,
                    &|atom, number| matches!(atom, Atom::Known(Known::Hosts(all)) if all.contains(&number)),
                )
            }
            Layer::Port => {
                let mut cuts = BTreeSet::from([0u32]);
                for id in mine {
                    if let Atom::Port(ranges) = &**atoms.atom(*id) {
                        for (low, high) in ranges {
                            cuts.extend([u32::from(*low), u32::from(*high) + 1]);
                        }
                    }
                }
                let mut seen = HashSet::new();
                let mut classes = Vec::new();
                for port in cuts.into_iter().filter_map(|cut| u16::try_from(cut).ok()) {
                    let holds = |id: &u32| {
                        matches!(&**atoms.atom(*id), Atom::Port(all)
                            if all.iter().any(|(low, high)| (*low..=*high).contains(&port)))
                    };
                    let holding: Vec<u32> = mine.iter().copied().filter(holds).collect();
                    if seen.insert(holding.clone()) {
                        classes.push((holding, Value::Number(u32::from(port))));
                    }
                }
                Some(classes)
            }
            Layer::Address => addresses(atoms, mine),
            Layer::Person => self.people(atoms, mine),
            Layer::Free => {
                (mine.len() <= MAX_FREE).then_some(())?;
                let pick = |bits: u32| mine.iter().zip(0..).filter(move |(_, at)| bits >> at & 1 == 1);
                Some(
                    (0..1u32 << mine.len())
                        .map(|bits| (pick(bits).map(|(id, _)| *id).collect(), Value::None))
                        .collect(),
                )
            }
            Layer::Text(KnownText::Kind) => {
                let classes = KINDS.iter().map(|kind| {
                    let holds = |id: &u32| fits(atoms.atom(*id), kind.as_bytes());
                    let holding = mine.iter().copied().filter(holds).collect();
                    (holding, Value::Bytes(kind.as_bytes().to_vec()))
                });
                Some(classes.collect())
            }
            Layer::Text(_) | Layer::Caller | Layer::File | Layer::Args => self.texts(atoms, layer, mine),
        }
    }

    /// Memberships: whoever is in a group is in those that it lies in, and nobody is two people.
    fn people(&self, atoms: &Atoms, mine: &[u32]) -> Option<Vec<(Vec<u32>, Value)>> {
        let mut groups: Vec<(u32, &str)> = Vec::new();
        let mut users = Vec::new();
        for id in mine {
            match &**atoms.atom(*id) {
                Atom::Known(Known::Group(name)) => groups.push((*id, name)),
                _ => users.push(*id),
            }
        }
        (groups.len() <= MAX_FREE).then_some(())?;
        let mut classes = Vec::new();
        for bits in 0..1u32 << groups.len() {
            let has = |at: usize| bits >> at & 1 == 1;
            let closed = groups.iter().enumerate().filter(|(at, _)| has(*at)).all(|(_, (_, name))| {
                let above = self.world.above(name);
                let within = |other: &str| above.is_some_and(|above| above.contains(other));
                groups.iter().enumerate().all(|(at, (_, other))| has(at) || !within(other))
            });
            if !closed {
                continue;
            }
            let members: Vec<(u32, &str)> =
                groups.iter().enumerate().filter(|(at, _)| has(*at)).map(|(_, group)| *group).collect();
            let names: BTreeSet<String> = members
                .iter()
                .flat_map(|(_, name)| {
                    self.world.above(name).cloned().unwrap_or_else(|| BTreeSet::from([(*name).to_owned()]))
                })
                .collect();
            for user in std::iter::once(None).chain(users.iter().map(Some)) {
                let mut holding: Vec<u32> = members.iter().map(|(id, _)| *id).chain(user.copied()).collect();
                holding.sort_unstable();
                classes.push((holding, Value::Groups(names.clone())));
            }
        }
        Some(classes)
    }

    fn texts(&self, atoms: &Atoms, layer: Layer, mine: &[u32]) -> Option<Vec<(Vec<u32>, Value)>> {
        let (mut wild, mut patterns, mut bytes) = (0, 0, 0);
        for id in mine {
            let before = patterns;
            weigh(atoms.atom(*id), &mut patterns, &mut bytes);
            wild += usize::from(patterns > before);
        }
        (wild <= MAX_WILD && patterns <= MAX_PATTERNS && bytes <= MAX_BYTES).then_some(())?;
        // Paths begin with a slash; abstract sockets with `@`.
        let rooted = u32::MAX;
        let beginnings: &[&[u8]] = match (layer, self.action) {
            (Layer::File, Action::File(op))
                if sallyport_sensor_abi::policy::file_op::NAMES[op as usize] == "connect_unix" =>
            {
                &[b"/", b"@"]
            }
            _ => &[b"/"],
        };
        let root = Atom::File(
            beginnings
                .iter()
                .map(|text| (Text::Path, vec![Piece::Bytes(text.to_vec()), Piece::Any]))
                .collect(),
        );
        let is_path = matches!(layer, Layer::File | Layer::Caller);
        let list = mine.iter().map(|id| (*id, &**atoms.atom(*id))).chain(is_path.then_some((rooted, &root)));
        let (automaton, classes) = automaton::build(list, &Weights::default()).ok()?;
        let examples = automaton.examples(classes.len());
        let mut split = Vec::new();
        for (mut holding, example) in classes.into_iter().zip(examples) {
            if is_path && holding.pop() != Some(rooted) {
                continue;
            }
            split.push((holding, Value::Bytes(example)));
        }
        Some(split)
    }
}

impl Model {
    fn take(&mut self, layer: Layer, value: &Value) {
        match (layer, value.clone()) {
            (Layer::File, Value::Bytes(bytes)) => self.file = Some(bytes),
            (Layer::Caller, Value::Bytes(bytes)) => self.caller = Some(bytes),
            (Layer::Args, Value::Bytes(bytes)) => self.args = Some(bytes),
            (Layer::Text(text), Value::Bytes(bytes)) => self.texts.push((text, bytes)),
            (Layer::Port, Value::Number(port)) => self.port = u16::try_from(port).ok(),
            (Layer::Protocol, Value::Number(number)) => self.protocol = u8::try_from(number).ok(),
            (Layer::Operation, Value::Number(number)) => self.operation = u8::try_from(number).ok(),
            (Layer::Hosts, Value::Number(class)) => self.class = Some(class),
            (Layer::Address, Value::Address(address)) => self.address = Some(address),
            (Layer::Person, Value::Groups(groups)) => self.groups = groups,
            _ => {}
        }
    }

    /// Whether a formula surely holds in this example. An attribute that the example leaves open has an ordinary value.
    pub(crate) fn holds(&self, atoms: &Atoms, formula: &Formula) -> bool {
        formula.assign(&|id| Some(self.atom(id, atoms.atom(id)))) == Formula::True
    }

    /// The path, if the conditions were about it.
    pub(crate) fn path(&self) -> Option<&[u8]> {
        self.file.as_deref()
    }

    fn atom(&self, id: u32, atom: &Atom) -> bool {
        if let Some(decided) = self.decided.get(&id) {
            return *decided;
        }
        let ordinary = b"/zz/zz".as_slice();
        match atom {
            Atom::Fileless | Atom::Setuid | Atom::Outside => false,
            Atom::File(_) => fits(atom, self.file.as_deref().unwrap_or(ordinary)),
            Atom::Caller(_) => fits(atom, self.caller.as_deref().unwrap_or(ordinary)),
            Atom::Args(_) => fits(atom, self.args.as_deref().unwrap_or(b"zz")),
            Atom::Operation(all) => all.contains(&self.operation.unwrap_or(0)),
            Atom::Protocol(all) => all.contains(&self.protocol.unwrap_or(6)),
            Atom::Port(all) => all.iter().any(|(low, high)| (*low..=*high).contains(&self.port.unwrap_or(9))),
            Atom::Address(all) => {
                let anywhere = Prefix::new(std::net::IpAddr::from([203, 0, 113, 77]), 32);
                all.iter().any(|range| range.covers(&self.address.unwrap_or(anywhere)))
            }
            Atom::Known(Known::Hosts(all)) => all.contains(&self.class.unwrap_or(0)),
            Atom::Known(Known::Group(name)) => self.groups.contains(name),
            Atom::Known(Known::Text(text, _)) => {
                let value = self.texts.iter().find(|(one, _)| one == text).map(|(_, value)| value.as_slice());
                fits(atom, value.unwrap_or(if *text == KnownText::Kind { b"human" } else { b"zz" }))
            }
            Atom::Known(Known::User(_) | Known::Free(_)) => false,
        }
    }
}

fn layer_of(atom: &Atom) -> Layer {
    match atom {
        Atom::Fileless => Layer::Fileless,
        Atom::Setuid => Layer::Setuid,
        Atom::Outside => Layer::Outside,
        Atom::File(_) => Layer::File,
        Atom::Caller(_) => Layer::Caller,
        Atom::Operation(_) => Layer::Operation,
        Atom::Args(_) => Layer::Args,
        Atom::Address(_) => Layer::Address,
        Atom::Port(_) => Layer::Port,
        Atom::Protocol(_) => Layer::Protocol,
        Atom::Known(Known::Group(_) | Known::User(_)) => Layer::Person,
        Atom::Known(Known::Hosts(_)) => Layer::Hosts,
        Atom::Known(Known::Text(text, _)) => Layer::Text(*text),
        Atom::Known(Known::Free(_)) => Layer::Free,
    }
}

/// Whether an atom about a text holds for it. Arguments are separated by zero bytes.
fn fits(atom: &Atom, text: &[u8]) -> bool {
    match atom {
        Atom::File(tests) => tests.iter().any(|(what, pattern)| match what {
            Text::Path => matches(text, pattern),
            Text::Name => matches(text.rsplit(|byte| *byte == b'/').next().unwrap_or(text), pattern),
        }),
        Atom::Caller(patterns) | Atom::Known(Known::Text(_, patterns)) => {
            patterns.iter().any(|pattern| matches(text, pattern))
        }
        Atom::Args(tests) => {
            let args: Vec<&[u8]> = text.split(|byte| *byte == 0).collect();
            tests.iter().any(|test| match test {
                ArgTest::Some(arg) => args.contains(&arg.as_slice()),
                ArgTest::Every(all) => args.iter().all(|arg| all.contains(*arg)),
                ArgTest::Line(pattern) => matches(&args.join(&b' '), pattern),
            })
        }
        _ => false,
    }
}

/// Adds up what makes an automaton large.
fn weigh(atom: &Atom, wild: &mut usize, bytes: &mut usize) {
    let mut add = |pattern: &Pattern, named: bool| {
        let inner = pattern.iter().rev().skip(1).any(|piece| *piece == Piece::Any);
        *wild += usize::from(inner || (named && pattern.contains(&Piece::Any)));
        let length = |piece: &Piece| if let Piece::Bytes(text) = piece { text.len() } else { 0 };
        *bytes += pattern.iter().map(length).sum::<usize>();
    };
    match atom {
        Atom::File(tests) => tests.iter().for_each(|(text, pattern)| add(pattern, *text == Text::Name)),
        Atom::Caller(patterns) | Atom::Known(Known::Text(_, patterns)) => {
            patterns.iter().for_each(|pattern| add(pattern, false));
        }
        Atom::Args(tests) => {
            for test in tests {
                match test {
                    ArgTest::Some(arg) => add(&vec![Piece::Bytes(arg.clone())], false),
                    ArgTest::Every(all) => {
                        all.iter().for_each(|arg| add(&vec![Piece::Bytes(arg.clone())], false))
                    }
                    ArgTest::Line(pattern) => add(pattern, false),
                }
            }
        }
        _ => {}
    }
}

/// Classes of addresses, with an address of each.
fn addresses(atoms: &Atoms, mine: &[u32]) -> Option<Vec<(Vec<u32>, Value)>> {
    let mut ranges = Vec::new();
    for id in mine {
        if let Atom::Address(all) = &**atoms.atom(*id) {
            ranges.extend(all.iter().map(|range| (*range, *id)));
        }
    }
    let mut classes = Classes::default();
    let mut found: HashMap<u32, Prefix> = HashMap::new();
    for v6 in [false, true] {
        let trie = trie::addresses(&ranges, v6, &mut classes).ok()?;
        trie.examples(&mut |class, bits| {
            found.entry(class).or_insert(Prefix { v6, bits, length: Prefix::full(v6) });
        });
    }
    let holding = classes.holding.into_iter().zip(0u32..);
    Some(
        holding.filter_map(|(holding, class)| Some((holding, Value::Address(*found.get(&class)?)))).collect(),
    )
}
