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
    policy::{KILL, file_op},
    session::{HOST_GUARDED_NAMES, HOST_SECRET_NAMES, Tag},
};

use crate::{
    caller, event,
    hooks::{ALLOW, EPERM},
    judge::{self, FILE, Judge, Verdict},
    maps::{SCRATCH, tag_of},
    names, path, program,
    read::{self, Address},
    scratch::{self, Scratch},
    tables,
    unix,
};

/// In place of a second operation.
const NONE: u32 = 0xff;
/// The walk need not be reported or judged if the file lies on a mount of the kernel's own and has a name there: pipes,
/// sockets, namespaces, the lower files of an overlay, which nobody opens by path. (Memory files have none.)
pub(crate) const OPEN: u32 = 1 << 16;

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

/// The compiler knows that there are but two numbers and would calculate the answer; the verifier does not know it and
/// wants to see both.
#[inline(always)]
fn answer(denied: u32) -> i32 {
    if read::opaque(u64::from(denied)) == 0 { ALLOW } else { -EPERM }
}

/// Judges the operations in the lowest two bytes of `what` for the current process. 1: denied.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn judge_file(mount: u64, dentry: u64, what: u32) -> u32 {
    let Some(tag) = tag_of((bpf_get_current_pid_tgid() >> 32) as u32) else { return 0 };
    let ops = [what & 0xff, what >> 8 & 0xff];
    let judge = if ops[0] == file_op::UNIX { judge::judge_start(&tag) } else { judge::judge(&tag) };
    let Ok(judge) = judge else {
        let Err(verdict) = judge else { return 1 };
        return refuse_all(mount, dentry, ops, &tag, verdict);
    };
    if quiet(&judge, ops[0]) && (ops[1] == NONE || quiet(&judge, ops[1])) {
        return 0;
    }
    // Before the walk: it may need an area of its own.
    let caller = match caller::class(&judge, &tag) {
        Ok(caller) => caller,
        Err(cause) => return refuse_all(mount, dentry, ops, &tag, judge.unjudged(cause)),
    };
    let Some((index, area)) = scratch::claim() else { return busy(ops, judge.unjudged(cause::BUSY)) };
    // SAFETY: just claimed.
    unsafe {
        (*area).policy = judge.slot;
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
            report_all(index, ops, judge.unjudged(cause))
        }
        Ok(()) if what & OPEN != 0 && is_internal(area) => 0,
        Ok(()) => decide(index, area, ops, &judge, caller),
    };
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

#[inline(always)]
fn is_internal(area: *const Scratch) -> bool {
    // SAFETY: `area` is claimed.
    unsafe { (*area).place == path::INTERNAL && (*area).flags & EXEC_FILELESS == 0 }
}

#[inline(always)]
fn decide(index: u32, area: *mut Scratch, ops: [u32; 2], judge: &Judge, caller: u32) -> u32 {
    let Some(class) = judge::path_class(index, FILE) else {
        keep(area);
        return report_all(index, ops, judge.unjudged(cause::READ_FAILED));
    };
    let words = [
        judge.verdict(tables::file(area, judge, ops[0], class, caller)),
        if ops[1] == NONE {
            Verdict::NONE
        } else {
            judge.verdict(tables::file(area, judge, ops[1], class, caller))
        },
    ];
    // SAFETY: `area` is claimed.
    let (hits, part) = unsafe { ((*area).hits, (*area).part) };
    let silent = words[0].quiet() && (ops[1] == NONE || words[1].quiet());
    if silent && hits == 0 && part == 0 {
        return 0;
    }
    // Names change the path in the area.
    keep(area);
    if let Some(denied) = denials(index, ops, words) {
        return denied;
    }
    if let Some(denied) = names(index, area, ops, judge, caller) {
        return denied;
    }
    if names::inside(index, area).is_some()
        && let Some(denied) = names(index, area, ops, judge, caller)
    {
        return denied;
    }
    // SAFETY: as above.
    let found = unsafe { (*area).name_flags };
    if found & (guarding(ops[0]) | if ops[1] == NONE { 0 } else { guarding(ops[1]) }) != 0 {
        return report_all(index, ops, judge.unjudged(cause::GUARDED));
    }
    report(index, ops[0], words[0]);
    if ops[1] != NONE {
        report(index, ops[1], words[1]);
    }
    0
}

