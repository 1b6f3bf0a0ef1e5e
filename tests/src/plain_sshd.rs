//! A plain `sshd` on a loopback port, with its own configuration and host key: what Sallyport is compared with.

use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::child::{Running, finish};
use crate::stage::free_address;
use crate::wait;

/// A running `sshd` that lets root in with one key.
pub struct PlainSshd {
    /// Where it listens.
    pub address: SocketAddr,
    /// The client's configuration: `Host direct`, and `Host jumped` through it to itself.
    pub client_config: PathBuf,
    _running: Running,
}

impl PlainSshd {
    /// Starts it with its files in `folder`.
    ///
    /// # Errors
    /// `sshd` is not installed or does not start.
    pub fn start(folder: &Path) -> Result<Self> {
        std::fs::create_dir_all(folder)?;
        // StrictModes looks at the folders above the key file.
        std::fs::set_permissions(folder, std::os::unix::fs::PermissionsExt::from_mode(0o700))?;
        for name in ["host_key", "client_key"] {
            let mut keygen = Command::new("ssh-keygen");
            keygen.args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(folder.join(name));
            finish(&mut keygen, b"", wait::PATIENCE)?.success()?;
        }
        std::fs::copy(folder.join("client_key.pub"), folder.join("authorized_keys"))?;
        // sshd refuses to start without the folder of its privilege separation.
        std::fs::create_dir_all("/run/sshd").context("make /run/sshd, which sshd wants")?;
        let address = free_address()?;
        let at = |name: &str| folder.join(name).display().to_string();
        let config = format!(
            "ListenAddress {address}\nHostKey {}\nAuthorizedKeysFile {}\nPidFile none\nUsePAM no\n\
             PasswordAuthentication no\nKbdInteractiveAuthentication no\nPermitRootLogin yes\nStrictModes no\n\
             Subsystem sftp internal-sftp\nMaxStartups 100\nMaxSessions 100\nPrintMotd no\n",
            at("host_key"),
            at("authorized_keys")
        );
        std::fs::write(folder.join("sshd_config"), config)?;
        let mut command = Command::new("/usr/sbin/sshd");
        command.args(["-D", "-e", "-f"]).arg(folder.join("sshd_config"));
        let mut running = Running::start("sshd", &mut command, &folder.join("sshd.log"))?;
        wait::until("sshd to listen", wait::PATIENCE, || {
            running.check()?;
            Ok(TcpStream::connect(address).ok())
        })?;
        let host_key = std::fs::read_to_string(folder.join("host_key.pub"))?;
        std::fs::write(folder.join("known_hosts"), format!("* {host_key}"))?;
        let client = format!(
            "Host direct jumped\n  HostName 127.0.0.1\n  Port {port}\n  User root\n\
             Host jumped\n  ProxyJump direct\n\
             Host *\n  IdentityFile {key}\n  IdentitiesOnly yes\n  IdentityAgent none\n  UserKnownHostsFile {known}\n  \
             GlobalKnownHostsFile /dev/null\n  StrictHostKeyChecking yes\n  UpdateHostKeys no\n  ControlMaster no\n",
            port = address.port(),
            key = at("client_key"),
            known = at("known_hosts"),
        );
        let client_config = folder.join("ssh_config");
        std::fs::write(&client_config, client)?;
        Ok(Self { address, client_config, _running: running })
    }
}
