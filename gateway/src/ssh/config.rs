//! `[ssh]` of the configuration.

use crate::config::Faults;
use serde::Deserialize;
use std::net::SocketAddr;
use std::time::Duration;

/// The section's commented default.
pub const DEFAULT: &str = r#"[ssh]
# Where the SSH door listens.
listen = "0.0.0.0:2222"
# The name by which people reach it, for its host certificate and for commands to paste. Left out: the gateway's name.
# host = "gateway.example.org"
# The port by which people reach it, where that is not the one it listens on.
# port = 22
# How long a public key stays bound to the sign-in that proved it: log-ins with it are silent until then. Groups that
# are taken away at the provider take effect after this time at the latest.
key_binding = "12h"
# How long `sallyport login` and the certificate that it gets are good for.
certificate = "8h"
# How long log-in waits for a sign-in before it goes on and shows the link in the session instead, where every
# client shows it.
sign_in_wait = "5s"
# Connections that have not proved who they are: how long, how many, how many from one address.
login_timeout = "120s"
max_pending = 256
max_pending_per_address = 32
# Channels (shells, commands, transfers) that one connection may have open.
max_channels = 32
# How often a silent client is asked whether it is there, and how many unanswered questions end the connection.
keepalive = "120s"
keepalive_max = 5
# Variables that clients may set. `*` stands for any ending.
env = ["LANG", "LC_*", "TERM", "COLORTERM", "NO_COLOR"]
"#;

/// As written.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Raw {
    listen: String,
    host: Option<String>,
    port: Option<u16>,
    #[serde(default = "key_binding")]
    key_binding: String,
    #[serde(default = "certificate")]
    certificate: String,
    #[serde(default = "sign_in_wait")]
    sign_in_wait: String,
    #[serde(default = "login_timeout")]
    login_timeout: String,
    #[serde(default = "max_pending")]
    max_pending: usize,
    #[serde(default = "max_pending_per_address")]
    max_pending_per_address: usize,
    #[serde(default = "max_channels")]
    max_channels: usize,
    #[serde(default = "keepalive")]
    keepalive: String,
    #[serde(default = "keepalive_max")]
    keepalive_max: usize,
    #[serde(default = "env")]
    env: Vec<String>,
}

/// Validated.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where the SSH door listens.
    pub listen: SocketAddr,
    /// The name by which people reach it; none: the gateway's.
    pub host: Option<String>,
    /// The port by which people reach it.
    pub port: u16,
    /// How long a key stays bound to a sign-in.
    pub key_binding: Duration,
    /// How long certificates are good for.
    pub certificate: Duration,
    /// How long authentication waits for a sign-in before the session goes on pending.
    pub sign_in_wait: Duration,
    /// From accept to the end of authentication.
    pub login_timeout: Duration,
    /// Connections without an identity.
    pub max_pending: usize,
    /// Connections without an identity from one address (IPv6: one /64).
    pub max_pending_per_address: usize,
    /// Channels per connection.
    pub max_channels: usize,
    /// Silence before a client is asked whether it is there.
    pub keepalive: Duration,
    /// Unanswered questions that end the connection.
    pub keepalive_max: usize,
    /// Variables that clients may set.
    pub env: EnvFilter,
}

/// Names of variables that pass, some with any ending.
#[derive(Clone, Debug)]
pub struct EnvFilter(Vec<String>);

impl EnvFilter {
    /// Whether a client may set `name`.
    #[must_use]
    pub fn passes(&self, name: &str) -> bool {
        self.0.iter().any(|pattern| match pattern.strip_suffix('*') {
            Some(start) => name.starts_with(start),
            None => name == pattern,
        })
    }
}

fn key_binding() -> String {
    "12h".to_owned()
}
fn certificate() -> String {
    "8h".to_owned()
}
fn sign_in_wait() -> String {
    "5s".to_owned()
}
fn login_timeout() -> String {
    "120s".to_owned()
}
fn max_pending() -> usize {
    256
}
fn max_pending_per_address() -> usize {
    32
}
fn max_channels() -> usize {
    32
}
fn keepalive() -> String {
    "120s".to_owned()
}
fn keepalive_max() -> usize {
    5
}
fn env() -> Vec<String> {
    ["LANG", "LC_*", "TERM", "COLORTERM", "NO_COLOR"].map(str::to_owned).to_vec()
}

