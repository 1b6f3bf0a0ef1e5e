//! The `sallyport` command: sign in, reach hosts, manage policy, watch and prove what happened.
//!
//! `args` is the grammar, `commands` does the work. Below them: `gateway` (the connection), `job` (being a CI job), `oidc` (signing in),
//! `ssh` (files for ssh), `cast` and `replay` (recordings), `profile` (what a sign-in leaves behind).
#![forbid(unsafe_code)]

pub mod args;
pub mod cast;
pub mod clock;
pub mod commands;
pub mod failure;
pub mod files;
pub mod gateway;
pub mod git;
pub mod job;
pub mod oidc;
pub mod out;
pub mod profile;
pub mod record_line;
pub mod recorded;
pub mod replay;
pub mod ssh;
pub mod text;
pub mod trust;
