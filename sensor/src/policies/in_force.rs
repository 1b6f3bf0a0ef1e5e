//! What is in force on this host: the loaded bundles, which of them judges whom, and their names.

use std::sync::Arc;

use sallyport_evidence::order::{WHOLE, in_share};
use sallyport_policy::{Answer, Bundle, KernelPolicy, Policy, Principal, Question};

use super::PolicyError;

/// A loaded bundle.
#[derive(Clone)]
pub struct Current {
    /// Hex SHA-256 of its archive.
    pub version: String,
    /// Parsed.
    policy: Arc<Policy>,
}

impl Current {
    /// A policy that comes with the sensor: its version is empty.
    #[must_use]
    pub fn built_in(policy: Policy) -> Self {
        Self { version: String::new(), policy: Arc::new(policy) }
    }

    /// Parses and checks a bundle whose hash is known to be `version`.
    ///
    /// # Errors
    /// It is no bundle, or has faults.
    pub fn load(version: &str, archive: &[u8]) -> Result<Self, PolicyError> {
        let bundle = Bundle::from_archive(archive)?;
        let policy = Policy::load(&bundle).map_err(PolicyError::Faults)?;
        Ok(Self { version: version.to_owned(), policy: Arc::new(policy) })
    }

    /// What it answers.
    #[must_use]
    pub fn decide(&self, question: &Question) -> Answer {
        self.policy.decide(question)
    }

    /// Its tables for somebody on this host. Blocks while they are made.
    ///
    /// # Errors
    /// It does not compile.
    pub fn compile(
        &self,
        principal: &Principal,
        host: &str,
        local_user: &str,
    ) -> Result<KernelPolicy, PolicyError> {
        self.policy.compile(principal, host, local_user).map_err(|source| PolicyError::Compile {
            user: principal.user.clone(),
            local_user: local_user.into(),
            source: Box::new(source),
        })
    }
}

impl std::fmt::Debug for Current {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Current").field("version", &self.version).finish_non_exhaustive()
    }
}

/// What is in force, or will be.
#[derive(Clone, Debug, Default)]
pub struct InForce {
    /// For everybody whom no canary covers.
    pub(super) stable: Option<Current>,
    /// A canary, and how many of a thousand sessions it covers.
    pub(super) canary: Option<(Current, u16)>,
}

impl InForce {
    /// The version that judges a session.
    #[must_use]
    pub fn for_session(&self, id: &str) -> Option<&Current> {
        match &self.canary {
            Some((canary, share)) if in_share(*share, &canary.version, id) => Some(canary),
            _ => self.stable.as_ref(),
        }
    }

    /// The version that judges log-ins outside of the gateway, which have no session id: a canary only if it is for all.
    #[must_use]
    pub fn for_logins(&self) -> Option<&Current> {
        self.canary
            .as_ref()
            .filter(|(_, share)| *share >= WHOLE)
            .map(|(canary, _)| canary)
            .or(self.stable.as_ref())
    }

    pub(super) fn named(&self, version: &str) -> Option<&Current> {
        let canary = self.canary.as_ref().map(|(canary, _)| canary);
        self.stable.iter().chain(canary).find(|current| current.version == version)
    }

    pub(super) fn versions(&self) -> Vec<String> {
        let canary = self.canary.as_ref().map(|(canary, _)| canary);
        self.stable.iter().chain(canary).map(|current| current.version.clone()).collect()
    }
}

/// What is in force, by name: for the gateway, `doctor` and records.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Standing {
    /// The version; empty: none.
    pub version: String,
    /// The order that brought it.
    pub serial: u64,
    /// The canary's version; empty: none.
    pub canary: String,
    /// The order that brought it.
    pub canary_serial: u64,
    /// Why the last order was refused; empty: it was not.
    pub trouble: String,
}
