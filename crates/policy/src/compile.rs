//! Compiling: a policy, for one person on one host as one local user, becomes tables for the kernel.

pub(crate) mod limits;
mod names;
mod net;
mod tables;

use std::collections::{BTreeMap, BTreeSet};

use self::limits::MAX_INDEX;
use self::net::NetTables;
use self::tables::{Part, Tables};
use cedar_policy::{Context, Entities, Request, RestrictedExpression};
use sallyport_sensor_abi::policy::PolicyHeader;

use crate::entities::uid;
use crate::formula::{Atom, Atoms, Formula};
use crate::kernel::KernelPolicy;
use crate::load::Policy;
use crate::question::Principal;
use crate::residual::{self, Action, Given};
use crate::rule::Rule;
use crate::scope;
use crate::table::{Effect, Entry};

/// Why a policy cannot be compiled for somebody.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CompileError {
    /// A table would be too large.
    #[error("the rules together need too large a table ({what}, at most {limit}) for {person} on {host}: mostly {}; {advice}", rules.join(", "))]
    TooLarge {
        /// What there is too much of.
        what: &'static str,
        /// How much there may be.
        limit: usize,
        /// For whom it was compiled.
        person: String,
        /// Where.
        host: String,
        /// The rules that contribute most.
        rules: Vec<String>,
        /// What to do.
        advice: &'static str,
    },
    /// A condition cannot be judged by the kernel (found earlier by [`Policy::load`], as a rule).
    #[error("rule {rule}: cannot judge `{part}` in the kernel: {why}")]
    Unplaceable {
        /// The rule.
        rule: String,
        /// The part of its condition.
        part: String,
        /// Why not.
        why: &'static str,
    },
    /// The names of person, host or user make no valid question.
    #[error("`{person}` on `{host}` makes no valid question to the policy")]
    Names {
        /// The person.
        person: String,
        /// The host.
        host: String,
    },
}

/// What is left of the rules for one person, host and local user.
pub(crate) struct Folded<'a> {
    atoms: Atoms,
    actions: Vec<(Action, Vec<(&'a Rule, Formula)>)>,
}

impl Folded<'_> {
    /// The same number for the same rules with the same conditions: then the tables are the same, too.
    pub(crate) fn fingerprint(&self) -> u64 {
        use std::hash::{Hash as _, Hasher as _};
        let mut hasher = std::hash::DefaultHasher::new();
        for atom in 0..self.atoms.len() as u32 {
            self.atoms.atom(atom).hash(&mut hasher);
        }
        for (action, left) in &self.actions {
            action.hash(&mut hasher);
            for (rule, formula) in left {
                (&rule.info.id, formula).hash(&mut hasher);
            }
        }
        hasher.finish()
    }
}

impl Policy {
    /// Compiles for one person, host and local user. The tables give the answers of [`Self::decide`].
    pub fn compile(
        &self,
        principal: &Principal,
        host: &str,
        local_user: &str,
    ) -> Result<KernelPolicy, CompileError> {
        let folded = self.folded(principal, host, local_user)?;
        self.build(&folded, principal, host)
    }

