//! One line in `~/.ssh/config`: `Include sallyport/config`, at the top, once.

use std::path::Path;

use super::SshFiles;
use crate::files::{self, FileError};

/// An ssh configuration larger than this is no ssh configuration.
const LARGEST: u64 = 4 << 20;
const REMARK: &str = "# Added by `sallyport login`; it must come before any Host block.";

/// What was done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Done {
    /// The line was added.
    Added,
    /// It was there.
    AlreadyThere,
}

/// Puts the line into the person's configuration, which is made if there is none.
///
/// # Errors
/// The file cannot be read or written.
pub fn ensure(files: &SshFiles, home: &Path) -> Result<Done, FileError> {
    let before = files::read(&files.user_config, LARGEST)?.unwrap_or_default();
    let directive = directive(files, home, account_home().as_deref());
    let Some(after) = with_include(&before, &directive) else { return Ok(Done::AlreadyThere) };
    if let Some(dir) = files.user_config.parent() {
        files::private_dir(dir)?;
    }
    let mode = std::fs::metadata(&files.user_config).map_or(0o600, |facts| {
        use std::os::unix::fs::PermissionsExt;
        facts.permissions().mode() & 0o777
    });
    files::replace(&files.user_config, &after, mode)?;
    Ok(Done::Added)
}

fn account_home() -> Option<std::path::PathBuf> {
    nix::unistd::User::from_uid(nix::unistd::getuid()).ok().flatten().map(|user| user.dir)
}

/// ssh resolves a relative path below the home folder of the account, whatever `HOME` says; where these differ
/// only an absolute path means what we mean.
fn directive(files: &SshFiles, home: &Path, account_home: Option<&Path>) -> String {
    if account_home == Some(home) {
        "Include sallyport/config".to_owned()
    } else {
        format!("Include {}", super::config::quoted(&files.config()))
    }
}

/// The configuration with the line at its top; none if it has it already where it counts, before any block.
fn with_include(before: &[u8], directive: &str) -> Option<Vec<u8>> {
    let text = String::from_utf8_lossy(before);
    let there = text
        .lines()
        .map(str::trim)
        .take_while(|line| {
            let keyword = line.split([' ', '\t', '=']).next().unwrap_or_default();
            !keyword.eq_ignore_ascii_case("host") && !keyword.eq_ignore_ascii_case("match")
        })
        .any(|line| line == directive);
    if there {
        return None;
    }
    let mut after = format!("{REMARK}\n{directive}\n\n").into_bytes();
    after.extend_from_slice(before);
    Some(after)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINE: &str = "Include sallyport/config";

    #[test]
    fn added_once_and_nothing_else_changes() {
        let before = b"Host x\n  User y\n\xff not utf-8\n";
        let once = with_include(before, LINE).expect("added");
        assert!(once.ends_with(before), "what was there stays, byte for byte");
        assert!(String::from_utf8_lossy(&once).contains(&format!("\n{LINE}\n")));
        assert_eq!(with_include(&once, LINE), None, "a second time changes nothing");
    }

    #[test]
    fn inside_a_block_it_does_not_count() {
        let before = format!("Host x\n  {LINE}\n");
        assert!(with_include(before.as_bytes(), LINE).is_some());
        let before = format!("# mine\n\t{LINE}\nHost x\n");
        assert!(with_include(before.as_bytes(), LINE).is_none());
    }

    #[test]
    fn written_to_disk_twice() {
        let dir = tempfile::tempdir().expect("temp dir");
        let ssh = dir.path().join(".ssh");
        let files = SshFiles { dir: ssh.join("sallyport"), user_config: ssh.join("config") };
        assert_eq!(ensure(&files, dir.path()).expect("written"), Done::Added);
        assert_eq!(ensure(&files, dir.path()).expect("read"), Done::AlreadyThere);
        let text = std::fs::read_to_string(&files.user_config).expect("there");
        assert_eq!(text.matches("Include").count(), 1);
        assert!(text.contains(dir.path().to_str().expect("utf-8")), "HOME is not the account's: absolute");
    }

    #[test]
    fn relative_where_home_is_the_accounts() {
        let home = Path::new("/home/a");
        let files = SshFiles { dir: home.join(".ssh/sallyport"), user_config: home.join(".ssh/config") };
        assert_eq!(directive(&files, home, Some(home)), LINE);
        assert_eq!(directive(&files, home, None), "Include \"/home/a/.ssh/sallyport/config\"");
    }
}
