//! The OpenID provider of a run: the development issuer, or the certified one from npm.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use crate::browser::Browser;
use crate::child::Running;
use crate::programs;
use crate::stage::Provider;

/// What both providers are told: who exists, and which clients.
#[must_use]
pub fn configuration() -> Value {
    let person = |name: &str, groups: &[&str]| json!({ "email": format!("{}@example.org", name.to_lowercase()), "name": name, "groups": groups });
    json!({
        "users": {
            "alice": person("Alice", &["engineers"]),
            "bob": person("Bob", &["engineers"]),
            "sam": person("Sam", &["security"]),
            "mallory": person("Mallory", &["visitors"]),
        },
        "gateway": { "client_id": "sallyport" },
        "cli": { "client_id": "sallyport-cli" },
    })
}

/// A running provider.
pub struct OpenId {
    /// Its issuer URL.
    pub issuer: String,
    _running: Running,
}

impl OpenId {
    /// Starts it with its files in `folder`.
    ///
    /// # Errors
    /// It does not start.
    pub fn start(provider: Provider, folder: &Path) -> Result<Self> {
        let config = folder.join("openid.json");
        std::fs::write(&config, configuration().to_string())?;
        let mut command = match provider {
            Provider::Development => {
                let mut command = Command::new(programs::path("sallyport-dev-issuer")?);
                command.arg("--config").arg(&config);
                command
            }
            Provider::Certified => {
                let package = programs::package_file("oidc-provider");
                if !package.join("node_modules/oidc-provider").is_dir() {
                    bail!("the certified provider is not installed: `cargo xtask test` does it (npm ci)");
                }
                let mut command = Command::new("node");
                command.arg(package.join("provider.mjs")).arg(&config);
                command
            }
        };
        let mut running = Running::start("the OpenID provider", &mut command, &folder.join("openid.log"))?;
        let issuer = running.wait_for_line("where it listens", |line| {
            let said: Value = serde_json::from_str(line).ok()?;
            Some(said["issuer"].as_str()?.to_owned())
        })?;
        Ok(Self { issuer, _running: running })
    }

    /// The link in `text` that leads to this provider's page for device sign-in, code included.
    #[must_use]
    pub fn device_link(&self, text: &str) -> Option<String> {
        let end_of = |letter: char| letter.is_whitespace() || letter.is_control();
        text.match_indices(&self.issuer)
            // The link must have arrived whole: something comes after it.
            .filter_map(|(at, _)| Some(&text[at..at + text[at..].find(end_of)?]))
            .find(|link| link.contains("user_code="))
            .map(|link| link.trim_end_matches(['.', ',', ')']).to_owned())
    }

    /// Signs in at a device link as a person does in a browser.
    ///
    /// # Errors
    /// The provider refused.
    pub fn approve(&self, link: &str, user: &str) -> Result<()> {
        Browser::new().sign_in(link, user).map(drop).context("sign in with a browser")
    }
}
