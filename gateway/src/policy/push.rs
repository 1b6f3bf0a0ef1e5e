//! A push: checked, recorded, stored, then in force here, in running sessions and on sensors.

use super::load::check;
use super::{PolicyError, PolicyStore, PushNote, Pushed, bundle_order, short};
use crate::authorize::{Authorizer, EndReason};
use crate::recorder::draft;
use crate::sensors::registry::Sensors;
use crate::state::now_ms;
use crate::state::policies::{self, Stored};
use sallyport_evidence::record::{Decision, Identity, Kind, Outcome};
use std::sync::{Arc, PoisonError};
use std::time::Duration;

/// Sensors answer a push within this time, or are said not to have answered yet.
const REPORT_WITHIN: Duration = Duration::from_secs(2);

impl PolicyStore {
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
