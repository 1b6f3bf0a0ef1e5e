//! Managing: sessions, sensors.

use super::{Service, internal};
use crate::authority::x509::is_host_name;
use crate::authorize::{EndReason, GatewayAction};
use crate::state::{sensors, tokens};
use sallyport_contract::v1::*;
use std::time::Duration;
use tonic::{Request, Response, Status};

/// Life of a join token if the caller names none.
const JOIN_TTL: Duration = Duration::from_secs(3600);
/// The longest life of one.
const MAX_JOIN_TTL: Duration = Duration::from_secs(7 * 86_400);
/// The longest reason, in characters.
const REASON: usize = 500;

impl Service {
    pub(super) async fn end(
        &self,
        request: Request<EndSessionRequest>,
    ) -> Result<Response<EndSessionResponse>, Status> {
        let (identity, _) = self.caller(&request).await?;
        let EndSessionRequest { session_id, reason } = request.get_ref().clone();
        let session = self.authorizer.find(&session_id);
        // One's own may always be ended.
        if session
            .as_ref()
            .is_none_or(|s| s.identity.user != identity.user || s.identity.issuer != identity.issuer)
        {
            self.caller_for(&request, GatewayAction::EndSessions).await?;
        }
        let session =
            session.ok_or_else(|| Status::not_found(format!("there is no running session {session_id}")))?;
        let reason = if reason.trim().is_empty() { "no reason given".to_owned() } else { cut(&reason) };
        self.note(&identity, Some(&session.host), &format!("ended session {session_id}: {reason}")).await?;
        self.authorizer.end_session(&session, EndReason::Ended { by: identity.user, reason });
        Ok(Response::new(EndSessionResponse {}))
    }

    pub(super) async fn join_token(
        &self,
        request: Request<CreateJoinTokenRequest>,
    ) -> Result<Response<CreateJoinTokenResponse>, Status> {
        let identity = self.caller_for(&request, GatewayAction::ManageSensors).await?;
        let CreateJoinTokenRequest { host, ttl_seconds } = request.into_inner();
        if !is_host_name(&host) {
            let text = "a host's name has lower-case letters, digits, `-`, `.` and `_`, 63 at most, and is not `gateway`";
            return Err(Status::invalid_argument(text));
        }
        let ttl = if ttl_seconds == 0 {
            JOIN_TTL
        } else {
            Duration::from_secs(ttl_seconds.into()).min(MAX_JOIN_TTL)
        };
        self.note(&identity, Some(&host), &format!("made a join token for {host}")).await?;
        let token = tokens::create_join(&self.state, &host, ttl).await.map_err(internal)?;
        let ca_sha256 = self.authority.fingerprint();
        Ok(Response::new(CreateJoinTokenResponse {
            token: token.secret,
            expires_at_ms: token.expires_ms,
            ca_sha256,
        }))
    }

    pub(super) async fn revoke(
        &self,
        request: Request<RevokeSensorRequest>,
    ) -> Result<Response<RevokeSensorResponse>, Status> {
        let identity = self.caller_for(&request, GatewayAction::ManageSensors).await?;
        let RevokeSensorRequest { host, reason } = request.into_inner();
        let reason = cut(&reason);
        self.note(&identity, Some(&host), &format!("revoked the sensor of {host}: {reason}")).await?;
        if !sensors::revoke(&self.state, &host, &reason).await.map_err(internal)? {
            return Err(Status::not_found(format!("no sensor ever joined as {host}")));
        }
        self.authorizer.sensor_registry().cut_off(&host);
        Ok(Response::new(RevokeSensorResponse {}))
    }
}

/// A reason of bounded length.
pub(super) fn cut(text: &str) -> String {
    text.chars().take(REASON).collect()
}
