//! What a sign-in leaves behind: which gateway, its pinned CA, the bearer token, the log's key.
//!
//! `$XDG_CONFIG_HOME/sallyport/gateways/NAME.json` (mode 0600), one per gateway, and `current`, which names the
//! one signed in to last. Checkpoints of the log go to `$XDG_STATE_HOME/sallyport`, and stay after a sign-out.

use std::{
    fmt,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use url::{Host, Url};

use crate::files::{self, FileError};

/// A profile is a few kilobytes; certificates of unusual size fit.
const LARGEST: u64 = 1 << 20;

/// The folders of the person that runs the command.
#[derive(Clone, Debug)]
pub struct Folders {
    /// `$HOME`.
    pub home: PathBuf,
    /// `$XDG_CONFIG_HOME/sallyport` or `~/.config/sallyport`.
    pub config: PathBuf,
    /// `$XDG_STATE_HOME/sallyport` or `~/.local/state/sallyport`.
    pub state: PathBuf,
}

impl Folders {
    /// From the environment. As the XDG specification asks, relative values count as unset.
    #[must_use]
    pub fn from_env() -> Option<Self> {
        let absolute = |name| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
        let home = absolute("HOME").or_else(|| {
            let user = nix::unistd::User::from_uid(nix::unistd::getuid()).ok().flatten()?;
            Some(user.dir)
        })?;
        Some(Self {
            config: absolute("XDG_CONFIG_HOME").unwrap_or_else(|| home.join(".config")).join("sallyport"),
            state: absolute("XDG_STATE_HOME").unwrap_or_else(|| home.join(".local/state")).join("sallyport"),
            home,
        })
    }
}

/// Why an address is not a gateway's.
#[derive(Debug, thiserror::Error)]
pub enum AddressError {
    /// Not a URL.
    #[error("`{0}` is not an address; write it like `https://gateway.example.org:8443`")]
    Form(String),
    /// Not TLS.
    #[error("`{0}` is not a TLS address; a gateway is only ever asked over https")]
    NotTls(String),
    /// Credentials, a path or a query.
    #[error("`{0}` has more than a host and a port")]
    TooMuch(String),
}

/// A gateway's address, `https://host[:port]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Address(Url);

impl Address {
    /// Reads `https://host[:port]` or `host[:port]`.
    ///
    /// # Errors
    /// See [`AddressError`].
    pub fn parse(text: &str) -> Result<Self, AddressError> {
        let full = if text.contains("://") { text.to_owned() } else { format!("https://{text}") };
        let url = Url::parse(&full).map_err(|_| AddressError::Form(text.to_owned()))?;
        if url.scheme() != "https" {
            return Err(AddressError::NotTls(text.to_owned()));
        }
        if url.host().is_none() {
            return Err(AddressError::Form(text.to_owned()));
        }
        let bare = url.username().is_empty()
            && url.password().is_none()
            && url.path() == "/"
            && url.query().is_none()
            && url.fragment().is_none();
        if bare { Ok(Self(url)) } else { Err(AddressError::TooMuch(text.to_owned())) }
    }

    /// Name or address, as TLS and TCP want it (IPv6 without brackets).
    #[must_use]
    pub fn host(&self) -> String {
        match self.0.host() {
            Some(Host::Domain(name)) => name.to_owned(),
            Some(Host::Ipv4(address)) => address.to_string(),
            Some(Host::Ipv6(address)) => address.to_string(),
            None => String::new(),
        }
    }

    /// 443 if the address names none.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.0.port_or_known_default().unwrap_or(443)
    }

    /// The name of files about this gateway.
    #[must_use]
    pub fn file_stem(&self) -> String {
        let safe = |c: char| if c.is_ascii_alphanumeric() || ".-".contains(c) { c } else { '_' };
        format!("{}_{}", self.host().chars().map(safe).collect::<String>(), self.port())
    }
}

impl fmt::Display for Address {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(self.0.as_str().trim_end_matches('/'))
    }
}

impl TryFrom<String> for Address {
    type Error = AddressError;
    fn try_from(text: String) -> Result<Self, AddressError> {
        Self::parse(&text)
    }
}

impl From<Address> for String {
    fn from(address: Address) -> Self {
        address.to_string()
    }
}

/// A sign-in.
#[derive(Clone, Serialize, Deserialize)]
pub struct Profile {
    /// The gateway.
    pub gateway: Address,
    /// Its X.509 CA, PEM: the only trust anchor.
    pub ca_pem: String,
    /// Bearer token.
    pub token: String,
    /// When the token ends, Unix milliseconds.
    pub expires_at_ms: i64,
    /// Who signed in.
    pub user: String,
    /// Verifier key of the evidence log, pinned at the first sign-in.
    pub log_key: String,
    /// The gateway's name for itself.
    pub gateway_name: String,
    /// Where its SSH door is.
    pub ssh_host: String,
    /// The SSH door's port.
    pub ssh_port: u16,
    /// The CA that signs the SSH host keys, OpenSSH one-line form.
    pub ssh_host_ca: String,
}

impl fmt::Debug for Profile {
    /// Without the token.
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("Profile")
            .field("gateway", &self.gateway)
            .field("user", &self.user)
            .finish_non_exhaustive()
    }
}

