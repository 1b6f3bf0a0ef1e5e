//! The judgement of what is done to files, folders and Unix sockets by path: one walk, one class, all operations.
//!
//! In LSM mode the hooks in `hooks/file_*.rs` call [`judge`] and refuse. There is no tracepoint mode for files: what
//! could see them there are the tracepoints of system calls, and while one of those is on, *every* system call of
//! *every* process takes the slow way through the kernel; and the call's own effects (`O_CREAT`, `O_TRUNC`) would have
//! happened. In that mode the sensor's system call filter is what there is.
//!
//! Order, cheapest first: the tag, the words for policies that treat all files alike, the walk, the tables. What
//! belongs to the sensor ([`NAME_GUARDED`]) is refused whatever policy says.

use aya_ebpf::helpers::{bpf_get_current_pid_tgid, generated::bpf_send_signal};
use sallyport_sensor_abi::{
    PATH_BYTES,
    event::{EXEC_FILELESS, EXEC_OTHER_NAME, EXEC_PATH_CUT, EXEC_PREVENTED, File, Header, cause, kind},
    names::{NAME_GUARDED, NAME_SECRET, NAMES_JUDGED},
    policy::{DENY, KILL, OBSERVED, QUIET, UNJUDGED, file_op},
    session::{HOST_GUARDED_NAMES, HOST_SECRET_NAMES},
};

use crate::{
    caller, event,
    hooks::{ALLOW, EPERM},
    judge::{self, FILE, Judge, Verdict},
    maps::{POLICIES, SCRATCH, tag_of},
    names, path, program,
    read::{self, Address, Unreadable},
    scratch::{self, Scratch},
    tables, unix,
};

/// In place of a second operation.
const NONE: u32 = 0xff;
/// The walk need not be reported or judged if the file lies on a mount of the kernel's own and has a name there: pipes,
/// sockets, namespaces, the lower files of an overlay, which nobody opens by path. (Memory files have none.)
pub(crate) const OPEN: u32 = 1 << 16;
/// It is not done now: only what would be denied is reported.
const IMPLIED: u32 = 1 << 17;

/// What an LSM hook answers to a tagged process that does `op` to `dentry` on the `vfsmount` `mount`.
#[inline(always)]
pub(crate) fn judge(op: u32, mount: Address, dentry: Address) -> i32 {
    answer(judge_file(mount, dentry, op | NONE << 8))
}

/// As [`judge`], for reaching the abstract Unix socket whose name has `len` bytes at `name`; of length 0: one whose name
/// could not be read.
#[inline(always)]
pub(crate) fn judge_abstract(name: Address, len: u32) -> i32 {
    answer(judge_file(0, name, file_op::UNIX | NONE << 8 | len << LEN_SHIFT))
}

/// Where [`judge_file`] has the length of an abstract name; there is then no mount.
const LEN_SHIFT: u32 = 24;

/// As [`judge`], for opening: one walk for reading and writing.
#[inline(always)]
pub(crate) fn judge_open(read: bool, write: bool, mount: Address, dentry: Address) -> i32 {
    let ops = match (read, write) {
        (true, true) => file_op::READ | file_op::WRITE << 8,
        (true, false) => file_op::READ | NONE << 8,
        _ => file_op::WRITE | NONE << 8,
    };
    answer(judge_file(mount, dentry, ops | OPEN))
}

/// As [`judge`], for giving a file another name: whoever may not read or write it under this one may not make one under
/// which they may.
#[inline(always)]
pub(crate) fn judge_naming(mount: Address, dentry: Address) -> i32 {
    answer(judge_file(mount, dentry, file_op::READ | file_op::WRITE << 8 | IMPLIED))
}

/// The compiler knows that there are but two numbers and would calculate the answer; the verifier does not know it and
/// wants to see both.
#[inline(always)]
fn answer(denied: u32) -> i32 {
    if read::opaque(u64::from(denied)) == 0 { ALLOW } else { -EPERM }
}

