//! The policy in force: installed, pushed, kept, and given to sensors.

use crate::authorize::{Authorizer, EndReason};
use crate::recorder::draft;
use crate::sensors::registry::Sensors;
use crate::sessions::{LiveSession, principal};
use crate::state::policies::{self, Stored};
use crate::state::{State, StateError, now_ms};
use sallyport_contract::v1::{PolicyBundle, SensorPolicy, gateway_order::Order};
use sallyport_evidence::record::{Decision, Identity, Kind, Outcome};
use sallyport_policy::{Bundle, Policy};
use std::path::Path;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

/// Sensors answer a push within this time, or are said not to have answered yet.
const REPORT_WITHIN: Duration = Duration::from_secs(2);
/// Largest archive in bytes: policies are text written by people.
pub const MAX_ARCHIVE: usize = 3 << 20;

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

    /// Checks a version and, if it is sound, puts it into force: here, in all running sessions, on all sensors.
    /// All problems are reported at once, and then the version before stays in force.
    ///
    /// # Errors
    /// It was sound, but could not be stored or recorded; the version before stays in force.
    pub(crate) async fn push(
        &self,
        archive: Vec<u8>,
        note: PushNote,
        by: &Identity,
        authorizer: &Authorizer,
    ) -> Result<Pushed, PolicyError> {
        let _one_at_a_time = self.pushing.lock().await;
        let previous = self.version();
        let sessions = authorizer.running();
        let PushNote { commit, author, message } = note;
        let stored = Stored { version: String::new(), commit, author, message, pushed_ms: now_ms(), archive };
        // Parsing and compiling take their time: not on the runtime's threads.
        let checked = tokio::task::spawn_blocking(move || check(stored, &sessions)).await;
        let loaded = match checked
            .unwrap_or_else(|_| Err(vec!["the check of this policy failed; it was not pushed".into()]))
        {
            Ok(loaded) => loaded,
            Err(problems) => {
                authorizer
                    .policy_record(
                        by,
                        Outcome::Blocked,
                        &previous,
                        &format!("push refused: {}", problems.join("; ")),
                    )
                    .await?;
                return Ok(Pushed { previous, problems, ..Pushed::default() });
            }
        };
        let version = loaded.stored.version.clone();
        let what = format!(
            "policy {} takes the place of {}: {}",
            short(&version),
            short(&previous),
            loaded.stored.message
        );
        authorizer.policy_record(by, Outcome::Allowed, &version, &what).await?;
        policies::push(&self.state, loaded.stored.clone()).await?;
        let order = bundle_order(&loaded.stored);
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(loaded));
        let sensors: &Sensors = authorizer.sensor_registry();
        sensors.clear_policy_errors();
        let hosts = sensors.order_all(&order);
        authorizer.judge_running_again().await;
        let sensors = sensors.policy_reports(&hosts, &version, REPORT_WITHIN).await;
        Ok(Pushed { version, previous, problems: Vec::new(), sensors })
    }
}

impl Authorizer {
    /// Running sessions under the version now in force: those it does not permit are ended.
    async fn judge_running_again(&self) {
        let Some(current) = self.policies().current() else { return };
        let version = &current.stored.version;
        for session in self.running() {
            if current.policy.decide(&session.question()).allowed {
                session.set_policy_version(version);
                if let Err(err) =
                    crate::state::sessions::under_policy(self.state(), &session.id, version).await
                {
                    tracing::warn!(session = session.id, %err, "cannot note the session's new policy");
                }
            } else {
                self.end_session(&session, EndReason::PolicyChanged { version: short(version).to_owned() });
            }
        }
    }

    async fn policy_record(
        &self,
        by: &Identity,
        outcome: Outcome,
        version: &str,
        message: &str,
    ) -> Result<(), PolicyError> {
        let mut record = draft(Kind::Policy);
        record.identity = Some(by.clone());
        record.decision = Some(Decision {
            action: "push_policy".into(),
            outcome,
            policy: version.to_owned(),
            rule: String::new(),
            reason: String::new(),
            point: "gateway".into(),
        });
        record.message = Some(message.chars().take(8192).collect());
        self.recorder().append(record).await.map(drop).map_err(|_| PolicyError::Unrecorded)
    }
}

/// The first twelve digits, as people are shown versions.
#[must_use]
pub fn short(version: &str) -> &str {
    version.get(..12).unwrap_or(version)
}

fn check(stored: Stored, sessions: &[Arc<LiveSession>]) -> Result<InForce, Vec<String>> {
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

fn load(mut stored: Stored) -> Result<InForce, Vec<String>> {
    let bundle = Bundle::from_archive(&stored.archive).map_err(|err| vec![crate::chain(&err)])?;
    let policy = Policy::load(&bundle)
        .map_err(|faults| faults.faults.iter().map(ToString::to_string).collect::<Vec<_>>())?;
    stored.version = bundle.version();
    stored.archive = bundle.to_archive();
    Ok(InForce { policy, stored })
}

fn bundle_order(stored: &Stored) -> Order {
    Order::Bundle(PolicyBundle {
        version: stored.version.clone(),
        commit: stored.commit.clone(),
        archive: stored.archive.clone(),
    })
}
