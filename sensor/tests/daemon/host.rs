//! A host for tests: temporary folders, pins of its own, the real program.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use crate::gateway::{Gateway, TOKEN};

pub(crate) struct Host {
    folder: tempfile::TempDir,
    config: PathBuf,
    sensor: Option<Child>,
}

fn program() -> Command {
    Command::new(env!("CARGO_BIN_EXE_sallyport-sensor"))
}

impl Host {
    pub(crate) fn new() -> Self {
        Self::with("")
    }

    /// One that has joined a gateway and is connected to it.
    pub(crate) async fn connected(gateway: &Gateway) -> Self {
        let mut host = Self::new();
        host.join(gateway);
        host.start();
        crate::connected(gateway, 1).await;
        host
    }

    /// With further settings, of the configuration's top. Unless they speak of it, log-ins (of other tests that run at the
    /// same time) are not looked at.
    pub(crate) fn with(settings: &str) -> Self {
        let logins = if settings.contains("unbrokered") { "" } else { "unbrokered = 'off'" };
        let folder = tempfile::Builder::new().prefix("sp").tempdir().expect("a folder");
        let name = folder.path().file_name().expect("a name").to_string_lossy().into_owned();
        let pins = PathBuf::from("/sys/fs/bpf").join(format!("sallyport-test-{name}"));
        let config = folder.path().join("sensor.toml");
        let text = format!(
            "state_dir = '{0}/state'\nrun_dir = '{0}/run'\npin_dir = '{1}'\n{logins}\n{settings}\n[log]\nfilter = 'info'\n[sessions]\nhangup_grace = '500ms'\nreattach_grace = '20s'\n",
            folder.path().display(),
            pins.display()
        );
        std::fs::write(&config, text).expect("the configuration");
        Self { folder, config, sensor: None }
    }

    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    pub(crate) fn pins(&self) -> PathBuf {
        let name = self.folder.path().file_name().expect("a name").to_string_lossy().into_owned();
        PathBuf::from("/sys/fs/bpf").join(format!("sallyport-test-{name}"))
    }

    pub(crate) fn signal(&self, signal: nix::sys::signal::Signal) {
        let sensor = self.sensor.as_ref().expect("a running sensor");
        let pid = nix::unistd::Pid::from_raw(sensor.id().cast_signed());
        nix::sys::signal::kill(pid, signal).expect("signal");
    }

    pub(crate) fn run_dir(&self) -> PathBuf {
        self.folder.path().join("run")
    }

    pub(crate) fn state_dir(&self) -> PathBuf {
        self.folder.path().join("state")
    }

    pub(crate) fn call(&self, arguments: &[&str], token: Option<&str>) -> Output {
        let mut command = program();
        command.args(arguments).arg("--config").arg(&self.config).env_remove("SALLYPORT_JOIN_TOKEN");
        if let Some(token) = token {
            command.env("SALLYPORT_JOIN_TOKEN", token);
        }
        command.output().expect("it runs")
    }

    pub(crate) fn join(&self, gateway: &Gateway) {
        let output = self
            .call(&["join", "--gateway", &gateway.url(), "--ca-sha256", &gateway.ca_sha256()], Some(TOKEN));
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }

    pub(crate) fn start(&mut self) {
        let mut command = program();
        command.args(["run", "--config"]).arg(&self.config);
        self.spawn(command);
    }

    /// As somebody with this login uid would from a shell.
    pub(crate) fn start_from_login(&mut self, uid: u32) {
        let mut command = Command::new("/bin/bash");
        let script = format!("echo {uid} >/proc/self/loginuid && exec \"$@\"");
        command
            .args(["-c", &script, "bash", env!("CARGO_BIN_EXE_sallyport-sensor"), "run", "--config"])
            .arg(&self.config);
        self.spawn(command);
    }

    fn spawn(&mut self, mut command: Command) {
        let log = std::fs::File::options()
            .create(true)
            .append(true)
            .open(self.folder.path().join("log"))
            .expect("log");
        let sensor = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("the sensor starts");
        self.sensor = Some(sensor);
    }

    /// SIGKILL: no farewell.
    pub(crate) fn kill(&mut self) {
        if let Some(mut sensor) = self.sensor.take() {
            let _ = sensor.kill();
            let _ = sensor.wait();
        }
    }

    /// SIGTERM, as systemd stops it.
    pub(crate) fn stop(&mut self) {
        let Some(mut sensor) = self.sensor.take() else { return };
        let pid = nix::unistd::Pid::from_raw(sensor.id().cast_signed());
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).expect("signal");
        let deadline = Instant::now() + Duration::from_secs(20);
        while Instant::now() < deadline {
            if let Some(status) = sensor.try_wait().expect("wait") {
                assert!(status.success(), "{status}: {}", self.log());
                return;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        let _ = sensor.kill();
        panic!("the sensor does not stop: {}", self.log());
    }

    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        self.kill();
        if std::thread::panicking() {
            eprintln!("--- log of the sensor\n{}", self.log());
        }
        let _ = self.call(&["uninstall"], None);
    }
}

/// Whether the kernel side can be tried here; if not, says so.
pub(crate) fn can_enforce() -> bool {
    let output = Host::new().call(&["doctor", "--json"], None);
    let able = output.status.success();
    if !able {
        eprintln!("skipped: this host or build cannot enforce: {}", String::from_utf8_lossy(&output.stdout));
    }
    able
}
