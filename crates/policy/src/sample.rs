//! Trying a policy out: whether it can be compiled for those whom it may concern.
//!
//! Tables are made for a person, a host and a local user, so that a bundle is too large for somebody would only be found at the sensor. The check
//! and the push therefore compile it for a sample: each group alone, all groups, none, and machines where rules speak of
//! them; on each known host, one of each host group that lists none, and an unknown one; as root and as somebody else. The sample is bounded, and the result says whether it was complete.

use std::collections::{BTreeSet, HashMap};

use cedar_policy::pst::Clause;
use serde::Serialize;

use crate::bundle::MANIFEST;
use crate::compile::CompileError;
use crate::diagnostic::{Diagnostics, Faults};
use crate::load::Policy;
use crate::question::Principal;

/// Most combinations that are tried.
const MAX_TRIED: usize = 128;
/// Most rules, over all combinations, that are looked at.
const MAX_RULES: usize = 200_000;
/// Most different tables that are made.
const MAX_COMPILED: usize = 8;
/// A host that no bundle lists.
const UNKNOWN_HOST: &str = "a-host-that-is-not-listed";

/// What trying out a policy gave.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Sample {
    /// Combinations of groups, host and local user that were tried.
    pub tried: usize,
    /// How many there are.
    pub combinations: usize,
    /// How many of those tried have different tables.
    pub different: usize,
    /// Bytes of the largest tables.
    pub largest: usize,
}

impl Sample {
    /// Whether every combination was tried.
    pub fn complete(&self) -> bool {
        self.tried == self.combinations
    }
}

impl Policy {
    /// Compiles for a sample of people and hosts. A fault names the rules that need too much.
    pub fn try_out(&self) -> Result<Sample, Diagnostics> {
        let groups: Vec<String> = self
            .inner
            .known
            .uids
            .iter()
            .filter(|uid| uid.type_name().to_string() == "Group")
            .map(|uid| uid.id().unescaped().to_owned())
            .collect();
        // The widest first: if the sample is cut short, these are in it.
        let mut people = vec![("human", groups.clone()), ("human", vec![])];
        let named = self.named_in_rules();
        let kinds = ["ci", "agent"].into_iter().filter(|kind| named.contains(*kind));
        people.extend(kinds.map(|kind| (kind, groups.clone())));
        people.extend(groups.into_iter().map(|group| ("human", vec![group])));
        let more = self.hosts_of_empty_groups();
        // They come from the bundle itself, so this cannot fail; without them the sample would only be smaller.
        let policy = self.with_hosts(&more).unwrap_or_else(|_| self.clone());
        let mut hosts = policy.hosts();
        hosts.insert(0, UNKNOWN_HOST.to_owned());
        let users = ["root", "somebody"];
        let combinations = people.len() * hosts.len() * users.len();
        let most = MAX_TRIED.min(MAX_RULES / self.inner.rules.len().max(1)).max(4);
        let mut sample = Sample { combinations, ..Sample::default() };
        let mut known: HashMap<u64, ()> = HashMap::new();
        let mut faults = Faults::default();
        let mut told = BTreeSet::new();
        'all: for (kind, groups) in &people {
            for host in &hosts {
                for user in users {
                    if sample.tried == most || sample.different == MAX_COMPILED {
                        break 'all;
                    }
                    sample.tried += 1;
                    let person = Principal {
                        user: "somebody".into(),
                        groups: groups.clone(),
                        kind: (*kind).to_owned(),
                        ..Principal::default()
                    };
                    let compiled = policy.folded(&person, host, user).and_then(|folded| {
                        if known.insert(folded.fingerprint(), ()).is_some() {
                            return Ok(None);
                        }
                        policy.build(&folded, &person, host).map(Some)
                    });
                    match compiled {
                        Ok(None) => {}
                        Ok(Some(compiled)) => {
                            sample.different += 1;
                            sample.largest = sample.largest.max(compiled.arena.len() * 4);
                        }
                        Err(error) => {
                            sample.different += 1;
                            // The same rules are to blame for everybody: once is enough.
                            let rules = match &error {
                                CompileError::TooLarge { rules, .. } => rules.join(","),
                                other => other.to_string(),
                            };
                            if told.insert(rules) {
                                faults.file(MANIFEST, error.to_string(), None);
                            }
                        }
                    }
                }
            }
        }
        faults.result(sample)
    }
    /// Every string that a rule's condition holds.
    fn named_in_rules(&self) -> BTreeSet<String> {
        let mut texts = BTreeSet::new();
        for rule in self.inner.rules.values() {
            for clause in rule.body.clauses() {
                let (Clause::When(expr) | Clause::Unless(expr)) = clause;
                crate::expr::strings(expr, &mut texts);
            }
        }
        texts
    }
}
