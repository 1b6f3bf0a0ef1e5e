//! Offline verification: the log's leaves, its checkpoints and the pinned key, and nothing else.
//!
//! Leaves are pushed in order, one at a time, so a log of any size is checked in constant memory (plus one
//! entry per maker and boot). What it proves: every leaf under the newest checkpoint is what the holder of the
//! key signed, and no maker's sequence has a hole that the log does not own up to. What it cannot prove alone: that
//! the whole disk was not rolled back to an older state; for that a newer checkpoint must lie elsewhere, see
//! [`LogCheck::expect_at_least`].

use crate::merkle::{Frontier, Hash, leaf_hash};
use crate::note;
use crate::record::{Loss, Source};
use crate::{Checkpoint, checkpoint::CheckpointError};
use serde::Deserialize;
use std::collections::{BTreeMap, HashMap};
use std::fmt;

/// [`Loss::why`] of the record that owns up to sequence numbers that never arrived; its `host` is the maker.
pub const MISSING: &str = "missing";
/// Faults kept in full; the rest are counted.
const MAX_FAULTS: usize = 50;

/// One leaf as stored.
#[derive(Clone, Copy, Debug)]
pub struct Leaf<'a> {
    /// Its index.
    pub index: u64,
    /// The leaf hash stored beside it, if the store keeps one: lets an altered record be named exactly.
    pub hash: Option<Hash>,
    /// The record's bytes.
    pub record: &'a [u8],
}

/// One fault.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// Leaf indices do not follow each other.
    #[error("leaf {expected} is missing: leaf {found} follows in its place")]
    Gap {
        /// The index that should come.
        expected: u64,
        /// The one that came.
        found: u64,
    },
    /// The record was altered after it was hashed.
    #[error("leaf {index} was altered: its bytes no longer have the hash they were stored with")]
    Altered {
        /// Which.
        index: u64,
    },
    /// The bytes are no record.
    #[error("leaf {index} is not a record")]
    NotARecord {
        /// Which.
        index: u64,
    },
    /// A maker's sequence number repeats or goes back.
    #[error(
        "leaf {index} repeats or reorders: {maker} had reached {newest} in this boot, and this is its {seq}"
    )]
    Repeated {
        /// Which leaf.
        index: u64,
        /// Whose record.
        maker: String,
        /// Its number.
        seq: u64,
        /// The newest before it.
        newest: u64,
    },
    /// Records of a maker are missing, and no loss record says so.
    #[error(
        "before leaf {index}, {count} records of {maker} are missing (from its number {from}) and the log does not own up to it"
    )]
    Missing {
        /// The leaf before which they should be.
        index: u64,
        /// Whose.
        maker: String,
        /// The first missing number.
        from: u64,
        /// How many.
        count: u64,
    },
    /// The leaves are not those that were signed.
    #[error(
        "leaves {from} to {to} are not those that were signed: something there was altered, inserted, removed or swapped"
    )]
    Root {
        /// First leaf in doubt: all before it are proved.
        from: u64,
        /// Last leaf in doubt.
        to: u64,
    },
    /// A checkpoint covers more leaves than there are.
    #[error(
        "the log was cut off: {size} leaves were signed, {leaves} are there; leaf {leaves} is the first missing"
    )]
    Truncated {
        /// Signed size.
        size: u64,
        /// Leaves there are.
        leaves: u64,
    },
    /// The log is shorter than the caller knows it was.
    #[error("the log was rolled back: it once had {expected} leaves, its newest checkpoint covers {size}")]
    RolledBack {
        /// What is known.
        expected: u64,
        /// What is signed.
        size: u64,
    },
    /// Two checkpoints of one size differ: the signer told two stories.
    #[error("two checkpoints of {size} leaves differ: the signer told two stories")]
    Forked {
        /// The size.
        size: u64,
    },
    /// A checkpoint is not acceptable.
    #[error("checkpoint number {number} is not acceptable: {err}")]
    Checkpoint {
        /// Its place among those given, from 1.
        number: usize,
        /// Why.
        err: CheckpointError,
    },
    /// There are leaves and no acceptable checkpoint.
    #[error("no checkpoint of this log is there, so nothing is proved")]
    Unsigned,
}

