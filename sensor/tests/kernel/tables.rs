//! Compiled policies made by hand, so that the kernel is tested apart from the compiler.

use std::net::Ipv4Addr;

use sallyport_sensor_abi::policy::{
    ARGS_EOI, ARGS_ROW_WORDS, ARGS_START, ARGS_SYMBOLS, ARGS_TABLE, Automaton, DENY, EXEC_INDEX_FILELESS,
    EXEC_INDEX_SETUID, EXEC_INDICES, NEEDS_ARGS, Net, PolicyHeader, UNIFORM, Word, file_op, operation,
};

/// Every byte is its own symbol; the end-of-input column is the last.
const STRIDE: usize = 257;
const EOI: usize = 256;

/// What a policy under construction says.
#[derive(Default)]
pub(crate) struct Tables {
    /// Words for exact paths or, ending in `*`, for what begins so. Later ones win.
    paths: Vec<(Vec<u8>, Word)>,
    /// For all other paths.
    default_path: Word,
    /// For files without a name, whatever their path.
    fileless: Option<Word>,
    /// For set-uid files, whatever their path.
    setuid: Option<Word>,
    /// For each row: what turns [`NEEDS_ARGS`] into this word, when one argument is exactly this.
    arguments: Vec<(Vec<u8>, Word)>,
    /// Words of files, as `paths`, for one operation.
    files: Vec<(u32, Vec<u8>, Word)>,
    /// For all other files, by operation.
    default_file: [Word; file_op::COUNT as usize],
    /// The calling program that is told apart: only from it are these words in force.
    caller: Option<Vec<u8>>,
    /// Words of operations: on the session's own processes, on others.
    system: Vec<(u32, [Word; 2])>,
    listen: Option<ConnectRule>,
    addresses: Vec<Ipv4Addr>,
    ports: Vec<u16>,
    connect: Option<ConnectRule>,
}

/// Address listed?, port listed?, protocol: word.
type ConnectRule = Box<dyn Fn(bool, bool, u8) -> Word>;

impl Tables {
    /// Everything is allowed.
    pub(crate) fn allow_all() -> Self {
        Self::default()
    }

    /// No program may be run but those added by [`Self::path`].
    pub(crate) fn deny_all_paths(mut self) -> Self {
        self.default_path = DENY;
        self
    }

    /// A word for a path, or with `*` at the end for all that begin so.
    pub(crate) fn path(mut self, path: &str, word: Word) -> Self {
        self.paths.push((path.as_bytes().to_vec(), word));
        self
    }

    /// A word for programs without a name.
    pub(crate) fn fileless(mut self, word: Word) -> Self {
        self.fileless = Some(word);
        self
    }

    /// A word for set-uid programs.
    pub(crate) fn setuid(mut self, word: Word) -> Self {
        self.setuid = Some(word);
        self
    }

    /// For paths with [`by_args`] of the number of earlier calls: `word` if one argument is exactly `argument`, else
    /// allowed.
    pub(crate) fn argument(mut self, argument: &str, word: Word) -> Self {
        self.arguments.push((argument.as_bytes().to_vec(), word));
        self
    }

    /// A word for an operation on a file, or with `*` at the end on all that begin so.
    pub(crate) fn file(mut self, op: u32, path: &str, word: Word) -> Self {
        self.files.push((op, path.as_bytes().to_vec(), word));
        self
    }

    /// A word for an operation on all other files.
    pub(crate) fn other_files(mut self, op: u32, word: Word) -> Self {
        self.default_file[op as usize] = word;
        self
    }

    /// Everything about programs, files and operations is in force for this calling program only; others may do all.
    pub(crate) fn only_from(mut self, program: &str) -> Self {
        self.caller = Some(program.as_bytes().to_vec());
        self
    }

    /// Words of an operation: on the session's own processes or on none, and on others.
    pub(crate) fn system(mut self, operation: u32, inside: Word, outside: Word) -> Self {
        self.system.push((operation, [inside, outside]));
        self
    }

    /// The rule on listening, over the addresses and ports of [`Self::connect`].
    pub(crate) fn listen(mut self, rule: impl Fn(bool, bool, u8) -> Word + 'static) -> Self {
        self.listen = Some(Box::new(rule));
        self
    }

    /// The rule on connections, over these addresses and ports.
    pub(crate) fn connect(
        mut self,
        addresses: &[Ipv4Addr],
        ports: &[u16],
        rule: impl Fn(bool, bool, u8) -> Word + 'static,
    ) -> Self {
        self.addresses = addresses.to_vec();
        self.ports = ports.to_vec();
        self.connect = Some(Box::new(rule));
        self
    }

