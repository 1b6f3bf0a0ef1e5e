//! Signing in and out, and what it leaves for ssh.

use std::{fs, os::unix::fs::PermissionsExt, process::Command};

use sallyport_contract::v1::Target;

use super::{
    gateway::Gateway,
    issuer::Issuer,
    person::{Person, signed_in},
};

fn target(host: &str, users: &[&str]) -> Target {
    Target {
        host: host.to_owned(),
        local_users: users.iter().map(|&user| user.to_owned()).collect(),
        connected: true,
        mode: "lsm".to_owned(),
        ..Target::default()
    }
}

#[tokio::test]
async fn signs_in_sets_ssh_up_and_signs_out() {
    let issuer = Issuer::start().await;
    let gateway = Gateway::start(&issuer.url).await;
    gateway.state().targets = vec![target("web-1", &["srv"])];
    let person = Person::new();
    fs::create_dir(person.path(".ssh")).expect("made");
    fs::write(person.path(".ssh/config"), "Host mine\n  User me\n").expect("written");

    let ran = person.login(&gateway, &issuer, &[]).await;
    assert_eq!(ran.code, 0, "{ran:?}");
    let said = &ran.documents()[0];
    assert_eq!(said["user"], "alice@example.org");
    assert_eq!(said["targets"][0], "web-1");

    for secret in [".ssh/sallyport/key", ".ssh/sallyport/key-cert.pub", ".ssh/sallyport/config"] {
        let mode = fs::metadata(person.path(secret)).expect(secret).permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{secret}");
    }
    let known = fs::read_to_string(person.path(".ssh/sallyport/known_hosts")).expect("there");
    assert!(known.starts_with("@cert-authority * ssh-ed25519 "), "{known}");
    let asked = Command::new("ssh")
        .arg("-G")
        .arg("-F")
        .arg(person.path(".ssh/config"))
        .arg("web-1")
        .output()
        .expect("ssh runs");
    let asked = String::from_utf8(asked.stdout).expect("text");
    for line in ["hostname gw.example.org", "port 2222", "user web-1+srv"] {
        assert!(asked.lines().any(|shown| shown == line), "{line}\n{asked}");
    }

    // A second time changes nothing in the person's own file, and needs no fingerprint: the CA is pinned.
    let before = fs::read(person.path(".ssh/config")).expect("there");
    let old_key = fs::read(person.path(".ssh/sallyport/key")).expect("there");
    let ran = person.login(&gateway, &issuer, &[]).await;
    assert_eq!(ran.code, 0, "{ran:?}");
    assert_eq!(fs::read(person.path(".ssh/config")).expect("there"), before);
    assert_ne!(fs::read(person.path(".ssh/sallyport/key")).expect("there"), old_key, "a fresh key each time");

    let ran = person.run(&["whoami"]).await;
    assert_eq!(ran.code, 0, "{ran:?}");
    assert!(ran.stdout.starts_with("alice@example.org (human)\ngroups:  engineers\n"), "{ran:?}");
    let ran = person.run(&["--json", "targets"]).await;
    assert_eq!(ran.documents()[0]["host"], "web-1");

    let ran = person.run(&["logout"]).await;
    assert_eq!(ran.code, 0, "{ran:?}");
    assert!(gateway.state().signed_out, "the gateway was told");
    assert!(
        !person.path(".ssh/sallyport/key").exists() && !person.path(".ssh/sallyport/key-cert.pub").exists()
    );
    let ran = person.run(&["whoami"]).await;
    assert_eq!(ran.code, 3, "{ran:?}");
    assert!(ran.stderr.contains("sallyport login"), "{ran:?}");
}

