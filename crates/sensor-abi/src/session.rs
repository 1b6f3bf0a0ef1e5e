//! Tags and sessions: who a process belongs to.

/// Value of map `TASKS`, keyed by tgid (`u32`, initial pid namespace). Present: the process is tagged.
///
/// Whoever inserts or removes an entry also sets or clears the process's bit in `TAGGED`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tag {
    /// [`Session::number`]; never 0.
    pub session: u64,
    /// Identity of this process image's process: start time in ns since boot, unique with the tgid.
    pub started: u64,
    /// The sensor's number for the channel (terminal or command) the process descends from.
    pub channel: u32,
    /// Index into `SESSIONS`; the session there counts only if its number is [`Self::session`].
    pub slot: u32,
    /// [`crate::policy::PolicyHeader::generation`] for which [`Self::caller`] was found; 0: the process has not
    /// started a program in its session; `u64::MAX`: it could not be found.
    pub caller_generation: u64,
    /// Class of the process's program as a calling program.
    pub caller: u32,
    /// How many rows of arguments are in the process's entry of map `PENDING`: those of the files that the program which is
    /// about to start was found through.
    pub pending: u32,
}

/// Rows of arguments that one start of a program can wait for; with more it is denied.
pub const MAX_PENDING: usize = 8;
/// Entries of map `PENDING`. The ones unused for longest go first; a program whose entry is gone is denied.
pub const PENDING_PROGRAMS: u32 = 8_192;

/// Value of map `PENDING`, keyed by tgid (`u32`): the kernel starts one program at a time in a process.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pending {
    /// [`crate::policy::PolicyHeader::generation`] of the policy that they are rows of.
    pub generation: u64,
    /// The rows, [`Tag::pending`] of them.
    pub rows: [u32; MAX_PENDING],
}

/// Words of array map `TAGGED`: one bit for each process number there can be (`PID_MAX_LIMIT`, 2^22), which is set exactly as
/// long as the process has an entry in `TASKS`. Bits are changed by atomic addition of `1 << bit` and of its negative, by
/// whoever inserted or removed the entry. It spares processes outside of sessions the hash table.
pub const TAGGED_WORDS: u32 = (1 << 22) / 64;

/// Entry of array map `SESSIONS`, by slot. User space maps the array into its memory and writes single
/// aligned words, so a change is atomic and the kernel's counting is never overwritten.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Session {
    /// The session; 0: the slot is free. Written last when a session opens, first when it closes.
    pub number: u64,
    /// Slot in `POLICIES`. User space changes this one word to swap a running session's policy.
    pub policy: u32,
    /// [`SESSION_SEALED`] and the like.
    pub flags: u32,
    /// Tagged processes that are alive. Counted by the hooks on fork and exit.
    pub tasks: u32,
    /// More than this many: the forking process is killed.
    pub task_limit: u32,
    /// Bytes of this session's events in the ring: added by the kernel, subtracted by the reader.
    pub queued: u64,
    /// This session's events that were lost since it opened, of all kinds.
    pub lost: u64,
    /// Tagged processes that ended and of which the kernel still keeps something: nobody has waited for them, or somebody
    /// has just done so. Counted by the hooks on exit and free.
    pub ended: u32,
    /// More than this many: the forking process is killed. Normally [`ENDED_LIMIT`].
    pub ended_limit: u32,
}

/// How many ended processes a session may leave behind. Not the limit of those alive: the kernel frees a process that was
/// waited for a moment later, and lets about ten thousand wait before it hurries (`rcutree.qhimark`), so that a session that
/// starts thousands of programs a second, and waits for each, has many.
pub const ENDED_LIMIT: u32 = 16_384;

/// The session is over: everything that is judged is denied.
pub const SESSION_SEALED: u32 = 1;
/// Nothing is denied; what would be is reported as [`crate::policy::OBSERVED`]. For log-ins that did not come through a gateway.
/// What cannot be judged is reported and goes on, too.
pub const SESSION_MONITORED: u32 = 2;

