//! Configuration: TOML as written, then checked as a whole. All faults are reported at once.

use std::path::{Path, PathBuf};
use std::time::Duration;

use sallyport_evidence::note::Verifier;
use serde::Deserialize;

use crate::kernel::Mode;
use crate::unbrokered::Wanted;

/// The configuration file, unless another is named.
pub const DEFAULT_PATH: &str = "/etc/sallyport/sensor.toml";

/// [`Config::fail_closed_after`] if nothing is set.
const FAIL_CLOSED_AFTER: Duration = Duration::from_secs(30);
/// The least that can be set: the sensor says every second that it is alive, and a busy host may delay that.
const FAIL_CLOSED_LEAST: Duration = Duration::from_secs(5);

/// What `sallyport-sensor default-config` prints: every setting with its default.
pub const DEFAULT: &str = include_str!("../dist/sensor.toml");

/// A checked configuration.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// What must survive a reboot: key, certificate, last good policy, spool.
    pub state_dir: PathBuf,
    /// What is true of this boot only: sessions and their sockets.
    pub run_dir: PathBuf,
    /// Folder of pins on a BPF file system.
    pub pin_dir: PathBuf,
    /// Root of the cgroup2 hierarchy; found by itself if not set.
    pub cgroup_root: Option<PathBuf>,
    /// Wanted mode; none: the better one that works.
    pub mode: Option<Mode>,
    /// What is done about log-ins that did not come through the gateway.
    pub unbrokered: Wanted,
    /// Accounts for which that is never more than recording.
    pub break_glass: Vec<String>,
    /// Keys of policies' authors; not empty: a version that none of them signed is not taken from the gateway.
    pub policy_signers: Vec<Verifier>,
    /// Log filter, as `RUST_LOG`.
    pub log: String,
    /// Logs as JSON lines.
    pub log_json: bool,
    /// Sessions.
    pub sessions: Sessions,
    /// Silent for so long, the sensor counts as gone, and sessions can start nothing new. None: never.
    pub fail_closed_after: Option<Duration>,
    /// Most bytes of records kept while the gateway does not take them.
    pub spool_bytes: u64,
}

/// Section `[sessions]`.
#[derive(Clone, Debug, PartialEq)]
pub struct Sessions {
    /// At once, at most.
    pub max: usize,
    /// Channels of one session at most.
    pub max_channels: usize,
    /// Processes of one session at most.
    pub max_processes: u32,
    /// Variables taken from clients.
    pub accept_env: Vec<String>,
    /// Candidates for the sftp server.
    pub sftp_server: Vec<PathBuf>,
    /// Without a gateway for so long, a channel ends.
    pub reattach_grace: Duration,
    /// From SIGHUP to SIGKILL.
    pub hangup_grace: Duration,
}

