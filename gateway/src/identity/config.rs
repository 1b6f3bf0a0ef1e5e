//! `[openid]` of the configuration.

use crate::config::Faults;
use serde::Deserialize;
use std::net::IpAddr;
use std::path::PathBuf;
use url::{Host, Url};

/// The section's commented default.
pub const DEFAULT: &str = r#"[openid]
# The OpenID provider; its discovery document is fetched from below this URL. Plain http is refused, except
# for a provider on this computer's loopback address.
issuer = "https://id.example.org"
# The client that this gateway is at the provider. It needs the device authorization grant (RFC 8628).
client_id = "sallyport"
# Its secret, in a file that only the gateway may read. Leave out for a public client.
# client_secret_file = "/etc/sallyport/openid-secret"
# The public client of `sallyport login` (authorization code with PKCE, loopback redirect).
cli_client_id = "sallyport-cli"
# What is asked for; `openid` always is.
scopes = ["profile", "email", "groups"]
# The claim that names a person in policies: `User::"alice@example.org"`. An e-mail address that the provider
# says is not verified is refused. Names with dots reach into objects: "realm_access.roles".
user_claim = "email"
# The claim that lists the groups, in the ID token or at the userinfo endpoint.
groups_claim = "groups"
# The claim that says `human`, `ci` or `agent`. Left out: everybody is `human`.
# kind_claim = "kind"
# For agents: the claim that names whom they act for.
# on_behalf_of_claim = "act.sub"
# Further audiences that ID tokens may name beside the client itself.
# trusted_audiences = []
# More certificate authorities (PEM) to trust when talking to the provider, beside the system's.
# ca_file = "/etc/sallyport/provider-ca.pem"
"#;

/// As written.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Raw {
    issuer: String,
    client_id: String,
    client_secret_file: Option<PathBuf>,
    #[serde(default = "default_cli_client_id")]
    cli_client_id: String,
    #[serde(default = "default_scopes")]
    scopes: Vec<String>,
    #[serde(default = "default_user_claim")]
    user_claim: String,
    #[serde(default = "default_groups_claim")]
    groups_claim: String,
    kind_claim: Option<String>,
    on_behalf_of_claim: Option<String>,
    #[serde(default)]
    trusted_audiences: Vec<String>,
    ca_file: Option<PathBuf>,
}

/// Validated.
#[derive(Clone, Debug)]
pub struct Config {
    /// Issuer URL, as written: the provider's own spelling must equal it.
    pub issuer: String,
    /// The gateway's client.
    pub client_id: String,
    /// File with the gateway's client secret; none for a public client.
    pub client_secret_file: Option<PathBuf>,
    /// The command line's client.
    pub cli_client_id: String,
    /// Scopes beside `openid`.
    pub scopes: Vec<String>,
    /// Which claim says what.
    pub claims: ClaimNames,
    /// Audiences accepted beside the client.
    pub trusted_audiences: Vec<String>,
    /// More trust anchors, PEM.
    pub ca_file: Option<PathBuf>,
}

/// Which claim says what. Dots reach into objects.
#[derive(Clone, Debug)]
pub struct ClaimNames {
    /// Who it is.
    pub user: String,
    /// The groups.
    pub groups: String,
    /// `human`, `ci` or `agent`.
    pub kind: Option<String>,
    /// Whom an agent acts for.
    pub on_behalf_of: Option<String>,
}

fn default_cli_client_id() -> String {
    "sallyport-cli".to_owned()
}
fn default_scopes() -> Vec<String> {
    ["profile", "email", "groups"].map(str::to_owned).to_vec()
}
fn default_user_claim() -> String {
    "email".to_owned()
}
fn default_groups_claim() -> String {
    "groups".to_owned()
}

impl Raw {
    /// Validates; adds every fault to `faults`.
    pub fn validate(self, faults: &mut Faults) -> Option<Config> {
        let before = faults.len();
        match Url::parse(&self.issuer) {
            Ok(url) if url.scheme() == "https" || is_loopback_http(&url) => {}
            Ok(url) if url.scheme() == "http" => {
                faults.add("openid.issuer", "sign-in over plain http can be read and forged; write an https:// URL (http is for a provider on 127.0.0.1 alone)");
            }
            _ => faults.add("openid.issuer", format!("`{}` is not a URL; write https://…", self.issuer)),
        }
        for (key, value) in [
            ("openid.client_id", &self.client_id),
            ("openid.cli_client_id", &self.cli_client_id),
            ("openid.user_claim", &self.user_claim),
            ("openid.groups_claim", &self.groups_claim),
        ] {
            if value.trim().is_empty() {
                faults.add(key, "must not be empty");
            }
        }
        for (key, path) in
            [("openid.client_secret_file", &self.client_secret_file), ("openid.ca_file", &self.ca_file)]
        {
            if let Some(path) = path
                && let Err(err) = std::fs::File::open(path)
            {
                faults.add(key, format!("cannot read `{}`: {err}", path.display()));
            }
        }
        (faults.len() == before).then(|| Config {
            issuer: self.issuer,
            client_id: self.client_id,
            client_secret_file: self.client_secret_file,
            cli_client_id: self.cli_client_id,
            scopes: self.scopes.into_iter().filter(|scope| scope != "openid").collect(),
            claims: ClaimNames {
                user: self.user_claim,
                groups: self.groups_claim,
                kind: self.kind_claim,
                on_behalf_of: self.on_behalf_of_claim,
            },
            trusted_audiences: self.trusted_audiences,
            ca_file: self.ca_file,
        })
    }
}

/// Plain http is acceptable only where nobody else can listen: on this computer.
pub(crate) fn is_loopback_http(url: &Url) -> bool {
    url.scheme() == "http"
        && match url.host() {
            Some(Host::Ipv4(address)) => IpAddr::V4(address).is_loopback(),
            Some(Host::Ipv6(address)) => IpAddr::V6(address).is_loopback(),
            Some(Host::Domain(name)) => name == "localhost",
            None => false,
        }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(toml: &str) -> (Option<Config>, String) {
        #[derive(Deserialize)]
        struct File {
            openid: Raw,
        }
        let mut faults = Faults::default();
        let file: File = toml::from_str(toml).expect("parses");
        let config = file.openid.validate(&mut faults);
        (config, faults.to_string())
    }

    #[test]
    fn the_default_is_valid() {
        let (config, faults) = check(DEFAULT);
        assert!(config.is_some(), "{faults}");
    }

    #[test]
    fn plain_http_is_for_loopback_alone() {
        for (issuer, good) in [
            ("http://127.0.0.1:9000", true),
            ("http://[::1]:9000/x", true),
            ("http://localhost", true),
            ("http://id.example.org", false),
            ("http://127.0.0.1.example.org", false),
            ("ftp://127.0.0.1", false),
            ("nonsense", false),
        ] {
            let (config, faults) = check(&format!("[openid]\nissuer = \"{issuer}\"\nclient_id = \"x\"\n"));
            assert_eq!(config.is_some(), good, "{issuer}: {faults}");
        }
    }

    #[test]
    fn every_fault_is_listed() {
        let (_, faults) =
            check("[openid]\nissuer = \"x\"\nclient_id = \"\"\nca_file = \"/nonexistent/ca\"\n");
        for key in ["openid.issuer", "openid.client_id", "openid.ca_file"] {
            assert!(faults.contains(key), "{faults}");
        }
    }
}
