//! LSM `userns_create`: new user namespaces, in which anybody has every capability.
//!
//! Sees: `unshare`, `clone` and `clone3` with `CLONE_NEWUSER`. Needs: 6.1 and BPF LSM; on older kernels the session
//! leader's seccomp filter stands in. Other namespaces need a capability; `capable.rs` sees them. On error: denied.

use aya_ebpf::{macros::lsm, programs::LsmContext};
use sallyport_sensor_abi::policy::operation::NAMESPACE;

use crate::system::{ALLOW, ask, tag};

/// match-proto:v6.1:include/linux/lsm_hook_defs.h:LSM_HOOK(int, 0, userns_create, const struct cred *cred)
#[lsm(hook = "userns_create")]
pub fn sally_userns(_ctx: LsmContext) -> i32 {
    if tag().is_none() { ALLOW } else { ask(NAMESPACE, 0) }
}