/// The configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("the configuration `{path}` cannot be read")]
    Read {
        /// The file.
        path: PathBuf,
        /// Cause.
        #[source]
        source: std::io::Error,
    },
    /// It is not TOML, or has unknown settings.
    #[error("the configuration `{path}` is not valid: {message}")]
    Syntax {
        /// The file.
        path: PathBuf,
        /// The parser's text, with the place.
        message: String,
    },
    /// Settings have impossible values.
    #[error("the configuration has {} fault(s):\n{}", .0.len(), .0.iter().map(|fault| format!("  - {fault}")).collect::<Vec<_>>().join("\n"))]
    Faults(Vec<String>),
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Raw {
    state_dir: Option<PathBuf>,
    run_dir: Option<PathBuf>,
    pin_dir: Option<PathBuf>,
    cgroup_root: Option<PathBuf>,
    mode: Option<String>,
    fail_closed_after: Option<String>,
    unbrokered: Option<String>,
    break_glass: Option<Vec<String>>,
    policy_signers: Vec<String>,
    log: RawLog,
    sessions: RawSessions,
    spool: RawSpool,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RawLog {
    filter: Option<String>,
    format: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RawSessions {
    max: Option<usize>,
    max_channels: Option<usize>,
    max_processes: Option<u32>,
    accept_env: Option<Vec<String>>,
    sftp_server: Option<Vec<PathBuf>>,
    reattach_grace: Option<String>,
    hangup_grace: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RawSpool {
    max_mib: Option<u64>,
}

impl Config {
    /// Reads and checks a file. A missing file at the default path means all defaults.
    ///
    /// # Errors
    /// It cannot be read, or has faults.
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        let text = match std::fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound && path == Path::new(DEFAULT_PATH) => {
                String::new()
            }
            Err(source) => return Err(ConfigError::Read { path: path.into(), source }),
        };
        Self::parse(&text, path)
    }

    /// Checks a text.
    ///
    /// # Errors
    /// It has faults.
    pub fn parse(text: &str, path: &Path) -> Result<Self, ConfigError> {
        let raw: Raw = toml::from_str(text).map_err(|error| ConfigError::Syntax {
            path: path.into(),
            message: error.to_string().trim().to_owned(),
        })?;
        let mut faults = Vec::new();
        let config = raw.validate(&mut faults);
        if faults.is_empty() { Ok(config) } else { Err(ConfigError::Faults(faults)) }
    }
}

impl Raw {
    fn validate(self, faults: &mut Vec<String>) -> Config {
        let mut folder = |name: &str, value: Option<PathBuf>, default: &str| {
            let path = value.unwrap_or_else(|| default.into());
            if !path.is_absolute() {
                faults.push(format!("{name} = `{}`: must be an absolute path", path.display()));
            }
            path
        };
        let state_dir = folder("state_dir", self.state_dir, "/var/lib/sallyport-sensor");
        let run_dir = folder("run_dir", self.run_dir, "/run/sallyport-sensor");
        let pin_dir = folder("pin_dir", self.pin_dir, "/sys/fs/bpf/sallyport");
        // `/channels/`, an id of 36 characters, `/sock`: sun_path has 108 bytes, the last one zero.
        let longest = 107 - "/channels/".len() - 36 - "/sock".len();
        if run_dir.as_os_str().len() > longest {
            faults.push(format!("run_dir: at most {longest} bytes, since sockets below it have a limit"));
        }
        let mode = match self.mode.as_deref() {
            None | Some("auto") => None,
            Some("lsm") => Some(Mode::Lsm),
            Some("tracepoint") => Some(Mode::Tracepoint),
            Some(other) => {
                faults.push(format!("mode = `{other}`: must be `auto`, `lsm` or `tracepoint`"));
                None
            }
        };
        let unbrokered = match self.unbrokered.as_deref() {
            None | Some("record") => Wanted::Record,
            Some("enforce") => Wanted::Enforce,
            Some("off") => Wanted::Off,
            Some(other) => {
                faults.push(format!("unbrokered = `{other}`: must be `record`, `enforce` or `off`"));
                Wanted::Record
            }
        };
        let break_glass = self.break_glass.unwrap_or_else(|| vec!["root".into()]);
        if break_glass.iter().any(String::is_empty) {
            faults.push("break_glass: an account has no name".into());
        }
        let mut policy_signers = Vec::new();
        for text in &self.policy_signers {
            match Verifier::parse(text) {
                Ok(key) => policy_signers.push(key),
                Err(error) => faults.push(format!(
                    "policy_signers: `{text}`: {error}; write what `sallyport policy keygen` printed"
                )),
            }
        }
        let log_json = match self.log.format.as_deref() {
            None | Some("text") => false,
            Some("json") => true,
            Some(other) => {
                faults.push(format!("log.format = `{other}`: must be `text` or `json`"));
                false
            }
        };
        let log = self.log.filter.unwrap_or_else(|| "info".into());
        if let Err(error) = log.parse::<tracing_subscriber::EnvFilter>() {
            faults.push(format!("log.filter = `{log}`: {error}"));
        }
        let fail_closed_after = match self.fail_closed_after.as_deref() {
            None => Some(FAIL_CLOSED_AFTER),
            Some("never") => None,
            Some(text) => duration(text).filter(|time| *time >= FAIL_CLOSED_LEAST).or_else(|| {
                let least = FAIL_CLOSED_LEAST.as_secs();
                faults.push(format!(
                    "fail_closed_after = `{text}`: must be `never`, or like `30s` and at least {least} s"
                ));
                None
            }),
        };
        let mib = self.spool.max_mib.unwrap_or(512);
        if !(1..=1 << 20).contains(&mib) {
            faults.push(format!("spool.max_mib = {mib}: must be from 1 to 1048576"));
        }
        let sessions = self.sessions.validate(faults);
        let spool_bytes = mib.saturating_mul(1 << 20);
        Config {
            state_dir,
            run_dir,
            pin_dir,
            cgroup_root: self.cgroup_root,
            mode,
            unbrokered,
            break_glass,
            policy_signers,
            log,
            log_json,
            sessions,
            fail_closed_after,
            spool_bytes,
        }
    }
}

impl RawSessions {
    fn validate(self, faults: &mut Vec<String>) -> Sessions {
        let mut number = |name: &str, value: Option<usize>, default: usize, most: usize| {
            let value = value.unwrap_or(default);
            if !(1..=most).contains(&value) {
                faults.push(format!("sessions.{name} = {value}: must be from 1 to {most}"));
            }
            value
        };
        let max = number("max", self.max, 512, sallyport_sensor_abi::MAX_SESSIONS as usize);
        let max_channels = number("max_channels", self.max_channels, 64, 1_024);
        let tasks = sallyport_sensor_abi::TASKS_SOFT_LIMIT;
        let wanted = self.max_processes.map(|n| n as usize);
        let max_processes = number("max_processes", wanted, 4_096, tasks as usize);
        let accept_env = self
            .accept_env
            .unwrap_or_else(|| ["LANG", "LC_*", "COLORTERM", "NO_COLOR"].map(str::to_owned).to_vec());
        for pattern in &accept_env {
            let name = pattern.strip_suffix('*').unwrap_or(pattern);
            let good =
                !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
            // What the dynamic linker obeys would let a client run its own code in every program.
            if !good || name.starts_with("LD_") {
                faults.push(format!("sessions.accept_env: `{pattern}` is not acceptable"));
            }
        }
        let sftp_server = self.sftp_server.unwrap_or_else(|| {
            [
                "/usr/lib/openssh/sftp-server",
                "/usr/libexec/openssh/sftp-server",
                "/usr/lib/ssh/sftp-server",
                "/usr/libexec/sftp-server",
            ]
            .map(PathBuf::from)
            .to_vec()
        });
        for path in sftp_server.iter().filter(|path| !path.is_absolute()) {
            faults.push(format!("sessions.sftp_server: `{}` must be an absolute path", path.display()));
        }
        let mut time = |name: &str, value: Option<String>, default: Duration| match value {
            None => default,
            Some(text) => duration(&text).unwrap_or_else(|| {
                faults.push(format!("sessions.{name} = `{text}`: must be like `500ms`, `30s`, `5m` or `1h`"));
                default
            }),
        };
        let reattach_grace = time("reattach_grace", self.reattach_grace, Duration::from_mins(5));
        let hangup_grace = time("hangup_grace", self.hangup_grace, Duration::from_secs(5));
        let max_processes = u32::try_from(max_processes).unwrap_or(tasks);
        Sessions { max, max_channels, max_processes, accept_env, sftp_server, reattach_grace, hangup_grace }
    }
}

fn duration(text: &str) -> Option<Duration> {
    let unit = text.find(|c: char| !c.is_ascii_digit())?;
    let (number, unit) = text.split_at(unit);
    let number: u64 = number.parse().ok().filter(|n| *n <= 1_000_000)?;
    match unit {
        "ms" => Some(Duration::from_millis(number)),
        "s" => Some(Duration::from_secs(number)),
        "m" => Some(Duration::from_secs(number * 60)),
        "h" => Some(Duration::from_secs(number * 3_600)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Config, ConfigError> {
        Config::parse(text, Path::new("test.toml"))
    }

    #[test]
    fn the_printed_default_is_the_default() {
        let printed = parse(DEFAULT).expect("the default is valid");
        assert_eq!(printed, parse("").expect("nothing is valid"));
    }

    #[test]
    fn all_faults_come_at_once() {
        let error = parse("state_dir = 'x'\nmode = 'best'\nfail_closed_after = '1s'\n[sessions]\nmax = 0\naccept_env = ['LD_*']\nreattach_grace = '5'\n[spool]\nmax_mib = 0")
            .expect_err("it is wrong");
        let ConfigError::Faults(faults) = &error else { panic!("{error}") };
        assert_eq!(faults.len(), 7, "{error}");
    }

    #[test]
    fn log_ins_outside_of_the_gateway_are_recorded_unless_said_otherwise() {
        let config = parse("").expect("it is good");
        assert_eq!((config.unbrokered, config.break_glass), (Wanted::Record, vec!["root".to_owned()]));
        let config = parse("unbrokered = 'enforce'\nbreak_glass = []").expect("it is good");
        assert_eq!((config.unbrokered, config.break_glass), (Wanted::Enforce, Vec::new()));
        assert!(config.policy_signers.is_empty());
        let key = "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW";
        let config = parse(&format!("policy_signers = ['{key}']")).expect("it is good");
        assert_eq!(config.policy_signers[0].to_string(), key);
        assert!(
            parse("policy_signers = ['x']")
                .expect_err("it is wrong")
                .to_string()
                .contains("policy_signers: `x`")
        );
        let error = parse("unbrokered = 'deny'\nbreak_glass = ['']").expect_err("it is wrong");
        let ConfigError::Faults(faults) = &error else { panic!("{error}") };
        assert_eq!(faults.len(), 2, "{error}");
    }

    #[test]
    fn unknown_settings_are_named() {
        let error = parse("[sessions]\nmaximum = 3").expect_err("it is wrong").to_string();
        assert!(error.contains("maximum"), "{error}");
    }

    #[test]
    fn durations_have_units() {
        assert_eq!(duration("500ms"), Some(Duration::from_millis(500)));
        assert_eq!(duration("5m"), Some(Duration::from_secs(300)));
        for bad in ["", "5", "m", "5 m", "-1s", "99999999999999s"] {
            assert_eq!(duration(bad), None, "{bad}");
        }
    }
}
