//! Who there is: the people, hosts and local users that two policies can tell apart, one of each kind.
//!
//! A bundle lists no people, so they are made: somebody in no group, somebody in each group, in every two if there are
//! few, in all; everybody whom a rule names; of each kind if rules look at that. Groups and hosts that no rule can tell
//! apart are one.

use std::collections::{BTreeMap, BTreeSet};

use cedar_policy::EntityUid;
use cedar_policy::pst::{Clause, Expr, Literal, PatternElem, Var};

use crate::entities::uid;
use crate::expr::{parts, strings};
use crate::load::Policy;
use crate::question::Principal;

/// Most combinations of person, host and local user that are looked at.
const MOST: usize = 3_000;
/// Up to so many distinguishable groups, people in each two of them are looked at as well.
const PAIRS: usize = 6;
/// A host that no bundle lists.
const UNLISTED: &str = "a-host-that-is-not-listed";
/// A person and a local user whom no rule names.
const STRANGER: &str = "somebody";

/// For whom policies are compared. What is empty stands for all that exist.
#[derive(Clone, Debug, Default)]
pub struct Scope {
    /// These people.
    pub people: Vec<Principal>,
    /// These hosts.
    pub hosts: Vec<String>,
    /// These local users.
    pub local_users: Vec<String>,
}

/// A person, and how they are called.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Person {
    /// As policies see them.
    pub(super) principal: Principal,
    /// In words.
    pub(super) title: String,
}

/// A host, and all that are like it.
pub(super) struct Place {
    pub(super) name: String,
    pub(super) title: String,
}

/// All that is looked at.
pub(super) struct Situations {
    pub(super) people: Vec<Person>,
    pub(super) places: Vec<Place>,
    pub(super) local_users: Vec<String>,
    pub(super) left_out: usize,
}

impl Situations {
    /// Every combination, up to the bound.
    pub(super) fn all(&self) -> impl Iterator<Item = (&Person, &Place, &String)> {
        let all = self.people.iter().flat_map(move |person| {
            self.places
                .iter()
                .flat_map(move |place| self.local_users.iter().map(move |user| (person, place, user)))
        });
        all.take(MOST)
    }
}

/// What rules of both policies look at.
#[derive(Default)]
struct Looked {
    /// Entities that they name.
    named: BTreeSet<EntityUid>,
    /// String literals, also those that a pattern matches.
    texts: BTreeSet<String>,
    /// By attribute of the principal, or `local_user`: the strings that it is compared with.
    compared: BTreeMap<String, BTreeSet<String>>,
}

pub(super) fn situations(before: &Policy, after: &Policy, scope: &Scope) -> Situations {
    let policies = [before, after];
    let looked = looked(policies);
    let people = if scope.people.is_empty() {
        people(policies, &looked)
    } else {
        let title = |principal: &Principal| match principal.groups.as_slice() {
            [] => principal.user.clone(),
            groups => format!("{} in {}", principal.user, groups.join(", ")),
        };
        scope.people.iter().map(|p| Person { principal: p.clone(), title: title(p) }).collect()
    };
    let places = if scope.hosts.is_empty() {
        places(policies, &looked)
    } else {
        scope.hosts.iter().map(|host| Place { name: host.clone(), title: host.clone() }).collect()
    };
    let local_users = if scope.local_users.is_empty() {
        let mut users = BTreeSet::from(["root".to_owned()]);
        if let Some(texts) = looked.compared.get("local_user") {
            users.extend(texts.iter().filter(|text| !text.is_empty()).cloned());
            users.insert(STRANGER.to_owned());
        }
        users.into_iter().collect()
    } else {
        scope.local_users.clone()
    };
    let n = people.len() * places.len() * local_users.len();
    Situations { people, places, local_users, left_out: n.saturating_sub(MOST) }
}

fn looked(policies: [&Policy; 2]) -> Looked {
    let mut looked = Looked::default();
    for policy in policies {
        let sets = [&policy.inner.enforced, &policy.inner.monitored];
        for cedar in sets.into_iter().flat_map(|set| set.policies()) {
            looked.named.extend(cedar.entity_literals());
        }
        for rule in policy.inner.rules.values() {
            for clause in rule.body.clauses() {
                let (Clause::When(expr) | Clause::Unless(expr)) = clause;
                strings(expr, &mut looked.texts);
                compared(policy, expr, &mut looked.compared);
            }
        }
    }
    looked
}

/// Attribute of the principal, or the local user.
fn attribute(expr: &Expr) -> Option<&str> {
    match expr {
        Expr::GetAttr { expr, attr } => match &**expr {
            Expr::Var(Var::Principal) => Some(attr),
            Expr::Var(Var::Context) if attr == "local_user" => Some(attr),
            _ => None,
        },
        _ => None,
    }
}

/// Collects what attributes are compared with.
fn compared(policy: &Policy, expr: &Expr, into: &mut BTreeMap<String, BTreeSet<String>>) {
    let found = parts(expr).into_iter().find_map(|part| attribute(part));
    if let Some(found) = found {
        let texts = into.entry(found.to_owned()).or_default();
        strings(expr, texts);
        if let Expr::Like { pattern, .. } = expr {
            texts.insert(
                pattern
                    .iter()
                    .map(|element| match element {
                        PatternElem::Char(c) => *c,
                        PatternElem::Wildcard => 'x',
                    })
                    .collect(),
            );
        }
        // Compared with something else than literals: a host's label, most likely.
        if parts(expr).into_iter().any(|part| {
            !matches!(&**part, Expr::Literal(Literal::String(_)) | Expr::Set(_)) && attribute(part).is_none()
        }) {
            for entity in policy.inner.known.entities.iter() {
                for (_, value) in entity.tags() {
                    if let Ok(cedar_policy::EvalResult::String(text)) = value {
                        texts.insert(text);
                    }
                }
            }
        }
    }
    for part in parts(expr) {
        compared(policy, part, into);
    }
}

