//! Log-ins that did not come through a gateway: their first program after the log-in tags them.

use aya_ebpf::bindings::BPF_NOEXIST;
use sallyport_sensor_abi::session::{ANY_LOGIN, HOST_UNBROKERED, Tag, Unbrokered};

use crate::{
    atomic::add32,
    judge,
    maps::{self, HOST, TASKS},
    read::{self, Address, offset},
};

/// Tags the current process if it has a login uid and log-ins are to be tagged. For all others this is one load.
#[inline(always)]
pub(crate) fn tag(tgid: u32, task: Address) -> Option<Tag> {
    if judge::host_flags() & HOST_UNBROKERED == 0 {
        return None;
    }
    let login = crate::event::login_uid();
    if login == u32::MAX {
        return None;
    }
    if is_own(tgid, task) || crowded() {
        return None;
    }
    let Unbrokered { session, slot, .. } = account(login).or_else(|| account(ANY_LOGIN))?;
    // SAFETY: points into `OFFSETS`.
    let started = read::kernel::<u64>(task + unsafe { offset!(task_struct_start_boottime) }).ok()?;
    // The log-in's number stands where brokered sessions have their channel, so every event says which log-in it is.
    let channel = audit_session(task);
    let tag = Tag { session, started, channel, slot, caller_generation: 0, caller: 0, pending: 0 };
    // Without its session it would be denied everything.
    let session = judge::session(&tag)?;
    // Full: it goes on untagged, which is what it would be without this.
    TASKS.insert(tgid, tag, u64::from(BPF_NOEXIST)).ok()?;
    maps::mark(tgid);
    // SAFETY: entries of array maps; the counters are only accessed atomically.
    unsafe {
        if let Some(host) = HOST.get_ptr_mut(0) {
            add32(&raw mut (*host).tasks, 1);
        }
        add32(&raw mut (*session).tasks, 1);
    }
    Some(tag)
}

/// The sensor, started by hand from a log-in, or a child of its: a shepherd that starts before it is guarded itself.
#[inline(always)]
fn is_own(tgid: u32, task: Address) -> bool {
    // SAFETY: offsets point into `OFFSETS`.
    let parent = unsafe {
        read::kernel::<Address>(task + offset!(task_struct_real_parent))
            .and_then(|parent| read::kernel::<u32>(parent + offset!(task_struct_tgid)))
            .unwrap_or(0)
    };
    is_guarded(tgid) || is_guarded(parent)
}

#[inline(always)]
fn is_guarded(tgid: u32) -> bool {
    // SAFETY: only looked at.
    unsafe { maps::GUARDED.get(tgid) }.is_some()
}

/// Log-ins take half of the tags at most: the rest is for brokered sessions, which cannot do without.
#[inline(always)]
pub(crate) fn crowded() -> bool {
    // SAFETY: an entry of an array map. Volatile: others change it.
    HOST.get_ptr(0).is_none_or(|host| unsafe {
        core::ptr::read_volatile(&raw const (*host).tasks)
            > core::ptr::read_volatile(&raw const (*host).task_limit) / 2
    })
}

#[inline(always)]
fn audit_session(task: Address) -> u32 {
    // SAFETY: points into `OFFSETS`.
    let offset = unsafe { offset!(task_struct_sessionid) };
    if read::has(offset) { read::kernel(task + offset).unwrap_or(u32::MAX) } else { u32::MAX }
}

#[inline(always)]
fn account(login: u32) -> Option<Unbrokered> {
    // SAFETY: copied at once.
    unsafe { maps::UNBROKERED.get(login) }.copied()
}
