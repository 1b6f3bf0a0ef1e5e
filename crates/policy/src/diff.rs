//! Two policies compared by what they mean: which actions they treat differently, for whom, and an example of each.
//!
//! For one person, host and local user ([`Comparison`]) the compiled tables of both are multiplied: the values of each attribute fall
//! into pairs of classes, and each combination of pairs has one answer from either policy. So what differs is known exactly, as
//! a set of combinations, and every combination has a shortest example. [`Diff`] does this for everybody who can be told apart.
//! Actions on Sallyport itself are compared for changes of policy about which nothing is known ([`Change::default`]).
//! No example is given that Cedar's authorizer does not answer in the same two ways.

mod net;
mod people;
pub(crate) mod product;
mod sessions;
mod tables;

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, BTreeSet, HashMap};

use sallyport_sensor_abi::policy::{DENY, END_SESSION, KILL, OBSERVED, QUIET, Word};
use serde::Serialize;

use self::sessions::Sessions;
use self::tables::Tables;
use crate::change::Change;
use crate::compile::CompileError;
use crate::kernel::KernelPolicy;
use crate::load::Policy;
use crate::question::{Answer, GatewayAction, OnViolation, Principal, Question};
use crate::rule::DEFAULT_RULE;

pub use self::people::Scope;

/// What comes of an action. The order is from strict to lenient.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// Denied, and the session ended.
    SessionEnded,
    /// Denied, and the process killed.
    Killed,
    /// Denied.
    Denied,
    /// Allowed; a monitored rule would deny it.
    Observed,
    /// Allowed.
    Allowed,
    /// Allowed, and not recorded.
    Unrecorded,
}

impl Verdict {
    /// Whether it may be done.
    pub fn allows(self) -> bool {
        self >= Self::Observed
    }

    /// In words.
    pub fn name(self) -> &'static str {
        match self {
            Self::SessionEnded => "denied, session ended",
            Self::Killed => "denied, process killed",
            Self::Denied => "denied",
            Self::Observed => "allowed, noticed by a monitored rule",
            Self::Allowed => "allowed",
            Self::Unrecorded => "allowed, not recorded",
        }
    }

    /// Of a table's word.
    pub(crate) fn of_word(word: Word) -> Self {
        match word {
            _ if word & END_SESSION != 0 => Self::SessionEnded,
            _ if word & KILL != 0 => Self::Killed,
            _ if word & DENY != 0 => Self::Denied,
            _ if word & OBSERVED != 0 => Self::Observed,
            _ if word & QUIET != 0 => Self::Unrecorded,
            _ => Self::Allowed,
        }
    }

    /// Of an answer of Cedar's authorizer.
    pub fn of(answer: &Answer) -> Self {
        match (answer.allowed, answer.rule.as_ref().map(|rule| rule.on_violation)) {
            (false, Some(OnViolation::EndSession)) => Self::SessionEnded,
            (false, Some(OnViolation::Kill)) => Self::Killed,
            (false, _) => Self::Denied,
            (true, _) if answer.observed.is_some() => Self::Observed,
            (true, _) if answer.quiet => Self::Unrecorded,
            (true, _) => Self::Allowed,
        }
    }
}

/// An answer as far as it matters, with the rule that is named for it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct Effect {
    /// What comes of it.
    pub verdict: Verdict,
    /// Of sessions: how long they may last, in seconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub session_limit: Option<u64>,
    /// Id of the rule; `default-deny` if none permits it.
    pub rule: String,
}

impl Effect {
    /// Of an answer.
    pub fn of(answer: &Answer) -> Self {
        let rule = answer.observed.as_ref().or(answer.rule.as_ref());
        Self {
            verdict: Verdict::of(answer),
            session_limit: answer.session_limit.map(|limit| limit.as_secs()),
            rule: rule.map_or_else(|| DEFAULT_RULE.to_owned(), |rule| rule.id.clone()),
        }
    }

    fn of_word(policy: &KernelPolicy, word: Word) -> Self {
        let rule = policy.rule(word).map_or_else(|| DEFAULT_RULE.to_owned(), |rule| rule.id.clone());
        Self { verdict: Verdict::of_word(word), session_limit: None, rule }
    }

    /// Whether it means the same, whatever rule is named.
    pub fn same(&self, other: &Self) -> bool {
        self.verdict == other.verdict && self.session_limit == other.session_limit
    }
}

/// What becomes of an action.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Becomes {
    /// It was allowed and no longer is.
    Forbidden,
    /// It was denied and no longer is.
    Allowed,
    /// It is denied as before, with other consequences.
    Consequence,
    /// A monitored rule notices it now.
    Monitored,
    /// No monitored rule notices it any more.
    Unmonitored,
    /// It is recorded now.
    Recorded,
    /// It is no longer recorded.
    Unrecorded,
    /// Sessions may last longer or less long.
    SessionLimit,
}

