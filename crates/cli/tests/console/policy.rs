//! `policy …`: faults are told with their places, and what is pushed is what was checked.

use std::{fs, process::Command};

use sallyport_contract::v1::{Canary, ListPoliciesResponse, PolicyVersion, PushPolicyResponse, SensorPolicy};
use sallyport_policy::Bundle;

use super::person::{Person, signed_in};

pub(crate) const RULE: &str = "@id(\"ops\")\n@reason(\"operators work here\")\npermit (principal in Group::\"ops\", action == \
                    Action::\"open_session\", resource);\n";

pub(crate) fn bundle(person: &Person, rule: &str) -> String {
    let dir = person.path("bundle");
    fs::create_dir_all(&dir).expect("made");
    fs::write(dir.join("bundle.toml"), "schema = 2\nname = \"test\"\ncontact = \"security@example.org\"\n")
        .expect("written");
    let group = "[{ \"uid\": { \"type\": \"Group\", \"id\": \"ops\" }, \"attrs\": {}, \"parents\": [] }]";
    fs::write(dir.join("entities.json"), group).expect("written");
    fs::write(dir.join("rules.cedar"), rule).expect("written");
    dir.to_str().expect("utf-8").to_owned()
}

#[tokio::test]
async fn faults_with_their_places() {
    let person = Person::new();
    let dir = bundle(&person, RULE);
    let ran = person.run(&["policy", "check", &dir]).await;
    assert_eq!(ran.code, 0, "{ran:?}");
    assert!(ran.stdout.contains("ops (permit)") && ran.stdout.contains("at the gateway"), "{ran:?}");
    let version = person.run(&["policy", "version", &dir]).await.stdout;
    assert!(ran.stdout.contains(version.trim()), "{ran:?}");

    bundle(&person, "permit (principal, action == Action::\"fly\", resource);\n");
    let ran = person.run(&["policy", "check", &dir]).await;
    assert_eq!(ran.code, 1, "{ran:?}");
    assert!(ran.stdout.contains("rules.cedar:1:"), "{ran:?}");
    let ran = person.run(&["--json", "policy", "check", &dir]).await;
    assert_eq!(ran.documents()[0]["faults"][0]["line"], 1, "{ran:?}");

    let ran = person.run(&["policy", "check", "/nonexistent"]).await;
    assert_eq!(ran.code, 1, "{ran:?}");
    assert!(ran.stderr.contains("bundle.toml"), "{ran:?}");
}

#[tokio::test]
async fn pushes_with_commit_and_shows_what_each_sensor_says() {
    let (gateway, person) = signed_in().await;
    let dir = bundle(&person, RULE);
    let git = |args: &[&str]| {
        let names = [
            "-C",
            &dir,
            "-c",
            "user.name=Ann",
            "-c",
            "user.email=ann@example.org",
            "-c",
            "commit.gpgsign=false",
        ];
        let ran = Command::new("git").args(names).args(args).output().expect("git runs");
        assert!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stderr));
    };
    git(&["init", "-q"]);
    git(&["add", "."]);
    git(&["commit", "-q", "-m", "Let operators in"]);
    let archive = Bundle::read_dir(dir.as_ref()).expect("a bundle");
    let sensor = |host: &str, version: &str, error: &str| SensorPolicy {
        host: host.to_owned(),
        version: version.to_owned(),
        error: error.to_owned(),
        ..SensorPolicy::default()
    };
    gateway.state().push_answer = PushPolicyResponse {
        version: archive.version(),
        previous_version: "old".to_owned(),
        sensors: vec![sensor("web-1", &archive.version(), ""), sensor("web-2", "old", "")],
        serial: 12,
        ..PushPolicyResponse::default()
    };
    let ran = person.run(&["policy", "push", &dir, "--expect", "0123abcd"]).await;
    assert_eq!(ran.code, 1, "a host's sessions may still be under the version before: {ran:?}");
    assert!(ran.stdout.contains("(serial 12)"), "{ran:?}");
    assert!(
        ran.stdout.contains("web-1: in force") && ran.stdout.contains("web-2: has not answered yet"),
        "{ran:?}"
    );
    let pushed = gateway.state().pushed.remove(0);
    assert_eq!(pushed.archive, archive.to_archive());
    assert_eq!(
        (pushed.author.as_str(), pushed.message.as_str()),
        ("Ann <ann@example.org>", "Let operators in")
    );
    assert_eq!(pushed.commit.len(), 40);
    assert_eq!(pushed.expect_version, "0123abcd");

    gateway.state().push_answer.sensors = vec![sensor("web-1", &archive.version(), "")];
    let ran = person.run(&["policy", "push", &dir]).await;
    assert_eq!(ran.code, 0, "every host enforces it: {ran:?}");

    gateway.state().push_answer.sensors = vec![sensor("web-1", "old", "the tables do not fit")];
    let ran = person.run(&["policy", "push", &dir]).await;
    assert_eq!(ran.code, 1, "a sensor that refused is a failure: {ran:?}");
    gateway.state().pushed.clear();
    bundle(&person, "permit (");
    let ran = person.run(&["policy", "push", &dir]).await;
    assert_eq!(ran.code, 1, "{ran:?}");
    assert!(gateway.state().pushed.is_empty(), "a faulty bundle is not even sent");
}

