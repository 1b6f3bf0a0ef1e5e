//! The kernel programs on the running kernel: each test asserts side effects, and has an untagged control.
//!
//! Needs root. One test at a time: they share the kernel. `SALLYPORT_TEST_MODE=lsm|tracepoint` chooses the mode.

mod attack;
mod exec;
mod faults;
mod files;
mod guard;
mod helper;
mod host;
mod lineage;
mod listen;
mod logins;
mod network;
mod sessions;
mod survival;
mod system;
mod tables;
mod unix;
mod uring;
mod verifier;
