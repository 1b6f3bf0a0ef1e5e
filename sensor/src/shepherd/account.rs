//! The local account a session becomes: may it log in, and with which environment and limits.
//!
//! What `sshd` leaves to PAM is done here from the same files: `/etc/nologin`, `/etc/shadow` (expiry),
//! `/etc/login.defs`, `/etc/environment`, `/etc/security/limits.conf` and `limits.d`.

use std::ffi::{CString, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use nix::sys::resource::Resource;
use nix::unistd::{Gid, Group, Uid, User, getgrouplist};

use super::protocol::Spec;

/// An account that may log in.
#[derive(Clone, Debug)]
pub struct Account {
    /// Name.
    pub name: String,
    /// User id.
    pub uid: Uid,
    /// Primary group.
    pub gid: Gid,
    /// Home directory.
    pub home: PathBuf,
    /// Login shell.
    pub shell: PathBuf,
    /// All groups, the primary one included.
    pub groups: Vec<Gid>,
    /// From `/etc/login.defs`.
    pub umask: u32,
    /// From `limits.conf`, in the order in which they are to be set: resource, soft, hard (none: leave it).
    pub limits: Vec<Limit>,
}

/// One resource limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limit {
    /// Which.
    pub resource: Resource,
    /// New soft limit.
    pub soft: Option<u64>,
    /// New hard limit.
    pub hard: Option<u64>,
}

/// Why an account cannot log in; the person reads it.
#[derive(Debug, thiserror::Error)]
pub enum AccountError {
    /// No such account.
    #[error("there is no local user `{0}` on this host")]
    Unknown(String),
    /// The user database cannot be asked.
    #[error("the local user `{name}` cannot be looked up: {source}")]
    Lookup {
        /// Account.
        name: String,
        /// Cause.
        source: nix::Error,
    },
    /// `/etc/nologin` or `/run/nologin`.
    #[error("this host lets nobody in now ({path}): {text}")]
    NoLogin {
        /// Which file.
        path: &'static str,
        /// What it says.
        text: String,
    },
    /// Expired by `/etc/shadow`.
    #[error("the local account `{0}` has expired; ask the host's administrator to extend it (`chage -E`)")]
    Expired(String),
    /// The shell is one that lets nobody in.
    #[error("the local account `{name}` is closed: its shell is {shell}")]
    Closed {
        /// Account.
        name: String,
        /// Shell.
        shell: PathBuf,
    },
    /// The shell is missing or cannot be executed.
    #[error("the login shell of `{name}`, {shell}, does not exist or cannot be executed")]
    Shell {
        /// Account.
        name: String,
        /// Shell.
        shell: PathBuf,
    },
    /// Not root, and another user is asked for.
    #[error("the sensor does not run as root, so it cannot become `{0}`")]
    NotRoot(String),
}

/// Looks an account up and checks that it may log in now.
///
/// # Errors
/// It may not, and why.
pub fn admit(name: &str) -> Result<Account, AccountError> {
    let user = User::from_name(name)
        .map_err(|source| AccountError::Lookup { name: name.into(), source })?
        .ok_or_else(|| AccountError::Unknown(name.into()))?;
    if !Uid::effective().is_root() && user.uid != Uid::effective() {
        return Err(AccountError::NotRoot(name.into()));
    }
    if !user.uid.is_root() {
        no_login()?;
    }
    if let Some(line) = shadow_line(name)
        && is_expired(&line, today())
    {
        return Err(AccountError::Expired(name.into()));
    }
    let shell = if user.shell.as_os_str().is_empty() { PathBuf::from("/bin/sh") } else { user.shell };
    check_shell(name, &shell)?;
    let groups = CString::new(name)
        .ok()
        .and_then(|name| getgrouplist(&name, user.gid).ok())
        .unwrap_or_else(|| vec![user.gid]);
    let login_defs = read("/etc/login.defs");
    let umask = setting(&login_defs, "UMASK").and_then(|v| u32::from_str_radix(v, 8).ok());
    let limits = limits_for(name, &groups, &limits_files());
    let (uid, gid, home) = (user.uid, user.gid, user.dir);
    Ok(Account {
        name: name.into(),
        uid,
        gid,
        home,
        shell,
        groups,
        umask: umask.unwrap_or(0o022) & 0o777,
        limits,
    })
}

