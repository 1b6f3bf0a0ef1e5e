//! What `[policy]` of the configuration demands of changes: signatures, and a second person.

use crate::config::Faults;
use sallyport_evidence::note::Verifier;
use std::time::Duration;

/// The keys' commented defaults, for the section `[policy]`.
pub const DEFAULT: &str = r#"# Keys whose signatures on policy versions are believed (`sallyport policy keygen` makes one).
# signers = ["release+1a2b3c4d+AbCd…"]
# Refuse versions that none of them has signed for this gateway. Its name above is what is signed.
# require_signature = true
# Whoever pushes only proposes: another person, whom policy permits `approve_policy`, must approve it.
# two_person = true
# A proposal that nobody approves in this time is void.
# proposal_ttl = "24h"
"#;

/// As written.
#[derive(Debug, Default)]
pub(crate) struct Raw {
    pub(crate) signers: Vec<String>,
    pub(crate) require_signature: bool,
    pub(crate) two_person: bool,
    pub(crate) proposal_ttl: Option<String>,
}

/// Validated.
#[derive(Clone, Debug)]
pub struct Rules {
    /// Keys whose signatures are believed; each has a name of its own.
    pub signers: Vec<Verifier>,
    /// Versions that none of them has signed are refused.
    pub require_signature: bool,
    /// Another person must approve.
    pub two_person: bool,
    /// How long a proposal waits.
    pub proposal_ttl: Duration,
}

impl Default for Rules {
    fn default() -> Self {
        let proposal_ttl = Duration::from_secs(86_400);
        Self { signers: Vec::new(), require_signature: false, two_person: false, proposal_ttl }
    }
}

impl Raw {
    /// Validates; adds every fault to `faults`.
    pub(crate) fn validate(self, faults: &mut Faults) -> Rules {
        let mut signers: Vec<Verifier> = Vec::new();
        for text in &self.signers {
            match Verifier::parse(text) {
                Ok(key) if signers.iter().any(|other| other.name() == key.name()) => {
                    let problem =
                        format!("there are two keys named `{}`; rules tell signers by name", key.name());
                    faults.add("policy.signers", problem);
                }
                Ok(key) => signers.push(key),
                Err(err) => {
                    let help = "write what `sallyport policy keygen` printed";
                    faults.add("policy.signers", format!("`{text}`: {err}; {help}"));
                }
            }
        }
        if self.require_signature && self.signers.is_empty() {
            let problem = "nothing can be signed as long as `signers` names no key; add one";
            faults.add("policy.require_signature", problem);
        }
        let ttl = self.proposal_ttl.as_deref().and_then(|ttl| faults.duration("policy.proposal_ttl", ttl));
        let Self { require_signature, two_person, .. } = self;
        let proposal_ttl = ttl.unwrap_or_else(|| Rules::default().proposal_ttl);
        Rules { signers, require_signature, two_person, proposal_ttl }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sallyport_evidence::note::Signer;

    #[test]
    fn every_fault_is_listed() {
        let key = Signer::new("release", &[1; 32]).expect("a key").verifier().to_string();
        let mut faults = Faults::default();
        let signers = vec![key.clone(), key.clone(), "nonsense".to_owned()];
        let raw = Raw { signers, proposal_ttl: Some("soon".to_owned()), ..Raw::default() };
        raw.validate(&mut faults);
        Raw { require_signature: true, ..Raw::default() }.validate(&mut faults);
        let text = faults.to_string();
        for part in
            ["two keys named `release`", "`nonsense`", "policy.proposal_ttl:", "policy.require_signature:"]
        {
            assert!(text.contains(part), "{part} in {text}");
        }
        let mut faults = Faults::default();
        let rules =
            Raw { signers: vec![key], require_signature: true, ..Raw::default() }.validate(&mut faults);
        assert!(faults.is_empty() && rules.signers.len() == 1 && rules.require_signature);
    }
}
