//! Canaries: a version in force on some hosts, or for some sessions there, then everywhere, or back.
//!
//! Which sessions those are depends on the version and the session's id alone (`evidence::order::in_share`), so gateway
//! and sensor agree without asking each other, and a restart changes nothing. What was denied under the version is counted
//! as records arrive; after a restart, from the log.

use super::load::load;
use super::{InForce, PolicyError, PolicyStore, PushNote, Pushed, short};
use crate::authorize::Authorizer;
use crate::recorder::Noted;
use crate::recorder::reader::Filter;
use crate::state::canaries::{self, Plan};
use crate::state::now_ms;
use crate::state::policies::{self, How, Stored};
use sallyport_evidence::order::{WHOLE, in_share};
use sallyport_evidence::record::{Identity, Outcome, Record};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// How often a canary is looked at, when nothing else makes it necessary.
const LOOK: Duration = Duration::from_secs(1);
/// A ratio of fewer decisions says nothing.
const ENOUGH: u64 = 20;
/// How long, if nothing is said.
const LASTS: Duration = Duration::from_secs(15 * 60);
/// The longest.
const LONGEST: Duration = Duration::from_secs(30 * 86_400);
/// Denials that are borne, if no bound is given.
const DENIALS: u64 = 10;
/// Records looked at together when they are counted again.
const PAGE: usize = 1000;

/// The canary that runs.
pub(super) struct Canary {
    pub(super) in_force: Arc<InForce>,
    pub(super) plan: Plan,
    denials: AtomicU64,
    decisions: AtomicU64,
}

/// What somebody wants tried.
#[derive(Clone, Debug, Default)]
pub(crate) struct Wanted {
    /// Hosts, and host groups of the candidate; none: all.
    pub(crate) hosts: Vec<String>,
    /// How many of a thousand sessions there; 0: all.
    pub(crate) share: u32,
    /// How long; none: 15 minutes.
    pub(crate) lasts: Option<Duration>,
    /// See [`Plan`]; neither: 10 denials.
    pub(crate) max_denials: Option<u64>,
    /// See [`Plan`]; 0: no bound.
    pub(crate) max_denial_ratio: u32,
}

impl Canary {
    pub(super) fn new(in_force: Arc<InForce>, plan: Plan) -> Self {
        Self { in_force, plan, denials: AtomicU64::new(0), decisions: AtomicU64::new(0) }
    }

    pub(super) fn covers_host(&self, host: &str) -> bool {
        self.plan.hosts.is_empty() || self.plan.hosts.iter().any(|known| known == host)
    }

    pub(super) fn covers(&self, host: &str, session: &str) -> bool {
        self.covers_host(host) && in_share(self.plan.share, &self.in_force.stored.version, session)
    }

    fn counts(&self) -> (u64, u64) {
        (self.denials.load(Ordering::Relaxed), self.decisions.load(Ordering::Relaxed))
    }

    /// More was denied than is borne: how much.
    fn excess(&self) -> Option<String> {
        let (denials, decisions) = self.counts();
        if let Some(most) = self.plan.max_denials
            && denials > most
        {
            return Some(format!("{denials} denials under it, the bound is {most}"));
        }
        let ratio = u64::from(self.plan.max_denial_ratio?);
        let over =
            decisions >= ENOUGH && denials.saturating_mul(u64::from(WHOLE)) > ratio.saturating_mul(decisions);
        over.then(|| {
            let percent = |n: u64| format!("{}.{} %", n / 10, n % 10);
            format!(
                "{denials} of {decisions} decisions under it were denials, the bound is {}",
                percent(ratio)
            )
        })
    }
}

impl PolicyStore {
    /// Checks a version and tries it as `wanted`.
    ///
    /// # Errors
    /// As [`PolicyStore::push`], or the plan makes no sense.
    pub(crate) async fn start_canary(
        &self,
        archive: Vec<u8>,
        note: PushNote,
        wanted: &Wanted,
        by: &Identity,
        authorizer: &Authorizer,
    ) -> Result<Pushed, PolicyError> {
        let _one_at_a_time = self.changing.lock().await;
        self.stands(&note.expect)?;
        let loaded = match self.admit(archive, note, How::Canary, by, authorizer).await? {
            Ok(loaded) => loaded,
            Err(refused) => return Ok(refused),
        };
        let current = self.version();
        let plan = if current.is_empty() {
            Err("there is no policy in force beside which it could be tried; push it".to_owned())
        } else if loaded.stored.version == current {
            Err(format!("policy {} is in force everywhere already", short(&current)))
        } else {
            plan(wanted, &loaded, &authorizer.sensor_registry().known_hosts(), now_ms())
        };
        match plan {
            Ok(plan) => self.carry_out(loaded, Some(plan), Some(by), authorizer).await,
            Err(problem) => Err(PolicyError::NotNow(problem)),
        }
    }

