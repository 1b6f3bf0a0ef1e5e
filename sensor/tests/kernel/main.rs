//! The kernel programs on the running kernel: each test asserts side effects, and has an untagged control.
//!
//! Needs root. One test at a time: they share the kernel. `SALLYPORT_TEST_MODE=lsm|tracepoint` chooses the mode.

mod exec;
mod files;
mod helper;
mod host;
mod lineage;
mod network;
mod sessions;
mod survival;
mod tables;
mod uring;
