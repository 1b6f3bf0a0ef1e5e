//! From an archive to a policy that can come into force: parsed, checked, and tried out for those whom it would govern.

use super::InForce;
use crate::sessions::{LiveSession, principal};
use crate::state::policies::Stored;
use sallyport_policy::{Bundle, Policy};
use std::sync::Arc;

/// Largest archive in bytes: policies are text written by people.
pub const MAX_ARCHIVE: usize = 3 << 20;

/// Loads a version and compiles it for those whom it concerns. All problems are reported at once.
pub(super) fn check(stored: Stored, sessions: &[Arc<LiveSession>]) -> Result<InForce, Vec<String>> {
    if stored.archive.len() > MAX_ARCHIVE {
        return Err(vec![format!(
            "the bundle has {} bytes, the most is {MAX_ARCHIVE}",
            stored.archive.len()
        )]);
    }
    let loaded = load(stored)?;
    if let Err(faults) = loaded.policy.try_out() {
        return Err(faults.faults.iter().map(ToString::to_string).collect());
    }
    // Sensors compile it for the sessions that run: what would fail there is refused here.
    let failing = sessions.iter().filter_map(|session| {
        let LiveSession { identity, host, local_user, .. } = session.as_ref();
        let failed = loaded.policy.compile(&principal(identity), host, local_user).err()?;
        Some(format!(
            "for the running session of {} as {local_user} on {host}: {}",
            identity.user,
            crate::chain(&failed)
        ))
    });
    let problems: Vec<String> = failing.collect();
    if problems.is_empty() { Ok(loaded) } else { Err(problems) }
}

/// Loads a version: what is in force needs no more, it was checked when it was pushed.
pub(super) fn load(mut stored: Stored) -> Result<InForce, Vec<String>> {
    let bundle = Bundle::from_archive(&stored.archive).map_err(|err| vec![crate::chain(&err)])?;
    let policy = Policy::load(&bundle)
        .map_err(|faults| faults.faults.iter().map(ToString::to_string).collect::<Vec<_>>())?;
    stored.version = bundle.version();
    stored.archive = bundle.to_archive().into();
    Ok(InForce { policy, stored })
}
