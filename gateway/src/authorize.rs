//! The only place that mints sessions: Cedar is asked, the answer is on the record, and only then an
//! [`AuthorizedSession`] exists.

mod outcome;
mod session;

pub use outcome::{EndReason, Refusal, RefusalKind, SignInAttempt, TargetInfo};
pub use session::AuthorizedSession;

use crate::policy::{Enforced, InForce, PolicyStore, drift, short};
use crate::recorder::{AppendError, Recorder, draft};
use crate::sensors::registry::Sensors;
use crate::sessions::{LiveSession, Sessions, principal};
use crate::state::{self, State};
use outcome::{policy_refusal, unrecorded};
use sallyport_contract::v1::{EndSession, SensorPolicy, gateway_order::Order};
use sallyport_evidence::record::{Decision, Identity, Kind, Outcome, Record, Session};
use sallyport_policy::{Answer, Question, RuleInfo};
pub use sallyport_policy::{Change, GatewayAction};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

/// Asks policy and mints sessions. Cheap to clone.
#[derive(Clone)]
pub struct Authorizer {
    inner: Arc<Inner>,
}

struct Inner {
    policies: PolicyStore,
    sensors: Sensors,
    sessions: Sessions,
    recorder: Recorder,
    state: State,
    session_limit: Duration,
}

impl Authorizer {
    pub(crate) fn new(
        policies: PolicyStore,
        sensors: Sensors,
        sessions: Sessions,
        recorder: Recorder,
        state: State,
        session_limit: Duration,
    ) -> Self {
        Self { inner: Arc::new(Inner { policies, sensors, sessions, recorder, state, session_limit }) }
    }

    /// Asks policy whether `identity` may be `local_user` on `host` (with none: resolves the only one
    /// permitted), and records the answer durably before returning it.
    ///
    /// # Errors
    /// Not permitted, not connected, or not recordable.
    pub async fn open_session(
        &self,
        identity: &Identity,
        host: &str,
        local_user: Option<&str>,
        client: SocketAddr,
    ) -> Result<AuthorizedSession, Refusal> {
        // The id first: whether a canary judges the session depends on it.
        let id = LiveSession::new_id();
        let current = self.inner.policies.for_session(host, &id);
        let request = Request { identity, host, client, current: current.as_deref() };
        let local_user = match local_user {
            Some(user) => user.to_owned(),
            None => match self.only_local_user(&request) {
                Ok(user) => user,
                Err(refusal) => return Err(self.refused(&request, "", None, refusal).await),
            },
        };
        let Some(current) = request.current else {
            let message =
                "no policy is installed on this gateway, so nothing is permitted; tell whoever runs it";
            let refusal = Refusal { kind: RefusalKind::Policy, message: message.to_owned() };
            return Err(self.refused(&request, &local_user, None, refusal).await);
        };
        let question = Question::OpenSession {
            principal: principal(identity),
            host: host.to_owned(),
            local_user: local_user.clone(),
            client_address: client.ip(),
        };
        let answer = current.policy.decide(&question);
        let version = current.stored.version.as_str();
        if !answer.allowed {
            let what = format!("{} may not open a session on {host} as {local_user}", identity.user);
            let refusal = policy_refusal(&what, answer.rule.as_ref(), version);
            return Err(self.refused(&request, &local_user, Some(&answer), refusal).await);
        }
        if !self.inner.sensors.is_connected(host) {
            let message = format!(
                "{host} is not connected to the gateway; its sensor may be down or cut off. Try again, or ask whoever runs {host}"
            );
            let refusal = Refusal { kind: RefusalKind::Offline, message };
            return Err(self.refused(&request, &local_user, None, refusal).await);
        }
        let limit = answer.session_limit.unwrap_or(self.inner.session_limit).min(self.inner.session_limit);
        let expires_at = SystemTime::now() + limit;
        let live =
            Arc::new(LiveSession::new(id, identity.clone(), host, &local_user, client, expires_at, version));
        self.admit(live, &answer).await
    }

