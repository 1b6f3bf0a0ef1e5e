//! Signing in, against the certified OpenID provider, with an unmodified `ssh` and with `sallyport login`.

use anyhow::Result;
use sallyport_e2e::bundles;
use sallyport_e2e::{Provider, Stage, StageOptions, events};
use sallyport_evidence::record::Kind;

fn stage() -> Result<Stage> {
    let bundle = bundles::small()?;
    Stage::start(&StageOptions { provider: Provider::Certified, bundle, ..StageOptions::default() })
}

#[test]
fn a_device_sign_in_binds_the_key_that_was_shown() -> Result<()> {
    let mut stage = stage()?;
    let sam = stage.signed_in("sam")?;
    let known = stage.signed_in("alice")?;
    stage.wait_for_sensor(&known)?;
    let alice = stage.ssh("alice", &sam)?;

    // Before: a key that nobody knows gets nowhere when nobody can sign in.
    let unknown = alice.run("web-1+root", "id -un")?;
    assert_ne!(unknown.code(), 0, "an unknown key must not get in: {}", unknown.out());

    let (shown, code) =
        alice.first_time(stage.openid()?, "alice", &["-T", "web-1+root@gateway", "id -un"])?;
    assert_eq!(code, 0, "{shown}");
    // After: the same key, no link, no browser; and scp, which cannot answer anything.
    let again = alice.run("web-1+root", "id -un")?;
    assert_eq!((again.code(), again.out().as_str()), (0, "root\n"), "{}", again.err());
    assert!(stage.openid()?.device_link(&again.err()).is_none(), "silent: {}", again.err());

    // The key is bound, not the computer: another key is asked to sign in.
    let other = stage.ssh("alice-other-key", &sam)?;
    assert_ne!(other.run("web-1+root", "id -un")?.code(), 0);

    let sign_ins = events::all(&sam, &["--kind", "sign_in"])?;
    let methods: Vec<&str> = sign_ins
        .iter()
        .filter(|entry| entry.record.kind == Kind::SignIn)
        .filter_map(|entry| entry.record.identity.as_ref())
        .filter(|identity| identity.user == "alice@example.org")
        .map(|identity| identity.method.as_str())
        .collect();
    assert!(methods.contains(&"device"), "the log tells of the device sign-in: {methods:?}");
    Ok(())
}

#[test]
fn quiet_clients_still_see_the_link() -> Result<()> {
    let mut stage = stage()?;
    let sam = stage.signed_in("sam")?;
    let known = stage.signed_in("alice")?;
    stage.wait_for_sensor(&known)?;
    for (name, quiet) in [("q", &["-q"][..]), ("error", &["-o", "LogLevel=ERROR"][..])] {
        let alice = stage.ssh(&format!("alice-{name}"), &sam)?;
        let arguments = [quiet, &["-T", "web-1+root@gateway", "id -un"]].concat();
        let (shown, code) = alice.first_time(stage.openid()?, "alice", &arguments)?;
        assert_eq!(code, 0, "{quiet:?}: {shown}");
        assert!(shown.contains("root"), "{quiet:?}: {shown}");
    }
    Ok(())
}

#[test]
fn login_leaves_a_certificate_that_ssh_uses() -> Result<()> {
    let mut stage = stage()?;
    let alice = stage.signed_in("alice")?;
    stage.wait_for_sensor(&alice)?;
    let who = alice.json(&["whoami"])?;
    assert_eq!(who[0]["user"], "alice@example.org");
    let ssh = stage.ssh_with_certificate(&alice)?;
    let done = ssh.run("web-1+root", "id -un")?;
    assert_eq!((done.code(), done.out().as_str()), (0, "root\n"), "{}", done.err());
    // The control: the key without its certificate is nobody's.
    let certificate = alice.home.join(".ssh/sallyport/key-cert.pub");
    std::fs::rename(&certificate, certificate.with_extension("away"))?;
    assert_ne!(ssh.run("web-1+root", "id -un")?.code(), 0);
    Ok(())
}

#[test]
fn a_person_whom_policy_does_not_let_in_is_told_so() -> Result<()> {
    let mut stage = stage()?;
    let sam = stage.signed_in("sam")?;
    let known = stage.signed_in("alice")?;
    stage.wait_for_sensor(&known)?;
    let mallory = stage.ssh("mallory", &sam)?;
    let (shown, code) =
        mallory.first_time(stage.openid()?, "mallory", &["-T", "web-1+root@gateway", "id -un"])?;
    assert_ne!(code, 0);
    assert!(shown.contains("sallyport") && shown.contains("web-1"), "says why: {shown}");
    assert!(!shown.contains("root\n"), "nothing ran: {shown}");
    let refused = events::all(&sam, &["--kind", "session_open", "--outcome", "blocked"])?;
    assert!(!refused.is_empty(), "the refusal is in the log");
    // Neither may she read evidence or push policy.
    let person = stage.signed_in("mallory")?;
    assert_ne!(person.run(&["events"])?.code(), 0);
    let bundle = bundles::small()?;
    assert_ne!(person.run(&["policy", "push", &bundle.to_string_lossy()])?.code(), 0);
    Ok(())
}
