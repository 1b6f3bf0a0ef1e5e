//! The configuration: raw TOML, which refuses unknown keys, and the validated form, which lists every fault.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

/// The validated configuration.
#[derive(Clone, Debug)]
pub struct Config {
    /// What this gateway is called: in certificates, in the log's origin, in greetings.
    pub name: String,
    /// Where everything it keeps lies; mode 0700.
    pub state_dir: PathBuf,
    /// The SSH door.
    pub ssh: crate::ssh::config::Config,
    /// Sign-in.
    pub openid: crate::identity::config::Config,
    /// The gRPC listener.
    pub grpc: Grpc,
    /// The bundle installed when there is none.
    pub policy_bundle: Option<PathBuf>,
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

/// Every fault found, each with its key and what to do.
#[derive(Debug, Default)]
pub struct Faults(Vec<Fault>);

#[derive(Debug)]
struct Fault {
    key: String,
    problem: String,
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
        let parsed = value.char_indices().last().and_then(|(at, unit)| {
            let n: u64 = value[..at].parse().ok()?;
            let seconds = match unit {
                's' => 1,
                'm' => 60,
                'h' => 3600,
                'd' => 86_400,
                _ => return None,
            };
            n.checked_mul(seconds).filter(|&s| s > 0)
        });
        if parsed.is_none() {
            self.add(key, format!("`{value}` is not a time span; write a number and s, m, h or d, such as \"12h\""));
        }
        parsed.map(Duration::from_secs)
    }
}

impl fmt::Display for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for fault in &self.0 {
            writeln!(f, "  {}: {}", fault.key, fault.problem)?;
        }
        Ok(())
    }
}

impl std::error::Error for Faults {}
