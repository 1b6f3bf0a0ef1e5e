//! Statements on policy: "this version, of this commit, is meant for this gateway", signed by whoever answers for it.
//!
//! A statement is the text of a C2SP signed note, one field a line, so that `cat` shows what was signed:
//!
//! ```text
//! sallyport policy statement v1
//! gateway: gateway.example.org
//! version: 1a2b… (64 digits)
//! commit: 0f1e… (or - )
//! created-ms: 1795541700123
//!
//! — release …signature…
//! ```
//!
//! One statement has one text: fields in this order, numbers without sign or leading zeros, nothing else.

use crate::note::{self, NoteError, Signer, Verifier};

const HEAD: &str = "sallyport policy statement v1";
/// Longest signed statement in bytes: five short lines and some signatures.
pub const MAX_BYTES: usize = 16 << 10;

/// What a signer says about a policy version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Statement {
    /// Name of the gateway that it is meant for; another one must refuse it.
    pub gateway: String,
    /// The version: hex SHA-256 of the bundle's canonical archive.
    pub version: String,
    /// Git commit, as `git` names it; empty if there is none.
    pub commit: String,
    /// When it was made, milliseconds since the Unix epoch. A gateway takes no older one than it took before.
    pub created_ms: u64,
}

/// Why a statement is not accepted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StatementError {
    /// Too long.
    #[error("the signed statement is longer than {MAX_BYTES} bytes")]
    TooLong,
    /// The note.
    #[error(transparent)]
    Note(#[from] NoteError),
    /// The text.
    #[error("the signed text is not a statement on policy: {0}")]
    Malformed(&'static str),
    /// None of the given keys signed it.
    #[error("it is signed by none of the keys that are accepted here, only by `{0}`")]
    Unknown(String),
}

impl Statement {
    /// The note's text.
    #[must_use]
    pub fn to_text(&self) -> String {
        let Self { gateway, version, commit, created_ms } = self;
        let commit = if commit.is_empty() { "-" } else { commit };
        format!(
            "{HEAD}\ngateway: {gateway}\nversion: {version}\ncommit: {commit}\ncreated-ms: {created_ms}\n"
        )
    }

    /// Parses the text.
    ///
    /// # Errors
    /// It is not a statement.
    pub fn parse(text: &str) -> Result<Self, StatementError> {
        let malformed = StatementError::Malformed;
        let mut lines = text.lines();
        if lines.next() != Some(HEAD) {
            return Err(malformed("it does not begin with `sallyport policy statement v1`"));
        }
        let mut field = |name: &str, problem| {
            let line = lines.next().and_then(|line| line.strip_prefix(name)?.strip_prefix(": "));
            line.filter(|value| !value.is_empty()).map(str::to_owned).ok_or(malformed(problem))
        };
        let gateway = field("gateway", "the line `gateway: NAME` is missing")?;
        let version = field("version", "the line `version: DIGITS` is missing")?;
        let commit = field("commit", "the line `commit: HASH` is missing")?;
        let created = field("created-ms", "the line `created-ms: MILLISECONDS` is missing")?;
        let created_ms = created.parse().map_err(|_| malformed("`created-ms` is not a number"))?;
        let commit = if commit == "-" { String::new() } else { commit };
        let statement = Self { gateway, version, commit, created_ms };
        statement.check()?;
        // Whatever else there is (other line ends, more lines, `007`): it would be another text for the same thing.
        if statement.to_text() == text { Ok(statement) } else { Err(malformed("it is not in its one form")) }
    }

    fn check(&self) -> Result<(), StatementError> {
        let malformed = StatementError::Malformed;
        let plain = |text: &str| text.bytes().all(|b| b.is_ascii_alphanumeric() || b".-_".contains(&b));
        if !(1..=253).contains(&self.gateway.len()) || !plain(&self.gateway) {
            return Err(malformed("`gateway` is not a gateway's name"));
        }
        let digits = |text: &str| text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        if self.version.len() != 64 || !digits(&self.version) {
            return Err(malformed("`version` is not 64 hexadecimal digits"));
        }
        // SHA-1 or SHA-256, and what `git describe` and `policy push` mark a changed folder with.
        let commit = self.commit.strip_suffix("-dirty").unwrap_or(&self.commit);
        let is_hash = digits(commit) && matches!(commit.len(), 40 | 64);
        if !is_hash && !self.commit.is_empty() {
            return Err(malformed("`commit` is not a full commit hash"));
        }
        Ok(())
    }

    /// Signs it.
    ///
    /// # Errors
    /// A field has a form that no statement takes.
    pub fn sign(&self, signer: &Signer) -> Result<String, StatementError> {
        self.check()?;
        Ok(signer.sign(&self.to_text())?)
    }

    /// What a note says, whoever signed it: to show it, or to find out which keys to ask. Proves nothing.
    ///
    /// # Errors
    /// It is not a statement in a signed note.
    pub fn unverified(note: &str) -> Result<Self, StatementError> {
        if note.len() > MAX_BYTES {
            return Err(StatementError::TooLong);
        }
        Self::parse(note::unverified_text(note)?)
    }

    /// Opens a signed statement; gives it with the names of those of `keys` that signed it, sorted.
    ///
    /// # Errors
    /// Malformed, signed by none of them, or a signature of one of them is false.
    pub fn open(note: &str, keys: &[Verifier]) -> Result<(Self, Vec<String>), StatementError> {
        let statement = Self::unverified(note)?;
        let mut names = Vec::new();
        for key in keys {
            match key.open(note) {
                Ok(_) => names.push(key.name().to_owned()),
                Err(NoteError::Unsigned(_)) => {}
                Err(err) => return Err(err.into()),
            }
        }
        if names.is_empty() {
            return Err(StatementError::Unknown(note::unverified_signers(note)?.join("`, `")));
        }
        names.sort();
        names.dedup();
        Ok((statement, names))
    }
}

/// Fuzz entry: any bytes are refused or opened, never a panic; what is a statement has exactly that text.
pub fn fuzz_statement(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    if let Ok(statement) = Statement::parse(text) {
        assert_eq!(statement.to_text(), text, "a statement has one text");
    }
    if let Some(signer) = Signer::new("fuzz", &[7; 32]) {
        let opened = Statement::open(text, &[signer.verifier().clone()]);
        assert!(opened.is_err() || Statement::unverified(text).is_ok());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn statement() -> Statement {
        Statement {
            gateway: "gateway.example.org".into(),
            version: "ab".repeat(32),
            commit: "c0".repeat(20),
            created_ms: 1_795_541_700_123,
        }
    }

    fn signer(name: &str, seed: u8) -> Signer {
        Signer::new(name, &[seed; 32]).unwrap()
    }

    #[test]
    fn it_is_opened_by_those_keys_that_signed_it() {
        let (release, lead, other) = (signer("release", 1), signer("lead", 2), signer("other", 3));
        let keys = [&release, &lead].map(|signer| signer.verifier().clone());
        let note = statement().sign(&release).unwrap();
        assert_eq!(Statement::open(&note, &keys).unwrap(), (statement(), vec!["release".to_owned()]));
        // Two signatures under one text.
        let second = statement().sign(&lead).unwrap();
        let both = format!("{note}{}", second.lines().last().unwrap()) + "\n";
        assert_eq!(Statement::open(&both, &keys).unwrap().1, ["lead", "release"]);
        let foreign = statement().sign(&other).unwrap();
        assert_eq!(Statement::open(&foreign, &keys), Err(StatementError::Unknown("other".into())));
        // Of the same name with another key: not that key.
        let usurper = statement().sign(&signer("release", 9)).unwrap();
        assert!(matches!(Statement::open(&usurper, &keys), Err(StatementError::Unknown(_))));
        let unsigned = Statement { commit: String::new(), ..statement() };
        let note = unsigned.sign(&release).unwrap();
        assert!(note.contains("\ncommit: -\n"));
        assert_eq!(Statement::open(&note, &keys).unwrap().0, unsigned);
    }

    #[test]
    fn every_flipped_bit_is_refused() {
        let (signer, keys) = (signer("release", 1), [signer("release", 1).verifier().clone()]);
        let note = statement().sign(&signer).unwrap();
        assert!(Statement::open(&note, &keys).is_ok());
        for i in 0..note.len() * 8 {
            let mut bytes = note.clone().into_bytes();
            bytes[i / 8] ^= 1 << (i % 8);
            if let Ok(altered) = std::str::from_utf8(&bytes) {
                assert!(Statement::open(altered, &keys).is_err(), "bit {i}");
            }
        }
    }

    #[test]
    fn one_statement_has_one_text() {
        let text = statement().to_text();
        assert_eq!(Statement::parse(&text).unwrap(), statement());
        for altered in [
            text.replace("v1", "v2"),
            text.replace("gateway: ", "gateway:"),
            text.replace("gateway.example.org", "two words"),
            text.replace("abab", "ABAB"),
            text.replace(&"ab".repeat(32), &"ab".repeat(31)),
            text.replace("c0c0c0c0", "c0c0"),
            text.replace("created-ms: 1", "created-ms: 01"),
            text.replace("created-ms: 1", "created-ms: +1"),
            text.replace("created-ms: 1", "created-ms: -1"),
            text.replace('\n', "\r\n"),
            format!("{text}more: 1\n"),
            text.trim_end().to_owned(),
            String::new(),
        ] {
            assert!(matches!(Statement::parse(&altered), Err(StatementError::Malformed(_))), "{altered}");
        }
        let long = format!("{}\n{}", text, "x".repeat(MAX_BYTES));
        assert_eq!(Statement::unverified(&long), Err(StatementError::TooLong));
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            fuzz_statement(&bytes);
        }
        #[test]
        fn whatever_is_signed_is_read_back(version in "[0-9a-f]{64}", commit in "([0-9a-f]{40})?", at in any::<u64>()) {
            let statement = Statement { version, commit, created_ms: at, ..statement() };
            prop_assert_eq!(Statement::parse(&statement.to_text()).unwrap(), statement);
        }
    }
}
