//! A change of policy, as policy itself judges it: who may push is decided by what they push and from where.

use std::fmt;

use cedar_policy::RestrictedExpression;
use serde::{Deserialize, Serialize};

/// What a push, or the approval of one, is about: `context` of `push_policy` and `approve_policy`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Change {
    /// Git commit; empty if there is none.
    pub commit: String,
    /// Names of the configured keys that signed this version.
    pub signed_by: Vec<String>,
    /// How many other people have approved it.
    pub approvals: u32,
    /// Who proposed it, if somebody else asks.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub proposed_by: Option<String>,
    /// `owner/name` of the repository whose CI job brings it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub repository: Option<String>,
    /// Full name of the branch or tag that the job runs for: `refs/heads/main`.
    #[serde(rename = "ref", skip_serializing_if = "Option::is_none")]
    pub reference: Option<String>,
    /// Whether that branch or tag is protected.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ref_protected: Option<bool>,
    /// Deployment environment of the job.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub environment: Option<String>,
    /// Where the job is defined.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub workflow: Option<String>,
    /// Whom the job's token was made for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub audience: Option<String>,
    /// Who started the job.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub actor: Option<String>,
}

impl Change {
    /// The attributes that Cedar sees. What is not known is not there, so that a rule cannot take it for something.
    pub(crate) fn context(&self) -> Vec<(&'static str, RestrictedExpression)> {
        let text = |value: &String| RestrictedExpression::new_string(value.clone());
        let mut pairs = vec![
            ("commit", text(&self.commit)),
            ("signed_by", RestrictedExpression::new_set(self.signed_by.iter().map(text))),
            ("approvals", RestrictedExpression::new_long(i64::from(self.approvals))),
        ];
        pairs.extend(self.texts().map(|(name, value)| (name, text(value))));
        pairs.extend(self.ref_protected.map(|is| ("ref_protected", RestrictedExpression::new_bool(is))));
        pairs
    }

    fn texts(&self) -> impl Iterator<Item = (&'static str, &String)> {
        let all = [
            ("proposed_by", &self.proposed_by),
            ("repository", &self.repository),
            ("ref", &self.reference),
            ("environment", &self.environment),
            ("workflow", &self.workflow),
            ("audience", &self.audience),
            ("actor", &self.actor),
        ];
        all.into_iter().filter_map(|(name, value)| Some((name, value.as_ref()?)))
    }
}

impl fmt::Display for Change {
    /// What is known of it, to follow the name of an action: ` of acme/policies at refs/heads/main, signed by release`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(repository) = &self.repository {
            write!(f, " of {repository}")?;
        }
        if let Some(reference) = &self.reference {
            write!(f, " at {reference}")?;
        }
        if let Some(environment) = &self.environment {
            write!(f, " in {environment}")?;
        }
        if !self.signed_by.is_empty() {
            write!(f, ", signed by {}", self.signed_by.join(" and "))?;
        }
        if self.approvals > 0 {
            write!(f, ", approved by {}", self.approvals)?;
        }
        Ok(())
    }
}
