//! The same by brute force: every record of some people, asked anew of Cedar's authorizer under both bundles.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use anyhow::{Context as _, Result, ensure};
use sallyport_evidence::record::Outcome;
use sallyport_policy::{Decider, Effect, Policy, Question, Verdict};
use serde_json::Value;

use crate::records::{self, SHELL};

/// Programs that rules make exceptions for, and one that none names: what started a program is not on the record.
const CALLERS: [&str; 5] =
    [SHELL, "/usr/bin/dpkg", "/usr/bin/systemctl", "/usr/sbin/ldconfig", "/opt/some/program"];

/// Change, person, host, action, rule before and rule after.
type Key = [String; 6];

/// What came of the sample.
pub(crate) struct Sample {
    /// How many records.
    pub(crate) records: u64,
    /// What would have been different, and how often.
    pub(crate) changes: BTreeMap<Key, u64>,
    people: BTreeSet<String>,
}

/// Deciders of a policy, by person and host.
struct Authority<'a> {
    policy: &'a Policy,
    deciders: HashMap<(u64, String), Decider<'a>>,
}

impl<'a> Authority<'a> {
    fn new(policy: &'a Policy) -> Self {
        Self { policy, deciders: HashMap::new() }
    }

    fn effect(&mut self, person: u64, question: &Question) -> Result<Effect> {
        let host = question.host().context("a host")?;
        let place = (person, host.to_owned());
        if !self.deciders.contains_key(&place) {
            let decider = self.policy.decider(question.principal(), host).context("names")?;
            self.deciders.insert(place.clone(), decider);
        }
        Ok(Effect::of(&self.deciders[&place].decide(question)))
    }
}

/// Judges every record of the people who are `wanted`.
pub(crate) fn judge(
    before: &Policy,
    candidate: &Policy,
    records: u64,
    wanted: impl Fn(u64) -> bool,
) -> Result<Sample> {
    let mut sample = Sample { records: 0, changes: BTreeMap::new(), people: BTreeSet::new() };
    let (mut then, mut now) = (Authority::new(before), Authority::new(candidate));
    for number in 0..records {
        if !wanted(records::person(number)) {
            continue;
        }
        let asked = records::asked(number)?;
        sample.records += 1;
        sample.people.insert(asked.question.principal().user.clone());
        let was = then.effect(asked.person, &asked.question)?;
        let (outcome, rule_before) = records::recorded(before, was);
        let mut effects = BTreeSet::new();
        for question in variants(&asked.question) {
            let effect = now.effect(asked.person, &question)?;
            effects.insert((effect.verdict, effect.rule));
        }
        let verdicts: BTreeSet<Verdict> = effects.iter().map(|(verdict, _)| *verdict).collect();
        let (Some(verdict), 1) = (verdicts.first(), verdicts.len()) else {
            anyhow::bail!(
                "the caller matters to {}; the records should have nothing of the kind",
                asked.question
            );
        };
        let Some(change) = change(outcome, *verdict) else { continue };
        let rule_before = match outcome {
            Outcome::Allowed => String::new(),
            _ if rule_before.is_empty() => before.default_rule().id.clone(),
            _ => rule_before,
        };
        let rule_after = match effects.first() {
            Some((_, rule)) if effects.len() == 1 => rule.clone(),
            _ => "(one of several)".to_owned(),
        };
        let question = &asked.question;
        let key = [
            change.to_owned(),
            question.principal().user.clone(),
            question.host().unwrap_or_default().to_owned(),
            question.action().to_owned(),
            rule_before,
            rule_after,
        ];
        *sample.changes.entry(key).or_default() += 1;
    }
    Ok(sample)
}

impl Sample {
    /// Holds it against what the command said of the same people.
    ///
    /// # Errors
    /// They differ, or the sample does not have every kind of change.
    pub(crate) fn compare(&self, report: &Value) -> Result<()> {
        let unsaid = report["cannot_be_said"].as_array().context("a list")?;
        ensure!(unsaid.is_empty(), "the command leaves open what Cedar answers: {unsaid:?}");
        let mut said: BTreeMap<Key, u64> = BTreeMap::new();
        for line in report["changes"].as_array().context("a list")? {
            let names = ["change", "user", "host", "action", "rule_before", "rule_after"];
            let key: Key = names.map(|name| line[name].as_str().unwrap_or_default().to_owned());
            if self.people.contains(&key[1]) {
                *said.entry(key).or_default() += line["count"].as_u64().context("a count")?;
            }
        }
        let differs = said.iter().find(|(key, count)| self.changes.get(*key) != Some(*count));
        let missing = self.changes.iter().find(|(key, _)| !said.contains_key(*key));
        ensure!(
            differs.is_none() && missing.is_none(),
            "the command and Cedar disagree: it says {differs:?} and not {missing:?}"
        );
        for kind in ["newly_blocked", "newly_allowed", "newly_noticed", "no_longer_noticed"] {
            let has = self.changes.keys().any(|key| key[0] == kind);
            ensure!(has, "nothing in the sample is {kind}, so it shows nothing about that");
        }
        // What would not be noticed if nothing were compared.
        ensure!(
            self.changes.values().sum::<u64>() * 50 > self.records,
            "hardly anything changes in the sample"
        );
        Ok(())
    }
}

/// The question with everything that is not on the record.
fn variants(question: &Question) -> Vec<Question> {
    let Question::Exec { .. } = question else { return vec![question.clone()] };
    let with = |name: &str| {
        let mut question = question.clone();
        if let Question::Exec { caller, .. } = &mut question {
            name.clone_into(caller);
        }
        question
    };
    CALLERS.iter().map(|name| with(name)).collect()
}

/// What is different, in the command's words.
fn change(before: Outcome, after: Verdict) -> Option<&'static str> {
    let noticed = before == Outcome::Observed;
    let went = noticed || before == Outcome::Allowed;
    match (went, after.allows()) {
        (true, false) => Some("newly_blocked"),
        (false, true) => Some("newly_allowed"),
        (false, false) => None,
        (true, true) => match (noticed, after == Verdict::Observed) {
            (false, true) => Some("newly_noticed"),
            (true, false) => Some("no_longer_noticed"),
            _ => None,
        },
    }
}
