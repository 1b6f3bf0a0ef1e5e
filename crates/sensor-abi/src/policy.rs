//! Compiled policy: automata and decision tables in the arena, found through a header.
//!
//! Packet classification: each attribute is mapped to an equivalence class by one structure, and a
//! small table over classes gives the verdict and the rule. All arena indices in a header and in the
//! tables are relative to [`PolicyHeader::base`], so a compiled policy can be placed anywhere.
//!
//! *Byte automaton* ([`Automaton`]): `state = start; for b in bytes { state = arena[state + symbols[b]] }`,
//! then `class = arena[state + eoi]`. Every state is a row of `stride` words (`eoi == stride - 1`), and
//! the entries are themselves relative indices of rows.
//! Arguments are fed with one [`Automaton::separator`] symbol *between* arguments (not after the last).
//! A zero byte never occurs in a path or an argument, so symbol of byte 0 stands for the separator.
//!
//! *Nibble trie*: fixed length, rows of 16 words, most significant nibble first. The entry reached with the
//! last nibble is the class. IPv4 addresses take 8 steps from `address4`, IPv6 32 from `address6`, ports 4
//! from `port`. An IPv4-mapped IPv6 address is always judged as IPv4, and the unspecified address (`0.0.0.0`,
//! `::`) as the loopback address, which is where Linux sends it.
//!
//! An ICMP socket's datagrams cannot all be seen, so it may be created only if the connect table allows
//! ICMP (protocol 1 or 58, port 0) to every address class.

/// A decision: what the tables hold and what an event carries.
///
/// Bits 0–15: rule index into the sensor's list for this compiled policy (0: no rule, the default deny),
/// or, with [`NEEDS_ARGS`], the row of the argument table.
pub type Word = u32;

/// Mask of the rule index or row.
pub const INDEX_MASK: Word = 0xffff;
/// The action is denied.
pub const DENY: Word = 1 << 16;
/// As well as denying, kill the process (`@on_violation("kill")`).
pub const KILL: Word = 1 << 17;
/// As well as denying, end the session (`@on_violation("end_session")`).
pub const END_SESSION: Word = 1 << 18;
/// Allowed, but a monitored rule (the index) would have denied.
pub const OBSERVED: Word = 1 << 19;
/// Undecided by path alone: go on with the arguments.
pub const NEEDS_ARGS: Word = 1 << 20;
/// Set by the kernel, not by tables: denied since the attribute could not be judged (cause in the event).
pub const UNJUDGED: Word = 1 << 21;

/// A byte automaton. See the module's text.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Automaton {
    /// Row of the start state.
    pub start: u32,
    /// Words per row: symbols, and the end-of-input column last.
    pub stride: u32,
    /// Classes that the end-of-input column can name: 0..classes.
    pub classes: u32,
    /// Always zero.
    pub _pad: u32,
    /// Symbol of each byte.
    pub symbols: [u8; 256],
}

/// Value of map `POLICIES`, by slot. A slot is free when `generation` is 0.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PolicyHeader {
    /// Unique number of this compiled policy since the maps were made; 0: none, so deny everything.
    pub generation: u64,
    /// Where it lies in the arena, in words.
    pub base: u32,
    /// Words it takes.
    pub words: u32,
    /// Over the executable's resolved absolute path.
    pub path: Automaton,
    /// Over the arguments.
    pub args: Automaton,
    /// Row: `path class * 2 + fileless`; entry: [`Word`].
    pub exec_table: u32,
    /// Row: `row index * args.classes + args class`; entry: [`Word`].
    pub args_table: u32,
    /// Nibble trie of IPv4 destination addresses.
    pub address4: u32,
    /// Nibble trie of IPv6 destination addresses.
    pub address6: u32,
    /// Number of address classes.
    pub address_classes: u32,
    /// Nibble trie of destination ports.
    pub port: u32,
    /// Number of port classes.
    pub port_classes: u32,
    /// Entry: `(protocol class * port_classes + port class) * address_classes + address class`.
    pub connect_table: u32,
    /// Class of each IP protocol number.
    pub protocols: [u8; 256],
}

const _: () = assert!(size_of::<Automaton>() == 272);
const _: () = assert!(size_of::<PolicyHeader>() == 16 + 2 * 272 + 32 + 256);

impl Automaton {
    /// An automaton of all zeros, for empty slots.
    pub const EMPTY: Self = Self { start: 0, stride: 0, classes: 0, _pad: 0, symbols: [0; 256] };

    /// The end-of-input column.
    pub const fn eoi(&self) -> u32 {
        self.stride.wrapping_sub(1)
    }

    /// The symbol fed between two arguments.
    pub const fn separator(&self) -> u8 {
        self.symbols[0]
    }
}

impl PolicyHeader {
    /// A free slot.
    pub const EMPTY: Self = Self {
        generation: 0,
        base: 0,
        words: 0,
        path: Automaton::EMPTY,
        args: Automaton::EMPTY,
        exec_table: 0,
        args_table: 0,
        address4: 0,
        address6: 0,
        address_classes: 0,
        port: 0,
        port_classes: 0,
        connect_table: 0,
        protocols: [0; 256],
    };
}

#[cfg(feature = "user")]
// SAFETY: `repr(C)`, integers and byte arrays only, no implicit padding (the size assertion above).
#[allow(unsafe_code, reason = "aya::Pod is an unsafe trait and the orphan rule puts the impl here")]
unsafe impl aya::Pod for PolicyHeader {}
