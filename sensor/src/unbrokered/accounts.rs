//! Accounts of this host that somebody can log in to, as `/etc/passwd` lists them.
//!
//! Accounts of directories (LDAP and the like) are not listed: there may be a hundred thousand. Their log-ins share the
//! session for all others; records name them all the same, by looking up the login uid.

use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use sallyport_sensor_abi::session::ANY_LOGIN;

/// Where local accounts are.
pub(super) const PASSWD: &str = "/etc/passwd";
/// Accounts that get a compiled policy of their own at most: each takes a slot in the kernel, which brokered sessions
/// need, too. Log-ins to the rest are judged as those of accounts that are not listed.
pub(super) const MAX: usize = 128;

/// Shells that let nobody in, by their last component.
const CLOSED: [&str; 5] = ["nologin", "false", "sync", "shutdown", "halt"];

/// An account with a login shell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Account {
    /// Name; empty: all that are not listed.
    pub(super) name: String,
    /// User id, which becomes the login uid; [`ANY_LOGIN`]: all that are not listed.
    pub(super) uid: u32,
}

impl Account {
    /// Stands for all that are not listed.
    pub(super) const OTHERS: Self = Self { name: String::new(), uid: ANY_LOGIN };
}

/// What tells one state of a file from the next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stamp(u64, i64, i64, u64);

impl Stamp {
    /// Of a file; none if it is not there.
    pub(super) fn of(path: &Path) -> Option<Self> {
        let meta = std::fs::metadata(path).ok()?;
        Some(Self(meta.ino(), meta.mtime(), meta.mtime_nsec(), meta.len()))
    }
}

/// The accounts, and how many more there would have been.
pub(super) fn read(path: &Path) -> std::io::Result<(Vec<Account>, usize)> {
    // Names are bytes on Linux; one that is not UTF-8 cannot be named in a policy either.
    Ok(parse(&String::from_utf8_lossy(&std::fs::read(path)?)))
}

fn parse(text: &str) -> (Vec<Account>, usize) {
    let mut accounts: Vec<Account> = Vec::new();
    let mut surplus = 0;
    for line in text.lines() {
        let fields: Vec<&str> = line.split(':').collect();
        let [name, _, uid, _, _, _, shell] = fields[..] else { continue };
        // `+` and `-` are references to NIS.
        if name.is_empty() || name.starts_with(['+', '-', '#']) {
            continue;
        }
        let Ok(uid) = uid.parse::<u32>() else { continue };
        // No shell means `/bin/sh`.
        let closed = CLOSED.contains(&shell.trim().rsplit('/').next().unwrap_or_default());
        // Two names of one number are one login uid; the first is what everybody shows.
        if closed || uid >= ANY_LOGIN || accounts.iter().any(|known| known.uid == uid) {
            continue;
        }
        if accounts.len() < MAX {
            accounts.push(Account { name: name.into(), uid });
        } else {
            surplus += 1;
        }
    }
    (accounts, surplus)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accounts_with_a_shell_are_found() {
        let text = "root:x:0:0:root:/root:/bin/bash\ntoor:x:0:0::/root:/bin/sh\ndaemon:x:1:1::/:/usr/sbin/nologin\nsync:x:4:65534:sync:/bin:/bin/sync\n+nis::::::\n# note\nalice:x:1000:1000:Alice,,,:/home/alice:/bin/zsh\nnobody:x:4294967295:1::/:/bin/sh\nbare:x:1001:1001::/home/bare:\nbroken:x:1\n";
        let (accounts, surplus) = parse(text);
        let names: Vec<_> = accounts.iter().map(|account| (account.name.as_str(), account.uid)).collect();
        assert_eq!(names, [("root", 0), ("alice", 1000), ("bare", 1001)]);
        assert_eq!(surplus, 0);
    }

    #[test]
    fn there_is_a_limit_and_the_rest_is_counted() {
        let text: String =
            (0..MAX + 5).map(|n| format!("u{n}:x:{}:100::/home/u{n}:/bin/sh\n", 1000 + n)).collect();
        let (accounts, surplus) = parse(&text);
        assert_eq!((accounts.len(), surplus), (MAX, 5));
    }
}
