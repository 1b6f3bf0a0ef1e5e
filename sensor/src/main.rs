//! The `sallyport-sensor` program: reads the command line and hands over.

use std::io::{Read, Write};
use std::path::Path;
use std::process::ExitCode;

use anyhow::Context;
use clap::{CommandFactory, Parser};
use sallyport_sensor::cli::{Cli, Command, Join};
use sallyport_sensor::config::{self, Config, ConfigError};
use sallyport_sensor::credentials::{Credentials, CredentialsError, fingerprint};
use sallyport_sensor::daemon::{self, DaemonError};
use sallyport_sensor::doctor::Report;
use sallyport_sensor::join::{Anchor, join};
use sallyport_sensor::kernel::{Kernel, probe};
use sallyport_sensor::{files, shepherd};

const NOT_JOINED: u8 = 3;
const BAD_CONFIG: u8 = 4;
const CANNOT_ENFORCE: u8 = 5;
const NEEDS_MENDING: u8 = 6;

fn main() -> ExitCode {
    let cli = Cli::parse();
    // Before any thread is started: it forks.
    if matches!(cli.command, Command::Shepherd) {
        return ExitCode::from(u8::from(shepherd::run() != 0));
    }
    match run(cli.command) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("sallyport-sensor: {error:#}");
            ExitCode::from(exit_code(&error))
        }
    }
}

fn exit_code(error: &anyhow::Error) -> u8 {
    let not_joined = |error: &CredentialsError| matches!(error, CredentialsError::NotJoined);
    match error.downcast_ref::<DaemonError>() {
        Some(DaemonError::Credentials(error)) if not_joined(error) => NOT_JOINED,
        _ if error.downcast_ref::<CredentialsError>().is_some_and(not_joined) => NOT_JOINED,
        _ if error.is::<ConfigError>() => BAD_CONFIG,
        _ => 1,
    }
}

fn run(command: Command) -> anyhow::Result<ExitCode> {
    match command {
        Command::Run(path) => {
            let config = Config::read(&path.config)?;
            start_logging(&config);
            sallyport_sensor::unbrokered::forget_own_login();
            runtime()?.block_on(daemon::run(config, &path.config))?;
        }
        Command::Join(arguments) => do_join(&arguments)?,
        Command::Doctor { config: path, json } => {
            let config = Config::read(&path.config)?;
            let report = Report::of(&config);
            let text =
                if json { serde_json::to_string_pretty(&report)? + "\n" } else { report.text(&path.config) };
            print(&text)?;
            if !report.can_enforce() {
                return Ok(ExitCode::from(CANNOT_ENFORCE));
            }
            if report.has_errors() {
                return Ok(ExitCode::from(NEEDS_MENDING));
            }
        }
        Command::DefaultConfig => print(config::DEFAULT)?,
        Command::CheckConfig(path) => {
            Config::read(&path.config)?;
            print(&format!("{} is good\n", path.config.display()))?;
        }
        Command::Uninstall { config: path, purge } => uninstall(&Config::read(&path.config)?, purge)?,
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "sallyport-sensor", &mut script);
            std::io::stdout().write_all(&script)?;
        }
        Command::Man => {
            let mut page = Vec::new();
            clap_mangen::Man::new(Cli::command()).section("8").render(&mut page)?;
            std::io::stdout().write_all(&page)?;
        }
        Command::Shepherd => {}
    }
    Ok(ExitCode::SUCCESS)
}

/// A reader that has gone away (`| head`) is no failure.
fn print(text: &str) -> anyhow::Result<()> {
    match std::io::stdout().write_all(text.as_bytes()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => Err(error.into()),
        _ => Ok(()),
    }
}

fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread().enable_all().build().context("the runtime cannot be started")
}

fn start_logging(config: &Config) {
    let filter = std::env::var("RUST_LOG").unwrap_or_else(|_| config.log.clone());
    let builder = tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::new(filter))
        .with_writer(std::io::stderr)
        .with_ansi(false);
    if config.log_json { builder.json().init() } else { builder.init() }
}

