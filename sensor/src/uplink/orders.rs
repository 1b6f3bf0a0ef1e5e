//! The control stream: `hello`, then the gateway's orders, one after the other.

use std::time::Duration;

use sallyport_contract::v1::gateway_order::Order;
use sallyport_contract::v1::sensor_report::Report;
use sallyport_contract::v1::{
    ChannelRefused, GatewayOrder, Heartbeat, Hello, PolicyBundle, PolicyStatus, SensorReport,
};
use sallyport_evidence::record::Kind;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

use super::{Client, Link, Lost};
use crate::records::message_record;

const HEARTBEAT: Duration = Duration::from_secs(10);

impl Link {
    pub(super) async fn open_control(
        &self,
        mut client: Client,
        reports: mpsc::Sender<SensorReport>,
        outgoing: mpsc::Receiver<SensorReport>,
    ) -> Result<Streaming<GatewayOrder>, Lost> {
        let standing = self.policies.standing();
        let hello = Hello {
            facts: Some(self.facts.clone()),
            channels: self.sessions.live_channels(),
            policy_version: standing.version,
            policy_serial: standing.serial,
            canary_version: standing.canary,
            canary_serial: standing.canary_serial,
        };
        // There is room: it is the first.
        let _ = reports.try_send(SensorReport { report: Some(Report::Hello(hello)) });
        let orders = client.control(ReceiverStream::new(outgoing)).await.map_err(Box::new)?;
        Ok(orders.into_inner())
    }

    /// Follows orders until the stream ends.
    pub(super) async fn obey(&self, mut orders: Streaming<GatewayOrder>) -> Lost {
        loop {
            match orders.message().await {
                Ok(Some(GatewayOrder { order: Some(order) })) => self.order(order).await,
                Ok(Some(GatewayOrder { order: None })) => {
                    tracing::warn!("an order of the gateway is not known to this version");
                }
                Ok(None) => return Lost::Closed,
                Err(status) => return Lost::Stream(Box::new(status)),
            }
        }
    }

    async fn order(&self, order: Order) {
        match order {
            // In order with what follows: a channel that is started next starts under the new policy.
            Order::Bundle(bundle) => self.install(bundle).await,
            Order::Start(start) => {
                let (sessions, uplink) = (self.sessions.clone(), self.uplink.clone());
                tokio::spawn(async move {
                    let channel_id = start.channel_id.clone();
                    if let Err(refusal) = sessions.start(start).await {
                        let reason = super::chain(&refusal);
                        tracing::warn!(channel_id, reason, "a channel was not started");
                        uplink.report(Report::Refused(ChannelRefused { channel_id, reason }));
                    }
                });
            }
            Order::EndSession(end) => {
                let sessions = self.sessions.clone();
                tokio::spawn(async move { sessions.end(&end.session_id, &end.reason).await });
            }
            Order::Ping(_) => self.heartbeat(),
        }
    }

    async fn install(&self, bundle: PolicyBundle) {
        let (version, serial) = (bundle.version.clone(), bundle.serial);
        let before = self.policies.standing();
        let error = match self.sessions.install(bundle).await {
            Ok(()) => String::new(),
            Err(error) => super::chain(&error),
        };
        let now = self.policies.standing();
        let text = if !error.is_empty() {
            tracing::error!(
                version,
                serial,
                error,
                "a policy was refused; what was in force before still is"
            );
            let stays = if now.version.is_empty() {
                "no policy".to_owned()
            } else {
                format!("policy {:.12}", now.version)
            };
            format!("policy {version:.12} (serial {serial}) was refused, {stays} stays in force: {error}")
        } else {
            tracing::info!(version, serial, "policy in force");
            let whom = if now.canary == version {
                "as a canary in the sessions that it is for"
            } else {
                "in every running session"
            };
            format!("policy {version} (serial {serial}) in force {whom}")
        };
        let changed = (&before.version, &before.canary) != (&now.version, &now.canary) || !error.is_empty();
        if changed
            && let Err(error) =
                self.spool.append(vec![message_record(Kind::Policy, &self.credentials.host, text)]).await
        {
            tracing::error!(%error, "a record could not be kept");
        }
        self.uplink.report(Report::Policy(PolicyStatus {
            version,
            error,
            serial,
            policy_version: now.version,
            policy_serial: now.serial,
            canary_version: now.canary,
            canary_serial: now.canary_serial,
        }));
    }

    /// Says every few seconds how far the records have come, so that a cut tail is noticed.
    pub(super) async fn beat(&self) -> Lost {
        loop {
            tokio::time::sleep(HEARTBEAT).await;
            self.heartbeat();
        }
    }

    fn heartbeat(&self) {
        let newest_seq = *self.spool.newest().borrow();
        self.uplink.report(Report::Heartbeat(Heartbeat { newest_seq }));
    }
}
