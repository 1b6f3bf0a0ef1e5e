//! Differences in what the kernel judges: products of both policies' automata and decision tables.

use std::collections::{BTreeMap, HashMap};

use sallyport_sensor_abi::policy::{
    ARGS_TABLE, DENY, EXEC_INDEX_FILELESS, EXEC_INDEX_SETUID, EXEC_INDICES, NEEDS_ARGS, OBSERVED, QUIET,
    UNIFORM, UNJUDGED, Word,
};
use sallyport_sensor_abi::policy::{INDEX_MASK, operation};

use super::net::NetTables;
use super::product::{Pair, Shape, Side, reached, row};
use super::{Effect, Found, Verdict};
use crate::kernel::KernelPolicy;
use crate::question::{FileOp, Operation, Principal, Question};

/// The usual calling program: examples have it where they can.
const SHELL: &str = "/usr/bin/bash";

/// Texts that fall into one pair of classes.
#[derive(Debug, Default)]
struct Words {
    path: Option<Vec<u8>>,
    /// The name of an abstract socket.
    name: Option<Vec<u8>>,
}

/// Texts by pair of classes. A pair without texts is reached only by what cannot be a path.
type Classes = BTreeMap<Pair, Words>;

/// What an execution comes to, once path, caller and flags are known.
#[derive(Clone, Copy, Debug)]
enum Cell {
    /// Both words, of which at least one depends on the arguments.
    Args(Word, Word),
    Words(Word, Word),
}

/// Both policies for one person, host and local user, and where they differ.
#[derive(Debug)]
pub(super) struct Tables {
    a: KernelPolicy,
    b: KernelPolicy,
    callers: Classes,
    paths: Classes,
    files: Classes,
    /// By flags, caller and path.
    exec: HashMap<(u32, Pair, Pair), Cell>,
    /// By both words: the pairs of classes of arguments that differ.
    args: HashMap<(Word, Word), BTreeMap<Pair, (Word, Word)>>,
    /// By number of the action and whether it is fileless, caller and path.
    file: HashMap<(u32, bool, Pair, Pair), (Word, Word)>,
    /// By number of the operation and whether it is outside, and caller.
    system: HashMap<(u32, bool, Pair), (Word, Word)>,
    connect: NetTables,
    listen: NetTables,
}

fn differ(a: Word, b: Word) -> bool {
    Verdict::of_word(a) != Verdict::of_word(b)
}

fn classes(a: &Side<'_>, b: &Side<'_>) -> Classes {
    let mut all = Classes::new();
    for (pair, word) in reached(a, b, Shape::Path, b"") {
        all.entry(pair).or_default().path = Some(word);
    }
    for (pair, word) in reached(a, b, Shape::Abstract, b"") {
        all.entry(pair).or_default().name = Some(word);
    }
    for pair in reached(a, b, Shape::Text, b"").into_keys() {
        all.entry(pair).or_default();
    }
    all
}

fn exec_word(policy: &KernelPolicy, flags: u32, caller: u32, path: u32) -> Word {
    let header = &policy.header;
    let index = (path * EXEC_INDICES + flags) * header.caller.classes + caller;
    policy.read(header.exec_table, index).unwrap_or(DENY | UNJUDGED)
}

fn file_word(policy: &KernelPolicy, op: u32, fileless: bool, caller: u32, path: u32) -> Word {
    let header = &policy.header;
    let uniform = header.uniform[op as usize];
    if uniform & UNIFORM != 0 {
        return uniform & !UNIFORM;
    }
    let at = (op * header.file.classes + path) * 2 + u32::from(fileless);
    policy.read(header.file_table, at * header.caller.classes + caller).unwrap_or(DENY | UNJUDGED)
}

fn system_word(policy: &KernelPolicy, operation: u32, outside: bool, caller: u32) -> Word {
    let at = (operation * 2 + u32::from(outside)) * policy.header.caller.classes + caller;
    policy.read(policy.header.system_table, at).unwrap_or(DENY | UNJUDGED)
}

/// The decision of a class of arguments, or the word itself if it needs none.
fn args_word(policy: &KernelPolicy, word: Word, class: u32) -> Word {
    if word & NEEDS_ARGS == 0 {
        return word;
    }
    let decided = policy.read(row(policy, word), ARGS_TABLE).and_then(|table| policy.read(table, class));
    decided.unwrap_or(DENY | UNJUDGED)
}

