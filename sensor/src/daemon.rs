//! `sallyport-sensor run`: puts the parts together, and takes them apart in order.

use std::net::{ToSocketAddrs, UdpSocket};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use sallyport_contract::v1::HostFacts;
use sallyport_evidence::record::Kind;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::clock;
use crate::config::Config;
use crate::credentials::{Credentials, CredentialsError};
use crate::enrich::Enricher;
use crate::events::{Pump, PumpError};
use crate::files;
use crate::guard::OwnFiles;
use crate::heartbeat::{self, Pulse};
use crate::kernel::{Kernel, KernelError, KernelFacts, KernelOptions, Mode, probe};
use crate::lineage::Lineage;
use crate::policies::Policies;
use crate::policies::orders::Trust;
use crate::records::{Recorder, message_record};
use crate::sessions::{Sessions, Settings};
use crate::spool::{Spool, SpoolError};
use crate::status::Reporter;
use crate::unbrokered::{self, Unbrokered};
use crate::uplink::{Link, Uplink};

/// The unit that runs the sensor.
const UNIT: &str = "sallyport-sensor.service";
/// Signs of life, of which there is one a second, between two sweeps of the processes that ended.
const SWEEP_EVERY: u32 = 10;

/// The daemon could not start, or had to stop.
#[derive(Debug, thiserror::Error)]
pub enum DaemonError {
    /// Never joined, or damaged.
    #[error(transparent)]
    Credentials(#[from] CredentialsError),
    /// No enforcement: then no sessions either.
    #[error("the kernel side cannot be started")]
    Kernel(#[from] KernelError),
    /// A folder cannot be used.
    #[error("`{path}` cannot be used")]
    Folder {
        /// Which.
        path: PathBuf,
        /// Cause.
        #[source]
        source: std::io::Error,
    },
    /// Records cannot be kept.
    #[error(transparent)]
    Spool(#[from] SpoolError),
    /// Evidence cannot be taken.
    #[error(transparent)]
    Pump(#[from] PumpError),
    /// The program's own path is unknown, or signals cannot be handled.
    #[error("the process cannot be set up")]
    Setup(#[source] std::io::Error),
}

/// Runs until SIGTERM or SIGINT. Sessions go on without us; so does the kernel.
///
/// # Errors
/// It could not start, or evidence can be kept no longer.
pub async fn run(config: Config, config_path: &Path) -> Result<(), DaemonError> {
    // Handlers first: a signal that comes while starting is not lost.
    let mut terminate = signal(SignalKind::terminate()).map_err(DaemonError::Setup)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(DaemonError::Setup)?;
    let credentials = Credentials::load(&config.state_dir)?;
    for path in [&config.state_dir, &config.run_dir] {
        files::private_dir(path).map_err(|source| DaemonError::Folder { path: path.clone(), source })?;
    }
    let options = KernelOptions {
        pin_dir: config.pin_dir.clone(),
        cgroup_root: config.cgroup_root.clone(),
        mode: config.mode,
    };
    let started = tokio::task::spawn_blocking(move || (Kernel::start(&options), probe()))
        .await
        .map_err(|error| DaemonError::Setup(std::io::Error::other(error)))?;
    let ((kernel, started), found) = (started.0?, started.1);
    let kernel = Arc::new(kernel);
    // Started by hand from a log-in outside of the gateway it carries that one's tag, and would hand it on.
    kernel.untag(std::process::id())?;
    kernel.guard(std::process::id())?;
    tracing::info!(mode = %started.mode, adopted = started.adopted, host = credentials.host, "the kernel enforces");

    let boot = clock::boot_id();
    let spool =
        Spool::open(&config.state_dir.join("spool.db"), &credentials.host, &boot, config.spool_bytes)?;
    let own = own_files(&config, config_path)?;
    let trust = Trust {
        host: credentials.host.clone(),
        key: credentials.policy_verifier(),
        signers: config.policy_signers.clone(),
    };
    let policies = Policies::open(kernel.clone(), trust, &config.state_dir, &config.run_dir, own)
        .map_err(|source| DaemonError::Folder { path: config.run_dir.clone(), source })?;
    let policies = Arc::new(policies);
    let uplink = Uplink::new();
    let settings = settings(&config, &credentials)?;
    let unbrokered = unbrokered::Settings {
        host: credentials.host.clone(),
        run_dir: config.run_dir.clone(),
        wanted: config.unbrokered,
        break_glass: config.break_glass.clone(),
    };
    let unbrokered = Unbrokered::new(unbrokered, kernel.clone(), policies.clone(), spool.clone());
    let sessions = Sessions::new(
        settings,
        kernel.clone(),
        policies.clone(),
        spool.clone(),
        uplink.clone(),
        unbrokered.clone(),
    );
    sessions
        .restore()
        .await
        .map_err(|source| DaemonError::Folder { path: config.run_dir.clone(), source })?;
    let logins = unbrokered.clone();
    tokio::task::spawn_blocking(move || logins.start())
        .await
        .map_err(|error| DaemonError::Setup(std::io::Error::other(error)))?;
    let how = if started.adopted { "took over running enforcement" } else { "loaded its kernel programs" };
    let text = format!("sensor {} started and {how}; mode {}", env!("CARGO_PKG_VERSION"), started.mode);
    spool.append(vec![message_record(Kind::Sensor, &credentials.host, text)]).await?;

    let alive = kernel.tasks()?.into_iter().map(|task| (task.tgid, task.started));
    let recorder = Recorder::new(&credentials.host, &boot, started.mode, Lineage::of(alive).learn());
    let stop = CancellationToken::new();
    let pulse = Pulse::default();
    let beating = kernel.clone();
    let mut beats = 0_u32;
    let beat = move || {
        beating.heartbeat();
        beats = beats.wrapping_add(1);
        if beats.is_multiple_of(SWEEP_EVERY)
            && let Err(error) = beating.sweep_ended()
        {
            tracing::warn!(%error, "processes that are gone may still count as ended");
        }
    };
    heartbeat::start(pulse.clone(), stop.clone(), beat).map_err(DaemonError::Setup)?;
    kernel.set_grace(config.fail_closed_after.unwrap_or_default());
    let pump = Pump {
        events: kernel.events()?,
        kernel,
        recorder,
        enricher: Enricher::start(config.cgroup_root.clone().or(found.cgroup2.clone())),
        names: policies.names().clone(),
        pulse,
        sessions: sessions.clone(),
        unbrokered,
        reporter: Reporter::new(&config.run_dir),
        policies: policies.clone(),
        spool: spool.clone(),
        host: credentials.host.clone(),
    };
    let facts = facts(&found, started.mode, &boot);
    let host = credentials.host.clone();
    let link = Link {
        state_dir: config.state_dir.clone(),
        credentials,
        facts,
        sessions,
        policies,
        spool: spool.clone(),
        uplink,
    };
    let link = tokio::spawn(link.run(stop.clone()));
    let mut pump = tokio::spawn(pump.run(stop.clone()));
    let outcome = tokio::select! {
        _ = terminate.recv() => Ok(()),
        _ = interrupt.recv() => Ok(()),
        ended = &mut pump => match ended {
            Ok(result) => result.map_err(DaemonError::from),
            Err(error) => Err(DaemonError::Setup(std::io::Error::other(error))),
        },
    };
    stop.cancel();
    if outcome.is_ok() {
        let _ = pump.await;
        let text = "sensor stopped; sessions and enforcement go on";
        let last = spool.append_durably(vec![message_record(Kind::Sensor, &host, text)]);
        let _ = tokio::time::timeout(Duration::from_secs(5), last).await;
    }
    let _ = link.await;
    outcome
}

/// What no session may touch: configuration, state, sockets, program, pins, unit.
fn own_files(config: &Config, config_path: &Path) -> Result<OwnFiles, DaemonError> {
    let program = std::env::current_exe().map_err(DaemonError::Setup)?;
    let units =
        ["/etc/systemd/system", "/lib/systemd/system", "/usr/lib/systemd/system", "/run/systemd/system"];
    let units = units
        .into_iter()
        .flat_map(|folder| [format!("{folder}/{UNIT}"), format!("{folder}/{UNIT}.d")].map(PathBuf::from));
    // Keys, policy, records and the sockets of shepherds are not even to be read.
    Ok(OwnFiles::default()
        .hide([config.state_dir.clone(), config.run_dir.clone()])
        .guard([config_path.to_owned(), program, config.pin_dir.clone()])
        .guard(units))
}

fn settings(config: &Config, credentials: &Credentials) -> Result<Settings, DaemonError> {
    let sessions = &config.sessions;
    Ok(Settings {
        host: credentials.host.clone(),
        run_dir: config.run_dir.clone(),
        program: std::env::current_exe().map_err(DaemonError::Setup)?,
        max_sessions: sessions.max,
        max_channels: sessions.max_channels,
        max_processes: sessions.max_processes,
        accept_env: sessions.accept_env.clone(),
        sftp_server: sessions.sftp_server.clone(),
        reattach_grace: sessions.reattach_grace,
        hangup_grace: sessions.hangup_grace,
        server: local_address(&credentials.gateway).unwrap_or_else(|| "127.0.0.1 22".into()),
    })
}

/// This host's address towards the gateway: connecting a datagram socket sends nothing and tells the route.
fn local_address(gateway: &str) -> Option<String> {
    let uri: tonic::transport::Uri = gateway.parse().ok()?;
    let remote = (uri.host()?, uri.port_u16().unwrap_or(443)).to_socket_addrs().ok()?.next()?;
    let socket = UdpSocket::bind(if remote.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" }).ok()?;
    socket.connect(remote).ok()?;
    Some(format!("{} 22", socket.local_addr().ok()?.ip()))
}

/// What the gateway is told about this host.
#[must_use]
pub fn facts(found: &KernelFacts, mode: Mode, boot: &str) -> HostFacts {
    let limits = match mode {
        Mode::Lsm => found.lsm.limits.clone(),
        Mode::Tracepoint => found.tracepoint.limits.clone(),
    };
    HostFacts { mode: mode.to_string(), limits, boot_id: boot.into(), ..host_facts(&found.release) }
}

/// What is known without looking at the kernel closely.
#[must_use]
pub fn host_facts(release: &str) -> HostFacts {
    let hostname =
        nix::unistd::gethostname().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let os = std::fs::read_to_string("/etc/os-release").unwrap_or_default();
    let os =
        os.lines().find_map(|line| line.strip_prefix("PRETTY_NAME=")).unwrap_or("Linux").trim_matches('"');
    HostFacts {
        hostname,
        kernel: release.into(),
        os: os.into(),
        sensor_version: env!("CARGO_PKG_VERSION").into(),
        boot_id: clock::boot_id(),
        mode: String::new(),
        limits: Vec::new(),
    }
}