impl Becomes {
    fn between(before: &Effect, after: &Effect) -> Self {
        use Verdict as V;
        match (before.verdict, after.verdict) {
            (a, b) if a.allows() && !b.allows() => Self::Forbidden,
            (a, b) if !a.allows() && b.allows() => Self::Allowed,
            (a, b) if a == b => Self::SessionLimit,
            (a, _) if !a.allows() => Self::Consequence,
            (_, V::Observed) => Self::Monitored,
            (V::Observed, _) => Self::Unmonitored,
            (_, V::Unrecorded) => Self::Unrecorded,
            _ => Self::Recorded,
        }
    }

    /// In words.
    pub fn name(self) -> &'static str {
        match self {
            Self::Forbidden => "becomes forbidden",
            Self::Allowed => "becomes allowed",
            Self::Consequence => "is denied with other consequences",
            Self::Monitored => "becomes monitored",
            Self::Unmonitored => "is no longer monitored",
            Self::Recorded => "becomes recorded",
            Self::Unrecorded => "is no longer recorded",
            Self::SessionLimit => "gets another session limit",
        }
    }
}

/// What one person may do on one host as one local user, under two policies.
#[derive(Debug)]
pub struct Comparison {
    tables: Tables,
    sessions: Sessions,
    gateway: BTreeSet<&'static str>,
}

/// Something that is treated differently, with an example.
#[derive(Clone, Debug)]
pub struct Found {
    /// Name of the Cedar action.
    pub action: &'static str,
    /// Before.
    pub before: Effect,
    /// After.
    pub after: Effect,
    /// How many combinations of classes it takes in.
    pub classes: u64,
    /// One of them; none if there is none that a computer could come to ask.
    pub example: Option<Question>,
}

/// Why two policies could not be compared.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DiffError {
    /// One of them cannot be compiled for somebody.
    #[error("the {which} policy cannot be compiled")]
    Compile {
        /// `old` or `new`.
        which: &'static str,
        /// Why not.
        #[source]
        source: Box<CompileError>,
    },
    /// Cedar's authorizer does not confirm an example.
    #[error(
        "the tables and Cedar's authorizer disagree about `{question}`: {tables}, {cedar}; please report this fault"
    )]
    Unconfirmed {
        /// The example.
        question: Box<Question>,
        /// What the tables say.
        tables: String,
        /// What Cedar says.
        cedar: String,
    },
}

impl Comparison {
    /// Compares for one person on one host as one local user.
    pub fn new(
        before: &Policy,
        after: &Policy,
        principal: &Principal,
        host: &str,
        local_user: &str,
    ) -> Result<Self, DiffError> {
        let compiled = |policy: &Policy, which| {
            policy
                .compile(principal, host, local_user)
                .map_err(|source| DiffError::Compile { which, source: Box::new(source) })
        };
        let tables = Tables::multiply(compiled(before, "old")?, compiled(after, "new")?);
        let sessions = Sessions::compare(before, after, principal, host, local_user);
        let gateway = GatewayAction::ALL.into_iter().filter(|action| {
            let question = Question::Gateway {
                principal: principal.clone(),
                action: *action,
                change: Change::default(),
            };
            !Effect::of(&before.decide(&question)).same(&Effect::of(&after.decide(&question)))
        });
        Ok(Self { tables, sessions, gateway: gateway.map(GatewayAction::name).collect() })
    }

    /// Whether a question is among those that are answered differently. It must be of the same person, host and local user.
    pub fn contains(&self, question: &Question) -> bool {
        match question {
            Question::OpenSession { client_address, .. } => self.sessions.contains(*client_address),
            Question::Gateway { action, .. } => self.gateway.contains(action.name()),
            other => self.tables.contains(other),
        }
    }

    /// Forgets one difference, so that a test can see that this is noticed. Returns whether there was one.
    #[doc(hidden)]
    pub fn spoil(&mut self) -> bool {
        self.tables.spoil()
    }

    /// Combinations of classes that differ, of what the kernel judges.
    pub fn classes(&self) -> u64 {
        self.tables.differing()
    }
}

/// A difference, for all whom it concerns.
#[derive(Clone, Debug)]
pub struct Difference {
    /// What becomes of it.
    pub change: Becomes,
    /// Name of the Cedar action.
    pub action: &'static str,
    /// Before.
    pub before: Effect,
    /// After.
    pub after: Effect,
    /// Where it was found first: combinations of classes it takes in there.
    pub classes: u64,
    /// An example, which Cedar's authorizer confirmed; none if no computer could come to ask such a question.
    pub example: Option<Question>,
    /// Whom it concerns.
    pub concerns: Vec<Concern>,
}

