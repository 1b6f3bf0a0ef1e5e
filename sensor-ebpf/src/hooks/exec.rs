//! `sched_process_exec`: judges a program before its first instruction; the only judge of arguments.
//!
//! Sees: every `execve` and `execveat` that succeeded, with the new memory in place and nobody else in it. For a
//! script it sees the interpreter. Needs: 4.17. On denial, and when anything cannot be read: SIGKILL, which the
//! kernel delivers before it returns to user space.

use aya_ebpf::{
    EbpfContext as _, helpers::generated::bpf_send_signal, macros::raw_tracepoint,
    programs::RawTracePointContext,
};
use sallyport_sensor_abi::{
    ARGS_BYTES, ARGS_JUDGED, PATH_BYTES,
    event::{EXEC_ARGS_CUT, EXEC_ARGS_UNKNOWN, Exec, cause, kind},
    policy::{INDEX_MASK, NEEDS_ARGS, Word},
    session::Tag,
};

use crate::{
    event,
    judge::{self, ARGS, Judge, Verdict},
    maps::tag_of,
    path,
    read::{self, Address, offset},
    scratch::{self, CHUNK_AT, Scratch},
};

/// match-proto:v5.10:include/trace/events/sched.h:TP_PROTO(struct task_struct *p, pid_t old_pid, struct linux_binprm *bprm)
#[raw_tracepoint(tracepoint = "sched_process_exec")]
pub fn sally_exec(ctx: RawTracePointContext) -> i32 {
    let tgid = ctx.tgid();
    let Some(tag) = tag_of(tgid) else { return 0 };
    let Some((index, area)) = scratch::claim() else {
        // SAFETY: no preconditions.
        unsafe { bpf_send_signal(9) };
        busy(&tag);
        return 0;
    };
    let task: Address = ctx.arg(0);
    let mut args = Args { start: 0, total: 0, known: false };
    let verdict = decide(index, area, ctx.arg(2), task, &tag, &mut args);
    if verdict.denies() {
        // SAFETY: no preconditions.
        unsafe { bpf_send_signal(9) };
    }
    report(area, task, &tag, verdict, &args, 0);
    scratch::release(area);
    0
}

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
}

#[inline(always)]
fn decide(
    index: u32,
    area: *mut Scratch,
    bprm: Address,
    task: Address,
    tag: &Tag,
    args: &mut Args,
) -> Verdict {
    let by_path = by_path(index, area, bprm, tag);
    locate(task, args);
    match by_path {
        Ok((judge, word)) if word & NEEDS_ARGS != 0 => {
            match by_args(index, area, judge, word & INDEX_MASK, args) {
                Ok(word) => Verdict { word, cause: cause::NONE, generation: judge.generation },
                Err(cause) => Verdict::unjudged(cause, judge.generation),
            }
        }
        Ok((judge, word)) => Verdict { word, cause: cause::NONE, generation: judge.generation },
        Err(verdict) => verdict,
    }
}

/// Resolves the path and judges it.
#[inline(always)]
pub(crate) fn by_path(
    index: u32,
    area: *mut Scratch,
    bprm: Address,
    tag: &Tag,
) -> Result<(Judge, Word), Verdict> {
    // The path is for the event, too, so it is resolved even if there is no policy.
    let resolved = path::resolve(index, area, bprm);
    let judge = judge::judge(tag).map_err(|cause| Verdict::unjudged(cause, 0))?;
    resolved.map_err(|cause| Verdict::unjudged(cause, judge.generation))?;
    path_word(index, area, judge)
        .map(|word| (judge, word))
        .ok_or(Verdict::unjudged(cause::READ_FAILED, judge.generation))
}

#[inline(always)]
fn path_word(index: u32, area: *mut Scratch, judge: Judge) -> Option<Word> {
    // SAFETY: `area` is claimed; the policy is an entry of an array map.
    unsafe {
        let policy = judge.policy;
        (*area).policy = judge.slot;
        (*area).automaton = judge::PATH;
        (*area).state = (*policy).path.start;
        (*area).from = (*area).path;
        (*area).left = (PATH_BYTES as u32).wrapping_sub((*area).path);
        judge::run::<{ PATH_BYTES as u32 / 512 }>(index, area)?;
        let base = (*policy).base;
        let eoi = (*policy).path.stride.wrapping_sub(1);
        let class = judge::arena(base.wrapping_add((*area).state).wrapping_add(eoi))?;
        let fileless = (*area).flags & sallyport_sensor_abi::event::EXEC_FILELESS;
        judge::arena(
            base.wrapping_add((*policy).exec_table)
                .wrapping_add(class.wrapping_mul(2))
                .wrapping_add(fileless),
        )
    }
}