/// What was found.
#[derive(Clone, Debug)]
pub struct Report {
    /// The log's name.
    pub origin: String,
    /// Leaves read.
    pub leaves: u64,
    /// Checkpoints that were reached and fit.
    pub checkpoints: u64,
    /// The newest of them: what is proved.
    pub proved: Option<Checkpoint>,
    /// Wall clock of the newest record under it, nanoseconds since the Unix epoch.
    pub proved_time_ns: u64,
    /// Records that makers numbered and that never arrived; loss records own up to all of them.
    pub owned_up: u64,
    /// The first faults.
    pub faults: Vec<Fault>,
    /// Faults beyond those.
    pub more_faults: u64,
}

impl Report {
    /// No fault was found. Say what is proved, not just "OK": use [`fmt::Display`].
    #[must_use]
    pub fn holds(&self) -> bool {
        self.faults.is_empty()
    }
    /// Leaves not under any checkpoint yet.
    #[must_use]
    pub fn unproved(&self) -> u64 {
        self.leaves.saturating_sub(self.proved.as_ref().map_or(0, |c| c.size))
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "log `{}` of {} leaves; ", self.origin, self.leaves)?;
        match &self.proved {
            Some(checkpoint) => {
                write!(
                    f,
                    "checkpoint at {} leaves, newest record {}",
                    checkpoint.size,
                    UtcTime(self.proved_time_ns)
                )?;
                if self.unproved() > 0 {
                    write!(f, "; {} newer leaves not under a checkpoint yet", self.unproved())?;
                }
            }
            None => write!(f, "no checkpoint")?,
        }
        write!(f, "; {} checkpoints fit; not anchored elsewhere", self.checkpoints)?;
        if self.owned_up > 0 {
            write!(f, "; {} records never arrived, as the log itself says", self.owned_up)?;
        }
        for fault in &self.faults {
            write!(f, "\nFAULT: {fault}")?;
        }
        if self.more_faults > 0 {
            write!(f, "\nand {} more faults", self.more_faults)?;
        }
        Ok(())
    }
}

/// Checks a log as its leaves go by.
pub struct LogCheck {
    origin: String,
    due: BTreeMap<u64, Checkpoint>,
    frontier: Frontier,
    next_index: u64,
    newest: HashMap<(String, String), u64>,
    announced: HashMap<String, u64>,
    newest_time_ns: u64,
    proved_time_ns: u64,
    proved: Option<Checkpoint>,
    fitting: u64,
    expected: u64,
    broken: bool,
    owned_up: u64,
    faults: Vec<Fault>,
    more_faults: u64,
}

/// The part of a record that verification reads.
#[derive(Deserialize)]
struct Head {
    source: Source,
    time_ns: u64,
    #[serde(default)]
    host: Option<String>,
    #[serde(default)]
    loss: Option<Loss>,
}

