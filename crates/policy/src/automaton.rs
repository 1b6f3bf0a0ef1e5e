//! Byte automata: many patterns become one table that is walked once per byte.
//!
//! All patterns go into one non-deterministic automaton that shares their beginnings (so thousands of exact
//! paths are one trie); the subset construction makes it deterministic and tells, for each state, which atoms hold if
//! the text ends there. [`Automaton::minimise`] then merges states that no input can tell apart.

mod minimise;
mod weight;

pub(crate) use weight::Weights;
use weight::{Best, beaten};

use std::collections::{BTreeSet, HashMap};

use crate::formula::{ArgTest, Atom, Known, Pattern, Piece, Text};
use crate::mutant;

/// What lies between two arguments.
const SEPARATOR: u8 = 0;
/// Most states of an automaton before it is minimised.
const MAX_STATES: usize = 1 << 18;
/// Most entries of its table.
const MAX_ENTRIES: usize = 1 << 23;

/// The patterns need too many states.
#[derive(Debug)]
pub(crate) struct TooLarge;

/// A deterministic automaton over symbols; each byte stands for one symbol.
#[derive(Debug)]
pub(crate) struct Automaton {
    pub(crate) symbols: [u8; 256],
    pub(crate) n_symbols: usize,
    /// `next[state * n_symbols + symbol]`.
    pub(crate) next: Vec<u32>,
    /// Class of each state: what holds if the text ends here.
    pub(crate) class: Vec<u32>,
    pub(crate) start: u32,
}

impl Automaton {
    /// For each class the shortest text that ends in it, with readable bytes where these will do.
    pub(crate) fn examples(&self, classes: usize) -> Vec<Vec<u8>> {
        let readable = |byte: &u8| (!byte.is_ascii_alphanumeric(), !byte.is_ascii_graphic(), *byte);
        let mut bytes = vec![None; self.n_symbols];
        for byte in 0..=u8::MAX {
            let best: &mut Option<u8> = &mut bytes[usize::from(self.symbols[usize::from(byte)])];
            if best.is_none_or(|best| readable(&byte) < readable(&best)) {
                *best = Some(byte);
            }
        }
        let mut before: Vec<Option<(u32, u8)>> = vec![None; self.class.len()];
        let mut order = vec![self.start];
        let mut examples: Vec<Option<Vec<u8>>> = vec![None; classes];
        let mut at = 0;
        while let Some(state) = order.get(at).copied() {
            at += 1;
            let example = &mut examples[self.class[state as usize] as usize];
            if example.is_none() {
                let (mut text, mut here) = (Vec::new(), state);
                while let Some((from, byte)) = before[here as usize] {
                    text.push(byte);
                    here = from;
                }
                text.reverse();
                *example = Some(text);
            }
            for (symbol, byte) in bytes.iter().enumerate() {
                let next = self.next[state as usize * self.n_symbols + symbol];
                if let (Some(byte), None) = (byte, before[next as usize])
                    && next != self.start
                {
                    before[next as usize] = Some((state, *byte));
                    order.push(next);
                }
            }
        }
        examples.into_iter().map(Option::unwrap_or_default).collect()
    }
}

/// Builds the automaton of these atoms. Also returns, for each class, the atoms that hold in it, sorted; without those that
/// by `weights` make no difference there.
pub(crate) fn build<'a>(
    atoms: impl Iterator<Item = (u32, &'a Atom)>,
    weights: &Weights,
) -> Result<(Automaton, Vec<Vec<u32>>), TooLarge> {
    let mut nfa = Nfa::default();
    for (id, atom) in atoms {
        nfa.sink(id);
        nfa.add(id, atom);
    }
    nfa.determinise(weights)
}

/// What repeats any number of times.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Loop {
    Anything,
    ButSlash,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Step {
    Byte(u8),
    /// A space of the command line: in an argument, or between two.
    Gap,
    Loop(Loop),
}

#[derive(Default)]
struct Node {
    /// Steps that read one symbol.
    edges: Vec<(Step, u32)>,
    /// Nodes that are reached for nothing.
    free: Vec<u32>,
    repeats: Option<Loop>,
    holds: Vec<u32>,
}

