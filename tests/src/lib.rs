//! End-to-end harness: the real programs, a real `ssh`, a real OpenID provider, real kernels.
//!
//! A [`Stage`] is one run: gateway, OpenID provider and sensor as child processes, all state in one temporary
//! folder, gone when it is dropped. The [`story`] is what the demo shows and what the end-to-end tests assert.
//! Waiting is always for a condition, with a deadline; a denial is believed only when its side effect is
//! missing and the same thing outside of a session has it.
#![forbid(unsafe_code)]

pub mod browser;
pub mod bundles;
pub mod child;
pub mod command_line;
pub mod events;
pub mod listener;
pub mod openid;
pub mod pipeline;
pub mod plain_sshd;
pub mod programs;
pub mod ssh;
pub mod stage;
pub mod story;
pub mod terminal;
pub mod wait;
pub mod web;

pub use stage::{Provider, Stage, StageOptions};
