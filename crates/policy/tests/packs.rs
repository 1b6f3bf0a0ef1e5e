//! The packs together: one bundle that includes all of them still loads, decides as each of them says, and fits.

use std::path::PathBuf;

use sallyport_policy::{Bundle, Policy, Principal};

const PACKS: [&str; 6] = ["base", "workstation", "production", "ci", "ai-agent", "database"];
/// Hosts of an organisation that uses all of them; production is made of hosts of other kinds, too.
const ENTITIES: &str = r#"[
    {"uid": {"type": "Host", "id": "dev-7"}, "attrs": {}, "parents": [{"type": "HostGroup", "id": "workstations"}]},
    {"uid": {"type": "Host", "id": "box-7"}, "attrs": {}, "parents": [{"type": "HostGroup", "id": "agent-workspaces"}]},
    {"uid": {"type": "Host", "id": "web-7"}, "attrs": {}, "parents": [
        {"type": "HostGroup", "id": "production"}, {"type": "HostGroup", "id": "deploy-targets"}]},
    {"uid": {"type": "Host", "id": "db-7"}, "attrs": {}, "parents": [
        {"type": "HostGroup", "id": "production"}, {"type": "HostGroup", "id": "databases"}]}
]"#;

fn folder(name: &str) -> PathBuf {
    [env!("CARGO_MANIFEST_DIR"), "../../policies", name].iter().collect()
}

/// A bundle that includes all packs, with the cases of each.
fn together() -> Bundle {
    let own = tempfile::tempdir().expect("a folder");
    let includes: Vec<String> = PACKS.iter().map(|name| format!("{:?}", folder(name))).collect();
    let manifest = format!("name = \"all\"\nschema = 2\ninclude = [{}]\n", includes.join(", "));
    std::fs::write(own.path().join("bundle.toml"), manifest).expect("writes");
    std::fs::write(own.path().join("entities.json"), ENTITIES).expect("writes");
    let all = Bundle::read_dir(own.path()).unwrap_or_else(|error| panic!("{error}"));
    let content = |bundle: &Bundle, path: &str| bundle.file(path).expect("a file").to_vec();
    let mut files: Vec<(String, Vec<u8>)> =
        all.paths().map(|path| (path.to_owned(), content(&all, path))).collect();
    for name in PACKS {
        let pack = Bundle::read_dir(&folder(name)).unwrap_or_else(|error| panic!("{error}"));
        for path in pack.paths().filter(|path| path.starts_with("tests/")) {
            files.push((path.replace("tests/", &format!("tests/{name}-")), content(&pack, path)));
        }
    }
    Bundle::from_files(files).unwrap_or_else(|error| panic!("{error}"))
}

/// What one pack permits and another forbids to the same people is forbidden, and one difference is meant: jobs install no
/// packages, as `ci` says, though `production` leaves it to them.
#[test]
fn together_they_decide_as_each_says() {
    let bundle = together();
    let policy = Policy::load(&bundle).unwrap_or_else(|faults| panic!("{faults}"));
    let report = policy.run_tests(&bundle);
    assert!(report.cases > 800, "{report}");
    let (stricter, other): (Vec<_>, Vec<_>) = report.failures.iter().partition(|failure| {
        // Denied in any case, by a rule that is about jobs or agents wherever they are.
        failure.message.starts_with("expected rule")
            && ["got deny by rule `ci-", "got deny by rule `agent-"]
                .iter()
                .any(|by| failure.message.contains(by))
    });
    assert!(stricter.len() <= 6, "{report}");
    let [other] = other.as_slice() else { panic!("{report}") };
    assert!(other.case.contains("apt-get"), "{report}");
    assert!(other.message.contains("got deny by rule `ci-fixed-programs`"), "{report}");
}

/// Half of the arena holds one policy: 32 MiB. These take less than half of that.
#[test]
fn together_they_fit() {
    let policy = Policy::load(&together()).unwrap_or_else(|faults| panic!("{faults}"));
    let person = |kind: &str, groups: &[&str]| Principal {
        user: "somebody@example.org".into(),
        groups: groups.iter().map(|group| (*group).to_owned()).collect(),
        kind: kind.into(),
        on_behalf_of: if kind == "agent" { "dora@example.org".into() } else { String::new() },
        ..Principal::default()
    };
    for (who, host, local_user) in [
        (person("human", &[]), "elsewhere", "somebody"),
        (person("human", &["developers"]), "dev-7", "dev"),
        (person("human", &["production-operators"]), "web-7", "ops"),
        (person("human", &["production-breakglass"]), "web-7", "root"),
        (person("human", &["production-operators", "dba"]), "db-7", "postgres"),
        (person("human", &["production-breakglass", "dba", "developers"]), "db-7", "root"),
        (person("ci", &["deployments"]), "web-7", "deploy"),
        (person("agent", &["agents"]), "box-7", "agent"),
    ] {
        let compiled = policy.compile(&who, host, local_user).unwrap_or_else(|error| panic!("{error}"));
        let bytes = compiled.arena.len() * 4;
        println!("{} {:?} as {local_user} on {host}: {} KiB", who.kind, who.groups, bytes >> 10);
        assert!(bytes < 16 << 20, "{} {:?} on {host}: {bytes} bytes", who.kind, who.groups);
        // Which a host keeps once for all who may do the same.
        let other = Principal { user: "another@example.org".into(), ..who.clone() };
        let others = policy.compile(&other, host, local_user).unwrap_or_else(|error| panic!("{error}"));
        assert!(others.arena == compiled.arena, "{} {:?} on {host}", who.kind, who.groups);
    }
    let sample = policy.try_out().unwrap_or_else(|faults| panic!("{faults}"));
    println!("{sample:?}");
}