    /// Header and arena.
    pub(crate) fn compile(&self) -> (PolicyHeader, Vec<u32>) {
        let mut arena = Vec::new();
        let mut header = PolicyHeader::EMPTY;
        let symbols = std::array::from_fn(|byte| byte as u8);

        let automaton =
            |start, classes| Automaton { start, stride: STRIDE as u32, classes, _pad: 0, symbols };

        // Classes of callers: 0 is every other one, for which everything is allowed.
        let callers: Vec<&[u8]> = self.caller.as_deref().into_iter().collect();
        let n_callers = callers.len() as u32 + 1;
        header.caller = automaton(path_rows(&mut arena, &callers), n_callers);
        let by_caller = |arena: &mut Vec<u32>, word: Word| {
            if n_callers == 1 {
                arena.push(word);
            } else {
                arena.extend([0, word]);
            }
        };

        // Classes of paths: 0 is every other path, then one for each pattern.
        let patterns: Vec<&[u8]> = self.paths.iter().map(|(path, _)| path.as_slice()).collect();
        let classes = patterns.len() as u32 + 1;
        header.path = automaton(path_rows(&mut arena, &patterns), classes);
        header.exec_table = arena.len() as u32;
        for class in 0..classes as usize {
            let word = class.checked_sub(1).map_or(self.default_path, |i| self.paths[i].1);
            for flags in 0..EXEC_INDICES {
                let mut word = word;
                if let (true, Some(setuid)) = (flags & EXEC_INDEX_SETUID != 0, self.setuid) {
                    word = setuid;
                }
                if let (true, Some(fileless)) = (flags & EXEC_INDEX_FILELESS != 0, self.fileless) {
                    word = fileless;
                }
                by_caller(&mut arena, word);
            }
        }

        // A row of arguments for each. Classes: 0, and 1 if the argument was there.
        let rows: Vec<_> = self
            .arguments
            .iter()
            .map(|(argument, word)| {
                let start = argument_rows(&mut arena, argument);
                let table = arena.len() as u32;
                arena.extend([0, *word]);
                (start, table)
            })
            .collect();
        header.args_rows = arena.len() as u32;
        for (start, table) in rows {
            let mut row = [0; ARGS_ROW_WORDS as usize];
            row[ARGS_START as usize] = start;
            row[ARGS_EOI as usize] = EOI as u32;
            row[ARGS_TABLE as usize] = table;
            for (word, symbols) in row[ARGS_SYMBOLS as usize..].iter_mut().zip(symbols.chunks_exact(4)) {
                *word = u32::from_le_bytes([symbols[0], symbols[1], symbols[2], symbols[3]]);
            }
            arena.extend(row);
        }

        // Classes of files: as those of programs.
        let patterns: Vec<&[u8]> = self.files.iter().map(|(_, path, _)| path.as_slice()).collect();
        let classes = patterns.len() as u32 + 1;
        header.file = automaton(path_rows(&mut arena, &patterns), classes);
        header.file_table = arena.len() as u32;
        for op in 0..file_op::COUNT {
            let default = self.default_file[op as usize];
            for class in 0..classes as usize {
                let rule = class.checked_sub(1).map(|i| &self.files[i]).filter(|rule| rule.0 == op);
                // The same pattern may be there for several operations; its last class has them all.
                let same = class.checked_sub(1).and_then(|i| {
                    let pattern = &self.files[i].1;
                    self.files.iter().rev().find(|rule| rule.0 == op && rule.1 == *pattern)
                });
                let word = rule.or(same).map_or(default, |rule| rule.2);
                for _fileless in 0..2 {
                    by_caller(&mut arena, word);
                }
            }
            if self.caller.is_none() && !self.files.iter().any(|rule| rule.0 == op) {
                header.uniform[op as usize] = default | UNIFORM;
            }
        }

        header.system_table = arena.len() as u32;
        for operation in 0..operation::COUNT {
            let rule = self.system.iter().rev().find(|rule| rule.0 == operation);
            for outside in 0..2 {
                by_caller(&mut arena, rule.map_or(0, |rule| rule.1[outside]));
            }
        }

        header.connect = self.net(&mut arena, self.connect.as_ref());
        header.listen = self.net(&mut arena, self.listen.as_ref());
        header.words = arena.len() as u32;
        (header, arena)
    }

