//! The two-person rule: what one has proposed, another must approve before it comes into force.

use super::{Caller, Came, Changes, Note, Proposal, Refused, RefusedKind, table};
use crate::authorize::{Change, GatewayAction};
use crate::policy::{PushNote, Pushed, short};
use crate::state::now_ms;
use sallyport_evidence::record::Identity;

/// More than these wait at no sane gateway: each keeps its bundle.
const MOST: usize = 100;

impl Changes {
    /// Keeps a version until somebody approves it. One that waits already goes on waiting.
    pub(super) async fn propose(
        &self,
        caller: &Caller,
        (version, archive): (String, Vec<u8>),
        note: PushNote,
        (change, signatures): (Change, Vec<String>),
    ) -> Result<Proposal, Refused> {
        let state = &self.inner.state;
        if let Some(waiting) = table::pending_of(state, &version).await? {
            return Ok(waiting);
        }
        if table::pending(state).await?.len() >= MOST {
            let text = format!("{MOST} proposals wait already; have some approved or rejected first");
            return Err(Refused::new(RefusedKind::Conflict, text));
        }
        let base = self.inner.authorizer.policies().version();
        let ttl = i64::try_from(self.inner.rules.proposal_ttl.as_millis()).unwrap_or(i64::MAX);
        let proposed_ms = now_ms();
        let what = format!(
            "policy {} is proposed in place of {}: {}; it waits for another person's approval",
            short(&version),
            short(&base),
            note.message
        );
        let recorded = Note {
            action: "propose_policy",
            came: Came::Allowed,
            version: &version,
            rule: "",
            message: &what,
        };
        self.record(Some(&caller.identity), Some(caller.client), recorded).await?;
        let proposal = Proposal {
            id: 0,
            version,
            base,
            identity: caller.identity.clone(),
            change,
            author: note.author,
            message: note.message,
            signatures,
            archive,
            proposed_ms,
            expires_ms: proposed_ms.saturating_add(ttl),
        };
        table::propose(state, proposal.clone()).await?;
        Ok(proposal)
    }

    /// What waits, oldest first.
    ///
    /// # Errors
    /// The caller may neither push, approve nor read evidence.
    pub async fn proposals(&self, caller: &Caller) -> Result<Vec<Proposal>, Refused> {
        self.may_see(caller)?;
        self.expire().await?;
        Ok(table::pending(&self.inner.state).await?)
    }

    /// Approves a proposal and puts it into force.
    ///
    /// # Errors
    /// It may not be approved by this person, or not any more; then nothing is changed.
    pub async fn approve(&self, caller: &Caller, version: &str, reason: &str) -> Result<Pushed, Refused> {
        let _one_at_a_time = self.inner.changing.lock().await;
        self.expire().await?;
        match self.try_approve(caller, version, reason).await {
            Ok(pushed) => Ok(pushed),
            Err(refused) => Err(self.refused(caller, "approve_policy", refused).await),
        }
    }

    async fn try_approve(&self, caller: &Caller, version: &str, reason: &str) -> Result<Pushed, Refused> {
        let (state, authorizer) = (&self.inner.state, &self.inner.authorizer);
        let proposal = self.waiting(version).await?;
        self.may_settle(caller, &proposal)?;
        another_person(&caller.identity, &proposal)?;
        let policies = authorizer.policies();
        if policies.version() != proposal.base {
            table::settle(state, proposal.id, "superseded").await?;
            let text = format!(
                "it was proposed in place of {}, but {} is in force now; whoever proposed it must look at that and push again",
                short(&proposal.base),
                short(&policies.version())
            );
            return Err(Refused::new(RefusedKind::Conflict, text));
        }
        // Keys, policy and newer statements may have come in between.
        let signed = self.signed(version, &proposal.signatures).await?;
        let change = Change { approvals: 1, signed_by: signed.by, ..proposal.change.clone() };
        authorizer.change_action(&proposal.identity, GatewayAction::PushPolicy, &change)?;
        let what = format!(
            "policy {}, proposed by {}, is approved: {}",
            short(version),
            proposal.identity.user,
            if reason.is_empty() { "no reason given" } else { reason }
        );
        let note = Note { action: "approve_policy", came: Came::Allowed, version, rule: "", message: &what };
        self.record(Some(&caller.identity), Some(caller.client), note).await?;
        table::keep_statements(state, version, signed.statements).await?;
        let note = PushNote {
            commit: proposal.change.commit.clone(),
            author: proposal.author.clone(),
            message: format!("{} (approved by {})", proposal.message, caller.identity.user),
            signatures: proposal.signatures.clone(),
            expect: proposal.base.clone(),
        };
        let pushed = policies.push(proposal.archive, note, &proposal.identity, authorizer).await?;
        if pushed.problems.is_empty() {
            table::settle(state, proposal.id, "approved").await?;
        }
        Ok(pushed)
    }

    /// Rejects a proposal, or withdraws one's own.
    ///
    /// # Errors
    /// There is none, or it is somebody else's and policy does not permit `approve_policy`.
    pub async fn reject(&self, caller: &Caller, version: &str, reason: &str) -> Result<(), Refused> {
        let _one_at_a_time = self.inner.changing.lock().await;
        self.expire().await?;
        match self.try_reject(caller, version, reason).await {
            Ok(()) => Ok(()),
            Err(refused) => Err(self.refused(caller, "approve_policy", refused).await),
        }
    }

