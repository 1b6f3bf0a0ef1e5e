//! The link to the gateway: one outbound mTLS connection that carries orders, channels and evidence, and comes back by
//! itself.

mod evidence;
mod orders;
mod renew;

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use sallyport_contract::v1::sensor_link_client::SensorLinkClient;
use sallyport_contract::v1::{HostFacts, SensorReport, sensor_report};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tonic::transport::{Certificate, ClientTlsConfig, Endpoint, Identity};

use crate::credentials::Credentials;
use crate::join::unbracketed;
use crate::sessions::Sessions;
use crate::spool::Spool;

/// A connected client; clones share the connection.
pub type Client = SensorLinkClient<tonic::transport::Channel>;

/// Reports that may wait for the control stream.
const REPORTS: usize = 256;
/// First pause after a lost connection; doubled up to [`LONGEST_PAUSE`], and jittered so that a whole fleet does not come back
/// at once.
const SHORTEST_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(20);
/// A connection that lasted so long starts the pauses over.
const STABLE: Duration = Duration::from_secs(30);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
const KEEPALIVE: Duration = Duration::from_secs(10);
/// HTTP/2 windows: one channel's window in flight, and several channels beside each other.
const STREAM_WINDOW: u32 = 4 << 20;
const CONNECTION_WINDOW: u32 = 32 << 20;
/// Largest message taken: a policy bundle.
const MAX_MESSAGE: usize = crate::policies::MAX_ARCHIVE + (1 << 20);

/// The part of the link that the rest of the sensor holds.
#[derive(Clone, Debug)]
pub struct Uplink {
    client: watch::Sender<Option<Client>>,
    reports: Arc<Mutex<Option<mpsc::Sender<SensorReport>>>>,
}

/// What the link needs to run.
#[derive(Debug)]
pub struct Link {
    /// Where its state is kept.
    pub state_dir: std::path::PathBuf,
    /// Who we are.
    pub credentials: Credentials,
    /// What we say about the host.
    pub facts: HostFacts,
    /// Sessions.
    pub sessions: Arc<Sessions>,
    /// Policies.
    pub policies: Arc<crate::policies::Policies>,
    /// Records.
    pub spool: Spool,
    /// The rest's part.
    pub uplink: Uplink,
}

