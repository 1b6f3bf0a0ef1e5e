//! Where random rules live: a bundle's entities, people, hosts.

use sallyport_policy::{Bundle, Principal};

/// Groups that contain groups, hosts in a group and with a label.
const ENTITIES: &str = r#"[
  {"uid": {"type": "Group", "id": "all"}, "attrs": {}, "parents": []},
  {"uid": {"type": "Group", "id": "g1"}, "attrs": {}, "parents": [{"type": "Group", "id": "all"}]},
  {"uid": {"type": "Group", "id": "g2"}, "attrs": {}, "parents": []},
  {"uid": {"type": "HostGroup", "id": "hg"}, "attrs": {}, "parents": []},
  {"uid": {"type": "Host", "id": "h1"}, "attrs": {}, "parents": [{"type": "HostGroup", "id": "hg"}], "tags": {"env": "a"}},
  {"uid": {"type": "Host", "id": "h2"}, "attrs": {}, "parents": []}
]"#;

/// Somebody of each kind.
pub(crate) fn people() -> Vec<Principal> {
    let person = |user: &str, groups: &[&str], kind: &str| Principal {
        user: user.into(),
        groups: groups.iter().map(|group| (*group).to_owned()).collect(),
        kind: kind.into(),
        issuer: "https://issuer.example".into(),
        on_behalf_of: if kind == "agent" { "bob".into() } else { String::new() },
    };
    vec![
        person("alice", &["g1", "unknown"], "human"),
        person("bot", &["g2"], "ci"),
        person("agent", &[], "agent"),
    ]
}

/// Where and as whom; the last host is not in the bundle.
pub(crate) const PLACES: [(&str, &str); 3] = [("h1", "root"), ("h2", "dev"), ("elsewhere", "a")];

/// A bundle of these rules.
pub(crate) fn bundle(rules: &[String]) -> Bundle {
    // Ids in another order than the rules, so that the order of ids is seen to count.
    let text: Vec<String> =
        rules.iter().enumerate().map(|(n, rule)| format!("@id(\"r{}\") {rule}", (n * 7) % 10)).collect();
    Bundle::from_files([
        ("bundle.toml", "name = \"t\"\nschema = 2\n".to_owned()),
        ("entities.json", ENTITIES.to_owned()),
        ("rules.cedar", text.join("\n")),
    ])
    .expect("a bundle")
}
