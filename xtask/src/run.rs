//! Runs other programs: says why, shows progress on a terminal, and shows their output only when it matters.

use std::io::{IsTerminal, Write};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// Says what is being done and why, on standard error.
pub(crate) fn say(text: impl std::fmt::Display) {
    eprintln!("xtask: {text}");
}

/// Runs `command` with its output passed through. `why` says what it is for.
pub(crate) fn loud(why: &str, command: &mut Command) -> Result<()> {
    say(why);
    let status = command.status().with_context(|| format!("start `{}`", shown(command)))?;
    if !status.success() {
        bail!("`{}` failed ({status})", shown(command));
    }
    Ok(())
}

/// Runs `command`, which may take long and says nothing of use unless it fails. On a terminal the
/// seconds are counted.
pub(crate) fn quiet(why: &str, command: &mut Command) -> Result<()> {
    let started = Instant::now();
    let log = tempfile::tempfile().context("make a temporary file for the output")?;
    let mut child = command
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log.try_clone()?)
        .spawn()
        .with_context(|| format!("start `{}`", shown(command)))?;
    let terminal = std::io::stderr().is_terminal();
    if !terminal {
        say(why);
    }
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        if terminal {
            eprint!("\rxtask: {why} ({} s) ", started.elapsed().as_secs());
            let _ = std::io::stderr().flush();
        }
        std::thread::sleep(Duration::from_millis(100));
    };
    if terminal {
        eprintln!("\rxtask: {why} ({} s) ", started.elapsed().as_secs());
    }
    if !status.success() {
        std::io::copy(&mut rewound(log)?, &mut std::io::stderr())?;
        bail!("`{}` failed ({status})", shown(command));
    }
    Ok(())
}

/// Runs `command` and gives back what it printed.
pub(crate) fn output(command: &mut Command) -> Result<String> {
    let Output { status, stdout, stderr } =
        command.stdin(Stdio::null()).output().with_context(|| format!("start `{}`", shown(command)))?;
    if !status.success() {
        bail!("`{}` failed ({status}): {}", shown(command), String::from_utf8_lossy(&stderr).trim());
    }
    Ok(String::from_utf8_lossy(&stdout).into_owned())
}

/// Where `program` is on PATH (the administrator's folders included, which a user's PATH may lack).
pub(crate) fn find(program: &str) -> Option<std::path::PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin", "/sbin"].iter().map(std::path::PathBuf::from))
        .map(|folder| folder.join(program))
        .find(|candidate| candidate.is_file())
}

/// Cargo of the same toolchain, at the repository's root.
pub(crate) fn cargo() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(crate::places::root());
    command
}

/// Refuses to go on without root, and says how to.
pub(crate) fn need_root(task: &str, why: &str) -> Result<()> {
    if nix::unistd::geteuid().is_root() {
        return Ok(());
    }
    bail!(
        "`cargo xtask {task}` needs root: {why}. Run it as root, for example \
         `sudo -E env PATH=\"$PATH\" cargo xtask {task}`"
    );
}

fn rewound(mut file: std::fs::File) -> Result<std::fs::File> {
    use std::io::Seek;
    file.rewind()?;
    Ok(file)
}

fn shown(command: &Command) -> String {
    let mut text = command.get_program().to_string_lossy().into_owned();
    for argument in command.get_args() {
        text.push(' ');
        text.push_str(&argument.to_string_lossy());
    }
    text
}
