//! Kill -9 in the middle of a session: of the sensor, of the gateway.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use sallyport_e2e::bundles;
use sallyport_e2e::{Stage, StageOptions, events, wait};

const TARGET: &str = "web-1+root";

fn stage() -> Result<Stage> {
    let bundle = bundles::small()?;
    Stage::start(&StageOptions { bundle, ..StageOptions::default() })
}

#[test]
fn a_killed_sensor_takes_its_sessions_over_again() -> Result<()> {
    let mut stage = stage()?;
    let sam = stage.signed_in("sam")?;
    let alice = stage.signed_in("alice")?;
    stage.wait_for_sensor(&alice)?;
    let ssh = stage.ssh_with_certificate(&alice)?;
    let work = stage.work("restart")?;
    let before = events::end(&sam)?;

    let mut shell = ssh.shell(TARGET)?;
    shell.type_keys("PS1='rea''dy$ '\r")?;
    shell.expect(0, "ready$ ")?;
    // Something in the session violates the policy all the time, and shows that it is alive.
    let script = work.join("loop.sh");
    std::fs::write(
        &script,
        format!(
            "n=0\nwhile [ $n -lt 600 ]; do\n  n=$((n+1))\n  /usr/bin/dd if=/dev/null of={0}/forbidden-$n 2>/dev/null\n  \
             touch {0}/tick-$n\n  sleep 0.1\ndone\n",
            work.display()
        ),
    )?;
    shell.type_keys(&format!("sh {} 2>/dev/null >/dev/null &\r", script.display()))?;
    let ticks = || count(&work, "tick-");
    wait::until("the loop to run", wait::PATIENCE, || Ok((ticks() > 3).then_some(())))?;

    stage.sensor()?.kill_hard()?;
    let at_kill = ticks();
    wait::until("the loop to go on without a sensor", wait::PATIENCE, || {
        Ok((ticks() > at_kill + 10).then_some(()))
    })?;
    let while_down = ticks();
    stage.start_sensor()?;
    stage.wait_for_sensor(&alice)?;

    // The same shell goes on.
    let mark = shell.mark();
    shell.type_keys("echo back-$((40+2))\r")?;
    shell.expect(mark, "back-42").context("the session did not survive")?;
    assert_eq!(count(&work, "forbidden-"), 0, "no decision was missed, also while the sensor was down");
    ensure!(while_down > at_kill);

    // Every denial is in the log, those of the gap too.
    shell.type_keys("kill %1\r")?;
    wait::until("the loop to end", wait::PATIENCE, || {
        let seen = ticks();
        std::thread::sleep(Duration::from_millis(600));
        Ok((ticks() == seen).then_some(()))
    })?;
    let tried = ticks();
    let mut told = (0, 0);
    wait::until("the records of the gap", wait::PATIENCE, || {
        let all = events::all(&sam, &[])?;
        let new: Vec<_> = all.iter().filter(|entry| entry.index >= before).collect();
        let denials = new.iter().filter(|entry| entry.is_exec_of("/usr/bin/dd") && entry.is_denial()).count();
        let lost: u64 =
            new.iter().filter_map(|entry| entry.record.loss.as_ref()).map(|loss| loss.count).sum();
        told = (denials, lost);
        // The loop was stopped between two lines: the last round may or may not have come to its denial.
        Ok((denials + usize::try_from(lost)? >= tried).then_some(()))
    })
    .with_context(|| format!("{tried} tries, but {} denials and {} losses in the log", told.0, told.1))?;
    shell.type_keys("exit 5\r")?;
    assert_eq!(shell.wait()?, 5);
    Ok(())
}

#[test]
fn a_killed_gateway_loses_nothing_it_acknowledged() -> Result<()> {
    let mut stage = stage()?;
    let sam = stage.signed_in("sam")?;
    let alice = stage.signed_in("alice")?;
    stage.wait_for_sensor(&alice)?;
    let ssh = stage.ssh_with_certificate(&alice)?;
    let mut shell = ssh.shell(TARGET)?;
    shell.type_keys("PS1='rea''dy$ '\r")?;
    shell.expect(0, "ready$ ")?;
    for _ in 0..20 {
        shell.type_keys("/usr/bin/dd if=/dev/null of=/nonexistent/x; true\r")?;
    }
    let acknowledged = wait::until("some records", wait::PATIENCE, || {
        let all = events::all(&sam, &[])?;
        Ok((all.iter().filter(|entry| entry.is_denial()).count() >= 5).then_some(all))
    })?;

    stage.gateway()?.kill_hard()?;
    // The client is told, and does not hang.
    let code = shell.wait().context("the client hangs after the gateway's death")?;
    assert_eq!(code, 255, "ssh says that the connection is gone: {}", shell.screen());
    let refused = alice.run(&["targets"])?;
    assert_eq!(refused.code(), 4, "cannot be reached: {}", refused.err());

    stage.start_gateway()?;
    let after = events::all(&sam, &[])?;
    for entry in &acknowledged {
        let kept = after.iter().find(|kept| kept.index == entry.index);
        assert_eq!(kept.map(|kept| &kept.record), Some(&entry.record), "record #{}", entry.index);
    }
    let verified = sam.run(&["verify"])?;
    assert_eq!(verified.code(), 0, "{}{}", verified.out(), verified.err());

    // And it works again: the sensor comes back by itself.
    stage.wait_for_sensor(&alice)?;
    let done = ssh.run(TARGET, "id -un")?;
    assert_eq!((done.code(), done.out().as_str()), (0, "root\n"), "{}", done.err());
    Ok(())
}

fn count(folder: &std::path::Path, prefix: &str) -> usize {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    entries.filter(|entry| entry.file_name().to_string_lossy().starts_with(prefix)).count()
}
