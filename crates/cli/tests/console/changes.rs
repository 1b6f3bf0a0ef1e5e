//! Signing, pushing as a CI job, approving: keys and tokens go where they belong and nowhere else.

use std::{fs, os::unix::fs::PermissionsExt as _};

use sallyport_contract::v1::{Proposal, PushPolicyResponse};
use sallyport_evidence::{Statement, note::Verifier};
use sallyport_policy::Bundle;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpListener,
};

use super::{
    gateway::{Gateway, TOKEN},
    issuer::Issuer,
    person::{Person, Ran, signed_in},
    policy::{RULE, bundle},
};

fn text(path: std::path::PathBuf) -> String {
    path.to_str().expect("utf-8").to_owned()
}

/// A key; gives its file and what `keygen` printed.
async fn key(person: &Person, name: &str) -> (String, String) {
    let file = text(person.path(&format!("{name}.key")));
    let ran = person.run(&["policy", "keygen", name, "--out", &file]).await;
    assert_eq!(ran.code, 0, "{ran:?}");
    let secret = fs::read_to_string(&file).expect("written");
    assert!(!format!("{ran:?}").contains(secret.trim()), "the private key was printed");
    assert_eq!(fs::metadata(&file).expect("there").permissions().mode() & 0o777, 0o600);
    (file, ran.stdout.trim().to_owned())
}

#[tokio::test]
async fn a_version_is_signed_by_two_and_verified_without_a_gateway() {
    let person = Person::new();
    let dir = bundle(&person, RULE);
    let ((release, one), (lead, two)) = (key(&person, "release").await, key(&person, "lead").await);
    let again = person.run(&["policy", "keygen", "release", "--out", &release]).await;
    assert_eq!(again.code, 1, "a key is never overwritten: {again:?}");
    let sig = text(person.path("bundle.sig"));
    for key in [&release, &lead, &lead] {
        let ran =
            person.run(&["policy", "sign", &dir, "--key", key, "--for", "gateway.test", "--out", &sig]).await;
        assert_eq!(ran.code, 0, "{ran:?}");
    }
    let note = fs::read_to_string(&sig).expect("written");
    assert_eq!(note.matches('\u{2014}').count(), 2, "each signs once: {note}");
    let keys = [&one, &two].map(|key| Verifier::parse(key).expect("a key"));
    let (statement, by) = Statement::open(&note, &keys).expect("opens");
    assert_eq!(by, ["lead", "release"]);
    assert_eq!(statement.version, Bundle::read_dir(dir.as_ref()).expect("a bundle").version());

    let verify = async |more: &[&str]| -> Ran {
        let args = ["policy", "verify", &dir, "--signature", &sig];
        person.run(&[&args[..], more].concat()).await
    };
    let ran = verify(&["--key", &one, "--for", "gateway.test"]).await;
    assert!(ran.code == 0 && ran.stdout.contains("is signed by release for gateway.test"), "{ran:?}");
    let (_, other) = key(&person, "other").await;
    assert_eq!(verify(&["--key", &other]).await.code, 1);
    assert_eq!(verify(&["--key", &one, "--for", "another.test"]).await.code, 1);
    assert_eq!(verify(&["--key", "nonsense"]).await.code, 2);
    bundle(&person, &format!("{RULE}// more\n"));
    let ran = verify(&["--key", &one]).await;
    assert!(ran.code == 1 && ran.stderr.contains("have this version signed"), "{ran:?}");

    // From the environment, as in CI; to standard output; and not with a key that others may read.
    let secret = fs::read_to_string(&release).expect("read");
    let mut command = person.command(&["policy", "sign", &dir, "--key-env", "KEY", "--for", "gateway.test"]);
    let ran: Ran = command.env("KEY", &secret).output().await.expect("it runs").into();
    assert!(ran.code == 0 && ran.stdout.starts_with("sallyport policy statement v1\n"), "{ran:?}");
    fs::set_permissions(&release, fs::Permissions::from_mode(0o644)).expect("chmod");
    let ran = person.run(&["policy", "sign", &dir, "--key", &release, "--for", "gateway.test"]).await;
    assert!(ran.code == 1 && ran.stderr.contains("chmod 600"), "{ran:?}");
    fs::write(&sig, "notes of mine").expect("written");
    let ran =
        person.run(&["policy", "sign", &dir, "--key", &lead, "--for", "gateway.test", "--out", &sig]).await;
    assert_eq!((ran.code, fs::read_to_string(&sig).expect("read").as_str()), (1, "notes of mine"), "{ran:?}");
}

