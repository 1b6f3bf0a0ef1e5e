//! A change of policy, step by step: noted, recorded, committed, and only then in force. See `state::policies`.

use super::canary::Canary;
use super::{InForce, PolicyError, PolicyStore, Pushed, short};
use crate::authorize::{Authorizer, EndReason};
use crate::recorder::reader::Filter;
use crate::recorder::{GATEWAY, draft};
use crate::state::canaries::Plan;
use crate::state::policies::{self, Begun, How};
use sallyport_evidence::order::Scope;
use sallyport_evidence::record::{Decision, Identity, Kind, Outcome, Record};
use std::sync::Arc;
use std::time::Duration;

/// Sensors answer a change within this time, or are said not to have answered yet. Normally it takes a fraction of a second; a host
/// that has much else to do compiles for some seconds, and whoever pushes wants to know that it enforces the version.
const REPORT_WITHIN: Duration = Duration::from_secs(20);
/// Records looked at together when one is sought.
const PAGE: usize = 1000;

impl PolicyStore {
    /// Carries a change out: here, in all running sessions that it is for, on all sensors.
    pub(super) async fn carry_out(
        &self,
        loaded: InForce,
        plan: Option<Plan>,
        by: Option<&Identity>,
        authorizer: &Authorizer,
    ) -> Result<Pushed, PolicyError> {
        let previous = self.version();
        let changed = self.bring(loaded, plan, by).await?;
        let stored = &changed.stored;
        let sensors = authorizer.sensor_registry();
        let hosts = match self.standing().canary {
            Some(canary) => {
                let connected = sensors.connected_hosts().into_iter().filter(|host| canary.covers_host(host));
                connected
                    .filter(|host| {
                        let scope = Scope::Canary { host: host.clone(), share: canary.plan.share };
                        sensors.order(host, self.orders.order(stored, scope))
                    })
                    .collect()
            }
            None => sensors.order_all(&self.orders.order(stored, Scope::All)),
        };
        authorizer.judge_running_again().await;
        sensors.answered(&hosts, stored.serial, REPORT_WITHIN).await;
        let sensors = hosts.iter().map(|host| authorizer.sensor_policy(host)).collect();
        let (version, serial) = (stored.version.clone(), stored.serial);
        Ok(Pushed { version, serial, previous, sensors, ..Pushed::default() })
    }

    /// Notes, records and commits a change; from then on it is what is in force here.
    pub(super) async fn bring(
        &self,
        mut loaded: InForce,
        plan: Option<Plan>,
        by: Option<&Identity>,
    ) -> Result<Arc<InForce>, PolicyError> {
        let log_from = *self.recorder.size().borrow();
        let serial = policies::begin(&self.state, loaded.stored.clone(), plan.clone(), log_from).await?;
        loaded.stored.serial = serial;
        let record = change_record(&loaded, &self.version(), plan.as_ref(), by);
        if self.recorder.append(record).await.is_err() {
            if let Err(err) = policies::void(&self.state, serial).await {
                tracing::warn!(%err, serial, "a change of policy that never was is finished at the next start");
            }
            return Err(PolicyError::Unrecorded);
        }
        policies::commit(&self.state, serial).await?;
        let changed = Arc::new(loaded);
        let canary = plan.map(|plan| Arc::new(Canary::new(changed.clone(), plan)));
        self.stand(|standing| match canary {
            Some(canary) => standing.canary = Some(canary),
            None => (standing.stable, standing.canary) = (Some(changed.clone()), None),
        });
        Ok(changed)
    }

    /// Changes that a crash interrupted: in force if they are on the record, and otherwise, on the record, not.
    pub(super) async fn finish_interrupted(&self) -> Result<(), PolicyError> {
        for Begun { stored, log_from } in policies::begun(&self.state).await? {
            let serial = stored.serial;
            if self.is_recorded(serial, &stored.version, log_from).await? {
                tracing::warn!(
                    serial,
                    version = stored.version,
                    "finished a change of policy that was interrupted"
                );
                policies::commit(&self.state, serial).await?;
            } else {
                let what = format!(
                    "the {} of policy {} {} was interrupted before it was on the record; it did not come into force",
                    stored.how.name(),
                    short(&stored.version),
                    numbered(serial)
                );
                tracing::warn!("{what}");
                let record = policy_record(None, Outcome::Blocked, &stored.version, &what);
                self.recorder.append(record).await.map_err(|_| PolicyError::Unrecorded)?;
                policies::void(&self.state, serial).await?;
            }
        }
        Ok(())
    }

