//! One run: OpenID provider, gateway and sensor as child processes, everything in one temporary folder.

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::child::{Running, finish};
use crate::command_line::Person;
use crate::openid::OpenId;
use crate::ssh::{Key, Ssh};
use crate::{programs, wait};

/// The name under which this computer joins.
pub const HOST: &str = "web-1";

/// Which OpenID provider a run uses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Provider {
    /// `sallyport-dev-issuer`.
    #[default]
    Development,
    /// The certified `oidc-provider` from npm; needs node.
    Certified,
}

/// How a run is set up.
#[derive(Clone, Debug)]
pub struct StageOptions {
    /// The OpenID provider.
    pub provider: Provider,
    /// The policy bundle that the gateway starts with.
    pub bundle: PathBuf,
    /// Start a sensor, and wait until it is connected.
    pub sensor: bool,
    /// How long `sallyport login` and its certificate are good for, as the configuration has it.
    pub certificate: String,
    /// More lines for the gateway's configuration, which end in its section `[policy]`; `ISSUER` and `GRPC` stand for the
    /// provider's URL and the gateway's address.
    pub gateway_config: String,
    /// What the gateway logs, as `RUST_LOG` has it, where the environment does not say.
    pub gateway_log: &'static str,
}

impl Default for StageOptions {
    fn default() -> Self {
        let (bundle, certificate) = (PathBuf::from("story"), "8h".to_owned());
        Self {
            provider: Provider::default(),
            bundle,
            sensor: true,
            certificate,
            gateway_config: String::new(),
            gateway_log: "info",
        }
    }
}

/// A run. Dropping it stops every process, takes the kernel programs out again and removes the folder.
pub struct Stage {
    // Fields are dropped in this order, after `Drop::drop` has stopped the sensor.
    sensor: Option<Running>,
    gateway: Option<Running>,
    openid: Option<OpenId>,
    folder: PathBuf,
    /// Where the gateway's services listen.
    pub addresses: Addresses,
    /// SHA-256 of the gateway's CA certificate.
    pub ca_sha256: String,
    gateway_log: &'static str,
}

/// Loopback addresses of the run.
#[derive(Clone, Copy, Debug)]
pub struct Addresses {
    /// SSH door.
    pub ssh: SocketAddr,
    /// gRPC.
    pub grpc: SocketAddr,
}

impl Stage {
    /// Sets everything up.
    ///
    /// # Errors
    /// Something does not start, or needs root.
    pub fn start(options: &StageOptions) -> Result<Self> {
        ensure!(
            nix::unistd::geteuid().is_root(),
            "this needs root: the sensor loads programs into the kernel"
        );
        let folder =
            tempfile::Builder::new().prefix("sallyport-").tempdir().context("make a temporary folder")?;
        // Local users other than root run their programs in folders below it.
        let public = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(folder.path(), public)?;
        let mut stage = Self {
            sensor: None,
            gateway: None,
            openid: None,
            addresses: Addresses { ssh: free_address()?, grpc: free_address()? },
            ca_sha256: String::new(),
            gateway_log: options.gateway_log,
            folder: folder.keep(),
        };
        for part in ["gateway", "sensor", "homes", "work"] {
            std::fs::create_dir(stage.folder.join(part))?;
        }
        let openid = OpenId::start(options.provider, &stage.folder)?;
        stage.write_gateway_config(&openid.issuer, options)?;
        stage.openid = Some(openid);
        stage.write_sensor_config()?;
        stage.start_gateway()?;
        let token;
        (token, stage.ca_sha256) = stage.invitation(HOST)?;
        if options.sensor {
            stage.join_sensor(&token)?;
            stage.start_sensor()?;
        }
        Ok(stage)
    }

    /// The folder of the run.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// A fresh folder for files that sessions touch.
    ///
    /// # Errors
    /// It cannot be made.
    pub fn work(&self, name: &str) -> Result<PathBuf> {
        let folder = self.folder.join("work").join(name);
        std::fs::create_dir_all(&folder)?;
        Ok(folder)
    }

    /// The provider.
    ///
    /// # Errors
    /// Never after a successful start.
    pub fn openid(&self) -> Result<&OpenId> {
        self.openid.as_ref().context("there is no OpenID provider")
    }

    /// A person with an empty home folder.
    ///
    /// # Errors
    /// The folder cannot be made.
    pub fn person(&self, name: &str) -> Result<Person> {
        let gateway = format!("https://127.0.0.1:{}", self.addresses.grpc.port());
        Person::new(name, &self.folder.join("homes"), &gateway)
    }