    /// Writes an allowed session down, durably, and only then makes it.
    async fn admit(&self, live: Arc<LiveSession>, answer: &Answer) -> Result<AuthorizedSession, Refusal> {
        let row = state::sessions::SessionRow {
            id: live.id.clone(),
            identity: live.identity.clone(),
            host: live.host.clone(),
            local_user: live.local_user.clone(),
            client: live.client.to_string(),
            policy_version: live.opened_under.clone(),
            started_ms: state::now_ms(),
            ended_ms: None,
            end_reason: String::new(),
        };
        // The row first: a crash in between leaves a close without an open, never an open without a close.
        state::sessions::open(&self.inner.state, row).await.map_err(|err| unrecorded(&err))?;
        let outcome = if answer.observed.is_some() { Outcome::Observed } else { Outcome::Allowed };
        let rule = answer.observed.as_ref().or(answer.rule.as_ref());
        let mut record = draft(Kind::SessionOpen);
        record.host = Some(live.host.clone());
        record.identity = Some(live.identity.clone());
        record.session = Some(live.record_part(""));
        record.decision = Some(decision("open_session", outcome, &live.opened_under, rule));
        if let Err(err) = self.inner.recorder.append(record).await {
            if let Err(err) = state::sessions::forget(&self.inner.state, &live.id).await {
                tracing::warn!(%err, "cannot forget a session that never was");
            }
            return Err(unrecorded(&err));
        }
        self.inner.policies.count(&live.opened_under, false);
        self.inner.sessions.add(live.clone());
        // A push in between was judged without this session: judge it again.
        if let Some(current) = self.inner.policies.for_session(&live.host, &live.id)
            && current.stored.version != live.opened_under
            && !current.policy.decide(&live.question()).allowed
        {
            live.end(EndReason::PolicyChanged { version: short(&current.stored.version).to_owned() });
        }
        let session = AuthorizedSession { live: live.clone(), authorizer: self.clone(), closed: false };
        tokio::spawn(session::end_in_time(self.clone(), live));
        Ok(session)
    }

    /// The hosts and local users that `identity` may reach.
    #[must_use]
    pub fn targets(&self, identity: &Identity) -> Vec<TargetInfo> {
        let Some(current) = self.inner.policies.current() else { return Vec::new() };
        let principal = principal(identity);
        let mut hosts = current.policy.hosts();
        hosts.extend(self.inner.sensors.known_hosts());
        hosts.sort_unstable();
        hosts.dedup();
        let target = |host: String| {
            let local_users = current.policy.local_users(&principal, &host);
            if local_users.is_empty() {
                return None;
            }
            let SensorPolicy { drift, .. } = self.sensor_policy(&host);
            let facts = self.inner.sensors.facts(&host).unwrap_or_default();
            Some(TargetInfo {
                host,
                local_users,
                connected: facts.connected,
                mode: facts.mode,
                kernel: facts.kernel,
                policy_version: facts.enforced.version,
                policy_trouble: drift,
            })
        };
        hosts.into_iter().filter_map(target).collect()
    }

    /// What a host's sensor enforces, and how that differs from what it should.
    pub(crate) fn sensor_policy(&self, host: &str) -> SensorPolicy {
        let facts = self.inner.sensors.facts(host).unwrap_or_default();
        let has = facts.heard.then_some(&facts.enforced);
        let error = facts.policy_error().to_owned();
        let drift = drift(&self.inner.policies.wanted(host), has, facts.connected, &error);
        let serial = facts.policy_serial();
        let Enforced { version, canary } = facts.enforced;
        let (host, connected) = (host.to_owned(), facts.connected);
        SensorPolicy { host, version, error, serial, canary_version: canary, connected, drift }
    }

    /// May `identity` do `action` on the gateway?
    ///
    /// # Errors
    /// Policy does not permit it.
    pub fn gateway_action(&self, identity: &Identity, action: GatewayAction) -> Result<(), Refusal> {
        self.change_action(identity, action, &Change::default())
    }

    /// May `identity` do `action` with this change of policy?
    ///
    /// # Errors
    /// Policy does not permit it.
    pub fn change_action(
        &self,
        identity: &Identity,
        action: GatewayAction,
        change: &Change,
    ) -> Result<(), Refusal> {
        let Some(current) = self.inner.policies.current() else {
            let message = "no policy is installed on this gateway, so nothing is permitted".to_owned();
            return Err(Refusal { kind: RefusalKind::Policy, message });
        };
        let principal = principal(identity);
        let answer = current.policy.decide(&Question::Gateway { principal, action, change: change.clone() });
        if answer.allowed {
            return Ok(());
        }
        let what = format!("{} may not {}", identity.user, action.name().replace('_', " "));
        Err(policy_refusal(&what, answer.rule.as_ref(), &current.stored.version))
    }

    /// Records a sign-in or a failed one; durable on return.
    ///
    /// # Errors
    /// It cannot be recorded: treat the sign-in as failed.
    pub async fn sign_in_record(&self, attempt: SignInAttempt<'_>) -> Result<(), Refusal> {
        let mut record = draft(Kind::SignIn);
        record.identity = attempt.identity.cloned();
        record.session = Some(Session { client: attempt.client.to_string(), ..Session::default() });
        let outcome = if attempt.failure.is_some() { Outcome::Blocked } else { Outcome::Allowed };
        let mut decided = decision("sign_in", outcome, "", None);
        decided.reason = attempt.failure.unwrap_or_default().chars().take(1000).collect();
        record.decision = Some(decided);
        record.message = Some(format!("by {}", attempt.method));
        self.inner.recorder.append(record).await.map(drop).map_err(|err| unrecorded(&err))
    }

