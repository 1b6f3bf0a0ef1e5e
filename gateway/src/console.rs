//! What the `sallyport` command line asks: the Console service.
//!
//! Everybody may see their own sessions and targets. Everything else is asked of policy, and reading evidence is
//! itself on the record.

mod changes;
mod evidence;
mod manage;
mod policy;

use crate::authority::x509::Authority;
use crate::authorize::{Authorizer, GatewayAction, Refusal, RefusalKind};
use crate::changes::Changes;
use crate::link::Peer;
use crate::link::enrolment::internal;
use crate::recorder::draft;
use crate::state::{State, tokens};
use sallyport_contract::v1::console_server::Console;
use sallyport_contract::v1::*;
use sallyport_evidence::record::{Identity, Kind};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::SystemTime;
use tokio_stream::Stream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};

/// How a person becomes known to the console. `identity` implements it; tests bring their own.
#[tonic::async_trait]
pub trait SignIn: Send + Sync + 'static {
    /// What a client needs to start the OpenID flow.
    fn options(&self) -> SignInOptionsResponse;
    /// Verifies the tokens (issuer, audience, nonce, signature, expiry), writes the sign-in record (also
    /// of a failure), and issues an SSH certificate if a public key was sent.
    async fn sign_in(&self, request: &SignInRequest, client: SocketAddr) -> Result<SignedIn, SignInError>;
}

/// A proved sign-in.
#[derive(Debug)]
pub struct SignedIn {
    /// Who.
    pub identity: Identity,
    /// The end of the bearer token that the console makes for it.
    pub expires_at: SystemTime,
    /// OpenSSH certificate, one line; empty if none was asked for.
    pub ssh_certificate: String,
    /// The CA that signs host keys, OpenSSH one-line form.
    pub ssh_host_ca: String,
}

/// The sign-in failed; the text is shown to the person.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct SignInError(pub String);

/// What ready-made `ssh` commands say.
#[derive(Clone, Debug)]
pub struct SshCommand {
    /// Name or address of the SSH door.
    pub host: String,
    /// Its port.
    pub port: u32,
}

/// The service.
pub struct Service {
    /// For the CA's fingerprint.
    pub authority: Arc<Authority>,
    /// Bearer tokens, sessions, versions.
    pub state: State,
    /// Policy and records.
    pub authorizer: Authorizer,
    /// Changes of policy.
    pub changes: Changes,
    /// How people sign in.
    pub sign_in: Arc<dyn SignIn>,
    /// For ready-made commands.
    pub ssh_command: SshCommand,
    /// Ends what follows the log.
    pub shutdown: CancellationToken,
}

