//! Tags and sessions: who a process belongs to.

/// Value of map `TASKS`, keyed by tgid (`u32`, initial pid namespace). Present: the process is tagged.
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
}

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
    /// Tagged processes alive now; counted by the fork and exit hooks.
    pub tasks: u32,
    /// More than this many: the forking process is killed.
    pub task_limit: u32,
}

/// The session is over: every exec and connection is denied.
pub const SESSION_SEALED: u32 = 1;

/// The one entry of array map `HOST`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Host {
    /// Tagged processes alive now, of all sessions.
    pub tasks: u32,
    /// More than this many: the forking process is killed. Normally [`crate::TASKS_SOFT_LIMIT`].
    pub task_limit: u32,
}

const _: () = assert!(size_of::<Tag>() == 24 && size_of::<Session>() == 24 && size_of::<Host>() == 8);

#[cfg(feature = "user")]
// SAFETY: `repr(C)`, integers only, no implicit padding (the size assertion above), so every bit
// pattern is a value and every byte is initialised.
#[allow(unsafe_code, reason = "aya::Pod is an unsafe trait and the orphan rule puts the impl here")]
unsafe impl aya::Pod for Tag {}
