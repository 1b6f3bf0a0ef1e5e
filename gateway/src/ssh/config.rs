//! `[ssh]` of the configuration.

use crate::config::Faults;
use serde::Deserialize;
use std::net::SocketAddr;
use std::time::Duration;

/// The section's commented default.
pub const DEFAULT: &str = r#"[ssh]
# Where the SSH door listens.
listen = "0.0.0.0:2222"
# How long a public key stays bound to the sign-in that proved it: log-ins with it are silent until then.
key_binding = "12h"
"#;

/// As written.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Raw {
    listen: String,
    #[serde(default = "default_key_binding")]
    key_binding: String,
}

/// Validated.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where the SSH door listens.
    pub listen: SocketAddr,
    /// How long a key stays bound to a sign-in.
    pub key_binding: Duration,
}

fn default_key_binding() -> String {
    "12h".to_owned()
}

impl Raw {
    /// Validates; adds every fault to `faults`.
    pub fn validate(self, faults: &mut Faults) -> Option<Config> {
        let listen = faults.address("ssh.listen", &self.listen);
        let key_binding = faults.duration("ssh.key_binding", &self.key_binding);
        Some(Config { listen: listen?, key_binding: key_binding? })
    }
}