    fn net(&self, arena: &mut Vec<u32>, rule: Option<&ConnectRule>) -> Net {
        let addresses: Vec<_> = self.addresses.iter().map(|address| (u32::from(*address), 1)).collect();
        let ports: Vec<_> = self.ports.iter().map(|port| (u32::from(*port), 1)).collect();
        let net = Net {
            address4: trie(arena, 8, &addresses),
            address6: trie(arena, 32, &[]),
            address_classes: 2,
            port: trie(arena, 4, &ports),
            port_classes: 2,
            table: arena.len() as u32,
            // A class for each protocol.
            protocols: std::array::from_fn(|protocol| protocol as u8),
        };
        for protocol in 0..=255 {
            for port in [false, true] {
                for address in [false, true] {
                    arena.push(rule.map_or(0, |rule| rule(address, port, protocol)));
                }
            }
        }
        net
    }
}

/// A trie of all patterns. Returns the start row.
fn path_rows(arena: &mut Vec<u32>, patterns: &[&[u8]]) -> u32 {
    let base = arena.len();
    // Row 0 is where nothing listed can follow any more.
    let mut rows = vec![[base as u32; STRIDE]];
    rows[0][EOI] = 0;
    let row_at = |row: usize| (base + row * STRIDE) as u32;
    rows.push([base as u32; STRIDE]);
    rows[1][EOI] = 0;
    for (i, pattern) in patterns.iter().enumerate() {
        let class = i as u32 + 1;
        let (text, prefix) = match pattern.split_last() {
            Some((b'*', text)) => (text, true),
            _ => (*pattern, false),
        };
        let mut row = 1;
        for byte in text {
            let next = rows[row][*byte as usize];
            row = if next == row_at(0) {
                rows.push([row_at(0); STRIDE]);
                let new = rows.len() - 1;
                rows[new][EOI] = 0;
                rows[row][*byte as usize] = row_at(new);
                new
            } else {
                (next as usize - base) / STRIDE
            };
        }
        rows[row][EOI] = class;
        if prefix {
            let mut any = [row_at(rows.len()); STRIDE];
            any[EOI] = class;
            let target = row_at(rows.len());
            rows.push(any);
            for next in rows[row].iter_mut().take(256).filter(|next| **next == row_at(0)) {
                *next = target;
            }
        }
    }
    arena.extend(rows.into_iter().flatten());
    row_at(1)
}

/// Rows: the argument so far matches, 0..=len bytes of it; then "this one does not match"; then "was there".
fn argument_rows(arena: &mut Vec<u32>, argument: &[u8]) -> u32 {
    let base = arena.len();
    let row_at = |row: usize| (base + row * STRIDE) as u32;
    let (miss, hit) = (argument.len() + 1, argument.len() + 2);
    for matched in 0..=argument.len() {
        let mut row = [row_at(miss); STRIDE];
        match argument.get(matched) {
            Some(byte) => {
                row[*byte as usize] = row_at(matched + 1);
                row[0] = row_at(0);
                row[EOI] = 0;
            }
            None => {
                row[0] = row_at(hit);
                row[EOI] = 1;
            }
        }
        arena.extend(row);
    }
    let mut row = [row_at(miss); STRIDE];
    (row[0], row[EOI]) = (row_at(0), 0);
    arena.extend(row);
    let mut row = [row_at(hit); STRIDE];
    row[EOI] = 1;
    arena.extend(row);
    row_at(0)
}

/// A nibble trie of exact values; everything else is class 0.
fn trie(arena: &mut Vec<u32>, nibbles: usize, values: &[(u32, u32)]) -> u32 {
    // Default rows, one for each depth, deepest first.
    let mut defaults = vec![0];
    for _ in 0..nibbles {
        let row = arena.len() as u32;
        arena.extend([*defaults.last().unwrap_or(&0); 16]);
        defaults.push(row);
    }
    let root = arena.len() as u32;
    arena.extend([defaults[nibbles - 1]; 16]);
    for (value, class) in values {
        let mut row = root;
        for depth in 0..nibbles {
            let at = row as usize + ((value >> (4 * (nibbles - 1 - depth))) & 15) as usize;
            if depth == nibbles - 1 {
                arena[at] = *class;
            } else if arena[at] == defaults[nibbles - 1 - depth] {
                let new = arena.len() as u32;
                let default = defaults[nibbles - 2 - depth];
                arena.extend([default; 16]);
                arena[at] = new;
                row = new;
            } else {
                row = arena[at];
            }
        }
    }
    root
}

/// The word of a path that is judged by its arguments, by the row of that number.
pub(crate) const fn by_args(row: u32) -> Word {
    NEEDS_ARGS | row
}

/// By row 0.
pub(crate) const BY_ARGS: Word = by_args(0);