/// Judges the operations in the lowest two bytes of `what` for the current process. 1: denied.
///
/// What follows the walk is in subprograms of its own, each verified once: in one piece, the verifier would follow every
/// outcome of each step through all later ones.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn judge_file(mount: u64, dentry: u64, what: u32) -> u32 {
    let Some(tag) = tag_of((bpf_get_current_pid_tgid() >> 32) as u32) else { return 0 };
    let ops = [what & 0xff, what >> 8 & 0xff];
    let judge = if ops[0] == file_op::UNIX { judge::judge_start(&tag) } else { judge::judge(&tag) };
    let Ok(judge) = judge else {
        let Err(verdict) = judge else { return 1 };
        return refuse(mount, dentry, what, verdict.word, verdict.cause);
    };
    if quiet(&judge, ops[0]) && (ops[1] == NONE || quiet(&judge, ops[1])) {
        return 0;
    }
    // Before the walk: it may need an area of its own.
    let caller = match caller::class(&judge, &tag) {
        Ok(caller) => caller,
        Err(cause) => return refuse(mount, dentry, what, judge.unjudged(cause).word, cause),
    };
    let Some((index, area)) = scratch::claim() else {
        let verdict = judge.unjudged(cause::BUSY);
        return busy(ops, verdict.word, verdict.cause);
    };
    // SAFETY: just claimed.
    unsafe {
        (*area).policy = judge.slot;
        (*area).generation = judge.generation;
        (*area).monitored = u32::from(judge.monitored);
        (*area).tag = tag;
    }
    let resolved = if mount == 0 {
        unix::spell(index, dentry, what >> LEN_SHIFT)
    } else {
        path::resolve(index, area, mount, dentry)
    };
    let denied = match resolved {
        Err(cause) => {
            keep(area);
            let verdict = judge.unjudged(cause);
            report_all(index, area, what, verdict.word, verdict.cause)
        }
        Ok(()) if what & OPEN != 0 && is_internal(area) && !is_named(area) => 0,
        Ok(()) => judge_names(index, what, caller),
    };
    scratch::release(area);
    denied
}

/// Judges an operation for which there is no policy: the path is for the event only. 1: denied.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn refuse(mount: u64, dentry: u64, what: u32, word: u32, cause: u32) -> u32 {
    let Some((index, area)) = scratch::claim() else {
        return busy([what & 0xff, what >> 8 & 0xff], word, cause);
    };
    let Some(tag) = tag_of((bpf_get_current_pid_tgid() >> 32) as u32) else {
        scratch::release(area);
        return 0;
    };
    // SAFETY: just claimed.
    unsafe {
        (*area).tag = tag;
        (*area).generation = 0;
    }
    let _ = path::resolve(index, area, mount, dentry);
    keep(area);
    let denied = report_all(index, area, what, word, cause);
    scratch::release(area);
    denied
}

/// Whether every file is treated alike for this operation, and nobody wants to know of it.
#[inline(always)]
fn quiet(judge: &Judge, op: u32) -> bool {
    tables::uniform(judge, op).is_some_and(|word| judge::is_quiet(word)) && !may_be_guarded(op)
}

/// Which flags of a registered name forbid an operation.
#[inline(always)]
const fn guarding(op: u32) -> u32 {
    match op {
        file_op::READ | file_op::MAP => NAME_SECRET,
        file_op::UNIX => 0,
        _ => NAME_GUARDED | NAME_SECRET,
    }
}

/// Whether any registered name forbids an operation.
#[inline(always)]
fn may_be_guarded(op: u32) -> bool {
    let of_interest = match guarding(op) {
        0 => 0,
        NAME_SECRET => HOST_SECRET_NAMES,
        _ => HOST_GUARDED_NAMES | HOST_SECRET_NAMES,
    };
    judge::host_flags() & of_interest != 0
}

/// Whether a folder is, or lies in, a registered name that is guarded.
#[inline(always)]
pub(crate) fn is_guarded(mount: Address, dentry: Address) -> Result<bool, Unreadable> {
    if !may_be_guarded(file_op::WRITE) {
        return Ok(false);
    }
    match find_guard(mount, dentry) {
        0 => Ok(false),
        1 => Ok(true),
        _ => Err(Unreadable),
    }
}

/// 0: not guarded; 1: guarded; 2: that could not be found out.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn find_guard(mount: u64, dentry: u64) -> u32 {
    let Some((index, area)) = scratch::claim() else { return 2 };
    let resolved = path::resolve(index, area, mount, dentry);
    if resolved.is_ok() {
        // Of a part of a file system that is mounted elsewhere the way to its root, too.
        let _ = names::inside(index, area);
    }
    // SAFETY: just claimed.
    let found = unsafe { (*area).name_flags } & (NAME_GUARDED | NAME_SECRET) != 0;
    scratch::release(area);
    if found {
        1
    } else if resolved.is_ok() {
        0
    } else {
        2
    }
}