/// The environment of the leader: what `sshd` sets, `/etc/environment`, what the client sent, the terminal.
#[must_use]
pub fn environment(account: &Account, spec: &Spec, tty: Option<&str>) -> Vec<(OsString, OsString)> {
    let mut env: Vec<(OsString, OsString)> = Vec::new();
    let mut set = |name: &str, value: OsString| {
        let name = OsString::from(name);
        env.retain(|(known, _)| *known != name);
        env.push((name, value));
    };
    let login_defs = read("/etc/login.defs");
    let (key, fallback) = if account.uid.is_root() {
        ("ENV_SUPATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
    } else {
        ("ENV_PATH", "/usr/local/bin:/usr/bin:/bin:/usr/local/games:/usr/games")
    };
    let path = setting(&login_defs, key).map_or(fallback, |value| value.trim_start_matches("PATH="));
    set("PATH", path.into());
    for (name, value) in parse_environment(&read("/etc/environment")) {
        set(&name, value.into());
    }
    for (name, value) in &spec.env {
        set(name, OsString::from_vec(value.clone()));
    }
    set("USER", account.name.clone().into());
    set("LOGNAME", account.name.clone().into());
    set("HOME", account.home.clone().into());
    set("SHELL", account.shell.clone().into());
    set("MAIL", format!("/var/mail/{}", account.name).into());
    if !spec.client.is_empty() {
        let server_port = spec.server.rsplit(' ').next().unwrap_or("22");
        set("SSH_CLIENT", format!("{} {server_port}", spec.client).into());
        set("SSH_CONNECTION", format!("{} {}", spec.client, spec.server).into());
    }
    if let (Some(tty), Some(pty)) = (tty, &spec.pty) {
        set("SSH_TTY", tty.into());
        set("TERM", pty.term.clone().into());
    }
    // A zero byte would cut the block short.
    env.retain(|(name, value)| !name.as_bytes().contains(&0) && !value.as_bytes().contains(&0));
    env
}

fn no_login() -> Result<(), AccountError> {
    for path in ["/etc/nologin", "/run/nologin"] {
        if Path::new(path).exists() {
            let text: String = read(path).trim().chars().take(500).collect();
            return Err(AccountError::NoLogin { path, text });
        }
    }
    Ok(())
}

fn check_shell(name: &str, shell: &Path) -> Result<(), AccountError> {
    let file = shell.file_name().unwrap_or_default();
    if file == "nologin" || file == "false" {
        return Err(AccountError::Closed { name: name.into(), shell: shell.into() });
    }
    let runs = std::fs::metadata(shell).is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o111 != 0);
    if runs { Ok(()) } else { Err(AccountError::Shell { name: name.into(), shell: shell.into() }) }
}

fn shadow_line(name: &str) -> Option<String> {
    let text = read("/etc/shadow");
    text.lines().find(|line| line.split(':').next() == Some(name)).map(str::to_owned)
}

/// Field 8 of shadow(5): days since the epoch on which the account expires.
fn is_expired(line: &str, today: u64) -> bool {
    let expires = line.split(':').nth(7).and_then(|field| field.parse::<u64>().ok());
    expires.is_some_and(|day| today >= day)
}

fn today() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs() / 86_400)
}

fn read(path: impl AsRef<Path>) -> String {
    std::fs::read(path).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
}

/// The value of a key in `login.defs` form.
fn setting<'a>(text: &'a str, key: &str) -> Option<&'a str> {
    text.lines().find_map(|line| {
        let mut words = line.split_whitespace();
        (words.next() == Some(key)).then(|| words.next()).flatten()
    })
}

/// `pam_env`'s `/etc/environment`: `KEY=value`, optionally after `export`, optionally quoted.
fn parse_environment(text: &str) -> Vec<(String, String)> {
    let mut env = Vec::new();
    for line in text.lines().map(str::trim) {
        let line = line.strip_prefix("export ").unwrap_or(line).trim_start();
        let Some((name, value)) = line.split_once('=').filter(|_| !line.starts_with('#')) else { continue };
        let good = !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
        let quoted = |quote: char| value.strip_prefix(quote).and_then(|rest| rest.strip_suffix(quote));
        if good {
            env.push((name.to_owned(), quoted('"').or_else(|| quoted('\'')).unwrap_or(value).to_owned()));
        }
    }
    env
}

fn limits_files() -> String {
    let mut paths: Vec<PathBuf> = std::fs::read_dir("/etc/security/limits.d")
        .map(|dir| dir.filter_map(|entry| Some(entry.ok()?.path())).collect())
        .unwrap_or_default();
    paths.retain(|path| path.extension().is_some_and(|ext| ext == "conf"));
    paths.sort();
    paths.insert(0, PathBuf::from("/etc/security/limits.conf"));
    paths.iter().map(read).collect::<Vec<_>>().join("\n")
}

