//! The configuration: raw TOML, which refuses unknown keys, and the validated form, which lists every fault.

mod faults;

pub use faults::{Faults, parse_duration};

use crate::{changes, ci, identity, ssh};
pub(crate) use faults::fill;
use serde::Deserialize;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;
use toml::{Table, Value};

const HEAD: &str = r#"# Configuration of sallyport-gateway. Check it with `sallyport-gateway check-config`.

# What this gateway is called: in certificates, as the evidence log's origin, in greetings. The log's key
# carries it, so choose it once.
name = "gateway.example.org"
# Where everything it keeps lies: keys, state, evidence, recordings. Only its own user may read it.
state_dir = "/var/lib/sallyport-gateway"
# How long a session lasts at most; policies may set shorter limits with @session_limit.
session_limit = "12h"
# How long a running command waits for its sensor to come back after a restart or a network cut.
reattach_grace = "60s"

"#;

const TAIL: &str = r#"
[grpc]
# Where sensors and the `sallyport` command connect (TLS; its certificate is made by the gateway's own CA).
listen = "0.0.0.0:8443"
# DNS names and IP addresses in that certificate. Left out: the gateway's name.
# names = ["gateway.example.org", "192.0.2.7"]

[policy]
# The bundle that is installed at the first start, when there is none yet; later ones are pushed.
# bundle = "/etc/sallyport/policy"
"#;

/// The validated configuration.
#[derive(Clone, Debug)]
pub struct Config {
    /// What this gateway is called: in certificates, in the log's origin, in greetings.
    pub name: String,
    /// Where everything it keeps lies; mode 0700.
    pub state_dir: PathBuf,
    /// The SSH door.
    pub ssh: ssh::config::Config,
    /// Sign-in.
    pub openid: identity::config::Config,
    /// The gRPC listener.
    pub grpc: Grpc,
    /// The bundle installed when there is none.
    pub policy_bundle: Option<PathBuf>,
    /// What changes of policy must bring.
    pub changes: changes::Rules,
    /// Whose tokens prove that a CI job asks.
    pub ci: Vec<ci::Config>,
    /// The longest session.
    pub session_limit: Duration,
    /// How long a channel waits for its sensor to come back.
    pub reattach_grace: Duration,
}

/// The gRPC listener.
#[derive(Clone, Debug)]
pub struct Grpc {
    /// Address.
    pub listen: SocketAddr,
    /// DNS names and IP addresses in its certificate.
    pub names: Vec<String>,
}

