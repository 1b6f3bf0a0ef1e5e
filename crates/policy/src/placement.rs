//! Where each rule is enforced, how, and what it costs there.

use std::collections::BTreeSet;
use std::fmt;

use serde::Serialize;

use crate::automaton::{self, Weights};
use crate::formula::{Atom, Atoms};
use crate::load::Policy;
use crate::question::{GatewayAction, RuleInfo};
use crate::residual::{self, Action};
use crate::trie;

/// Where one rule is enforced.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Placement {
    /// The rule.
    pub rule: RuleInfo,
    /// It forbids; otherwise it permits.
    pub forbids: bool,
    /// It is only watched: what it would deny is recorded and goes on.
    pub monitored: bool,
    /// One for each action that its scope admits.
    pub places: Vec<Place>,
}

/// Where a rule is enforced for one action.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Place {
    /// Name of the Cedar action.
    pub action: String,
    /// On a kernel with BPF LSM.
    pub lsm: Enforcement,
    /// On a kernel without.
    pub tracepoint: Enforcement,
    /// What the rule adds to the tables, by itself and for somebody to whom all of it applies.
    pub cost: Cost,
}

/// How a denial comes about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Enforcement {
    /// The gateway refuses: nothing reaches a host.
    Gateway,
    /// The kernel refuses the program: it never runs.
    DeniedBeforeItRuns,
    /// The kernel kills the program before its first instruction: only then can the arguments be trusted,
    /// or this kernel offers nothing earlier.
    KilledAtFirstInstruction,
    /// The kernel refuses the connection or datagram: nothing is sent.
    ConnectionRefused,
    /// The kernel refuses to bind the socket, or to let it listen.
    BindRefused,
    /// The kernel refuses the call before it has any effect.
    DeniedBeforeItHappens,
    /// The session's first process gives it up for the whole session, if the policy denies it to every calling program when the session
    /// begins.
    GivenUpByTheSession,
    /// Not judged at all.
    NotJudged,
}

impl fmt::Display for Enforcement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Gateway => "at the gateway",
            Self::DeniedBeforeItRuns => "in the kernel, denied before it runs",
            Self::KilledAtFirstInstruction => "in the kernel, killed before its first instruction",
            Self::ConnectionRefused => "in the kernel, refused before anything is sent",
            Self::BindRefused => "in the kernel, refused before the socket is bound",
            Self::DeniedBeforeItHappens => "in the kernel, denied before it happens",
            Self::GivenUpByTheSession => "given up by the session as a whole when it begins",
            Self::NotJudged => "not judged",
        })
    }
}

/// What a rule adds to the tables. The time of a decision does not depend on it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Cost {
    /// States of an automaton for its conditions on path and name; 0 if it has none.
    pub path_states: usize,
    /// States of an automaton for its conditions on arguments; those of rules about the same programs can multiply.
    pub args_states: usize,
    /// Ranges of addresses and ports.
    pub ranges: usize,
    /// Entries of the tables that these take before they are merged with those of other rules.
    pub entries: usize,
}

impl Placement {
    /// Whether nothing enforces it, on a kernel with or without BPF LSM.
    pub fn unenforced(&self) -> bool {
        self.places
            .iter()
            .all(|place| place.lsm == Enforcement::NotJudged && place.tracepoint == Enforcement::NotJudged)
    }
}

impl Policy {
    /// Where every rule is enforced, in order of ids.
    pub fn placement(&self) -> Vec<Placement> {
        self.inner
            .rules
            .values()
            .map(|rule| {
                let mut places = Vec::new();
                for action in Action::all().filter(|action| rule.speaks_of(action.name())) {
                    places.push(in_kernel(&rule.body, action));
                }
                for action in at_gateway().filter(|action| rule.speaks_of(action)) {
                    places.push(gateway(action));
                }
                Placement {
                    rule: rule.info.clone(),
                    forbids: rule.forbids,
                    monitored: rule.monitored,
                    places,
                }
            })
            .collect()
    }
}

/// The actions that the gateway judges.
fn at_gateway() -> impl Iterator<Item = &'static str> {
    ["open_session"].into_iter().chain(GatewayAction::ALL.map(GatewayAction::name))
}

fn gateway(action: &str) -> Place {
    Place {
        action: action.to_owned(),
        lsm: Enforcement::Gateway,
        tracepoint: Enforcement::Gateway,
        cost: Cost::default(),
    }
}