#[tokio::test]
async fn the_key_goes_into_the_agent_and_out_again() {
    let issuer = Issuer::start().await;
    let gateway = Gateway::start(&issuer.url).await;
    let person = Person::new();
    let socket = person.path("agent");
    let mut agent = tokio::process::Command::new("ssh-agent")
        .args(["-D", "-a"])
        .arg(&socket)
        .stdout(std::process::Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .expect("ssh-agent runs");
    while !socket.exists() {
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    let list = || {
        let output =
            Command::new("ssh-add").arg("-l").env("SSH_AUTH_SOCK", &socket).output().expect("ssh-add runs");
        String::from_utf8(output.stdout).expect("text")
    };
    assert!(!list().contains("ED25519"), "empty at first");

    let args =
        ["--json", "--gateway", &gateway.url, "login", "--no-browser", "--ca-sha256", &gateway.ca_sha256];
    let mut child = person
        .command(&args)
        .env("SSH_AUTH_SOCK", &socket)
        .stdout(std::process::Stdio::piped())
        .spawn()
        .expect("it starts");
    let mut lines = tokio::io::BufReader::new(child.stdout.take().expect("a pipe"));
    let mut line = String::new();
    tokio::io::AsyncBufReadExt::read_line(&mut lines, &mut line).await.expect("a line");
    let asked: serde_json::Value = serde_json::from_str(&line).expect("JSON");
    super::person::fetch(&issuer.approve(asked["authorize_url"].as_str().expect("an address"))).await;
    assert!(child.wait().await.expect("ends").success());
    assert!(list().contains("ED25519-CERT"), "{}", list());

    let out = person.command(&["logout"]).env("SSH_AUTH_SOCK", &socket).output().await.expect("runs");
    assert!(out.status.success());
    assert!(!list().contains("ED25519"), "{}", list());
    agent.kill().await.expect("ended");
}

#[tokio::test]
async fn only_the_pinned_gateway_will_do() {
    let issuer = Issuer::start().await;
    let gateway = Gateway::start(&issuer.url).await;
    let person = Person::new();
    let wrong = "ab".repeat(32);
    let ran = person.login(&gateway, &issuer, &["--ca-sha256", &wrong]).await;
    assert_eq!(ran.code, 1, "{ran:?}");
    assert!(ran.stderr.contains("not the gateway with that fingerprint"), "{ran:?}");

    // No fingerprint, and nobody to ask: nothing is trusted by itself.
    let ran = person.run(&["--gateway", &gateway.url, "login"]).await;
    assert_eq!(ran.code, 2, "{ran:?}");
    assert!(ran.stderr.contains("--ca-sha256"), "{ran:?}");

    // Another gateway in the place of the pinned one.
    let ran = person.login(&gateway, &issuer, &[]).await;
    assert_eq!(ran.code, 0, "{ran:?}");
    let impostor = Gateway::start(&issuer.url).await;
    fs::write(person.path("ca.pem"), &impostor.ca_pem).expect("written");
    let ca = person.path("ca.pem");
    let ran = person.run(&["--ca-file", ca.to_str().expect("utf-8"), "whoami"]).await;
    assert_eq!(ran.code, 4, "{ran:?}");
    assert!(ran.stderr.contains("is not the gateway that was pinned"), "{ran:?}");
    assert_eq!(person.run(&["whoami"]).await.code, 0, "the right one still will");
}

#[tokio::test]
async fn a_changed_log_key_is_not_taken_silently() {
    let issuer = Issuer::start().await;
    let gateway = Gateway::start(&issuer.url).await;
    let person = Person::new();
    let first = person.login(&gateway, &issuer, &[]).await.documents()[0]["log_key"].clone();
    gateway.state().signer_seed = [6; 32];
    let ran = person.login(&gateway, &issuer, &[]).await;
    assert_eq!(ran.documents()[0]["log_key"], first);
    assert!(ran.stderr.contains("WARNING"), "{ran:?}");
    let ran = person.login(&gateway, &issuer, &["--accept-log-key"]).await;
    assert_ne!(ran.documents()[0]["log_key"], first);
}

#[tokio::test]
async fn says_what_is_wrong_and_what_to_do() {
    let person = Person::new();
    let ran = person.run(&["whoami"]).await;
    assert_eq!((ran.code, ran.stdout.as_str()), (3, ""));
    assert!(ran.stderr.contains("no gateway is known") && ran.stderr.contains("sallyport login"), "{ran:?}");
    let ran = person.run(&["--gateway", "http://gw", "whoami"]).await;
    assert_eq!(ran.code, 2, "{ran:?}");
    let pin = "ab".repeat(32);
    let ran = person.run(&["--json", "--gateway", "127.0.0.1:1", "login", "--ca-sha256", &pin]).await;
    assert_eq!(ran.code, 4, "{ran:?}");
    let error: serde_json::Value = serde_json::from_str(&ran.stderr).expect("JSON");
    assert_eq!(error["error"]["kind"], "unreachable");

    let (gateway, person) = signed_in().await;
    gateway.state().refuse = true;
    let ran = person.run(&["sessions"]).await;
    assert_eq!(ran.code, 1, "{ran:?}");
    assert!(ran.stderr.contains("rule \"evidence-for-soc\" forbids it"), "{ran:?}");
    assert!(!ran.stderr.contains('\x1b'), "what a server says cannot steer the terminal: {ran:?}");
}