/// What can still come to hold from each node.
struct Reach<'a> {
    weights: &'a Weights,
    /// The atoms; sorted.
    atoms: Vec<Vec<u32>>,
    /// The rules that those can bring about.
    best: Vec<Vec<Best>>,
    /// Some rule is certain from the beginning.
    some_certain: bool,
}

struct Nfa {
    nodes: Vec<Node>,
    /// To share beginnings.
    trie: HashMap<(u32, Step), u32>,
    /// Where arguments begin, if a pattern needs that.
    argument: Option<u32>,
    /// For each atom the node where it holds whatever follows.
    sinks: HashMap<u32, u32>,
}

impl Default for Nfa {
    fn default() -> Self {
        Self { nodes: vec![Node::default()], trie: HashMap::new(), argument: None, sinks: HashMap::new() }
    }
}

impl Nfa {
    fn add(&mut self, id: u32, atom: &Atom) {
        match atom {
            Atom::File(tests) => {
                for (text, pattern) in tests {
                    self.add_text(id, Some(*text), pattern);
                }
            }
            Atom::Args(tests) => {
                for test in tests {
                    match test {
                        ArgTest::Some(arg) => self.add_some(id, arg),
                        ArgTest::Every(args) => self.add_every(id, args),
                        ArgTest::Line(pattern) => self.add_text(id, None, pattern),
                    }
                }
            }
            Atom::Caller(patterns) => {
                for pattern in patterns {
                    let wrong = mutant::is(mutant::CALLER);
                    self.add_text(id, Some(if wrong { Text::Name } else { Text::Path }), pattern);
                }
            }
            Atom::Known(Known::Text(_, patterns)) => {
                for pattern in patterns {
                    self.add_text(id, Some(Text::Path), pattern);
                }
            }
            Atom::Known(_)
            | Atom::Fileless
            | Atom::Setuid
            | Atom::Outside
            | Atom::Operation(_)
            | Atom::Address(_)
            | Atom::Port(_)
            | Atom::Protocol(_) => {}
        }
    }

    fn add_some(&mut self, id: u32, arg: &[u8]) {
        // All arguments of all atoms share one trie, entered where an argument begins.
        let begin = self.argument_begins();
        let sink = self.sink(id);
        let end = self.path(begin, arg.iter().map(|byte| Step::Byte(*byte)));
        self.holds(end, id);
        self.edge(end, Step::Byte(SEPARATOR), sink);
    }

    fn add_every(&mut self, id: u32, args: &BTreeSet<Vec<u8>>) {
        // A trie of its own, since its ends lead back to its root.
        let root = self.node();
        self.nodes[0].free.push(root);
        for arg in args {
            let end = self.path(root, arg.iter().map(|byte| Step::Byte(*byte)));
            self.holds(end, id);
            self.edge(end, Step::Byte(SEPARATOR), root);
        }
    }

    /// A pattern over path or name; over the command line if `text` is none.
    fn add_text(&mut self, id: u32, text: Option<Text>, pattern: &Pattern) {
        let literal = |byte: u8| pattern.iter().any(|p| matches!(p, Piece::Bytes(b) if b.contains(&byte)));
        // Neither can be part of what the kernel sees, so such a pattern never matches.
        if literal(0) || (text == Some(Text::Name) && literal(b'/')) {
            return;
        }
        let mut steps = Vec::new();
        for piece in pattern {
            match piece {
                Piece::Any if text == Some(Text::Name) => steps.push(Step::Loop(Loop::ButSlash)),
                Piece::Any if mutant::is(mutant::SLASH) => steps.push(Step::Loop(Loop::ButSlash)),
                Piece::Any => steps.push(Step::Loop(Loop::Anything)),
                Piece::Bytes(bytes) => steps.extend(bytes.iter().map(|byte| match byte {
                    b' ' if text.is_none() => Step::Gap,
                    byte => Step::Byte(*byte),
                })),
            }
        }
        let end = self.path(0, steps.iter().copied());
        self.holds(end, id);
        if text == Some(Text::Name) {
            let before = [Step::Loop(Loop::Anything), Step::Byte(b'/')];
            let end = self.path(0, before.into_iter().chain(steps));
            self.holds(end, id);
        }
    }

    fn node(&mut self) -> u32 {
        self.nodes.push(Node::default());
        self.nodes.len() as u32 - 1
    }

