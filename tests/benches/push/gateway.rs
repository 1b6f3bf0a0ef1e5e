//! The gateway from outside: its console, as somebody of the security team, and its process.

use std::collections::HashMap;
use std::path::Path;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, bail, ensure};
use sallyport_contract::v1::console_client::ConsoleClient;
use sallyport_contract::v1::{
    CreateJoinTokenRequest, EventsRequest, ListPoliciesRequest, PushPolicyRequest, PushPolicyResponse,
};
use sallyport_evidence::record::Record;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint};
use tonic::{Request, Status};

/// Adds the token to each request.
#[derive(Clone)]
pub(crate) struct Bearer(MetadataValue<Ascii>);

impl Interceptor for Bearer {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        request.metadata_mut().insert("authorization", self.0.clone());
        Ok(request)
    }
}

/// The running gateway.
pub(crate) struct Gateway {
    /// Its URL.
    pub(crate) url: String,
    /// Its CA, PEM.
    pub(crate) ca_pem: String,
    console: ConsoleClient<InterceptedService<Channel, Bearer>>,
    pid: u32,
}

/// What the gateway's own records say of one push: nanoseconds since the Unix epoch.
pub(crate) struct Told {
    /// When the change was put on the record, which is just before it is in force.
    pub(crate) changed: u64,
    /// When each sensor's report had arrived, in order.
    pub(crate) reports: Vec<u64>,
}

impl Told {
    /// Whether all reports had arrived by then.
    pub(crate) fn all_before(&self, time: u64) -> bool {
        self.reports.iter().all(|report| *report <= time)
    }
}

impl Gateway {
    /// As the person whose `sallyport login` left its profile in `home`.
    pub(crate) async fn connect(home: &Path, pid: u32) -> Result<Self> {
        let folder = home.join(".config/sallyport/gateways");
        let profile = std::fs::read_dir(&folder)?.flatten().map(|entry| entry.path());
        let profile = profile.into_iter().find(|path| path.extension().is_some_and(|it| it == "json"));
        let profile = std::fs::read(profile.context("nobody has signed in")?)?;
        let profile: serde_json::Value = serde_json::from_slice(&profile)?;
        let text = |name: &str| profile[name].as_str().map(str::to_owned).context("a profile");
        let (url, ca_pem) = (text("gateway")?.trim_end_matches('/').to_owned(), text("ca_pem")?);
        let tls =
            ClientTlsConfig::new().ca_certificate(Certificate::from_pem(&ca_pem)).domain_name("127.0.0.1");
        let channel = Endpoint::from_shared(url.clone())?.tls_config(tls)?.connect().await?;
        let bearer = Bearer(format!("Bearer {}", text("token")?).parse()?);
        let console = ConsoleClient::with_interceptor(channel, bearer).max_decoding_message_size(64 << 20);
        Ok(Self { url, ca_pem, console, pid })
    }

    /// A one-time token for a host.
    pub(crate) async fn join_token(&self, host: &str) -> Result<String> {
        let request = CreateJoinTokenRequest { host: host.to_owned(), ttl_seconds: 3_600 };
        Ok(self.console.clone().create_join_token(request).await?.into_inner().token)
    }

    /// Pushes a version.
    pub(crate) async fn push(&mut self, archive: Vec<u8>) -> Result<PushPolicyResponse> {
        let request = PushPolicyRequest {
            archive,
            message: "another program is forbidden".into(),
            ..PushPolicyRequest::default()
        };
        let answer = self.console.push_policy(request).await?.into_inner();
        ensure!(answer.problems.is_empty() && !answer.unchanged, "{:?}", answer.problems);
        Ok(answer)
    }

    /// Whether the gateway says of every host that it enforces this version and nothing else.
    pub(crate) async fn agrees(&mut self, version: &str, hosts: &[String]) -> Result<()> {
        let listed = self.console.list_policies(ListPoliciesRequest { limit: 1 }).await?.into_inner();
        let sensors: HashMap<&str, _> =
            listed.sensors.iter().map(|sensor| (sensor.host.as_str(), sensor)).collect();
        for host in hosts {
            let sensor = sensors.get(host.as_str()).with_context(|| format!("{host} is not listed"))?;
            ensure!(
                sensor.version == version && sensor.drift.is_empty() && sensor.connected,
                "the gateway says of {host}: {sensor:?}"
            );
        }
        Ok(())
    }

    /// How many records the log has.
    pub(crate) async fn log_size(&mut self) -> Result<u64> {
        let newest = EventsRequest { limit: 1, ..EventsRequest::default() };
        let mut entries = self.console.events(newest).await?.into_inner();
        let mut size = 0;
        while let Some(entry) = entries.message().await? {
            size = size.max(entry.index + 1);
        }
        Ok(size)
    }

    /// What the log says of a change, once it says it of every sensor.
    pub(crate) async fn told(
        &mut self,
        from: u64,
        serial: u64,
        sensors: usize,
        patience: Duration,
    ) -> Result<Told> {
        let begun = Instant::now();
        let mark = format!("(serial {serial})");
        loop {
            let asked = EventsRequest { kind: "policy".into(), from_index: from, ..EventsRequest::default() };
            let mut entries = self.console.events(asked).await?.into_inner();
            let (mut changed, mut reports) = (None, HashMap::new());
            while let Some(entry) = entries.message().await? {
                let record = Record::from_bytes(&entry.record)?;
                let message = record.message.unwrap_or_default();
                if record.source.maker != "gateway" || !message.contains(&mark) {
                    continue;
                }
                match record.host {
                    None => changed = Some(record.time_ns),
                    Some(host) if message.ends_with("is in force") => {
                        reports.entry(host).or_insert(record.time_ns);
                    }
                    Some(host) => bail!("{host}: {message}"),
                }
            }
            if let Some(changed) = changed
                && reports.len() == sensors
            {
                let mut reports: Vec<u64> = reports.into_values().collect();
                reports.sort_unstable();
                return Ok(Told { changed, reports });
            }
            ensure!(begun.elapsed() < patience, "{} of {sensors} reports are on the record", reports.len());
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }

    /// What its process has used of the processors.
    pub(crate) fn processor(&self) -> Result<Duration> {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.pid))?;
        // After the name, which may hold blanks: user and system time are the 12th and 13th word, in ticks of 10 ms.
        let (_, words) = stat.rsplit_once(')').context("the gateway's process")?;
        let ticks = words.split_whitespace().skip(11).take(2).map(str::parse::<u64>);
        Ok(Duration::from_millis(ticks.sum::<Result<u64, _>>()? * 10))
    }

    /// Its memory now, MiB.
    pub(crate) fn memory(&self) -> Result<u64> {
        self.status("VmRSS:")
    }

    /// The most it ever had, MiB.
    pub(crate) fn peak(&self) -> Result<u64> {
        self.status("VmHWM:")
    }

    fn status(&self, name: &str) -> Result<u64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid))?;
        let line =
            status.lines().find_map(|line| line.strip_prefix(name)).context("the gateway's process")?;
        Ok(line.trim().trim_end_matches(" kB").trim().parse::<u64>()? / 1_024)
    }
}

/// As records have it.
pub(crate) fn now_ns() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}
