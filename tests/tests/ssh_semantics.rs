//! Sessions behave as against `sshd`: the same commands run against a plain `sshd` on this computer and
//! through gateway and sensor, and what the client sees must be the same.

use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use sallyport_e2e::bundles;
use sallyport_e2e::child::{Finished, finish};
use sallyport_e2e::plain_sshd::PlainSshd;
use sallyport_e2e::ssh::Ssh;
use sallyport_e2e::{Stage, StageOptions};

const TARGET: &str = "web-1+root";

fn stage() -> Result<(Stage, Ssh)> {
    let bundle = bundles::small()?;
    let mut stage = Stage::start(&StageOptions { bundle, ..StageOptions::default() })?;
    let alice = stage.signed_in("alice")?;
    stage.wait_for_sensor(&alice)?;
    let ssh = stage.ssh_with_certificate(&alice)?;
    Ok((stage, ssh))
}

fn direct(sshd: &PlainSshd, line: &str, input: &[u8]) -> Result<Finished> {
    let mut command = Command::new("ssh");
    command.arg("-F").arg(&sshd.client_config).args(["-T", "-o", "BatchMode=yes", "direct", line]);
    finish(&mut command, input, Duration::from_secs(60))
}

#[test]
fn commands_end_and_speak_as_with_sshd() -> Result<()> {
    let (stage, ssh) = stage()?;
    let sshd = PlainSshd::start(&stage.folder().join("sshd"))?;
    let bytes: Vec<u8> = (0..=255u8).cycle().take(3 * 1024 * 1024 + 17).collect();
    let cases: [(&str, &str, &[u8]); 16] = [
        ("success", "true", b""),
        ("failure", "false", b""),
        ("an exit code", "exit 42", b""),
        ("the largest exit code", "exit 255", b""),
        ("an unknown program", "no-such-program-anywhere 2>/dev/null", b""),
        ("a signal", "kill -TERM $$", b""),
        ("a hard signal", "kill -KILL $$", b""),
        ("both outputs", "echo out; echo err >&2; echo out2", b""),
        ("no line end", "printf abc; printf def >&2", b""),
        ("binary both ways", "cat", &bytes),
        ("half-close", "wc -c; echo the end", b"12345"),
        ("input that is not read", "echo done", &bytes),
        ("output after input ends", "cat >/dev/null; sleep 0.2; echo late; exit 3", b"x"),
        ("much output", "seq 1 200000", b""),
        ("the account", "echo $HOME $USER $LOGNAME $SHELL; pwd; id -u", b""),
        ("quoting", r#"printf '%s\n' "a b" 'c"d' \$HOME"#, b""),
    ];
    for (what, line, input) in cases {
        let expected = direct(&sshd, line, input)?;
        let through = ssh.run_with(TARGET, line, input).with_context(|| what.to_owned())?;
        assert_eq!(through.code(), expected.code(), "{what}: exit code; it said {}", through.err());
        assert!(
            through.stdout == expected.stdout,
            "{what}: standard output differs ({} and {} bytes): {}",
            through.stdout.len(),
            expected.stdout.len(),
            through.err()
        );
        let announced = |finished: &Finished| -> String {
            finished
                .err()
                .lines()
                .filter(|line| !line.starts_with("sallyport:"))
                .collect::<Vec<_>>()
                .join("\n")
        };
        assert_eq!(announced(&through), announced(&expected), "{what}: standard error");
    }
    Ok(())
}

#[test]
fn files_are_copied_both_ways_unchanged() -> Result<()> {
    let (stage, ssh) = stage()?;
    let work = stage.work("copy")?;
    let bytes: Vec<u8> =
        (0..24 * 1024 * 1024u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let local = work.join("local.bin");
    std::fs::write(&local, &bytes)?;
    let text = |path: &std::path::Path| path.display().to_string();
    // Both protocols of scp: sftp, and the old one over a command.
    for (name, mode) in [("scp", None), ("scp-legacy", Some("-O"))] {
        let (up, down) = (work.join(format!("{name}.up")), work.join(format!("{name}.down")));
        let copy = |from: &str, to: &str| -> Result<()> {
            let mut arguments = vec!["-q", "-o", "BatchMode=yes", "-o", "User=web-1+root"];
            arguments.extend(mode);
            arguments.extend([from, to]);
            finish(&mut ssh.program("scp", &arguments), b"", Duration::from_secs(120))?.success().map(drop)
        };
        copy(&text(&local), &format!("gateway:{}", text(&up))).with_context(|| format!("{name} up"))?;
        copy(&format!("gateway:{}", text(&up)), &text(&down)).with_context(|| format!("{name} down"))?;
        assert!(std::fs::read(&up)? == bytes, "{name}: up");
        assert!(std::fs::read(&down)? == bytes, "{name}: down");
    }
    let down = work.join("sftp.down");
    let batch = format!("get {} {}\nmkdir {1}.d\nls {1}.d\nbye\n", text(&local), text(&down));
    let sftp = ["-q", "-o", "BatchMode=yes", "-o", "User=web-1+root", "-b", "-", "gateway"];
    finish(&mut ssh.program("sftp", &sftp), batch.as_bytes(), Duration::from_secs(120))?
        .success()
        .context("sftp")?;
    assert!(std::fs::read(&down)? == bytes, "sftp: down");
    assert!(work.join("sftp.down.d").is_dir());
    Ok(())
}

#[test]
fn terminals_have_size_keys_and_environment() -> Result<()> {
    let (_stage, ssh) = stage()?;
    let mut shell = ssh.shell(TARGET)?;
    shell.type_keys("PS1='rea''dy$ '\r")?;
    shell.expect(0, "ready$ ")?;
    let mark = shell.mark();
    shell.type_keys("stty size; tty; echo term=$TERM\r")?;
    shell.expect(mark, "40 120")?;
    shell.expect(mark, "/dev/pts/")?;
    // A bigger window.
    shell.resize(97, 31)?;
    let mark = shell.mark();
    shell.type_keys("sleep 1; stty size\r")?;
    shell.expect(mark, "31 97")?;
    // Ctrl-C ends the program, not the shell.
    let mark = shell.mark();
    shell.type_keys("sleep 1000 || echo interr''upted\r")?;
    std::thread::sleep(Duration::from_millis(500));
    shell.type_keys("\u{3}")?;
    shell.type_keys("\recho still-$((40+2))\r")?;
    shell.expect_in_turn(mark, &["still-42", "ready$ "])?;
    // Ctrl-D ends the shell, once that reads again: between two lines the terminal may drop it.
    shell.type_keys("\u{4}")?;
    assert_eq!(shell.wait()?, 0);
    Ok(())
}

#[test]
fn a_client_that_vanishes_takes_its_programs_with_it() -> Result<()> {
    let (stage, ssh) = stage()?;
    let pid_file = stage.work("vanish")?.join("pid");
    let mut shell = ssh.shell(TARGET)?;
    shell.type_keys(&format!("echo $$ > {}; exec sleep 1000\r", pid_file.display()))?;
    let pid: i32 = sallyport_e2e::wait::until("the program to start", Duration::from_secs(30), || {
        Ok(std::fs::read_to_string(&pid_file).ok().and_then(|text| text.trim().parse().ok()))
    })?;
    assert!(std::path::Path::new(&format!("/proc/{pid}")).exists());
    drop(shell);
    sallyport_e2e::wait::until("the program to be gone", Duration::from_secs(30), || {
        Ok((!std::path::Path::new(&format!("/proc/{pid}")).exists()).then_some(()))
    })?;
    Ok(())
}
