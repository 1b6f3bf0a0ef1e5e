//! The sensors: joined, connected, and asked whether all have a version.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use sallyport_contract::v1::{HostFacts, PolicyBundle};
use sallyport_sensor::join::{Anchor, join};
use sallyport_sensor::policies::orders::{Held, Trust};
use sallyport_sensor::policies::{Current, InForce, judge};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;

use crate::bundle;
use crate::gateway::Gateway;
use crate::sensor::{Reported, Sensor, Together, Way};

/// That join or connect at once: the gateway takes 128 handshakes at once, and 256 strangers of one address.
const AT_ONCE: usize = 64;

/// All sensors.
pub(crate) struct Fleet {
    sensors: Vec<Sensor>,
    hosts: Vec<String>,
    together: Arc<Together>,
    running: JoinSet<Result<()>>,
    news: mpsc::UnboundedReceiver<Reported>,
    tell: mpsc::UnboundedSender<Reported>,
    first: Option<PolicyBundle>,
}

impl Fleet {
    /// Joins so many hosts, each with a token and a key of its own.
    pub(crate) async fn enrol(gateway: &Gateway, hosts: usize) -> Result<Self> {
        let together = Arc::new(Together::default());
        let turns = Arc::new(Semaphore::new(AT_ONCE));
        let mut joining = JoinSet::new();
        for number in 0..hosts {
            let turn = turns.clone().acquire_owned().await?;
            let host = bundle::host(number);
            let token = gateway.join_token(&host).await?;
            let (url, ca_pem, together) = (gateway.url.clone(), gateway.ca_pem.clone(), together.clone());
            joining.spawn(async move {
                let _turn = turn;
                let facts = HostFacts {
                    hostname: host.clone(),
                    kernel: "6.12.0".into(),
                    os: "Debian GNU/Linux 13".into(),
                    sensor_version: env!("CARGO_PKG_VERSION").into(),
                    boot_id: format!("00000000-0000-4000-8000-{number:012}"),
                    mode: "lsm".into(),
                    limits: vec![],
                };
                let credentials = join(&url, Anchor::Pem(ca_pem), &token, facts.clone()).await?;
                ensure!(credentials.host == host, "{host} joined as {}", credentials.host);
                Sensor::new(credentials, facts, together)
            });
        }
        let mut sensors = Vec::with_capacity(hosts);
        while let Some(joined) = joining.join_next().await {
            sensors.push(joined?.context("a host cannot join")?);
        }
        let hosts = sensors.iter().map(|sensor| sensor.credentials.host.clone()).collect();
        let (tell, news) = mpsc::unbounded_channel();
        Ok(Self { sensors, hosts, together, running: JoinSet::new(), news, tell, first: None })
    }

    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.sensors.len()
    }

    /// Their names.
    pub(crate) fn hosts(&self) -> &[String] {
        &self.hosts
    }

    /// Who parses and compiles from now on.
    pub(crate) fn go(&self, way: Way) {
        self.together.go(way);
    }

    /// Connects all of them, some at a time, as a fleet whose pauses are jittered comes back.
    pub(crate) async fn connect(&mut self) -> Result<()> {
        let (first, mut firsts) = mpsc::channel(1);
        for (number, sensor) in self.sensors.iter().enumerate() {
            self.running.spawn(sensor.clone().run(self.tell.clone(), first.clone()));
            if number % AT_ONCE == AT_ONCE - 1 {
                tokio::time::sleep(Duration::from_millis(150)).await;
            }
        }
        let waited = tokio::time::timeout(Duration::from_secs(60), firsts.recv()).await;
        self.first = waited.context("no sensor got an order")?;
        Ok(())
    }

    /// Waits until each has reported that it enforces what this change brought.
    pub(crate) async fn all_have(&mut self, serial: u64, patience: Duration) -> Result<()> {
        let mut have = HashSet::new();
        let wait = async {
            while have.len() < self.sensors.len() {
                tokio::select! {
                    Some(reported) = self.news.recv() => {
                        if reported.serial == serial {
                            have.insert(reported.host);
                        }
                    }
                    Some(ended) = self.running.join_next() => {
                        ended?.context("a sensor stopped")?;
                        bail!("the gateway ended a sensor's stream");
                    }
                }
            }
            Ok(())
        };
        let waited = tokio::time::timeout(patience, wait).await;
        waited.with_context(|| format!("{} of {} have it", have.len(), self.sensors.len()))?
    }

    /// Shows that the sensors' verification is a real one: what is not the gateway's is refused, and the same unchanged is not.
    pub(crate) fn refuse_what_is_forged(&self) -> Result<()> {
        let (Some(good), Some(sensor)) = (&self.first, self.sensors.first()) else { bail!("no order came") };
        let takes = |trust: &Trust, bundle: &PolicyBundle| {
            judge(trust, bundle, &Held::default(), &InForce::default(), Current::load)
                .is_ok_and(|change| change.is_some())
        };
        ensure!(takes(&sensor.trust, good), "control: the gateway's own order is refused");
        let mut content = good.archive.to_vec();
        if let Some(last) = content.last_mut() {
            *last ^= 1;
        }
        let changed = PolicyBundle { archive: content.into(), ..good.clone() };
        let renumbered = PolicyBundle { serial: good.serial + 1, ..good.clone() };
        let unsigned = PolicyBundle { statement: String::new(), ..good.clone() };
        for (what, forged) in [("changed", changed), ("renumbered", renumbered), ("unsigned", unsigned)] {
            ensure!(!takes(&sensor.trust, &forged), "a {what} order was accepted");
        }
        let stranger = Trust { key: None, ..sensor.trust.clone() };
        ensure!(!takes(&stranger, good), "an order was accepted without a key to verify it with");
        Ok(())
    }
}