#[inline(always)]
fn is_internal(area: *const Scratch) -> bool {
    // SAFETY: `area` is claimed.
    unsafe { (*area).place == path::INTERNAL && (*area).flags & EXEC_FILELESS == 0 }
}

/// Whether the walk met a registered name (a message queue may have one, which is then reached without its mount).
#[inline(always)]
fn is_named(area: *const Scratch) -> bool {
    // SAFETY: `area` is claimed.
    unsafe { (*area).hits != 0 }
}

/// [`judge_path`]: an operation is denied.
const DENIED: u32 = 1;
/// [`judge_path`]: nobody wants to know of any.
const SILENT: u32 = 2;

/// Judges the operations by the path in area `index`, and by the registered names that were met. 1: denied.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn judge_names(index: u32, what: u32, caller: u32) -> u32 {
    let Some(area) = SCRATCH.get_ptr_mut(index) else { return 1 };
    let first = judge_path(index, what, caller);
    // SAFETY: the caller claimed `area`.
    let (hits, part, words, cause) = unsafe { ((*area).hits, (*area).part, (*area).words, (*area).cause) };
    if first & SILENT != 0 && hits == 0 && part == 0 {
        return 0;
    }
    // Names change the path in the area.
    keep(area);
    if first & DENIED != 0 {
        return report_both(index, what, DENIALS);
    }
    if other_names(index, what, caller) != 0 {
        return 1;
    }
    if names::inside(index, area).is_some() && other_names(index, what, caller) != 0 {
        return 1;
    }
    // SAFETY: as above.
    let (found, monitored) = unsafe { ((*area).name_flags, (*area).monitored != 0) };
    let second = what >> 8 & 0xff;
    if found & (guarding(what & 0xff) | if second == NONE { 0 } else { guarding(second) }) != 0 {
        return report_all(index, area, what, judge::finish(monitored, DENY | UNJUDGED), cause::GUARDED);
    }
    // SAFETY: as above.
    unsafe {
        (*area).words = words;
        (*area).cause = cause;
    }
    report_both(index, what, 0)
}

/// Judges the operations by the registered names that the walk met. 1: one denies, and it was reported.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn other_names(index: u32, what: u32, caller: u32) -> u32 {
    let Some(area) = SCRATCH.get_ptr_mut(index) else { return 1 };
    let mut which = 0;
    while which < NAMES_JUDGED {
        // SAFETY: `area` is claimed.
        if which >= unsafe { core::ptr::read_volatile(&raw const (*area).hits) } {
            break;
        }
        if names::take_name(index, which) != 0 && judge_path(index, what, caller) & DENIED != 0 {
            keep(area);
            // SAFETY: as above.
            unsafe { (*area).flags |= EXEC_OTHER_NAME };
            return report_both(index, what, DENIALS);
        }
        which = read::next(which);
    }
    0
}

/// Puts the words for the path in area `index` into the area. Returns [`DENIED`], [`SILENT`] or nothing.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn judge_path(index: u32, what: u32, caller: u32) -> u32 {
    let Some(area) = SCRATCH.get_ptr_mut(index) else { return DENIED };
    // SAFETY: the caller claimed `area`; entries of array maps are valid while the program runs.
    unsafe {
        let monitored = (*area).monitored != 0;
        let Some(policy) = POLICIES.get_ptr((*area).policy) else { return DENIED };
        let judge = Judge { slot: (*area).policy, policy, generation: (*area).generation, monitored };
        let second = what >> 8 & 0xff;
        let (words, cause) = match judge::path_class(index, FILE) {
            Some(class) => {
                let first = tables::file(area, &judge, what & 0xff, class, caller);
                let second =
                    if second == NONE { QUIET } else { tables::file(area, &judge, second, class, caller) };
                ([first, second], cause::NONE)
            }
            None => ([DENY | UNJUDGED; 2], cause::READ_FAILED),
        };
        let words = [judge::finish(monitored, words[0]), judge::finish(monitored, words[1])];
        (*area).words = words;
        (*area).cause = cause;
        let denied = if (words[0] | words[1]) & DENY != 0 { DENIED } else { 0 };
        denied | if judge::is_quiet(words[0]) && judge::is_quiet(words[1]) { SILENT } else { 0 }
    }
}

