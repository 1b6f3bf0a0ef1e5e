//! The gateway's control side over real TLS and gRPC on the loopback: joining, links, channels, console, hostile
//! peers, crashes. Sensors here are the contract's other end, without a kernel.
#![allow(clippy::unwrap_used, missing_docs, reason = "tests")]

mod canary;
mod changes;
mod channels;
mod console;
mod crash;
mod enrolment;
mod hostile;
mod issuer;
mod policy;
mod rig;
mod rs256;
mod sensor;
mod signatures;
mod throughput;
mod versions;
mod web;
