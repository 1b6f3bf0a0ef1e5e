//! A gateway for tests of the sensor: CA, enrolment, control, channels, evidence, all in memory, over real mTLS.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DnType, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
use sallyport_contract::resume::{Incoming, Resumable};
use sallyport_contract::v1::enrolment_server::{Enrolment, EnrolmentServer};
use sallyport_contract::v1::gateway_order::Order;
use sallyport_contract::v1::sensor_link_server::{SensorLink, SensorLinkServer};
use sallyport_contract::v1::sensor_report::Report;
use sallyport_contract::v1::{
    ChannelFrame, Exit, GatewayOrder, JoinRequest, JoinResponse, PolicyBundle, RecordAck, RecordBatch,
    RenewRequest, RenewResponse, SensorReport, Stream as Lane, channel_frame::Body,
};
use sallyport_evidence::note::Signer;
use sallyport_evidence::order::{KEY_SUFFIX, Scope};
use sallyport_evidence::{PolicyOrder, Record};
use sha2::{Digest, Sha256};
use tokio::sync::mpsc;
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tonic::transport::{Certificate, Identity, Server, ServerTlsConfig};
use tonic::{Request, Response, Status, Streaming};

type Down<T> = Pin<Box<dyn tokio_stream::Stream<Item = Result<T, Status>> + Send>>;

/// The gateway's name.
const NAME: &str = "gateway.test";
pub(crate) const TOKEN: &str = "one-time-token";

/// What the gateway has heard.
#[derive(Default)]
pub(crate) struct Heard {
    pub(crate) tokens: Vec<String>,
    pub(crate) reports: Vec<Report>,
    pub(crate) records: Vec<Record>,
    pub(crate) channels: HashMap<String, Channel>,
    orders: Option<mpsc::Sender<Result<GatewayOrder, Status>>>,
    /// Refuse to acknowledge records.
    pub(crate) deaf: bool,
}

pub(crate) struct Channel {
    end: Resumable,
    pub(crate) stdout: Vec<u8>,
    pub(crate) stderr: Vec<u8>,
    pub(crate) exit: Option<Exit>,
    pub(crate) attached: usize,
    to_host: Option<mpsc::Sender<Result<ChannelFrame, Status>>>,
}

#[derive(Clone)]
pub(crate) struct Gateway {
    pub(crate) heard: Arc<Mutex<Heard>>,
    pub(crate) address: SocketAddr,
    pub(crate) ca_pem: String,
    ca_key: Arc<KeyPair>,
    /// Signs orders of policy.
    signer: Arc<Signer>,
    serial: Arc<AtomicU64>,
}

