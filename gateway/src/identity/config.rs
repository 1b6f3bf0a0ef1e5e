//! `[openid]` of the configuration.

use crate::config::Faults;
use serde::Deserialize;

/// The section's commented default.
pub const DEFAULT: &str = r#"[openid]
# The OpenID provider; its discovery document is fetched from below this URL.
issuer = "https://id.example.org"
# The client that this gateway is at the provider.
client_id = "sallyport"
"#;

/// As written.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Raw {
    issuer: String,
    client_id: String,
}

/// Validated.
#[derive(Clone, Debug)]
pub struct Config {
    /// Issuer URL.
    pub issuer: url::Url,
    /// Client id.
    pub client_id: String,
}

impl Raw {
    /// Validates; adds every fault to `faults`.
    pub fn validate(self, faults: &mut Faults) -> Option<Config> {
        match self.issuer.parse() {
            Ok(issuer) => Some(Config { issuer, client_id: self.client_id }),
            Err(_) => {
                faults.add("openid.issuer", "not a URL; write https://…");
                None
            }
        }
    }
}
