//! `SensorLink`: control, channels and evidence of connected sensors.

use super::Peer;
use super::enrolment::internal;
use crate::authority::x509::{Authority, PeerCertificate};
use crate::authorize::Authorizer;
use crate::recorder::{IngestError, draft};
use crate::sensors::registry::{Link, ORDERS, clean};
use crate::state::{State, sensors};
use sallyport_contract::v1::sensor_link_server::SensorLink;
use sallyport_contract::v1::{
    ChannelFrame, GatewayOrder, RecordAck, RecordBatch, RenewRequest, RenewResponse, SensorReport,
    channel_frame::Body, sensor_report::Report,
};
use sallyport_evidence::record::Kind;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_stream::{Stream, StreamExt as _};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};

/// The first message of a stream comes within this time.
const FIRST_WITHIN: Duration = Duration::from_secs(20);
/// Acknowledgements waiting; each covers all before it, and the sensor is not read while it does not read them.
const ACKS: usize = 4;

type Down<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// The service.
pub(super) struct Service {
    /// Signs renewals.
    pub(super) authority: Arc<Authority>,
    /// Knows what is revoked.
    pub(super) state: State,
    /// Sessions, sensors, records.
    pub(super) authorizer: Authorizer,
    /// The gateway has stopped all sessions: streams end.
    pub(super) streams_end: CancellationToken,
}

#[tonic::async_trait]
impl SensorLink for Service {
    type ControlStream = Down<GatewayOrder>;
    type ChannelStream = Down<ChannelFrame>;
    type EvidenceStream = Down<RecordAck>;

    async fn renew(&self, request: Request<RenewRequest>) -> Result<Response<RenewResponse>, Status> {
        let peer = self.sensor(&request).await?;
        let issued = self
            .authority
            .issue_sensor(&peer.host, &request.into_inner().csr_pem)
            .map_err(|err| Status::invalid_argument(err.to_string()))?;
        self.record(&peer.host, &format!("certificate {} renewed as {}", peer.serial, issued.serial)).await?;
        sensors::certified(&self.state, &issued.serial, &peer.host, issued.expires_ms)
            .await
            .map_err(internal)?;
        let ca_pem = self.authority.certificate_pem().to_owned();
        let policy_key = self.authorizer.policies().key();
        Ok(Response::new(RenewResponse { certificate_pem: issued.pem, ca_pem, policy_key }))
    }

    async fn control(
        &self,
        request: Request<Streaming<SensorReport>>,
    ) -> Result<Response<Self::ControlStream>, Status> {
        let peer = self.sensor(&request).await?;
        let mut reports = request.into_inner();
        let hello = match first(&mut reports).await?.report {
            Some(Report::Hello(hello)) => hello,
            _ => return Err(Status::failed_precondition("the first report must be hello")),
        };
        let (orders, down) = mpsc::channel(ORDERS);
        let registry = self.authorizer.sensor_registry();
        let facts = hello.facts.clone().unwrap_or_default();
        let what = format!("connected; mode {}, kernel {}", clean(&facts.mode), clean(&facts.kernel));
        self.record(&peer.host, &what).await?;
        // What it must know first goes out before anybody else can order it anything.
        let policies = self.authorizer.policies();
        let given = policies.serial();
        for bundle in policies.orders_for(&peer.host) {
            let _ = orders.try_send(GatewayOrder { order: Some(bundle) });
        }
        let link = registry.connected(&peer.host, &hello, orders).await;
        // A change in between did not reach it.
        if policies.serial() != given {
            for bundle in policies.orders_for(&peer.host) {
                registry.order(&peer.host, bundle);
            }
        }
        registry.reconcile(&link, &hello.channels).await;
        tracing::info!(host = peer.host, mode = clean(&facts.mode), "a sensor connected");
        let cut = link.cut.clone();
        let ends = self.ends(&peer, cut.clone());
        let authorizer = self.authorizer.clone();
        tokio::spawn(listen(authorizer, link, reports, ends.clone()));
        Ok(Response::new(until(ReceiverStream::new(down).map(Ok), ends)))
    }

