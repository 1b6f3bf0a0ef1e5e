//! Checkpoints after C2SP `tlog-checkpoint`: origin, size and root, in a signed note.

use crate::merkle::Hash;
use crate::note::{NoteError, Signer, Verifier};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;

/// What a log's signer swears to: these are the first `size` leaves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checkpoint {
    /// The log's name, also its key's.
    pub origin: String,
    /// How many leaves.
    pub size: u64,
    /// The Merkle root over them.
    pub root: Hash,
}

/// Why a checkpoint is not accepted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CheckpointError {
    /// The note.
    #[error(transparent)]
    Note(#[from] NoteError),
    /// The text is no checkpoint.
    #[error("not a checkpoint: it must hold origin, size and root, one a line")]
    Malformed,
    /// Signed for another log.
    #[error("it is a checkpoint of `{0}`, another log")]
    Origin(String),
}

impl Checkpoint {
    /// The note's text.
    #[must_use]
    pub fn to_text(&self) -> String {
        format!("{}\n{}\n{}\n", self.origin, self.size, BASE64.encode(self.root))
    }

    /// Parses the text. Extension lines are allowed and ignored, as the specification wants.
    ///
    /// # Errors
    /// It is not a checkpoint.
    pub fn parse(text: &str) -> Result<Self, CheckpointError> {
        let mut lines = text.lines();
        let (Some(origin), Some(size), Some(root)) = (lines.next(), lines.next(), lines.next()) else {
            return Err(CheckpointError::Malformed);
        };
        let n = size.parse::<u64>().map_err(|_| CheckpointError::Malformed)?;
        let root = BASE64
            .decode(root)
            .ok()
            .and_then(|r| Hash::try_from(r).ok())
            .ok_or(CheckpointError::Malformed)?;
        // Decimal without sign or leading zeros, so that one checkpoint has one text.
        if origin.is_empty() || size != n.to_string() {
            return Err(CheckpointError::Malformed);
        }
        Ok(Self { origin: origin.to_owned(), size: n, root })
    }

    /// Signs it.
    ///
    /// # Errors
    /// The origin cannot stand in a note.
    pub fn sign(&self, signer: &Signer) -> Result<String, NoteError> {
        signer.sign(&self.to_text())
    }

    /// Opens a signed checkpoint of the log that `key` belongs to.
    ///
    /// # Errors
    /// Not signed by `key`, malformed, or of another log.
    pub fn open(note: &str, key: &Verifier) -> Result<Self, CheckpointError> {
        let checkpoint = Self::parse(key.open(note)?)?;
        if checkpoint.origin == key.name() {
            Ok(checkpoint)
        } else {
            Err(CheckpointError::Origin(checkpoint.origin))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn round_trip_and_refusals() {
        let signer = Signer::new("gateway.example.org", &[3; 32]).unwrap();
        let checkpoint = Checkpoint { origin: "gateway.example.org".into(), size: 12, root: [9; 32] };
        let note = checkpoint.sign(&signer).unwrap();
        assert_eq!(Checkpoint::open(&note, signer.verifier()).unwrap(), checkpoint);
        let foreign = Checkpoint { origin: "elsewhere".into(), ..checkpoint.clone() }.sign(&signer).unwrap();
        assert_eq!(
            Checkpoint::open(&foreign, signer.verifier()),
            Err(CheckpointError::Origin("elsewhere".into()))
        );
        for text in ["", "o\n", "o\n1\n", "o\n01\nCQkJ\n", "o\n-1\nCQ==\n", "o\n1\nnope\n"] {
            assert_eq!(Checkpoint::parse(text), Err(CheckpointError::Malformed), "{text:?}");
        }
        let extended = format!("{}an extension\n", checkpoint.to_text());
        assert_eq!(Checkpoint::parse(&extended).unwrap(), checkpoint);
    }
}
