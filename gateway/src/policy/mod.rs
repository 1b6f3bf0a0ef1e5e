//! The policy in force: installed, pushed, kept, and given to sensors.

mod load;
mod push;

use self::load::load;
use crate::state::policies::{self, Stored};
use crate::state::{State, StateError, now_ms};
use sallyport_contract::v1::{PolicyBundle, SensorPolicy, gateway_order::Order};
use sallyport_policy::{Bundle, Policy};
use std::path::Path;
use std::sync::{Arc, PoisonError, RwLock};

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
    current: Arc<RwLock<Option<Arc<InForce>>>>,
    /// One push at a time: each sees the sessions that the one before left.
    pushing: Arc<tokio::sync::Mutex<()>>,
}

/// What a push led to.
#[derive(Debug, Default)]
pub struct Pushed {
    /// The pushed version.
    pub version: String,
    /// The one in force before; empty: none.
    pub previous: String,
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
}

/// The gateway cannot start with this policy, or a push could not be carried out.
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
    /// It cannot be recorded.
    #[error("the push cannot be recorded, so it was not carried out")]
    Unrecorded,
}

impl PolicyStore {
    /// Loads the version in force; installs `bundle` if there is none.
    ///
    /// # Errors
    /// The bundle or the stored version is not usable.
    pub async fn open(state: State, bundle: Option<&Path>) -> Result<Self, PolicyError> {
        let stored = match (policies::in_force(&state).await?, bundle) {
            (Some(stored), _) => Some(stored),
            (None, Some(path)) => {
                let bundle = Bundle::read_dir(path).map_err(|err| PolicyError::Bundle(crate::chain(&err)))?;
                let stored = Stored {
                    version: bundle.version(),
                    commit: String::new(),
                    author: "configuration".to_owned(),
                    message: format!("installed at the first start from {}", path.display()),
                    pushed_ms: now_ms(),
                    archive: bundle.to_archive(),
                };
                // Checked before it is stored.
                load(stored.clone()).map_err(|problems| PolicyError::Faults(problems.join("\n")))?;
                policies::push(&state, stored.clone()).await?;
                Some(stored)
            }
            (None, None) => None,
        };
        let current = match stored {
            Some(stored) => {
                let loaded = load(stored).map_err(|problems| PolicyError::Faults(problems.join("\n")))?;
                Some(Arc::new(loaded))
            }
            None => None,
        };
        Ok(Self { state, current: Arc::new(RwLock::new(current)), pushing: Arc::default() })
    }

    /// The version in force; none: everything is refused.
    #[must_use]
    pub fn current(&self) -> Option<Arc<InForce>> {
        self.current.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Its name; empty: none.
    #[must_use]
    pub fn version(&self) -> String {
        self.current().map(|current| current.stored.version.clone()).unwrap_or_default()
    }

    /// The order that gives a sensor the version in force.
    #[must_use]
    pub fn order(&self) -> Option<Order> {
        self.current().map(|current| bundle_order(&current.stored))
    }
}

/// The first twelve digits, as people are shown versions.
#[must_use]
pub fn short(version: &str) -> &str {
    version.get(..12).unwrap_or(version)
}

fn bundle_order(stored: &Stored) -> Order {
    Order::Bundle(PolicyBundle {
        version: stored.version.clone(),
        commit: stored.commit.clone(),
        archive: stored.archive.clone(),
    })
}
