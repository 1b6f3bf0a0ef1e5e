//! From an order and its bundle to what will be in force; and from what was kept to what is.

use std::sync::Arc;

use sallyport_contract::v1::PolicyBundle;
use sallyport_evidence::PolicyOrder;
use sallyport_evidence::order::{Scope, WHOLE};
use sallyport_policy::{Bundle, Policy};

use super::kept::Kept;
use super::orders::{Accepted, Held};
use super::{Change, Current, InForce, PolicyError};

/// What an order changes, with its bundle parsed and checked.
pub(super) fn change(
    order: &PolicyOrder,
    bundle: &PolicyBundle,
    held: &Held,
    in_force: &InForce,
) -> Result<Change, PolicyError> {
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
    Ok(Change { next, held, version: order.version.clone(), archive: bundle.archive.clone() })
}

/// Parses and checks a bundle whose hash is known to be `version`.
fn load(version: &str, archive: &[u8]) -> Result<Current, PolicyError> {
    let parsed = Bundle::from_archive(archive)?;
    let policy = Policy::load(&parsed).map_err(PolicyError::Faults)?;
    Ok(Current { version: version.to_owned(), policy: Arc::new(policy) })
}

/// What was in force when the last sensor stopped. A canary that cannot be used any more is left out.
pub(super) fn load_kept(kept: &Kept) -> Result<(Held, InForce), PolicyError> {
    let mut held = kept.held()?;
    let load = |order: &Accepted| load(&order.version, &kept.archive(&order.version)?);
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