/// Whom a difference concerns.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Concern {
    /// Who, in words.
    pub person: String,
    /// Where; empty for the gateway.
    pub host: String,
    /// As whom; empty for the gateway.
    pub local_user: String,
}

/// How two policies differ.
#[derive(Clone, Debug, Default)]
pub struct Diff {
    /// Everything that differs, the most important first.
    pub differences: Vec<Difference>,
    /// Combinations of person, host and local user that were looked at.
    pub situations: usize,
    /// How many of them are different.
    pub distinct: usize,
    /// Combinations that were not looked at, because there are too many.
    pub left_out: usize,
}

/// Differences by what they are.
type ByEffect = BTreeMap<(Becomes, &'static str, Effect, Effect), Difference>;

impl Diff {
    /// Compares two policies for everybody in `scope`.
    pub fn new(before: &Policy, after: &Policy, scope: &Scope) -> Result<Self, DiffError> {
        let everybody = people::situations(before, after, scope);
        let mut diff = Self { left_out: everybody.left_out, ..Self::default() };
        let mut found: ByEffect = BTreeMap::new();
        let mut known: HashMap<(u64, u64), Vec<Found>> = HashMap::new();
        for person in &everybody.people {
            for action in GatewayAction::ALL {
                let change = Change::default();
                let question = Question::Gateway { principal: person.principal.clone(), action, change };
                let (a, b) = (Effect::of(&before.decide(&question)), Effect::of(&after.decide(&question)));
                if !a.same(&b) {
                    let concern = Concern {
                        person: person.title.clone(),
                        host: String::new(),
                        local_user: String::new(),
                    };
                    let action = action.name();
                    let one = Found { action, before: a, after: b, classes: 1, example: Some(question) };
                    add(&mut found, concern, one);
                }
            }
        }
        for (person, place, local_user) in everybody.all() {
            let host = place.name.as_str();
            let principal = &person.principal;
            let concern = Concern {
                person: person.title.clone(),
                host: place.title.clone(),
                local_user: local_user.clone(),
            };
            diff.situations += 1;
            for one in Sessions::compare(before, after, principal, host, local_user).found() {
                add(&mut found, concern.clone(), one);
            }
            let fold = |policy: &Policy, which| {
                let folded = policy.folded(principal, host, local_user);
                folded
                    .map(|folded| folded.fingerprint())
                    .map_err(|source| DiffError::Compile { which, source: Box::new(source) })
            };
            let key = (fold(before, "old")?, fold(after, "new")?);
            if let Entry::Vacant(place) = known.entry(key) {
                diff.distinct += 1;
                let compiled = |policy: &Policy, which| {
                    policy
                        .compile(principal, host, local_user)
                        .map_err(|source| DiffError::Compile { which, source: Box::new(source) })
                };
                let tables = Tables::multiply(compiled(before, "old")?, compiled(after, "new")?);
                let all = tables.found(&(principal.clone(), host.to_owned(), local_user.clone()));
                for one in &all {
                    confirm(before, after, one)?;
                }
                place.insert(all);
            }
            for one in &known[&key] {
                add(&mut found, concern.clone(), one.clone());
            }
        }
        diff.differences = found.into_values().collect();
        diff.differences.sort_by_key(|difference| difference.example.is_none());
        Ok(diff)
    }

    /// Whether they mean the same to everybody, in everything that a computer could come to ask.
    pub fn is_empty(&self) -> bool {
        self.differences.iter().all(|difference| difference.example.is_none())
    }
}

/// Asks Cedar's authorizer whether an example is answered as the tables say.
fn confirm(before: &Policy, after: &Policy, found: &Found) -> Result<(), DiffError> {
    let Some(question) = &found.example else { return Ok(()) };
    let asked = (Effect::of(&before.decide(question)), Effect::of(&after.decide(question)));
    if asked == (found.before.clone(), found.after.clone()) {
        return Ok(());
    }
    Err(DiffError::Unconfirmed {
        question: Box::new(question.clone()),
        tables: format!("{:?}, then {:?}", found.before, found.after),
        cedar: format!("{:?}, then {:?}", asked.0, asked.1),
    })
}

fn add(all: &mut ByEffect, concern: Concern, found: Found) {
    let Found { action, before, after, classes, example } = found;
    let change = Becomes::between(&before, &after);
    let key = (change, action, before.clone(), after.clone());
    let difference = all.entry(key).or_insert_with(|| Difference {
        change,
        action,
        before,
        after,
        classes,
        example: example.clone(),
        concerns: vec![],
    });
    if difference.example.is_none() {
        difference.example = example;
    }
    difference.classes = difference.classes.max(classes);
    difference.concerns.push(concern);
}
