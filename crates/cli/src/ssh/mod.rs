//! Making plain `ssh` work: a key with a short-lived certificate, the gateway's host CA, a configuration to
//! include, and the agent.

pub mod agent;
pub mod config;
pub mod include;
pub mod keys;

use std::path::PathBuf;

use crate::profile::Folders;

/// The files that this command keeps for ssh.
#[derive(Clone, Debug)]
pub struct SshFiles {
    /// `~/.ssh/sallyport`.
    pub dir: PathBuf,
    /// The person's own configuration.
    pub user_config: PathBuf,
}

impl SshFiles {
    /// Below the home folder.
    #[must_use]
    pub fn new(folders: &Folders) -> Self {
        let ssh = folders.home.join(".ssh");
        Self { dir: ssh.join("sallyport"), user_config: ssh.join("config") }
    }

    /// Private key.
    #[must_use]
    pub fn key(&self) -> PathBuf {
        self.dir.join("key")
    }

    /// Certificate; ssh and ssh-add look for it under this name.
    #[must_use]
    pub fn certificate(&self) -> PathBuf {
        self.dir.join("key-cert.pub")
    }

    /// What `~/.ssh/config` includes.
    #[must_use]
    pub fn config(&self) -> PathBuf {
        self.dir.join("config")
    }

    /// The host CA.
    #[must_use]
    pub fn known_hosts(&self) -> PathBuf {
        self.dir.join("known_hosts")
    }
}