    async fn channel(
        &self,
        request: Request<Streaming<ChannelFrame>>,
    ) -> Result<Response<Self::ChannelStream>, Status> {
        let peer = self.sensor(&request).await?;
        let cut = self.linked(&peer)?;
        let mut frames = request.into_inner();
        let attach = first(&mut frames).await?;
        let Some(Body::Attach(id)) = &attach.body else {
            return Err(Status::failed_precondition("the first frame must be attach"));
        };
        let id = id.channel_id.clone();
        let down = self.authorizer.sensor_registry().attach(&peer.host, &id, attach, frames).await?;
        Ok(Response::new(until(ReceiverStream::new(down), self.ends(&peer, cut))))
    }

    async fn evidence(
        &self,
        request: Request<Streaming<RecordBatch>>,
    ) -> Result<Response<Self::EvidenceStream>, Status> {
        let peer = self.sensor(&request).await?;
        // Evidence may come before the control stream and after it: it is wanted in any case.
        let cut = self.authorizer.sensor_registry().revoked_token(&peer.host);
        let ends = self.ends(&peer, cut);
        let (acks, down) = mpsc::channel(ACKS);
        tokio::spawn(ingest(self.authorizer.clone(), peer.host, request.into_inner(), acks, ends.clone()));
        Ok(Response::new(until(ReceiverStream::new(down), ends)))
    }
}

impl Service {
    /// The sensor at the other end, if its certificate is a sensor's and not revoked.
    async fn sensor<T>(&self, request: &Request<T>) -> Result<PeerCertificate, Status> {
        let peer = request.extensions().get::<Peer>().and_then(|peer| peer.certificate.clone());
        let peer = peer.ok_or_else(|| {
            Status::unauthenticated(
                "this needs a sensor's client certificate; get one with `sallyport-sensor join`",
            )
        })?;
        if peer.expires <= SystemTime::now() {
            return Err(Status::unauthenticated(
                "the client certificate has expired; join again with a new token",
            ));
        }
        if !sensors::is_valid(&self.state, &peer.serial, &peer.host).await.map_err(internal)? {
            tracing::warn!(
                host = peer.host,
                serial = peer.serial,
                "refused a revoked or unknown certificate"
            );
            let text = format!(
                "the certificate of {} was revoked or is unknown here; join again with a new token",
                peer.host
            );
            return Err(Status::permission_denied(text));
        }
        Ok(peer)
    }

    /// Channels need the control stream first.
    fn linked(&self, peer: &PeerCertificate) -> Result<CancellationToken, Status> {
        self.authorizer
            .sensor_registry()
            .cut_token(&peer.host)
            .ok_or_else(|| Status::failed_precondition("open the control stream first"))
    }

    /// Cancelled when a stream of this peer must end: the link is cut, its certificate ends, the gateway stops.
    fn ends(&self, peer: &PeerCertificate, cut: CancellationToken) -> CancellationToken {
        let ends = self.streams_end.child_token();
        let (token, expires) = (ends.clone(), peer.expires);
        tokio::spawn(async move {
            let left = expires.duration_since(SystemTime::now()).unwrap_or_default();
            tokio::select! {
                () = cut.cancelled() => token.cancel(),
                () = tokio::time::sleep(left) => token.cancel(),
                () = token.cancelled() => {}
            }
        });
        ends
    }

    async fn record(&self, host: &str, message: &str) -> Result<(), Status> {
        record(&self.authorizer, host, message).await.map_err(internal)
    }
}