#[tokio::test]
async fn shows_what_is_in_force() {
    let (gateway, person) = signed_in().await;
    let dir = bundle(&person, RULE);
    gateway.state().archive = Bundle::read_dir(dir.as_ref()).expect("a bundle").to_archive();
    let ran = person.run(&["policy", "show"]).await;
    assert_eq!(ran.code, 0, "{ran:?}");
    assert!(ran.stdout.contains("── rules.cedar") && ran.stdout.contains("@id(\"ops\")"), "{ran:?}");
    let out = person.path("out");
    let out = out.to_str().expect("utf-8");
    assert_eq!(person.run(&["policy", "show", "--extract", out]).await.code, 0);
    assert_eq!(
        Bundle::read_dir(out.as_ref()).expect("a bundle").version(),
        Bundle::read_dir(dir.as_ref()).expect("one").version()
    );
    let ran = person.run(&["policy", "show", "--extract", out]).await;
    assert_eq!(ran.code, 2, "nothing is overwritten: {ran:?}");
}

/// With packs, with a bundle beside it whose folder has another name, and with what these include.
#[tokio::test]
async fn a_version_with_includes_is_extracted_and_pushed_again_as_the_same_version() {
    let (gateway, person) = signed_in().await;
    let at = |path: &str| person.path(path).to_str().expect("utf-8").to_owned();
    let write = |path: &str, content: &str| {
        let path = person.path(path);
        fs::create_dir_all(path.parent().expect("a parent")).expect("made");
        fs::write(path, content).expect("written");
    };
    let dir = bundle(&person, &sallyport_policy::format("rules.cedar", RULE).expect("valid"));
    let manifest = "schema = 2\nname = \"test\"\n\
                    include = [\"pack:production\", \"pack:ci\", \"pack:workstation\", \"../beside\"]\n";
    write("bundle/bundle.toml", manifest);
    write(
        "bundle/tests/first.toml",
        "[people.ann]\nuser = \"ann@example.org\"\ngroups = [\"ops\"]\n\n[hosts.web-1]\n\n[[case]]\nwho = \"ann\"\n\
         where = \"web-1\"\nas = \"ops\"\nopen_session = \"192.0.2.1\"\nexpect = \"allow\"\nrule = \"ops\"\n",
    );
    write("beside/bundle.toml", "schema = 2\nname = \"ours\"\ninclude = [\"pack:base\"]\n");
    write(
        "beside/more/rules.cedar",
        "@id(\"no-fax\")\n@reason(\"no\")\nforbid(principal,action==Action::\"exec\",resource)\n\
         when { context.path == \"/usr/bin/fax\" };\n",
    );
    let original = Bundle::read_dir(dir.as_ref()).expect("a bundle");
    gateway.state().archive = original.to_archive();

    let out = at("deep/out");
    let ran = person.run(&["policy", "show", "--extract", &out]).await;
    assert_eq!(ran.code, 0, "{ran:?}");
    assert!(
        ran.stdout.contains("they are the same version") && ran.stdout.contains("folder `include`"),
        "{ran:?}"
    );
    // Nothing outside of the folder counts any more.
    fs::remove_dir_all(person.path("beside")).expect("removed");
    let read = Bundle::read_dir(out.as_ref()).expect("the folder is a bundle");
    assert_eq!(read.version(), original.version());
    let parts = ["base", "production", "ci", "workstation", "ours"];
    assert!(parts.iter().all(|part| person.path(&format!("deep/out/include/{part}/bundle.toml")).is_file()));
    for command in ["version", "check", "test", "fmt"] {
        let ran = person.run(&["policy", command, &out]).await;
        assert_eq!(ran.code, 0, "{command}: {ran:?}");
    }
    assert_eq!(person.run(&["policy", "version", &out]).await.stdout.trim(), original.version());
    gateway.state().push_answer =
        PushPolicyResponse { version: original.version(), serial: 3, ..PushPolicyResponse::default() };
    let ran = person.run(&["policy", "push", &out]).await;
    assert_eq!(ran.code, 0, "{ran:?}");
    assert_eq!(gateway.state().pushed.remove(0).archive, original.to_archive());

    // What lies there counts: it is another version once it is changed, and what it lacks is told.
    let rules = "deep/out/include/ours/more/rules.cedar";
    let before = fs::read_to_string(person.path(rules)).expect("read");
    write(rules, &before.replace("/usr/bin/fax", "/usr/bin/telex"));
    assert_ne!(Bundle::read_dir(out.as_ref()).expect("a bundle").version(), original.version());
    write(rules, &before);
    write("deep/out/bundle.toml", &manifest.replace("pack:ci", "pack:ci\", \"pack:database"));
    let ran = person.run(&["policy", "check", &out]).await;
    assert_eq!(ran.code, 1, "{ran:?}");
    assert!(ran.stdout.contains("bundle.toml:3:42: it includes `pack:database`"), "{ran:?}");
    write("deep/out/bundle.toml", manifest);
    write("deep/out/include/stray.cedar", "");
    let ran = person.run(&["policy", "check", &out]).await;
    assert_eq!(ran.code, 1, "{ran:?}");
    assert!(ran.stderr.contains("include/stray.cedar") && ran.stderr.contains("move the file"), "{ran:?}");
    // Without the folder, what is included is looked up again, and `../beside` is not there.
    fs::remove_dir_all(person.path("deep/out/include")).expect("removed");
    let ran = person.run(&["policy", "check", &out]).await;
    assert_eq!(ran.code, 1, "{ran:?}");
}