impl Tables {
    pub(super) fn multiply(a: KernelPolicy, b: KernelPolicy) -> Self {
        let callers = classes(&Side::paths(&a, &a.header.caller), &Side::paths(&b, &b.header.caller));
        let paths = classes(&Side::paths(&a, &a.header.path), &Side::paths(&b, &b.header.path));
        let files = classes(&Side::paths(&a, &a.header.file), &Side::paths(&b, &b.header.file));
        let mut exec = HashMap::new();
        let mut args: HashMap<(Word, Word), BTreeMap<Pair, (Word, Word)>> = HashMap::new();
        for flags in 0..EXEC_INDICES {
            for caller in callers.keys() {
                for path in paths.keys() {
                    let x = exec_word(&a, flags, caller.0, path.0);
                    let y = exec_word(&b, flags, caller.1, path.1);
                    if (x | y) & NEEDS_ARGS == 0 {
                        if differ(x, y) {
                            exec.insert((flags, *caller, *path), Cell::Words(x, y));
                        }
                        continue;
                    }
                    let rows = args.entry((x, y)).or_insert_with(|| {
                        let pairs = reached(&Side::args(&a, x), &Side::args(&b, y), Shape::Args, b"");
                        let words = |pair: Pair| (args_word(&a, x, pair.0), args_word(&b, y, pair.1));
                        let all = pairs.into_keys().map(|pair| (pair, words(pair)));
                        all.filter(|(_, (x, y))| differ(*x, *y)).collect()
                    });
                    if !rows.is_empty() {
                        exec.insert((flags, *caller, *path), Cell::Args(x, y));
                    }
                }
            }
        }
        let mut file = HashMap::new();
        for op in FileOp::all().map(FileOp::number) {
            let at = op as usize;
            let uniform = (a.header.uniform[at], b.header.uniform[at]);
            if uniform.0 & uniform.1 & UNIFORM != 0 && !differ(uniform.0 & !UNIFORM, uniform.1 & !UNIFORM) {
                continue;
            }
            for fileless in [false, true] {
                for caller in callers.keys() {
                    for path in files.keys() {
                        let x = file_word(&a, op, fileless, caller.0, path.0);
                        let y = file_word(&b, op, fileless, caller.1, path.1);
                        if differ(x, y) {
                            file.insert((op, fileless, *caller, *path), (x, y));
                        }
                    }
                }
            }
        }
        let mut system = HashMap::new();
        for number in 0..operation::COUNT {
            for outside in [false, true] {
                for caller in callers.keys() {
                    let x = system_word(&a, number, outside, caller.0);
                    let y = system_word(&b, number, outside, caller.1);
                    if differ(x, y) {
                        system.insert((number, outside, *caller), (x, y));
                    }
                }
            }
        }
        let connect = NetTables::multiply(&a, &b, false);
        let listen = NetTables::multiply(&a, &b, true);
        Self { a, b, callers, paths, files, exec, args, file, system, connect, listen }
    }

    /// Whether a question is among those that are answered differently.
    pub(super) fn contains(&self, question: &Question) -> bool {
        let (a, b) = (&self.a, &self.b);
        let callers = |text: &str| Some((a.caller(text.as_bytes())?, b.caller(text.as_bytes())?));
        match question {
            Question::Exec { path, args, fileless, setuid, caller, .. } => {
                let path = path.as_bytes();
                let paths = (a.path_class(&a.header.path, path), b.path_class(&b.header.path, path));
                let ((Some(in_a), Some(in_b)), Some(callers)) = (paths, callers(caller)) else {
                    return false;
                };
                let flags = flags(*fileless, *setuid);
                match self.exec.get(&(flags, callers, (in_a, in_b))) {
                    None => false,
                    Some(Cell::Words(..)) => true,
                    Some(Cell::Args(x, y)) => {
                        let text = args.join("\0");
                        let class = |policy, word| Side::args(policy, word).class_of(text.as_bytes());
                        self.args[&(*x, *y)].contains_key(&(class(a, *x), class(b, *y)))
                    }
                }
            }
            Question::File { op, path, fileless, caller, .. } => {
                let path = path.as_bytes();
                let paths = (a.path_class(&a.header.file, path), b.path_class(&b.header.file, path));
                let ((Some(in_a), Some(in_b)), Some(callers)) = (paths, callers(caller)) else {
                    return false;
                };
                self.file.contains_key(&(op.number(), *fileless, callers, (in_a, in_b)))
            }
            Question::System { operation, outside, caller, .. } => callers(caller)
                .is_some_and(|callers| self.system.contains_key(&(operation.number(), *outside, callers))),
            Question::Connect { address, port, protocol, .. } => {
                self.connect.contains(a, b, false, (*address, *port, *protocol))
            }
            Question::Listen { address, port, protocol, .. } => {
                self.listen.contains(a, b, true, (*address, *port, *protocol))
            }
            Question::OpenSession { .. } | Question::Gateway { .. } => false,
        }
    }

