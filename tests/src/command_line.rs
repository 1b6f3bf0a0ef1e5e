//! The `sallyport` command line in the hands of one person.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::browser::Browser;
use crate::child::{Finished, Running, finish};
use crate::{programs, wait};

/// A person with a home folder of their own.
#[derive(Clone, Debug)]
pub struct Person {
    /// What they type at the provider.
    pub name: String,
    /// Their home folder.
    pub home: PathBuf,
    gateway: String,
}

impl Person {
    /// A person who has never used Sallyport.
    ///
    /// # Errors
    /// The home folder cannot be made.
    pub fn new(name: &str, homes: &Path, gateway: &str) -> Result<Self> {
        let home = homes.join(name);
        std::fs::create_dir_all(&home)?;
        Ok(Self { name: name.to_owned(), home, gateway: gateway.to_owned() })
    }

    /// `user@example.org`, as the gateway knows them.
    #[must_use]
    pub fn user(&self) -> String {
        format!("{}@example.org", self.name)
    }

    /// `sallyport …` as this person.
    ///
    /// # Errors
    /// It has not been built.
    pub fn command(&self, arguments: &[&str]) -> Result<Command> {
        let mut command = Command::new(programs::path("sallyport")?);
        command
            .args(arguments)
            .env("HOME", &self.home)
            .env("SALLYPORT_GATEWAY", &self.gateway)
            .env("NO_COLOR", "1")
            .env_remove("XDG_CONFIG_HOME")
            .env_remove("XDG_STATE_HOME")
            .env_remove("SSH_AUTH_SOCK")
            .current_dir(&self.home);
        Ok(command)
    }

    /// Runs it to its end.
    ///
    /// # Errors
    /// It cannot be started, or does not end.
    pub fn run(&self, arguments: &[&str]) -> Result<Finished> {
        finish(&mut self.command(arguments)?, b"", wait::PATIENCE * 2)
    }

    /// Runs it with `--json`; every line it printed.
    ///
    /// # Errors
    /// It failed, or printed something else.
    pub fn json(&self, arguments: &[&str]) -> Result<Vec<Value>> {
        let arguments = [arguments, &["--json"]].concat();
        let finished = self.run(&arguments)?.success().with_context(|| format!("sallyport {arguments:?}"))?;
        let lines = finished.out();
        lines
            .lines()
            .map(|line| serde_json::from_str(line).with_context(|| format!("not JSON: {line}")))
            .collect()
    }

    /// `sallyport login`: starts it, and does in a browser what the address it prints asks for.
    ///
    /// # Errors
    /// The sign-in failed.
    pub fn login(&self, ca_sha256: &str) -> Result<()> {
        let log = self.home.join(format!("login-{}.log", std::process::id()));
        let _ = std::fs::remove_file(&log);
        let arguments =
            ["login", "--no-browser", "--no-agent", "--no-ssh-config", "--json", "--ca-sha256", ca_sha256];
        let mut login = Running::start("sallyport login", &mut self.command(&arguments)?, &log)?;
        let address = login.wait_for_line("where to sign in", |line| {
            let said: Value = serde_json::from_str(line).ok()?;
            Some(said["authorize_url"].as_str()?.to_owned())
        })?;
        let page = Browser::new().sign_in(&address, &self.name)?;
        if page.status >= 400 {
            bail!("the browser ended at {} with {}", page.url, page.status);
        }
        let code = login.wait(Duration::from_secs(60))?;
        anyhow::ensure!(code == 0, "sallyport login ended with {code}: {}", login.log());
        Ok(())
    }

    /// The host key CA that signing in left, in known_hosts form.
    #[must_use]
    pub fn known_hosts(&self) -> PathBuf {
        self.home.join(".ssh/sallyport/known_hosts")
    }

    /// The key that signing in left; its certificate is beside it.
    #[must_use]
    pub fn certified_key(&self) -> PathBuf {
        self.home.join(".ssh/sallyport/key")
    }
}
