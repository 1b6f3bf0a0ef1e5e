//! `policy explain` and `policy diff`: verdicts, exit codes, and where policies come from.

use std::{fs, process::Command};

use sallyport_policy::Bundle;

use super::person::{Person, signed_in};

const RULES: &str = "@id(\"tools\") permit (principal in Group::\"ops\", action == Action::\"exec\", resource)\n\
                     when { context.path like \"/usr/bin/*\" };\n\
                     @id(\"scanners\") @reason(\"no scanners here\") @on_violation(\"kill\")\n\
                     forbid (principal, action == Action::\"exec\", resource) when { context.name == \"nmap\" };\n";

fn bundle(person: &Person, name: &str, rules: &str) -> String {
    let dir = person.path(name);
    fs::create_dir_all(&dir).expect("made");
    let group = "[{ \"uid\": { \"type\": \"Group\", \"id\": \"ops\" }, \"attrs\": {}, \"parents\": [] }]";
    for (file, text) in
        [("bundle.toml", "schema = 2\nname = \"test\"\n"), ("entities.json", group), ("rules.cedar", rules)]
    {
        fs::write(dir.join(file), text).expect("written");
    }
    dir.to_str().expect("utf-8").to_owned()
}

#[tokio::test]
async fn explains_what_is_denied_and_what_would_change_it() {
    let person = Person::new();
    let dir = bundle(&person, "bundle", RULES);
    let ask = |extra: &[&str]| {
        let mut args = vec!["policy", "explain", "--user", "alice", "--host", "web-1"];
        args.extend(extra.iter().copied());
        args.iter().map(|arg| (*arg).to_owned()).collect::<Vec<_>>()
    };
    let run = async |extra: &[&str]| {
        let args = ask(extra);
        person.run(&args.iter().map(String::as_str).collect::<Vec<_>>()).await
    };
    let ran = run(&["--group", "ops", &dir, "exec", "/usr/bin/nmap", "--", "-sS", "10.0.0.0/8"]).await;
    assert_eq!(ran.code, 1, "{ran:?}");
    for part in [
        "denied, process killed",
        "-- -sS 10.0.0.0/8",
        "\"scanners\" (rules.cedar:3) forbids it",
        "no scanners here",
        "\"tools\" (rules.cedar:1) would permit it",
        "To allow it, lift \"scanners\"",
    ] {
        assert!(ran.stdout.contains(part), "{part}: {}", ran.stdout);
    }
    let ran = run(&["--group", "ops", &dir, "exec", "/usr/bin/id"]).await;
    assert_eq!(ran.code, 0, "{ran:?}");
    assert!(ran.stdout.contains("allowed") && ran.stdout.contains("Without \"tools\""), "{ran:?}");
    // Not in the group: the scope is what is not met.
    let ran = run(&["--json", &dir, "exec", "/usr/bin/id"]).await;
    assert_eq!(ran.code, 1, "{ran:?}");
    let document = &ran.documents()[0];
    assert_eq!(
        (document["allowed"].as_bool(), document["rule"]["id"].as_str()),
        (Some(false), Some("default-deny"))
    );
    let unmet = &document["to_change"]["near"][0]["unmet"][0];
    assert!(unmet["part"].as_str().expect("text").contains("ops"), "{document}");
    // What makes no question is a wrong command line, not a denial.
    for wrong in [&[&dir as &str, "fly", "x"][..], &[&dir, "exec"], &[&dir, "connect", "x:1"]] {
        assert_eq!(run(wrong).await.code, 2, "{wrong:?}");
    }
    assert_eq!(person.run(&["policy", "explain", "--host", "web-1", &dir, "exec", "/bin/id"]).await.code, 2);
}