/// Reads a control stream to its end.
async fn listen(
    authorizer: Authorizer,
    link: Link,
    mut reports: Streaming<SensorReport>,
    ends: CancellationToken,
) {
    let host = link.host.clone();
    let registry = authorizer.sensor_registry().clone();
    loop {
        let report = tokio::select! {
            report = reports.message() => report,
            () = ends.cancelled() => break,
        };
        let Ok(Some(SensorReport { report: Some(report) })) = report else { break };
        match report {
            Report::Hello(_) => {
                tracing::warn!(host, "a second hello on one stream; cutting it");
                break;
            }
            Report::Policy(status) => {
                registry.policy_status(&host, &status);
                let which = format!("policy {} (serial {})", clean(&status.version), status.serial);
                let what = if status.error.is_empty() {
                    format!("{which} is in force")
                } else {
                    format!("{which} could not be put into force: {}", clean(&status.error))
                };
                if let Err(err) = policy_record(&authorizer, &host, &what).await {
                    tracing::error!(host, %err, "a policy status is not on the record");
                }
            }
            Report::Refused(refused) => registry.refused(&host, &refused.channel_id, &refused.reason).await,
            Report::Ended(ended) => registry.forgotten(&host, &ended.channel_id).await,
            // Its arrival keeps the connection alive; how far evidence has come is known from evidence.
            Report::Heartbeat(_) => {}
        }
    }
    ends.cancel();
    drop(link);
    tracing::info!(host, "a sensor's control stream ended");
    if let Err(err) = record(&authorizer, &host, "disconnected").await {
        tracing::error!(host, %err, "a sensor's disconnection is not on the record");
    }
}

/// Takes evidence to the stream's end: acknowledged after fsync.
async fn ingest(
    authorizer: Authorizer,
    host: String,
    mut batches: Streaming<RecordBatch>,
    acks: mpsc::Sender<Result<RecordAck, Status>>,
    ends: CancellationToken,
) {
    loop {
        let batch = tokio::select! {
            batch = batches.message() => batch,
            () = ends.cancelled() => break,
        };
        let Ok(Some(RecordBatch { boot_id, first_seq, records })) = batch else { break };
        let answer = authorizer.recorder().ingest(&host, boot_id.clone(), first_seq, records).await;
        let answer = match answer {
            Ok((durable_seq, noted)) => {
                authorizer.sensor_registry().mark(&host, &noted);
                authorizer.policies().count_noted(&noted);
                Ok(RecordAck { boot_id, durable_seq })
            }
            Err(err @ IngestError::Unacceptable { .. }) => {
                tracing::warn!(host, %err, "refused evidence");
                Err(Status::invalid_argument(err.to_string()))
            }
            Err(IngestError::Append(err)) => Err(Status::unavailable(err.to_string())),
        };
        let over = answer.is_err();
        if acks.send(answer).await.is_err() || over {
            break;
        }
    }
    // The stream to the sensor ends with the last sender; `ends` only stops its watcher.
    drop(acks);
}

async fn record(
    authorizer: &Authorizer,
    host: &str,
    message: &str,
) -> Result<(), crate::recorder::AppendError> {
    let mut record = draft(Kind::Sensor);
    record.host = Some(host.to_owned());
    record.message = Some(message.to_owned());
    authorizer.record(record).await.map(drop)
}

async fn policy_record(
    authorizer: &Authorizer,
    host: &str,
    message: &str,
) -> Result<(), crate::recorder::AppendError> {
    let mut record = draft(Kind::Policy);
    record.host = Some(host.to_owned());
    record.message = Some(message.to_owned());
    authorizer.record(record).await.map(drop)
}

async fn first<T>(stream: &mut Streaming<T>) -> Result<T, Status> {
    match tokio::time::timeout(FIRST_WITHIN, stream.message()).await {
        Ok(Ok(Some(message))) => Ok(message),
        Ok(Ok(None)) => Err(Status::cancelled("the stream ended before its first message")),
        Ok(Err(status)) => Err(status),
        Err(_) => Err(Status::deadline_exceeded("no first message came")),
    }
}

/// A stream to the sensor that ends when `ends` is cancelled; its end cancels `ends` for the watchers.
fn until<T: Send + 'static>(
    stream: impl Stream<Item = Result<T, Status>> + Send + 'static,
    ends: CancellationToken,
) -> Down<T> {
    let guard = ends.clone().drop_guard();
    let stopped = async move { ends.cancelled_owned().await };
    Box::pin(futures::stream::StreamExt::take_until(
        stream.map(move |item| {
            // Lives as long as the stream: dropping it with the connection stops the watcher.
            let _ = &guard;
            item
        }),
        stopped,
    ))
}