    async fn try_reject(&self, caller: &Caller, version: &str, reason: &str) -> Result<(), Refused> {
        let proposal = self.waiting(version).await?;
        let own = caller.identity.user == proposal.identity.user
            && caller.identity.issuer == proposal.identity.issuer;
        if !own {
            self.may_settle(caller, &proposal)?;
        }
        let what = format!(
            "policy {}, proposed by {}, is {}: {}",
            short(version),
            proposal.identity.user,
            if own { "withdrawn" } else { "rejected" },
            if reason.is_empty() { "no reason given" } else { reason }
        );
        let note = Note { action: "approve_policy", came: Came::Blocked, version, rule: "", message: &what };
        self.record(Some(&caller.identity), Some(caller.client), note).await?;
        table::settle(&self.inner.state, proposal.id, "rejected").await?;
        Ok(())
    }

    async fn waiting(&self, version: &str) -> Result<Proposal, Refused> {
        let proposal = table::pending_of(&self.inner.state, version).await?;
        proposal.ok_or_else(|| {
            let text = format!(
                "no proposal of version {} waits; it may have been settled, or have expired: `sallyport policy proposals`",
                short(version)
            );
            Refused::new(RefusedKind::NotFound, text)
        })
    }

    fn may_settle(&self, caller: &Caller, proposal: &Proposal) -> Result<(), Refused> {
        let proposed_by = Some(proposal.identity.user.clone());
        let change = Change { proposed_by, ..proposal.change.clone() };
        Ok(self.inner.authorizer.change_action(&caller.identity, GatewayAction::ApprovePolicy, &change)?)
    }

    /// Settles, on the record, what nobody approved in time.
    pub(crate) async fn expire(&self) -> Result<(), Refused> {
        let now = now_ms();
        for proposal in table::pending(&self.inner.state).await? {
            if proposal.expires_ms > now || !table::settle(&self.inner.state, proposal.id, "expired").await? {
                continue;
            }
            let version = &proposal.version;
            let what =
                format!("the proposal of policy {} expired: nobody approved it in time", short(version));
            let note =
                Note { action: "approve_policy", came: Came::Blocked, version, rule: "", message: &what };
            self.record(Some(&proposal.identity), None, note).await?;
        }
        Ok(())
    }
}

/// Whether this is another person than those who brought the change.
///
/// Git's author is what whoever pushed says, and a CI system's login is compared as it is (with what is before the `@` of
/// an e-mail address, too): where people have other names there, `[[ci]] actors` tells.
fn another_person(approver: &Identity, proposal: &Proposal) -> Result<(), Refused> {
    let refuse = |text: String| Err(Refused::new(RefusedKind::Denied, text));
    if approver.kind != "human" {
        return refuse(format!(
            "{} is no person (but `{}`); a person must approve",
            approver.user, approver.kind
        ));
    }
    let Proposal { identity, author, change, .. } = proposal;
    if is(approver, &identity.user) {
        return refuse("you proposed this version yourself; another person must approve it".to_owned());
    }
    let actor = change.actor.as_deref().unwrap_or_default();
    if is(approver, &identity.on_behalf_of) || is(approver, actor) {
        return refuse(format!(
            "you started the job that proposed this version ({}); another person must approve it",
            identity.user
        ));
    }
    let address = author.rsplit_once('<').map_or(author.as_str(), |(_, rest)| rest.trim_end_matches('>'));
    if is(approver, address) {
        return refuse(
            "you wrote this version, by its Git commit; another person must approve it".to_owned(),
        );
    }
    Ok(())
}

fn is(person: &Identity, name: &str) -> bool {
    let name = name.trim();
    if name.is_empty() {
        return false;
    }
    let login = person.user.split('@').next().unwrap_or_default();
    [person.user.as_str(), login, &person.subject].iter().any(|known| known.eq_ignore_ascii_case(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_approves_their_own() {
        let person =
            |user: &str, kind: &str| Identity { user: user.into(), kind: kind.into(), ..Identity::default() };
        let proposal = |author: &str, actor: &str| Proposal {
            id: 1,
            version: "v".into(),
            base: "b".into(),
            identity: Identity {
                on_behalf_of: actor.into(),
                ..person("github:acme/policies@refs/heads/main", "ci")
            },
            change: Change { actor: Some("octocat".into()), ..Change::default() },
            author: author.into(),
            message: String::new(),
            signatures: Vec::new(),
            archive: Vec::new(),
            proposed_ms: 0,
            expires_ms: 0,
        };
        let plain = proposal("Ann <ann@example.org>", "bob@example.org");
        for (user, kind, fine) in [
            ("sam@example.org", "human", true),
            ("sam@example.org", "agent", false),
            ("sam@example.org", "ci", false),
            ("bob@example.org", "human", false),
            ("Bob@Example.org", "human", false),
            ("octocat@example.org", "human", false),
            ("ann@example.org", "human", false),
            ("github:acme/policies@refs/heads/main", "human", false),
        ] {
            assert_eq!(another_person(&person(user, kind), &plain).is_ok(), fine, "{user} {kind}");
        }
        assert!(another_person(&person("sam@example.org", "human"), &proposal("", "")).is_ok());
    }
}
