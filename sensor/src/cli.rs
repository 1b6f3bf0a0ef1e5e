//! The command line.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

use crate::config::DEFAULT_PATH;

/// Holds sessions on this host under policy, in the kernel, and delivers the evidence.
///
/// Exit codes: 0 done; 1 failed, the message says why; 2 wrong usage; 3 not joined; 4 the configuration has faults;
/// 5 (doctor) sessions cannot be enforced here; 6 (doctor) they can, but something is wrong that must be mended.
#[derive(Debug, Parser)]
#[command(name = "sallyport-sensor", version, arg_required_else_help = true)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// Commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the sensor in the foreground, as the service does.
    ///
    /// SIGTERM and SIGINT stop it; running sessions and enforcement go on, and the next `run` takes them over.
    Run(WithConfig),
    /// Join a gateway with a one-time token (made there by `sallyport-gateway join-token --host NAME`).
    ///
    /// The host's key is made here and never leaves it.
    Join(Join),
    /// Say what this host can enforce, what it cannot, and why; what is wrong now, why it matters and what to do.
    ///
    /// Changes nothing. Exit codes: 0 sessions can be enforced (warnings and notes may follow), 5 they cannot, 6 they can but a
    /// finding of level ERROR must be mended.
    Doctor {
        /// Configuration.
        #[command(flatten)]
        config: WithConfig,
        /// As JSON.
        #[arg(long)]
        json: bool,
    },
    /// Print a configuration with every setting, its default and its meaning.
    DefaultConfig,
    /// Check the configuration and name all faults.
    CheckConfig(WithConfig),
    /// Take the kernel programs away: enforcement on this host ends. The sensor must be stopped first.
    ///
    /// State (identity, policy, undelivered records) stays unless --purge is given.
    Uninstall {
        /// Configuration.
        #[command(flatten)]
        config: WithConfig,
        /// Delete the state too, undelivered records included.
        #[arg(long)]
        purge: bool,
    },
    /// Print a shell's completion script.
    Completions {
        /// The shell.
        shell: clap_complete::Shell,
    },
    /// Print the manual page.
    Man,
    /// One channel's process; started by the sensor, not by people.
    #[command(hide = true)]
    Shepherd,
}

/// Where the configuration is.
#[derive(Debug, Args)]
pub struct WithConfig {
    /// Configuration file. Without one, defaults.
    #[arg(long, value_name = "FILE", default_value = DEFAULT_PATH, env = "SALLYPORT_SENSOR_CONFIG")]
    pub config: PathBuf,
}

/// Arguments of `join`.
#[derive(Debug, Args)]
pub struct Join {
    /// Configuration.
    #[command(flatten)]
    pub config: WithConfig,
    /// The gateway, as https://HOST:PORT.
    #[arg(long, value_name = "URL")]
    pub gateway: String,
    /// SHA-256 of the gateway's CA certificate, hex; `join-token` prints it.
    #[arg(long, value_name = "HEX", conflicts_with = "ca_file", required_unless_present = "ca_file")]
    pub ca_sha256: Option<String>,
    /// The gateway's CA certificate, PEM.
    #[arg(long, value_name = "FILE")]
    pub ca_file: Option<PathBuf>,
    /// File with the one-time token; `-` reads standard input. Without it: environment variable SALLYPORT_JOIN_TOKEN.
    #[arg(long, value_name = "FILE")]
    pub token_file: Option<PathBuf>,
    /// Join although this host has joined before.
    #[arg(long)]
    pub force: bool,
}
