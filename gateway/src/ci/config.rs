//! `[[ci]]` of the configuration: whose tokens prove that a CI job asks.

use crate::config::{Faults, fill};
use crate::identity::config::is_loopback_http;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::path::PathBuf;
use toml::{Table, Value};
use url::Url;

/// The section's commented default.
pub const DEFAULT: &str = r#"
# Issuers whose tokens prove that a CI job pushes policy. Which jobs may is policy: see `push_policy`. Any repository at a
# public issuer can get a token for this audience, so rules must name the repository, branch and environment.
# [[ci]]
# Begins the job's name in policies and records: User::"github:acme/policies@refs/heads/main".
# name = "github"
# Whose claims to expect: "github", "gitlab", or "generic" (repository, ref, ref_protected, environment, workflow, actor, sha).
# kind = "github"
# Left out: https://token.actions.githubusercontent.com for GitHub, https://gitlab.com for GitLab.
# issuer = "https://token.actions.githubusercontent.com"
# Whom the job asks a token for; `sallyport policy push` asks for the gateway's address.
# audience = "https://gateway.example.org:8443"
# More certificate authorities (PEM) to trust when fetching the issuer's keys, beside the system's.
# ca_file = "/etc/sallyport/gitlab-ca.pem"
# Who people at the CI system are here, where names differ: nobody approves what they pushed through a job.
# actors = { octocat = "alice@example.org" }
"#;

/// Whose claims a token has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// GitHub Actions.
    Github,
    /// GitLab CI.
    Gitlab,
    /// Any other; the names of claims are GitHub's, and each may be missing.
    Generic,
}

/// As written.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Raw {
    name: String,
    kind: Kind,
    issuer: Option<String>,
    audience: String,
    ca_file: Option<PathBuf>,
    #[serde(default)]
    actors: BTreeMap<String, String>,
}

/// One issuer, validated.
#[derive(Clone, Debug)]
pub struct Config {
    /// Begins the user names of its jobs.
    pub name: String,
    /// Whose claims to expect.
    pub kind: Kind,
    /// Issuer URL, as tokens spell it.
    pub issuer: String,
    /// The only audience that is accepted.
    pub audience: String,
    /// More trust anchors, PEM.
    pub ca_file: Option<PathBuf>,
    /// Who people at the CI system are here.
    pub actors: BTreeMap<String, String>,
}

impl Config {
    /// Something valid, for the fuzz target and tests.
    #[must_use]
    pub(crate) fn sample(kind: Kind) -> Self {
        Self {
            name: "sample".to_owned(),
            kind,
            issuer: "https://issuer.example.org".to_owned(),
            audience: "https://gateway.example.org:8443".to_owned(),
            ca_file: None,
            actors: BTreeMap::new(),
        }
    }
}

/// Validates the value of the key `ci`; adds every fault to `faults`.
pub(crate) fn validate(value: Option<Value>, faults: &mut Faults) -> Vec<Config> {
    let tables = match value {
        None => return Vec::new(),
        Some(Value::Array(tables)) => tables,
        Some(_) => {
            faults.add("ci", "must be a list of sections; write [[ci]]");
            return Vec::new();
        }
    };
    let mut configs: Vec<Config> = Vec::new();
    for (i, table) in tables.into_iter().enumerate() {
        let section = format!("ci[{}]", i + 1);
        let Value::Table(table) = table else {
            faults.add(&section, "must be a section; write [[ci]]");
            continue;
        };
        let raw = fill::<Raw>(&section, (table, example()), faults);
        let Some(config) = raw.and_then(|raw| raw.validate(&section, faults)) else { continue };
        for (key, same, text) in [
            ("name", configs.iter().any(|other| other.name == config.name), &config.name),
            ("issuer", configs.iter().any(|other| other.issuer == config.issuer), &config.issuer),
        ] {
            if same {
                faults.add(&format!("{section}.{key}"), format!("`{text}` is there already; write it once"));
            }
        }
        configs.push(config);
    }
    configs
}

/// What is shown and filled in for what is missing.
fn example() -> Table {
    let table =
        "name = \"github\"\nkind = \"github\"\naudience = \"https://gateway.example.org:8443\"\n".parse();
    table.unwrap_or_default()
}

