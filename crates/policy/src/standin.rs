//! Hosts that stand in for those that a bundle does not list.
//!
//! A bundle that is made to be included knows groups of hosts, but not the hosts: those are in the bundle that
//! includes it. To ask what it would decide there, its test cases name hosts of their own (`[hosts.NAME]`), and trying
//! it out takes one host of each group that has none.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use cedar_policy::{Entity, EntityUid, RestrictedExpression};
use serde::Deserialize;

use crate::entities::uid;
use crate::load::Policy;

/// `[hosts.NAME]` in a file of cases: what `entities.json` would say of it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct StandIn {
    /// Host groups, which the bundle has to list.
    #[serde(default)]
    pub(crate) groups: Vec<String>,
    /// Labels.
    #[serde(default)]
    pub(crate) tags: BTreeMap<String, String>,
}

impl Policy {
    /// The same policy with more hosts; the error is a sentence.
    pub(crate) fn with_hosts(&self, hosts: &BTreeMap<String, StandIn>) -> Result<Self, String> {
        let mut inner = (*self.inner).clone();
        let mut added = Vec::with_capacity(hosts.len());
        for (name, host) in hosts {
            let id = uid("Host", name);
            if !inner.known.uids.insert(id.clone()) {
                return Err(format!("`{name}` is listed in entities.json already; leave [hosts.{name}] out"));
            }
            inner.known.hosts.push(name.clone());
            let parents: HashSet<EntityUid> =
                host.groups.iter().map(|group| uid("HostGroup", group)).collect();
            if let Some(unknown) = parents.iter().find(|parent| !inner.known.uids.contains(parent)) {
                return Err(format!(
                    "[hosts.{name}] is in `{unknown}`, which no entities.json of the bundle lists; add it, or correct the name"
                ));
            }
            let tags = host
                .tags
                .iter()
                .map(|(tag, text)| (tag.clone(), RestrictedExpression::new_string(text.clone())));
            let entity = Entity::new_with_tags(id, HashMap::new(), parents, tags)
                .map_err(|error| crate::entities::chain(&error))?;
            added.push(entity);
        }
        inner.known.hosts.sort();
        inner.known.entities = inner
            .known
            .entities
            .upsert_entities(added, None)
            .map_err(|error| crate::entities::chain(&error))?;
        Ok(Self { inner: Arc::new(inner) })
    }

    /// One host for each host group that has none, by name.
    pub(crate) fn hosts_of_empty_groups(&self) -> BTreeMap<String, StandIn> {
        let known = &self.inner.known;
        let with_hosts: BTreeSet<&EntityUid> = known
            .hosts
            .iter()
            .filter_map(|host| known.entities.ancestors(&uid("Host", host)))
            .flatten()
            .collect();
        let of_group = |group: &EntityUid| {
            let group = group.id().unescaped().to_owned();
            (format!("a-host-of-{group}"), StandIn { groups: vec![group], ..StandIn::default() })
        };
        let groups = known.uids.iter().filter(|uid| uid.type_name().to_string() == "HostGroup");
        groups.filter(|group| !with_hosts.contains(group)).map(of_group).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bundle::Bundle;
    use crate::question::{Principal, Question};

    const RULES: &str = r#"
        @id("on-databases")
        permit (principal, action == Action::"connect", resource in HostGroup::"databases")
        when { context.port == 5432 };
        @id("by-label")
        permit (principal, action == Action::"connect", resource)
        when { resource.hasTag("env") && resource.getTag("env") == "test" && context.port == 80 };
    "#;
    const ENTITIES: &str = r#"[
        {"uid": {"type": "HostGroup", "id": "all"}, "attrs": {}, "parents": []},
        {"uid": {"type": "HostGroup", "id": "databases"}, "attrs": {}, "parents": [{"type": "HostGroup", "id": "all"}]},
        {"uid": {"type": "Host", "id": "listed"}, "attrs": {}, "parents": [{"type": "HostGroup", "id": "all"}]}
    ]"#;

    fn bundle(cases: &str) -> Bundle {
        let manifest = "name = \"t\"\nschema = 2\n";
        Bundle::from_files([
            ("bundle.toml", manifest),
            ("rules.cedar", RULES),
            ("entities.json", ENTITIES),
            ("tests/t.toml", cases),
        ])
        .expect("a bundle")
    }

    fn failures(cases: &str) -> Vec<String> {
        let bundle = bundle(cases);
        let policy = Policy::load(&bundle).unwrap_or_else(|faults| panic!("{faults}"));
        policy.run_tests(&bundle).failures.into_iter().map(|failure| failure.message).collect()
    }

    #[test]
    fn cases_may_bring_their_hosts() {
        let hosts = "[hosts.db]\ngroups = [\"databases\"]\n[hosts.web]\ntags = { env = \"test\" }\n";
        let case = |host: &str, port: u16, verdict: &str, rule: &str| {
            format!(
                "[[case]]\nwho = \"a\"\nwhere = \"{host}\"\nas = \"x\"\nconnect = \"tcp 192.0.2.1:{port}\"\nexpect = \"{verdict}\"\nrule = \"{rule}\"\n"
            )
        };
        let person = "[people.a]\nuser = \"a\"\n";
        let good = [
            person,
            hosts,
            &case("db", 5432, "allow", "on-databases"),
            &case("web", 5432, "deny", "default-deny"),
            &case("web", 80, "allow", "by-label"),
            &case("elsewhere", 80, "deny", "default-deny"),
        ];
        assert_eq!(failures(&good.concat()), Vec::<String>::new());
        // Without them the same host is in no group.
        let without = failures(&[person, &case("db", 5432, "allow", "on-databases")].concat());
        assert!(without.len() == 1 && without[0].contains("expected allow"), "{without:?}");
        for (hosts, wanted) in [
            ("[hosts.db]\ngroups = [\"databasse\"]\n", "no entities.json of the bundle lists"),
            ("[hosts.listed]\n", "listed in entities.json already"),
        ] {
            let told = failures(&[person, hosts, &case("db", 5432, "allow", "on-databases")].concat());
            assert!(told.len() == 1 && told[0].contains(wanted), "{told:?}");
        }
    }

    #[test]
    fn groups_without_hosts_get_one() {
        let policy = Policy::load(&bundle("")).unwrap_or_else(|faults| panic!("{faults}"));
        let hosts = policy.hosts_of_empty_groups();
        assert_eq!(hosts.keys().collect::<Vec<_>>(), ["a-host-of-databases"]);
        let policy = policy.with_hosts(&hosts).expect("more hosts");
        let question = Question::Connect {
            principal: Principal::default(),
            host: "a-host-of-databases".into(),
            local_user: "x".into(),
            address: "192.0.2.1".parse().expect("an address"),
            port: 5432,
            protocol: 6,
        };
        assert!(policy.decide(&question).allowed);
    }
}
