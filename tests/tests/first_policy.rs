//! The five commands of README.md, as they stand there: from nothing to a rule that is enforced in a running session.

use anyhow::{Context, Result, ensure};
use sallyport_e2e::bundles;
use sallyport_e2e::{Stage, StageOptions, events, wait};

/// The commands of the README's section, each split into words. What follows a `#` is for people.
fn commands() -> Result<Vec<Vec<String>>> {
    let readme = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../README.md"))?;
    let section =
        readme.split("## Your first rule, in five commands").nth(1).context("the section is gone")?;
    let block =
        section.split("```sh\n").nth(1).and_then(|rest| rest.split("```").next()).context("no commands")?;
    Ok(block.lines().filter(|line| !line.trim().is_empty()).map(words).collect())
}

/// Splits a line as a shell does, as far as the README needs it.
fn words(line: &str) -> Vec<String> {
    let (mut words, mut word, mut quoted) = (Vec::new(), String::new(), false);
    for c in line.chars() {
        match c {
            '"' => quoted = !quoted,
            '#' if !quoted && word.is_empty() => break,
            c if c.is_whitespace() && !quoted => {
                if !word.is_empty() {
                    words.push(std::mem::take(&mut word));
                }
            }
            c => word.push(c),
        }
    }
    if !word.is_empty() {
        words.push(word);
    }
    words
}

#[test]
fn a_new_user_enforces_a_rule_in_a_running_session_with_five_commands() -> Result<()> {
    let commands = commands()?;
    assert_eq!(commands.len(), 5, "{commands:?}");
    let bundle = bundles::small()?;
    let mut stage = Stage::start(&StageOptions { bundle, ..StageOptions::default() })?;
    let (sam, alice) = (stage.signed_in("sam")?, stage.signed_in("alice")?);
    stage.wait_for_sensor(&alice)?;
    let before = events::end(&sam)?;
    let work = stage.work("first")?;
    let file = |name: &str| work.join(name);
    let mut session = None;
    for command in &commands {
        let words: Vec<&str> = command.iter().map(String::as_str).collect();
        match words.as_slice() {
            ["ssh", target] => {
                let user = target.split('@').next().context("no user")?;
                let mut shell = stage.ssh_with_certificate(&alice)?.shell(user)?;
                shell.type_keys("PS1='rea''dy$ '\r")?;
                shell.expect(0, "ready$ ")?;
                // The control: until the policy is pushed, the program does its work in this session.
                std::fs::write(file("control"), "kept?")?;
                shell.type_keys(&format!("shred -u {}; echo d''one\r", file("control").display()))?;
                shell.expect(0, "done")?;
                ensure!(!file("control").exists(), "shred did not work before: {}", shell.screen());
                session = Some(shell);
            }
            ["sallyport", arguments @ ..] => {
                let ran = sam.run(arguments)?;
                ensure!(ran.code() == 0, "{command:?}: {}\n{}", ran.out(), ran.err());
                ensure!(!ran.out().contains("warning"), "{command:?}: {}", ran.out());
                if arguments.contains(&"push") {
                    let said = "web-1: in force, in running sessions too";
                    ensure!(ran.out().contains(said), "{}", ran.out());
                }
            }
            other => anyhow::bail!("the README has a command that nobody expected: {other:?}"),
        }
    }
    let mut shell = session.context("the README opens no session")?;
    // The same session, the same program: now it has no effect.
    std::fs::write(file("kept"), "kept!")?;
    let mark = shell.mark();
    shell.type_keys(&format!("shred -u {}; echo agai''n\r", file("kept").display()))?;
    shell.expect(mark, "again")?;
    assert_eq!(std::fs::read_to_string(file("kept"))?, "kept!");
    shell.expect(mark, "rule \"no-shred\"").context("the person was not told which rule it was")?;
    // And what is not forbidden goes on.
    let mark = shell.mark();
    shell.type_keys(&format!("ls {}; echo alive-$((40+2))\r", work.display()))?;
    shell.expect(mark, "kept")?;
    shell.expect(mark, "alive-42")?;
    wait::until("the denial to be in the log", wait::PATIENCE, || {
        let all = events::all(&sam, &[])?;
        let found = all
            .iter()
            .any(|entry| entry.index >= before && entry.is_exec_of("/usr/bin/shred") && entry.is_denial());
        Ok(found.then_some(()))
    })?;
    shell.type_keys("exit\r")?;
    assert_eq!(shell.wait()?, 0);
    Ok(())
}
