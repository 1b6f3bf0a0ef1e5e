//! A door with a provider and local hosts behind it, and the real OpenSSH client in front.

use crate::host::{LocalHosts, Log};
use crate::provider::Provider;
use sallyport_gateway::Gateway;
use sallyport_gateway::authority::ssh::SshAuthority;
use sallyport_gateway::config::Faults;
use sallyport_gateway::identity::{Credentials, OpenId};
use sallyport_gateway::ssh::hosts::Hosts;
use sallyport_gateway::ssh::{Door, listener};
use sallyport_gateway::state::State;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::sync::Arc;
use std::time::Duration;
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::process::Command;
use tokio_util::sync::CancellationToken;

pub(crate) struct Rig {
    pub(crate) dir: TempDir,
    pub(crate) provider: Arc<Provider>,
    pub(crate) door: Arc<Door>,
    pub(crate) log: Log,
    /// Ends the sessions on the hosts.
    pub(crate) over: CancellationToken,
    pub(crate) port: u16,
}

impl Rig {
    pub(crate) async fn start() -> Self {
        Self::with("").await
    }

    /// With more lines for `[ssh]`.
    pub(crate) async fn with(more: &str) -> Self {
        Self::assemble(more, None).await
    }

    /// In front of a real gateway, to which no host is connected.
    pub(crate) async fn before(gateway: &Gateway) -> Self {
        Self::assemble("", Some(gateway)).await
    }

    async fn assemble(more: &str, gateway: Option<&Gateway>) -> Self {
        let dir = tempfile::tempdir().expect("temp dir");
        let provider = Provider::start().await;
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
        let port = listener.local_addr().expect("address").port();
        let mut faults = Faults::default();
        let ssh = format!("listen = \"127.0.0.1:{port}\"\nhost = \"gw.test\"\nsign_in_wait = \"2s\"\n{more}");
        let ssh: sallyport_gateway::ssh::config::Raw = toml::from_str(&ssh).expect("toml");
        let openid = format!("issuer = \"{}\"\nclient_id = \"sallyport\"\n", provider.issuer);
        let openid: sallyport_gateway::identity::config::Raw = toml::from_str(&openid).expect("toml");
        let (ssh, openid) = (ssh.validate(&mut faults), openid.validate(&mut faults));
        let (Some(ssh), Some(openid)) = (ssh, openid) else { panic!("{faults}") };
        let (log, over) = (Log::default(), CancellationToken::new());
        let (state, hosts): (State, Arc<dyn Hosts>) = match gateway {
            Some(gateway) => (gateway.state.clone(), Arc::new(gateway.authorizer.clone())),
            None => {
                let state = State::open(&dir.path().join("state.db")).expect("opens");
                (state, Arc::new(LocalHosts { log: Arc::clone(&log), over: over.clone() }))
            }
        };
        let door = Door::new(
            ssh,
            "gw.test".to_owned(),
            hosts,
            OpenId::new(openid).expect("client"),
            Credentials::new(state),
            Arc::new(SshAuthority::open(dir.path()).expect("keys")),
            CancellationToken::new(),
        );
        let known = format!("@cert-authority * {}\n", door.authority.host_ca_line());
        std::fs::write(dir.path().join("known_hosts"), known).expect("writes");
        tokio::spawn(listener::serve(Arc::clone(&door), listener));
        Self { dir, provider, door, log, over, port }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A new key pair; returns the private key's file.
    pub(crate) fn key(&self, name: &str) -> PathBuf {
        let path = self.path(name);
        let made = std::process::Command::new("ssh-keygen")
            .args(["-q", "-t", "ed25519", "-N", "", "-f"])
            .arg(&path)
            .status()
            .expect("ssh-keygen runs");
        assert!(made.success());
        path
    }

    /// Options for `ssh`, `scp` and `sftp`. Only this key, no agent, no configuration of the machine.
    pub(crate) fn options(&self, key: Option<&Path>) -> Vec<String> {
        let mut options = vec![
            "-F".to_owned(),
            "none".to_owned(),
            "-o".to_owned(),
            format!("UserKnownHostsFile={}", self.path("known_hosts").display()),
            "-o".to_owned(),
            "GlobalKnownHostsFile=none".to_owned(),
            "-o".to_owned(),
            "StrictHostKeyChecking=yes".to_owned(),
            "-o".to_owned(),
            "HostKeyAlias=gw.test".to_owned(),
            "-o".to_owned(),
            "IdentityAgent=none".to_owned(),
            "-o".to_owned(),
            "IdentitiesOnly=yes".to_owned(),
        ];
        match key {
            Some(key) => options.extend(["-i".to_owned(), key.display().to_string()]),
            None => options.extend(["-o".to_owned(), "IdentityFile=none".to_owned()]),
        }
        options
    }

    pub(crate) fn command(&self, key: Option<&Path>) -> Command {
        let mut command = Command::new("ssh");
        command.args(self.options(key)).args(["-p", &self.port.to_string()]);
        command.kill_on_drop(true).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    /// Runs `ssh` with these arguments.
    pub(crate) async fn ssh(&self, key: &Path, args: &[&str]) -> Output {
        finish(self.command(Some(key)).args(args)).await
    }

    /// A key that is bound to Alice already.
    pub(crate) async fn bound_key(&self) -> PathBuf {
        let key = self.key("bound");
        let out = self.ssh(&key, &["web-1@127.0.0.1", "true"]).await;
        assert!(out.status.success(), "{}", text(&out.stderr));
        // Its session closes a little after its client.
        while !self.log().iter().any(|line| line.starts_with("close")) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        self.log.lock().expect("lock").clear();
        key
    }

    pub(crate) fn log(&self) -> Vec<String> {
        self.log.lock().expect("lock").clone()
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        self.door.shutdown.cancel();
    }
}

/// Runs it to the end, which must come.
pub(crate) async fn finish(command: &mut Command) -> Output {
    tokio::time::timeout(Duration::from_secs(60), command.output()).await.expect("ends").expect("runs")
}

pub(crate) fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}
