//! The SSH door.

pub mod config;
