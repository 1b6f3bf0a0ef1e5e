//! From a job's verified claims to an identity, and to what policy can ask of its push. Pure, no network.

use super::config::{Config, Kind};
use sallyport_evidence::record::Identity;
use sallyport_policy::Change;
use serde_json::Value;

/// Paths of repositories and workflow files fit; longer claims go into no record.
const MAX_TEXT: usize = 512;

/// The claims are not a job's. `Display` is for whoever set the job up.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum JobError {
    /// A claim that is needed is missing.
    #[error("the token of `{issuer}` lacks the claim `{claim}`; is `kind` in its [[ci]] section right?")]
    Missing {
        /// Name of the `[[ci]]` section.
        issuer: String,
        /// The claim.
        claim: &'static str,
    },
    /// A claim has a shape that means nothing here.
    #[error("the claim `{claim}` of the token is not {expected}")]
    Shape {
        /// The claim.
        claim: &'static str,
        /// What was expected.
        expected: &'static str,
    },
}

/// A job that has proved itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Job {
    user: String,
    issuer: String,
    subject: String,
    /// Who started it, as this gateway knows them; empty if the token does not say.
    pub actor: String,
    /// Commit that the job runs for; empty if the token does not say.
    pub commit: String,
    change: Change,
}

impl Job {
    /// Who acts: the job, on behalf of whoever started it.
    #[must_use]
    pub fn identity(&self) -> Identity {
        Identity {
            user: self.user.clone(),
            kind: "ci".to_owned(),
            issuer: self.issuer.clone(),
            subject: self.subject.clone(),
            on_behalf_of: self.actor.clone(),
            method: "token".to_owned(),
            ..Identity::default()
        }
    }

    /// What the token says about where a change comes from.
    #[must_use]
    pub fn change(&self) -> Change {
        self.change.clone()
    }
}

/// Reads verified claims.
///
/// # Errors
/// A claim is missing or misshapen.
pub fn job(config: &Config, claims: &Value) -> Result<Job, JobError> {
    let claims = Claims(claims);
    let need = |claim: &'static str| {
        let missing = || JobError::Missing { issuer: config.name.clone(), claim };
        claims.text(claim)?.ok_or_else(missing)
    };
    let subject = need("sub")?;
    let environment = claims.text("environment")?;
    let ref_protected = claims.truth("ref_protected")?;
    let (repository, reference, workflow, actor) = match config.kind {
        Kind::Github => {
            let workflow = claims.text("workflow_ref")?.or(claims.text("job_workflow_ref")?);
            (Some(need("repository")?), Some(need("ref")?), workflow, claims.text("actor")?)
        }
        Kind::Gitlab => {
            let name = need("ref")?;
            let full = match (claims.text("ref_path")?, need("ref_type")?.as_str()) {
                (Some(path), _) => path,
                (None, "tag") => format!("refs/tags/{name}"),
                (None, _) => format!("refs/heads/{name}"),
            };
            let actor = claims.text("user_email")?.or(claims.text("user_login")?);
            (Some(need("project_path")?), Some(full), claims.text("ci_config_ref_uri")?, actor)
        }
        Kind::Generic => {
            (claims.text("repository")?, claims.text("ref")?, claims.text("workflow")?, claims.text("actor")?)
        }
    };
    let name = &config.name;
    let user = match (&repository, &reference) {
        (Some(repository), Some(reference)) => format!("{name}:{repository}@{reference}"),
        _ => format!("{name}:{subject}"),
    };
    // Tables may name the login where the e-mail address is what is told, too.
    let logins = [actor.clone(), claims.text("user_login")?];
    let known = logins.iter().flatten().find_map(|login| config.actors.get(login)).cloned();
    Ok(Job {
        user,
        issuer: config.issuer.clone(),
        subject,
        commit: claims.text("sha")?.unwrap_or_default(),
        change: Change {
            repository,
            reference,
            ref_protected,
            environment,
            workflow,
            audience: Some(config.audience.clone()),
            actor: actor.clone(),
            ..Change::default()
        },
        actor: known.or(actor).unwrap_or_default(),
    })
}

struct Claims<'a>(&'a Value);