    /// Ends the canary: its version comes into force everywhere (`promote`), or the one before does again.
    ///
    /// # Errors
    /// None runs, or it could not be carried out.
    pub(crate) async fn end_canary(
        &self,
        promote: bool,
        why: &str,
        by: Option<&Identity>,
        authorizer: &Authorizer,
    ) -> Result<Pushed, PolicyError> {
        let _one_at_a_time = self.changing.lock().await;
        let standing = self.standing();
        let (Some(canary), Some(stable)) = (standing.canary, standing.stable) else {
            return Err(PolicyError::NotNow("no canary is running".to_owned()));
        };
        let (denials, decisions) = canary.counts();
        canaries::counted(&self.state, canary.in_force.stored.serial, denials, decisions).await?;
        let (how, next) = if promote { (How::Promotion, &canary.in_force) } else { (How::Abort, &stable) };
        let restores = (!promote).then(|| next.stored.restores.unwrap_or(next.stored.serial));
        let stored = Stored {
            how,
            restores,
            message: why.to_owned(),
            pushed_by: by.map(|by| by.user.clone()).unwrap_or_default(),
            pushed_ms: now_ms(),
            ..next.stored.clone()
        };
        let loaded = InForce { policy: next.policy.clone(), stored };
        self.carry_out(loaded, None, by, authorizer).await
    }

    /// Counts decisions under the canary among records that have arrived.
    pub(crate) fn count_noted(&self, noted: &[Noted]) {
        if self.standing().canary.is_none() {
            return;
        }
        for decision in noted.iter().filter_map(|noted| noted.head.decision.as_ref()) {
            self.count(&decision.policy, matches!(decision.outcome.as_str(), "blocked" | "killed"));
        }
    }

    /// Counts one decision, if it was made under the canary.
    pub(crate) fn count(&self, version: &str, denied: bool) {
        let Some(canary) = self.standing().canary.filter(|c| c.in_force.stored.version == version) else {
            return;
        };
        canary.decisions.fetch_add(1, Ordering::Relaxed);
        if denied {
            canary.denials.fetch_add(1, Ordering::Relaxed);
            if canary.excess().is_some() {
                self.wake.notify_one();
            }
        }
    }

    /// What is known of the canary that runs, or else of the newest.
    ///
    /// # Errors
    /// The database.
    pub async fn canary(&self) -> Result<Option<canaries::Canary>, PolicyError> {
        let mut newest = canaries::last(&self.state).await?;
        if let (Some(newest), Some(running)) = (&mut newest, self.standing().canary)
            && newest.serial == running.in_force.stored.serial
        {
            (newest.denials, newest.decisions) = running.counts();
        }
        Ok(newest)
    }

    /// After a restart: the canary goes on, with what the log says was decided under it.
    pub(super) async fn resume_canary(&self) -> Result<(), PolicyError> {
        let Some(row) = canaries::running(&self.state).await? else { return Ok(()) };
        let Some(stored) = policies::by_serial(&self.state, row.serial).await? else { return Ok(()) };
        let loaded = load(stored).map_err(|problems| PolicyError::Faults(problems.join("\n")))?;
        let canary = Canary::new(Arc::new(loaded), row.plan);
        let mut from = row.log_from;
        loop {
            let page = self.recorder.reader().range(&Filter::default(), from, u64::MAX, PAGE).await?;
            let Some(last) = page.last() else { break };
            from = last.index + 1;
            let decisions = page.iter().filter_map(|entry| Record::from_bytes(&entry.record).ok()?.decision);
            // The gateway's own changes of policy name versions, too.
            for decision in decisions.filter(|d| d.policy == row.version && d.action != "push_policy") {
                canary.decisions.fetch_add(1, Ordering::Relaxed);
                if matches!(decision.outcome, Outcome::Blocked | Outcome::Killed) {
                    canary.denials.fetch_add(1, Ordering::Relaxed);
                }
            }
        }
        self.stand(|standing| standing.canary = Some(Arc::new(canary)));
        Ok(())
    }