    async fn is_recorded(&self, serial: u64, version: &str, log_from: u64) -> Result<bool, PolicyError> {
        let filter = Filter { kind: "policy".to_owned(), ..Filter::default() };
        let mut from = log_from;
        loop {
            let page = self.recorder.reader().range(&filter, from, u64::MAX, PAGE).await?;
            let Some(last) = page.last() else { return Ok(false) };
            from = last.index + 1;
            let records = page.iter().filter_map(|entry| Record::from_bytes(&entry.record).ok());
            let is_it = |record: Record| {
                record.source.maker == GATEWAY
                    && record.decision.is_some_and(|d| d.policy == version && d.outcome == Outcome::Allowed)
                    && record.message.is_some_and(|message| message.contains(&numbered(serial)))
            };
            if records.into_iter().any(is_it) {
                return Ok(true);
            }
        }
    }

    /// Puts an attempt that changed nothing on the record.
    pub(super) async fn attempted(
        &self,
        by: Option<&Identity>,
        outcome: Outcome,
        version: &str,
        message: &str,
    ) -> Result<(), PolicyError> {
        let record = policy_record(by, outcome, version, message);
        self.recorder.append(record).await.map(drop).map_err(|_| PolicyError::Unrecorded)
    }
}

impl Authorizer {
    /// Running sessions under the versions now in force: those that theirs does not permit are ended.
    pub(super) async fn judge_running_again(&self) {
        for session in self.running() {
            let Some(current) = self.policies().for_session(&session.host, &session.id) else { return };
            let version = &current.stored.version;
            if *version == session.policy_version() {
                continue;
            }
            if current.policy.decide(&session.question()).allowed {
                session.set_policy_version(version);
                if let Err(err) =
                    crate::state::sessions::under_policy(self.state(), &session.id, version).await
                {
                    tracing::warn!(session = session.id, %err, "cannot note the session's new policy");
                }
            } else {
                self.policies().count(version, true);
                self.end_session(&session, EndReason::PolicyChanged { version: short(version).to_owned() });
            }
        }
    }
}

/// How a change is found again in the log.
fn numbered(serial: u64) -> String {
    format!("(serial {serial})")
}

pub(super) fn change_record(
    changed: &InForce,
    previous: &str,
    plan: Option<&Plan>,
    by: Option<&Identity>,
) -> Record {
    let stored = &changed.stored;
    let version = format!("{} {}", short(&stored.version), numbered(stored.serial));
    let before = if previous.is_empty() { "no policy" } else { short(previous) };
    let what = match stored.how {
        How::Start | How::Push => format!("policy {version} takes the place of {before}"),
        How::Rollback => format!("policy {version} is in force again, instead of {before}"),
        How::Canary => {
            let plan = plan.map(super::canary::describe).unwrap_or_default();
            format!("policy {version} is tried beside {before}: {plan}")
        }
        How::Promotion => format!("the canary's policy {version} takes the place of {before} everywhere"),
        How::Abort => format!("the canary is over, policy {version} is in force everywhere again"),
    };
    policy_record(by, Outcome::Allowed, &stored.version, &format!("{what}: {}", stored.message))
}

fn policy_record(by: Option<&Identity>, outcome: Outcome, version: &str, message: &str) -> Record {
    let mut record = draft(Kind::Policy);
    record.identity = by.cloned();
    record.decision = Some(Decision {
        action: "push_policy".into(),
        outcome,
        policy: version.to_owned(),
        rule: String::new(),
        reason: String::new(),
        point: "gateway".into(),
    });
    record.message = Some(message.chars().take(8192).collect());
    record
}