impl Claims<'_> {
    /// A claim's text; one that is missing, null or empty is not there.
    fn text(&self, claim: &'static str) -> Result<Option<String>, JobError> {
        match self.0.get(claim) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::String(text)) if text.is_empty() => Ok(None),
            // Shown in terminals and written to records: nothing that steers a terminal, nothing endless.
            Some(Value::String(text)) if text.len() <= MAX_TEXT && !text.chars().any(char::is_control) => {
                Ok(Some(text.clone()))
            }
            Some(_) => Err(JobError::Shape { claim, expected: "a short text without control characters" }),
        }
    }

    /// Both GitHub and GitLab send truth as text.
    fn truth(&self, claim: &'static str) -> Result<Option<bool>, JobError> {
        match self.0.get(claim) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::Bool(is)) => Ok(Some(*is)),
            Some(Value::String(text)) if text == "true" => Ok(Some(true)),
            Some(Value::String(text)) if text == "false" => Ok(Some(false)),
            Some(_) => Err(JobError::Shape { claim, expected: "`true` or `false`" }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn github() -> Value {
        json!({
            "sub": "repo:acme/policies:environment:production", "repository": "acme/policies",
            "ref": "refs/heads/main", "ref_protected": "true", "sha": "c0ffee", "environment": "production",
            "workflow_ref": "acme/policies/.github/workflows/push.yml@refs/heads/main", "actor": "octocat",
        })
    }

    #[test]
    fn a_github_job() {
        let mut config = Config::sample(Kind::Github);
        let made = job(&config, &github()).expect("a job");
        let who = made.identity();
        assert_eq!((who.user.as_str(), who.kind.as_str()), ("sample:acme/policies@refs/heads/main", "ci"));
        assert_eq!((who.on_behalf_of.as_str(), made.commit.as_str()), ("octocat", "c0ffee"));
        let change = made.change();
        assert_eq!(change.repository.as_deref(), Some("acme/policies"));
        assert_eq!((change.ref_protected, change.environment.as_deref()), (Some(true), Some("production")));
        assert_eq!(change.audience.as_deref(), Some("https://gateway.example.org:8443"));
        config.actors.insert("octocat".into(), "alice@example.org".into());
        let made = job(&config, &github()).expect("a job");
        assert_eq!(made.identity().on_behalf_of, "alice@example.org");
        assert_eq!(made.change().actor.as_deref(), Some("octocat"), "rules see what the token says");
    }

    #[test]
    fn a_gitlab_job() {
        let claims = json!({
            "sub": "project_path:acme/policies:ref_type:branch:ref:main", "project_path": "acme/policies",
            "ref": "main", "ref_type": "branch", "ref_protected": "false", "user_login": "ann",
            "user_email": "ann@example.org", "ci_config_ref_uri": "gitlab.com/acme/policies//.gitlab-ci.yml@refs/heads/main",
        });
        let config = Config::sample(Kind::Gitlab);
        let made = job(&config, &claims).expect("a job");
        assert_eq!(made.identity().user, "sample:acme/policies@refs/heads/main");
        assert_eq!(made.identity().on_behalf_of, "ann@example.org");
        assert_eq!(made.change().ref_protected, Some(false));
        let mut tag = claims.clone();
        tag["ref_type"] = json!("tag");
        assert_eq!(job(&config, &tag).expect("a job").change().reference.as_deref(), Some("refs/tags/main"));
        tag["ref_path"] = json!("refs/merge-requests/1/head");
        let reference = job(&config, &tag).expect("a job").change().reference;
        assert_eq!(reference.as_deref(), Some("refs/merge-requests/1/head"));
    }

    #[test]
    fn another_system_is_known_by_its_subject_at_least() {
        let made = job(&Config::sample(Kind::Generic), &json!({"sub": "pipeline 7"})).expect("a job");
        assert_eq!(made.identity().user, "sample:pipeline 7");
        assert_eq!(made.change().repository, None);
    }

    #[test]
    fn what_is_wrong_is_refused() {
        for (claim, value) in [
            ("repository", json!(null)),
            ("repository", json!("")),
            ("repository", json!(7)),
            ("repository", json!("a\nb")),
            ("repository", json!("x".repeat(513))),
            ("ref", json!(["refs/heads/main"])),
            ("sub", json!(null)),
            ("ref_protected", json!("yes")),
            ("environment", json!({"name": "production"})),
            ("actor", json!("\u{1b}[2J")),
        ] {
            let mut claims = github();
            claims[claim] = value.clone();
            assert!(job(&Config::sample(Kind::Github), &claims).is_err(), "{claim}: {value}");
        }
    }
}