#[tokio::test]
async fn explains_what_is_in_force() {
    let (gateway, person) = signed_in().await;
    let dir = bundle(&person, "bundle", RULES);
    gateway.state().archive = Bundle::read_dir(dir.as_ref()).expect("a bundle").to_archive();
    let args = ["policy", "explain", "--in-force", "--user", "a", "--host", "h", "exec", "/usr/bin/nmap"];
    let ran = person.run(&args).await;
    assert_eq!(ran.code, 1, "{ran:?}");
    assert!(ran.stdout.contains("\"scanners\""), "{ran:?}");
}

#[tokio::test]
async fn compares_folders_commits_and_what_is_in_force() {
    let (gateway, person) = signed_in().await;
    let old = bundle(&person, "old", RULES);
    let new = bundle(
        &person,
        "new",
        &RULES.replace("/usr/bin/*", "/usr/sbin/*").replace("\"scanners\"", "\"scan\""),
    );
    let same = bundle(
        &person,
        "same",
        &RULES.replace("context.name == \"nmap\"", "[\"nmap\"].contains(context.name)"),
    );
    let ran = person.run(&["policy", "diff", &old, &new]).await;
    assert_eq!(ran.code, 0, "{ran:?}");
    for part in [
        "exec becomes forbidden",
        "exec becomes allowed",
        "example: exec /usr/bin/",
        "example: exec /usr/sbin/",
        "somebody in ops",
    ] {
        assert!(ran.stdout.contains(part), "{part}: {}", ran.stdout);
    }
    assert!(!ran.stdout.contains("somebody in no group"), "nothing changes for strangers: {}", ran.stdout);
    assert_eq!(person.run(&["policy", "diff", "--exit-code", &old, &new]).await.code, 1);
    let ran = person.run(&["policy", "diff", "--exit-code", &old, &same]).await;
    assert_eq!(ran.code, 0, "{ran:?}");
    assert!(ran.stdout.contains("No difference in meaning"), "{ran:?}");
    // Only for somebody whom it does not concern.
    let ran = person.run(&["policy", "diff", "--exit-code", "--user", "eve", &old, &new]).await;
    assert_eq!(ran.code, 0, "{ran:?}");
    // Against the gateway.
    gateway.state().archive = Bundle::read_dir(old.as_ref()).expect("a bundle").to_archive();
    let ran = person.run(&["--json", "policy", "diff", "--in-force", &new]).await;
    let document = &ran.documents()[0];
    assert_eq!(document["differences"].as_array().expect("a list").len(), 2, "{document}");
    assert_eq!(person.run(&["policy", "diff", &new]).await.code, 2, "one policy is not two");
}

#[test]
fn a_commit_is_read_without_touching_the_folder() {
    let person = Person::new();
    let dir = bundle(&person, "repository/policy", RULES);
    let top = person.path("repository");
    let git = |args: &[&str]| {
        let names = ["-c", "user.name=Ann", "-c", "user.email=ann@example.org", "-c", "commit.gpgsign=false"];
        let ran = Command::new("git").current_dir(&top).args(names).args(args).output().expect("git runs");
        assert!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stderr));
        String::from_utf8_lossy(&ran.stdout).into_owned()
    };
    git(&["init", "-q"]);
    git(&["add", "."]);
    git(&["commit", "-q", "-m", "Rules"]);
    fs::write(format!("{dir}/rules.cedar"), RULES.replace("nmap", "masscan")).expect("written");
    let before = git(&["status", "--porcelain"]);
    let ran = Command::new(env!("CARGO_BIN_EXE_sallyport"))
        .current_dir(&top)
        .args(["policy", "diff", "--exit-code", "HEAD:policy", "policy"])
        .output()
        .expect("it runs");
    let text = String::from_utf8_lossy(&ran.stdout);
    assert_eq!(ran.status.code(), Some(1), "{text}{}", String::from_utf8_lossy(&ran.stderr));
    assert!(text.contains("/nmap") && text.contains("/masscan"), "{text}");
    assert_eq!(git(&["status", "--porcelain"]), before, "index and folder are as they were");
}