/// What rules name of an entity and of what it belongs to, under each policy.
fn profile(policies: [&Policy; 2], looked: &Looked, one: &EntityUid) -> [BTreeSet<EntityUid>; 2] {
    policies.map(|policy| {
        let above = policy.inner.known.entities.ancestors(one).into_iter().flatten();
        above.chain([one]).filter(|uid| looked.named.contains(uid)).cloned().collect()
    })
}

/// Ids of all listed entities of a type.
fn listed(policies: [&Policy; 2], kind: &str) -> BTreeSet<String> {
    let all = policies.into_iter().flat_map(|policy| &policy.inner.known.uids);
    all.filter(|uid| uid.type_name().to_string() == kind).map(|uid| uid.id().unescaped().to_owned()).collect()
}

fn people(policies: [&Policy; 2], looked: &Looked) -> Vec<Person> {
    let mut groups: BTreeMap<_, Vec<String>> = BTreeMap::new();
    for group in listed(policies, "Group") {
        let profile = profile(policies, looked, &uid("Group", &group));
        if profile.iter().any(|named| !named.is_empty()) {
            groups.entry(profile).or_default().push(group);
        }
    }
    let groups: Vec<Vec<String>> = groups.into_values().collect();
    let first: Vec<String> = groups.iter().filter_map(|alike| alike.first().cloned()).collect();
    let mut sets: Vec<(Vec<String>, String)> = vec![(vec![], "somebody in no group".to_owned())];
    for alike in &groups {
        let title = format!("somebody in {}", alike.join(" or "));
        sets.push((alike.iter().take(1).cloned().collect(), title));
    }
    if first.len() <= PAIRS {
        for (at, a) in first.iter().enumerate() {
            for b in &first[at + 1..] {
                sets.push((vec![a.clone(), b.clone()], format!("somebody in {a} and {b}")));
            }
        }
    }
    if first.len() > 2 {
        sets.push((first, "somebody in all groups".to_owned()));
    }
    let named = looked.named.iter().filter(|uid| uid.type_name().to_string() == "User");
    let users: Vec<String> = named.map(|uid| uid.id().unescaped().to_owned()).collect();
    let values = |attribute: &str, usual: &[&str], always: &str| {
        let mut values: Vec<String> = vec![always.to_owned()];
        if let Some(texts) = looked.compared.get(attribute) {
            let known = usual.iter().map(|text| (*text).to_owned());
            values.extend(texts.iter().cloned().chain(known).filter(|text| text != always));
            values.sort();
            values.dedup();
            // The usual one first: it makes the plainest examples.
            values.sort_by_key(|value| value != always);
        }
        values
    };
    let kinds = values("kind", &["ci", "agent", "unbrokered"], "human");
    let issuers = values("issuer", &[], "https://issuer.example");
    let behalves = values("on_behalf_of", &[STRANGER], "");
    let mut people = Vec::new();
    for (groups, title) in &sets {
        for user in users.iter().map(String::as_str).chain([STRANGER]) {
            for kind in &kinds {
                for issuer in &issuers {
                    for on_behalf_of in &behalves {
                        let mut title = title.clone();
                        if user != STRANGER {
                            title = title.replacen(STRANGER, user, 1);
                        }
                        if kinds.len() > 1 && kind != "human" {
                            title += &format!(", {kind}");
                        }
                        if issuers.len() > 1 && *issuer != issuers[0] {
                            title += &format!(", issuer {issuer}");
                        }
                        if !on_behalf_of.is_empty() {
                            title += &format!(", on behalf of {on_behalf_of}");
                        }
                        people.push(Person {
                            principal: Principal {
                                user: user.to_owned(),
                                groups: groups.clone(),
                                kind: kind.clone(),
                                issuer: issuer.clone(),
                                on_behalf_of: on_behalf_of.clone(),
                            },
                            title,
                        });
                    }
                }
            }
        }
    }
    people
}

fn places(policies: [&Policy; 2], looked: &Looked) -> Vec<Place> {
    let labels = |policy: &Policy, host: &EntityUid| -> BTreeMap<String, String> {
        let entity = policy.inner.known.entities.get(host);
        let tags = entity.into_iter().flat_map(|entity| {
            let tags = entity.tags().filter(|(name, _)| looked.texts.contains(*name));
            tags.filter_map(|(name, value)| Some((name.to_owned(), value.ok()?.to_string())))
                .collect::<Vec<_>>()
        });
        tags.collect()
    };
    let mut alike: BTreeMap<_, Vec<String>> = BTreeMap::new();
    for host in listed(policies, "Host") {
        let one = uid("Host", &host);
        let key = (profile(policies, looked, &one), policies.map(|policy| labels(policy, &one)));
        alike.entry(key).or_default().push(host);
    }
    let mut places: Vec<Place> = alike
        .into_values()
        .filter_map(|hosts| {
            let name = hosts.first()?.clone();
            let title = match hosts.as_slice() {
                few @ ([_] | [_, _] | [_, _, _]) => few.join(" or "),
                many => format!("{name} and {} hosts like it", many.len() - 1),
            };
            Some(Place { name, title })
        })
        .collect();
    places.push(Place { name: UNLISTED.to_owned(), title: "a host that is not listed".to_owned() });
    places
}
