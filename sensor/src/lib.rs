//! `sallyport-sensor`: starts sessions, holds them under policy in the kernel, streams evidence.
//!
//! A library so that its parts can be tested from outside; the program is `main.rs`. Reading order is the order of
//! the modules below: the program, its parts, the process beside it, the kernel.
//!
//! Unsafe code is denied except at single named calls, each with its argument beside it: `fork`, `_exit`, two terminal
//! ioctls and `close_range` in [`shepherd`], pidfds in `processes`, a clock, file handles and `statx` in [`guard`], and what [`kernel`] says of itself.

pub mod cli;
pub mod config;
pub mod credentials;
pub mod daemon;
pub mod doctor;
pub mod join;

pub mod enrich;
pub mod events;
pub mod guard;
pub mod heartbeat;
pub mod lineage;
pub mod notices;
pub mod policies;
mod processes;
pub mod records;
pub mod refusals;
mod relay;
pub mod sessions;
pub mod spool;
pub mod status;
pub mod unbrokered;
pub mod uplink;

pub mod clock;
pub mod files;
pub mod frames;
pub mod shepherd;

pub mod kernel;
