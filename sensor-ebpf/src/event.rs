//! Filling in and sending events. Counted before sending, so that seen = received + lost, exactly.
//!
//! Nobody is woken for what is allowed: the reader looks by itself every few milliseconds. A session that floods loses
//! its own events, allowed ones first, and nobody else's.

use aya_ebpf::helpers::{
    bpf_get_current_comm, bpf_get_current_pid_tgid, bpf_get_current_uid_gid,
    generated::{
        self, bpf_get_current_cgroup_id, bpf_ktime_get_boot_ns, bpf_ringbuf_output, bpf_ringbuf_query,
    },
};
use sallyport_sensor_abi::{
    event::Header,
    policy::{DENY, OBSERVED, UNJUDGED, Word},
    session::{RING_QUOTA, SESSION_QUOTA, SESSION_QUOTA_ALL, Session, Tag},
};

use crate::{
    atomic::add64,
    judge::{self, Verdict},
    maps,
    read::{self, offset},
};

const BPF_RB_NO_WAKEUP: u64 = 1;
const BPF_RB_FORCE_WAKEUP: u64 = 2;
const BPF_RB_AVAIL_DATA: u64 = 0;

/// No login.
const NO_LOGIN: u32 = u32::MAX;

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
        // SAFETY: no preconditions.
        cgroup: unsafe { bpf_get_current_cgroup_id() },
        login_uid: login_uid(),
        _pad: 0,
    }
}

/// As [`header`], in its place in a map: it would take a third of the stack.
///
/// # Safety
/// `at` must be writable; the verifier must be able to see it.
#[inline(always)]
pub(crate) unsafe fn write_header(at: *mut Header, kind: u32, tag: &Tag, verdict: Verdict) {
    let pid_tgid = bpf_get_current_pid_tgid();
    let uid_gid = bpf_get_current_uid_gid();
    // SAFETY: the caller's promise; helpers have no preconditions.
    unsafe {
        (*at).kind = kind;
        (*at).cause = verdict.cause;
        (*at).time = bpf_ktime_get_boot_ns();
        (*at).session = tag.session;
        (*at).channel = tag.channel;
        (*at).decision = verdict.word;
        (*at).generation = verdict.generation;
        (*at).tgid = (pid_tgid >> 32) as u32;
        (*at).tid = pid_tgid as u32;
        (*at).started = tag.started;
        (*at).uid = uid_gid as u32;
        (*at).gid = (uid_gid >> 32) as u32;
        let comm = &raw mut (*at).comm;
        if generated::bpf_get_current_comm(comm.cast(), 16) != 0 {
            *comm = [0; 16];
        }
        (*at).cgroup = bpf_get_current_cgroup_id();
        (*at).login_uid = login_uid();
        (*at)._pad = 0;
    }
}

/// The current process's login uid (audit); `u32::MAX`: none.
#[inline(always)]
pub(crate) fn login_uid() -> u32 {
    // SAFETY: points into `OFFSETS`.
    let offset = unsafe { offset!(task_struct_loginuid) };
    if !read::has(offset) {
        return NO_LOGIN;
    }
    read::kernel(read::current_task() + offset).unwrap_or(NO_LOGIN)
}

#[inline(always)]
fn count(index: u32) {
    if let Some(counter) = maps::COUNTERS.get_ptr_mut(index) {
        // Atomic although per CPU: a program can be preempted in the middle of an addition.
        // SAFETY: a map value, aligned to 8, only ever accessed atomically here.
        unsafe { add64(counter, 1) };
    }
}

/// Bytes that an event takes in the ring: its own header, rounded up.
#[inline(always)]
const fn ring_bytes(len: u64) -> u64 {
    (len + 8 + 7) & !7
}

/// Whether there is room for an event of this session.
#[inline(always)]
fn within_quota(session: Option<*mut Session>, word: Word) -> bool {
    let decided = word & (DENY | OBSERVED | UNJUDGED) != 0;
    // SAFETY: an entry of an array map. Volatile: others change it.
    let queued = session.map(|session| unsafe { core::ptr::read_volatile(&raw const (*session).queued) });
    // Processes of a session that is gone share what is for all.
    let quota = if decided { SESSION_QUOTA_ALL } else { SESSION_QUOTA };
    if queued.is_some_and(|queued| queued > quota) {
        return false;
    }
    if decided && queued.is_some() {
        return true;
    }
    // SAFETY: the ring is a ring.
    unsafe { bpf_ringbuf_query((&raw const maps::EVENTS).cast_mut().cast(), BPF_RB_AVAIL_DATA) <= RING_QUOTA }
}

/// Sends the first `len` bytes at `message`, which `word` decided.
///
/// # Safety
/// They must be initialised memory that the verifier can see to be that long.
#[inline(always)]
pub(crate) unsafe fn send(kind: u32, tag: &Tag, word: Word, message: *const u8, len: u64) {
    count(kind * 2);
    let session = judge::session(tag);
    let mut sent = false;
    if within_quota(session, word) {
        // Counted first: the reader may be quicker than this.
        if let Some(session) = session {
            // SAFETY: an entry of an array map, changed atomically only.
            unsafe { add64(&raw mut (*session).queued, ring_bytes(len)) };
        }
        let wake = word & (DENY | OBSERVED) != 0;
        let flags = if wake { BPF_RB_FORCE_WAKEUP } else { BPF_RB_NO_WAKEUP };
        // SAFETY: the caller's promise.
        sent = unsafe {
            bpf_ringbuf_output(
                (&raw const maps::EVENTS).cast_mut().cast(),
                message.cast_mut().cast(),
                len,
                flags,
            )
        } == 0;
        if !sent && let Some(session) = session {
            // SAFETY: as above.
            unsafe { add64(&raw mut (*session).queued, ring_bytes(len).wrapping_neg()) };
        }
    }
    if !sent {
        count(kind * 2 + 1);
        if let Some(session) = session {
            // SAFETY: as above.
            unsafe { add64(&raw mut (*session).lost, 1) };
        }
    }
}

/// A header with a body of fixed size.
#[repr(C)]
pub(crate) struct Small<T> {
    pub(crate) header: Header,
    pub(crate) body: T,
}

impl<T> Small<T> {
    /// One about the current process.
    #[inline(always)]
    pub(crate) fn new(kind: u32, tag: &Tag, verdict: Verdict, body: T) -> Self {
        let mut event = Self { header: Header::default(), body };
        // SAFETY: a local.
        unsafe { write_header(&raw mut event.header, kind, tag, verdict) };
        event
    }

    /// Sends it, unless it is not to be reported.
    #[inline(always)]
    pub(crate) fn send(&self, tag: &Tag) {
        let word = self.header.decision;
        if judge::is_quiet(word) {
            return;
        }
        // SAFETY: `Header` and all bodies are free of implicit padding, so every byte is initialised.
        unsafe { send(self.header.kind, tag, word, (&raw const *self).cast(), size_of::<Self>() as u64) };
    }
}