/// limits.conf(5): a line for the user beats one for a group, which beats `*`; `*` and groups do not
/// apply to root; among equals the last one counts.
fn limits_for(name: &str, groups: &[Gid], text: &str) -> Vec<Limit> {
    let mut found: Vec<(Resource, u8, u8, Limit)> = Vec::new();
    for line in text.lines() {
        let line = line.split('#').next().unwrap_or_default();
        let words: Vec<&str> = line.split_whitespace().collect();
        let [domain, kind, item, value] = words[..] else { continue };
        let Some((resource, unit)) = resource(item) else { continue };
        let Some(rank) = rank(domain, name, groups) else { continue };
        let Some(value) = limit_value(value, unit) else { continue };
        let entry = match found.iter_mut().find(|(known, ..)| *known == resource) {
            Some(entry) => entry,
            None => {
                found.push((resource, 0, 0, Limit { resource, soft: None, hard: None }));
                let last = found.len() - 1;
                &mut found[last]
            }
        };
        if kind != "hard" && rank >= entry.1 {
            (entry.1, entry.3.soft) = (rank, Some(value));
        }
        if kind != "soft" && rank >= entry.2 {
            (entry.2, entry.3.hard) = (rank, Some(value));
        }
    }
    found.into_iter().map(|(.., limit)| limit).collect()
}

fn rank(domain: &str, name: &str, groups: &[Gid]) -> Option<u8> {
    if domain == name {
        return Some(3);
    }
    if name == "root" {
        return None;
    }
    if domain == "*" {
        return Some(1);
    }
    let group = Group::from_name(domain.strip_prefix('@')?).ok().flatten()?;
    groups.contains(&group.gid).then_some(2)
}

/// The resource and the unit of its values.
fn resource(item: &str) -> Option<(Resource, u64)> {
    Some(match item {
        "core" => (Resource::RLIMIT_CORE, 1024),
        "data" => (Resource::RLIMIT_DATA, 1024),
        "fsize" => (Resource::RLIMIT_FSIZE, 1024),
        "memlock" => (Resource::RLIMIT_MEMLOCK, 1024),
        "nofile" => (Resource::RLIMIT_NOFILE, 1),
        "rss" => (Resource::RLIMIT_RSS, 1024),
        "stack" => (Resource::RLIMIT_STACK, 1024),
        "cpu" => (Resource::RLIMIT_CPU, 60),
        "nproc" => (Resource::RLIMIT_NPROC, 1),
        "as" => (Resource::RLIMIT_AS, 1024),
        "locks" => (Resource::RLIMIT_LOCKS, 1),
        "sigpending" => (Resource::RLIMIT_SIGPENDING, 1),
        "msgqueue" => (Resource::RLIMIT_MSGQUEUE, 1),
        "rtprio" => (Resource::RLIMIT_RTPRIO, 1),
        _ => return None,
    })
}

fn limit_value(value: &str, unit: u64) -> Option<u64> {
    match value {
        "unlimited" | "infinity" | "-1" => Some(libc::RLIM_INFINITY),
        number => number.parse::<u64>().ok().map(|n| n.saturating_mul(unit)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_follow_the_manual() {
        let text = "# comment\n* soft nofile 100\n* - nproc 7\nann hard nofile 300\n* hard nofile 200\nann soft core unlimited\nbad line\n* soft nofile x";
        let limits = limits_for("ann", &[], text);
        let find = |resource| limits.iter().find(|limit| limit.resource == resource).copied();
        let limit = |resource, soft, hard| Some(Limit { resource, soft, hard });
        assert_eq!(find(Resource::RLIMIT_NOFILE), limit(Resource::RLIMIT_NOFILE, Some(100), Some(300)));
        assert_eq!(find(Resource::RLIMIT_NPROC), limit(Resource::RLIMIT_NPROC, Some(7), Some(7)));
        assert_eq!(
            find(Resource::RLIMIT_CORE),
            limit(Resource::RLIMIT_CORE, Some(libc::RLIM_INFINITY), None)
        );
        assert_eq!(limits_for("root", &[], text), []);
    }

    #[test]
    fn expiry_is_a_day() {
        assert!(is_expired("u:!:19000:0:99999:7::100:", 100));
        assert!(!is_expired("u:!:19000:0:99999:7::101:", 100));
        assert!(!is_expired("u:!:19000:0:99999:7:::", 100));
    }

    #[test]
    fn environment_file_is_parsed_as_pam_env_does() {
        let env = parse_environment("# no\nA=1\nexport B=\"two words\"\nC='x'\nbad-name=1\n=2\nD=\n");
        let pairs: Vec<_> = env.iter().map(|(a, b)| (a.as_str(), b.as_str())).collect();
        assert_eq!(pairs, [("A", "1"), ("B", "two words"), ("C", "x"), ("D", "")]);
    }

    #[test]
    fn unknown_and_closed_accounts_are_refused() {
        assert!(matches!(admit("no-such-user-here"), Err(AccountError::Unknown(_))));
        assert!(matches!(check_shell("x", Path::new("/usr/sbin/nologin")), Err(AccountError::Closed { .. })));
        assert!(matches!(check_shell("x", Path::new("/no/such/shell")), Err(AccountError::Shell { .. })));
        assert!(check_shell("x", Path::new("/bin/sh")).is_ok());
    }
}
