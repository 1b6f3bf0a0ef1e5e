//! The command line's grammar. What it says here is the help, the manual pages and the completions.

use std::{path::PathBuf, time::Duration};

use clap::{Args, Parser, Subcommand, ValueEnum, ValueHint};

use crate::clock;

mod change;
mod meaning;
mod policy;

pub use change::{Archive, Bring, Keygen, Settle, Sign, Verify as VerifyPolicy};
pub use meaning::{Backtest, Diff, Evidence, Explain, Learn, PersonKind, Who};
pub use policy::{
    Bundle, Canary, Check, Docs, EndCanary, Fmt, Init, List, Policy, Push, Rollback, Show, StartCanary, Test,
};

const EXIT_CODES: &str = "\
Exit codes:
  0  done
  1  failed, refused, or something wrong was found (faults in a policy, a log that does not verify)
  2  the command line was wrong
  3  not signed in, or no longer: run `sallyport login`
  4  the gateway or the identity provider cannot be reached

Files:
  ~/.config/sallyport           who is signed in where, mode 0600 (XDG_CONFIG_HOME is honoured)
  ~/.local/state/sallyport      the newest log checkpoint seen, for `verify` (XDG_STATE_HOME)
  ~/.ssh/sallyport              key, certificate and configuration for ssh

