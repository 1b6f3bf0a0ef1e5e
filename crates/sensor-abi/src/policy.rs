//! Compiled policy: automata and decision tables in the arena, found through a header.
//!
//! Packet classification: each attribute is mapped to an equivalence class by one structure, and a
//! small table over classes gives the verdict and the rule. All arena indices in a header and in the
//! tables are relative to [`PolicyHeader::base`], so a compiled policy can be placed anywhere.
//!
//! *Byte automaton* ([`Automaton`]): `state = start; for b in bytes { state = arena[state + symbols[b]] }`,
//! then `class = arena[state + eoi]`. Every state is a row of `stride` words (`eoi == stride - 1`), and
//! the entries are themselves relative indices of rows. A zero byte never occurs in a path.
//!
//! *Arguments* have an automaton for each set of rules that is still open once the other attributes are known, so that
//! rules about different programs do not multiply. Its description lies in the arena ([`ARGS_START`] and the like).
//! Arguments are fed with the symbol of byte 0 *between* arguments (not after the last).
//!
//! *Nibble trie*: fixed length, rows of 16 words, most significant nibble first. The entry reached with the
//! last nibble is the class. IPv4 addresses take 8 steps from `address4`, IPv6 32 from `address6`, ports 4
//! from `port`. An IPv4-mapped IPv6 address is always judged as IPv4. For connections the unspecified address
//! (`0.0.0.0`, `::`) is judged as the loopback address, which is where Linux sends it; for listening it stands for itself.
//!
//! *The calling program* is the executable of the process that acts (for a script: its interpreter), by its resolved path. Its
//! class is found when it starts and kept in its tag ([`crate::session::Tag::caller`]).
//!
//! *Several names.* A file that has another name by which rules may know it (hard link, bind mount, renamed folder; see
//! [`crate::names`]) is judged by each name. The first denial counts, in the order: the path it was reached by, then
//! the registered names.
//!
//! An ICMP socket's datagrams cannot all be seen, so it may be created only if the connect table allows
//! ICMP (protocol 1 or 58, port 0) to every address class.

/// A decision: what the tables hold and what an event carries.
///
/// Bits 0–15: rule index into the sensor's list for this compiled policy (0: no rule, the default deny),
/// or, with [`NEEDS_ARGS`], the number of the argument row.
pub type Word = u32;

/// Mask of the rule index or row.
pub const INDEX_MASK: Word = 0xffff;
/// The action is denied.
pub const DENY: Word = 1 << 16;
/// As well as denying, kill the process (`@on_violation("kill")`).
pub const KILL: Word = 1 << 17;
/// As well as denying, end the session (`@on_violation("end_session")`).
pub const END_SESSION: Word = 1 << 18;
/// Allowed, but a monitored rule (the index) would have denied. Also set by the kernel, instead of [`DENY`], in a session
/// that is only watched ([`crate::session::SESSION_MONITORED`]); index 0 is then the default deny.
pub const OBSERVED: Word = 1 << 19;
/// Undecided by path alone: go on with the arguments.
pub const NEEDS_ARGS: Word = 1 << 20;
/// Set by the kernel, not by tables: denied since the attribute could not be judged (cause in the event).
pub const UNJUDGED: Word = 1 << 21;
/// Allowed, and so ordinary that it is not reported (`@record("none")` on the permit). Never with [`DENY`] or [`OBSERVED`].
pub const QUIET: Word = 1 << 22;

/// What can be done to a file by path: the first index of [`PolicyHeader::file_table`].
pub mod file_op {
    /// `read_file`: open for reading.
    pub const READ: u32 = 0;
    /// `write_file`: open for writing, truncate.
    pub const WRITE: u32 = 1;
    /// `create_file`: files, folders, links, nodes and sockets that get a name; the new name of a rename or hard link.
    pub const CREATE: u32 = 2;
    /// `delete_file`: remove a name; a file that a rename replaces.
    pub const DELETE: u32 = 3;
    /// `rename_file`: by its old name.
    pub const RENAME: u32 = 4;
    /// `link_file`: give another name to the file, by its old name.
    pub const LINK: u32 = 5;
    /// `change_file`: mode, owner, extended attributes.
    pub const CHANGE: u32 = 6;
    /// `map_code`: map it executable.
    pub const MAP: u32 = 7;
    /// `connect_unix`: connect or send to the Unix socket of that name; an abstract one as `@name`.
    pub const UNIX: u32 = 8;
    /// One more than the last.
    pub const COUNT: u32 = 9;
    /// Cedar's actions, by number.
    pub const NAMES: [&str; COUNT as usize] = [
        "read_file",
        "write_file",
        "create_file",
        "delete_file",
        "rename_file",
        "link_file",
        "change_file",
        "map_code",
        "connect_unix",
    ];
}

