//! Orders to sensors: a bundle, and a statement about it that the gateway signs.

use super::PolicyError;
use crate::state::policies::Stored;
use sallyport_contract::v1::{PolicyBundle, gateway_order::Order};
use sallyport_evidence::PolicyOrder;
use sallyport_evidence::note::Signer;
use sallyport_evidence::order::{KEY_SUFFIX, Scope};
use std::path::Path;

/// In the state folder: made at the first start, never again.
const KEY: &str = "policy.key";

/// Signs orders.
pub(super) struct Orders {
    gateway: String,
    signer: Signer,
}

impl Orders {
    /// Reads the key, or makes it.
    pub(super) fn open(dir: &Path, gateway: &str) -> Result<Self, PolicyError> {
        let path = dir.join(KEY);
        let unusable = |what: String| PolicyError::Key { path: path.clone(), what };
        let text = crate::files::secret(&path, || hex::encode(rand::random::<[u8; 32]>()))
            .map_err(|err| unusable(err.to_string()))?;
        let seed = hex::decode(text.trim()).ok().and_then(|bytes| <[u8; 32]>::try_from(bytes).ok());
        let seed = seed.ok_or_else(|| unusable("it does not hold 64 hexadecimal digits".to_owned()))?;
        let signer = Signer::new(&format!("{gateway}{KEY_SUFFIX}"), &seed);
        let signer =
            signer.ok_or_else(|| unusable("the gateway's name cannot be a key's name".to_owned()))?;
        Ok(Self { gateway: gateway.to_owned(), signer })
    }

    /// What sensors verify with.
    pub(super) fn key(&self) -> String {
        self.signer.verifier().to_string()
    }

    /// A signed order.
    pub(super) fn order(&self, stored: &Stored, scope: Scope) -> Order {
        let Stored { serial, version, pushed_ms, .. } = stored;
        let order = PolicyOrder {
            gateway: self.gateway.clone(),
            serial: *serial,
            version: version.clone(),
            time_ms: *pushed_ms,
            scope,
        };
        // The names in it were checked when they came in. A sensor refuses an order without a statement, and says so.
        let statement = order.sign(&self.signer).unwrap_or_else(|err| {
            tracing::error!(%err, "an order to a sensor cannot be signed");
            String::new()
        });
        Order::Bundle(PolicyBundle {
            version: version.clone(),
            commit: stored.commit.clone(),
            archive: stored.archive.clone(),
            serial: *serial,
            statement,
            signatures: stored.signatures.clone(),
        })
    }
}
