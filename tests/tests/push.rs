//! A push to a running session: what it may do changes, and one that is rolled back changes it again.

use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use sallyport_e2e::bundles;
use sallyport_e2e::{Stage, StageOptions, wait};

const TARGET: &str = "web-1+root";

/// How many files a session has made so far: one for each time that it could.
fn count(folder: &std::path::Path, prefix: &str) -> usize {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    entries.filter(|entry| entry.file_name().to_string_lossy().starts_with(prefix)).count()
}

#[test]
fn a_running_session_follows_pushes_and_rollbacks() -> Result<()> {
    let mut stage = Stage::start(&StageOptions { bundle: bundles::small()?, ..StageOptions::default() })?;
    let sam = stage.signed_in("sam")?;
    let alice = stage.signed_in("alice")?;
    stage.wait_for_sensor(&alice)?;
    let ssh = stage.ssh_with_certificate(&alice)?;
    let work = stage.work("push")?;
    // Each round makes a file with the program that will be forbidden, and shows with a shell's own means that it goes on.
    let script = format!(
        "n=0; while [ $n -lt 100000 ]; do n=$((n+1)); /usr/bin/truncate -s 0 {0}/made-$n; : > {0}/tick-$n; done",
        work.display()
    );
    let at = format!("{TARGET}@gateway");
    let mut session: Command = ssh.command(&["-T", "-o", "BatchMode=yes", &at, &script]);
    let log = stage.folder().join("push-session.log");
    let mut session = sallyport_e2e::child::Running::start("the session", &mut session, &log)?;
    let made = || count(&work, "made-");
    let ticks = || count(&work, "tick-");
    wait::until("control: the session makes files", wait::PATIENCE, || Ok((made() > 3).then_some(())))?;

    let changed = stage.folder().join("changed");
    bundles::write_changed(&changed)?;
    let changed = changed.to_string_lossy().into_owned();
    let pushed = Instant::now();
    let mut push = sam.command(&["policy", "push", &changed, "-m", "frozen"])?;
    let push_log = stage.folder().join("push.log");
    let mut push = sallyport_e2e::child::Running::start("the push", &mut push, &push_log)?;
    // The effect is what counts: rounds go on, and make nothing.
    let mut last = (made(), Instant::now());
    wait::until("the program to be refused", wait::PATIENCE, || {
        if made() != last.0 {
            last = (made(), Instant::now());
        }
        let rounds = ticks();
        std::thread::sleep(std::time::Duration::from_millis(5));
        Ok((made() == last.0 && rounds >= last.0 + 20).then_some(()))
    })?;
    ensure!(push.wait(wait::PATIENCE)? == 0, "the push failed: {}", push.log());
    let took = last.1.duration_since(pushed);
    println!("from `policy push` to the last file that the session could make: {} ms", took.as_millis());

    let listed = sam.json(&["policy", "list"])?.into_iter().next().context("a list")?;
    ensure!(listed["versions"][0]["how"] == "push" && listed["versions"][0]["in_force"] == true, "{listed}");
    ensure!(listed["sensors"][0]["drift"] == "", "{listed}");

    let frozen = made();
    let back = sam.run(&["policy", "rollback", "-m", "thawed"])?;
    ensure!(back.code() == 0, "{}{}", back.out(), back.err());
    wait::until("the session to make files again", wait::PATIENCE, || {
        Ok((made() > frozen + 3).then_some(()))
    })?;
    let listed = sam.json(&["policy", "list"])?.into_iter().next().context("a list")?;
    ensure!(listed["versions"][0]["how"] == "rollback", "{listed}");
    session.stop();
    Ok(())
}