/// Where a rule is enforced for one action; none for an action that there is not.
pub(crate) fn place(body: &cedar_policy::pst::Template, action: &str) -> Option<Place> {
    if at_gateway().any(|known| known == action) {
        return Some(gateway(action));
    }
    Action::all().find(|known| known.name() == action).map(|action| in_kernel(body, action))
}

/// Where it is enforced that no rule permits something.
pub(crate) fn place_of_action(action: &str) -> Option<Place> {
    let body = cedar_policy::Policy::parse(None, "permit (principal, action, resource);").ok()?;
    place(body.to_pst().ok()?.body(), action)
}

fn in_kernel(body: &cedar_policy::pst::Template, action: Action) -> Place {
    let mut atoms = Atoms::default();
    let mut used = BTreeSet::new();
    // A loaded policy holds no condition that cannot be placed.
    if let Ok(formula) = residual::condition(body, action, &mut atoms, None) {
        formula.atoms(&mut used);
    }
    let chosen = |about: fn(&Atom) -> bool| {
        let list: Vec<(u32, &Atom)> =
            used.iter().map(|id| (*id, &**atoms.atom(*id))).filter(|(_, atom)| about(atom)).collect();
        list
    };
    let mut entries = 0usize;
    let mut states = |list: Vec<(u32, &Atom)>| {
        if list.is_empty() {
            return 0;
        }
        let Ok((automaton, _)) = automaton::build(list.into_iter(), &Weights::default()) else {
            return usize::MAX;
        };
        entries += automaton.next.len() + automaton.class.len();
        automaton.class.len()
    };
    let path_states = states(chosen(|atom| matches!(atom, Atom::File(_))));
    let args_states = states(chosen(|atom| matches!(atom, Atom::Args(_))));
    states(chosen(|atom| matches!(atom, Atom::Caller(_))));
    entries += net_entries(&atoms, &used);
    let cost = Cost {
        path_states,
        args_states,
        entries,
        ranges: used
            .iter()
            .map(|id| match &**atoms.atom(*id) {
                Atom::Address(ranges) => ranges.len(),
                Atom::Port(ranges) => ranges.len(),
                _ => 0,
            })
            .sum(),
    };
    let reads = |attributes: &[&str]| {
        body.clauses().iter().any(|clause| {
            let (cedar_policy::pst::Clause::When(expr) | cedar_policy::pst::Clause::Unless(expr)) = clause;
            crate::expr::reads(expr, attributes)
        })
    };
    let (lsm, tracepoint) = match action {
        Action::Gateway(_) => (Enforcement::Gateway, Enforcement::Gateway),
        Action::Connect => (Enforcement::ConnectionRefused, Enforcement::ConnectionRefused),
        Action::Exec if reads(&["args", "command_line"]) => {
            (Enforcement::KilledAtFirstInstruction, Enforcement::KilledAtFirstInstruction)
        }
        Action::Exec => (Enforcement::DeniedBeforeItRuns, Enforcement::KilledAtFirstInstruction),
        Action::Listen => (Enforcement::BindRefused, Enforcement::BindRefused),
        Action::File(_) => (Enforcement::DeniedBeforeItHappens, Enforcement::NotJudged),
        // The session cannot tell callers apart.
        Action::System if reads(&["caller"]) => (Enforcement::DeniedBeforeItHappens, Enforcement::NotJudged),
        Action::System => (Enforcement::DeniedBeforeItHappens, Enforcement::GivenUpByTheSession),
    };
    Place { action: action.name().to_owned(), lsm, tracepoint, cost }
}

/// Entries of the tries of addresses and ports.
fn net_entries(atoms: &Atoms, used: &BTreeSet<u32>) -> usize {
    let mut addresses = Vec::new();
    let mut ports: Option<Vec<u32>> = None;
    for id in used {
        match &**atoms.atom(*id) {
            Atom::Address(ranges) => addresses.extend(ranges.iter().map(|range| (*range, *id))),
            Atom::Port(ranges) => {
                let class = ports.get_or_insert_with(|| vec![0; 65_536]);
                for (low, high) in ranges {
                    class[usize::from(*low)..=usize::from(*high)]
                        .iter_mut()
                        .for_each(|class| *class |= 1 << (id % 31));
                }
            }
            _ => {}
        }
    }
    let mut entries = ports.map_or(0, |class| trie::ports(&class).words());
    if !addresses.is_empty() {
        let mut classes = trie::Classes::default();
        for v6 in [false, true] {
            entries += trie::addresses(&addresses, v6, &mut classes).map_or(0, |trie| trie.words());
        }
    }
    entries
}