/// Bytes of one session's events in the ring from which on its *allowed* events are lost (and counted), so that they
/// displace nobody else's.
pub const SESSION_QUOTA: u64 = crate::RING_BYTES as u64 / 16;
/// The same for all its events.
pub const SESSION_QUOTA_ALL: u64 = crate::RING_BYTES as u64 / 8;
/// Bytes in the ring from which on allowed events of all sessions are lost, so that decisions have room.
pub const RING_QUOTA: u64 = crate::RING_BYTES as u64 / 2;

/// The one entry of array map `HOST`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Host {
    /// Tagged processes of all sessions that are alive.
    pub tasks: u32,
    /// More than this many: the forking process is killed. Normally [`crate::TASKS_SOFT_LIMIT`].
    pub task_limit: u32,
    /// When the sensor last said that it is alive, in nanoseconds since boot (`CLOCK_BOOTTIME`). User space writes it every second.
    pub alive: u64,
    /// How long it may be silent, in nanoseconds, before tagged sessions can start nothing new (exec, connect, listen, Unix sockets
    /// are denied with [`crate::event::cause::SENSOR_GONE`]). 0: for ever.
    pub grace: u64,
    /// [`HOST_UNBROKERED`] and the like.
    pub flags: u32,
    /// Entries of map `ENDED`. While it is 0 nobody looks there when the kernel frees a process.
    pub ended: u32,
}

/// Value of map `ENDED`, keyed by the address of a process's first thread (`u64`): a tagged process that has ended and still
/// takes a process number.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ended {
    /// [`Session::number`].
    pub session: u64,
    /// Its slot.
    pub slot: u32,
    /// Its process number, by which the sensor finds out whether it is gone when no hook has seen it go.
    pub tgid: u32,
}

/// Entries of map `ENDED`. What does not fit is not counted any more once it has ended.
pub const MAX_ENDED: u32 = 32_768;

/// Log-ins outside of a gateway are tagged (map `UNBROKERED`).
pub const HOST_UNBROKERED: u32 = 1;

/// Some name in map `NAMES` is guarded, so what is done to files must be looked at even if policy treats all alike.
pub const HOST_GUARDED_NAMES: u32 = 2;
/// Some name in map `NAMES` is secret, so reading must be looked at, too.
pub const HOST_SECRET_NAMES: u32 = 4;

/// Value of map `UNBROKERED`, keyed by login uid (`u32`); key [`ANY_LOGIN`] is for those not listed. A process that executes a
/// program, has a login uid and no tag gets this one.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Unbrokered {
    /// [`Session::number`].
    pub session: u64,
    /// Its slot.
    pub slot: u32,
    /// Always zero.
    pub _pad: u32,
}

/// Key of `UNBROKERED` for accounts not listed. (Not -1, which means "no login".)
pub const ANY_LOGIN: u32 = u32::MAX - 1;
/// Accounts in `UNBROKERED` at most.
pub const MAX_ACCOUNTS: u32 = 4_096;

/// Entries of hash map `GUARDED`: process number → start time in ns since boot (`u64`). The sensor and its shepherds; no tagged process may
/// signal or trace them, whatever policy says.
pub const MAX_GUARDED: u32 = 16_384;

const _: () = assert!(size_of::<Tag>() == 40 && size_of::<Session>() == 48 && size_of::<Host>() == 32);

#[cfg(feature = "user")]
// SAFETY: `repr(C)`, integers only, no implicit padding (the size assertion above), so every bit
// pattern is a value and every byte is initialised.
#[allow(unsafe_code, reason = "aya::Pod is an unsafe trait and the orphan rule puts the impl here")]
unsafe impl aya::Pod for Tag {}

#[cfg(feature = "user")]
// SAFETY: as above: three integers and a zeroed word.
#[allow(unsafe_code, reason = "aya::Pod is an unsafe trait and the orphan rule puts the impl here")]
unsafe impl aya::Pod for Unbrokered {}

#[cfg(feature = "user")]
// SAFETY: as above: two integers and a zeroed word.
#[allow(unsafe_code, reason = "aya::Pod is an unsafe trait and the orphan rule puts the impl here")]
unsafe impl aya::Pod for Ended {}