/// Finds the arguments of the new program.
#[inline(always)]
fn locate(task: Address, args: &mut Args) {
    // SAFETY: offsets point into `OFFSETS`.
    unsafe {
        let Ok(mm) = read::kernel::<Address>(task + offset!(task_struct_mm)) else { return };
        let Ok(start) = read::kernel::<Address>(mm + offset!(mm_struct_arg_start)) else { return };
        let Ok(end) = read::kernel::<Address>(mm + offset!(mm_struct_arg_end)) else { return };
        if start == 0 || end < start {
            return;
        }
        let bytes = end - start;
        // The kernel's limit is 6 MiB; the last byte is a terminating zero.
        args.total = if bytes == 0 || bytes > u64::from(u32::MAX) { 0 } else { bytes as u32 - 1 };
        args.start = start;
        args.known = bytes <= u64::from(u32::MAX);
    }
}

#[inline(always)]
fn by_args(index: u32, area: *mut Scratch, judge: Judge, row: u32, args: &Args) -> Result<Word, u32> {
    if !args.known {
        return Err(cause::READ_FAILED);
    }
    if args.total as usize > ARGS_JUDGED {
        return Err(cause::ARGS_TOO_LONG);
    }
    // SAFETY: `area` is claimed; the policy is an entry of an array map.
    unsafe {
        let policy = judge.policy;
        (*area).automaton = ARGS;
        (*area).state = (*policy).args.start;
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
            judge::run::<{ ARGS_BYTES as u32 / 512 }>(index, area).ok_or(cause::READ_FAILED)?;
            done += len;
            chunk = read::next(chunk);
        }
        let base = (*policy).base;
        let eoi = (*policy).args.stride.wrapping_sub(1);
        let class =
            judge::arena(base.wrapping_add((*area).state).wrapping_add(eoi)).ok_or(cause::READ_FAILED)?;
        judge::arena(
            base.wrapping_add((*policy).args_table)
                .wrapping_add(row.wrapping_mul((*policy).args.classes))
                .wrapping_add(class),
        )
        .ok_or(cause::READ_FAILED)
    }
}

/// Reads arguments to where the automaton looks for them.
#[inline(always)]
unsafe fn read_chunk(area: *mut Scratch, at: Address, len: u32) -> Result<(), read::Unreadable> {
    let len = (read::opaque(u64::from(len)) & (2 * ARGS_BYTES as u64 - 1)) as u32;
    // SAFETY: `bytes` has twice `ARGS_BYTES` from `CHUNK_AT`.
    unsafe { read::user_bytes((&raw mut (*area).bytes).cast::<u8>().add(CHUNK_AT as usize), len, at) }
}

/// Sends the event from the area.
#[inline(always)]
pub(crate) fn report(
    area: *mut Scratch,
    task: Address,
    tag: &Tag,
    verdict: Verdict,
    args: &Args,
    flags: u32,
) {
    // SAFETY: `area` is claimed; offsets point into `OFFSETS`.
    unsafe {
        let parent = read::kernel::<Address>(task + offset!(task_struct_real_parent)).unwrap_or(0);
        let parent_tgid = read::kernel::<u32>(parent + offset!(task_struct_tgid)).unwrap_or(0);
        let mut flags = flags | (*area).flags;
        let from = read::opaque(u64::from((*area).path)) & 0x1fff;
        let mut path_len = (PATH_BYTES as u64).wrapping_sub(from) as u32;
        let message = &raw mut (*area).message;
        let tail = (&raw mut (*message).tail).cast::<u8>();
        let path: Address = (&raw const (*area).bytes).cast::<u8>().add(from as usize) as Address;
        if path_len as usize > PATH_BYTES || read::kernel_bytes(tail, path_len, path).is_err() {
            path_len = 0;
        }
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
        (*message).header = event::header(kind::EXEC, tag, verdict);
        (*message).exec = Exec {
            parent_tgid,
            flags,
            inode: (*area).inode,
            device: (*area).device,
            path_len,
            args_len,
            args_total: args.total,
        };
        // Always so; the verifier wants to see it.
        let len = read::opaque(112 + u64::from(path_len) + u64::from(args_len));
        if len <= 112 + (PATH_BYTES + ARGS_BYTES) as u64 {
            event::send(kind::EXEC, message.cast(), len);
        }
    }
}

/// The event of a program that was killed since no area was free.
#[inline(always)]
pub(crate) fn busy(tag: &Tag) {
    event::Small {
        header: event::header(kind::EXEC, tag, Verdict::unjudged(cause::BUSY, 0)),
        body: Exec {
            flags: EXEC_ARGS_UNKNOWN | sallyport_sensor_abi::event::EXEC_PATH_CUT,
            ..Exec::default()
        },
    }
    .send();
}
