//! Signed notes after C2SP `signed-note`: text, a blank line, and signature lines, Ed25519 only.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use ed25519_dalek::{Signature, Signer as _, SigningKey, VerifyingKey};
use sha2::{Digest, Sha256};
use std::fmt;

/// Algorithm byte of Ed25519 in C2SP `signed-note`.
const ED25519: u8 = 1;
/// How a private key's text begins.
const PRIVATE: &str = "PRIVATE+KEY+";
/// A note with more lines than this is not one of ours: a bound for hostile input.
const MAX_SIGNATURES: usize = 100;

/// Why a note or key is not accepted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoteError {
    /// Not `NAME+HEX+BASE64` of an Ed25519 key.
    #[error("not a log key; it looks like `name+1a2b3c4d+AbCd…`")]
    Key,
    /// Not `PRIVATE+KEY+NAME+HEX+BASE64` of an Ed25519 key.
    #[error("not a private key; it looks like `PRIVATE+KEY+name+1a2b3c4d+AbCd…`")]
    PrivateKey,
    /// The key's id is not that of its name and bytes.
    #[error("the log key's id does not match its name and bytes; it was copied wrongly or altered")]
    KeyId,
    /// Not a signed note.
    #[error("not a signed note")]
    Malformed,
    /// Signed by others only.
    #[error("not signed by `{0}`")]
    Unsigned(String),
    /// The signature does not fit.
    #[error("the signature of `{0}` is false")]
    Signature(String),
}

/// A name and a public key: what one pins.
#[derive(Clone, PartialEq, Eq)]
pub struct Verifier {
    name: String,
    id: [u8; 4],
    key: VerifyingKey,
}

/// A name and a private key.
pub struct Signer {
    verifier: Verifier,
    key: SigningKey,
}

impl Verifier {
    /// Parses the form of [`fmt::Display`].
    ///
    /// # Errors
    /// It is not an Ed25519 verifier key, or its id is wrong.
    pub fn parse(text: &str) -> Result<Self, NoteError> {
        let mut parts = text.trim().splitn(3, '+');
        let (Some(name), Some(id), Some(key)) = (parts.next(), parts.next(), parts.next()) else {
            return Err(NoteError::Key);
        };
        let bytes = BASE64.decode(key).map_err(|_| NoteError::Key)?;
        let Some((&ED25519, key)) = bytes.split_first() else {
            return Err(NoteError::Key);
        };
        let key =
            key.try_into().ok().and_then(|key| VerifyingKey::from_bytes(key).ok()).ok_or(NoteError::Key)?;
        let verifier = Self::new(name, key).ok_or(NoteError::Key)?;
        if hex::encode(verifier.id) == id { Ok(verifier) } else { Err(NoteError::KeyId) }
    }

    fn new(name: &str, key: VerifyingKey) -> Option<Self> {
        let fits = !name.is_empty() && !name.contains(|c: char| c.is_whitespace() || c == '+');
        fits.then(|| {
            let digest =
                Sha256::new().chain_update(name).chain_update([b'\n', ED25519]).chain_update(key.as_bytes());
            let [a, b, c, d, ..] = <[u8; 32]>::from(digest.finalize());
            Self { name: name.to_owned(), id: [a, b, c, d], key }
        })
    }

    /// The key's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The note's text, if this key signed it.
    ///
    /// # Errors
    /// Malformed, not signed by this key, or falsely.
    pub fn open<'a>(&self, note: &'a str) -> Result<&'a str, NoteError> {
        let (text, signatures) = split(note)?;
        let ours = signatures.iter().find(|line| line.name == self.name && line.id == self.id);
        let ours = ours.ok_or_else(|| NoteError::Unsigned(self.name.clone()))?;
        let signature = Signature::from_slice(&ours.signature).map_err(|_| NoteError::Malformed)?;
        // Strict: no small-order keys, one signature per message.
        self.key
            .verify_strict(text.as_bytes(), &signature)
            .map_err(|_| NoteError::Signature(self.name.clone()))?;
        Ok(text)
    }
}

impl fmt::Display for Verifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let key = BASE64.encode([&[ED25519], self.key.as_bytes().as_slice()].concat());
        write!(f, "{}+{}+{key}", self.name, hex::encode(self.id))
    }
}

