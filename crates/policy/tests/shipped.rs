//! The bundles that are shipped: each is without fault, passes its cases, and has a case for every rule.

use std::path::PathBuf;

use sallyport_policy::{Bundle, Policy, Principal};

fn read(name: &str) -> Bundle {
    let folder: PathBuf = [env!("CARGO_MANIFEST_DIR"), "../../policies", name].iter().collect();
    Bundle::read_dir(&folder).unwrap_or_else(|error| panic!("{error}"))
}

#[test]
fn every_shipped_bundle_passes_its_cases() {
    let folder: PathBuf = [env!("CARGO_MANIFEST_DIR"), "../../policies"].iter().collect();
    let folders = std::fs::read_dir(folder).expect("the folder of policies");
    let names = folders.filter_map(|entry| {
        let entry = entry.expect("an entry");
        entry.path().is_dir().then(|| entry.file_name().into_string().expect("UTF-8"))
    });
    let names: Vec<String> = names.collect();
    for pack in ["base", "workstation", "production", "ci", "ai-agent", "database"] {
        assert!(names.iter().any(|name| name == pack), "{pack} is not there");
    }
    for name in &names {
        let bundle = read(name);
        let policy = Policy::load(&bundle).unwrap_or_else(|faults| panic!("{faults}"));
        let report = policy.run_tests(&bundle);
        assert!(report.passed() && report.uncovered.is_empty(), "{name}:\n{report}");
        assert!(report.cases > 0, "{name} has no cases");
        let again = Bundle::from_archive(&bundle.to_archive()).expect("our own archive");
        assert_eq!(again, bundle, "{name}");
        assert_eq!(again.version(), policy.version());
        println!("{name}: {report}");
    }
}

/// Every folder of `policies/` that is a bundle.
fn shipped() -> Vec<String> {
    let folder = [env!("CARGO_MANIFEST_DIR"), "../../policies"].iter().collect::<PathBuf>();
    let entries = std::fs::read_dir(folder).expect("the policies are there");
    let mut names: Vec<String> = entries
        .map(|entry| entry.expect("readable").path())
        .filter(|path| path.join("bundle.toml").is_file())
        .map(|path| path.file_name().expect("has a name").to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}

#[test]
fn every_shipped_bundle_is_checked_without_noise() {
    let names = shipped();
    assert!(names.len() >= 3, "{names:?}");
    let mut noise = Vec::new();
    for name in names {
        let bundle = read(&name);
        let policy = Policy::load(&bundle).unwrap_or_else(|faults| panic!("{name}: {faults}"));
        let begun = std::time::Instant::now();
        let found = policy.lint(&bundle);
        println!("{name}: examined in {:?}, not compared: {:?}", begun.elapsed(), found.not_compared);
        noise.extend(found.findings.iter().map(|finding| format!("{name}/{finding}")));
        noise.extend(found.not_compared.iter().map(|rule| format!("{name}: `{rule}` was not compared")));
    }
    assert!(noise.is_empty(), "{}", noise.join("\n"));
}

/// What `policy fmt --check` holds, also for the copies that come with the program: whoever extracts a version and lays it
/// out changes nothing of what it includes.
#[test]
fn every_shipped_rule_is_laid_out() {
    let mut files = 0;
    let mut loose = Vec::new();
    for name in shipped() {
        let bundle = read(&name);
        for path in bundle.paths().filter(|path| path.ends_with(".cedar")) {
            let text = std::str::from_utf8(bundle.file(path).expect("a file")).expect("text");
            let place = format!("{name}/{path}");
            let laid = sallyport_policy::format(&place, text).unwrap_or_else(|faults| panic!("{faults}"));
            files += 1;
            if laid != text {
                loose.push(place);
            }
        }
    }
    assert!(files > 20, "only {files} files");
    assert!(loose.is_empty(), "not laid out; `sallyport policy fmt policies` does it: {loose:#?}");
}

#[test]
fn a_case_can_fail() {
    let bundle = read("demo-tightened");
    let policy = Policy::load(&read("demo")).unwrap_or_else(|faults| panic!("{faults}"));
    let report = policy.run_tests(&bundle);
    assert_eq!(report.failures.len(), 2, "{report}");
    assert!(report.failures[0].message.contains("expected deny, got allow"), "{report}");
}

#[test]
fn the_demos_people_may_be_who_they_should() {
    let policy = Policy::load(&read("demo")).unwrap_or_else(|faults| panic!("{faults}"));
    let person = |user: &str, group: &str| Principal {
        user: user.into(),
        groups: vec![group.into()],
        kind: "human".into(),
        ..Principal::default()
    };
    let alice = person("alice@example.org", "engineers");
    assert_eq!(policy.local_users(&alice, "web-1"), ["dev", "root"]);
    assert_eq!(policy.local_users(&alice, "db-1"), Vec::<String>::new());
    assert_eq!(policy.local_users(&person("carol@example.org", "contractors"), "web-1"), ["dev"]);
    assert_eq!(policy.hosts(), ["build-1", "db-1", "web-1"]);
    for placement in policy.placement() {
        assert!(!placement.places.is_empty(), "{}", placement.rule.id);
        println!("{} {:?}", placement.rule.id, placement.places);
    }
    let compiled = policy.compile(&alice, "web-1", "root").expect("compiles");
    println!("{} words for {} rules", compiled.arena.len(), compiled.rules.len());
}