/// What action `system` can be about: the first index of [`PolicyHeader::system_table`].
pub mod operation {
    /// ptrace, `process_vm_*`, `/proc/PID/mem`, `pidfd_getfd` on another process.
    pub const TRACE: u32 = 0;
    /// A signal to another process.
    pub const SIGNAL: u32 = 1;
    /// An Internet socket passed in by a process outside the session.
    pub const RECEIVE_SOCKET: u32 = 2;
    /// Mount, remount, bind, move a mount, pivot the root.
    pub const MOUNT: u32 = 3;
    /// Unmount.
    pub const UNMOUNT: u32 = 4;
    /// `chroot`.
    pub const CHROOT: u32 = 5;
    /// Make or enter a user namespace (the key to all others).
    pub const NAMESPACE: u32 = 6;
    /// Change user or group ids, set-uid programs included.
    pub const SET_USER: u32 = 7;
    /// `capset`.
    pub const SET_CAPABILITIES: u32 = 8;
    /// Load or unload a kernel module, firmware by hand.
    pub const MODULE: u32 = 9;
    /// Load another kernel.
    pub const KEXEC: u32 = 10;
    /// `bpf()`.
    pub const BPF: u32 = 11;
    /// `perf_event_open`.
    pub const PERF: u32 = 12;
    /// Keys and keyrings that are not the process's own.
    pub const KEYRING: u32 = 13;
    /// `io_uring` with a kernel thread (`SQPOLL`) or with another's credentials.
    pub const IO_URING: u32 = 14;
    /// Put input into a terminal (`TIOCSTI`).
    pub const TERMINAL_INPUT: u32 = 15;
    /// Kernel memory, ports and the like, as lockdown lists them.
    pub const KERNEL_ACCESS: u32 = 16;
    /// Open a file by handle, past every path.
    pub const OPEN_BY_HANDLE: u32 = 17;
    /// Change addresses, routes, packet filters, tunnels (`CAP_NET_ADMIN`): what would lead permitted connections elsewhere.
    pub const NETWORK_ADMIN: u32 = 18;
    /// Restart or stop the computer (`CAP_SYS_BOOT`).
    pub const REBOOT: u32 = 19;
    /// Set the clock (`CAP_SYS_TIME`).
    pub const CLOCK: u32 = 20;
    /// One more than the last.
    pub const COUNT: u32 = 21;
    /// `context.operation`, by number.
    pub const NAMES: [&str; COUNT as usize] = [
        "trace",
        "signal",
        "receive_socket",
        "mount",
        "unmount",
        "chroot",
        "namespace",
        "set_user",
        "set_capabilities",
        "module",
        "kexec",
        "bpf",
        "perf",
        "keyring",
        "io_uring",
        "terminal_input",
        "kernel_access",
        "open_by_handle",
        "network_admin",
        "reboot",
        "clock",
    ];
}

/// A byte automaton. See the module's text.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Automaton {
    /// Row of the start state.
    pub start: u32,
    /// Words per row: symbols, and the end-of-input column last.
    pub stride: u32,
    /// Classes that the end-of-input column can name: 0..classes. 1: everything is alike, no need to run it.
    pub classes: u32,
    /// Always zero.
    pub _pad: u32,
    /// Symbol of each byte.
    pub symbols: [u8; 256],
}

/// Tables over address, port and protocol, for one action.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Net {
    /// Nibble trie of IPv4 addresses.
    pub address4: u32,
    /// Nibble trie of IPv6 addresses.
    pub address6: u32,
    /// Number of address classes.
    pub address_classes: u32,
    /// Nibble trie of ports.
    pub port: u32,
    /// Number of port classes.
    pub port_classes: u32,
    /// Entry: `(protocol class * port_classes + port class) * address_classes + address class`.
    pub table: u32,
    /// Class of each IP protocol number.
    pub protocols: [u8; 256],
}