    fn edge(&mut self, from: u32, step: Step, to: u32) {
        let edges = &mut self.nodes[from as usize].edges;
        if !edges.contains(&(step, to)) {
            edges.push((step, to));
        }
    }

    fn argument_begins(&mut self) -> u32 {
        if let Some(node) = self.argument {
            return node;
        }
        let begin = self.node();
        self.argument = Some(begin);
        self.nodes[0].free.push(begin);
        let before = self.path(0, [Step::Loop(Loop::Anything)].into_iter());
        self.edge(before, Step::Byte(SEPARATOR), begin);
        begin
    }

    fn sink(&mut self, id: u32) -> u32 {
        if let Some(node) = self.sinks.get(&id) {
            return *node;
        }
        let node = self.node();
        self.nodes[node as usize].repeats = Some(Loop::Anything);
        self.nodes[node as usize].holds.push(id);
        self.sinks.insert(id, node);
        node
    }

    /// The atoms that can still come to hold from each node; sorted.
    fn reach(&self) -> Vec<Vec<u32>> {
        let mut reach: Vec<BTreeSet<u32>> =
            self.nodes.iter().map(|node| node.holds.iter().copied().collect()).collect();
        // Most nodes lead to later ones, so that few rounds suffice.
        loop {
            let mut changed = false;
            for at in (0..self.nodes.len()).rev() {
                let node = &self.nodes[at];
                let before = reach[at].len();
                let mut all = std::mem::take(&mut reach[at]);
                for to in node.edges.iter().map(|(_, to)| to).chain(&node.free) {
                    if *to as usize != at {
                        all.extend(&reach[*to as usize]);
                    }
                }
                changed |= all.len() != before;
                reach[at] = all;
            }
            if !changed {
                return reach.into_iter().map(|all| all.into_iter().collect()).collect();
            }
        }
    }

    /// The set of nodes without what no longer matters: once an atom holds whatever follows, it is of no interest in
    /// which ways it might come to hold again, nor what can only bring about rules that are weaker than a certain one.
    fn settle(&self, nodes: Vec<u32>, reach: &Reach<'_>) -> Vec<u32> {
        let mut settled: Vec<u32> = Vec::new();
        for node in &nodes {
            let node = &self.nodes[*node as usize];
            if node.repeats == Some(Loop::Anything) {
                settled.extend(&node.holds);
            }
        }
        if settled.is_empty() && !reach.some_certain {
            return nodes;
        }
        settled.sort_unstable();
        settled.dedup();
        let certain = reach.weights.certain(&settled);
        settled.retain(|atom| !reach.weights.idle(*atom, &certain));
        let over = |node: u32| {
            let node = node as usize;
            let atoms = &reach.atoms[node];
            beaten(&reach.best[node], &certain)
                || (atoms.len() <= settled.len()
                    && atoms.iter().all(|atom| settled.binary_search(atom).is_ok()))
        };
        let mut left: Vec<u32> = nodes.into_iter().filter(|node| !over(*node)).collect();
        left.extend(settled.iter().map(|atom| self.sinks[atom]));
        left.sort_unstable();
        left.dedup();
        left
    }

    /// Follows the steps from a node, making what is missing.
    fn path(&mut self, from: u32, steps: impl Iterator<Item = Step>) -> u32 {
        let mut at = from;
        for step in steps {
            at = match self.trie.get(&(at, step)) {
                Some(next) => *next,
                None => {
                    let next = self.node();
                    self.trie.insert((at, step), next);
                    match step {
                        Step::Loop(kind) => {
                            self.nodes[next as usize].repeats = Some(kind);
                            self.nodes[at as usize].free.push(next);
                        }
                        step => self.nodes[at as usize].edges.push((step, next)),
                    }
                    next
                }
            };
        }
        at
    }

    fn holds(&mut self, node: u32, id: u32) {
        let holds = &mut self.nodes[node as usize].holds;
        if !holds.contains(&id) {
            holds.push(id);
        }
    }

