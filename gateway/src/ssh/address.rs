//! Which host and local user somebody asks for: the user part of `ssh USER@gateway`.

use std::fmt;

/// Longest names taken from a client; beyond it nothing is a name on any system.
const MAX_HOST: usize = 253;
const MAX_USER: usize = 64;

/// What the user part asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// Host and user, both named: `web-1+root`, `root%web-1`, `root:web-1`, `root@web-1`.
    Full {
        /// The host.
        host: String,
        /// The local user on it.
        user: String,
    },
    /// One name: a host where policy names one local user, or just the name that `ssh` sends when none is given.
    Bare(String),
    /// Not a name.
    Invalid,
}

impl Address {
    /// Reads the user part.
    #[must_use]
    pub fn parse(text: &str) -> Self {
        // The safest form first: `+` is neither special in shells nor in ssh's configuration.
        let (host, user) = if let Some((host, user)) = text.split_once('+') {
            (host, user)
        } else if let Some((user, host)) = text.rsplit_once(['%', ':', '@']) {
            (host, user)
        } else if is_host_name(text) {
            return Self::Bare(text.to_owned());
        } else {
            return Self::Invalid;
        };
        if is_host_name(host) && is_user_name(user) {
            Self::Full { host: host.to_owned(), user: user.to_owned() }
        } else {
            Self::Invalid
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Full { host, user } => write!(f, "{host}+{user}"),
            Self::Bare(name) => f.write_str(name),
            Self::Invalid => f.write_str("?"),
        }
    }
}

/// A host name that may go into a certificate, a command to paste, and a terminal.
#[must_use]
pub fn is_host_name(text: &str) -> bool {
    !text.is_empty()
        && text.len() <= MAX_HOST
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_'))
        && !text.starts_with(['-', '.'])
}

/// A local user's name, as `useradd` permits them and a little more.
#[must_use]
pub fn is_user_name(text: &str) -> bool {
    !text.is_empty()
        && text.len() <= MAX_USER
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_' | b'$'))
        && !text.starts_with('-')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_means_the_same() {
        let full = Address::Full { host: "web-1".into(), user: "root".into() };
        for text in ["web-1+root", "root%web-1", "root:web-1", "root@web-1"] {
            assert_eq!(Address::parse(text), full, "{text}");
        }
        assert_eq!(full.to_string(), "web-1+root");
        assert_eq!(Address::parse("web-1"), Address::Bare("web-1".into()));
    }

    #[test]
    fn what_is_no_name_is_refused() {
        for text in [
            "",
            "+",
            "web-1+",
            "+root",
            "web-1+-oProxyCommand=x",
            "-x+root",
            "a b",
            "a\u{1b}[2J",
            "web-1+ro\not",
            "%",
            "web/1",
            "a@b@c",
            "a+b+c",
        ] {
            assert_eq!(Address::parse(text), Address::Invalid, "{text:?}");
        }
        assert_eq!(Address::parse(&"a".repeat(254)), Address::Invalid);
    }
}