impl Gateway {
    pub(crate) async fn start() -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("address");
        let ca_key = KeyPair::generate().expect("key");
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        params.distinguished_name.push(DnType::CommonName, "test CA");
        let ca_pem = params.self_signed(&ca_key).expect("CA").pem();
        let signer = Signer::new(&format!("{NAME}{KEY_SUFFIX}"), &[6; 32]).expect("a signer");
        let gateway = Self {
            heard: Arc::default(),
            address,
            ca_pem,
            ca_key: Arc::new(ca_key),
            signer: Arc::new(signer),
            serial: Arc::default(),
        };
        let key = KeyPair::generate().expect("key");
        let server = CertificateParams::new(vec!["127.0.0.1".into()]).expect("name");
        let certificate = server.signed_by(&key, &gateway.issuer()).expect("certificate").pem();
        let tls = ServerTlsConfig::new()
            .identity(Identity::from_pem(format!("{certificate}{}", gateway.ca_pem), key.serialize_pem()))
            .client_ca_root(Certificate::from_pem(&gateway.ca_pem))
            .client_auth_optional(true);
        let serve = Server::builder()
            .tls_config(tls)
            .expect("TLS")
            .initial_stream_window_size(4 << 20)
            .initial_connection_window_size(32 << 20)
            .add_service(EnrolmentServer::new(gateway.clone()))
            .add_service(SensorLinkServer::new(gateway.clone()).max_encoding_message_size(64 << 20))
            .serve_with_incoming(TcpListenerStream::new(listener));
        tokio::spawn(serve);
        gateway
    }

    pub(crate) fn url(&self) -> String {
        format!("https://{}", self.address)
    }

    pub(crate) fn ca_sha256(&self) -> String {
        let pem = x509_parser::pem::Pem::iter_from_buffer(self.ca_pem.as_bytes())
            .next()
            .expect("PEM")
            .expect("PEM");
        hex::encode(Sha256::digest(pem.contents))
    }

    pub(crate) fn order(&self, order: Order) {
        let orders = self.heard.lock().expect("lock").orders.clone().expect("a connected sensor");
        orders.try_send(Ok(GatewayOrder { order: Some(order) })).expect("room");
    }

    /// A bundle with a signed order for it: the next one.
    pub(crate) fn signed(&self, bundle: &PolicyBundle, scope: Scope) -> PolicyBundle {
        let serial = self.serial.fetch_add(1, Ordering::Relaxed) + 1;
        let order =
            PolicyOrder { gateway: NAME.into(), serial, version: bundle.version.clone(), time_ms: 0, scope };
        PolicyBundle { serial, statement: order.sign(&self.signer).expect("signed"), ..bundle.clone() }
    }

    /// Sends frames towards the host.
    pub(crate) fn send(&self, channel: &str, body: Body) {
        let mut heard = self.heard.lock().expect("lock");
        let channel = heard.channels.get_mut(channel).expect("the channel");
        if let (Some(frame), Some(to_host)) = (channel.end.send(body).expect("room"), &channel.to_host) {
            let _ = to_host.try_send(Ok(frame));
        }
    }

    /// Waits until something holds.
    pub(crate) async fn until<T>(&self, what: &str, mut look: impl FnMut(&Heard) -> Option<T>) -> T {
        for _ in 0..600 {
            if let Some(found) = look(&self.heard.lock().expect("lock")) {
                return found;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        let heard = self.heard.lock().expect("lock");
        let last: Vec<_> = heard.records.iter().rev().take(12).collect();
        panic!("{what}: did not happen; reports {:?}; last records {last:#?}", heard.reports);
    }

    fn issuer(&self) -> Issuer<'static, &KeyPair> {
        Issuer::from_ca_cert_pem(&self.ca_pem, &*self.ca_key).expect("issuer")
    }

    fn sign(&self, csr_pem: &str) -> Result<String, Status> {
        let request = CertificateSigningRequestParams::from_pem(csr_pem)
            .map_err(|error| Status::invalid_argument(error.to_string()))?;
        let certificate = CertificateParams::default().signed_by(&request.public_key, &self.issuer());
        Ok(certificate.map_err(|error| Status::internal(error.to_string()))?.pem())
    }
}

#[tonic::async_trait]
impl Enrolment for Gateway {
    async fn join(&self, request: Request<JoinRequest>) -> Result<Response<JoinResponse>, Status> {
        let request = request.into_inner();
        self.heard.lock().expect("lock").tokens.push(request.token.clone());
        if request.token != TOKEN {
            return Err(Status::permission_denied("the token is unknown or was used before"));
        }
        let certificate_pem = self.sign(&request.csr_pem)?;
        Ok(Response::new(JoinResponse {
            host: "web-1".into(),
            certificate_pem,
            ca_pem: self.ca_pem.clone(),
            policy_key: self.signer.verifier().to_string(),
        }))
    }
}

#[tonic::async_trait]
impl SensorLink for Gateway {
    type ControlStream = Down<GatewayOrder>;
    type ChannelStream = Down<ChannelFrame>;
    type EvidenceStream = Down<RecordAck>;

    async fn renew(&self, request: Request<RenewRequest>) -> Result<Response<RenewResponse>, Status> {
        let certificate_pem = self.sign(&request.into_inner().csr_pem)?;
        Ok(Response::new(RenewResponse {
            certificate_pem,
            ca_pem: self.ca_pem.clone(),
            policy_key: self.signer.verifier().to_string(),
        }))
    }

