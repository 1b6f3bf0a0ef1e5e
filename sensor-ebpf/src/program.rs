//! The judgement of programs, shared by `bprm_check_security` and `sched_process_exec`.

use aya_ebpf::helpers::bpf_get_current_pid_tgid;
use sallyport_sensor_abi::{
    ARGS_BYTES, ARGS_JUDGED, PATH_BYTES,
    event::{
        EXEC_ARGS_CUT, EXEC_ARGS_UNKNOWN, EXEC_FILELESS, EXEC_OTHER_NAME, EXEC_PATH_CUT, EXEC_SETUID, Exec,
        Header, cause, kind,
    },
    policy::{
        ARGS_DENIAL, ARGS_EOI, ARGS_ROW_WORDS, ARGS_START, ARGS_SYMBOLS, ARGS_TABLE, DENY, EXEC_INDEX_SETUID,
        EXEC_INDICES, INDEX_MASK, NEEDS_ARGS, PolicyHeader, Word,
    },
    session::{MAX_PENDING, Tag},
};

use crate::{
    event,
    judge::{self, ARGS, Judge, PATH, Verdict},
    maps::{POLICIES, SCRATCH, tag_of},
    names, path, pending,
    read::{self, Address, Unreadable, offset},
    scratch::{CHUNK_AT, Scratch},
};

/// Bytes before the variable part of the event.
const FIXED: u64 = (size_of::<sallyport_sensor_abi::event::Header>() + size_of::<Exec>()) as u64;

/// Where the arguments are in the new program's memory.
pub(crate) struct Args {
    start: Address,
    /// Without the last terminating zero.
    total: u32,
    known: bool,
}

impl Args {
    /// Not there yet.
    pub(crate) const UNKNOWN: Self = Self { start: 0, total: 0, known: false };

    /// At this place in the current process's memory; `total` without the last terminating zero.
    #[inline(always)]
    pub(crate) const fn at(start: Address, total: u32) -> Self {
        Self { start, total, known: true }
    }

    /// Finds the arguments of the new program.
    #[inline(always)]
    pub(crate) fn locate(task: Address) -> Self {
        Self::try_locate(task).unwrap_or(Self::UNKNOWN)
    }

    #[inline(always)]
    fn try_locate(task: Address) -> Result<Self, Unreadable> {
        // SAFETY: offsets point into `OFFSETS`.
        unsafe {
            let mm: Address = read::kernel(task + offset!(task_struct_mm))?;
            let start: Address = read::kernel(mm + offset!(mm_struct_arg_start))?;
            let end: Address = read::kernel(mm + offset!(mm_struct_arg_end))?;
            if start == 0 || end < start {
                return Err(Unreadable);
            }
            let bytes = end - start;
            let known = bytes <= u64::from(u32::MAX);
            // The kernel's limit is 6 MiB; the last byte is a terminating zero.
            Ok(Self { start, total: if bytes == 0 || !known { 0 } else { bytes as u32 - 1 }, known })
        }
    }
}

/// Resolves the file of `bprm` into the area, with what the event says of it.
#[inline(always)]
pub(crate) fn resolve(index: u32, area: *mut Scratch, bprm: Address) -> Result<(), u32> {
    // SAFETY: points into `OFFSETS`.
    let file = read::kernel::<Address>(bprm + unsafe { offset!(linux_binprm_file) });
    let resolved = match file {
        Ok(file) => path::resolve_file(index, area, file),
        Err(Unreadable) => path::resolve_file(index, area, 0),
    };
    keep(area);
    resolved
}

/// Judges the program whose path is in the area. Without `args`, rules on arguments are left undecided: [`NEEDS_ARGS`].
#[inline(always)]
pub(crate) fn word(
    index: u32,
    area: *mut Scratch,
    judge: &Judge,
    caller: u32,
    args: Option<&Args>,
) -> Result<Word, u32> {
    // SAFETY: `area` is claimed.
    unsafe { (*area).policy = judge.slot };
    let first = one_name(index, caller, args)?;
    // SAFETY: as above.
    let (hits, part) = unsafe { ((*area).hits, (*area).part) };
    if first & DENY != 0 || hits == 0 && part == 0 {
        return Ok(first);
    }
    if let Some(word) = other_names(index, area, caller, args)? {
        return Ok(word);
    }
    if names::inside(index, area).is_some()
        && let Some(word) = other_names(index, area, caller, args)?
    {
        return Ok(word);
    }
    Ok(first)
}

