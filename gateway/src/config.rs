//! The configuration: raw TOML, which refuses unknown keys, and the validated form, which lists every fault.

use crate::{identity, ssh};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use std::fmt;
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
    #[error("cannot read the configuration `{path}`; `sallyport-gateway default-config` prints one to start from")]
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

/// Every fault found, each with its key and what to do.
#[derive(Debug, Default)]
pub struct Faults(Vec<Fault>);

#[derive(Debug)]
struct Fault {
    key: String,
    problem: String,
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
    [HEAD, ssh::config::DEFAULT, "\n", identity::config::DEFAULT, TAIL].concat()
}

impl Config {
    /// Reads and validates a file.
    ///
    /// # Errors
    /// It cannot be read, or has faults: all of them are listed.
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path).map_err(|err| ConfigError::Read { path: path.to_owned(), err })?;
        Self::parse(&text)
    }

    /// Validates the text of a file.
    ///
    /// # Errors
    /// It has faults: all of them are listed.
    pub fn parse(text: &str) -> Result<Self, ConfigError> {
        let mut table: Table = text.parse().map_err(|err: toml::de::Error| ConfigError::Syntax(err.to_string()))?;
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

        let top: Option<RawTop> = fill("", (table, defaults), &mut faults);
        let name = top.as_ref().map(|top| top.name.clone()).unwrap_or_default();
        let top = top.and_then(|top| top.validate(&mut faults));
        let ssh = fill::<ssh::config::Raw>("ssh", ssh, &mut faults).and_then(|raw| raw.validate(&mut faults));
        let openid = fill::<identity::config::Raw>("openid", openid, &mut faults).and_then(|raw| raw.validate(&mut faults));
        let grpc = fill::<RawGrpc>("grpc", grpc, &mut faults).and_then(|raw| raw.validate(&name, &mut faults));
        let policy = fill::<RawPolicy>("policy", policy, &mut faults);
        if let Some(bundle) = policy.as_ref().and_then(|policy| policy.bundle.as_ref())
            && !bundle.is_dir()
        {
            faults.add("policy.bundle", format!("there is no folder `{}`; write the folder of a policy bundle", bundle.display()));
        }
        match (top, ssh, openid, grpc, policy) {
            (Some((state_dir, session_limit, reattach_grace)), Some(ssh), Some(openid), Some(grpc), Some(policy))
                if faults.is_empty() =>
            {
                let policy_bundle = policy.bundle;
                Ok(Self { name, state_dir, ssh, openid, grpc, policy_bundle, session_limit, reattach_grace })
            }
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
            faults.add("state_dir", format!("`{}` is not an absolute path; write one that begins with /", self.state_dir.display()));
        }
        let session_limit = faults.duration("session_limit", &self.session_limit);
        let reattach_grace = faults.duration("reattach_grace", &self.reattach_grace);
        Some((self.state_dir, session_limit?, reattach_grace?))
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

/// Deserialises a section. Each fault is noted and mended from the default, so that the next one is found too.
fn fill<T: DeserializeOwned>(section: &str, (mut table, default): (Table, Table), faults: &mut Faults) -> Option<T> {
    let path = |key: &str| if section.is_empty() { key.to_owned() } else { format!("{section}.{key}") };
    // Each turn mends one key; more keys than this are no configuration.
    for _ in 0..200 {
        let message = match T::deserialize(Value::Table(table.clone())) {
            Ok(value) => return Some(value),
            Err(err) => err.to_string(),
        };
        let first = message.lines().next().unwrap_or_default().to_owned();
        // serde's words: "missing field `x`", "unknown field `x`, expected …"; toml adds "in `x`" for types.
        let quoted = |text: &str| text.split('`').nth(1).map(str::to_owned);
        if first.starts_with("missing field") {
            let key = quoted(&first).unwrap_or_default();
            let Some(value) = default.get(&key) else {
                faults.add(&path(&key), "is missing");
                return None;
            };
            faults.add(&path(&key), format!("is missing; write for example {key} = {value}"));
            table.insert(key, value.clone());
        } else if first.starts_with("unknown field") {
            let key = quoted(&first).unwrap_or_default();
            let known = first.split_once(", expected").map(|(_, known)| known.trim_start_matches(" one of").trim());
            faults.add(&path(&key), format!("is not a key of this section; its keys are {}", known.unwrap_or("none")));
            if table.remove(&key).is_none() {
                return None;
            }
        } else {
            // A wrong type: find the key by trying each value in place of the default's.
            let wrong = table.keys().find(|key| !alone_fits::<T>(&default, key, &table[*key])).cloned();
            let Some(key) = wrong else {
                faults.add(if section.is_empty() { "configuration" } else { section }, first);
                return None;
            };
            faults.add(&path(&key), format!("has the wrong form: {first}"));
            match default.get(&key) {
                Some(value) => table.insert(key, value.clone()),
                None => table.remove(&key),
            };
        }
    }
    None
}

/// Whether the default with this one value in it can be read.
fn alone_fits<T: DeserializeOwned>(default: &Table, key: &str, value: &Value) -> bool {
    let mut table = default.clone();
    table.insert(key.to_owned(), value.clone());
    T::deserialize(Value::Table(table)).is_ok()
}

fn into_table(value: Value) -> Option<Table> {
    match value {
        Value::Table(table) => Some(table),
        _ => None,
    }
}

impl Faults {
    /// Adds one: `key` as in the file (`ssh.listen`), `problem` says what is wrong and what to write instead.
    pub fn add(&mut self, key: &str, problem: impl Into<String>) {
        self.0.push(Fault { key: key.to_owned(), problem: problem.into() });
    }
    /// None so far.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
    /// How many.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// An `IP:PORT`; a fault and `None` otherwise.
    pub fn address(&mut self, key: &str, value: &str) -> Option<SocketAddr> {
        match value.parse() {
            Ok(address) => Some(address),
            Err(_) => {
                self.add(key, format!("`{value}` is not an address; write IP:PORT, such as \"0.0.0.0:2222\" or \"[::]:2222\""));
                None
            }
        }
    }

    /// A time span such as `90s`, `30m`, `12h`, `7d`; a fault and `None` otherwise.
    pub fn duration(&mut self, key: &str, value: &str) -> Option<Duration> {
        let parsed = parse_duration(value);
        if parsed.is_none() {
            self.add(key, format!("`{value}` is not a time span; write a number and s, m, h or d, such as \"12h\""));
        }
        parsed
    }
}

/// A time span such as `90s`, `30m`, `12h`, `7d`.
#[must_use]
pub fn parse_duration(value: &str) -> Option<Duration> {
    let (at, unit) = value.char_indices().last()?;
    let n: u64 = value[..at].parse().ok()?;
    let seconds = match unit {
        's' => 1,
        'm' => 60,
        'h' => 3600,
        'd' => 86_400,
        _ => return None,
    };
    n.checked_mul(seconds).filter(|&s| s > 0).map(Duration::from_secs)
}

impl fmt::Display for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, fault) in self.0.iter().enumerate() {
            let end = if i + 1 < self.0.len() { "\n" } else { "" };
            write!(f, "  {}: {}{end}", fault.key, fault.problem)?;
        }
        Ok(())
    }
}

