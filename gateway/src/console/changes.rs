//! Changes of policy by gRPC: pushing, seeing what is in force, and the two-person rule's proposals.

use super::policy::listed;
use super::{Service, bearer};
use crate::changes::{Caller, Outcome, Proposal, Push, Refused, RefusedKind};
use crate::link::Peer;
use crate::policy::Pushed;
use crate::state::policies::Stored;
use sallyport_contract::v1::{self, *};
use tonic::{Code, Request, Response, Status};

impl Service {
    pub(super) async fn push(
        &self,
        request: Request<PushPolicyRequest>,
    ) -> Result<Response<PushPolicyResponse>, Status> {
        let caller = self.changer(&request).await?;
        Ok(Response::new(match self.changes.push(&caller, pushed(request.into_inner())).await? {
            Outcome::Done(pushed) => answer(pushed),
            Outcome::Waits(proposal) => PushPolicyResponse {
                version: proposal.version,
                previous_version: proposal.base,
                waits_until_ms: proposal.expires_ms,
                ..PushPolicyResponse::default()
            },
        }))
    }

    pub(super) async fn policy(
        &self,
        request: Request<CurrentPolicyRequest>,
    ) -> Result<Response<CurrentPolicyResponse>, Status> {
        let caller = self.changer(&request).await?;
        let (stored, _) = self.changes.version(&caller, &request.get_ref().version).await?;
        let Stored { version, commit, author, pushed_ms, archive, .. } = stored.clone();
        Ok(Response::new(CurrentPolicyResponse {
            in_force: version == self.changes.version_in_force(),
            version,
            commit,
            author,
            pushed_at_ms: pushed_ms,
            archive: archive.to_vec(),
            change: Some(listed(stored)),
        }))
    }

    pub(super) async fn waiting(
        &self,
        request: Request<ListProposalsRequest>,
    ) -> Result<Response<ListProposalsResponse>, Status> {
        let caller = self.changer(&request).await?;
        let proposals = self.changes.proposals(&caller).await?;
        Ok(Response::new(ListProposalsResponse { proposals: proposals.into_iter().map(shown).collect() }))
    }

    pub(super) async fn settle(
        &self,
        request: Request<SettleProposalRequest>,
    ) -> Result<Response<PushPolicyResponse>, Status> {
        let caller = self.changer(&request).await?;
        let SettleProposalRequest { version, approve, reason } = request.into_inner();
        let reason = super::manage::cut(&reason);
        if approve {
            return Ok(Response::new(answer(self.changes.approve(&caller, &version, &reason).await?)));
        }
        self.changes.reject(&caller, &version, &reason).await?;
        let previous_version = self.authorizer.policies().version();
        Ok(Response::new(PushPolicyResponse { version, previous_version, ..PushPolicyResponse::default() }))
    }

    /// Who asks for a change of policy: a person, or a CI job by its token.
    pub(super) async fn changer<T>(&self, request: &Request<T>) -> Result<Caller, Status> {
        let client = request.extensions().get::<Peer>().map(|peer| peer.address);
        let client = client.ok_or_else(|| Status::internal("the connection has no address"))?;
        Ok(self.changes.caller(bearer(request), client).await?)
    }
}

pub(super) fn pushed(request: PushPolicyRequest) -> Push {
    let PushPolicyRequest { archive, commit, author, message, expect_version: expect, signatures } = request;
    Push { archive, commit, author, message, signatures, expect }
}

pub(super) fn answer(pushed: Pushed) -> PushPolicyResponse {
    PushPolicyResponse {
        serial: pushed.serial,
        unchanged: pushed.unchanged,
        version: pushed.version,
        previous_version: pushed.previous,
        problems: pushed.problems,
        sensors: pushed.sensors,
        ..PushPolicyResponse::default()
    }
}

fn shown(proposal: Proposal) -> v1::Proposal {
    let change = proposal.change;
    let from = [change.repository, change.reference, change.environment].into_iter().flatten();
    v1::Proposal {
        version: proposal.version,
        base_version: proposal.base,
        proposed_by: proposal.identity.user,
        on_behalf_of: proposal.identity.on_behalf_of,
        commit: change.commit,
        author: proposal.author,
        message: proposal.message,
        proposed_at_ms: proposal.proposed_ms,
        expires_at_ms: proposal.expires_ms,
        signed_by: change.signed_by,
        from: from.collect::<Vec<_>>().join(", "),
    }
}

impl From<Refused> for Status {
    fn from(refused: Refused) -> Self {
        let code = match refused.kind {
            RefusedKind::Unauthenticated => Code::Unauthenticated,
            RefusedKind::TooMany(_) => Code::ResourceExhausted,
            RefusedKind::Denied => Code::PermissionDenied,
            RefusedKind::Signature | RefusedKind::Malformed => Code::InvalidArgument,
            RefusedKind::Conflict => Code::FailedPrecondition,
            RefusedKind::NotFound => Code::NotFound,
            RefusedKind::Unavailable => Code::Unavailable,
            RefusedKind::Internal => Code::Internal,
        };
        Self::new(code, refused.message)
    }
}
