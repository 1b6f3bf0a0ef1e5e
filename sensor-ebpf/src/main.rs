//! The kernel programs: tag the processes of sessions, judge what they do, report it.
//!
//! Order in every hook: find the tag (one map lookup for everybody else on the host), decide, act, and only then
//! report. Whatever cannot be judged is denied for tagged processes, with the cause in the event; an untagged
//! process is never denied anything. A full ring costs the event, which is counted, never the decision.
//!
//! `unsafe` is needed for helpers and for memory that the kernel hands over as plain pointers; the verifier checks
//! every such access again when the program is loaded.
#![no_std]
#![no_main]
// Inline assembly for this target is not stable yet; the compiler version is pinned.
#![feature(asm_experimental_arch)]

mod atomic;
mod caller;
mod event;
mod fields;
mod file;
mod guard;
mod hooks;
mod judge;
mod maps;
mod names;
mod net;
mod owned;
mod path;
mod pending;
mod program;
mod read;
mod scratch;
mod sockets;
mod system;
mod tables;
mod unbrokered;
mod unix;

#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    // Never reached: the verifier would refuse a program that could get here.
    loop {}
}

/// Helpers such as `bpf_probe_read_kernel` and `bpf_send_signal` are for GPL-compatible programs only.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
