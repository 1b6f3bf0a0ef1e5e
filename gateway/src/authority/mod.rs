//! The gateway's certificate authorities.

pub mod ssh;
pub mod x509;