/// The configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file.
    #[error(
        "cannot read the configuration `{path}`; `sallyport-gateway default-config` prints one to start from"
    )]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        err: std::io::Error,
    },
    /// It is not TOML.
    #[error("the configuration is not TOML: {0}")]
    Syntax(String),
    /// It has faults: all of them.
    #[error("the configuration has {count} fault(s):\n{0}", count = .0.len())]
    Faults(Faults),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawTop {
    name: String,
    state_dir: PathBuf,
    #[serde(default = "session_limit")]
    session_limit: String,
    #[serde(default = "reattach_grace")]
    reattach_grace: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawGrpc {
    listen: String,
    #[serde(default)]
    names: Vec<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawPolicy {
    bundle: Option<PathBuf>,
    #[serde(default)]
    signers: Vec<String>,
    #[serde(default)]
    require_signature: bool,
    #[serde(default)]
    two_person: bool,
    proposal_ttl: Option<String>,
}

fn session_limit() -> String {
    "12h".to_owned()
}

fn reattach_grace() -> String {
    "60s".to_owned()
}

/// The commented default, ready to be edited.
#[must_use]
pub fn default_text() -> String {
    [
        HEAD,
        ssh::config::DEFAULT,
        "\n",
        identity::config::DEFAULT,
        TAIL,
        changes::config::DEFAULT,
        ci::config::DEFAULT,
    ]
    .concat()
}

impl Config {
    /// Reads and validates a file.
    ///
    /// # Errors
    /// It cannot be read, or has faults: all of them are listed.
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        let text =
            std::fs::read_to_string(path).map_err(|err| ConfigError::Read { path: path.to_owned(), err })?;
        Self::parse(&text)
    }

    /// Validates the text of a file.
    ///
    /// # Errors
    /// It has faults: all of them are listed.
    pub fn parse(text: &str) -> Result<Self, ConfigError> {
        let mut table: Table =
            text.parse().map_err(|err: toml::de::Error| ConfigError::Syntax(err.to_string()))?;
        let mut defaults: Table = default_text().parse().unwrap_or_default();
        let mut faults = Faults::default();
        let mut section = |name: &str, faults: &mut Faults| {
            let default = defaults.remove(name).and_then(into_table).unwrap_or_default();
            match table.remove(name) {
                Some(Value::Table(found)) => (found, default),
                Some(_) => {
                    faults.add(name, format!("must be a section; write [{name}]"));
                    (default.clone(), default)
                }
                None => (Table::new(), default),
            }
        };
        let ssh = section("ssh", &mut faults);
        let openid = section("openid", &mut faults);
        let grpc = section("grpc", &mut faults);
        let policy = section("policy", &mut faults);
        let ci = ci::config::validate(table.remove("ci"), &mut faults);

        let top: Option<RawTop> = fill("", (table, defaults), &mut faults);
        let name = top.as_ref().map(|top| top.name.clone()).unwrap_or_default();
        let top = top.and_then(|top| top.validate(&mut faults));
        let ssh = fill::<ssh::config::Raw>("ssh", ssh, &mut faults).and_then(|raw| raw.validate(&mut faults));
        let openid = fill::<identity::config::Raw>("openid", openid, &mut faults)
            .and_then(|raw| raw.validate(&mut faults));
        let grpc =
            fill::<RawGrpc>("grpc", grpc, &mut faults).and_then(|raw| raw.validate(&name, &mut faults));
        let policy = fill::<RawPolicy>("policy", policy, &mut faults);
        let policy = policy.map(|raw| raw.validate(&mut faults));
        match (top, ssh, openid, grpc, policy) {
            (
                Some((state_dir, session_limit, reattach_grace)),
                Some(ssh),
                Some(openid),
                Some(grpc),
                Some((policy_bundle, changes)),
            ) if faults.is_empty() => Ok(Self {
                name,
                state_dir,
                ssh,
                openid,
                grpc,
                policy_bundle,
                changes,
                ci,
                session_limit,
                reattach_grace,
            }),
            _ => Err(ConfigError::Faults(faults)),
        }
    }
}

impl RawTop {
    fn validate(self, faults: &mut Faults) -> Option<(PathBuf, Duration, Duration)> {
        let fits = (1..=253).contains(&self.name.len())
            && self.name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_'));
        if !fits {
            faults.add("name", format!("`{}` cannot name a gateway; write letters, digits, `.`, `-`, `_`, such as \"gateway.example.org\"", self.name));
        }
        if !self.state_dir.is_absolute() {
            faults.add(
                "state_dir",
                format!(
                    "`{}` is not an absolute path; write one that begins with /",
                    self.state_dir.display()
                ),
            );
        }
        let session_limit = faults.duration("session_limit", &self.session_limit);
        let reattach_grace = faults.duration("reattach_grace", &self.reattach_grace);
        Some((self.state_dir, session_limit?, reattach_grace?))
    }
}

impl RawPolicy {
    fn validate(self, faults: &mut Faults) -> (Option<PathBuf>, changes::Rules) {
        let Self { bundle, signers, require_signature, two_person, proposal_ttl } = self;
        if let Some(bundle) = bundle.as_ref().filter(|bundle| !bundle.is_dir()) {
            faults.add(
                "policy.bundle",
                format!("there is no folder `{}`; write the folder of a policy bundle", bundle.display()),
            );
        }
        let raw = changes::config::Raw { signers, require_signature, two_person, proposal_ttl };
        (bundle, raw.validate(faults))
    }
}

impl RawGrpc {
    fn validate(self, gateway: &str, faults: &mut Faults) -> Option<Grpc> {
        let names = if self.names.is_empty() { vec![gateway.to_owned()] } else { self.names };
        let is_name = |name: &String| {
            name.parse::<std::net::IpAddr>().is_ok()
                || rustls::pki_types::DnsName::try_from(name.strip_prefix("*.").unwrap_or(name)).is_ok()
        };
        for name in names.iter().filter(|name| !is_name(name)) {
            faults.add("grpc.names", format!("`{name}` is neither a DNS name nor an IP address"));
        }
        Some(Grpc { listen: faults.address("grpc.listen", &self.listen)?, names })
    }
}

fn into_table(value: Value) -> Option<Table> {
    match value {
        Value::Table(table) => Some(table),
        _ => None,
    }
}

#[cfg(test)]
mod tests;
