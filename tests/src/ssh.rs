//! OpenSSH's own client, with a configuration of the run's: nothing of the machine's user is read.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::child::{Finished, Running, finish};
use crate::openid::OpenId;
use crate::terminal::Terminal;
use crate::wait;

/// A person's ssh client.
#[derive(Clone, Debug)]
pub struct Ssh {
    folder: PathBuf,
    config: PathBuf,
    port: u16,
    host: String,
}

/// Which key the client shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Key<'a> {
    /// A fresh one of its own.
    Fresh,
    /// This one (and the certificate beside it).
    File(&'a Path),
}

impl Ssh {
    /// A client in `folder` that knows the hosts of `known_hosts`, goes to the gateway's SSH door at
    /// `127.0.0.1:port`, and asks for nothing.
    ///
    /// # Errors
    /// The key or the configuration cannot be made.
    pub fn new(folder: &Path, port: u16, known_hosts: &Path, key: Key<'_>) -> Result<Self> {
        std::fs::create_dir_all(folder)?;
        let key = match key {
            Key::File(path) => path.to_owned(),
            Key::Fresh => fresh_key(folder)?,
        };
        let config = folder.join("config");
        let host = "127.0.0.1".to_owned();
        let slowness = crate::wait::slowness();
        let (alive, connect) = (15 * slowness, 30 * slowness);
        // `Host gateway` and not only -p and -l: `ssh -J gateway` reads it for the jump as well.
        let text = format!(
            "Host gateway\n  HostName {host}\n  Port {port}\n\
             Host *\n  IdentityFile {}\n  IdentitiesOnly yes\n  IdentityAgent none\n  \
             UserKnownHostsFile {}\n  GlobalKnownHostsFile /dev/null\n  StrictHostKeyChecking yes\n  \
             ServerAliveInterval {alive}\n  ConnectTimeout {connect}\n  ControlMaster no\n  ControlPath none\n  \
             PasswordAuthentication no\n  UpdateHostKeys no\n",
            key.display(),
            known_hosts.display()
        );
        std::fs::write(&config, text)?;
        Ok(Self { folder: folder.to_owned(), config, port, host })
    }

    /// `PROGRAM -F CONFIG …`, for ssh, scp and sftp.
    #[must_use]
    pub fn program(&self, program: &str, arguments: &[&str]) -> Command {
        let mut command = Command::new(program);
        command.arg("-F").arg(&self.config).args(arguments);
        command
            .env("HOME", &self.folder)
            .env_remove("SSH_AUTH_SOCK")
            .env_remove("SSH_ASKPASS")
            .current_dir(&self.folder);
        command
    }

    /// `ssh …`
    #[must_use]
    pub fn command(&self, arguments: &[&str]) -> Command {
        self.program("ssh", arguments)
    }

    /// Runs `line` on `target` (as in `web-1+root`), to its end.
    ///
    /// # Errors
    /// ssh cannot be started or does not end.
    pub fn run(&self, target: &str, line: &str) -> Result<Finished> {
        self.run_with(target, line, b"")
    }

    /// The same with standard input.
    ///
    /// # Errors
    /// As [`Ssh::run`].
    pub fn run_with(&self, target: &str, line: &str, input: &[u8]) -> Result<Finished> {
        let at = format!("{target}@gateway");
        finish(&mut self.command(&["-T", "-o", "BatchMode=yes", &at, line]), input, wait::PATIENCE * 2)
    }

    /// A shell on `target`, on a terminal.
    ///
    /// # Errors
    /// There is no terminal.
    pub fn shell(&self, target: &str) -> Result<Terminal> {
        Terminal::start(&self.command(&["-tt", "-o", "BatchMode=yes", &format!("{target}@gateway")]), 120, 40)
    }

    /// The first connection of a fresh key: waits for the link that the gateway shows, signs in there as
    /// `user`, and waits for the command's end. What was shown, and how it ended.
    ///
    /// # Errors
    /// No link was shown, or the sign-in failed.
    pub fn first_time(&self, openid: &OpenId, user: &str, arguments: &[&str]) -> Result<(String, i32)> {
        let log = self.folder.join(format!("first-time-{}.log", arguments.join("_").replace('/', "_")));
        let _ = std::fs::remove_file(&log);
        let mut ssh = Running::start("ssh", &mut self.command(arguments), &log)?;
        let link = wait::until("the sign-in link", wait::PATIENCE, || {
            let found = openid.device_link(&ssh.log());
            if found.is_none() {
                ssh.check()?;
            }
            Ok(found)
        })
        .with_context(|| format!("ssh showed: {}", ssh.log()))?;
        openid.approve(&link, user)?;
        let code = ssh.wait(Duration::from_secs(90))?;
        Ok((ssh.log(), code))
    }

    /// Where the client's configuration is, to print for people.
    #[must_use]
    pub fn config(&self) -> &Path {
        &self.config
    }

    /// The gateway's SSH door.
    #[must_use]
    pub fn door(&self) -> (String, u16) {
        (self.host.clone(), self.port)
    }
}

fn fresh_key(folder: &Path) -> Result<PathBuf> {
    let key = folder.join("id_ed25519");
    if !key.exists() {
        let mut keygen = Command::new("ssh-keygen");
        keygen.args(["-q", "-t", "ed25519", "-N", "", "-C", "sallyport-test", "-f"]).arg(&key);
        finish(&mut keygen, b"", wait::PATIENCE)?.success().context("make an ssh key")?;
    }
    Ok(key)
}