impl fmt::Debug for Verifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Verifier({self})")
    }
}

impl Signer {
    /// A signer of that name. `None` if the name is empty or holds white space or `+`.
    #[must_use]
    pub fn new(name: &str, seed: &[u8; 32]) -> Option<Self> {
        let key = SigningKey::from_bytes(seed);
        Some(Self { verifier: Verifier::new(name, key.verifying_key())?, key })
    }

    /// Parses the form of [`Self::to_text`].
    ///
    /// # Errors
    /// It is not a private Ed25519 key, or its id is wrong.
    pub fn parse(text: &str) -> Result<Self, NoteError> {
        let rest = text.trim().strip_prefix(PRIVATE).ok_or(NoteError::PrivateKey)?;
        let mut parts = rest.splitn(3, '+');
        let (Some(name), Some(id), Some(key)) = (parts.next(), parts.next(), parts.next()) else {
            return Err(NoteError::PrivateKey);
        };
        let bytes = BASE64.decode(key).map_err(|_| NoteError::PrivateKey)?;
        let Some((&ED25519, seed)) = bytes.split_first() else { return Err(NoteError::PrivateKey) };
        let signer =
            seed.try_into().ok().and_then(|seed| Self::new(name, seed)).ok_or(NoteError::PrivateKey)?;
        if hex::encode(signer.verifier.id) == id { Ok(signer) } else { Err(NoteError::KeyId) }
    }

    /// The private key as text, for a file that only its owner may read: `PRIVATE+KEY+NAME+HEX+BASE64`, as Go's
    /// `note` package writes it.
    #[must_use]
    pub fn to_text(&self) -> String {
        let key = BASE64.encode([&[ED25519], self.key.as_bytes().as_slice()].concat());
        format!("{PRIVATE}{}+{}+{key}", self.verifier.name, hex::encode(self.verifier.id))
    }

    /// What others verify with.
    #[must_use]
    pub fn verifier(&self) -> &Verifier {
        &self.verifier
    }

    /// Signs `text`, which must end in a newline.
    ///
    /// # Errors
    /// The text cannot be a note's: it does not end in a newline, or holds control characters.
    pub fn sign(&self, text: &str) -> Result<String, NoteError> {
        if !text.ends_with('\n') || text.chars().any(|c| c.is_ascii_control() && c != '\n') {
            return Err(NoteError::Malformed);
        }
        let signature = self.key.sign(text.as_bytes()).to_bytes();
        let line = BASE64.encode([self.verifier.id.as_slice(), &signature].concat());
        Ok(format!("{text}\n\u{2014} {} {line}\n", self.verifier.name))
    }
}

struct SignatureLine<'a> {
    name: &'a str,
    id: [u8; 4],
    signature: Vec<u8>,
}

/// Text (with its last newline) and signature lines.
fn split(note: &str) -> Result<(&str, Vec<SignatureLine<'_>>), NoteError> {
    if note.chars().any(|c| c.is_ascii_control() && c != '\n') || !note.ends_with('\n') {
        return Err(NoteError::Malformed);
    }
    // The last blank line ends the text: the text itself may hold blank lines.
    let at = note.rfind("\n\n").ok_or(NoteError::Malformed)?;
    let (text, lines) = (&note[..=at], &note[at + 2..]);
    let mut signatures = Vec::new();
    for line in lines.lines() {
        let (name, value) =
            line.strip_prefix("\u{2014} ").and_then(|l| l.split_once(' ')).ok_or(NoteError::Malformed)?;
        let bytes = BASE64.decode(value).map_err(|_| NoteError::Malformed)?;
        let (id, signature) = bytes.split_first_chunk::<4>().ok_or(NoteError::Malformed)?;
        if name.is_empty() || signature.is_empty() || signatures.len() == MAX_SIGNATURES {
            return Err(NoteError::Malformed);
        }
        signatures.push(SignatureLine { name, id: *id, signature: signature.to_vec() });
    }
    if signatures.is_empty() { Err(NoteError::Malformed) } else { Ok((text, signatures)) }
}

/// A note's text, whoever signed it. Proves nothing.
///
/// # Errors
/// It is not a signed note.
pub fn unverified_text(note: &str) -> Result<&str, NoteError> {
    Ok(split(note)?.0)
}

