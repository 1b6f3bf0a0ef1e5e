//! The gateway's certificate authorities.

pub mod ssh;