    /// What must become of the canary now: promoted or not, and why. None: it goes on.
    fn verdict(&self, authorizer: &Authorizer, now_ms: i64) -> Option<(bool, String)> {
        let canary = self.standing().canary?;
        if let Some(excess) = canary.excess() {
            return Some((false, excess));
        }
        let stored = &canary.in_force.stored;
        let sensors = authorizer.sensor_registry();
        let hosts = || sensors.known_hosts().into_iter().filter(|host| canary.covers_host(host));
        let refusal = hosts().find_map(|host| Some((sensors.policy_refusal(&host, stored.serial)?, host)));
        if let Some((error, host)) = refusal {
            return Some((false, format!("{host} cannot put it into force: {error}")));
        }
        if now_ms < canary.plan.until_ms {
            return None;
        }
        let tried =
            hosts().any(|host| sensors.facts(&host).is_some_and(|f| f.enforced.canary == stored.version));
        let (denials, decisions) = canary.counts();
        Some(match tried {
            true => {
                (true, format!("its time is over, with {denials} denials of {decisions} decisions under it"))
            }
            false => (false, "its time is over, and no host has put it into force".to_owned()),
        })
    }
}

/// Ends canaries when it is time, until `shutdown`.
pub(crate) async fn watch(authorizer: Authorizer, shutdown: CancellationToken) {
    let policies = authorizer.policies().clone();
    loop {
        tokio::select! {
            () = policies.wake.notified() => {}
            () = tokio::time::sleep(LOOK) => {}
            () = shutdown.cancelled() => return,
        }
        let Some((promote, why)) = policies.verdict(&authorizer, now_ms()) else { continue };
        tracing::warn!(promote, why, "the canary ends");
        if let Err(err) = policies.end_canary(promote, &why, None, &authorizer).await {
            tracing::error!(err = %crate::chain(&err), "the canary cannot be ended; trying again");
            tokio::time::sleep(LOOK).await;
        }
    }
}

/// A plan in words, for people and records.
pub(super) fn describe(plan: &Plan) -> String {
    let share = match plan.share {
        WHOLE => "all sessions".to_owned(),
        share if share % 10 == 0 => format!("{} % of sessions", share / 10),
        share => format!("{}.{} % of sessions", share / 10, share % 10),
    };
    let hosts = if plan.hosts.is_empty() { "all hosts".to_owned() } else { plan.hosts.join(", ") };
    format!("{share} on {hosts}")
}

/// What is wanted, with every name known and every number sensible.
fn plan(wanted: &Wanted, candidate: &InForce, joined: &[String], now_ms: i64) -> Result<Plan, String> {
    let mut hosts = Vec::new();
    for name in &wanted.hosts {
        if joined.contains(name) || candidate.policy.hosts().contains(name) {
            hosts.push(name.clone());
        } else if let Some(members) = candidate.policy.hosts_in(name) {
            hosts.extend(members);
        } else {
            return Err(format!(
                "`{name}` is no host that has joined, and no host or host group of the bundle"
            ));
        }
    }
    hosts.sort_unstable();
    hosts.dedup();
    if hosts.is_empty() && !wanted.hosts.is_empty() {
        return Err(format!("there is no host in {}", wanted.hosts.join(", ")));
    }
    let share = if wanted.share == 0 { u32::from(WHOLE) } else { wanted.share };
    let share =
        u16::try_from(share).ok().filter(|share| *share <= WHOLE).ok_or("a share is 100 % at most")?;
    if hosts.is_empty() && share == WHOLE {
        return Err(
            "a canary is for some hosts or for a share of sessions; for everything, push it".to_owned()
        );
    }
    let lasts = wanted.lasts.unwrap_or(LASTS);
    if lasts > LONGEST {
        return Err(format!("a canary lasts {} days at most", LONGEST.as_secs() / 86_400));
    }
    let ratio = Some(wanted.max_denial_ratio).filter(|ratio| *ratio > 0);
    let max_denials = wanted.max_denials.or(ratio.is_none().then_some(DENIALS));
    let until_ms = now_ms.saturating_add(i64::try_from(lasts.as_millis()).unwrap_or(i64::MAX));
    Ok(Plan { hosts, share, until_ms, max_denials, max_denial_ratio: ratio })
}
