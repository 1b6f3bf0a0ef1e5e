//! Joining: a one-time token and a signing request for a client certificate.

use super::Peer;
use crate::authority::x509::Authority;
use crate::authorize::Authorizer;
use crate::recorder::draft;
use crate::state::{State, sensors, tokens};
use sallyport_contract::v1::enrolment_server::Enrolment;
use sallyport_contract::v1::{JoinRequest, JoinResponse};
use sallyport_evidence::record::{Decision, Kind, Outcome};
use std::sync::Arc;
use std::time::Duration;
use tonic::{Request, Response, Status};

/// Wrong tokens are answered this much later, so that many cost somebody time. Guessing 256 bits is
/// hopeless anyway.
const WRONG_TOKEN_DELAY: Duration = Duration::from_millis(500);

/// The service.
pub struct Service {
    /// Signs.
    pub authority: Arc<Authority>,
    /// Knows tokens and certificates.
    pub state: State,
    /// Records.
    pub authorizer: Authorizer,
}

#[tonic::async_trait]
impl Enrolment for Service {
    async fn join(&self, request: Request<JoinRequest>) -> Result<Response<JoinResponse>, Status> {
        let address = request.extensions().get::<Peer>().map(|peer| peer.address);
        let JoinRequest { token, csr_pem, facts } = request.into_inner();
        // Before the token is used up: a request that cannot be signed must not cost it.
        self.authority
            .issue_sensor("check", &csr_pem)
            .map_err(|err| Status::invalid_argument(err.to_string()))?;
        let from = address.map(|a| a.to_string()).unwrap_or_default();
        let host = match tokens::use_join(&self.state, &token).await.map_err(internal)? {
            Ok(host) => host,
            Err(unusable) => {
                self.record(None, Outcome::Blocked, &format!("join refused, from {from}: {unusable}"))
                    .await?;
                tokio::time::sleep(WRONG_TOKEN_DELAY).await;
                return Err(Status::unauthenticated(unusable.to_string()));
            }
        };
        let issued = self
            .authority
            .issue_sensor(&host, &csr_pem)
            .map_err(|err| Status::invalid_argument(err.to_string()))?;
        let facts = facts.unwrap_or_default();
        let what = format!(
            "joined from {from}; it calls itself {}, kernel {}; certificate {}",
            crate::sensors::registry::clean(&facts.hostname),
            crate::sensors::registry::clean(&facts.kernel),
            issued.serial
        );
        self.record(Some(&host), Outcome::Allowed, &what).await?;
        sensors::joined(&self.state, &host).await.map_err(internal)?;
        sensors::certified(&self.state, &issued.serial, &host, issued.expires_ms).await.map_err(internal)?;
        self.authorizer.sensor_registry().joined(&host);
        tracing::info!(host, from, "a sensor joined");
        let ca_pem = self.authority.certificate_pem().to_owned();
        let policy_key = self.authorizer.policies().key();
        Ok(Response::new(JoinResponse { host, certificate_pem: issued.pem, ca_pem, policy_key }))
    }
}

impl Service {
    async fn record(&self, host: Option<&str>, outcome: Outcome, message: &str) -> Result<(), Status> {
        let mut record = draft(Kind::Sensor);
        record.host = host.map(str::to_owned);
        record.decision = Some(Decision {
            action: "join".into(),
            outcome,
            policy: String::new(),
            rule: String::new(),
            reason: String::new(),
            point: "gateway".into(),
        });
        record.message = Some(message.to_owned());
        self.authorizer.record(record).await.map(drop).map_err(internal)
    }
}

/// For callers: that something failed here, not what; that is in our log.
pub(crate) fn internal(err: impl std::error::Error) -> Status {
    tracing::error!(err = %crate::chain(&err), "a request failed");
    Status::internal("the gateway could not do this; its log says why")
}