impl Raw {
    fn validate(self, section: &str, faults: &mut Faults) -> Option<Config> {
        let before = faults.len();
        let mut fault = |key: &str, problem: String| faults.add(&format!("{section}.{key}"), problem);
        let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        if !(1..=32).contains(&self.name.len()) || !self.name.chars().all(plain) {
            fault(
                "name",
                format!("`{}` cannot begin a user's name; write small letters, digits and `-`", self.name),
            );
        }
        let issuer = match (self.issuer, self.kind) {
            (Some(issuer), _) => issuer,
            (None, Kind::Github) => "https://token.actions.githubusercontent.com".to_owned(),
            (None, Kind::Gitlab) => "https://gitlab.com".to_owned(),
            (None, Kind::Generic) => {
                fault("issuer", "is missing; write the URL that is `iss` in the tokens".to_owned());
                String::new()
            }
        };
        match Url::parse(&issuer) {
            Ok(url) if url.scheme() == "https" || is_loopback_http(&url) => {}
            _ if issuer.is_empty() => {}
            Ok(url) if url.scheme() == "http" => fault(
                "issuer",
                "keys that come over plain http can be replaced; write an https:// URL (http is for 127.0.0.1 alone)"
                    .to_owned(),
            ),
            _ => fault("issuer", format!("`{issuer}` is not a URL; write https://…")),
        }
        if self.audience.trim().is_empty() {
            fault(
                "audience",
                "must not be empty: it is what tells this gateway's tokens from others'".to_owned(),
            );
        }
        if let Some(path) = &self.ca_file
            && let Err(err) = std::fs::File::open(path)
        {
            fault("ca_file", format!("cannot read `{}`: {err}", path.display()));
        }
        let Self { name, kind, audience, ca_file, actors, .. } = self;
        (faults.len() == before).then_some(Config { name, kind, issuer, audience, ca_file, actors })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(toml: &str) -> (Vec<Config>, String) {
        let mut faults = Faults::default();
        let mut table: Table = toml.parse().expect("TOML");
        let configs = validate(table.remove("ci"), &mut faults);
        (configs, faults.to_string())
    }

    #[test]
    fn the_commented_example_is_valid() {
        let lines = DEFAULT.lines().filter_map(|line| line.strip_prefix("# "));
        let is_toml = |line: &&str| line.starts_with("[[") || line.contains(" = ");
        let text: Vec<&str> = lines.filter(is_toml).filter(|line| !line.contains("ca_file")).collect();
        let (configs, faults) = check(&text.join("\n"));
        assert_eq!(faults, "");
        assert_eq!(configs[0].actors["octocat"], "alice@example.org");
        assert!(check("").0.is_empty());
    }

    #[test]
    fn issuers_are_known_where_there_is_one() {
        let (configs, faults) = check(
            "[[ci]]\nname = \"a\"\nkind = \"github\"\naudience = \"x\"\n[[ci]]\nname = \"b\"\nkind = \"gitlab\"\naudience = \"x\"",
        );
        assert_eq!(faults, "");
        assert_eq!(configs[0].issuer, "https://token.actions.githubusercontent.com");
        assert_eq!(configs[1].issuer, "https://gitlab.com");
    }

    #[test]
    fn every_fault_is_listed_with_its_key() {
        let (_, faults) = check(
            "[[ci]]\nname = \"A b\"\nkind = \"jenkins\"\naudience = \"\"\ncolour = 1\n\
             [[ci]]\nname = \"x\"\nkind = \"generic\"\naudience = \"a\"\nca_file = \"/does/not/exist\"\n\
             [[ci]]\nname = \"g\"\nkind = \"github\"\naudience = \"a\"\nissuer = \"http://id.example.org\"\n\
             [[ci]]\nname = \"h\"\nkind = \"github\"\naudience = \"a\"\n[[ci]]\nname = \"h\"\nkind = \"github\"\naudience = \"a\"\n",
        );
        for key in [
            "ci[1].name:",
            "ci[1].kind:",
            "ci[1].audience:",
            "ci[1].colour:",
            "ci[2].issuer:",
            "ci[2].ca_file:",
            "ci[3].issuer:",
            "ci[5].name:",
            "ci[5].issuer:",
        ] {
            assert_eq!(faults.matches(key).count(), 1, "{key} in:\n{faults}");
        }
        assert!(check("ci = 3").1.contains("write [[ci]]"));
    }
}
