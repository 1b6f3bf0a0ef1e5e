//! Tags and sessions: who a process belongs to.

/// Value of map `TASKS`, keyed by tgid (`u32`, initial pid namespace). Present: the process is tagged.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tag {
    /// Key into `SESSIONS`; never 0.
    pub session: u64,
    /// Identity of this process image's process: start time in ns since boot, unique with the tgid.
    pub started: u64,
    /// The sensor's number for the channel (terminal or command) the process descends from.
    pub channel: u32,
    /// Always zero.
    pub _pad: u32,
}

/// Value of map `SESSIONS`, keyed by session number (`u64`).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Session {
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

const _: () = assert!(size_of::<Tag>() == 24 && size_of::<Session>() == 16);

#[cfg(feature = "user")]
// SAFETY: `repr(C)`, integers only, no implicit padding (the size assertion above), so every bit
// pattern is a value and every byte is initialised.
#[allow(unsafe_code, reason = "aya::Pod is an unsafe trait and the orphan rule puts the impl here")]
unsafe impl aya::Pod for Tag {}
#[cfg(feature = "user")]
// SAFETY: as for `Tag`.
#[allow(unsafe_code, reason = "as for `Tag`")]
unsafe impl aya::Pod for Session {}
