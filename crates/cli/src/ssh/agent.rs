//! ssh-agent, through the ssh-add that is installed: it knows every agent's quirks.

use std::{
    process::{Command, Stdio},
    time::Duration,
};

use super::SshFiles;

/// What came of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Agent {
    /// `SSH_AUTH_SOCK` is not set.
    None,
    /// The key is in the agent until the certificate ends.
    Added,
    /// The agent or ssh-add refused; this is what it said.
    Refused(String),
}

/// Adds key and certificate with a lifetime.
#[must_use]
pub fn add(files: &SshFiles, lifetime: Duration) -> Agent {
    if std::env::var_os("SSH_AUTH_SOCK").is_none_or(|value| value.is_empty()) {
        return Agent::None;
    }
    let seconds = lifetime.as_secs().clamp(1, 30 * 86_400).to_string();
    run(Command::new("ssh-add").args(["-q", "-t", &seconds]).arg(files.key()))
}

/// Takes key and certificate out again. Must run while their files are still there.
#[must_use]
pub fn remove(files: &SshFiles) -> Agent {
    if std::env::var_os("SSH_AUTH_SOCK").is_none_or(|value| value.is_empty()) || !files.key().exists() {
        return Agent::None;
    }
    run(Command::new("ssh-add").args(["-q", "-d"]).arg(files.key()))
}

fn run(command: &mut Command) -> Agent {
    // No terminal and no askpass: our key has no passphrase, and nothing may wait for an answer.
    let output = command.stdin(Stdio::null()).env_remove("DISPLAY").env_remove("SSH_ASKPASS").output();
    match output {
        Ok(output) if output.status.success() => Agent::Added,
        Ok(output) => Agent::Refused(crate::text::safe(String::from_utf8_lossy(&output.stderr).trim(), 200)),
        Err(err) => Agent::Refused(format!("cannot run ssh-add: {err}")),
    }
}
