//! The gateway: proves who asks, asks policy, orders sensors, and keeps the record.
//!
//! `main` reads the command line; everything else is here so that tests can run a gateway in-process.
#![forbid(unsafe_code)]

pub mod authority;
pub mod authorize;
pub mod config;
pub mod console;
pub mod identity;
pub mod sensors;
pub mod ssh;
pub mod state;

use std::sync::Arc;
use tokio_util::sync::CancellationToken;

/// Everything the front doors need, made once at start. Cheap to clone.
#[derive(Clone)]
pub struct Gateway {
    /// The validated configuration.
    pub config: Arc<config::Config>,
    /// The state database.
    pub state: state::State,
    /// Mints sessions.
    pub authorizer: authorize::Authorizer,
    /// Cancelled when the gateway shuts down: stop accepting, close what is open, return.
    pub shutdown: CancellationToken,
}
