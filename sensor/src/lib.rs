//! `sallyport-sensor`: starts sessions, holds them under policy in the kernel, streams evidence.
//!
//! A library so that its parts can be tested from outside; the program is `main.rs`.
//!
//! Unsafe code is denied except at single named calls: `fork`, `_exit`, two terminal ioctls, `close_range` in the
//! shepherd, and what [`kernel`](crate) says of itself. Each has its argument beside it.

pub mod frames;
pub mod kernel;
pub mod shepherd;