/// A gateway of another time may hold what reads otherwise now; whoever would push it again is told.
#[tokio::test]
async fn an_extracted_version_that_reads_otherwise_is_told() {
    let (gateway, person) = signed_in().await;
    let files =
        [("bundle.toml", "schema = 2\nname = \"test\"\ninclude = [\"pack:base\"]\n"), ("rules.cedar", RULE)];
    gateway.state().archive = Bundle::from_files(files).expect("acceptable").to_archive();
    let out = person.path("out");
    let ran = person.run(&["policy", "show", "--extract", out.to_str().expect("utf-8")]).await;
    assert_eq!(ran.code, 1, "{ran:?}");
    assert!(ran.stderr.contains("read again they are another version"), "{ran:?}");
    assert!(out.join("rules.cedar").is_file(), "the files are there nonetheless");
}

#[tokio::test]
async fn lists_versions_the_canary_and_drift() {
    let (gateway, person) = signed_in().await;
    let version = |serial: u64, digit: &str, how: &str| PolicyVersion {
        serial,
        version: digit.repeat(64),
        how: how.to_owned(),
        pushed_by: "ann@example.org".to_owned(),
        message: format!("change {serial}\u{1b}[2J"),
        ..PolicyVersion::default()
    };
    let sensor = |host: &str, digit: &str, serial: u64, drift: &str| SensorPolicy {
        host: host.to_owned(),
        version: digit.repeat(64),
        serial,
        connected: true,
        drift: drift.to_owned(),
        ..SensorPolicy::default()
    };
    let tried = SensorPolicy { canary_version: "c".repeat(64), ..sensor("web-1", "b", 7, "") };
    gateway.state().policies = ListPoliciesResponse {
        versions: vec![version(8, "c", "canary"), version(7, "b", "push"), version(6, "a", "start")],
        serial_in_force: 7,
        canary: Some(Canary {
            serial: 8,
            version: "c".repeat(64),
            hosts: vec!["web-1".to_owned()],
            share: 105,
            max_denials: u64::MAX,
            max_denial_ratio: 20,
            denials: 3,
            decisions: 400,
            state: "running".to_owned(),
            ..Canary::default()
        }),
        sensors: vec![
            tried,
            sensor("web-2", "a", 6, "enforces aaaaaaaaaaaa instead of bbbbbbbbbbbb; no room"),
        ],
    };
    let ran = person.run(&["policy", "list"]).await;
    assert_eq!(ran.code, 0, "{ran:?}");
    let line = |begins: &str| ran.stdout.lines().find(|line| line.starts_with(begins)).unwrap_or_default();
    let in_force = line("*");
    assert!(in_force.contains("7 ") && in_force.contains(&"b".repeat(12)), "{ran:?}");
    assert!(line("~").contains(&"c".repeat(12)), "{ran:?}");
    assert!(ran.stdout.contains("10.5 % of sessions on web-1"), "{ran:?}");
    assert!(ran.stdout.contains("3 denials of 400 decisions; taken back at more than 2 %"), "{ran:?}");
    assert!(ran.stdout.contains("Drift: 1 of 2 hosts"), "{ran:?}");
    assert!(ran.stdout.contains("web-2: enforces aaaaaaaaaaaa instead of"), "{ran:?}");
    assert!(!ran.stdout.contains('\u{1b}'), "a message steered the terminal: {ran:?}");

    let ran = person.run(&["--json", "policy", "list"]).await;
    let listed = ran.documents().remove(0);
    assert_eq!(listed["versions"][1]["in_force"], true, "{ran:?}");
    assert_eq!(listed["versions"][0]["sensors"], 1, "{ran:?}");
    assert!(listed["canary"]["max_denials"].is_null(), "{ran:?}");
    assert_eq!(listed["sensors"][1]["drift"].as_str().map(|drift| &drift[..8]), Some("enforces"));
}

