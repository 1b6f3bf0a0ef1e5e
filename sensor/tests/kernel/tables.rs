//! Compiled policies made by hand, so that the kernel is tested apart from the compiler.

use std::net::Ipv4Addr;

use sallyport_sensor_abi::policy::{Automaton, DENY, NEEDS_ARGS, PolicyHeader, Word};

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
    /// Arguments that turn [`NEEDS_ARGS`] into this word, when one of them is exactly this.
    argument: Option<(Vec<u8>, Word)>,
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

    /// For paths with [`NEEDS_ARGS`]: `word` if one argument is exactly `argument`, else allowed.
    pub(crate) fn argument(mut self, argument: &str, word: Word) -> Self {
        self.argument = Some((argument.as_bytes().to_vec(), word));
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

        // Classes of paths: 0 is every other path, then one for each pattern.
        let start = self.path_rows(&mut arena);
        let classes = self.paths.len() as u32 + 1;
        header.path = Automaton { start, stride: STRIDE as u32, classes, _pad: 0, symbols };
        header.exec_table = arena.len() as u32;
        for class in 0..classes as usize {
            let word = class.checked_sub(1).map_or(self.default_path, |i| self.paths[i].1);
            arena.extend([word, self.fileless.unwrap_or(word)]);
        }

        // Classes of arguments: 0, and 1 if the argument was there.
        let argument = self.argument.as_ref().map(|(argument, _)| argument.as_slice());
        let start = argument_rows(&mut arena, argument);
        header.args = Automaton { start, stride: STRIDE as u32, classes: 2, _pad: 0, symbols };
        header.args_table = arena.len() as u32;
        arena.extend([0, self.argument.as_ref().map_or(0, |(_, word)| *word)]);

        let addresses: Vec<_> = self.addresses.iter().map(|address| (u32::from(*address), 1)).collect();
        header.address4 = trie(&mut arena, 8, &addresses);
        header.address6 = trie(&mut arena, 32, &[]);
        header.address_classes = 2;
        let ports: Vec<_> = self.ports.iter().map(|port| (u32::from(*port), 1)).collect();
        header.port = trie(&mut arena, 4, &ports);
        header.port_classes = 2;
        // A class for each protocol.
        header.protocols = std::array::from_fn(|protocol| protocol as u8);
        header.connect_table = arena.len() as u32;
        for protocol in 0..=255 {
            for port in [false, true] {
                for address in [false, true] {
                    arena.push(self.connect.as_ref().map_or(0, |rule| rule(address, port, protocol)));
                }
            }
        }
        header.words = arena.len() as u32;
        (header, arena)
    }

    /// A trie of all patterns. Returns the start row.
    fn path_rows(&self, arena: &mut Vec<u32>) -> u32 {
        let base = arena.len();
        // Row 0 is where nothing listed can follow any more.
        let mut rows = vec![[base as u32; STRIDE]];
        rows[0][EOI] = 0;
        let row_at = |row: usize| (base + row * STRIDE) as u32;
        rows.push([base as u32; STRIDE]);
        rows[1][EOI] = 0;
        for (i, (pattern, _)) in self.paths.iter().enumerate() {
            let class = i as u32 + 1;
            let (text, prefix) = match pattern.split_last() {
                Some((b'*', text)) => (text, true),
                _ => (pattern.as_slice(), false),
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
}

/// Rows: the argument so far matches, 0..=len bytes of it; then "this one does not match"; then "was there".
fn argument_rows(arena: &mut Vec<u32>, argument: Option<&[u8]>) -> u32 {
    let base = arena.len();
    let argument = argument.unwrap_or(b"\x01never\x01");
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

/// The word of a path that is judged by its arguments (there is one row).
pub(crate) const BY_ARGS: Word = NEEDS_ARGS;
