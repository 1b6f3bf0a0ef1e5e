//! The policy in force: installed, pushed, tried as a canary, rolled back, kept, and given to sensors.

mod canary;
mod change;
mod drift;
mod load;
mod orders;
mod push;
#[cfg(test)]
mod tests;

use self::canary::Canary;
use self::load::load;
use self::orders::Orders;
use crate::recorder::Recorder;
use crate::state::policies::{self, How, Stored};
use crate::state::{State, StateError, now_ms};
use sallyport_contract::v1::{SensorPolicy, gateway_order::Order};
use sallyport_evidence::order::Scope;
use sallyport_policy::{Bundle, Policy};
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use tokio::sync::Notify;

pub(crate) use self::canary::{Wanted as WantedCanary, watch as watch_canary};
pub(crate) use self::drift::{Enforced, drift};
pub use self::load::MAX_ARCHIVE;

/// A version in force.
pub struct InForce {
    /// Ready to be asked.
    pub policy: Policy,
    /// As stored.
    pub stored: Stored,
}

/// Holds the version in force. Cheap to clone.
#[derive(Clone)]
pub struct PolicyStore {
    state: State,
    recorder: Recorder,
    orders: Arc<Orders>,
    standing: Arc<RwLock<Standing>>,
    /// One change at a time: each is judged against what the one before left.
    changing: Arc<tokio::sync::Mutex<()>>,
    /// Something about the canary is to be looked at now.
    wake: Arc<Notify>,
}

/// What is in force.
#[derive(Clone, Default)]
struct Standing {
    /// For everybody whom the canary does not cover.
    stable: Option<Arc<InForce>>,
    canary: Option<Arc<Canary>>,
}

/// What a change led to.
#[derive(Debug, Default)]
pub struct Pushed {
    /// The new version.
    pub version: String,
    /// Its serial number.
    pub serial: u64,
    /// The one in force before; empty: none.
    pub previous: String,
    /// It was in force already: nothing was done.
    pub unchanged: bool,
    /// Not empty: refused.
    pub problems: Vec<String>,
    /// What connected sensors answered.
    pub sensors: Vec<SensorPolicy>,
}

/// What comes with a push.
#[derive(Clone, Debug, Default)]
pub struct PushNote {
    /// Git commit.
    pub commit: String,
    /// Who says to have written it.
    pub author: String,
    /// Why.
    pub message: String,
    /// What authors signed.
    pub signatures: Vec<String>,
    /// Only if the version in force begins so; empty: whatever is in force.
    pub expect: String,
}

