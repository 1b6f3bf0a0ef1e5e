//! The command line.

use clap::{Parser, Subcommand};
use std::path::PathBuf;

/// The gateway: SSH front door, sign-in, policy, sensors, and the embedded recorder.
#[derive(Debug, Parser)]
#[command(name = "sallyport-gateway", version, max_term_width = 100)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run the gateway until SIGTERM or SIGINT.
    Run {
        #[arg(long, value_name = "FILE", default_value = DEFAULT_CONFIG, help = CONFIG_HELP)]
        config: PathBuf,
    },
    /// Print a commented configuration to start from.
    DefaultConfig,
    /// Check a configuration and list all its faults.
    CheckConfig {
        #[arg(long, value_name = "FILE", default_value = DEFAULT_CONFIG, help = CONFIG_HELP)]
        config: PathBuf,
    },
    /// Make a one-time token with which a host's sensor can join. Works while the gateway runs.
    JoinToken {
        #[arg(long, value_name = "FILE", default_value = DEFAULT_CONFIG, help = CONFIG_HELP)]
        config: PathBuf,
        /// Name of the host, as it stands in policies and in `ssh HOST@gateway`.
        #[arg(long)]
        host: String,
        /// How long the token is good for: a number and s, m, h or d.
        #[arg(long, default_value = "1h")]
        ttl: String,
    },
    /// Revoke a host's sensor: its certificates are void, its streams and sessions end. Works while the gateway runs.
    RevokeSensor {
        #[arg(long, value_name = "FILE", default_value = DEFAULT_CONFIG, help = CONFIG_HELP)]
        config: PathBuf,
        /// Name of the host.
        #[arg(long)]
        host: String,
        /// Why, for the record.
        #[arg(long, default_value = "no reason given")]
        reason: String,
    },
    /// Verify the evidence log on this computer: every record, every checkpoint. Needs no network and no running gateway;
    /// one may run.
    Verify {
        #[arg(long, value_name = "FILE", default_value = DEFAULT_CONFIG, help = CONFIG_HELP)]
        config: PathBuf,
        /// State folder, if not the configured one; with --log-key no configuration is needed.
        #[arg(long, value_name = "FOLDER")]
        state_dir: Option<PathBuf>,
        /// The log's pinned key (`name+1a2b3c4d+…`), as `sallyport login` keeps it. Left out: the key found in the state
        /// folder, which whoever altered the log may have replaced too.
        #[arg(long, value_name = "KEY")]
        log_key: Option<String>,
        /// How many leaves the log is known to have had: fewer is a roll-back.
        #[arg(long, value_name = "LEAVES", default_value_t = 0)]
        expect_size: u64,
    },
    /// Print completions for a shell.
    Completions {
        /// Which shell.
        shell: clap_complete::Shell,
    },
    /// Print the manual page.
    Man,
}

const DEFAULT_CONFIG: &str = "/etc/sallyport/gateway.toml";
const CONFIG_HELP: &str = "Configuration file";