impl Raw {
    /// Validates; adds every fault to `faults`.
    pub fn validate(self, faults: &mut Faults) -> Option<Config> {
        let before = faults.len();
        let listen = faults.address("ssh.listen", &self.listen);
        let key_binding = faults.duration("ssh.key_binding", &self.key_binding);
        let certificate = faults.duration("ssh.certificate", &self.certificate);
        let sign_in_wait = faults.duration("ssh.sign_in_wait", &self.sign_in_wait);
        let login_timeout = faults.duration("ssh.login_timeout", &self.login_timeout);
        let keepalive = faults.duration("ssh.keepalive", &self.keepalive);
        if let (Some(wait), Some(timeout)) = (sign_in_wait, login_timeout)
            && wait >= timeout
        {
            faults.add("ssh.sign_in_wait", "must be shorter than `ssh.login_timeout`, or nobody gets in");
        }
        if let (Some(keepalive), Some(timeout)) = (keepalive, login_timeout)
            && keepalive < timeout
        {
            faults.add("ssh.keepalive", "must not be shorter than `ssh.login_timeout`: clients do not understand the question before they are logged in");
        }
        for (key, value) in [
            ("ssh.max_pending", self.max_pending),
            ("ssh.max_pending_per_address", self.max_pending_per_address),
            ("ssh.max_channels", self.max_channels),
            ("ssh.keepalive_max", self.keepalive_max),
        ] {
            if value == 0 {
                faults.add(key, "must be at least 1");
            }
        }
        if let Some(host) = &self.host
            && !super::address::is_host_name(host)
        {
            faults.add("ssh.host", format!("`{host}` is not a host name"));
        }
        for name in &self.env {
            let plain = name.strip_suffix('*').unwrap_or(name);
            if plain.is_empty() || !plain.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_') {
                faults.add(
                    "ssh.env",
                    format!("`{name}` is not a variable's name, nor the start of one and `*`"),
                );
            } else if ["LD_", "PATH", "BASH_ENV", "ENV", "IFS", "PYTHON", "PERL", "GIT_SSH"]
                .iter()
                .any(|risky| plain.starts_with(risky) || (name.ends_with('*') && risky.starts_with(plain)))
            {
                faults.add(
                    "ssh.env",
                    format!("`{name}` would let clients run other programs than policy judged; leave it out"),
                );
            }
        }
        if faults.len() > before {
            return None;
        }
        let listen = listen?;
        Some(Config {
            listen,
            host: self.host,
            port: self.port.unwrap_or(listen.port()),
            key_binding: key_binding?,
            certificate: certificate?,
            sign_in_wait: sign_in_wait?,
            login_timeout: login_timeout?,
            max_pending: self.max_pending,
            max_pending_per_address: self.max_pending_per_address,
            max_channels: self.max_channels,
            keepalive: keepalive?,
            keepalive_max: self.keepalive_max,
            env: EnvFilter(self.env),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(toml: &str) -> (Option<Config>, String) {
        let mut faults = Faults::default();
        let raw: Raw = toml::from_str(toml).expect("parses");
        let config = raw.validate(&mut faults);
        (config, faults.to_string())
    }

    #[test]
    fn the_default_is_valid() {
        let (config, faults) = check(DEFAULT.trim_start_matches("[ssh]"));
        let config = config.unwrap_or_else(|| panic!("{faults}"));
        assert_eq!(config.port, 2222);
        assert!(config.env.passes("LC_ALL") && config.env.passes("LANG"));
        assert!(!config.env.passes("LANGUAGE") && !config.env.passes("LD_PRELOAD"));
    }

    #[test]
    fn every_fault_is_listed() {
        let (_, faults) = check(
            "listen = \"x\"\nkey_binding = \"y\"\nmax_channels = 0\nenv = [\"L*\", \"a b\"]\nhost = \"a b\"\nsign_in_wait = \"3m\"",
        );
        for key in [
            "ssh.listen",
            "ssh.key_binding",
            "ssh.max_channels",
            "`L*`",
            "`a b`",
            "ssh.host",
            "ssh.sign_in_wait",
        ] {
            assert!(faults.contains(key), "{key} in {faults}");
        }
    }
}