impl LogCheck {
    /// A check of the log that `key` signs, against all its checkpoints, in any order.
    pub fn new<'a>(key: &note::Verifier, notes: impl IntoIterator<Item = &'a str>) -> Self {
        let mut check = Self {
            origin: key.name().to_owned(),
            due: BTreeMap::new(),
            frontier: Frontier::new(),
            next_index: 0,
            newest: HashMap::new(),
            announced: HashMap::new(),
            newest_time_ns: 0,
            proved_time_ns: 0,
            proved: None,
            fitting: 0,
            expected: 0,
            broken: false,
            owned_up: 0,
            faults: Vec::new(),
            more_faults: 0,
        };
        for (i, note) in notes.into_iter().enumerate() {
            match Checkpoint::open(note, key) {
                Ok(checkpoint) => {
                    let size = checkpoint.size;
                    if check.due.get(&size).is_some_and(|known| known.root != checkpoint.root) {
                        check.fault(Fault::Forked { size });
                    }
                    check.due.insert(size, checkpoint);
                }
                Err(err) => check.fault(Fault::Checkpoint { number: i + 1, err }),
            }
        }
        check.reach_checkpoint();
        check
    }

    /// The caller knows, from elsewhere, that the log once had `size` signed leaves.
    pub fn expect_at_least(&mut self, size: u64) {
        self.expected = size;
    }

    /// The next leaf.
    pub fn leaf(&mut self, leaf: Leaf<'_>) {
        if leaf.index != self.next_index {
            self.fault(Fault::Gap { expected: self.next_index, found: leaf.index });
        }
        self.next_index = leaf.index.saturating_add(1);
        let hash = leaf_hash(leaf.record);
        if leaf.hash.is_some_and(|stored| stored != hash) {
            self.fault(Fault::Altered { index: leaf.index });
        }
        match serde_json::from_slice::<Head>(leaf.record) {
            Ok(head) => self.sequence(leaf.index, head),
            Err(_) => self.fault(Fault::NotARecord { index: leaf.index }),
        }
        self.frontier.push(hash);
        self.reach_checkpoint();
    }

    /// No more leaves.
    #[must_use]
    pub fn finish(mut self) -> Report {
        let leaves = self.frontier.size();
        let signed = self.due.keys().next_back().copied();
        if let Some(size) = signed.filter(|&size| size > leaves) {
            self.fault(Fault::Truncated { size, leaves });
        }
        if signed.is_none() && leaves > 0 {
            self.fault(Fault::Unsigned);
        }
        let newest = signed.unwrap_or(0);
        if newest < self.expected {
            self.fault(Fault::RolledBack { expected: self.expected, size: newest });
        }
        Report {
            origin: self.origin,
            leaves,
            checkpoints: self.fitting,
            proved: self.proved,
            proved_time_ns: self.proved_time_ns,
            owned_up: self.owned_up,
            faults: self.faults,
            more_faults: self.more_faults,
        }
    }

    fn fault(&mut self, fault: Fault) {
        if self.faults.len() < MAX_FAULTS {
            self.faults.push(fault);
        } else {
            self.more_faults += 1;
        }
    }

    fn sequence(&mut self, index: u64, head: Head) {
        self.newest_time_ns = self.newest_time_ns.max(head.time_ns);
        let Source { maker, boot, seq } = head.source;
        if let (Some(host), Some(loss)) = (&head.host, &head.loss)
            && loss.why == MISSING
        {
            *self.announced.entry(host.clone()).or_default() += loss.count;
        }
        let newest = self.newest.entry((maker.clone(), boot)).or_default();
        let before = *newest;
        if seq <= before {
            self.fault(Fault::Repeated { index, maker, seq, newest: before });
            return;
        }
        *newest = seq;
        let count = seq - before - 1;
        if count > 0 {
            let announced = self.announced.entry(maker.clone()).or_default();
            if *announced >= count {
                *announced -= count;
                self.owned_up += count;
            } else {
                self.fault(Fault::Missing { index, maker, from: before + 1, count });
            }
        }
    }

    fn reach_checkpoint(&mut self) {
        let size = self.frontier.size();
        let Some(checkpoint) = self.due.get(&size) else { return };
        if checkpoint.root == self.frontier.root() {
            self.fitting += 1;
            self.proved = Some(checkpoint.clone());
            self.proved_time_ns = self.newest_time_ns;
        } else if !self.broken {
            // Once the tree has left the signed one every later root differs too: the first says where.
            self.broken = true;
            let from = self.proved.as_ref().map_or(0, |c| c.size);
            self.fault(Fault::Root { from, to: size.saturating_sub(1) });
        }
    }
}

/// Nanoseconds since the Unix epoch as `YYYY-MM-DD HH:MM:SS UTC`.
struct UtcTime(u64);

impl fmt::Display for UtcTime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.0 / 1_000_000_000;
        let (days, rest) = (seconds / 86_400, seconds % 86_400);
        // Howard Hinnant's civil-from-days, for dates from 1970 on.
        let shifted = days + 719_468;
        let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
        let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
        let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let month_index = (5 * day_of_year + 2) / 153;
        let day = day_of_year - (153 * month_index + 2) / 5 + 1;
        let month = if month_index < 10 { month_index + 3 } else { month_index - 9 };
        let year = year_of_era + era * 400 + u64::from(month <= 2);
        write!(
            f,
            "{year:04}-{month:02}-{day:02} {:02}:{:02}:{:02} UTC",
            rest / 3600,
            rest / 60 % 60,
            rest % 60
        )
    }
}

#[cfg(test)]
mod tests;
