//! LSM `uring_sqpoll`, `uring_override_creds`: `io_uring` with a kernel thread, or with another's credentials.
//!
//! Whatever `io_uring` does (inline, by workers, by a polling thread, on registered files) passes the same hooks as
//! the system calls do, in threads of the process, so it is judged there. Sees: rings with `IORING_SETUP_SQPOLL`, and
//! requests with a registered personality. Needs: 5.16 and BPF LSM; older kernels do not ask. On error: denied.

use aya_ebpf::{macros::lsm, programs::LsmContext};
use sallyport_sensor_abi::policy::operation::IO_URING;

use crate::system::{ALLOW, ask, tag};

/// match-proto:v5.16:include/linux/lsm_hook_defs.h:LSM_HOOK(int, 0, uring_sqpoll, void)
#[lsm(hook = "uring_sqpoll")]
pub fn sally_sqpoll(_ctx: LsmContext) -> i32 {
    if tag().is_none() { ALLOW } else { ask(IO_URING, 0) }
}

/// match-proto:v5.16:include/linux/lsm_hook_defs.h:LSM_HOOK(int, 0, uring_override_creds, const struct cred *new)
#[lsm(hook = "uring_override_creds")]
pub fn sally_personality(_ctx: LsmContext) -> i32 {
    if tag().is_none() { ALLOW } else { ask(IO_URING, 1) }
}