/// The same on all operations. 1: denied.
#[inline(always)]
fn report_all(index: u32, area: *mut Scratch, what: u32, word: u32, cause: u32) -> u32 {
    // SAFETY: `area` is claimed.
    unsafe {
        (*area).words = [word; 2];
        (*area).cause = cause;
    }
    report_both(index, what, 0)
}

/// For [`report_both`]: only what is denied.
const DENIALS: u32 = 1;

/// Reports the words in area `index`, with the path that was kept, unless nobody wants to know of them. 1: one denies.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn report_both(index: u32, what: u32, which: u32) -> u32 {
    let Some(area) = SCRATCH.get_ptr_mut(index) else { return 1 };
    let mut denied = 0;
    let mut turn = 0;
    while turn < 2 {
        let op = what >> (turn * 8) & 0xff;
        // SAFETY: the caller claimed `area`.
        let (word, cause) = unsafe { ((*area).words[(turn & 1) as usize], (*area).cause) };
        let denies = word & DENY != 0;
        let said = what & IMPLIED == 0 || word & (DENY | OBSERVED) != 0;
        if op != NONE && !judge::is_quiet(word) && said && (denies || which & DENIALS == 0) {
            report_file(index, op, word, cause);
            denied |= u32::from(denies);
        }
        turn = read::next(turn);
    }
    denied
}

/// The events when no area was free.
#[inline(always)]
fn busy(ops: [u32; 2], word: u32, cause: u32) -> u32 {
    busy_file(ops[0], word, cause);
    u32::from(word & DENY != 0)
}

/// A subprogram, so that its stack is its own.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn busy_file(op: u32, word: u32, cause: u32) -> u32 {
    let Some(tag) = tag_of((bpf_get_current_pid_tgid() >> 32) as u32) else { return 0 };
    let mut event = event::Small {
        header: Header::default(),
        body: File { op, flags: EXEC_PREVENTED | EXEC_PATH_CUT, ..File::default() },
    };
    // SAFETY: a local.
    unsafe {
        let verdict = Verdict { word, cause, generation: 0 };
        event::write_header(&raw mut event.header, kind::FILE, &tag, verdict);
    }
    event.send(&tag);
    0
}

/// The event about a file, in an area's message.
#[repr(C)]
struct Message {
    header: Header,
    file: File,
    path: [u8; 2 * PATH_BYTES],
}

const _: () = assert!(size_of::<Message>() <= size_of::<crate::scratch::Message>());

/// Copies the area's path to where the event has it.
#[inline(always)]
fn keep(area: *mut Scratch) {
    // SAFETY: `area` is claimed; the message is large enough, by the assertion above.
    unsafe {
        let message: *mut Message = (&raw mut (*area).message).cast();
        (*area).kept = program::copy_path(area, (&raw mut (*message).path).cast());
    }
}

/// Sends the event with the path that was kept; kills, if the rule says so.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn report_file(index: u32, op: u32, word: u32, cause: u32) -> u32 {
    if word & KILL != 0 {
        // SAFETY: no preconditions.
        unsafe { bpf_send_signal(9) };
    }
    let Some(area) = SCRATCH.get_ptr_mut(index) else { return 0 };
    const FIXED: u64 = (size_of::<Header>() + size_of::<File>()) as u64;
    // SAFETY: the caller claimed the area; the rest as in `keep`.
    unsafe {
        let tag = &*(&raw const (*area).tag);
        let message: *mut Message = (&raw mut (*area).message).cast();
        let path_len = (*area).kept;
        let verdict = Verdict { word, cause, generation: (*area).generation };
        event::write_header(&raw mut (*message).header, kind::FILE, tag, verdict);
        let flags = EXEC_PREVENTED | (*area).flags;
        (*message).file = File { op, flags, inode: (*area).inode, device: (*area).device, path_len };
        // Always so; the verifier wants to see it.
        let len = read::opaque(FIXED + u64::from(path_len));
        if len <= FIXED + PATH_BYTES as u64 {
            event::send(kind::FILE, tag, word, message.cast(), len);
        }
    }
    0
}
