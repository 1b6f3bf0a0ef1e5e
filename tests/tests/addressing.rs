//! Every way to name a target, from a plain OpenSSH client.

use std::time::Duration;

use anyhow::Result;
use sallyport_e2e::bundles;
use sallyport_e2e::child::finish;
use sallyport_e2e::{Stage, StageOptions, events};

#[test]
fn targets_can_be_named_in_every_documented_way() -> Result<()> {
    let bundle = bundles::small()?;
    let mut stage = Stage::start(&StageOptions { bundle, ..StageOptions::default() })?;
    let sam = stage.signed_in("sam")?;
    let alice = stage.signed_in("alice")?;
    stage.wait_for_sensor(&alice)?;
    let ssh = stage.ssh_with_certificate(&alice)?;
    let run = |arguments: &[&str]| {
        let arguments = [&["-T", "-o", "BatchMode=yes"], arguments].concat();
        finish(&mut ssh.command(&arguments), b"", Duration::from_secs(60))
    };

    for target in ["web-1+root@gateway", "web-1@gateway", "root%web-1@gateway"] {
        let done = run(&[target, "id -un; echo $SSH_CONNECTION >&2"])?;
        assert_eq!((done.code(), done.out().as_str()), (0, "root\n"), "{target}: {}", done.err());
    }

    // By ProxyJump the inner connection ends at the gateway too: same judgement, same record.
    let before = events::end(&sam)?;
    let marker = stage.work("addressing")?.join("jumped");
    let line = format!("id -un; touch {}; dd if=/dev/null of={0}-forbidden", marker.display());
    let jumped = run(&["-J", "gateway", "root@web-1", &line])?;
    assert!(jumped.out().starts_with("root\n"), "{}{}", jumped.out(), jumped.err());
    assert!(marker.exists());
    assert!(!marker.with_file_name("jumped-forbidden").exists(), "judged like any other");
    events::wait_for(&sam, before, "the denial in the jumped session", |entry| {
        entry.is_exec_of("/usr/bin/dd") && entry.is_denial()
    })?;

    // No target: the list of what one may reach, and not a failure to connect.
    let list = run(&["gateway"])?;
    let said = format!("{}{}", list.out(), list.err());
    assert!(said.contains("web-1") && said.contains("root"), "the list: {said}");

    // A host that does not exist, and a local user that policy does not allow: said so, nothing runs.
    for (target, part) in [("web-9+root@gateway", "web-9"), ("web-1+nobody@gateway", "nobody")] {
        let refused = run(&[target, "id -un"])?;
        assert_ne!(refused.code(), 0, "{target}");
        assert_eq!(refused.out(), "", "{target}: nothing ran");
        assert!(refused.err().contains(part), "{target} says why: {}", refused.err());
    }
    let refused = run(&["-J", "gateway", "root@web-9", "id -un"])?;
    assert_ne!(refused.code(), 0);
    assert_eq!(refused.out(), "");
    Ok(())
}
