//! Sign-in: OpenID, key bindings.

pub mod config;
pub mod store;
