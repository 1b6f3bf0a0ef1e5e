//! One sensor: its connection, its streams, and what of policy it has accepted.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use sallyport_contract::v1::gateway_order::Order;
use sallyport_contract::v1::sensor_report::Report;
use sallyport_contract::v1::{
    GatewayOrder, Heartbeat, Hello, HostFacts, PolicyBundle, PolicyStatus, RecordBatch, SensorReport,
};
use sallyport_evidence::record::Kind;
use sallyport_policy::{KernelPolicy, Principal};
use sallyport_sensor::credentials::Credentials;
use sallyport_sensor::policies::orders::{Held, Trust};
use sallyport_sensor::policies::{Change, Current, InForce, PolicyError, judge};
use sallyport_sensor::records::message_record;
use sallyport_sensor::uplink;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

/// As often as sensors say that they are there.
const HEARTBEAT: Duration = Duration::from_secs(10);

/// Who parses, checks and compiles a bundle.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    /// One for all. Orders, signatures and hashes are verified by each all the same.
    Shared,
    /// Each for itself.
    Own,
}

impl Way {
    /// In one word.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Shared => "shared",
            Self::Own => "own",
        }
    }
}

/// What the sensors of this process have together.
#[derive(Default)]
pub(crate) struct Together {
    own: AtomicBool,
    loaded: Mutex<Option<Loaded>>,
}

/// What was made of a version.
struct Loaded {
    current: Current,
    tables: Arc<KernelPolicy>,
}

/// A report that a sensor has sent.
pub(crate) struct Reported {
    /// Its host.
    pub(crate) host: String,
    /// The change.
    pub(crate) serial: u64,
}

/// A sensor that has joined.
#[derive(Clone)]
pub(crate) struct Sensor {
    /// Who it is.
    pub(crate) credentials: Credentials,
    /// Whose orders it takes.
    pub(crate) trust: Trust,
    /// What it has accepted.
    pub(crate) held: Held,
    in_force: InForce,
    /// The tables of the session that runs on it.
    tables: Option<Arc<KernelPolicy>>,
    facts: HostFacts,
    together: Arc<Together>,
}

impl Together {
    /// From now on.
    pub(crate) fn go(&self, way: Way) {
        self.own.store(way == Way::Own, Ordering::SeqCst);
    }

    /// The version and its tables, made by whoever comes first.
    fn loaded(
        &self,
        version: &str,
        archive: &[u8],
        host: &str,
    ) -> Result<(Current, Arc<KernelPolicy>), PolicyError> {
        let mut loaded = self.loaded.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = loaded.as_ref().filter(|known| known.current.version == version) {
            return Ok((known.current.clone(), known.tables.clone()));
        }
        let current = Current::load(version, archive)?;
        let tables = Arc::new(current.compile(&somebody(), host, "root")?);
        *loaded = Some(Loaded { current: current.clone(), tables: tables.clone() });
        Ok((current, tables))
    }
}

/// Whose session runs on each host.
fn somebody() -> Principal {
    Principal {
        user: "alice@example.org".into(),
        groups: vec!["engineers".into()],
        kind: "human".into(),
        ..Principal::default()
    }
}

impl Sensor {
    /// One that has just joined.
    pub(crate) fn new(credentials: Credentials, facts: HostFacts, together: Arc<Together>) -> Result<Self> {
        let key = credentials.policy_verifier().context("the gateway gave no key for its orders")?;
        let trust = Trust { host: credentials.host.clone(), key: Some(key), signers: vec![] };
        let (held, in_force) = (Held::default(), InForce::default());
        Ok(Self { credentials, trust, held, in_force, tables: None, facts, together })
    }

    /// Connects, says hello, and follows orders until the stream ends. Each accepted one goes to `news`.
    pub(crate) async fn run(
        mut self,
        news: mpsc::UnboundedSender<Reported>,
        first: mpsc::Sender<PolicyBundle>,
    ) -> Result<()> {
        let mut client = uplink::connect(&self.credentials).await?;
        let (reports, outgoing) = mpsc::channel(256);
        let hello = Hello { facts: Some(self.facts.clone()), ..Hello::default() };
        reports.send(SensorReport { report: Some(Report::Hello(hello)) }).await?;
        let mut orders = client.control(ReceiverStream::new(outgoing)).await?.into_inner();
        let (batches, evidence) = mpsc::channel(16);
        // The gateway answers this call when the first batch has come.
        tokio::spawn(async move {
            let Ok(acks) = client.evidence(ReceiverStream::new(evidence)).await else { return };
            let mut acks = acks.into_inner();
            while let Ok(Some(_)) = acks.message().await {}
        });
        let mut beat = tokio::time::interval(HEARTBEAT);
        let mut seq = 0;
        loop {
            let order = tokio::select! {
                order = orders.message() => order?,
                _ = beat.tick() => {
                    let report = Some(Report::Heartbeat(Heartbeat { newest_seq: seq }));
                    reports.send(SensorReport { report }).await?;
                    continue;
                }
            };
            let Some(GatewayOrder { order: Some(Order::Bundle(bundle)) }) = order else {
                bail!("{} got no order of policy", self.credentials.host);
            };
            // Somebody needs one to forge.
            let _ = first.try_send(bundle.clone());
            let (version, serial) = (bundle.version.clone(), bundle.serial);
            // As sensors do: not on the threads that serve connections.
            let accepted;
            (self, accepted) = tokio::task::spawn_blocking(move || {
                let accepted = self.accept(&bundle);
                (self, accepted)
            })
            .await?;
            accepted.with_context(|| format!("a sensor refused policy {version:.12}"))?;
            seq += 1;
            let text = format!("policy {version} (serial {serial}) in force in every running session");
            batches.send(self.record(seq, text)?).await?;
            let status = PolicyStatus {
                version: version.clone(),
                serial,
                policy_version: version,
                policy_serial: serial,
                ..PolicyStatus::default()
            };
            reports.send(SensorReport { report: Some(Report::Policy(status)) }).await?;
            news.send(Reported { host: self.credentials.host.clone(), serial })?;
        }
    }

    /// Verifies an order and its bundle, and makes the tables of the session that runs here.
    fn accept(&mut self, bundle: &PolicyBundle) -> Result<()> {
        let host = self.credentials.host.clone();
        let own = self.together.own.load(Ordering::SeqCst);
        let mut shared = None;
        let change = judge(&self.trust, bundle, &self.held, &self.in_force, |version, archive| {
            if own {
                return Current::load(version, archive);
            }
            let (current, tables) = self.together.loaded(version, archive, &host)?;
            shared = Some(tables);
            Ok(current)
        })?;
        let Change { next, held, .. } = change.context("it had this order before")?;
        let current = next.for_session("01930000-0000-7000-8000-000000000001").context("nothing in force")?;
        let tables = match shared {
            Some(tables) => tables,
            None => Arc::new(current.compile(&somebody(), &host, "root")?),
        };
        (self.tables, self.held, self.in_force) = (Some(tables), held, next);
        Ok(())
    }

    /// The record that the sensor makes of it.
    fn record(&self, seq: u64, text: String) -> Result<RecordBatch> {
        let boot_id = self.facts.boot_id.clone();
        let mut record = message_record(Kind::Policy, &self.credentials.host, text);
        (record.source.boot, record.source.seq) = (boot_id.clone(), seq);
        Ok(RecordBatch { boot_id, first_seq: seq, records: vec![record.to_bytes()?.into()] })
    }
}