/// The connection ended.
#[derive(Debug, thiserror::Error)]
enum Lost {
    #[error("the gateway cannot be reached")]
    Connect(#[from] tonic::transport::Error),
    #[error("the gateway refused or ended a stream: {}", .0.message())]
    Stream(#[from] Box<tonic::Status>),
    #[error("the gateway closed the connection")]
    Closed,
    #[error("the certificate was renewed")]
    Renewed,
    #[error(transparent)]
    Spool(#[from] crate::spool::SpoolError),
    #[error("the new certificate cannot be used")]
    Credentials(#[from] crate::credentials::CredentialsError),
}

impl Uplink {
    /// Not connected.
    #[must_use]
    #[expect(clippy::new_without_default, reason = "a link is made on purpose, once")]
    pub fn new() -> Self {
        Self { client: watch::channel(None).0, reports: Arc::default() }
    }

    /// The connection, when there is one.
    pub async fn client(&self) -> Client {
        let mut seen = self.client.subscribe();
        loop {
            if let Some(client) = seen.borrow_and_update().clone() {
                return client;
            }
            if seen.changed().await.is_err() {
                // The sender lives in `self`, so this does not happen.
                std::future::pending::<()>().await;
            }
        }
    }

    /// Reports to the gateway, if it is connected. Otherwise the next `hello` says how things stand.
    pub fn report(&self, report: sensor_report::Report) {
        let reports = self.reports.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some(reports) = reports
            && reports.try_send(SensorReport { report: Some(report) }).is_err()
        {
            tracing::warn!("the gateway is too slow for reports; one was dropped");
        }
    }

    fn connected(&self, client: &Client, reports: mpsc::Sender<SensorReport>) {
        *self.reports.lock().unwrap_or_else(PoisonError::into_inner) = Some(reports);
        self.client.send_replace(Some(client.clone()));
    }

    fn lost(&self) {
        *self.reports.lock().unwrap_or_else(PoisonError::into_inner) = None;
        self.client.send_replace(None);
    }
}

impl Link {
    /// Keeps the link up until `stop`.
    pub async fn run(mut self, stop: CancellationToken) {
        let mut pause = SHORTEST_PAUSE;
        while !stop.is_cancelled() {
            let since = tokio::time::Instant::now();
            let lost = tokio::select! {
                lost = self.connection() => lost,
                () = stop.cancelled() => break,
            };
            self.uplink.lost();
            if matches!(lost, Lost::Renewed) {
                tracing::info!("the certificate was renewed; connecting with it");
                continue;
            }
            tracing::warn!(reason = %chain(&lost), "not connected to the gateway; enforcement and recording go on");
            if matches!(lost, Lost::Spool(_)) {
                // Without a spool nothing may be acknowledged: the daemon is about to stop.
                return;
            }
            pause = if since.elapsed() > STABLE { SHORTEST_PAUSE } else { (pause * 2).min(LONGEST_PAUSE) };
            let jittered = pause.mul_f64(rand::random_range(0.5..1.0));
            tokio::select! {
                () = tokio::time::sleep(jittered) => {}
                () = stop.cancelled() => break,
            }
        }
        self.uplink.lost();
    }

    /// One connection from beginning to end; why it ended.
    async fn connection(&mut self) -> Lost {
        match self.connect_and_serve().await {
            Ok(never) => match never {},
            Err(lost) => lost,
        }
    }

    async fn connect_and_serve(&mut self) -> Result<std::convert::Infallible, Lost> {
        let client = connect(&self.credentials).await?;
        let (reports, outgoing) = mpsc::channel(REPORTS);
        let orders = self.open_control(client.clone(), reports.clone(), outgoing).await?;
        self.uplink.connected(&client, reports);
        tracing::info!(gateway = self.credentials.gateway, "connected to the gateway");
        tokio::select! {
            lost = self.obey(orders) => Err(lost),
            lost = self.beat() => Err(lost),
            lost = evidence::deliver(client.clone(), self.spool.clone()) => Err(lost),
            renewed = renew::when_due(&self.credentials, client.clone()) => {
                self.credentials = renewed?;
                self.credentials.save(&self.state_dir)?;
                if let Some(key) = self.credentials.policy_verifier()
                    && let Err(known) = self.policies.learn_key(key)
                {
                    tracing::error!(%known, "orders of policy are still verified with the key that was known before");
                }
                Err(Lost::Renewed)
            }
        }
    }
}

/// Connects to the gateway with a certificate of its own.
///
/// # Errors
/// The gateway cannot be reached, or one of the two does not take the other's certificate.
pub async fn connect(credentials: &Credentials) -> Result<Client, tonic::transport::Error> {
    let Credentials { gateway, key_pem, certificate_pem, ca_pem, .. } = credentials;
    let endpoint = Endpoint::from_shared(gateway.clone())?;
    let name = endpoint.uri().host().map(|host| unbracketed(host).to_owned()).unwrap_or_default();
    let tls = ClientTlsConfig::new()
        .ca_certificate(Certificate::from_pem(ca_pem))
        .identity(Identity::from_pem(certificate_pem, key_pem))
        .domain_name(name);
    let channel = endpoint
        .tls_config(tls)?
        .connect_timeout(CONNECT_TIMEOUT)
        .tcp_nodelay(true)
        .http2_keep_alive_interval(KEEPALIVE)
        .keep_alive_timeout(KEEPALIVE)
        .keep_alive_while_idle(true)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .connect()
        .await?;
    Ok(SensorLinkClient::new(channel)
        .max_decoding_message_size(MAX_MESSAGE)
        .max_encoding_message_size(MAX_MESSAGE))
}

/// An error and its causes in one line.
#[must_use]
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.ends_with(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        source = cause.source();
    }
    text
}