/// The first denial among the registered names that were met.
#[inline(always)]
fn other_names(
    index: u32,
    area: *mut Scratch,
    caller: u32,
    args: Option<&Args>,
) -> Result<Option<Word>, u32> {
    let mut which = 0;
    while which < sallyport_sensor_abi::names::NAMES_JUDGED {
        // SAFETY: `area` is claimed.
        if which >= unsafe { core::ptr::read_volatile(&raw const (*area).hits) } {
            break;
        }
        if names::take_name(index, which) != 0 {
            let word = one_name(index, caller, args)?;
            if word & DENY != 0 {
                keep(area);
                // SAFETY: as above.
                unsafe { (*area).flags |= EXEC_OTHER_NAME };
                return Ok(Some(word));
            }
        }
        which = read::next(which);
    }
    Ok(None)
}

/// What [`judge_name`] returns with one of [`cause`]; no word has it.
const FAILED: u32 = 1 << 30;
/// For [`judge_name`]: arguments are to be judged.
const WITH_ARGS: u32 = 1;
/// For [`judge_name`]: it is known where they are.
const ARGS_KNOWN: u32 = 2;

#[inline(always)]
fn one_name(index: u32, caller: u32, args: Option<&Args>) -> Result<Word, u32> {
    let word = match args {
        Some(args) => {
            let known = if args.known { ARGS_KNOWN } else { 0 };
            judge_name(index, caller, args.start, args.total, WITH_ARGS | known)
        }
        None => judge_name(index, caller, 0, 0, 0),
    };
    if word & FAILED == 0 { Ok(word) } else { Err(word & !FAILED) }
}

/// The word for the path in area `index`, under the policy that the area names.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn judge_name(index: u32, caller: u32, start: u64, total: u32, how: u32) -> u32 {
    let Some(area) = SCRATCH.get_ptr_mut(index) else { return FAILED | cause::READ_FAILED };
    // SAFETY: the area was claimed by the caller; entries of array maps are valid while the program runs.
    let Some(policy) = POLICIES.get_ptr(unsafe { (*area).policy }) else {
        return FAILED | cause::NO_POLICY;
    };
    let Some(word) = by_path(index, area, policy, caller) else { return FAILED | cause::READ_FAILED };
    if word & NEEDS_ARGS == 0 {
        return word;
    }
    if how & WITH_ARGS == 0 {
        return without_args(policy, word);
    }
    judge_row(index, word & INDEX_MASK, start, total, how)
}

/// The denial that it is whatever the arguments are; else the word itself, to be judged when they are there.
#[inline(always)]
fn without_args(policy: *const PolicyHeader, word: Word) -> u32 {
    let row = word & INDEX_MASK;
    // SAFETY: an entry of an array map.
    let (base, rows, generation) = unsafe { ((*policy).base, (*policy).args_rows, (*policy).generation) };
    let at = base.wrapping_add(rows).wrapping_add(row.wrapping_mul(ARGS_ROW_WORDS));
    match judge::arena(at.wrapping_add(ARGS_DENIAL)) {
        Some(denial) if denial & DENY != 0 => denial,
        Some(_) if pending::note_row(row, generation) == 0 => word,
        Some(_) => FAILED | cause::BUSY,
        None => FAILED | cause::READ_FAILED,
    }
}

/// The first denial among the rows of arguments that were noted for the current process, `count` of them.
#[inline(always)]
pub(crate) fn noted(index: u32, judge: &Judge, count: u32, args: &Args) -> Result<Option<Word>, u32> {
    let mut which = 0;
    while which < MAX_PENDING as u32 {
        if which >= count {
            break;
        }
        let row = pending::pending_row(which, judge.generation);
        if row == pending::GONE {
            return Err(cause::READ_FAILED);
        }
        let known = if args.known { ARGS_KNOWN } else { 0 };
        let word = judge_row(index, row, args.start, args.total, known);
        if word & FAILED != 0 {
            return Err(word & !FAILED);
        }
        if word & DENY != 0 {
            return Ok(Some(word));
        }
        which = read::next(which);
    }
    Ok(None)
}

