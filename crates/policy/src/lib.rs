//! Sallyport's policies: Cedar bundles, checked, decided, and compiled for the kernel.
//!
//! A [`Bundle`] is a folder of Cedar policies with their entities and test cases; its version is the hash of its
//! canonical archive. [`Policy::load`] checks one and reports all faults at once; [`Policy::decide`] asks Cedar's
//! own authorizer. [`Policy::compile`] makes the tables that the kernel programs walk, for one person on one host as
//! one local user; [`KernelPolicy`] walks them as the kernel does and answers what Cedar answers
//! (`tests/differential.rs`). Everything a policy can speak of is in [`SCHEMA`].
//!
//! The way of a policy into the kernel: `load` (Cedar's parser and validator) → `residual` (what is known is
//! folded away) → `formula` (what is left, with Cedar's errors) → `automaton` and `trie` (values to classes) →
//! `table` (classes to decisions) → `compile` (into the arena).
//!
//! Pure: no clock, no network, and no file except in [`Bundle::read_dir`].

mod archive;
mod automaton;
mod bundle;
mod cases;
mod change;
mod compile;
mod coverage;
mod decide;
mod denials;
mod diagnostic;
mod diff;
mod docs;
#[cfg(test)]
mod documented;
mod entities;
mod explain;
mod expr;
mod foresee;
mod format;
mod formula;
mod fuzz;
mod kernel;
mod learn;
mod lint;
mod load;
#[cfg(feature = "mutants")]
pub mod mutant;
#[cfg(not(feature = "mutants"))]
mod mutant;
mod packs;
mod phrase;
mod placement;
mod port;
mod question;
mod residual;
mod rule;
mod sample;
mod scope;
mod source;
mod standin;
mod table;
mod trie;

pub use archive::fuzz_archive;
pub use bundle::{Bundle, BundleError};
pub use cases::{CaseResult, TestFailure, TestReport};
pub use change::Change;
pub use compile::CompileError;
pub use coverage::Condition;
pub use decide::Decider;
pub use denials::{Denials, SystemDenials};
pub use diagnostic::{Diagnostics, Fault};
pub use diff::{Becomes, Comparison, Concern, Diff, DiffError, Difference, Effect, Found, Scope, Verdict};
pub use explain::{Examined, Explanation, Remedy, Unmet};
pub use foresee::{Act, Args, Compiler, Foreseen, Unsaid};
pub use format::format;
pub use fuzz::{fuzz_bundle, fuzz_compiler, fuzz_rules};
pub use kernel::{KernelPolicy, Program};
pub use learn::{Learned, Outcome, Proposal, Text, learn};
pub use lint::{Examination, FINDING_CODES, Finding, Severity};
pub use load::{Policy, SCHEMA};
pub use packs::{pack_file, packs};
pub use phrase::Details;
pub use placement::{Cost, Enforcement, Place, Placement};
pub use question::{Answer, FileOp, GatewayAction, OnViolation, Operation, Principal, Question, RuleInfo};
pub use sample::Sample;
