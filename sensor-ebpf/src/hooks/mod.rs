//! One file per kernel hook, or per theme.

mod connect;
mod exec;
mod exec_check;
mod exit;
mod fork;
mod question;
mod socket;
mod socket_create;

/// What an LSM hook returns for what is allowed.
pub(crate) const ALLOW: i32 = 0;
/// Negated, what an LSM hook returns for what is denied.
pub(crate) const EPERM: i32 = 1;

/// The answer of another LSM program before ours, which is never weakened, within what the verifier accepts.
#[inline(always)]
pub(crate) const fn prior(before: i32) -> i32 {
    if before < 0 && before >= -4095 { before } else { -EPERM }
}