/// The word of a row of arguments under the policy that area `index` names; with [`FAILED`]: one of [`cause`].
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn judge_row(index: u32, row: u32, start: u64, total: u32, how: u32) -> u32 {
    let Some(area) = SCRATCH.get_ptr_mut(index) else { return FAILED | cause::READ_FAILED };
    // SAFETY: the area was claimed by the caller; entries of array maps are valid while the program runs.
    let Some(policy) = POLICIES.get_ptr(unsafe { (*area).policy }) else {
        return FAILED | cause::NO_POLICY;
    };
    let args = Args { start, total, known: how & ARGS_KNOWN != 0 };
    match by_args(index, area, policy, row, &args) {
        Ok(word) => word,
        Err(cause) => FAILED | cause,
    }
}

#[inline(always)]
fn by_path(index: u32, area: *mut Scratch, policy: *const PolicyHeader, caller: u32) -> Option<Word> {
    let class = judge::path_class(index, PATH)?;
    // SAFETY: `area` is claimed; the policy is an entry of an array map.
    unsafe {
        let flags = (*area).flags & EXEC_FILELESS | if is_setuid(area) { EXEC_INDEX_SETUID } else { 0 };
        judge::arena(
            (*policy)
                .base
                .wrapping_add((*policy).exec_table)
                .wrapping_add(
                    class
                        .wrapping_mul(EXEC_INDICES)
                        .wrapping_add(flags)
                        .wrapping_mul((*policy).caller.classes),
                )
                .wrapping_add(caller),
        )
    }
}

/// Set-uid, or set-gid in the sense that it gives another group.
#[inline(always)]
fn is_setuid(area: *const Scratch) -> bool {
    // SAFETY: `area` is claimed.
    let mode = unsafe { (*area).mode };
    mode & 0o4000 != 0 || mode & 0o2010 == 0o2010
}

#[inline(always)]
fn by_args(
    index: u32,
    area: *mut Scratch,
    policy: *const PolicyHeader,
    row: u32,
    args: &Args,
) -> Result<Word, u32> {
    if !args.known {
        return Err(cause::READ_FAILED);
    }
    if args.total as usize > ARGS_JUDGED {
        return Err(cause::ARGS_TOO_LONG);
    }
    // SAFETY: `area` is claimed; the policy is an entry of an array map.
    let (base, rows) = unsafe { ((*policy).base, (*policy).args_rows) };
    let row = base.wrapping_add(rows).wrapping_add(row.wrapping_mul(ARGS_ROW_WORDS));
    let field = |at| judge::arena(row.wrapping_add(at)).ok_or(cause::READ_FAILED);
    let symbols = judge::arena_address(row.wrapping_add(ARGS_SYMBOLS)).ok_or(cause::READ_FAILED)?;
    // SAFETY: as above; `symbols` has 256 bytes. Blocks of the arena follow each other in memory.
    unsafe {
        read::kernel_bytes((&raw mut (*area).symbols).cast(), 256, symbols)
            .map_err(|Unreadable| cause::READ_FAILED)?;
        (*area).automaton = ARGS;
        (*area).state = field(ARGS_START)?;
        let mut done = 0;
        let mut chunk = 0;
        while chunk < (ARGS_JUDGED / ARGS_BYTES) as u32 {
            let left = args.total - done;
            if left == 0 {
                break;
            }
            let len = if left > ARGS_BYTES as u32 { ARGS_BYTES as u32 } else { left };
            if read_chunk(area, args.start + u64::from(done), len).is_err() {
                return Err(cause::READ_FAILED);
            }
            (*area).from = CHUNK_AT;
            (*area).left = len;
            judge::run(index).ok_or(cause::READ_FAILED)?;
            done += len;
            chunk = read::next(chunk);
        }
        let class = judge::class(area, policy, field(ARGS_EOI)?).ok_or(cause::READ_FAILED)?;
        judge::arena(base.wrapping_add(field(ARGS_TABLE)?).wrapping_add(class)).ok_or(cause::READ_FAILED)
    }
}

