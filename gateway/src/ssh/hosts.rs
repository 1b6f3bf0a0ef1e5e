//! What the door needs of the rest of the gateway: policy, sessions, channels on hosts, the record.
//!
//! In the product these are [`Authorizer`] and what it mints. The traits are here so that the door's own tests can put
//! local processes in the place of hosts.

use crate::authorize::{AuthorizedSession, Authorizer, EndReason, Refusal, SignInAttempt, TargetInfo};
use crate::sensors::{ChannelClosed, ChannelInput, ChannelOutput, Input, Output, StartError};
use sallyport_contract::v1::Work;
use sallyport_evidence::record::Identity;
use std::net::SocketAddr;

/// Policy and the record.
#[tonic::async_trait]
pub trait Hosts: Send + Sync + 'static {
    /// Asks policy, records the answer, opens the session. See [`Authorizer::open_session`].
    async fn open_session(
        &self,
        identity: &Identity,
        host: &str,
        local_user: Option<&str>,
        client: SocketAddr,
    ) -> Result<Box<dyn HostSession>, Refusal>;
    /// What `identity` may reach.
    fn targets(&self, identity: &Identity) -> Vec<TargetInfo>;
    /// Records a sign-in or a failed one; durable on return.
    async fn sign_in_record(&self, attempt: SignInAttempt<'_>) -> Result<(), Refusal>;
}

/// A session on a host; closed when dropped.
#[tonic::async_trait]
pub trait HostSession: Send + Sync + 'static {
    /// Starts a shell, a command or a subsystem.
    async fn start_channel(&self, work: Work) -> Result<(Box<dyn ToHost>, Box<dyn FromHost>), StartError>;
    /// Resolves when the session must end.
    async fn ended(&self) -> EndReason;
}

/// Towards the host.
#[tonic::async_trait]
pub trait ToHost: Send + Sync + 'static {
    /// Sends; waits while the host takes no more.
    async fn send(&self, input: Input) -> Result<(), ChannelClosed>;
}

/// From the host; dropping it hangs up.
#[tonic::async_trait]
pub trait FromHost: Send + 'static {
    /// The next output; `None` without an exit before it: lost.
    async fn recv(&mut self) -> Option<Output>;
    /// Why it was lost.
    fn lost(&self) -> Option<String>;
}

#[tonic::async_trait]
impl Hosts for Authorizer {
    async fn open_session(
        &self,
        identity: &Identity,
        host: &str,
        local_user: Option<&str>,
        client: SocketAddr,
    ) -> Result<Box<dyn HostSession>, Refusal> {
        let session = Authorizer::open_session(self, identity, host, local_user, client).await?;
        Ok(Box::new(session))
    }
    fn targets(&self, identity: &Identity) -> Vec<TargetInfo> {
        Authorizer::targets(self, identity)
    }
    async fn sign_in_record(&self, attempt: SignInAttempt<'_>) -> Result<(), Refusal> {
        Authorizer::sign_in_record(self, attempt).await
    }
}

#[tonic::async_trait]
impl HostSession for AuthorizedSession {
    async fn start_channel(&self, work: Work) -> Result<(Box<dyn ToHost>, Box<dyn FromHost>), StartError> {
        let channel = AuthorizedSession::start_channel(self, work).await?;
        Ok((Box::new(channel.input), Box::new(channel.output)))
    }
    async fn ended(&self) -> EndReason {
        AuthorizedSession::ended(self).await
    }
}

#[tonic::async_trait]
impl ToHost for ChannelInput {
    async fn send(&self, input: Input) -> Result<(), ChannelClosed> {
        ChannelInput::send(self, input).await
    }
}

#[tonic::async_trait]
impl FromHost for ChannelOutput {
    async fn recv(&mut self) -> Option<Output> {
        ChannelOutput::recv(self).await
    }
    fn lost(&self) -> Option<String> {
        ChannelOutput::lost(self)
    }
}
