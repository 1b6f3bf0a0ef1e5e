//! What the kernel programs and the sensor agree on: map keys, map values, events, bounds.
//!
//! `no_std`, `repr(C)`, no pointers, explicit zeroed padding, `u32` flags instead of `bool`. User space
//! converts these into its own types at the edge (`sensor::kernel::event`) and never casts enums.
//! Change anything here and bump [`ABI_VERSION`]: pinned maps of another version are not adopted.
#![no_std]

pub mod event;
pub mod fields;
pub mod kernel;
pub mod names;
pub mod policy;
pub mod question;
pub mod session;

/// Version of everything in this crate. A sensor adopts pinned maps only if theirs is equal.
pub const ABI_VERSION: u32 = 3;

/// Tagged processes on a host at most. The fork hook starts to kill forking tagged processes at
/// [`TASKS_SOFT_LIMIT`], so that the map can never be full when a child must be tagged.
pub const MAX_TASKS: u32 = 65_536;
/// See [`MAX_TASKS`]; the difference is room for forks that race on other CPUs.
pub const TASKS_SOFT_LIMIT: u32 = 60_000;
/// Sessions at once on a host at most; one more is refused before it starts.
pub const MAX_SESSIONS: u32 = 4_096;
/// Compiled policies loaded at once at most.
pub const MAX_POLICIES: u32 = 1_024;
/// Words in one entry of array map `ARENA`. The kernel rounds every entry up to 8 bytes, so single
/// words would take twice the memory; regions of compiled policies begin at entries.
pub const ARENA_BLOCK: u32 = 1 << 10;
/// Entries of the arena that holds all compiled tables (64 MiB in all).
pub const ARENA_BLOCKS: u32 = 1 << 14;
/// Size of the arena in 32-bit words.
pub const ARENA_WORDS: u32 = ARENA_BLOCKS * ARENA_BLOCK;
/// One entry of `ARENA`.
pub type ArenaBlock = [u32; ARENA_BLOCK as usize];
/// Ring buffer size in bytes.
pub const RING_BYTES: u32 = 8 << 20;
/// Longest path judged, in bytes without the terminating zero; a longer one is denied.
pub const PATH_BYTES: usize = 4_096;
/// Most components of a path judged; a deeper one is denied.
pub const PATH_COMPONENTS: usize = 256;
/// Most argument bytes that are judged; beyond it a rule on arguments denies.
pub const ARGS_JUDGED: usize = 32_768;
/// Most argument bytes carried in an event (the rest is marked as cut).
pub const ARGS_BYTES: usize = 4_096;
