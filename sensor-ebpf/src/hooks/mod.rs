//! One file per kernel hook, or per theme.

use core::arch::asm;

use aya_ebpf::{EbpfContext as _, programs::LsmContext};

mod capable;
mod connect;
mod credentials;
mod exec;
mod exec_check;
mod exit;
mod file_change;
mod file_map;
mod file_names;
mod file_open;
mod fork;
mod guard_files;
mod kernel;
mod keys;
mod listen;
mod mount;
mod namespace;
mod question;
mod receive;
mod route;
mod signal;
mod socket;
mod socket_create;
mod starve;
mod terminal;
mod trace;
mod unix;
mod uring;

/// What an LSM hook returns for what is allowed.
pub(crate) const ALLOW: i32 = 0;
/// Negated, what an LSM hook returns for what is denied.
pub(crate) const EPERM: i32 = 1;

/// `EACCES`.
const EACCES: i32 = 13;

/// The answer of another LSM program before ours, which is never weakened. Only such as the verifier can see.
#[inline(always)]
pub(crate) fn prior(before: i32) -> i32 {
    if crate::read::opaque(u64::from(before.cast_unsigned())) == u64::from((-EACCES).cast_unsigned()) {
        -EACCES
    } else {
        -EPERM
    }
}

/// The argument at byte `AT` of an LSM hook's context, of which not every kernel has as many. In assembly, so that the
/// compiler does not move the load to before the question whether this one has it.
#[inline(always)]
pub(crate) fn argument<const AT: u32>(ctx: &LsmContext) -> u64 {
    let context = ctx.as_ptr();
    let value: u64;
    // SAFETY: the verifier checks that the hook has that argument, where it believes that this is reached.
    unsafe {
        asm!("{0} = *(u64 *)({1} + {2})", out(reg) value, in(reg) context, const AT, options(nostack));
    }
    crate::read::plain(value)
}