    /// Records something else that the gateway did or refused; durable on return.
    ///
    /// # Errors
    /// It is not on the record.
    pub async fn record(&self, record: Record) -> Result<u64, AppendError> {
        self.inner.recorder.append(record).await
    }

    /// Verifier key of the evidence log, to pin.
    #[must_use]
    pub fn log_key(&self) -> &str {
        self.inner.recorder.key()
    }

    /// Reads the evidence log.
    #[must_use]
    pub fn log_reader(&self) -> &crate::recorder::reader::Reader {
        self.inner.recorder.reader()
    }

    pub(crate) fn policies(&self) -> &PolicyStore {
        &self.inner.policies
    }
    pub(crate) fn sensor_registry(&self) -> &Sensors {
        &self.inner.sensors
    }
    pub(crate) fn recorder(&self) -> &Recorder {
        &self.inner.recorder
    }
    pub(crate) fn state(&self) -> &State {
        &self.inner.state
    }
    pub(crate) fn running(&self) -> Vec<Arc<LiveSession>> {
        self.inner.sessions.all()
    }
    pub(crate) fn find(&self, id: &str) -> Option<Arc<LiveSession>> {
        self.inner.sessions.find(id)
    }

    /// Ends a session everywhere: its owner, its channels, and what runs on the host.
    pub(crate) fn end_session(&self, session: &LiveSession, reason: EndReason) {
        let text = reason.to_string();
        if session.end(reason) {
            let order = Order::EndSession(EndSession { session_id: session.id.clone(), reason: text });
            // Not connected: the sensor itself ends it with the grant, and is told on its next hello.
            self.inner.sensors.order(&session.host, order);
        }
    }

    fn only_local_user(&self, request: &Request<'_>) -> Result<String, Refusal> {
        let Request { identity, host, current, .. } = request;
        let users = current.map(|p| p.policy.local_users(&principal(identity), host)).unwrap_or_default();
        match users.as_slice() {
            [user] => Ok(user.clone()),
            [] => Err(Refusal {
                kind: RefusalKind::Policy,
                message: format!(
                    "{} may not open a session on {host}; `ssh` to the gateway without a host lists what you may reach",
                    identity.user
                ),
            }),
            several => Err(Refusal {
                kind: RefusalKind::Ambiguous,
                message: format!(
                    "say as whom: you may be {} on {host}; write {host}+{}@…",
                    several.join(", "),
                    several[0]
                ),
            }),
        }
    }

    /// Puts a refusal on the record; if that fails, the refusal says so.
    async fn refused(
        &self,
        request: &Request<'_>,
        local_user: &str,
        answer: Option<&Answer>,
        refusal: Refusal,
    ) -> Refusal {
        let version = request.current.map(|p| p.stored.version.clone()).unwrap_or_default();
        if refusal.kind == RefusalKind::Policy {
            self.inner.policies.count(&version, true);
        }
        let mut decided =
            decision("open_session", Outcome::Blocked, &version, answer.and_then(|a| a.rule.as_ref()));
        if decided.reason.is_empty() {
            decided.reason.clone_from(&refusal.message);
        }
        let mut record = draft(Kind::SessionOpen);
        record.host = crate::authority::x509::is_host_name(request.host).then(|| request.host.to_owned());
        record.identity = Some(request.identity.clone());
        let local_user = local_user.chars().take(64).collect();
        record.session =
            Some(Session { local_user, client: request.client.to_string(), ..Session::default() });
        record.decision = Some(decided);
        match self.inner.recorder.append(record).await {
            Ok(_) => refusal,
            Err(err) => unrecorded(&err),
        }
    }
}

struct Request<'a> {
    identity: &'a Identity,
    host: &'a str,
    client: SocketAddr,
    /// The policy that judges it.
    current: Option<&'a InForce>,
}

fn decision(action: &str, outcome: Outcome, policy: &str, rule: Option<&RuleInfo>) -> Decision {
    Decision {
        action: action.to_owned(),
        outcome,
        policy: policy.to_owned(),
        rule: rule.map(|r| r.id.clone()).unwrap_or_default(),
        reason: rule.map(|r| r.reason.clone()).unwrap_or_default(),
        point: "gateway".to_owned(),
    }
}
