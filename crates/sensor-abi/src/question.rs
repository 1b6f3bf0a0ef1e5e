//! Questions to the kernel programs without a session: how tests compare their answers with Cedar's.
//!
//! Program `sally_question` is attached nowhere. The kernel runs it once (`BPF_PROG_TEST_RUN`), and it answers the questions in map
//! `QUESTIONS` with the functions that the hooks call.

/// Bytes of a path that a question can hold.
pub const TEXT: usize = 512;
/// Entries of map `QUESTIONS` that are answered in one run.
pub const BATCH: u32 = 128;

/// What a question is about; value of [`Question::kind`].
pub mod kind {
    /// Nothing: the entry is left alone.
    pub const NONE: u32 = 0;
    /// A program is started.
    pub const EXEC: u32 = 1;
    /// Something is done to a file.
    pub const FILE: u32 = 2;
    /// Something is asked of the system.
    pub const SYSTEM: u32 = 3;
    /// A connection.
    pub const CONNECT: u32 = 4;
    /// A socket is bound.
    pub const LISTEN: u32 = 5;
}

/// Entry of array map `QUESTIONS`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Question {
    /// One of [`kind`].
    pub kind: u32,
    /// Slot of the policy.
    pub slot: u32,
    /// One of [`crate::policy::file_op`] or [`crate::policy::operation`]; of an address 4 or 6.
    pub what: u32,
    /// [`crate::event::EXEC_FILELESS`].
    pub flags: u32,
    /// Mode of the file.
    pub mode: u32,
    /// Of an operation: it is done to a process outside.
    pub outside: u32,
    /// Address in host byte order; only the first word for IPv4. Not changed for loopback: the hooks do that before.
    pub address: [u32; 4],
    /// Port.
    pub port: u32,
    /// IP protocol number.
    pub protocol: u32,
    /// Where the arguments are in the memory of the process that asks.
    pub args: u64,
    /// Bytes of arguments, without the last zero.
    pub args_len: u32,
    /// Bytes of [`Self::path`].
    pub path_len: u32,
    /// Bytes of [`Self::caller`].
    pub caller_len: u32,
    /// The answer: a [`crate::policy::Word`].
    pub word: u32,
    /// The answer: one of [`crate::event::cause`].
    pub cause: u32,
    /// Always zero.
    pub _pad: u32,
    /// Path.
    pub path: [u8; TEXT],
    /// Path of the calling program.
    pub caller: [u8; TEXT],
}

const _: () = assert!(size_of::<Question>() == 80 + 2 * TEXT);