/// What GitHub's runner serves to its jobs, once; gives its address and what was asked.
async fn runner() -> (String, tokio::task::JoinHandle<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let url = format!("http://{}/idtoken?api-version=2.0", listener.local_addr().expect("an address"));
    let asked = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.expect("asked");
        let mut request = vec![0; 4096];
        let n = stream.read(&mut request).await.expect("read");
        let body = format!("{{\"count\":1,\"value\":\"{TOKEN}\"}}");
        let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\nconnection: close\r\n\r\n", body.len());
        stream.write_all(format!("{head}{body}").as_bytes()).await.expect("answered");
        String::from_utf8_lossy(&request[..n]).into_owned()
    });
    (url, asked)
}

#[tokio::test]
async fn a_job_pushes_with_its_own_token() {
    let gateway = Gateway::start(&Issuer::start().await.url).await;
    let person = Person::new();
    let dir = bundle(&person, RULE);
    let archive = Bundle::read_dir(dir.as_ref()).expect("a bundle");
    gateway.state().push_answer =
        PushPolicyResponse { version: archive.version(), ..PushPolicyResponse::default() };
    let push = async |pairs: &[(&str, &str)], more: &[&str]| -> Ran {
        let args = ["--gateway", &gateway.url, "policy", "push", &dir];
        let mut command = person.command(&[&args[..], more].concat());
        command.env("SALLYPORT_CA_SHA256", &gateway.ca_sha256).envs(pairs.iter().copied());
        command.output().await.expect("it runs").into()
    };
    let (release, _) = key(&person, "release").await;
    let sig = text(person.path("bundle/bundle.sig"));
    let signed = person.run(&["policy", "sign", &dir, "--key", &release, "--for", "gw", "--out", &sig]).await;
    assert_eq!(signed.code, 0, "{signed:?}");
    let lies_in_file = text(person.path("token"));
    fs::write(&lies_in_file, format!("{TOKEN}\n")).expect("written");
    let (url, asked) = runner().await;
    for (what, pairs, more) in [
        ("GitLab", vec![("SALLYPORT_ID_TOKEN", TOKEN)], vec![]),
        ("a variable", vec![("MINE", TOKEN)], vec!["--token-env", "MINE"]),
        ("a file", vec![], vec!["--token-file", lies_in_file.as_str()]),
        (
            "GitHub",
            vec![
                ("ACTIONS_ID_TOKEN_REQUEST_URL", url.as_str()),
                ("ACTIONS_ID_TOKEN_REQUEST_TOKEN", "lent-to-us"),
            ],
            vec![],
        ),
    ] {
        let ran = push(&pairs, &more).await;
        assert_eq!(ran.code, 0, "{what}: {ran:?}");
        assert!(!format!("{ran:?}").contains("lent-to-us"), "{ran:?}");
        let pushed = gateway.state().pushed.remove(0);
        assert_eq!(pushed.archive, archive.to_archive(), "{what}");
        assert_eq!(pushed.signatures, [fs::read_to_string(&sig).expect("read")], "`bundle.sig` goes along");
    }
    let asked = asked.await.expect("asked").to_lowercase();
    let audience: String = url::form_urlencoded::byte_serialize(gateway.url.as_bytes()).collect();
    assert!(asked.contains(&format!("&audience={}", audience.to_lowercase())), "{asked}");
    assert!(asked.contains("authorization: bearer lent-to-us"), "{asked}");

    // Whoever answers there must be the gateway that is meant.
    let mut command = person.command(&["--gateway", &gateway.url, "policy", "push", &dir]);
    command.env("SALLYPORT_CA_SHA256", "0".repeat(64)).env("SALLYPORT_ID_TOKEN", TOKEN);
    let ran: Ran = command.output().await.expect("it runs").into();
    assert_eq!((ran.code, gateway.state().pushed.len()), (4, 0), "{ran:?}");
    for (pairs, more, code) in [
        (vec![("GITLAB_CI", "true")], vec![], 3),
        (vec![], vec!["--token-env", "NOT_SET"], 2),
        (vec![], vec!["--token-file", "/does/not/exist"], 1),
        (vec![("SALLYPORT_ID_TOKEN", "another")], vec![], 3),
    ] {
        let ran = push(&pairs, &more).await;
        assert_eq!((ran.code, gateway.state().pushed.len()), (code, 0), "{ran:?}");
        assert!(pairs.is_empty() || pairs[0].0 != "GITLAB_CI" || ran.stderr.contains("id_tokens"), "{ran:?}");
    }
}