/// Reads arguments to where the automaton looks for them.
#[inline(always)]
unsafe fn read_chunk(area: *mut Scratch, at: Address, len: u32) -> Result<(), Unreadable> {
    let len = (read::opaque(u64::from(len)) & (2 * ARGS_BYTES as u64 - 1)) as u32;
    // SAFETY: `bytes` has twice `ARGS_BYTES` from `CHUNK_AT`.
    unsafe { read::user_bytes((&raw mut (*area).bytes).cast::<u8>().add(CHUNK_AT as usize), len, at) }
}

/// Copies the area's path to where the event has it.
#[inline(always)]
pub(crate) fn keep(area: *mut Scratch) {
    // SAFETY: `area` is claimed.
    unsafe {
        let tail = (&raw mut (*area).message.tail).cast::<u8>();
        (*area).kept = copy_path(area, tail);
    }
}

/// Copies the area's path; returns its length.
///
/// # Safety
/// `into` must have room for twice `PATH_BYTES`; the verifier must be able to see it.
#[inline(always)]
pub(crate) unsafe fn copy_path(area: *const Scratch, into: *mut u8) -> u32 {
    // SAFETY: `area` is claimed; the caller's promise.
    unsafe {
        let from = read::opaque(u64::from((*area).path)) & 0x1fff;
        let len = (PATH_BYTES as u64).wrapping_sub(from) as u32;
        let path: Address = (&raw const (*area).bytes).cast::<u8>().add(from as usize) as Address;
        if len as usize > PATH_BYTES || read::kernel_bytes(into, len, path).is_err() { 0 } else { len }
    }
}

/// Sends the event from the area, unless nobody wants to know.
#[inline(always)]
pub(crate) fn report(
    index: u32,
    area: *mut Scratch,
    task: Address,
    tag: &Tag,
    verdict: Verdict,
    args: &Args,
    flags: u32,
) {
    if verdict.quiet() {
        return;
    }
    // SAFETY: `area` is claimed.
    unsafe {
        (*area).tag = *tag;
        // Not as an argument: 5.10 believes that it may be the policy's address.
        (*area).generation = verdict.generation;
        (*area).flags |= flags;
        (*area).args_start = if args.known { args.start } else { 0 };
        (*area).args_total = args.total;
    }
    report_program(index, task, verdict.word, verdict.cause);
}

/// A subprogram, so that its stack is its own.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn report_program(index: u32, task: u64, word: u32, cause: u32) -> u32 {
    let Some(area) = SCRATCH.get_ptr_mut(index) else { return 0 };
    // SAFETY: the caller claimed the area.
    let verdict = Verdict { word, cause, generation: unsafe { (*area).generation } };
    // SAFETY: as above.
    let (tag, args) = unsafe {
        let start = (*area).args_start;
        (&*(&raw const (*area).tag), Args { start, total: (*area).args_total, known: start != 0 })
    };
    send(area, task, tag, verdict, &args);
    0
}

#[inline(always)]
fn send(area: *mut Scratch, task: Address, tag: &Tag, verdict: Verdict, args: &Args) {
    // SAFETY: `area` is claimed.
    unsafe {
        let mut flags = (*area).flags;
        if is_setuid(area) {
            flags |= EXEC_SETUID;
        }
        let message = &raw mut (*area).message;
        let tail = (&raw mut (*message).tail).cast::<u8>();
        let path_len = (*area).kept;
        let mut args_len = if args.total as usize > ARGS_BYTES { ARGS_BYTES as u32 } else { args.total };
        if args.known {
            let at = read::opaque(u64::from(path_len)) & (2 * PATH_BYTES as u64 - 1);
            let len = read::opaque(u64::from(args_len)) & (2 * ARGS_BYTES as u64 - 1);
            if read::user_bytes(tail.add(at as usize), len as u32, args.start).is_err() {
                args_len = 0;
                flags |= EXEC_ARGS_UNKNOWN;
            } else if args_len < args.total {
                flags |= EXEC_ARGS_CUT;
            }
        } else {
            args_len = 0;
            flags |= EXEC_ARGS_UNKNOWN;
        }
        event::write_header(&raw mut (*message).header, kind::EXEC, tag, verdict);
        let exec = &raw mut (*message).exec;
        (*exec).flags = flags;
        (*exec).inode = (*area).inode;
        (*exec).device = (*area).device;
        (*exec).path_len = path_len;
        (*exec).args_len = args_len;
        (*exec).args_total = args.total;
        surroundings(task, exec);
        // Always so; the verifier wants to see it.
        let len = read::opaque(FIXED + u64::from(path_len) + u64::from(args_len));
        if len <= FIXED + (PATH_BYTES + ARGS_BYTES) as u64 {
            event::send(kind::EXEC, tag, verdict.word, message.cast(), len);
        }
    }
}

