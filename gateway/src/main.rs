//! `sallyport-gateway`: the command line and the wiring.
#![forbid(unsafe_code)]

mod cli;

use anyhow::{Context as _, bail};
use clap::{CommandFactory as _, Parser as _};
use cli::{Cli, Command};
use sallyport_evidence::note;
use sallyport_gateway::authority::ssh::SshAuthority;
use sallyport_gateway::authority::x509::{Authority, is_host_name};
use sallyport_gateway::config::{self, Config};
use sallyport_gateway::console::SignIn;
use sallyport_gateway::identity::{Credentials, OpenId, desk::Desk};
use sallyport_gateway::ssh::{self, Door};
use sallyport_gateway::state::{State, sensors, tokens};
use sallyport_gateway::{Gateway, recorder};
use std::io::{IsTerminal as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

/// The command failed.
const FAILED: u8 = 1;
/// `run` stopped because evidence could not be kept: a supervisor may start it again.
const EVIDENCE_LOST: u8 = 74;

fn main() -> ExitCode {
    let cli = Cli::parse();
    let outcome = match cli.command {
        Command::Run { config } => run(&config),
        Command::DefaultConfig => print(&config::default_text()),
        Command::CheckConfig { config } => Config::read(&config)
            .map_err(anyhow::Error::from)
            .and_then(|_| print(&format!("{} is valid\n", config.display()))),
        Command::JoinToken { config, host, ttl } => join_token(&config, &host, &ttl),
        Command::RevokeSensor { config, host, reason } => revoke_sensor(&config, &host, &reason),
        Command::Verify { config, state_dir, log_key, expect_size } => {
            verify(&config, state_dir, log_key.as_deref(), expect_size)
        }
        Command::Completions { shell } => {
            clap_complete::generate(shell, &mut Cli::command(), "sallyport-gateway", &mut std::io::stdout());
            Ok(ExitCode::SUCCESS)
        }
        Command::Man => clap_mangen::Man::new(Cli::command())
            .render(&mut std::io::stdout())
            .map(|()| ExitCode::SUCCESS)
            .map_err(anyhow::Error::from),
    };
    outcome.unwrap_or_else(|err| {
        eprintln!("sallyport-gateway: {err:#}");
        ExitCode::from(FAILED)
    })
}

fn run(path: &Path) -> anyhow::Result<ExitCode> {
    let config = Config::read(path)?;
    log_to_stderr();
    // One provider in the whole process: without this rustls could not choose.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let runtime =
        tokio::runtime::Builder::new_multi_thread().enable_all().build().context("cannot start threads")?;
    let outcome = runtime.block_on(serve(config));
    // Reads of files may still be under way; nothing of them is needed.
    runtime.shutdown_timeout(Duration::from_secs(1));
    outcome
}

async fn serve(config: Config) -> anyhow::Result<ExitCode> {
    // Before anything is opened: a signal during the start must not tear it.
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let gateway = Gateway::start(config).await?;
    let config = gateway.config.clone();
    let openid = OpenId::new(config.openid.clone())?;
    let credentials = Credentials::new(gateway.state.clone());
    let authority = Arc::new(SshAuthority::open(&config.state_dir)?);
    let desk: Arc<dyn SignIn> = Arc::new(Desk {
        openid: openid.clone(),
        credentials: credentials.clone(),
        authority: authority.clone(),
        authorizer: gateway.authorizer.clone(),
        ssh: config.ssh.clone(),
        gateway_name: config.name.clone(),
    });
    let grpc = gateway.bind_grpc(desk).await?;
    let address = config.ssh.listen;
    let listener = TcpListener::bind(address)
        .await
        .with_context(|| format!("cannot listen on {address} (ssh.listen)"))?;
    tracing::info!(
        name = config.name,
        ssh = %listener.local_addr()?,
        grpc = %grpc.address()?,
        ca_sha256 = gateway.authority.fingerprint(),
        log_key = gateway.authorizer.log_key(),
        "ready"
    );
    let door = Door::new(
        config.ssh.clone(),
        config.name.clone(),
        Arc::new(gateway.authorizer.clone()),
        openid,
        credentials,
        authority,
        gateway.shutdown.clone(),
    );
    let mut grpc = tokio::spawn(grpc.serve());
    let mut ssh = tokio::spawn(ssh::listener::serve(door, listener));
    let status = tokio::select! {
        _ = terminate.recv() => ExitCode::SUCCESS,
        _ = interrupt.recv() => ExitCode::SUCCESS,
        () = gateway.fatal.cancelled() => ExitCode::from(EVIDENCE_LOST),
        ended = &mut grpc => {
            tracing::error!(?ended, "the gRPC listener stopped");
            ExitCode::from(FAILED)
        }
        ended = &mut ssh => {
            tracing::error!(?ended, "the SSH door stopped");
            ExitCode::from(FAILED)
        }
    };
    tracing::info!("stopping");
    // A second signal does not wait for anybody.
    tokio::select! {
        () = gateway.stop() => {}
        _ = terminate.recv() => return Ok(ExitCode::from(FAILED)),
        _ = interrupt.recv() => return Ok(ExitCode::from(FAILED)),
    }
    Ok(status)
}

fn join_token(path: &Path, host: &str, ttl: &str) -> anyhow::Result<ExitCode> {
    if !is_host_name(host) {
        bail!(
            "`{host}` cannot name a host: lower-case letters, digits, `-`, `.` and `_`, 63 at most, not `gateway`"
        );
    }
    let ttl = config::parse_duration(ttl)
        .with_context(|| format!("`{ttl}` is not a time span; write for example 1h"))?;
    let config = Config::read(path)?;
    let authority =
        Authority::open(&config.state_dir).context("start the gateway once before making tokens")?;
    let token = on_state(&config, async |state| {
        sensors::note_act(
            &state,
            host,
            &format!("an operator made a join token for {host} on the command line"),
        )
        .await?;
        tokens::create_join(&state, host, ttl).await
    })?;
    // The token alone on stdout, so that it can go into a file; the rest is for people.
    eprintln!(
        "one-time token for {host}, good for {} minutes; on the host, put it into a file and run:",
        ttl.as_secs() / 60
    );
    eprintln!(
        "  sallyport-sensor join --gateway https://{}:{} --ca-sha256 {} --token-file FILE",
        config.grpc.names.first().map_or("GATEWAY", String::as_str),
        config.grpc.listen.port(),
        authority.fingerprint()
    );
    print(&format!("{}\n", token.secret))
}

fn revoke_sensor(path: &Path, host: &str, reason: &str) -> anyhow::Result<ExitCode> {
    let config = Config::read(path)?;
    let known = on_state(&config, async |state| {
        let what = format!("an operator revoked the sensor of {host} on the command line: {reason}");
        sensors::note_act(&state, host, &what).await?;
        sensors::revoke(&state, host, reason).await
    })?;
    if !known {
        bail!("no sensor ever joined as {host}");
    }
    print(&format!("the sensor of {host} is revoked; a running gateway cuts it off within a second\n"))
}

fn verify(
    path: &Path,
    state_dir: Option<PathBuf>,
    key: Option<&str>,
    expect: u64,
) -> anyhow::Result<ExitCode> {
    let (dir, name) = match (state_dir, key) {
        (Some(dir), Some(_)) => (dir, String::new()),
        (dir, _) => {
            let config = Config::read(path)?;
            (dir.unwrap_or(config.state_dir), config.name)
        }
    };
    let dir = dir.join("evidence");
    let key = match key {
        Some(key) => note::Verifier::parse(key)?,
        None => recorder::verify::own_key(&dir, &name)?,
    };
    let report = recorder::verify::verify(&dir, &key, expect)?;
    let casts = recorder::verify_casts::verify(&dir).context("cannot read the evidence log")?;
    print(&format!("{report}\n{casts}\n"))?;
    Ok(if report.holds() && casts.holds() { ExitCode::SUCCESS } else { ExitCode::from(FAILED) })
}

/// Runs `work` on the state database, which a running gateway may have open too.
fn on_state<T, E, F>(config: &Config, work: F) -> anyhow::Result<T>
where
    E: Into<anyhow::Error>,
    F: AsyncFnOnce(State) -> Result<T, E>,
{
    let path = config.state_dir.join("state.db");
    if !path.exists() {
        bail!("there is no gateway in {}; start it once first", config.state_dir.display());
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async { work(State::open(&path)?).await.map_err(Into::into) })
}

fn log_to_stderr() {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    let terminal = std::io::stderr().is_terminal();
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(terminal).init();
}

fn print(text: &str) -> anyhow::Result<ExitCode> {
    std::io::stdout().write_all(text.as_bytes()).context("cannot write the answer")?;
    Ok(ExitCode::SUCCESS)
}
