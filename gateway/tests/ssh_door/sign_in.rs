//! Who gets in, and how.

use crate::provider::Person;
use crate::rig::{Rig, finish, text};
use sallyport_gateway::identity::{Identity, SignInError};
use serde_json::json;
use std::process::Stdio;
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};

#[tokio::test(flavor = "multi_thread")]
async fn a_sign_in_binds_the_key_and_the_next_log_in_is_silent() {
    let rig = Rig::start().await;
    let key = rig.key("a");
    let out = rig.ssh(&key, &["web-1+root@127.0.0.1", "echo in"]).await;
    assert_eq!(text(&out.stdout), "in\n", "{}", text(&out.stderr));
    let shown = text(&out.stderr);
    assert!(
        shown.contains("/activate?user_code=ABCD-EFGH") && shown.contains("Sign in to gw.test"),
        "{shown}"
    );
    assert_eq!(
        rig.log()[..2],
        ["sign-in alice@example.org device good", "open alice@example.org root@web-1 device"]
    );
    // A second log-in asks the provider nothing, even in batch mode.
    rig.provider.person(Person::Refuses);
    let out = rig.ssh(&key, &["-o", "BatchMode=yes", "web-1@127.0.0.1", "echo again"]).await;
    assert_eq!((text(&out.stdout).as_str(), text(&out.stderr).as_str()), ("again\n", ""));
    assert_eq!(rig.provider.state.lock().expect("lock").n_links, 1);
    assert!(rig.log().contains(&"sign-in alice@example.org key good".to_owned()), "{:?}", rig.log());
    // Groups came from the userinfo endpoint.
    let bindings = rig.door.credentials.bindings(None).await.expect("reads");
    assert_eq!(bindings[0].identity.groups, ["ops"]);
    // Revoked, it is a stranger's key again.
    assert!(rig.door.credentials.revoke_binding(&bindings[0].fingerprint).await.expect("revokes"));
    let out = rig.ssh(&key, &["-o", "BatchMode=yes", "web-1@127.0.0.1", "echo no"]).await;
    assert_eq!((out.status.code(), text(&out.stdout).as_str()), (Some(255), ""));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_bound_key_is_found_among_several() {
    let rig = Rig::start().await;
    let bound = rig.bound_key().await;
    let mut command = rig.command(Some(&rig.key("first")));
    command.arg("-i").arg(rig.key("second")).arg("-i").arg(&bound).args([
        "-o",
        "BatchMode=yes",
        "web-1@127.0.0.1",
        "echo in",
    ]);
    let out = finish(&mut command).await;
    assert_eq!(text(&out.stdout), "in\n", "{}", text(&out.stderr));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_without_keys_signs_in_for_this_connection() {
    let rig = Rig::start().await;
    let out = finish(rig.command(None).args(["web-1@127.0.0.1", "echo in"])).await;
    assert_eq!(text(&out.stdout), "in\n", "{}", text(&out.stderr));
    assert!(rig.door.credentials.bindings(None).await.expect("reads").is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn batch_mode_with_an_unknown_key_is_refused_and_recorded() {
    let rig = Rig::start().await;
    let key = rig.key("a");
    let out = rig.ssh(&key, &["-o", "BatchMode=yes", "web-1@127.0.0.1", "echo no"]).await;
    assert_eq!((out.status.code(), text(&out.stdout).as_str()), (Some(255), ""));
    assert!(text(&out.stderr).contains("Permission denied"), "{}", text(&out.stderr));
    assert_eq!(rig.provider.state.lock().expect("lock").n_links, 0);
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(
        rig.log(),
        ["sign-in nobody key no key that was offered is bound or certified here, and nobody signed in"]
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_person_is_held_and_a_quiet_client_shows_the_link() {
    for quiet in ["-q", "-oLogLevel=ERROR"] {
        let rig = Rig::start().await;
        rig.provider.person(Person::Waits);
        let key = rig.key("a");
        let mut child = rig
            .command(Some(&key))
            .args([quiet, "web-1@127.0.0.1", "cat; echo in"])
            .stdin(Stdio::piped())
            .spawn()
            .expect("starts");
        let mut stderr = BufReader::new(child.stderr.take().expect("pipe"));
        let mut line = String::new();
        tokio::time::timeout(Duration::from_secs(20), stderr.read_line(&mut line))
            .await
            .expect("shown")
            .expect("reads");
        assert!(
            line.starts_with("sallyport: sign in at http") && line.contains("user_code=ABCD-EFGH"),
            "{line}"
        );
        // Held: bytes wait, nothing is opened, nothing runs.
        let mut stdin = child.stdin.take().expect("pipe");
        stdin.write_all(b"typed early\n").await.expect("writes");
        drop(stdin);
        tokio::time::sleep(Duration::from_millis(500)).await;
        assert!(rig.log().is_empty(), "{:?}", rig.log());
        rig.provider.person(Person::SignsIn);
        let out = tokio::time::timeout(Duration::from_secs(20), child.wait_with_output())
            .await
            .expect("ends")
            .expect("runs");
        assert_eq!(text(&out.stdout), "typed early\nin\n");
        assert_eq!(rig.log()[0], "sign-in alice@example.org device good");
        let out = rig.ssh(&key, &["-o", "BatchMode=yes", "web-1@127.0.0.1", "echo bound"]).await;
        assert_eq!(text(&out.stdout), "bound\n");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_and_a_forgotten_sign_in_get_nowhere() {
    for (person, why) in [(Person::Refuses, "refused"), (Person::Forgets, "nobody signed in")] {
        let rig = Rig::start().await;
        rig.provider.person(person);
        let out = rig.ssh(&rig.key("a"), &["web-1@127.0.0.1", "echo no"]).await;
        assert_eq!((out.status.code(), text(&out.stdout).as_str()), (Some(255), ""), "{person:?}");
        assert!(text(&out.stderr).contains(why), "{}", text(&out.stderr));
        assert!(rig.log()[0].contains("nobody device"), "{:?}", rig.log());
        assert!(!rig.log().iter().any(|line| line.starts_with("open")));
    }
    // The same while held in the session.
    let rig = Rig::start().await;
    rig.provider.person(Person::Waits);
    let child =
        rig.command(Some(&rig.key("a"))).args(["-q", "web-1@127.0.0.1", "echo no"]).spawn().expect("starts");
    tokio::time::sleep(Duration::from_secs(3)).await;
    rig.provider.person(Person::Refuses);
    let out = tokio::time::timeout(Duration::from_secs(20), child.wait_with_output())
        .await
        .expect("ends")
        .expect("runs");
    assert_eq!((out.status.code(), text(&out.stdout).as_str()), (Some(255), ""));
    assert!(text(&out.stderr).contains("sallyport: the sign-in was refused"), "{}", text(&out.stderr));
}

#[tokio::test(flavor = "multi_thread")]
async fn ctrl_c_and_hanging_up_give_a_sign_in_up() {
    let rig = Rig::start().await;
    rig.provider.person(Person::Waits);
    let mut child = rig
        .command(Some(&rig.key("a")))
        .args(["-q", "-tt", "web-1@127.0.0.1"])
        .stdin(Stdio::piped())
        .spawn()
        .expect("starts");
    let mut stderr = BufReader::new(child.stderr.take().expect("pipe"));
    let mut line = String::new();
    stderr.read_line(&mut line).await.expect("reads");
    assert!(line.ends_with("\r\n"), "{line:?}");
    child.stdin.as_mut().expect("pipe").write_all(b"\x03").await.expect("writes");
    let status =
        tokio::time::timeout(Duration::from_secs(10), child.wait()).await.expect("ends").expect("runs");
    assert_eq!(status.code(), Some(130));
    let mut rest = String::new();
    stderr.read_to_string(&mut rest).await.expect("reads");
    assert!(rest.contains("given up"), "{rest}");
    // Hanging up stops the polling.
    let mut child = rig.command(None).args(["-q", "web-1@127.0.0.1", "true"]).spawn().expect("starts");
    tokio::time::sleep(Duration::from_secs(3)).await;
    child.kill().await.expect("kills");
    tokio::time::sleep(Duration::from_secs(1)).await;
    let before = rig.provider.state.lock().expect("lock").n_polls;
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(rig.provider.state.lock().expect("lock").n_polls, before);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_provider_that_is_down_is_named() {
    let rig = Rig::start().await;
    let mut config = rig.door.openid.config().clone();
    config.issuer = "http://127.0.0.1:1".to_owned();
    let openid = sallyport_gateway::identity::OpenId::new(config).expect("client");
    let err = openid.start_device_sign_in().await.err().expect("down").to_string();
    assert!(err.contains("http://127.0.0.1:1") && err.contains("cannot reach"), "{err}");
}

#[tokio::test(flavor = "multi_thread")]
async fn certificates_let_in_until_revoked_and_others_do_not() {
    let rig = Rig::start().await;
    let key = rig.key("a");
    let public = std::fs::read_to_string(key.with_extension("pub")).expect("reads");
    let public = russh::keys::PublicKey::from_openssh(&public).expect("key");
    let alice = Identity {
        user: "alice@example.org".into(),
        kind: "human".into(),
        groups: vec!["ops".into()],
        ..Identity::default()
    };
    let issue = |lifetime| {
        let (door, alice, public) = (rig.door.clone(), alice.clone(), public.clone());
        async move {
            let made =
                door.authority.issue_user_certificate(&door.credentials, &alice, &public, lifetime).await;
            made.expect("issues")
        }
    };
    let path = rig.path("a-cert.pub");
    let write = |certificate: &russh::keys::Certificate| {
        std::fs::write(&path, certificate.to_openssh().expect("encodes")).expect("writes");
    };
    let args = ["-o", "BatchMode=yes", "web-1@127.0.0.1", "echo in"];
    let good = issue(Duration::from_secs(600)).await;
    write(&good);
    let out = rig.ssh(&key, &args).await;
    assert_eq!(text(&out.stdout), "in\n", "{}", text(&out.stderr));
    assert_eq!(
        rig.log()[..2],
        ["sign-in alice@example.org certificate good", "open alice@example.org root@web-1 certificate"]
    );
    // Expired.
    write(&issue(Duration::ZERO).await);
    tokio::time::sleep(Duration::from_millis(1100)).await;
    assert_eq!(rig.ssh(&key, &args).await.status.code(), Some(255));
    // Another authority's, for the same key and a live serial.
    let elsewhere = tempfile::tempdir().expect("dir");
    let other = sallyport_gateway::authority::ssh::SshAuthority::open(elsewhere.path()).expect("keys");
    let foreign =
        other.issue_user_certificate(&rig.door.credentials, &alice, &public, Duration::from_secs(600)).await;
    write(&foreign.expect("issues"));
    assert_eq!(rig.ssh(&key, &args).await.status.code(), Some(255));
    assert!(
        rig.log()
            .iter()
            .any(|line| line.contains("nobody certificate the certificate is of another authority")),
        "{:?}",
        rig.log()
    );
    // Revoked.
    rig.door.credentials.revoke_all_of("alice@example.org").await.expect("revokes");
    write(&good);
    assert_eq!(rig.ssh(&key, &args).await.status.code(), Some(255));
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_that_prove_nothing_are_refused() {
    let rig = Rig::start().await;
    let (openid, provider) = (&rig.door.openid, &rig.provider);
    let good = json!({"nonce": "n1"});
    let token = provider.token("sallyport-cli", &good);
    let identity = openid.verify_cli_sign_in(&token, "n1", "at").await.expect("good");
    assert_eq!((identity.user.as_str(), identity.method.as_str()), ("alice@example.org", "token"));
    assert_eq!(identity.groups, ["ops"]);
    for (what, token, nonce) in [
        ("another nonce", token.clone(), "n2"),
        ("no nonce", provider.token("sallyport-cli", &json!({})), "n1"),
        ("empty nonce", token.clone(), ""),
        ("another client", provider.token("other", &good), "n1"),
        (
            "more audiences",
            provider.token("x", &json!({"nonce": "n1", "aud": ["sallyport-cli", "other"]})),
            "n1",
        ),
        (
            "another issuer",
            provider.token("sallyport-cli", &json!({"nonce": "n1", "iss": "https://other"})),
            "n1",
        ),
        ("expired", provider.token("sallyport-cli", &json!({"nonce": "n1", "exp": 1000})), "n1"),
        ("old", provider.token("sallyport-cli", &json!({"nonce": "n1", "iat": 1000})), "n1"),
        ("forged", provider.forged_token("sallyport-cli", &good), "n1"),
        ("nonsense", "a.b.c".to_owned(), "n1"),
        ("no signature", token.rsplit_once('.').map(|(head, _)| format!("{head}.")).expect("dots"), "n1"),
        ("alg none", format!("eyJhbGciOiJub25lIn0.{}.", token.split('.').nth(1).expect("claims")), "n1"),
    ] {
        let refused = openid.verify_cli_sign_in(&token, nonce, "at").await;
        assert!(matches!(refused, Err(SignInError::Unproved(_))), "{what}: {refused:?}");
    }
    // Userinfo that speaks of somebody else.
    provider.state.lock().expect("lock").userinfo = json!({"sub": "u2", "groups": ["root"]});
    let refused = openid.verify_cli_sign_in(&token, "n1", "at").await;
    assert!(refused.expect_err("refused").to_string().contains("somebody else"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_jump_is_held_inside_and_an_idle_connection_does_not_outlive_its_link() {
    let rig = Rig::start().await;
    rig.provider.person(Person::Waits);
    let key = rig.key("a");
    let outer =
        format!("ssh -q {} -p {} -W %h:%p any@127.0.0.1", rig.options(Some(&key)).join(" "), rig.port);
    let mut inner = tokio::process::Command::new("ssh");
    let options = rig.options(None).into_iter().filter(|option| !option.starts_with("HostKeyAlias"));
    let options: Vec<_> = options.collect();
    // `-o HostKeyAlias=…` lost its value: pair up again.
    let options = options.join(" ").replace("-o -o", "-o");
    inner.args(options.split(' ')).args([
        "-q",
        "-o",
        &format!("ProxyCommand={outer}"),
        "root@web-1",
        "echo in",
    ]);
    let mut child = inner
        .kill_on_drop(true)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("starts");
    let mut stderr = BufReader::new(child.stderr.take().expect("pipe"));
    let mut line = String::new();
    tokio::time::timeout(Duration::from_secs(20), stderr.read_line(&mut line))
        .await
        .expect("shown")
        .expect("reads");
    assert!(line.starts_with("sallyport: sign in at http"), "{line}");
    assert!(rig.log().is_empty(), "{:?}", rig.log());
    rig.provider.person(Person::SignsIn);
    let out = tokio::time::timeout(Duration::from_secs(20), child.wait_with_output())
        .await
        .expect("ends")
        .expect("runs");
    assert_eq!(text(&out.stdout), "in\n");
    // `ssh -N` has no channel to be told in.
    let rig = Rig::start().await;
    rig.provider.person(Person::Waits);
    let idle = rig.command(None).args(["-N", "web-1@127.0.0.1"]).spawn().expect("starts");
    tokio::time::sleep(Duration::from_secs(3)).await;
    rig.provider.person(Person::Refuses);
    let out = tokio::time::timeout(Duration::from_secs(10), idle.wait_with_output())
        .await
        .expect("ends")
        .expect("runs");
    assert_eq!(out.status.code(), Some(255));
    assert!(text(&out.stderr).contains("the sign-in was refused"), "{}", text(&out.stderr));
}
