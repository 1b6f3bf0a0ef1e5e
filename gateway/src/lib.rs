//! The gateway: proves who asks, asks policy, orders sensors, and keeps the record.
//!
//! `main` reads the command line; everything else is here so that tests can run a gateway in-process.
#![forbid(unsafe_code)]

pub mod authority;
pub mod authorize;
pub mod changes;
pub mod ci;
pub mod config;
pub mod console;
pub mod files;
pub mod identity;
pub mod link;
pub mod policy;
pub mod recorder;
pub mod sensors;
mod sessions;
pub mod ssh;
mod start;
pub mod state;

pub use start::{Gateway, GrpcServer, StartError};

/// An error and its causes, on one line.
pub(crate) fn chain(err: &dyn std::error::Error) -> String {
    let mut text = err.to_string();
    let mut cause = err.source();
    while let Some(err) = cause {
        text.push_str(": ");
        text.push_str(&err.to_string());
        cause = err.source();
    }
    text
}
