//! `policy …`: faults are told with their places, and what is pushed is what was checked.

use std::{fs, process::Command};

use sallyport_contract::v1::{PushPolicyResponse, SensorPolicy};
use sallyport_policy::Bundle;

use super::person::{Person, signed_in};

const RULE: &str = "@id(\"ops\")\n@reason(\"operators work here\")\npermit (principal in Group::\"ops\", action == \
                    Action::\"open_session\", resource);\n";

fn bundle(person: &Person, rule: &str) -> String {
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
    };
    gateway.state().push_answer = PushPolicyResponse {
        version: archive.version(),
        previous_version: "old".to_owned(),
        problems: Vec::new(),
        sensors: vec![sensor("web-1", &archive.version(), ""), sensor("web-2", "old", "")],
        ..PushPolicyResponse::default()
    };
    let ran = person.run(&["policy", "push", &dir]).await;
    assert_eq!(ran.code, 0, "{ran:?}");
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
