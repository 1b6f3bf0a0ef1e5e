//! Sallyport's policies: Cedar bundles, checked, decided, and compiled for the kernel.
//!
//! A [`Bundle`] is a folder of Cedar policies with their entities and test cases; its version is the hash of its
//! canonical archive. [`Policy::load`] checks one and reports all faults at once; [`Policy::decide`] asks Cedar's
//! own authorizer. Everything a policy can speak of is in [`SCHEMA`].
//!
//! Pure: no clock, no network, and no file except in [`Bundle::read_dir`].

mod archive;
mod automaton;
mod bundle;
mod compile;
mod decide;
mod diagnostic;
mod entities;
mod expr;
mod formula;
mod kernel;
mod load;
mod port;
mod question;
mod residual;
mod rule;
mod source;
mod table;
mod trie;

pub use archive::fuzz_archive;
pub use compile::CompileError;
pub use bundle::{Bundle, BundleError};
pub use diagnostic::{Diagnostics, Fault};
pub use kernel::KernelPolicy;
pub use load::{Policy, SCHEMA};
pub use question::{Answer, GatewayAction, OnViolation, Principal, Question, RuleInfo};