Environment: SALLYPORT_GATEWAY, SALLYPORT_CA_FILE, NO_COLOR, SSL_CERT_FILE (CAs for the identity provider, instead of
  the system's); in CI jobs SALLYPORT_CA_SHA256, SALLYPORT_ID_TOKEN (see `policy push --help`).";

/// Sign in, reach hosts, manage policy, watch and prove what happened.
#[derive(Debug, Parser)]
#[command(name = "sallyport", version, after_help = EXIT_CODES, max_term_width = 100)]
pub struct Cli {
    /// Options for all commands.
    #[command(flatten)]
    pub global: Global,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// Options for all commands.
#[derive(Clone, Debug, Default, Args)]
pub struct Global {
    /// The gateway, https://HOST:PORT [default: the one signed in to last]
    #[arg(long, global = true, env = "SALLYPORT_GATEWAY", hide_env_values = true, value_name = "URL", value_hint = ValueHint::Url)]
    pub gateway: Option<String>,
    /// The gateway's CA certificate, PEM [default: the one pinned by `login`]
    #[arg(long, global = true, env = "SALLYPORT_CA_FILE", hide_env_values = true, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub ca_file: Option<PathBuf>,
    /// Print JSON: one document per line, and errors as JSON on standard error
    #[arg(long, global = true)]
    pub json: bool,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Sign in with your identity provider and set up ssh
    Login(Login),
    /// End the sign-in and remove the ssh key and certificate
    Logout,
    /// Show who you are to the gateway
    Whoami,
    /// List the hosts that you may reach
    Targets,
    /// Print (or write) the ssh configuration that makes `ssh HOST` work
    SshConfig(SshConfig),
    /// Check, test, push and show policy
    #[command(subcommand)]
    Policy(Policy),
    /// List sessions, newest first
    Sessions(Sessions),
    /// Act on one session
    #[command(subcommand)]
    Session(Session),
    /// Show records of the log, or follow it
    Events(Events),
    /// Play a session in the terminal, with what the kernel saw between the lines
    Replay(Replay),
    /// Recompute the log and check that its history was not changed
    Verify(Verify),
    /// Let hosts join and shut them out
    #[command(subcommand)]
    Sensor(Sensor),
    /// Print a completion script
    Completions {
        /// For this shell
        shell: clap_complete::Shell,
    },
    /// Write the manual pages into a folder
    Man {
        /// The folder
        #[arg(value_hint = ValueHint::DirPath)]
        dir: PathBuf,
    },
}

/// `login`.
#[derive(Debug, Args)]
pub struct Login {
    /// SHA-256 of the gateway's CA certificate, as its operator gives it
    #[arg(long, value_name = "HEX", conflicts_with = "ca_file")]
    pub ca_sha256: Option<String>,
    /// Only print the address to open; do not start a browser
    #[arg(long)]
    pub no_browser: bool,
    /// Leave ~/.ssh/config alone
    #[arg(long)]
    pub no_ssh_config: bool,
    /// Do not add the key to ssh-agent
    #[arg(long)]
    pub no_agent: bool,
    /// Pin the evidence log's new key, after its operator confirmed that it changed
    #[arg(long)]
    pub accept_log_key: bool,
    /// How long to wait for the sign-in
    #[arg(long, value_parser = clock::parse_duration, default_value = "5m", value_name = "DURATION")]
    pub timeout: Duration,
}

/// How ssh gets to a host.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Via {
    /// Straight to the gateway, which knows the target from the user name
    #[default]
    Direct,
    /// `ProxyJump` through the gateway, so that `ssh USER@HOST` takes the user name as it is
    Jump,
}

/// `ssh-config`.
#[derive(Debug, Args)]
pub struct SshConfig {
    /// How ssh gets to a host
    #[arg(long, value_enum, default_value_t)]
    pub via: Via,
    /// Write ~/.ssh/sallyport/config instead of printing it
    #[arg(long)]
    pub write: bool,
}

/// `sessions`.
#[derive(Debug, Args)]
pub struct Sessions {
    /// Only those that run now
    #[arg(long)]
    pub active: bool,
    /// Only this person's
    #[arg(long)]
    pub user: Option<String>,
    /// Only on this host
    #[arg(long)]
    pub host: Option<String>,
    /// At most so many
    #[arg(long, default_value_t = 50, value_name = "N")]
    pub limit: u32,
}

/// `session …`.
#[derive(Debug, Subcommand)]
pub enum Session {
    /// End a running session now
    End {
        /// Session id
        id: String,
        /// Shown to the person and kept in the log
        #[arg(short, long, default_value = "ended by an operator", value_name = "TEXT")]
        reason: String,
    },
}

/// `events`.
#[derive(Debug, Args)]
pub struct Events {
    /// Keep going as records arrive
    #[arg(short, long)]
    pub follow: bool,
    /// Only of this session
    #[arg(long, value_name = "ID")]
    pub session: Option<String>,
    /// Only of this person
    #[arg(long)]
    pub user: Option<String>,
    /// Only of this host
    #[arg(long)]
    pub host: Option<String>,
    /// Only of this kind: sign_in, session_open, session_close, channel_open, channel_close, fork, exec, exit,
    /// connect, policy, sensor, loss, access
    #[arg(long)]
    pub kind: Option<String>,
    /// Only with this outcome: allowed, blocked, killed, observed
    #[arg(long)]
    pub outcome: Option<String>,
    /// Only since then: `2h` (ago), a date, or an RFC 3339 time
    #[arg(long, value_name = "WHEN")]
    pub since: Option<String>,
    /// The newest N that match; 0 for all [default: 100, or 10 with --follow, or all with --since]
    #[arg(long, value_name = "N")]
    pub limit: Option<u32>,
}

/// `replay`.
#[derive(Debug, Args)]
pub struct Replay {
    /// Session id
    pub session: String,
    /// Channel id [default: the session's first that was recorded]
    #[arg(long, value_name = "ID")]
    pub channel: Option<String>,
    /// Faster or slower
    #[arg(long, default_value = "1", value_name = "N", value_parser = parse_speed)]
    pub speed: f64,
    /// Start there, like 1m30s
    #[arg(long, value_parser = clock::parse_duration, value_name = "WHERE")]
    pub from: Option<Duration>,
    /// Longest pause that is played
    #[arg(long, value_parser = clock::parse_duration, default_value = "2s", value_name = "DURATION")]
    pub idle_limit: Duration,
    /// Leave out what the kernel saw
    #[arg(long)]
    pub no_events: bool,
    /// Save the recording (asciicast v3) instead of playing it
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub save: Option<PathBuf>,
}

fn parse_speed(text: &str) -> Result<f64, String> {
    match text.trim_end_matches(['x', 'X']).parse::<f64>() {
        Ok(speed) if (0.05..=1000.0).contains(&speed) => Ok(speed),
        _ => Err("a speed is a number from 0.05 to 1000".to_owned()),
    }
}

/// `verify`.
#[derive(Debug, Args)]
pub struct Verify {
    /// Check consistency with this earlier checkpoint, too
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub from_checkpoint: Option<PathBuf>,
    /// Check a copy of the gateway's state folder instead, with no gateway and no network
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub state_dir: Option<PathBuf>,
    /// Verifier key of the log [default: the one pinned by `login`]
    #[arg(long, value_name = "KEY")]
    pub log_key: Option<String>,
    /// Also write the checkpoint that was verified, to keep elsewhere
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub save_checkpoint: Option<PathBuf>,
}

/// `sensor …`.
#[derive(Debug, Subcommand)]
pub enum Sensor {
    /// Make a one-time token with which a host joins
    Token {
        /// The name the host gets
        host: String,
        /// How long the token is good for
        #[arg(long, value_parser = clock::parse_duration, default_value = "1h", value_name = "DURATION")]
        ttl: Duration,
    },
    /// Shut a host's sensor out
    Revoke {
        /// The host
        host: String,
        /// Kept in the log
        #[arg(short, long, default_value = "revoked by an operator", value_name = "TEXT")]
        reason: String,
    },
}