    /// Bytes that no pattern tells apart share a symbol; the separator always has its own.
    fn symbols(&self) -> ([u8; 256], usize) {
        let mut own = BTreeSet::from([SEPARATOR]);
        for node in &self.nodes {
            for (step, _) in &node.edges {
                match step {
                    Step::Byte(byte) => own.extend([*byte]),
                    Step::Gap => own.extend([b' ']),
                    Step::Loop(_) => {}
                }
            }
            if node.repeats == Some(Loop::ButSlash) {
                own.insert(b'/');
            }
        }
        let mut symbols = [0; 256];
        let mut n = usize::from(own.len() < 256);
        for byte in own {
            symbols[usize::from(byte)] = n as u8;
            n += 1;
        }
        (symbols, n)
    }

    fn determinise(&self, weights: &Weights) -> Result<(Automaton, Vec<Vec<u32>>), TooLarge> {
        let (symbols, n_symbols) = self.symbols();
        let slash = usize::from(symbols[usize::from(b'/')]);
        let (gap, separator) = (symbols[usize::from(b' ')], symbols[usize::from(SEPARATOR)]);
        let mut states: HashMap<Vec<u32>, u32> = HashMap::new();
        let mut sets: Vec<Vec<u32>> = Vec::new();
        let mut classes: HashMap<Vec<u32>, u32> = HashMap::new();
        let mut automaton = Automaton { symbols, n_symbols, next: vec![], class: vec![], start: 0 };
        let atoms = self.reach();
        let best = atoms.iter().map(|atoms| weights.reach(atoms.iter())).collect();
        let some_certain = weights.certain(&[]) != weights.reach(std::iter::empty());
        let reach = Reach { weights, atoms, best, some_certain };
        let start = self.settle(self.closure(vec![0]), &reach);
        states.insert(start.clone(), 0);
        sets.push(start);
        let mut at = 0;
        while at < sets.len() {
            if sets.len() > MAX_STATES || sets.len() * n_symbols > MAX_ENTRIES {
                return Err(TooLarge);
            }
            let set = std::mem::take(&mut sets[at]);
            let mut holds: Vec<u32> = Vec::new();
            let mut always: Vec<u32> = Vec::new();
            let mut but_slash: Vec<u32> = Vec::new();
            let mut read: Vec<Vec<u32>> = vec![Vec::new(); n_symbols];
            for node_id in &set {
                let node = &self.nodes[*node_id as usize];
                holds.extend(&node.holds);
                match node.repeats {
                    Some(Loop::Anything) => always.push(*node_id),
                    Some(Loop::ButSlash) => but_slash.push(*node_id),
                    None => {}
                }
                for (step, to) in &node.edges {
                    match step {
                        Step::Byte(byte) => {
                            read[usize::from(symbols[usize::from(*byte)])].push(*to);
                        }
                        Step::Gap => {
                            read[usize::from(gap)].push(*to);
                            read[usize::from(separator)].push(*to);
                        }
                        Step::Loop(_) => {}
                    }
                }
            }
            holds.sort_unstable();
            holds.dedup();
            let n_classes = classes.len() as u32;
            automaton.class.push(*classes.entry(holds).or_insert(n_classes));
            // Most symbols lead to the same place: what repeats goes on.
            let mut usual = None;
            for (symbol, mut to) in read.into_iter().enumerate() {
                let ordinary = to.is_empty() && (but_slash.is_empty() || symbol != slash);
                if let (true, Some(state)) = (ordinary, usual) {
                    automaton.next.push(state);
                    continue;
                }
                to.extend(&always);
                if symbol != slash {
                    to.extend(&but_slash);
                }
                let to = self.settle(self.closure(to), &reach);
                let state = match states.get(&to) {
                    Some(state) => *state,
                    None => {
                        let state = sets.len() as u32;
                        sets.push(to.clone());
                        states.insert(to, state);
                        state
                    }
                };
                if ordinary {
                    usual = Some(state);
                }
                automaton.next.push(state);
            }
            at += 1;
        }
        let mut holding = vec![Vec::new(); classes.len()];
        for (holds, class) in classes {
            holding[class as usize] = holds;
        }
        Ok((automaton, holding))
    }

    fn closure(&self, mut open: Vec<u32>) -> Vec<u32> {
        // What is reached for nothing has one way to it, so this ends, and without repetitions.
        open.sort_unstable();
        open.dedup();
        let mut at = 0;
        while at < open.len() {
            open.extend(&self.nodes[open[at] as usize].free);
            at += 1;
        }
        open.sort_unstable();
        open.dedup();
        open
    }
}