/// Why there is no usable profile.
#[derive(Debug, thiserror::Error)]
pub enum ProfileError {
    /// The file.
    #[error(transparent)]
    File(#[from] FileError),
    /// Its content.
    #[error("`{}` is damaged; sign in again", path.display())]
    Damaged {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        err: serde_json::Error,
    },
}

fn path_of(folders: &Folders, gateway: &Address) -> PathBuf {
    folders.config.join("gateways").join(format!("{}.json", gateway.file_stem()))
}

/// The gateway signed in to last.
///
/// # Errors
/// The file cannot be read.
pub fn current(folders: &Folders) -> Result<Option<Address>, ProfileError> {
    let content = files::read(&folders.config.join("current"), 4096)?;
    Ok(content
        .and_then(|bytes| String::from_utf8(bytes).ok())
        .and_then(|text| Address::parse(text.trim()).ok()))
}

/// The sign-in to that gateway, if there is one.
///
/// # Errors
/// See [`ProfileError`].
pub fn load(folders: &Folders, gateway: &Address) -> Result<Option<Profile>, ProfileError> {
    let path = path_of(folders, gateway);
    let Some(content) = files::read_secret(&path, LARGEST)? else { return Ok(None) };
    serde_json::from_slice(&content).map(Some).map_err(|err| ProfileError::Damaged { path, err })
}

/// Keeps a sign-in and makes its gateway the current one.
///
/// # Errors
/// The files cannot be written.
pub fn save(folders: &Folders, profile: &Profile) -> Result<(), ProfileError> {
    let path = path_of(folders, &profile.gateway);
    if let Some(dir) = path.parent() {
        files::private_dir(dir)?;
    }
    let json = serde_json::to_vec_pretty(profile)
        .map_err(|err| ProfileError::Damaged { path: path.clone(), err })?;
    files::replace(&path, &json, 0o600)?;
    files::replace(&folders.config.join("current"), format!("{}\n", profile.gateway).as_bytes(), 0o600)?;
    Ok(())
}

/// Forgets the token but keeps what is pinned (CA and log key), so that the next sign-in is checked against
/// them.
///
/// # Errors
/// The file cannot be written.
pub fn forget_token(folders: &Folders, profile: &Profile) -> Result<(), ProfileError> {
    save(folders, &Profile { token: String::new(), expires_at_ms: 0, ..profile.clone() })
}

/// Where the newest checkpoint seen of that gateway's log is kept.
#[must_use]
pub fn checkpoint_path(folders: &Folders, gateway: &Address) -> PathBuf {
    folders.state.join("checkpoints").join(gateway.file_stem())
}

/// `~/…` where it is below the home folder.
#[must_use]
pub fn display(path: &Path, home: &Path) -> String {
    match path.strip_prefix(home) {
        Ok(rest) => format!("~/{}", rest.display()),
        Err(_) => path.display().to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folders(dir: &Path) -> Folders {
        Folders { home: dir.to_owned(), config: dir.join("config"), state: dir.join("state") }
    }

    fn profile() -> Profile {
        Profile {
            gateway: Address::parse("gw.example.org:8443").expect("address"),
            ca_pem: "CA".to_owned(),
            token: "s3cret".to_owned(),
            expires_at_ms: 5,
            user: "alice@example.org".to_owned(),
            log_key: "log+0+k".to_owned(),
            gateway_name: "gw".to_owned(),
            ssh_host: "gw.example.org".to_owned(),
            ssh_port: 2222,
            ssh_host_ca: String::new(),
        }
    }

    #[test]
    fn addresses() {
        let address = Address::parse("gw.example.org:8443").expect("address");
        assert_eq!(address.to_string(), "https://gw.example.org:8443");
        assert_eq!((address.host().as_str(), address.port()), ("gw.example.org", 8443));
        assert_eq!(Address::parse("https://[::1]:7").expect("address").host(), "::1");
        for bad in ["http://gw", "https://a@gw", "https://gw/x", "https://gw?x", "", "https://"] {
            assert!(Address::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn kept_private_and_found_again() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().expect("temp dir");
        let folders = folders(dir.path());
        let kept = profile();
        assert!(load(&folders, &kept.gateway).expect("nothing yet").is_none());
        save(&folders, &kept).expect("saved");
        assert_eq!(current(&folders).expect("read"), Some(kept.gateway.clone()));
        let found = load(&folders, &kept.gateway).expect("read").expect("there");
        assert_eq!((found.token.as_str(), found.ssh_port), ("s3cret", 2222));
        let path = path_of(&folders, &kept.gateway);
        assert_eq!(std::fs::metadata(&path).expect("there").permissions().mode() & 0o777, 0o600);
        forget_token(&folders, &found).expect("saved");
        let found = load(&folders, &kept.gateway).expect("read").expect("there");
        assert_eq!((found.token.as_str(), found.log_key.as_str()), ("", "log+0+k"));
        std::fs::write(&path, "{").expect("written");
        assert!(matches!(load(&folders, &kept.gateway), Err(ProfileError::Damaged { .. })));
    }

    #[test]
    fn a_token_is_not_shown_by_debug() {
        assert!(!format!("{:?}", profile()).contains("s3cret"));
    }
}
