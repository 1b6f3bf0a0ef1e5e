//! Records that went out before the hash of their executable was known.

use std::collections::{HashMap, HashSet};

use sallyport_evidence::Record;

use crate::enrich::{Answer, FileId};

/// Records that wait for a hash at most. Beyond it all are forgotten: their hashes come with a later start of the program.
const WAITING: usize = 2_048;
/// Hashes that were told, remembered so that each is told once.
const TOLD: usize = 16_384;

/// See the module's text.
#[derive(Debug, Default)]
pub(super) struct Late {
    waiting: HashMap<u64, Record>,
    told: HashSet<(FileId, String)>,
}

impl Late {
    /// The record of an exec was made with what there is. `answer`: none yet, or one after which the hash follows.
    pub(super) fn expect(&mut self, id: u64, answer: Option<&Answer>, record: &Record) {
        if answer.is_some_and(|answer| !answer.hash_follows) {
            return;
        }
        if self.waiting.len() >= WAITING {
            self.waiting.clear();
        }
        self.waiting.insert(id, record.clone());
    }

    /// A later answer: the record that it belongs to, if it brings a hash that was not told yet.
    pub(super) fn settle(&mut self, answer: &Answer) -> Option<Record> {
        if answer.sha256.is_none() && answer.hash_follows {
            return None;
        }
        let of = self.waiting.remove(&answer.id)?;
        let (id, hash) = (answer.executable?, answer.sha256.clone()?);
        if self.told.len() >= TOLD {
            self.told.clear();
        }
        self.told.insert((id, hash)).then_some(of)
    }
}

#[cfg(test)]
mod tests {
    use sallyport_evidence::record::Kind;

    use super::*;

    #[test]
    fn a_hash_is_told_once_and_only_to_records_without_it() {
        let mut late = Late::default();
        let record = Record::empty(Kind::Exec);
        let answer = |id, sha256: Option<&str>, hash_follows| Answer {
            id,
            executable: Some((1, 2)),
            sha256: sha256.map(str::to_owned),
            hash_follows,
            ..Answer::default()
        };
        late.expect(1, Some(&answer(1, Some("a"), false)), &record);
        late.expect(2, Some(&answer(2, None, true)), &record);
        late.expect(3, None, &record);
        assert!(late.settle(&answer(1, Some("a"), false)).is_none(), "it had it");
        assert!(late.settle(&answer(3, None, true)).is_none(), "not yet");
        assert!(late.settle(&answer(2, Some("a"), false)).is_some());
        assert!(late.settle(&answer(3, Some("a"), false)).is_none(), "told");
        late.expect(4, None, &record);
        assert!(late.settle(&answer(4, Some("b"), false)).is_some(), "the file has changed");
    }
}