/// The gateway cannot start with this policy, or a change could not be carried out. Whatever was in force before still is.
#[derive(Debug, thiserror::Error)]
pub enum PolicyError {
    /// The state.
    #[error(transparent)]
    State(#[from] StateError),
    /// The bundle named in the configuration cannot be read.
    #[error("cannot read the policy bundle: {0}")]
    Bundle(String),
    /// It, or the stored version, has faults.
    #[error("the policy has faults:\n{0}")]
    Faults(String),
    /// The key for orders.
    #[error("the key `{path}` for orders to sensors is not usable: {what}")]
    Key {
        /// Its file.
        path: PathBuf,
        /// Why.
        what: String,
    },
    /// It cannot be recorded.
    #[error("the change of policy cannot be recorded, so it was not carried out")]
    Unrecorded,
    /// The log cannot be read, so it is not known whether a change that was interrupted was on the record.
    #[error("the log cannot be read for a change of policy that was interrupted")]
    Log(#[from] crate::recorder::reader::ReadError),
    /// Something stands in the way of it; the text is for the person.
    #[error("{0}")]
    NotNow(String),
    /// There is no such version.
    #[error("{0}")]
    NoVersion(String),
}

impl PolicyStore {
    /// Loads what is in force, having finished what was interrupted; installs `bundle` if there is nothing.
    ///
    /// # Errors
    /// The bundle or a stored version is not usable.
    pub async fn open(
        state: State,
        recorder: Recorder,
        dir: &Path,
        gateway: &str,
        bundle: Option<&Path>,
    ) -> Result<Self, PolicyError> {
        let store = Self {
            state,
            recorder,
            orders: Arc::new(Orders::open(dir, gateway)?),
            standing: Arc::default(),
            changing: Arc::default(),
            wake: Arc::default(),
        };
        store.finish_interrupted().await?;
        let faults = |problems: Vec<String>| PolicyError::Faults(problems.join("\n"));
        match (policies::in_force(&store.state).await?, bundle) {
            (Some(stored), _) => {
                let stable = Some(Arc::new(load(stored).map_err(faults)?));
                store.stand(|standing| standing.stable = stable);
                store.resume_canary().await?;
            }
            (None, Some(path)) => {
                let bundle = Bundle::read_dir(path).map_err(|err| PolicyError::Bundle(crate::chain(&err)))?;
                let stored = Stored {
                    author: "configuration".to_owned(),
                    message: format!("installed at the first start from {}", path.display()),
                    pushed_ms: now_ms(),
                    how: How::Start,
                    archive: bundle.to_archive().into(),
                    ..Stored::default()
                };
                store.bring(load(stored).map_err(faults)?, None, None).await?;
            }
            (None, None) => {}
        }
        Ok(store)
    }

    /// The version in force for everybody whom no canary covers; none: everything is refused.
    #[must_use]
    pub fn current(&self) -> Option<Arc<InForce>> {
        self.standing().stable
    }

    /// The version that judges a session.
    #[must_use]
    pub fn for_session(&self, host: &str, session: &str) -> Option<Arc<InForce>> {
        let Standing { stable, canary } = self.standing();
        match canary {
            Some(canary) if canary.covers(host, session) => Some(canary.in_force.clone()),
            _ => stable,
        }
    }

    /// The name of the version in force; empty: none.
    #[must_use]
    pub fn version(&self) -> String {
        self.current().map(|current| current.stored.version.clone()).unwrap_or_default()
    }

    /// The serial number of the newest change; 0: none.
    #[must_use]
    pub fn serial(&self) -> u64 {
        let Standing { stable, canary } = self.standing();
        let of = |in_force: &InForce| in_force.stored.serial;
        stable.map_or(0, |stable| of(&stable)).max(canary.map_or(0, |canary| of(&canary.in_force)))
    }

    /// What the sensors verify orders with.
    #[must_use]
    pub fn key(&self) -> String {
        self.orders.key()
    }

    /// The orders that bring a host to what is in force there, in this order.
    #[must_use]
    pub fn orders_for(&self, host: &str) -> Vec<Order> {
        let Standing { stable, canary } = self.standing();
        let stable = stable.map(|stable| self.orders.order(&stable.stored, Scope::All));
        let canary = canary.filter(|canary| canary.covers_host(host)).map(|canary| {
            let scope = Scope::Canary { host: host.to_owned(), share: canary.plan.share };
            self.orders.order(&canary.in_force.stored, scope)
        });
        stable.into_iter().chain(canary).collect()
    }

    /// What a host should enforce.
    pub(crate) fn wanted(&self, host: &str) -> Enforced {
        let Standing { stable, canary } = self.standing();
        let name = |in_force: &InForce| in_force.stored.version.clone();
        Enforced {
            version: stable.map(|stable| name(&stable)).unwrap_or_default(),
            canary: canary.filter(|c| c.covers_host(host)).map(|c| name(&c.in_force)).unwrap_or_default(),
        }
    }

    fn standing(&self) -> Standing {
        self.standing.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Changes what is in force, for whoever asks from now on.
    fn stand(&self, change: impl FnOnce(&mut Standing)) {
        change(&mut self.standing.write().unwrap_or_else(PoisonError::into_inner));
    }
}

/// The first twelve digits, as people are shown versions.
#[must_use]
pub fn short(version: &str) -> &str {
    version.get(..12).unwrap_or(version)
}