/// What is around the program: parent, current folder, namespaces, audit session. What cannot be read stays zero.
///
/// # Safety
/// `exec` must be writable.
#[inline(always)]
unsafe fn surroundings(task: Address, exec: *mut Exec) {
    // SAFETY: the caller's promise; offsets point into `OFFSETS`.
    unsafe {
        let parent = read::kernel::<Address>(task + offset!(task_struct_real_parent)).unwrap_or(0);
        (*exec).parent_tgid = read::kernel::<u32>(parent + offset!(task_struct_tgid)).unwrap_or(0);
        let (inode, device) = folder(task).unwrap_or((0, 0));
        (*exec).cwd_inode = inode;
        (*exec).cwd_device = device;
        let proxy = read::kernel::<Address>(task + offset!(task_struct_nsproxy)).unwrap_or(0);
        (*exec).mount_namespace =
            number(proxy + offset!(nsproxy_mnt_ns), offset!(mnt_namespace_ns)).unwrap_or(0);
        (*exec).pid_namespace =
            number(proxy + offset!(nsproxy_pid_ns_for_children), offset!(pid_namespace_ns)).unwrap_or(0);
        let session = offset!(task_struct_sessionid);
        (*exec).audit_session =
            if read::has(session) { read::kernel(task + session).unwrap_or(u32::MAX) } else { u32::MAX };
    }
}

#[inline(always)]
fn folder(task: Address) -> Result<(u64, u32), Unreadable> {
    // SAFETY: offsets point into `OFFSETS`.
    unsafe {
        let fs: Address = read::kernel(task + offset!(task_struct_fs))?;
        let dentry: Address = read::kernel(fs + offset!(fs_struct_pwd) + offset!(path_dentry))?;
        let inode: Address = read::kernel(dentry + offset!(dentry_d_inode))?;
        let sb: Address = read::kernel(inode + offset!(inode_i_sb))?;
        Ok((read::kernel(inode + offset!(inode_i_ino))?, read::kernel(sb + offset!(super_block_s_dev))?))
    }
}

/// The number of the namespace to which there is a pointer at `at`.
#[inline(always)]
fn number(at: Address, common: u64) -> Result<u32, Unreadable> {
    let namespace: Address = read::kernel(at)?;
    // SAFETY: points into `OFFSETS`.
    read::kernel(namespace + common + unsafe { offset!(ns_common_inum) })
}

/// Reports a program that is refused or killed since no area was free. 1: denied.
///
/// A subprogram, so that its stack is its own; it finds the verdict by itself, since 5.10 is given nothing that it might take
/// for a pointer.
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn busy_program(flags: u32) -> u32 {
    let Some(tag) = tag_of((bpf_get_current_pid_tgid() >> 32) as u32) else { return 0 };
    let verdict = match judge::judge_start(&tag) {
        Ok(judge) => judge.unjudged(cause::BUSY),
        Err(verdict) => verdict,
    };
    let mut event = event::Small {
        header: Header::default(),
        body: Exec { flags: flags | EXEC_ARGS_UNKNOWN | EXEC_PATH_CUT, ..Exec::default() },
    };
    // SAFETY: a local.
    unsafe {
        event::write_header(&raw mut event.header, kind::EXEC, &tag, verdict);
    }
    event.send(&tag);
    u32::from(verdict.denies())
}