    /// What is left of all rules for one person, host and local user.
    pub(crate) fn folded(
        &self,
        principal: &Principal,
        host: &str,
        local_user: &str,
    ) -> Result<Folded<'_>, CompileError> {
        let entities = self
            .inner
            .known
            .with(principal, Some(host))
            .ok_or_else(|| CompileError::Names { person: principal.user.clone(), host: host.to_owned() })?;
        let mut atoms = Atoms::default();
        let mut actions = Vec::new();
        for action in Action::all() {
            actions.push((action, self.fold(&mut atoms, action, principal, host, local_user, &entities)?));
        }
        Ok(Folded { atoms, actions })
    }

    /// The tables of what is left.
    pub(crate) fn build(
        &self,
        folded: &Folded<'_>,
        principal: &Principal,
        host: &str,
    ) -> Result<KernelPolicy, CompileError> {
        let Folded { atoms, actions } = folded;
        let mut rules = vec![self.default_rule().clone()];
        let mut indices: BTreeMap<&str, u32> = BTreeMap::new();
        let mut parts = Vec::new();
        let mut names = BTreeSet::new();
        for (action, left) in actions {
            let numbers: Vec<u32> = left
                .iter()
                .map(|(rule, _)| {
                    *indices.entry(&rule.info.id).or_insert_with(|| {
                        rules.push(rule.info.clone());
                        rules.len() as u32 - 1
                    })
                })
                .collect();
            for (_, formula) in left.iter().filter(|(rule, _)| rule.forbids) {
                names::literal(atoms, formula, &mut names);
            }
            let entries = entries(left, &numbers);
            let rest = left.iter().zip(0..).map(|((_, formula), at)| (at, formula.clone())).collect();
            parts.push(Part { action: *action, entries, rest });
        }
        let mut arena = Vec::new();
        let mut header = PolicyHeader::EMPTY;
        let mut build = || {
            Tables { atoms, arena: &mut arena }.build(&parts, &mut header)?;
            for part in &parts {
                let net = match part.action {
                    Action::Connect => &mut header.connect,
                    Action::Listen => &mut header.listen,
                    _ => continue,
                };
                NetTables { atoms, part }.build(net, &mut arena)?;
            }
            if rules.len() > MAX_INDEX { Err(limits::words(|_| true)) } else { Ok(()) }
        };
        build().map_err(|error| CompileError::TooLarge {
            what: error.what,
            limit: error.limit,
            person: principal.user.clone(),
            host: host.to_owned(),
            rules: blamed(atoms, actions.iter().flat_map(|(_, left)| left), error.about),
            advice: error.advice,
        })?;
        header.words = arena.len() as u32;
        Ok(KernelPolicy { header, arena, rules, names: names.into_iter().collect() })
    }

    /// The rules that can apply, with what is left of their conditions.
    fn fold(
        &self,
        atoms: &mut Atoms,
        action: Action,
        principal: &Principal,
        host: &str,
        local_user: &str,
        entities: &Entities,
    ) -> Result<Vec<(&Rule, Formula)>, CompileError> {
        let names = || CompileError::Names { person: principal.user.clone(), host: host.to_owned() };
        let person = uid("User", &principal.user);
        let place = uid("Host", host);
        let known = [("local_user".to_owned(), RestrictedExpression::new_string(local_user.to_owned()))];
        let context = Context::from_pairs(known).map_err(|_| names())?;
        let request =
            Request::new(person.clone(), uid("Action", action.name()), place.clone(), context, None)
                .map_err(|_| names())?;
        let given = Given { request: &request, entities };
        let mut left = Vec::new();
        for rule in self.inner.rules.values().filter(|rule| rule.speaks_of(action.name())) {
            if !scope::principal_fits(&rule.body, &person, entities)
                || !scope::resource_fits(&rule.body, &place, entities)
            {
                continue;
            }
            let formula = residual::condition(&rule.body, action, atoms, Some(&given)).map_err(|fault| {
                CompileError::Unplaceable { rule: rule.info.id.clone(), part: fault.part, why: fault.why }
            })?;
            if !matches!(formula, Formula::False | Formula::Error) {
                left.push((rule, formula));
            }
        }
        Ok(left)
    }
}

/// The rules for the tables, in the same order. Ranks say which of several rules that hold is named.
fn entries(rules: &[(&Rule, Formula)], indices: &[u32]) -> Vec<Entry> {
    let mut by_precedence: Vec<usize> = (0..rules.len()).collect();
    by_precedence.sort_by_key(|at| rules[*at].0.precedence());
    let mut ranks = vec![0; rules.len()];
    for (rank, at) in by_precedence.into_iter().enumerate() {
        ranks[at] = rank as u32;
    }
    let entry = |(at, (rule, _)): (usize, &(&Rule, Formula))| {
        let effect = match (rule.forbids, rule.monitored) {
            (false, _) => Effect::Permit,
            (true, false) => Effect::Forbid,
            (true, true) => Effect::Watch,
        };
        let quiet = rule.quiet;
        Entry { effect, on_violation: rule.info.on_violation, quiet, rank: ranks[at], index: indices[at] }
    };
    rules.iter().enumerate().map(entry).collect()
}

/// The rules with the most atoms about what there was too much of; at most eight.
fn blamed<'a>(
    atoms: &Atoms,
    rules: impl Iterator<Item = &'a (&'a Rule, Formula)>,
    about: fn(&Atom) -> bool,
) -> Vec<String> {
    let mut counted: BTreeMap<&str, usize> = BTreeMap::new();
    let counts = rules
        .map(|(rule, formula)| {
            let mut used = BTreeSet::new();
            formula.atoms(&mut used);
            let count = used.iter().filter(|atom| about(atoms.atom(**atom))).count();
            (count, rule.info.id.as_str())
        })
        .filter(|(count, _)| *count > 0);
    // A rule may speak of several actions.
    for (count, id) in counts {
        *counted.entry(id).or_default() += count;
    }
    let mut counted: Vec<(usize, &str)> = counted.into_iter().map(|(id, count)| (count, id)).collect();
    counted.sort_by_key(|(count, id)| (std::cmp::Reverse(*count), *id));
    let more = counted.len().saturating_sub(8);
    let mut names: Vec<String> = counted.iter().take(8).map(|(_, id)| format!("`{id}`")).collect();
    if more > 0 {
        names.push(format!("and {more} more"));
    }
    names
}