impl std::error::Error for Faults {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_is_valid() {
        let config = Config::parse(&default_text()).unwrap();
        assert_eq!(config.grpc.names, ["gateway.example.org"]);
        assert_eq!(config.session_limit, Duration::from_secs(12 * 3600));
    }

    #[test]
    fn every_fault_is_listed_with_its_key() {
        let text = default_text()
            .replace("name = \"gateway.example.org\"", "name = \"not a name\"\ncolour = \"blue\"")
            .replace("/var/lib/sallyport-gateway", "relative")
            .replace("session_limit = \"12h\"", "session_limit = \"soon\"")
            .replace("listen = \"0.0.0.0:8443\"", "listne = \"0.0.0.0:8443\"\nnames = [\"a b\"]")
            .replace("listen = \"0.0.0.0:2222\"", "listen = 2222")
            .replace("[policy]", "[policy]\nbundle = \"/does/not/exist\"\nextra = 1");
        let Err(ConfigError::Faults(faults)) = Config::parse(&text) else { panic!("accepted") };
        let text = faults.to_string();
        for key in [
            "  name:", "  colour:", "  state_dir:", "  session_limit:", "  grpc.listne:", "  grpc.listen:",
            "  grpc.names:", "  ssh.listen:", "  policy.bundle:", "  policy.extra:",
        ] {
            assert_eq!(text.matches(key).count(), 1, "{key} in:\n{text}");
        }
        assert!(text.contains("grpc.listen: is missing; write for example listen = \"0.0.0.0:8443\""), "{text}");
        assert_eq!(faults.len(), 10, "{text}");
    }

    #[test]
    fn nothing_at_all_and_no_toml() {
        let Err(ConfigError::Faults(faults)) = Config::parse("") else { panic!("accepted") };
        assert!(faults.to_string().contains("state_dir: is missing"));
        assert!(matches!(Config::parse("= ="), Err(ConfigError::Syntax(_))));
        let Err(ConfigError::Faults(faults)) = Config::parse("ssh = 3") else { panic!("accepted") };
        assert!(faults.to_string().contains("ssh: must be a section"));
    }

    #[test]
    fn durations() {
        assert_eq!(parse_duration("90s"), Some(Duration::from_secs(90)));
        assert_eq!(parse_duration("7d"), Some(Duration::from_secs(604_800)));
        for bad in ["", "s", "0s", "-1s", "1", "1w", "99999999999999999999d", "1é"] {
            assert_eq!(parse_duration(bad), None, "{bad}");
        }
    }
}
