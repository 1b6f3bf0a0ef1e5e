//! Deliberate faults of the compiler, so that the comparisons with Cedar can be shown to notice them.
//!
//! Only with the feature `mutants`, which tests of the workspace switch on, is there anything here that can go wrong.

/// Flags of a program's file are left out.
pub(crate) const FLAGS: u32 = 1;
/// The calling program is taken for another.
pub(crate) const CALLER: u32 = 2;
/// A range of addresses is one bit too short.
pub(crate) const PREFIX: u32 = 3;
/// A range of ports ends one too early.
pub(crate) const PORT: u32 = 4;
/// Some argument suffices where every one is asked for.
pub(crate) const EVERY: u32 = 5;
/// A permit beats a forbid.
pub(crate) const FORBID: u32 = 6;
/// A monitored rule is not noticed.
pub(crate) const WATCH: u32 = 7;
/// A pattern's `*` does not match a slash.
pub(crate) const SLASH: u32 = 8;
/// An operation's neighbour is meant.
pub(crate) const OPERATION: u32 = 9;
/// What still matters is dropped.
pub(crate) const WEIGHT: u32 = 10;
/// An error counts as false.
pub(crate) const ERROR: u32 = 11;
/// What is not to be recorded is.
pub(crate) const QUIET: u32 = 12;

/// Whether this fault is made.
#[cfg(not(feature = "mutants"))]
#[inline(always)]
pub(crate) const fn is(_fault: u32) -> bool {
    false
}

#[cfg(feature = "mutants")]
std::thread_local! {
    static FAULT: std::cell::Cell<u32> = const { std::cell::Cell::new(0) };
}

/// Whether this fault is made.
#[cfg(feature = "mutants")]
pub(crate) fn is(fault: u32) -> bool {
    FAULT.get() == fault
}

/// How many faults there are, numbered from 1.
#[cfg(feature = "mutants")]
pub const FAULTS: u32 = 12;

/// Makes this fault in this thread from now on; 0: none.
#[cfg(feature = "mutants")]
pub fn make(fault: u32) {
    FAULT.set(fault);
}
