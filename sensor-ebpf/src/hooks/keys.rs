//! LSM `key_permission`, `key_alloc`: keys and keyrings of others, and what the kernel runs to fetch a key.
//!
//! Sees: every use of a key that the process does not hold itself (by its thread, process or session keyring), and
//! `request_key` for a key that does not exist, for which the kernel would start `/sbin/request-key` as root outside
//! of the session. Needs: 5.8, `CONFIG_KEYS` and BPF LSM; the second also x86-64. On error: denied.

use aya_ebpf::{macros::lsm, programs::LsmContext};
use sallyport_sensor_abi::policy::operation::KEYRING;

use crate::system::{ALLOW, argument, ask, ask_outside, call, tag, unreadable};

/// Lowest bit of a `key_ref_t`: the key is reachable from the process's own keyrings.
const POSSESSED: u64 = 1;

/// match-proto:v5.10:include/linux/lsm_hook_defs.h:LSM_HOOK(int, 0, key_permission, key_ref_t key_ref, const struct cred *cred, enum key_need_perm need_perm)
#[lsm(hook = "key_permission")]
pub fn sally_key(ctx: LsmContext) -> i32 {
    if tag().is_none() {
        return ALLOW;
    }
    let need: u32 = ctx.arg(2);
    match argument(&ctx, 0) {
        Ok(key) if key & POSSESSED != 0 => ALLOW,
        Ok(_) => ask(KEYRING, need),
        Err(_) => unreadable(KEYRING, need),
    }
}

/// `request_key`, of x86-64 and of its 32-bit programs.
const REQUEST_KEY: [u32; 2] = [249, 287];

/// match-proto:v5.10:include/linux/lsm_hook_defs.h:LSM_HOOK(int, 0, key_alloc, struct key *key, const struct cred *cred, unsigned long flags)
#[lsm(hook = "key_alloc")]
pub fn sally_key_request(_ctx: LsmContext) -> i32 {
    if tag().is_none() {
        return ALLOW;
    }
    let number = call();
    if number == REQUEST_KEY[0] || number == REQUEST_KEY[1] {
        return ask_outside(KEYRING, number, true);
    }
    ALLOW
}