    /// How many combinations of classes differ.
    pub(super) fn differing(&self) -> u64 {
        let exec = self.exec.values().map(|cell| match cell {
            Cell::Words(..) => 1,
            Cell::Args(x, y) => self.args[&(*x, *y)].len(),
        });
        let all = exec.sum::<usize>()
            + self.file.len()
            + self.system.len()
            + self.connect.differing.len()
            + self.listen.differing.len();
        all as u64
    }

    /// Forgets every difference of one action, so that a test sees that this is noticed.
    pub(super) fn spoil(&mut self) -> bool {
        if !self.exec.is_empty() {
            self.exec.clear();
        } else if !self.file.is_empty() {
            self.file.clear();
        } else if !self.system.is_empty() {
            self.system.clear();
        } else if !self.connect.differing.is_empty() {
            self.connect.differing.clear();
        } else {
            let any = !self.listen.differing.is_empty();
            self.listen.differing.clear();
            return any;
        }
        true
    }

    /// What differs, by action and by what both say, with an example each.
    pub(super) fn found(&self, who: &(Principal, String, String)) -> Vec<Found> {
        let mut groups: BTreeMap<Group, Gathered<Case>> = BTreeMap::new();
        let mut take = |action: &'static str, words: (Word, Word), case: Option<(u64, Case)>| {
            groups.entry((action, named(words.0), named(words.1))).or_default().take(case);
        };
        for ((flags, caller, path), cell) in &self.exec {
            let case = |args| self.program(*flags, *caller, *path, args);
            match cell {
                Cell::Words(x, y) => take("exec", (*x, *y), case(None)),
                Cell::Args(x, y) => {
                    for (pair, words) in &self.args[&(*x, *y)] {
                        take("exec", *words, case(Some((*x, *y, *pair))));
                    }
                }
            }
        }
        for ((number, fileless, caller, path), words) in &self.file {
            let Some(op) = FileOp::new(*number) else { continue };
            take(op.name(), *words, self.file(op, *fileless, *caller, *path));
        }
        for ((number, outside, caller), words) in &self.system {
            let case =
                Operation::new(*number).zip(self.caller(*caller)).map(|(operation, (cost, caller))| {
                    (cost, Case::System { operation, outside: *outside, caller })
                });
            take("system", *words, case);
        }
        for (action, listens, net) in [("connect", false, &self.connect), ("listen", true, &self.listen)] {
            for (at, words) in &net.differing {
                let (address, port, protocol) = net.example(at);
                let cost = u64::from(port) + u64::from(protocol) + 1000 * u64::from(address.is_ipv6());
                take(action, *words, Some((cost, Case::Net { listens, address, port, protocol })));
            }
        }
        let found = groups.into_iter().map(|((action, before, after), gathered)| Found {
            action,
            before: Effect::of_word(&self.a, before),
            after: Effect::of_word(&self.b, after),
            classes: gathered.count,
            example: gathered.best.and_then(|(_, case)| self.question(who, case)),
        });
        found.collect()
    }

    /// A calling program of these classes, and how unusual it is.
    fn caller(&self, classes: Pair) -> Option<(u64, String)> {
        let shell = SHELL.as_bytes();
        if (self.a.caller(shell), self.b.caller(shell)) == (Some(classes.0), Some(classes.1)) {
            return Some((0, SHELL.to_owned()));
        }
        let word = self.callers.get(&classes)?.path.clone()?;
        Some((1000, String::from_utf8(word).ok()?))
    }

    fn program(
        &self,
        flags: u32,
        caller: Pair,
        path: Pair,
        args: Option<(Word, Word, Pair)>,
    ) -> Option<(u64, Case)> {
        let (cost, caller) = self.caller(caller)?;
        let path = String::from_utf8(self.paths.get(&path)?.path.clone()?).ok()?;
        let cost = cost + 2000 * u64::from(flags) + path.len() as u64;
        Some((cost, Case::Exec { flags, caller, path, args }))
    }

    fn file(&self, op: FileOp, fileless: bool, caller: Pair, path: Pair) -> Option<(u64, Case)> {
        let (cost, caller) = self.caller(caller)?;
        let words = self.files.get(&path)?;
        let unix = op.name() == "connect_unix";
        let word = words.path.clone().or_else(|| words.name.clone().filter(|_| unix))?;
        let path = String::from_utf8(word).ok()?;
        Some((
            cost + 2000 * u64::from(fileless) + path.len() as u64,
            Case::File { op, fileless, caller, path },
        ))
    }

    fn question(&self, who: &(Principal, String, String), case: Case) -> Option<Question> {
        let (principal, host, local_user) = who.clone();
        Some(match case {
            Case::Exec { flags, caller, path, args } => {
                let name = path.rsplit('/').next().unwrap_or_default();
                let args = match args {
                    None => vec![name.to_owned()],
                    Some((x, y, pair)) => self.arguments(name, (x, y), pair)?,
                };
                let fileless = flags & EXEC_INDEX_FILELESS != 0;
                let setuid = flags & EXEC_INDEX_SETUID != 0;
                Question::Exec { principal, host, local_user, path, args, fileless, setuid, caller }
            }
            Case::File { op, fileless, caller, path } => {
                Question::File { principal, host, local_user, op, path, fileless, caller }
            }
            Case::System { operation, outside, caller } => {
                Question::System { principal, host, local_user, operation, outside, caller }
            }
            Case::Net { listens: true, address, port, protocol } => {
                Question::Listen { principal, host, local_user, address, port, protocol }
            }
            Case::Net { address, port, protocol, .. } => {
                Question::Connect { principal, host, local_user, address, port, protocol }
            }
        })
    }

    /// Arguments of these classes: after the program's name if that is possible.
    fn arguments(&self, name: &str, (x, y): (Word, Word), pair: Pair) -> Option<Vec<String>> {
        let (a, b) = (Side::args(&self.a, x), Side::args(&self.b, y));
        let text = reached(&a, &b, Shape::MoreArgs, name.as_bytes())
            .remove(&pair)
            .or_else(|| reached(&a, &b, Shape::Args, b"").remove(&pair))?;
        Some(String::from_utf8(text).ok()?.split('\0').map(str::to_owned).collect())
    }
}