type Down<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl Console for Service {
    type EventsStream = Down<LogEntry>;
    type RecordingStream = Down<RecordingChunk>;
    type LogStream = Down<LogEntry>;

    async fn sign_in_options(
        &self,
        _: Request<SignInOptionsRequest>,
    ) -> Result<Response<SignInOptionsResponse>, Status> {
        Ok(Response::new(self.sign_in.options()))
    }

    async fn sign_in(&self, request: Request<SignInRequest>) -> Result<Response<SignInResponse>, Status> {
        let client = request.extensions().get::<Peer>().map(|peer| peer.address);
        let client = client.ok_or_else(|| Status::internal("the connection has no address"))?;
        let signed = self.sign_in.sign_in(request.get_ref(), client).await;
        let signed = signed.map_err(|err| Status::unauthenticated(err.to_string()))?;
        let token = tokens::create_bearer(&self.state, &signed.identity, signed.expires_at)
            .await
            .map_err(internal)?;
        Ok(Response::new(SignInResponse {
            token: token.secret,
            expires_at_ms: token.expires_ms,
            user: signed.identity.user,
            groups: signed.identity.groups,
            ssh_certificate: signed.ssh_certificate,
            ssh_host_ca: signed.ssh_host_ca,
            log_key: self.authorizer.recorder().key().to_owned(),
        }))
    }

    async fn sign_out(&self, request: Request<SignOutRequest>) -> Result<Response<SignOutResponse>, Status> {
        self.caller(&request).await?;
        if let Some(token) = bearer(&request) {
            tokens::forget_bearer(&self.state, token).await.map_err(internal)?;
        }
        Ok(Response::new(SignOutResponse {}))
    }

    async fn who_am_i(&self, request: Request<WhoAmIRequest>) -> Result<Response<WhoAmIResponse>, Status> {
        let (identity, expires_at_ms) = self.caller(&request).await?;
        let Identity { user, groups, kind, .. } = identity;
        Ok(Response::new(WhoAmIResponse { user, groups, kind, expires_at_ms }))
    }

    async fn list_targets(
        &self,
        request: Request<ListTargetsRequest>,
    ) -> Result<Response<ListTargetsResponse>, Status> {
        let (identity, _) = self.caller(&request).await?;
        let targets = self.authorizer.targets(&identity).into_iter();
        let targets = targets.map(|t| {
            let ssh_command = self.ssh_command.to(&t.host, &t.local_users);
            Target {
                ssh_command,
                host: t.host,
                local_users: t.local_users,
                connected: t.connected,
                mode: t.mode,
                kernel: t.kernel,
                policy_version: t.policy_version,
                policy_trouble: t.policy_trouble,
            }
        });
        Ok(Response::new(ListTargetsResponse { targets: targets.collect() }))
    }

    async fn push_policy(
        &self,
        request: Request<PushPolicyRequest>,
    ) -> Result<Response<PushPolicyResponse>, Status> {
        self.push(request).await
    }
    async fn current_policy(
        &self,
        request: Request<CurrentPolicyRequest>,
    ) -> Result<Response<CurrentPolicyResponse>, Status> {
        self.policy(request).await
    }
    async fn list_proposals(
        &self,
        request: Request<ListProposalsRequest>,
    ) -> Result<Response<ListProposalsResponse>, Status> {
        self.waiting(request).await
    }
    async fn settle_proposal(
        &self,
        request: Request<SettleProposalRequest>,
    ) -> Result<Response<PushPolicyResponse>, Status> {
        self.settle(request).await
    }
    async fn list_policies(
        &self,
        request: Request<ListPoliciesRequest>,
    ) -> Result<Response<ListPoliciesResponse>, Status> {
        self.policies(request).await
    }
    async fn roll_back_policy(
        &self,
        request: Request<RollBackPolicyRequest>,
    ) -> Result<Response<PushPolicyResponse>, Status> {
        self.roll_back(request).await
    }
    async fn start_canary(
        &self,
        request: Request<StartCanaryRequest>,
    ) -> Result<Response<PushPolicyResponse>, Status> {
        self.canary(request).await
    }
    async fn end_canary(
        &self,
        request: Request<EndCanaryRequest>,
    ) -> Result<Response<PushPolicyResponse>, Status> {
        self.canary_end(request).await
    }
    async fn list_sessions(
        &self,
        request: Request<ListSessionsRequest>,
    ) -> Result<Response<ListSessionsResponse>, Status> {
        self.sessions(request).await
    }
    async fn end_session(
        &self,
        request: Request<EndSessionRequest>,
    ) -> Result<Response<EndSessionResponse>, Status> {
        self.end(request).await
    }
    async fn events(&self, request: Request<EventsRequest>) -> Result<Response<Self::EventsStream>, Status> {
        self.search(request).await
    }
    async fn recording(
        &self,
        request: Request<RecordingRequest>,
    ) -> Result<Response<Self::RecordingStream>, Status> {
        self.replay(request).await
    }
    async fn log(&self, request: Request<LogRequest>) -> Result<Response<Self::LogStream>, Status> {
        self.whole_log(request).await
    }
    async fn checkpoint(
        &self,
        request: Request<CheckpointRequest>,
    ) -> Result<Response<CheckpointResponse>, Status> {
        self.caller(&request).await?;
        let note = self.authorizer.recorder().reader().checkpoint().await.map_err(internal)?;
        let note = note.ok_or_else(|| Status::unavailable("no checkpoint was signed yet; try again"))?;
        Ok(Response::new(CheckpointResponse { note, log_key: self.authorizer.recorder().key().to_owned() }))
    }
    async fn create_join_token(
        &self,
        request: Request<CreateJoinTokenRequest>,
    ) -> Result<Response<CreateJoinTokenResponse>, Status> {
        self.join_token(request).await
    }
    async fn revoke_sensor(
        &self,
        request: Request<RevokeSensorRequest>,
    ) -> Result<Response<RevokeSensorResponse>, Status> {
        self.revoke(request).await
    }
}

impl Service {
    /// Who asks, and the end of their token.
    async fn caller<T>(&self, request: &Request<T>) -> Result<(Identity, i64), Status> {
        let token =
            bearer(request).ok_or_else(|| Status::unauthenticated("sign in first: sallyport login"))?;
        let known = tokens::bearer(&self.state, token).await.map_err(internal)?;
        known.ok_or_else(|| Status::unauthenticated("the sign-in is over; sign in again: sallyport login"))
    }

    /// Who asks, if policy lets them do `action`. Refusals are on the record.
    async fn caller_for<T>(&self, request: &Request<T>, action: GatewayAction) -> Result<Identity, Status> {
        let (identity, _) = self.caller(request).await?;
        match self.authorizer.gateway_action(&identity, action) {
            Ok(()) => Ok(identity),
            Err(refusal) => {
                self.note(&identity, None, &format!("refused: {refusal}")).await?;
                Err(denied(refusal))
            }
        }
    }

    /// Puts an access on the record, before it happens.
    async fn note(&self, by: &Identity, host: Option<&str>, message: &str) -> Result<(), Status> {
        let mut record = draft(Kind::Access);
        record.identity = Some(by.clone());
        record.host = host.map(str::to_owned);
        record.message = Some(message.chars().take(4096).collect());
        self.authorizer.record(record).await.map(drop).map_err(|_| {
            Status::unavailable(
                "nothing is permitted now, because it cannot be recorded; tell whoever runs the gateway",
            )
        })
    }
}

impl SshCommand {
    /// The command that opens a session; with several local users the first stands for all.
    fn to(&self, host: &str, local_users: &[String]) -> String {
        let target = match local_users {
            [] | [_] => host.to_owned(),
            [first, ..] => format!("{host}+{first}"),
        };
        let port = if self.port == 22 { String::new() } else { format!(" -p {}", self.port) };
        format!("ssh{port} {target}@{}", self.host)
    }
}

fn bearer<T>(request: &Request<T>) -> Option<&str> {
    request.metadata().get("authorization")?.to_str().ok()?.strip_prefix("Bearer ")
}

fn denied(refusal: Refusal) -> Status {
    match refusal.kind {
        RefusalKind::Unrecorded => Status::unavailable(refusal.message),
        _ => Status::permission_denied(refusal.message),
    }
}