fn do_join(arguments: &Join) -> anyhow::Result<()> {
    let config = Config::read(&arguments.config.config)?;
    let known = Credentials::load(&config.state_dir);
    match &known {
        Err(CredentialsError::NotJoined) => {}
        _ if arguments.force => {}
        Ok(known) => anyhow::bail!(
            "this host has joined {} as {} already; --force joins anew",
            known.gateway,
            known.host
        ),
        Err(_) => return known.map(drop).map_err(Into::into),
    }
    let anchor = match (&arguments.ca_file, &arguments.ca_sha256) {
        (Some(path), _) => {
            let pem = std::fs::read_to_string(path)
                .with_context(|| format!("`{}` cannot be read", path.display()))?;
            anyhow::ensure!(fingerprint(&pem).is_some(), "`{}` holds no certificate", path.display());
            Anchor::Pem(pem)
        }
        (None, Some(text)) => {
            let plain: String = text.chars().filter(|c| *c != ':').collect();
            let bytes = hex::decode(plain).ok().and_then(|bytes| bytes.try_into().ok());
            Anchor::Sha256(bytes.context("--ca-sha256 must be 64 hex digits")?)
        }
        (None, None) => anyhow::bail!("one of --ca-sha256 and --ca-file is needed"),
    };
    let token = read_token(arguments.token_file.as_deref())?;
    files::private_dir(&config.state_dir)
        .with_context(|| format!("`{}` cannot be used", config.state_dir.display()))?;
    let facts = daemon::host_facts(&probe().release);
    let credentials = runtime()?.block_on(join(&arguments.gateway, anchor, token.trim(), facts))?;
    if let Ok(known) = known.as_ref()
        && known.host != credentials.host
    {
        keep_spool_of(&config, &known.host)?;
    }
    // Whichever gateway it is now, its orders count from the beginning.
    sallyport_sensor::policies::forget(&config.state_dir)
        .context("the orders of policy cannot be forgotten")?;
    credentials.save(&config.state_dir)?;
    print(&format!("joined {} as {}\n", credentials.gateway, credentials.host))
}

/// Records made under another name cannot be delivered under the next one: they are put aside, not mixed.
fn keep_spool_of(config: &Config, host: &str) -> anyhow::Result<()> {
    for suffix in ["", "-wal", "-shm"] {
        let (from, to) = (format!("spool.db{suffix}"), format!("spool-of-{host}.db{suffix}"));
        let (from, to) = (config.state_dir.join(from), config.state_dir.join(to));
        if from.exists() {
            std::fs::rename(&from, &to)
                .with_context(|| format!("`{}` cannot be put aside", from.display()))?;
        }
    }
    Ok(())
}

fn read_token(path: Option<&Path>) -> anyhow::Result<String> {
    let token = match path {
        Some(path) if path == Path::new("-") => {
            let mut text = String::new();
            std::io::stdin().take(4096).read_to_string(&mut text).context("the token cannot be read")?;
            text
        }
        Some(path) => {
            std::fs::read_to_string(path).with_context(|| format!("`{}` cannot be read", path.display()))?
        }
        None => std::env::var("SALLYPORT_JOIN_TOKEN").context(
            "the token is needed: --token-file FILE, or the environment variable SALLYPORT_JOIN_TOKEN",
        )?,
    };
    anyhow::ensure!(!token.trim().is_empty(), "the token is empty");
    Ok(token)
}

fn uninstall(config: &Config, purge: bool) -> anyhow::Result<()> {
    Kernel::unpin_all(&config.pin_dir).context("the kernel programs cannot be taken away")?;
    remove(&config.run_dir)?;
    if purge {
        remove(&config.state_dir)?;
    }
    print("kernel programs removed: nothing is enforced on this host any more\n")
}

fn remove(path: &Path) -> anyhow::Result<()> {
    match std::fs::remove_dir_all(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("`{}` cannot be removed", path.display()))
        }
        _ => Ok(()),
    }
}
