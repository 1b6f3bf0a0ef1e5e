//! From an order and its bundle to what will be in force; and from what was kept to what is.

use sallyport_contract::v1::PolicyBundle;
use sallyport_evidence::order::{Scope, WHOLE};

use super::kept::Kept;
use super::orders::{Accepted, Held, Step, Trust};
use super::{Change, Current, InForce, PolicyError};

/// What an order changes for a host that holds `held`, with its bundle parsed and checked by `load` ([`Current::load`]);
/// none: it was accepted before. Nothing changes yet.
///
/// # Errors
/// It is not to be followed, or its bundle cannot come into force.
pub fn judge(
    trust: &Trust,
    bundle: &PolicyBundle,
    held: &Held,
    in_force: &InForce,
    load: impl FnOnce(&str, &[u8]) -> Result<Current, PolicyError>,
) -> Result<Option<Change>, PolicyError> {
    let order = match trust.decide(bundle, held)? {
        Step::Known => return Ok(None),
        Step::New(order) => order,
    };
    // Promoted, or in force again: it was checked when it came.
    let current = match in_force.named(&order.version) {
        Some(current) => current.clone(),
        None => load(&order.version, &bundle.archive)?,
    };
    let share = match order.scope {
        Scope::All => WHOLE,
        Scope::Canary { share, .. } => share,
    };
    let accepted = Accepted {
        serial: order.serial,
        version: order.version.clone(),
        share,
        statement: bundle.statement.clone(),
        signatures: bundle.signatures.clone(),
    };
    let held = held.with(accepted, &order.scope);
    let next = match order.scope {
        Scope::All => InForce {
            stable: Some(current),
            canary: in_force.canary.clone().filter(|_| held.canary.is_some()),
        },
        Scope::Canary { .. } => InForce { stable: in_force.stable.clone(), canary: Some((current, share)) },
    };
    Ok(Some(Change { next, held, version: order.version.clone(), archive: bundle.archive.clone() }))
}

/// What was in force when the last sensor stopped. A canary that cannot be used any more is left out.
pub(super) fn load_kept(kept: &Kept) -> Result<(Held, InForce), PolicyError> {
    let mut held = kept.held()?;
    let load = |order: &Accepted| Current::load(&order.version, &kept.archive(&order.version)?);
    let stable = held.stable.as_ref().map(load).transpose()?;
    let canary = match held.canary.as_ref().map(|order| Ok((load(order)?, order.share))).transpose() {
        Ok(canary) => canary,
        Err(error) => {
            let error: PolicyError = error;
            tracing::error!(%error, "the kept canary cannot be used; its sessions go on under the policy beside it");
            held.canary = None;
            None
        }
    };
    Ok((held, InForce { stable, canary }))
}
