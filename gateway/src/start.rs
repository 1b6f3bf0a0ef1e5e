//! Starting and stopping: opens everything in the right order, closes what a crash left open, and ends in
//! the reverse order.

use crate::authority::x509::{Authority, AuthorityError, Rotating};
use crate::authorize::{Authorizer, EndReason};
use crate::changes::Changes;
use crate::ci::Ci;
use crate::config::Config;
use crate::console::{SignIn, SshCommand};
use crate::link::{self, service};
use crate::policy::{PolicyError, PolicyStore, short, watch_canary};
use crate::recorder::{self, Recorder, draft, recording, verify_casts};
use crate::sensors::registry::Sensors;
use crate::sessions::Sessions;
use crate::state::sessions::{self as table, ChannelRow, SessionRow, Wanted};
use crate::state::{State, StateError, sensors};
use sallyport_evidence::record::{Kind, Record, Session};
use std::fs::{File, TryLockError};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

/// What an operator did on the command line is seen within this time.
const OPERATOR_POLL: Duration = Duration::from_secs(1);
/// At the end, channels and sessions get this long to be closed on the record.
const DRAIN_WITHIN: Duration = Duration::from_secs(15);

/// Everything the front doors need, made once at start. Cheap to clone.
#[derive(Clone)]
pub struct Gateway {
    /// The validated configuration.
    pub config: Arc<Config>,
    /// The state database.
    pub state: State,
    /// Mints sessions.
    pub authorizer: Authorizer,
    /// Changes of policy from outside.
    pub changes: Changes,
    /// The X.509 authority.
    pub authority: Arc<Authority>,
    /// Cancelled when the gateway shuts down: stop accepting, close what is open, return.
    pub shutdown: CancellationToken,
    /// Cancelled when it must stop because evidence can no longer be kept.
    pub fatal: CancellationToken,
    recorder: Recorder,
    sensors: Sensors,
    streams_end: CancellationToken,
    /// Held as long as the gateway runs: one process per state folder.
    _lock: Arc<File>,
}

