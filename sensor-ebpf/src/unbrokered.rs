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
    let Unbrokered { session, slot, .. } = account(login).or_else(|| account(ANY_LOGIN))?;
    // SAFETY: points into `OFFSETS`.
    let started = read::kernel::<u64>(task + unsafe { offset!(task_struct_start_boottime) }).ok()?;
    let tag = Tag { session, started, channel: 0, slot, caller_generation: 0, caller: 0, _pad: 0 };
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

#[inline(always)]
fn account(login: u32) -> Option<Unbrokered> {
    // SAFETY: copied at once.
    unsafe { maps::UNBROKERED.get(login) }.copied()
}