/// Judges the operations by the registered names that the walk met. `Some(1)`: one denies.
#[inline(always)]
fn names(index: u32, area: *mut Scratch, ops: [u32; 2], judge: &Judge, caller: u32) -> Option<u32> {
    let mut which = 0;
    while which < NAMES_JUDGED {
        // SAFETY: `area` is claimed.
        if which >= unsafe { core::ptr::read_volatile(&raw const (*area).hits) } {
            break;
        }
        if names::take_name(index, which) != 0 {
            let words = match judge::path_class(index, FILE) {
                Some(class) => [
                    judge.verdict(tables::file(area, judge, ops[0], class, caller)),
                    if ops[1] == NONE {
                        Verdict::NONE
                    } else {
                        judge.verdict(tables::file(area, judge, ops[1], class, caller))
                    },
                ],
                None => [judge.unjudged(cause::READ_FAILED); 2],
            };
            if words[0].denies() || words[1].denies() {
                keep(area);
                // SAFETY: as above.
                unsafe { (*area).flags |= EXEC_OTHER_NAME };
                return denials(index, ops, words);
            }
        }
        which = read::next(which);
    }
    None
}

/// Reports what is denied. `None`: nothing is.
#[inline(always)]
fn denials(index: u32, ops: [u32; 2], words: [Verdict; 2]) -> Option<u32> {
    let mut denied = None;
    if words[0].denies() {
        report(index, ops[0], words[0]);
        denied = Some(1);
    }
    if ops[1] != NONE && words[1].denies() {
        report(index, ops[1], words[1]);
        denied = Some(1);
    }
    denied
}

/// Without a policy: the path is for the event only.
#[inline(always)]
fn refuse_all(mount: Address, dentry: Address, ops: [u32; 2], tag: &Tag, verdict: Verdict) -> u32 {
    let Some((index, area)) = scratch::claim() else { return busy(ops, verdict) };
    // SAFETY: just claimed.
    unsafe { (*area).tag = *tag };
    let _ = path::resolve(index, area, mount, dentry);
    keep(area);
    let denied = report_all(index, ops, verdict);
    scratch::release(area);
    denied
}

/// The same verdict on all operations.
#[inline(always)]
fn report_all(index: u32, ops: [u32; 2], verdict: Verdict) -> u32 {
    report(index, ops[0], verdict);
    if ops[1] != NONE {
        report(index, ops[1], verdict);
    }
    u32::from(verdict.denies())
}

/// The events when no area was free.
#[inline(always)]
fn busy(ops: [u32; 2], verdict: Verdict) -> u32 {
    busy_file(ops[0], verdict.word, verdict.cause, verdict.generation);
    u32::from(verdict.denies())
}

/// A subprogram, so that its stack is its own.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn busy_file(op: u32, word: u32, cause: u32, generation: u64) -> u32 {
    let Some(tag) = tag_of((bpf_get_current_pid_tgid() >> 32) as u32) else { return 0 };
    let mut event = event::Small {
        header: Header::default(),
        body: File { op, flags: EXEC_PREVENTED | EXEC_PATH_CUT, ..File::default() },
    };
    // SAFETY: a local.
    unsafe {
        event::write_header(&raw mut event.header, kind::FILE, &tag, Verdict { word, cause, generation });
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

/// Sends the event with the path that was kept, unless nobody wants to know; kills, if the rule says so.
#[inline(always)]
fn report(index: u32, op: u32, verdict: Verdict) {
    if !verdict.quiet() {
        report_file(index, op, verdict.word, verdict.cause, verdict.generation);
    }
}

/// A subprogram, so that its stack is its own.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn report_file(index: u32, op: u32, word: u32, cause: u32, generation: u64) -> u32 {
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
        let verdict = Verdict { word, cause, generation };
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
