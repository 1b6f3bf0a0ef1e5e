//! What came of it, as lines that xtask reads from the standard output or a virtual machine's console.

use serde::Serialize;

use crate::technique::{Claim, Technique};

/// What came of one technique.
#[derive(Debug, Serialize)]
pub(crate) struct Row {
    pub(crate) group: &'static str,
    pub(crate) name: &'static str,
    pub(crate) verdict: Verdict,
    /// The threat model says that it is prevented, in this mode.
    pub(crate) claimed: bool,
    /// Why it is not claimed, why it was not tried, or which control failed and how.
    pub(crate) note: String,
}

/// The verdict on a technique.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Verdict {
    /// It did not happen: the call failed.
    Blocked,
    /// It did not happen: the process was killed.
    Killed,
    /// It happened.
    Lost,
    /// It does not work on this kernel or computer, even without the sensor.
    Na,
    /// A control failed: something that should have worked did not, so the row proves nothing.
    Broken,
}

/// The whole run.
#[derive(Debug, Serialize)]
pub(crate) struct Summary {
    pub(crate) mode: String,
    pub(crate) release: String,
    pub(crate) rows: usize,
}

/// Starts a line with a row as JSON.
const ROW: &str = "battery-row: ";
/// Starts the last line.
const END: &str = "battery-end: ";

/// Prints a row.
pub(crate) fn row(row: &Row) {
    if let Ok(text) = serde_json::to_string(row) {
        println!("{ROW}{text}");
    }
}

/// Prints the last line.
pub(crate) fn end(summary: &Summary) {
    if let Ok(text) = serde_json::to_string(summary) {
        println!("{END}{text}");
    }
}

impl Row {
    pub(crate) fn new(technique: &Technique, tracepoint: bool, verdict: Verdict, note: String) -> Self {
        let Claim { lsm, tracepoint: traced, why } = technique.claim;
        let claimed = if tracepoint { traced } else { lsm };
        let note = if note.is_empty() && !claimed { why.to_owned() } else { note };
        Self { group: technique.group, name: technique.name, verdict, claimed, note }
    }
}