/// Words of a row of arguments: its automaton's description. [`PolicyHeader::args_rows`] `+ row * ARGS_ROW_WORDS`.
pub const ARGS_ROW_WORDS: u32 = 4 + 64;
/// In a row of arguments: the start state.
pub const ARGS_START: u32 = 0;
/// In a row of arguments: the end-of-input column (`stride - 1`).
pub const ARGS_EOI: u32 = 1;
/// In a row of arguments: where the decisions lie; entry: [`Word`] by class.
pub const ARGS_TABLE: u32 = 2;
/// In a row of arguments: the [`Word`] if it is a denial whatever the arguments are, for who has to decide without them; else 0.
pub const ARGS_DENIAL: u32 = 3;
/// In a row of arguments: the symbols of all bytes, four to a word, lowest byte first.
pub const ARGS_SYMBOLS: u32 = 4;

/// Index of an exec decision's flags: the file has no name.
pub const EXEC_INDEX_FILELESS: u32 = 1;
/// Index of an exec decision's flags: the file is set-uid or set-gid.
pub const EXEC_INDEX_SETUID: u32 = 2;
/// Number of combinations of those.
pub const EXEC_INDICES: u32 = 4;

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
    /// Over the resolved absolute path of the program that starts.
    pub path: Automaton,
    /// Over the resolved absolute path of files and Unix sockets.
    pub file: Automaton,
    /// Over the resolved absolute path of the calling program.
    pub caller: Automaton,
    /// Entry: `(path class * EXEC_INDICES + flags) * caller.classes + caller class`: [`Word`].
    pub exec_table: u32,
    /// Rows of arguments; see [`ARGS_ROW_WORDS`].
    pub args_rows: u32,
    /// Entry: `((op * file.classes + file class) * 2 + fileless) * caller.classes + caller class`: [`Word`].
    pub file_table: u32,
    /// Entry: `(operation * 2 + outside) * caller.classes + caller class`: [`Word`].
    pub system_table: u32,
    /// By [`file_op`]: nonzero if every file is treated alike: then this is the [`Word`], with [`UNIFORM`], and no path need be
    /// resolved unless it is reported.
    pub uniform: [Word; file_op::COUNT as usize],
    /// Always zero.
    pub _pad: u32,
    /// Where connections and datagrams go.
    pub connect: Net,
    /// Where sockets listen or are bound.
    pub listen: Net,
}

/// Marks a word in [`PolicyHeader::uniform`] as valid. Taken off before the word is used.
pub const UNIFORM: Word = 1 << 31;

const _: () = assert!(size_of::<Automaton>() == 272 && size_of::<Net>() == 280);
const _: () = assert!(size_of::<PolicyHeader>() == 16 + 3 * 272 + 16 + 40 + 2 * 280);

impl Automaton {
    /// An automaton of all zeros, for empty slots.
    pub const EMPTY: Self = Self { start: 0, stride: 0, classes: 0, _pad: 0, symbols: [0; 256] };

    /// The end-of-input column.
    pub const fn eoi(&self) -> u32 {
        self.stride.wrapping_sub(1)
    }
}

impl Net {
    /// Tables of all zeros, for empty slots.
    pub const EMPTY: Self = Self {
        address4: 0,
        address6: 0,
        address_classes: 0,
        port: 0,
        port_classes: 0,
        table: 0,
        protocols: [0; 256],
    };
}

impl PolicyHeader {
    /// A free slot.
    pub const EMPTY: Self = Self {
        generation: 0,
        base: 0,
        words: 0,
        path: Automaton::EMPTY,
        file: Automaton::EMPTY,
        caller: Automaton::EMPTY,
        exec_table: 0,
        args_rows: 0,
        file_table: 0,
        system_table: 0,
        uniform: [0; file_op::COUNT as usize],
        _pad: 0,
        connect: Net::EMPTY,
        listen: Net::EMPTY,
    };
}

#[cfg(feature = "user")]
// SAFETY: `repr(C)`, integers and byte arrays only, no implicit padding (the size assertion above).
#[allow(unsafe_code, reason = "aya::Pod is an unsafe trait and the orphan rule puts the impl here")]
unsafe impl aya::Pod for PolicyHeader {}