#[tokio::test]
async fn rolls_back_and_runs_canaries() {
    let (gateway, person) = signed_in().await;
    let dir = bundle(&person, RULE);
    let version = Bundle::read_dir(dir.as_ref()).expect("a bundle").version();
    gateway.state().push_answer = PushPolicyResponse { version, serial: 9, ..PushPolicyResponse::default() };
    let ran = person.run(&["policy", "rollback", "ab12", "-m", "too strict", "--expect", "cd34"]).await;
    assert_eq!(ran.code, 0, "{ran:?}");
    let asked = gateway.state().rolled_back.remove(0);
    assert_eq!(
        (asked.version.as_str(), asked.reason.as_str(), asked.expect_version.as_str()),
        ("ab12", "too strict", "cd34")
    );
    person.run(&["policy", "rollback"]).await;
    assert_eq!(gateway.state().rolled_back.remove(0).version, "", "the one before");

    let share = ["policy", "canary", &dir, "--hosts", "web-1,prod", "--share", "2.5%", "--for", "1h"];
    let ran = person.run(&share).await;
    assert_eq!(ran.code, 0, "{ran:?}");
    let asked = gateway.state().canaries.remove(0);
    assert_eq!((asked.hosts.join("+"), asked.share, asked.seconds), ("web-1+prod".to_owned(), 25, 3600));
    assert_eq!((asked.max_denials, asked.max_denial_ratio), (None, 0));
    let push = asked.push.expect("a bundle");
    assert_eq!(push.archive, Bundle::read_dir(dir.as_ref()).expect("a bundle").to_archive());
    assert_eq!(person.run(&["policy", "canary", &dir, "--share", "10"]).await.code, 2, "no percent sign");
    person.run(&["policy", "canary", "promote", "-m", "good"]).await;
    person.run(&["policy", "canary", "abort"]).await;
    let ends: Vec<_> = gateway.state().canary_ends.drain(..).map(|end| (end.promote, end.reason)).collect();
    assert_eq!(ends, [(true, "good".to_owned()), (false, String::new())]);

    gateway.state().push_answer.unchanged = true;
    let ran = person.run(&["policy", "push", &dir]).await;
    assert_eq!(ran.code, 0, "{ran:?}");
    assert!(ran.stdout.contains("In force already") && ran.stdout.contains("nothing was changed"), "{ran:?}");
}
