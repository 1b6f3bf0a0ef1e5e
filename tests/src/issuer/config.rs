//! The development issuer's configuration: where it listens (loopback only), who exists, which clients.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use anyhow::{Context, Result, bail};
use serde::Deserialize;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Config {
    #[serde(default = "any_loopback_port")]
    pub(crate) listen: SocketAddr,
    /// By the name they type on the sign-in page.
    pub(crate) users: BTreeMap<String, User>,
    pub(crate) gateway: Client,
    pub(crate) cli: Client,
}

#[derive(Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct User {
    pub(crate) email: String,
    pub(crate) name: String,
    #[serde(default)]
    pub(crate) groups: Vec<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Client {
    pub(crate) client_id: String,
    /// None: a public client.
    #[serde(default)]
    pub(crate) client_secret: Option<String>,
}

fn any_loopback_port() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 0))
}

impl Config {
    pub(crate) fn parse(text: &str) -> Result<Self> {
        let config: Self = serde_json::from_str(text).context("the configuration is not right")?;
        if !config.listen.ip().is_loopback() {
            bail!(
                "refusing to listen on {}: this provider has no passwords and serves loopback addresses only",
                config.listen
            );
        }
        Ok(config)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const REST: &str = r#""users": {}, "gateway": {"client_id": "g"}, "cli": {"client_id": "c"}"#;

    #[test]
    fn only_loopback_is_served() {
        for listen in ["0.0.0.0:80", "192.0.2.1:80", "[::]:80"] {
            let refused = Config::parse(&format!(r#"{{"listen": "{listen}", {REST}}}"#)).err();
            assert!(refused.is_some_and(|error| error.to_string().contains("loopback")));
        }
        assert!(Config::parse(&format!(r#"{{"listen": "[::1]:80", {REST}}}"#)).is_ok());
        assert!(Config::parse(&format!("{{{REST}}}")).is_ok());
    }
}
