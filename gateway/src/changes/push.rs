//! A push: signed as it must be, permitted by the policy in force, and then in force, or proposed.

use super::{Caller, Came, Changes, Note, Proposal, Refused, RefusedKind, table};
use crate::authorize::{Change, GatewayAction};
use crate::policy::{MAX_ARCHIVE, PushNote, Pushed, short};
use crate::state::policies::{self, Stored};
use sallyport_policy::{Bundle, Policy};

/// The longest author and message, in characters.
const MAX_TEXT: usize = 500;

/// What is pushed.
#[derive(Clone, Debug, Default)]
pub struct Push {
    /// The bundle's archive.
    pub archive: Vec<u8>,
    /// Git commit, as whoever pushes says.
    pub commit: String,
    /// Who wrote it, as whoever pushes says.
    pub author: String,
    /// Why.
    pub message: String,
    /// Signed statements.
    pub signatures: Vec<String>,
    /// Only if the version in force begins so; empty: whatever is in force.
    pub expect: String,
}

/// A push that may come into force.
pub(super) struct Admitted {
    pub(super) archive: Vec<u8>,
    pub(super) version: String,
    pub(super) note: PushNote,
    pub(super) change: Change,
    /// It lacks another person's approval.
    pub(super) waits: bool,
    pub(super) statements: Vec<(u64, String)>,
}

/// What a push led to.
#[derive(Debug)]
pub enum Outcome {
    /// It is in force, or has problems and changed nothing.
    Done(Pushed),
    /// It waits for another person.
    Waits(Box<Proposal>),
}

impl Changes {
    /// Puts a version into force or proposes it. Every attempt is on the record.
    ///
    /// # Errors
    /// It may not, or could not be done. What was in force stays in force.
    pub async fn push(&self, caller: &Caller, push: Push) -> Result<Outcome, Refused> {
        let _one_at_a_time = self.inner.changing.lock().await;
        self.expire().await?;
        match self.try_push(caller, push).await {
            Ok(outcome) => Ok(outcome),
            Err(refused) => Err(self.refused(caller, "push_policy", refused).await),
        }
    }

    async fn try_push(&self, caller: &Caller, push: Push) -> Result<Outcome, Refused> {
        let policies = self.inner.authorizer.policies();
        let admitted = match self.admit(caller, push).await? {
            Ok(admitted) => admitted,
            Err(faulty) => return Ok(Outcome::Done(faulty)),
        };
        let Admitted { archive, version, note, change, waits, statements } = admitted;
        if version == policies.version() {
            return self.unchanged(caller, version).await;
        }
        policies.stands(&note.expect)?;
        if waits {
            let bundle = Bundle::from_archive(&archive)
                .map_err(|err| Refused::new(RefusedKind::Malformed, crate::chain(&err)))?;
            let problems = tokio::task::spawn_blocking(move || problems_of(&bundle)).await;
            let problems = problems.unwrap_or_else(|_| vec!["the check of this policy failed".to_owned()]);
            if !problems.is_empty() {
                return self.problems(caller, problems).await.map(Outcome::Done);
            }
            let signatures = note.signatures.clone();
            let proposal = self.propose(caller, (version, archive), note, (change, signatures)).await?;
            return Ok(Outcome::Waits(Box::new(proposal)));
        }
        table::keep_statements(&self.inner.state, &version, statements).await?;
        Ok(Outcome::Done(policies.push(archive, note, &caller.identity, &self.inner.authorizer).await?))
    }

    /// Checks signatures and asks policy. The inner error is the answer to what is no bundle, which is on record.
    pub(super) async fn admit(
        &self,
        caller: &Caller,
        push: Push,
    ) -> Result<Result<Admitted, Pushed>, Refused> {
        let cut = |text: &str| text.chars().take(MAX_TEXT).collect::<String>();
        let Push { archive, commit, author, message, signatures, expect } = push;
        if archive.len() > MAX_ARCHIVE {
            let problem = format!("the bundle has {} bytes, the most is {MAX_ARCHIVE}", archive.len());
            return self.problems(caller, vec![problem]).await.map(Err);
        }
        let bundle = match Bundle::from_archive(&archive) {
            Ok(bundle) => bundle,
            Err(err) => return self.problems(caller, vec![crate::chain(&err)]).await.map(Err),
        };
        let version = bundle.version();
        let signed = self.signed(&version, &signatures).await?;
        let commit = commit_of(caller, cut(&commit), signed.commit.clone())?;
        let change = Change { commit: commit.clone(), signed_by: signed.by.clone(), ..caller.change.clone() };
        let waits = self.must_wait(caller, &change)?;
        let note = PushNote { commit, author: cut(&author), message: cut(&message), signatures, expect };
        Ok(Ok(Admitted { archive, version, note, change, waits, statements: signed.statements }))
    }