/// Who a note says has signed it. Proves nothing.
///
/// # Errors
/// It is not a signed note.
pub fn unverified_signers(note: &str) -> Result<Vec<&str>, NoteError> {
    Ok(split(note)?.1.into_iter().map(|line| line.name).collect())
}

/// Fuzz entry: any bytes are refused or opened, never a panic.
pub fn fuzz_note(bytes: &[u8]) {
    if let (Ok(note), Some(signer)) = (std::str::from_utf8(bytes), Signer::new("fuzz", &[7; 32])) {
        let _ = signer.verifier().open(note);
        let _ = Verifier::parse(note);
        let _ = Signer::parse(note);
        let _ = crate::Checkpoint::parse(note);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    // Known answer of Go's golang.org/x/mod/sumdb/note.
    const KEY: &str = "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW";
    const SECRET: &str = "AYEKFALVFGyNhPJEMzD1QIDr+Y7hfZx09iUvxdXHKDFz";
    const TEXT: &str = "If you think cryptography is the answer to your problem,\nthen you don't know what your problem is.\n";
    const SIGNATURE: &str = "\u{2014} PeterNeumann x08go/ZJkuBS9UG/SffcvIAQxVBtiFupLLr8pAcElZInNIuGUgYN1FFYC2pZSNXgKvqfqdngotpRZb6KE6RyyBwJnAM=\n";

    #[test]
    fn known_answer() {
        let verifier = Verifier::parse(KEY).unwrap();
        let note = format!("{TEXT}\n{SIGNATURE}");
        assert_eq!(verifier.open(&note).unwrap(), TEXT);
        assert_eq!(verifier.to_string(), KEY);
        let seed: [u8; 32] = BASE64.decode(SECRET).unwrap()[1..].try_into().unwrap();
        let signer = Signer::new("PeterNeumann", &seed).unwrap();
        assert_eq!(signer.sign(TEXT).unwrap(), note);
        assert_eq!(signer.verifier(), &verifier);
        let text = format!("PRIVATE+KEY+PeterNeumann+c74f20a3+{SECRET}");
        assert_eq!(Signer::parse(&text).unwrap().sign(TEXT).unwrap(), note);
        assert_eq!(signer.to_text(), text);
        assert_eq!(Signer::parse(&text.replace("c74f", "c74e")).err(), Some(NoteError::KeyId));
        assert_eq!(Signer::parse(KEY).err(), Some(NoteError::PrivateKey));
    }

    #[test]
    fn what_is_not_ours_is_refused() {
        let signer = Signer::new("log", &[1; 32]).unwrap();
        let other = Signer::new("log", &[2; 32]).unwrap();
        let note = signer.sign("text\n\nmore\n").unwrap();
        assert_eq!(signer.verifier().open(&note).unwrap(), "text\n\nmore\n");
        assert_eq!(other.verifier().open(&note), Err(NoteError::Unsigned("log".into())));
        assert!(matches!(
            signer.verifier().open(&note.replace("text", "tExt")),
            Err(NoteError::Signature(_))
        ));
        let unsigned = note.split("\u{2014}").next().unwrap();
        assert_eq!(signer.verifier().open(unsigned), Err(NoteError::Malformed));
        assert_eq!(signer.sign("no newline"), Err(NoteError::Malformed));
        assert!(Signer::new("with space", &[1; 32]).is_none());
        let altered = KEY.replace("c74f20a3", "c74f20a4");
        assert_eq!(Verifier::parse(&altered).unwrap_err(), NoteError::KeyId);
        assert_eq!(Verifier::parse("nonsense").unwrap_err(), NoteError::Key);
    }

    #[test]
    fn every_flipped_bit_is_refused() {
        let signer = Signer::new("log", &[1; 32]).unwrap();
        let note = signer.sign("log\n12\nabc=\n").unwrap();
        for i in 0..note.len() * 8 {
            let mut bytes = note.clone().into_bytes();
            bytes[i / 8] ^= 1 << (i % 8);
            if let Ok(altered) = std::str::from_utf8(&bytes) {
                assert!(signer.verifier().open(altered).is_err(), "bit {i}");
            }
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            fuzz_note(&bytes);
        }
    }
}