    async fn control(
        &self,
        request: Request<Streaming<SensorReport>>,
    ) -> Result<Response<Self::ControlStream>, Status> {
        assert!(
            request.peer_certs().is_some_and(|certs| !certs.is_empty()),
            "the sensor shows its certificate"
        );
        let mut reports = request.into_inner();
        let (orders, outgoing) = mpsc::channel(64);
        let heard = self.heard.clone();
        heard.lock().expect("lock").orders = Some(orders);
        tokio::spawn(async move {
            while let Ok(Some(SensorReport { report: Some(report) })) = reports.message().await {
                heard.lock().expect("lock").reports.push(report);
            }
            heard.lock().expect("lock").orders = None;
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(outgoing))))
    }

    async fn channel(
        &self,
        request: Request<Streaming<ChannelFrame>>,
    ) -> Result<Response<Self::ChannelStream>, Status> {
        let mut frames = request.into_inner();
        let first = frames.message().await?.ok_or_else(|| Status::aborted("no attach"))?;
        let Some(Body::Attach(attach)) = &first.body else { return Err(Status::aborted("no attach")) };
        let id = attach.channel_id.clone();
        let (to_host, outgoing) = mpsc::channel(64);
        let heard = self.heard.clone();
        {
            let mut heard = heard.lock().expect("lock");
            let channel = heard.channels.entry(id.clone()).or_insert_with(|| Channel {
                end: Resumable::new(id.clone()),
                stdout: vec![],
                stderr: vec![],
                exit: None,
                attached: 0,
                to_host: None,
            });
            to_host.try_send(Ok(channel.end.attach_frame())).expect("room");
            channel.to_host = Some(to_host.clone());
            channel.attached += 1;
        }
        tokio::spawn(async move {
            let mut next = Some(first);
            while let Some(frame) = next.take() {
                let mut answers = Vec::new();
                {
                    let mut heard = heard.lock().expect("lock");
                    let channel = heard.channels.get_mut(&id).expect("the channel");
                    match channel.end.on_frame(frame).expect("a shepherd that keeps the rules") {
                        Incoming::Deliver { seq, body } => {
                            match body {
                                Body::Chunk(chunk) if chunk.stream == Lane::Stderr as i32 => {
                                    channel.stderr.extend_from_slice(&chunk.data);
                                }
                                Body::Chunk(chunk) => channel.stdout.extend_from_slice(&chunk.data),
                                Body::Exit(exit) => channel.exit = Some(exit),
                                _ => {}
                            }
                            channel.end.take(seq);
                        }
                        Incoming::Attached { resend } => answers = resend,
                        Incoming::Acked | Incoming::Duplicate => {}
                    }
                    answers.extend(channel.end.ack_due(true));
                }
                for answer in answers {
                    if to_host.send(Ok(answer)).await.is_err() {
                        return;
                    }
                }
                next = frames.message().await.ok().flatten();
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(outgoing))))
    }

    async fn evidence(
        &self,
        request: Request<Streaming<RecordBatch>>,
    ) -> Result<Response<Self::EvidenceStream>, Status> {
        let mut batches = request.into_inner();
        let (acks, outgoing) = mpsc::channel(64);
        let heard = self.heard.clone();
        tokio::spawn(async move {
            while let Ok(Some(batch)) = batches.message().await {
                let durable_seq = batch.first_seq + batch.records.len() as u64 - 1;
                {
                    let mut heard = heard.lock().expect("lock");
                    if heard.deaf {
                        continue;
                    }
                    for (seq, bytes) in (batch.first_seq..).zip(&batch.records) {
                        let record = Record::from_bytes(bytes).expect("a record");
                        assert_eq!((record.source.seq, &record.source.boot), (seq, &batch.boot_id));
                        // At least once on the wire; kept once.
                        let known = heard.records.iter().any(|known| known.source == record.source);
                        if !known {
                            let newest =
                                heard.records.iter().filter(|known| known.source.boot == record.source.boot);
                            let newest = newest.map(|known| known.source.seq).max().unwrap_or(0);
                            assert_eq!(record.source.seq, newest + 1, "numbers have no gaps");
                            heard.records.push(record);
                        }
                    }
                }
                let ack = RecordAck { boot_id: batch.boot_id, durable_seq };
                if acks.send(Ok(ack)).await.is_err() {
                    return;
                }
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(outgoing))))
    }
}
