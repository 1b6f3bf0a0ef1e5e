//! Attached nowhere: answers the questions in map `QUESTIONS` when the kernel is asked to run it once.
//!
//! So that millions of decisions can be compared with those of Cedar's authorizer, without as many processes and files. From the
//! resolved path on, what runs here is what runs in the hooks. Needs: 5.10 (`BPF_PROG_TEST_RUN` of raw tracepoints).

use aya_ebpf::{macros::raw_tracepoint, programs::RawTracePointContext};
use sallyport_sensor_abi::{
    PATH_BYTES,
    event::cause,
    policy::{DENY, UNJUDGED, Word},
    question::{BATCH, Question, TEXT, kind},
};

use crate::{
    judge::{self, CALLER, FILE, Judge},
    maps::{POLICIES, QUESTIONS},
    net,
    program::{self, Args},
    read::{self, Address},
    scratch::{self, Scratch},
    tables,
};

/// The tracepoint is only a name: nothing attaches it.
#[raw_tracepoint(tracepoint = "sched_process_exec")]
pub fn sally_question(_ctx: RawTracePointContext) -> i32 {
    let mut at = 0;
    while at < BATCH {
        if answer(at) == 0 {
            break;
        }
        at = read::next(at);
    }
    0
}

/// Answers one question. 0: there is none.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn answer(at: u32) -> u32 {
    let Some(question) = QUESTIONS.get_ptr_mut(at) else { return 0 };
    // SAFETY: an entry of an array map; user space writes it only between runs.
    unsafe {
        if (*question).kind == kind::NONE {
            return 0;
        }
        let (word, cause) = match decide(question) {
            Ok(word) => (word, cause::NONE),
            Err(cause) => (DENY | UNJUDGED, cause),
        };
        (*question).word = word;
        (*question).cause = cause;
    }
    1
}

#[inline(always)]
fn decide(question: *const Question) -> Result<Word, u32> {
    // SAFETY: an entry of an array map.
    let (slot, kind) = unsafe { ((*question).slot, (*question).kind) };
    let policy = POLICIES.get_ptr(slot).ok_or(cause::NO_POLICY)?;
    // SAFETY: as above.
    let generation = unsafe { (*policy).generation };
    let judge = Judge { slot, policy, generation, monitored: false };
    if kind == kind::CONNECT || kind == kind::LISTEN {
        return address(question, &judge, kind == kind::LISTEN).ok_or(cause::READ_FAILED);
    }
    let (index, area) = scratch::claim().ok_or(cause::BUSY)?;
    let word = by_path(question, &judge, index, area);
    scratch::release(area);
    word
}

#[inline(always)]
fn address(question: *const Question, judge: &Judge, listens: bool) -> Option<Word> {
    // SAFETY: an entry of an array map; a field of the policy.
    unsafe {
        let policy = judge.policy;
        let net = if listens { &raw const (*policy).listen } else { &raw const (*policy).connect };
        let address = (*question).address;
        net::word(judge, net, &address, (*question).what, (*question).port, (*question).protocol)
    }
}

#[inline(always)]
fn by_path(question: *const Question, judge: &Judge, index: u32, area: *mut Scratch) -> Result<Word, u32> {
    // SAFETY: claimed by the caller; an entry of an array map.
    unsafe {
        (*area).policy = judge.slot;
        let caller = if (*judge.policy).caller.classes <= 1 {
            0
        } else {
            put(area, (&raw const (*question).caller).cast(), (*question).caller_len)?;
            judge::path_class(index, CALLER).ok_or(cause::READ_FAILED)?
        };
        if (*question).kind == kind::SYSTEM {
            return tables::system(judge, (*question).what, (*question).outside, caller)
                .ok_or(cause::READ_FAILED);
        }
        put(area, (&raw const (*question).path).cast(), (*question).path_len)?;
        (*area).flags = (*question).flags;
        (*area).mode = (*question).mode;
        (*area).hits = 0;
        (*area).part = 0;
        if (*question).kind == kind::FILE {
            let class = judge::path_class(index, FILE).ok_or(cause::READ_FAILED)?;
            return Ok(tables::file(area, judge, (*question).what, class, caller));
        }
        let args = Args::at((*question).args, (*question).args_len);
        program::word(index, area, judge, caller, Some(&args))
    }
}

/// Puts a path where the walk would have put it.
///
/// # Safety
/// `area` must be claimed, and `text` must have [`TEXT`] bytes.
#[inline(always)]
unsafe fn put(area: *mut Scratch, text: *const u8, len: u32) -> Result<(), u32> {
    if len > TEXT as u32 {
        return Err(cause::PATH_TOO_LONG);
    }
    let from = PATH_BYTES as u32 - len;
    let at = (read::opaque(u64::from(from)) & 0x1fff) as usize;
    let len = (read::opaque(u64::from(len)) & 0x3ff) as u32;
    // SAFETY: the caller's promise; `bytes` goes on for more than `TEXT` bytes after any masked offset.
    unsafe {
        (*area).path = from;
        let into = (&raw mut (*area).bytes).cast::<u8>().add(at);
        read::kernel_bytes(into, len, text as Address).map_err(|read::Unreadable| cause::READ_FAILED)
    }
}