#[tokio::test]
async fn proposals_are_listed_approved_and_rejected() {
    let (gateway, person) = signed_in().await;
    let dir = bundle(&person, RULE);
    gateway.state().push_answer = PushPolicyResponse {
        version: "ab".repeat(32),
        waits_until_ms: 4_102_444_800_000,
        ..PushPolicyResponse::default()
    };
    let ran = person.run(&["policy", "push", &dir]).await;
    assert_eq!(ran.code, 0, "{ran:?}");
    assert!(
        ran.stdout.contains("not in force yet") && ran.stdout.contains("policy approve abababababab"),
        "{ran:?}"
    );
    assert!(!ran.stdout.contains("In force"), "{ran:?}");

    let proposal = |version: &str| Proposal {
        version: version.repeat(32),
        proposed_by: "github:acme/policies@refs/heads/main".into(),
        on_behalf_of: "octocat".into(),
        message: "close\u{1b}[2J the scanners".into(),
        signed_by: vec!["release".into()],
        ..Proposal::default()
    };
    gateway.state().proposals = vec![proposal("ab"), proposal("ac")];
    let ran = person.run(&["policy", "proposals"]).await;
    assert!(
        ran.code == 0 && ran.stdout.contains("started by octocat") && ran.stdout.contains("release"),
        "{ran:?}"
    );
    assert!(!ran.stdout.contains('\u{1b}'), "{ran:?}");
    let ran = person.run(&["--json", "policy", "proposals"]).await;
    assert_eq!(ran.documents()[0]["proposals"].as_array().expect("a list").len(), 2, "{ran:?}");

    gateway.state().push_answer = PushPolicyResponse::default();
    let ran = person.run(&["policy", "approve", "abababab", "--reason", "fine"]).await;
    assert!(ran.code == 0 && ran.stdout.contains("In force"), "{ran:?}");
    let ran = person.run(&["policy", "reject", &"ac".repeat(32)]).await;
    assert!(ran.code == 0 && ran.stdout.contains("Rejected"), "{ran:?}");
    let settled = std::mem::take(&mut gateway.state().settled);
    let told: Vec<_> =
        settled.iter().map(|it| (it.version.as_str(), it.approve, it.reason.as_str())).collect();
    assert_eq!(told, [("ab".repeat(32).as_str(), true, "fine"), ("ac".repeat(32).as_str(), false, "")]);
    assert_eq!(person.run(&["policy", "approve", "ffffffff"]).await.code, 1);
    assert_eq!(person.run(&["policy", "approve", "a"]).await.code, 2);
    assert!(gateway.state().settled.is_empty());
}