/// The gateway cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The state folder.
    #[error("cannot use the state folder `{path}`")]
    Folder {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        err: std::io::Error,
    },
    /// Another gateway runs on it.
    #[error("another sallyport-gateway is running on `{path}`; stop it first")]
    Locked {
        /// Which.
        path: PathBuf,
    },
    /// State.
    #[error(transparent)]
    State(#[from] StateError),
    /// Evidence.
    #[error(transparent)]
    Recorder(#[from] recorder::OpenError),
    /// Evidence of the start.
    #[error("the start cannot be recorded")]
    Record(#[from] recorder::AppendError),
    /// CA.
    #[error(transparent)]
    Authority(#[from] AuthorityError),
    /// Trust anchors for the issuers of CI tokens.
    #[error("a `[[ci]]` section of the configuration cannot be used")]
    Ci(#[from] crate::identity::http::SetUpError),
    /// Policy.
    #[error(transparent)]
    Policy(#[from] PolicyError),
}

/// The gRPC listener, bound and ready to serve.
pub struct GrpcServer {
    listener: TcpListener,
    tls: rustls::ServerConfig,
    parts: service::Parts,
}

impl Gateway {
    /// Opens everything and closes, on the record, what an earlier run left open.
    ///
    /// # Errors
    /// See [`StartError`].
    pub async fn start(config: Config) -> Result<Self, StartError> {
        let dir = config.state_dir.clone();
        crate::files::private_dir(&dir).map_err(|err| StartError::Folder { path: dir.clone(), err })?;
        let lock = lock(&dir)?;
        let (shutdown, fatal) = (CancellationToken::new(), CancellationToken::new());
        let state = State::open(&dir.join("state.db"))?;
        let recorder = Recorder::open(&dir.join("evidence"), &config.name, fatal.clone())?;
        let authority = Arc::new(Authority::open(&dir)?);
        close_leftovers(&state, &recorder).await?;
        let bundle = config.policy_bundle.as_deref();
        let policies = PolicyStore::open(state.clone(), recorder.clone(), &dir, &config.name, bundle).await?;
        let sessions = Sessions::default();
        let sensors =
            Sensors::open(state.clone(), recorder.clone(), sessions.clone(), config.reattach_grace).await?;
        let version =
            policies.current().map_or("none".to_owned(), |current| short(&current.stored.version).to_owned());
        let authorizer = Authorizer::new(
            policies,
            sensors.clone(),
            sessions,
            recorder.clone(),
            state.clone(),
            config.session_limit,
        );
        let ci = Ci::new(&config.ci)?;
        let changes =
            Changes::new(&config.name, config.changes.clone(), authorizer.clone(), state.clone(), ci);
        let what = format!("sallyport-gateway {} started; policy {version}", env!("CARGO_PKG_VERSION"));
        recorder.append(note(what)).await?;
        let gateway = Self {
            config: Arc::new(config),
            state,
            authorizer,
            changes,
            authority,
            shutdown,
            fatal,
            recorder,
            sensors,
            streams_end: CancellationToken::new(),
            _lock: Arc::new(lock),
        };
        tokio::spawn(gateway.clone().watch_operator());
        tokio::spawn(watch_canary(gateway.authorizer.clone(), gateway.shutdown.clone()));
        Ok(gateway)
    }

    /// Binds the gRPC listener.
    ///
    /// # Errors
    /// The address is taken, or the certificate cannot be made.
    pub async fn bind_grpc(&self, sign_in: Arc<dyn SignIn>) -> anyhow::Result<GrpcServer> {
        let certificate = Arc::new(Rotating::new(self.authority.server_key(&self.config.grpc.names)?));
        let tls = link::tls(&self.authority, certificate.clone())?;
        let address = self.config.grpc.listen;
        let listener = TcpListener::bind(address).await.map_err(|err| {
            anyhow::Error::new(err).context(format!("cannot listen on {address} (grpc.listen)"))
        })?;
        tokio::spawn(renew(self.clone(), certificate));
        let options = sign_in.options();
        let parts = service::Parts {
            authority: self.authority.clone(),
            state: self.state.clone(),
            authorizer: self.authorizer.clone(),
            changes: self.changes.clone(),
            sign_in,
            ssh_command: SshCommand { host: options.ssh_host, port: options.ssh_port },
            shutdown: self.shutdown.clone(),
            streams_end: self.streams_end.clone(),
        };
        Ok(GrpcServer { listener, tls, parts })
    }

    /// Ends all sessions, waits until their ends are on the record, signs the last checkpoint.
    pub async fn stop(&self) {
        self.shutdown.cancel();
        for session in self.authorizer.running() {
            self.authorizer.end_session(&session, EndReason::Shutdown);
        }
        if tokio::time::timeout(DRAIN_WITHIN, self.sensors.drained()).await.is_err() {
            tracing::warn!("some sessions did not end in time; the next start closes them on the record");
        }
        // Only now: until here hosts were told to hang up over these streams.
        self.streams_end.cancel();
        if let Err(err) = self.recorder.append(note("sallyport-gateway stopped".to_owned())).await {
            tracing::error!(%err, "the stop is not on the record");
        }
        self.recorder.stop().await;
    }

    /// Takes over what `join-token` and `revoke-sensor` did in other processes: puts it on the record, and
    /// cuts revoked sensors off.
    async fn watch_operator(self) {
        loop {
            if let Err(err) = self.changes.expire().await {
                tracing::warn!(%err, "cannot settle proposals that expired");
            }
            if let Err(err) = self.operator_acts().await {
                tracing::warn!(err = %crate::chain(&err), "cannot read what operators did");
            }
            tokio::select! {
                () = tokio::time::sleep(OPERATOR_POLL) => {}
                () = self.shutdown.cancelled() => return,
            }
        }
    }

    async fn operator_acts(&self) -> Result<(), StateError> {
        for (id, host, message) in sensors::acts(&self.state).await? {
            let mut record = note(message);
            record.host = Some(host);
            if self.recorder.append(record).await.is_ok() {
                sensors::act_recorded(&self.state, id).await?;
            }
        }
        let connected = self.sensors.connected_hosts();
        if !connected.is_empty() {
            for host in sensors::revoked(&self.state).await?.iter().filter(|host| connected.contains(host)) {
                self.sensors.cut_off(host);
            }
        }
        Ok(())
    }
}

impl GrpcServer {
    /// Where it listens; tells the port when 0 was asked for.
    ///
    /// # Errors
    /// The socket is not usable.
    pub fn address(&self) -> std::io::Result<std::net::SocketAddr> {
        self.listener.local_addr()
    }

    /// Serves until shutdown.
    ///
    /// # Errors
    /// The server failed.
    pub async fn serve(self) -> anyhow::Result<()> {
        let connections = link::accept(self.listener, self.tls, self.parts.shutdown.clone());
        Ok(service::serve(connections, self.parts).await?)
    }
}

fn lock(dir: &Path) -> Result<File, StartError> {
    let path = dir.join("lock");
    let folder = |err| StartError::Folder { path: path.clone(), err };
    crate::files::touch_private(&path).map_err(folder)?;
    let file = File::options().write(true).open(&path).map_err(folder)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(StartError::Locked { path: dir.to_owned() }),
        Err(TryLockError::Error(err)) => Err(folder(err)),
    }
}

/// Sessions and channels that were open when the gateway stopped without closing them.
async fn close_leftovers(state: &State, recorder: &Recorder) -> Result<(), StartError> {
    let wanted = Wanted { active_only: true, limit: u32::MAX, ..Wanted::default() };
    for (session, channels) in table::list(state, wanted).await? {
        for channel in channels.iter().filter(|channel| channel.ended_ms.is_none()) {
            let path = recording::path(recorder.recordings(), &session.id, &channel.id);
            let recovered =
                tokio::task::spawn_blocking(move || path.map(|path| recording::recover(&path))).await;
            let recording = match recovered {
                Ok(Some(Ok(done))) => verify_casts::statement(&done),
                Ok(Some(Err(err))) => format!("its recording is not usable: {}", crate::chain(&err)),
                Ok(None) | Err(_) => "it has no recording".to_owned(),
            };
            let message = format!("lost: gateway restarted; {recording}");
            recorder.append(leftover(&session, Some(channel), Kind::ChannelClose, message)).await?;
        }
        recorder.append(leftover(&session, None, Kind::SessionClose, "gateway restarted".to_owned())).await?;
        table::close(state, &session.id, "gateway restarted").await?;
    }
    Ok(())
}

fn leftover(session: &SessionRow, channel: Option<&ChannelRow>, kind: Kind, message: String) -> Record {
    let mut record = draft(kind);
    record.host = Some(session.host.clone());
    record.identity = Some(session.identity.clone());
    record.session = Some(Session {
        id: session.id.clone(),
        channel: channel.map(|channel| channel.id.clone()).unwrap_or_default(),
        local_user: session.local_user.clone(),
        client: session.client.clone(),
    });
    record.message = Some(message);
    record
}

fn note(message: String) -> Record {
    let mut record = draft(Kind::Access);
    record.message = Some(message);
    record
}

/// Remakes the listener's certificate well before it ends.
async fn renew(gateway: Gateway, certificate: Arc<Rotating>) {
    loop {
        tokio::select! {
            () = tokio::time::sleep(Authority::server_renewal()) => {}
            () = gateway.shutdown.cancelled() => return,
        }
        match gateway.authority.server_key(&gateway.config.grpc.names) {
            Ok(key) => certificate.replace(key),
            Err(err) => tracing::error!(err = %crate::chain(&err), "cannot renew the listener's certificate"),
        }
    }
}