fn flags(fileless: bool, setuid: bool) -> u32 {
    u32::from(fileless) * EXEC_INDEX_FILELESS + u32::from(setuid) * EXEC_INDEX_SETUID
}

/// Action, and what both words say, rule included.
type Group = (&'static str, Word, Word);

fn named(word: Word) -> Word {
    word & (INDEX_MASK
        | DENY
        | OBSERVED
        | QUIET
        | sallyport_sensor_abi::policy::KILL
        | sallyport_sensor_abi::policy::END_SESSION)
}

/// What an example is made of.
#[derive(Clone, Debug)]
enum Case {
    Exec { flags: u32, caller: String, path: String, args: Option<(Word, Word, Pair)> },
    File { op: FileOp, fileless: bool, caller: String, path: String },
    System { operation: Operation, outside: bool, caller: String },
    Net { listens: bool, address: std::net::IpAddr, port: u16, protocol: u8 },
}

/// How many there are, and the most usual of them.
struct Gathered<T> {
    count: u64,
    best: Option<(u64, T)>,
}

impl<T> Default for Gathered<T> {
    fn default() -> Self {
        Self { count: 0, best: None }
    }
}

impl<T: std::fmt::Debug> Gathered<T> {
    fn take(&mut self, case: Option<(u64, T)>) {
        self.count += 1;
        let Some((cost, case)) = case else { return };
        // Among equals the first by its text, so that the same two policies always give the same example.
        let better = self.best.as_ref().is_none_or(|(best, kept)| {
            cost < *best || cost == *best && format!("{case:?}") < format!("{kept:?}")
        });
        if better {
            self.best = Some((cost, case));
        }
    }
}