    /// Whether the push, which policy permits, lacks another person's approval.
    ///
    /// # Errors
    /// Policy does not permit it, not even approved.
    pub(super) fn must_wait(&self, caller: &Caller, change: &Change) -> Result<bool, Refused> {
        let may = |approvals| {
            let change = Change { approvals, ..change.clone() };
            self.inner.authorizer.change_action(&caller.identity, GatewayAction::PushPolicy, &change)
        };
        match may(0) {
            Ok(()) => Ok(self.inner.rules.two_person),
            Err(_) if may(1).is_ok() => Ok(true),
            Err(refusal) => Err(refusal.into()),
        }
    }

    /// Refuses a bundle for what is wrong with it.
    async fn problems(&self, caller: &Caller, problems: Vec<String>) -> Result<Pushed, Refused> {
        let previous = self.inner.authorizer.policies().version();
        let message = format!("push refused: {}", problems.join("; "));
        let note = Note {
            action: "push_policy",
            came: Came::Blocked,
            version: &previous,
            rule: "",
            message: &message,
        };
        self.record(Some(&caller.identity), Some(caller.client), note).await?;
        Ok(Pushed { previous, problems, ..Pushed::default() })
    }

    /// The version is in force: nothing is done, however often it is pushed.
    async fn unchanged(&self, caller: &Caller, version: String) -> Result<Outcome, Refused> {
        let message = format!("policy {} was pushed again; it is in force already", short(&version));
        let note = Note {
            action: "push_policy",
            came: Came::Allowed,
            version: &version,
            rule: "",
            message: &message,
        };
        self.record(Some(&caller.identity), Some(caller.client), note).await?;
        let authorizer = &self.inner.authorizer;
        let hosts = authorizer.sensor_registry().connected_hosts();
        let sensors = hosts.iter().map(|host| authorizer.sensor_policy(host)).collect();
        let serial = authorizer.policies().current().map_or(0, |current| current.stored.serial);
        let previous = version.clone();
        Ok(Outcome::Done(Pushed { version, previous, serial, unchanged: true, sensors, ..Pushed::default() }))
    }

    /// A version (empty: the one in force; or its first digits), or one that waits for approval; with the statements that came with it.
    ///
    /// # Errors
    /// There is none, or the caller may neither push, approve nor read evidence.
    pub async fn version(&self, caller: &Caller, version: &str) -> Result<(Stored, Vec<String>), Refused> {
        self.may_see(caller)?;
        let state = &self.inner.state;
        let stored = if version.is_empty() {
            policies::in_force(state).await?
        } else {
            match self.inner.authorizer.policies().resolve(version).await {
                Ok(version) => policies::by_version(state, &version).await?,
                // It may be one that waits.
                Err(_) if version.len() == 64 => None,
                Err(err) => return Err(err.into()),
            }
        };
        if let Some(stored) = stored {
            let statements = table::statements(state, &stored.version).await?;
            return Ok((stored, statements));
        }
        let proposal = table::pending_of(state, version).await?;
        let proposal = proposal.ok_or_else(|| {
            let text = "there is no such policy version here, neither in force before nor proposed";
            Refused::new(RefusedKind::NotFound, text)
        })?;
        let stored = Stored {
            version: proposal.version,
            commit: proposal.change.commit,
            author: proposal.author,
            message: proposal.message,
            pushed_ms: proposal.proposed_ms,
            pushed_by: proposal.identity.user,
            archive: proposal.archive.into(),
            ..Stored::default()
        };
        Ok((stored, proposal.signatures))
    }

    /// Whoever may push or approve must see what is there; whoever reads evidence must see what it was judged by.
    pub(crate) fn may_see(&self, caller: &Caller) -> Result<(), Refused> {
        let Caller { identity, change, .. } = caller;
        let asked = |action, approvals| {
            let change = Change { approvals, ..change.clone() };
            self.inner.authorizer.change_action(identity, action, &change)
        };
        let push = asked(GatewayAction::PushPolicy, 0).or_else(|_| asked(GatewayAction::PushPolicy, 1));
        let others = push
            .or_else(|_| asked(GatewayAction::ApprovePolicy, 0))
            .or_else(|_| asked(GatewayAction::ReadEvidence, 0));
        others.map_err(Refused::from)
    }
}

/// The commit that goes on the record: what whoever pushes says, or else the job's, or else what was signed.
fn commit_of(caller: &Caller, said: String, signed: Option<String>) -> Result<String, Refused> {
    let job = &caller.commit;
    if !said.is_empty() && !job.is_empty() && said.strip_suffix("-dirty").unwrap_or(&said) != job {
        let text =
            format!("the job runs for commit {job}, but the push says {said}; push what the job checked out");
        return Err(Refused::new(RefusedKind::Malformed, text));
    }
    let first = [said, job.clone()].into_iter().find(|commit| !commit.is_empty());
    Ok(first.or(signed).unwrap_or_default())
}

/// What is wrong with a bundle, as far as that does not depend on the sessions that run.
fn problems_of(bundle: &Bundle) -> Vec<String> {
    let faults = match Policy::load(bundle) {
        Ok(policy) => policy.try_out().err(),
        Err(faults) => Some(faults),
    };
    faults.map(|faults| faults.faults.iter().map(ToString::to_string).collect()).unwrap_or_default()
}
