//! Filling in and sending events. Counted before sending, so that seen = received + lost, exactly.

use aya_ebpf::helpers::{
    bpf_get_current_comm, bpf_get_current_pid_tgid, bpf_get_current_uid_gid,
    generated::{bpf_ktime_get_boot_ns, bpf_ringbuf_output},
};
use sallyport_sensor_abi::{event::Header, session::Tag};

use crate::{judge::Verdict, maps};

/// A header about the current process.
#[inline(always)]
pub(crate) fn header(kind: u32, tag: &Tag, verdict: Verdict) -> Header {
    let pid_tgid = bpf_get_current_pid_tgid();
    let uid_gid = bpf_get_current_uid_gid();
    Header {
        kind,
        cause: verdict.cause,
        // SAFETY: no preconditions.
        time: unsafe { bpf_ktime_get_boot_ns() },
        session: tag.session,
        channel: tag.channel,
        decision: verdict.word,
        generation: verdict.generation,
        tgid: (pid_tgid >> 32) as u32,
        tid: pid_tgid as u32,
        started: tag.started,
        uid: uid_gid as u32,
        gid: (uid_gid >> 32) as u32,
        comm: bpf_get_current_comm().unwrap_or_default(),
    }
}

#[inline(always)]
fn count(index: u32) {
    if let Some(counter) = maps::COUNTERS.get_ptr_mut(index) {
        // Atomic although per CPU: a program can be preempted in the middle of an addition.
        // SAFETY: a map value, aligned to 8, only ever accessed atomically here.
        unsafe { crate::atomic::add64(counter, 1) };
    }
}

/// Sends the first `len` bytes at `message`.
///
/// # Safety
/// They must be initialised memory that the verifier can see to be that long.
#[inline(always)]
pub(crate) unsafe fn send(kind: u32, message: *const u8, len: u64) {
    count(kind * 2);
    // SAFETY: the caller's promise.
    let status = unsafe {
        bpf_ringbuf_output((&raw const maps::EVENTS).cast_mut().cast(), message.cast_mut().cast(), len, 0)
    };
    if status != 0 {
        count(kind * 2 + 1);
    }
}

/// A header with a body of fixed size.
#[repr(C)]
pub(crate) struct Small<T> {
    pub(crate) header: Header,
    pub(crate) body: T,
}

impl<T> Small<T> {
    /// Sends it.
    #[inline(always)]
    pub(crate) fn send(&self) {
        // SAFETY: `Header` and all bodies are free of implicit padding, so every byte is initialised.
        unsafe { send(self.header.kind, (&raw const *self).cast(), size_of::<Self>() as u64) };
    }
}
