//! What a failed command tells the person: what happened, why, what to do next; and its exit code.

use std::{error::Error, fmt, io};

use serde_json::json;
use tonic::{Code, Status};

use crate::text;

/// Exit codes, as `sallyport --help` lists them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// The command failed, was refused, or found something wrong.
    Failed = 1,
    /// The command line was wrong.
    Usage = 2,
    /// Not signed in, or no longer.
    NotSignedIn = 3,
    /// The gateway (or the identity provider) cannot be reached.
    Unreachable = 4,
}

impl Exit {
    /// The stable name used with `--json`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Failed => "failed",
            Self::Usage => "usage",
            Self::NotSignedIn => "not_signed_in",
            Self::Unreachable => "unreachable",
        }
    }
}

/// A failed command.
#[derive(Debug)]
pub struct Failure {
    exit: Exit,
    what: String,
    why: Vec<String>,
    next: Option<String>,
    said: bool,
}

impl Failure {
    /// It failed or was refused.
    #[must_use]
    pub fn failed(what: impl Into<String>) -> Self {
        Self { exit: Exit::Failed, what: what.into(), why: Vec::new(), next: None, said: false }
    }

    /// The command line was wrong in a way that its grammar does not catch.
    #[must_use]
    pub fn usage(what: impl Into<String>) -> Self {
        Self { exit: Exit::Usage, ..Self::failed(what) }
    }

    /// Nobody is signed in.
    #[must_use]
    pub fn not_signed_in(what: impl Into<String>) -> Self {
        Self { exit: Exit::NotSignedIn, ..Self::failed(what) }.next("sign in with `sallyport login`")
    }

    /// The other side cannot be reached.
    #[must_use]
    pub fn unreachable(what: impl Into<String>) -> Self {
        Self { exit: Exit::Unreachable, ..Self::failed(what) }
    }

    /// The command has already printed what is wrong; only the exit code is left to tell.
    #[must_use]
    pub fn said() -> Self {
        Self { said: true, ..Self::failed(String::new()) }
    }

    /// Adds why, with everything below it.
    #[must_use]
    pub fn because(mut self, cause: &dyn Error) -> Self {
        let mut cause = Some(cause);
        while let Some(error) = cause {
            self = self.why(error.to_string());
            cause = error.source();
        }
        self
    }

    /// Adds why in words. Text from elsewhere is made safe, and what repeats the line above is left out.
    #[must_use]
    pub fn why(mut self, why: impl AsRef<str>) -> Self {
        let why = text::safe_lines(why.as_ref().trim(), 20);
        let repeats = self.why.last().unwrap_or(&self.what).contains(&why);
        if !why.is_empty() && !repeats {
            self.why.push(why);
        }
        self
    }

    /// Says what to do next.
    #[must_use]
    pub fn next(mut self, next: impl Into<String>) -> Self {
        self.next = Some(next.into());
        self
    }

    /// Its exit code.
    #[must_use]
    pub fn exit(&self) -> Exit {
        self.exit
    }

    /// Whether there is anything left to print.
    #[must_use]
    pub fn is_said(&self) -> bool {
        self.said
    }

    /// The form for `--json`, on standard error.
    #[must_use]
    pub fn json(&self) -> serde_json::Value {
        json!({ "error": {
            "kind": self.exit.name(),
            "message": self.what,
            "causes": self.why,
            "next": self.next,
        }})
    }

    /// What the gateway answered, in a sentence.
    #[must_use]
    pub fn from_status(doing: &str, status: &Status) -> Self {
        let said = status.message();
        match status.code() {
            Code::Unauthenticated => {
                Self::not_signed_in(format!("{doing}: your sign-in is over or was revoked")).why(said)
            }
            Code::PermissionDenied => Self::failed(format!("{doing}: refused")).why(said).next(
                "`sallyport whoami` shows as whom you act; ask the owners of the policy for permission",
            ),
            Code::NotFound => Self::failed(format!("{doing}: not found")).why(said),
            Code::InvalidArgument | Code::OutOfRange => {
                Self::failed(format!("{doing}: the gateway does not accept that")).why(said)
            }
            Code::FailedPrecondition | Code::AlreadyExists | Code::Aborted => {
                Self::failed(format!("{doing}: not possible now")).why(said)
            }
            Code::Unavailable => Self::unreachable(format!("{doing}: the gateway cannot answer now"))
                .why(said)
                .next("check the network and that the gateway runs, then try again"),
            Code::DeadlineExceeded | Code::Cancelled => {
                Self::unreachable(format!("{doing}: the gateway took too long")).why(said).next("try again")
            }
            Code::ResourceExhausted => Self::failed(format!("{doing}: over a limit")).why(said),
            Code::Unimplemented => Self::failed(format!("{doing}: this gateway does not offer that"))
                .next("use the `sallyport` of the same version as the gateway"),
            Code::DataLoss => Self::failed(format!("{doing}: stored data is damaged")).why(said),
            Code::Ok | Code::Unknown | Code::Internal => Self::failed(format!("{doing}: the gateway failed"))
                .why(said)
                .next("the gateway's own log says more; its operator can look there"),
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "sallyport: {}", self.what)?;
        for why in &self.why {
            write!(out, "\n  because: {}", why.replace('\n', "\n           "))?;
        }
        if let Some(next) = &self.next {
            write!(out, "\n  next:    {next}")?;
        }
        Ok(())
    }
}

impl From<io::Error> for Failure {
    /// Writing to standard output. A reader that went away (`| head`) is no failure worth words.
    fn from(error: io::Error) -> Self {
        if error.kind() == io::ErrorKind::BrokenPipe {
            return Self::said();
        }
        Self::failed("cannot write the output").because(&error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statuses_become_sentences_and_codes() {
        for (status, exit) in [
            (Status::unauthenticated("token expired"), Exit::NotSignedIn),
            (Status::permission_denied("rule \"x\""), Exit::Failed),
            (Status::unavailable("connection refused"), Exit::Unreachable),
            (Status::internal("x"), Exit::Failed),
        ] {
            let failure = Failure::from_status("listing targets", &status);
            assert_eq!(failure.exit(), exit);
            let text = failure.to_string();
            assert!(text.starts_with("sallyport: listing targets: "), "{text}");
            assert!(text.contains(status.message()) || status.message() == "x", "{text}");
            assert!(!text.contains("Status"), "no debug dump: {text}");
        }
    }

    #[test]
    fn a_server_cannot_write_to_the_terminal() {
        let failure = Failure::from_status("listing", &Status::internal("\x1b]0;pwned\x07\u{9b}2J"));
        assert!(!failure.to_string().contains(['\x1b', '\u{9b}', '\x07']));
    }
}