    /// A person who has signed in with `sallyport login`.
    ///
    /// # Errors
    /// The sign-in fails.
    pub fn signed_in(&self, name: &str) -> Result<Person> {
        let person = self.person(name)?;
        person.login(&self.ca_sha256).with_context(|| format!("sign in as {name}"))?;
        Ok(person)
    }

    /// An ssh client of `person` with a fresh key that the gateway has never seen. `knower` is somebody
    /// who has signed in, and so knows the host key CA.
    ///
    /// # Errors
    /// The client's files cannot be made.
    pub fn ssh(&self, person: &str, knower: &Person) -> Result<Ssh> {
        let folder = self.folder.join("homes").join(format!("{person}-ssh"));
        Ssh::new(&folder, self.addresses.ssh.port(), &knower.known_hosts(), Key::Fresh)
    }

    /// An ssh client with the certificate that `sallyport login` left.
    ///
    /// # Errors
    /// The client's files cannot be made.
    pub fn ssh_with_certificate(&self, person: &Person) -> Result<Ssh> {
        let folder = self.folder.join("homes").join(format!("{}-ssh-certificate", person.name));
        let key = person.certified_key();
        Ssh::new(&folder, self.addresses.ssh.port(), &person.known_hosts(), Key::File(&key))
    }

    /// Waits until the host's sensor is connected and enforces what is in force.
    ///
    /// # Errors
    /// It does not come.
    pub fn wait_for_sensor(&mut self, person: &Person) -> Result<serde_json::Value> {
        wait::until("the sensor to be connected", wait::PATIENCE * 2, || {
            self.check()?;
            let targets = person.json(&["targets"])?;
            let found = targets.into_iter().find(|target| target["host"] == HOST);
            Ok(found.filter(|target| {
                target["connected"] == true
                    && target["policy_version"].as_str().is_some_and(|it| !it.is_empty())
            }))
        })
        .with_context(|| format!("the sensor says:\n{}", self.sensor_log(30)))
    }

    /// Fails if one of the programs has ended by itself.
    ///
    /// # Errors
    /// It has.
    pub fn check(&mut self) -> Result<()> {
        [&mut self.gateway, &mut self.sensor].into_iter().flatten().try_for_each(Running::check)
    }

    /// The gateway's process.
    ///
    /// # Errors
    /// It does not run.
    pub fn gateway(&mut self) -> Result<&mut Running> {
        self.gateway.as_mut().context("the gateway does not run")
    }

    /// The sensor's process.
    ///
    /// # Errors
    /// It does not run.
    pub fn sensor(&mut self) -> Result<&mut Running> {
        self.sensor.as_mut().context("the sensor does not run")
    }

    /// The end of the gateway's log.
    #[must_use]
    pub fn gateway_log(&self, lines: usize) -> String {
        let log = std::fs::read_to_string(self.folder.join("gateway.log")).unwrap_or_default();
        crate::child::last_lines(&log, lines)
    }

    /// The end of the sensor's log.
    #[must_use]
    pub fn sensor_log(&self, lines: usize) -> String {
        let log = std::fs::read_to_string(self.folder.join("sensor.log")).unwrap_or_default();
        crate::child::last_lines(&log, lines)
    }

    /// Starts the gateway (again), and waits until its doors are open.
    ///
    /// # Errors
    /// It ends, or does not listen.
    pub fn start_gateway(&mut self) -> Result<()> {
        let mut command = self.gateway_command(&["run"])?;
        if std::env::var_os("RUST_LOG").is_none() {
            command.env("RUST_LOG", self.gateway_log);
        }
        let mut gateway = Running::start("the gateway", &mut command, &self.folder.join("gateway.log"))?;
        for door in [self.addresses.ssh, self.addresses.grpc] {
            wait::until("the gateway to listen", wait::PATIENCE, || {
                gateway.check()?;
                Ok(TcpStream::connect(door).ok())
            })?;
        }
        self.gateway = Some(gateway);
        Ok(())
    }

    /// Starts the sensor (again).
    ///
    /// # Errors
    /// It cannot be started.
    pub fn start_sensor(&mut self) -> Result<()> {
        let mut command = self.sensor_command(&["run"])?;
        self.sensor = Some(Running::start("the sensor", &mut command, &self.folder.join("sensor.log"))?);
        Ok(())
    }

    /// `sallyport-gateway SUBCOMMAND --config …`
    ///
    /// # Errors
    /// It has not been built.
    pub fn gateway_command(&self, arguments: &[&str]) -> Result<Command> {
        self.with_config("sallyport-gateway", "gateway.toml", arguments)
    }

    /// `sallyport-sensor SUBCOMMAND --config …`
    ///
    /// # Errors
    /// It has not been built.
    pub fn sensor_command(&self, arguments: &[&str]) -> Result<Command> {
        self.with_config("sallyport-sensor", "sensor.toml", arguments)
    }

    /// A one-time token for `host`.
    ///
    /// # Errors
    /// The gateway refuses.
    pub fn join_token(&self, host: &str) -> Result<String> {
        Ok(self.invitation(host)?.0)
    }

    /// A one-time token for `host`, and the fingerprint of the CA that the command to paste names.
    fn invitation(&self, host: &str) -> Result<(String, String)> {
        let mut command = self.gateway_command(&["join-token", "--host", host])?;
        let said = finish(&mut command, b"", wait::PATIENCE)?.success().context("make a join token")?;
        let command = said.err();
        let words: Vec<&str> = command.split_whitespace().collect();
        let at = words.iter().position(|word| *word == "--ca-sha256").context("join-token names no CA")?;
        let ca = words.get(at + 1).context("join-token names no CA")?;
        Ok((said.out().trim().to_owned(), (*ca).to_owned()))
    }

    /// Joins this computer with a token.
    ///
    /// # Errors
    /// The gateway or the sensor refuses.
    pub fn join_sensor(&self, secret: &str) -> Result<()> {
        let token = self.folder.join("sensor/token");
        std::fs::write(&token, secret)?;
        let gateway = format!("https://127.0.0.1:{}", self.addresses.grpc.port());
        let token_file = token.to_string_lossy();
        let arguments =
            ["join", "--gateway", &gateway, "--ca-sha256", &self.ca_sha256, "--token-file", &token_file];
        finish(&mut self.sensor_command(&arguments)?, b"", wait::PATIENCE)?
            .success()
            .context("join the sensor")?;
        Ok(())
    }

    fn with_config(&self, program: &str, config: &str, arguments: &[&str]) -> Result<Command> {
        let mut command = Command::new(programs::path(program)?);
        command.args(arguments).arg("--config").arg(self.folder.join(config));
        if std::env::var_os("RUST_LOG").is_none() {
            command.env("RUST_LOG", "info");
        }
        Ok(command)
    }

    fn write_gateway_config(&self, issuer: &str, options: &StageOptions) -> Result<()> {
        let text = format!(
            "name = \"gateway\"\nstate_dir = {state:?}\n\n\
             [ssh]\nlisten = \"{ssh}\"\nhost = \"127.0.0.1\"\nkey_binding = \"12h\"\n\
             certificate = \"{certificate}\"\n\n\
             [grpc]\nlisten = \"{grpc}\"\nnames = [\"localhost\", \"127.0.0.1\"]\n\n\
             [openid]\nissuer = \"{issuer}\"\nclient_id = \"sallyport\"\ncli_client_id = \"sallyport-cli\"\n\
             scopes = [\"openid\", \"email\", \"profile\", \"groups\"]\n\n\
             [policy]\nbundle = {bundle:?}\n",
            state = self.folder.join("gateway"),
            ssh = self.addresses.ssh,
            grpc = self.addresses.grpc,
            certificate = options.certificate,
            bundle = options.bundle,
        );
        let more = options
            .gateway_config
            .replace("ISSUER", issuer)
            .replace("GRPC", &format!("https://127.0.0.1:{}", self.addresses.grpc.port()));
        std::fs::write(self.folder.join("gateway.toml"), text + &more)
            .context("write the gateway's configuration")
    }

    fn write_sensor_config(&self) -> Result<()> {
        let text = format!(
            "state_dir = {state:?}\nrun_dir = {run:?}\npin_dir = {pins:?}\n",
            state = self.folder.join("sensor"),
            run = self.folder.join("run"),
            pins = self.pin_folder(),
        );
        std::fs::write(self.folder.join("sensor.toml"), text).context("write the sensor's configuration")
    }

    /// Where the run's kernel programs are pinned: a folder of the run's own on the bpf file system.
    fn pin_folder(&self) -> PathBuf {
        Path::new("/sys/fs/bpf").join(self.folder.file_name().unwrap_or_default())
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        if wait::interrupted() {
            wait::clean_up();
        }
        self.sensor = None;
        if let Ok(mut uninstall) = self.sensor_command(&["uninstall"]) {
            let _ = finish(&mut uninstall, b"", wait::PATIENCE);
        }
        self.gateway = None;
        self.openid = None;
        if std::thread::panicking() && std::env::var_os("SALLYPORT_KEEP_FAILED").is_some() {
            eprintln!("kept: {}", self.folder.display());
            return;
        }
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

/// A loopback address that is free now. Another process may take it before it is used; then the program
/// that wanted it fails and says so.
///
/// # Errors
/// There is none.
pub fn free_address() -> Result<SocketAddr> {
    Ok(TcpListener::bind(("127.0.0.1", 0))?.local_addr()?)
}
