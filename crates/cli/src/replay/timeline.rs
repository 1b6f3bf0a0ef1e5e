//! One order for what was shown and what the kernel saw.

use std::time::Duration;

use sallyport_evidence::record::{Kind, Record};

use crate::{
    cast::{self, What},
    out::Out,
    record_line, text,
};

/// A record that belongs to the recording.
#[derive(Clone, Debug, PartialEq)]
pub struct Note {
    /// Index in the log.
    pub index: u64,
    /// Wall clock, nanoseconds since the Unix epoch.
    pub time_ns: u64,
    /// One safe line.
    pub text: String,
    /// Something was refused or lost.
    pub is_bad: bool,
}

/// What the timeline holds.
#[derive(Clone, Debug, PartialEq)]
pub enum Item {
    /// Output of the session.
    Output(String),
    /// The terminal's new size.
    Resize(u16, u16),
    /// A remark of the recorder.
    Remark(String),
    /// What the kernel saw.
    Kernel(Note),
    /// The exit status.
    Exit(String),
}

/// An item and when.
#[derive(Clone, Debug, PartialEq)]
pub struct Timed {
    /// Since the recording's start.
    pub at: Duration,
    /// What.
    pub item: Item,
}

/// The note for a record, if it is worth showing in a replay: programs, connections, listening, refusals, losses.
/// (Files that were simply used would drown the rest.)
#[must_use]
pub fn note(index: u64, record: &Record, channel: &str) -> Option<Note> {
    let is_bad = record_line::is_bad(record);
    if !is_bad && !matches!(record.kind, Kind::Exec | Kind::Connect | Kind::Listen) {
        return None;
    }
    // Records of the session as a whole belong to every channel of it.
    let of = record.session.as_ref().map_or("", |session| session.channel.as_str());
    if !of.is_empty() && !channel.is_empty() && of != channel {
        return None;
    }
    let plain = Out { json: false, colour: false };
    let mut text = record_line::what(record);
    if let Some(decision) = record.decision.as_ref().filter(|_| is_bad) {
        text = format!("{text}  {}", record_line::judged(plain, decision));
    }
    Some(Note { index, time_ns: record.time_ns, text, is_bad })
}

/// Puts events and notes in order. `start_ns` is the recording's start by the wall clock; notes from before it
/// come first. With notes, the recorder's own markers about refusals are left out: they say less about the same.
#[must_use]
pub fn merge(events: Vec<cast::Event>, mut notes: Vec<Note>, start_ns: u64) -> Vec<Timed> {
    notes.sort_by_key(|note| (note.time_ns, note.index));
    let has_notes = !notes.is_empty();
    let since = |note: &Note| Duration::from_nanos(note.time_ns.saturating_sub(start_ns));
    let mut merged = Vec::with_capacity(events.len() + notes.len());
    let mut notes = notes.into_iter().peekable();
    for cast::Event { at, what } in events {
        while let Some(note) = notes.next_if(|note| since(note) < at) {
            merged.push(Timed { at: since(&note), item: Item::Kernel(note) });
        }
        let item = match what {
            What::Output(text) => Item::Output(text),
            What::Resize(columns, rows) => Item::Resize(columns, rows),
            What::Marker(label) if has_notes && is_about_refusal(&label) => continue,
            What::Marker(label) => Item::Remark(text::safe(&label, 300)),
            What::Exit(status) => Item::Exit(text::safe(&status, 20)),
            // What was typed is in the output, as far as it was meant to be seen.
            What::Input(_) => continue,
        };
        merged.push(Timed { at, item });
    }
    merged.extend(notes.map(|note| Timed { at: since(&note), item: Item::Kernel(note) }));
    merged
}

/// The recorder writes `record 12: blocked /usr/bin/nmap (rule no-scanners)`.
fn is_about_refusal(label: &str) -> bool {
    let about = label
        .strip_prefix("record ")
        .and_then(|rest| rest.split_once(": "))
        .map_or(label, |(_, about)| about);
    ["blocked ", "killed ", "observed "].iter().any(|word| about.starts_with(word))
}

/// When the recording began, nanoseconds since the Unix epoch. The header counts whole seconds; the record of
/// the channel's opening is exact, if it fits.
#[must_use]
pub fn start_ns(header: &cast::Header, opened_ns: Option<u64>) -> u64 {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "not negative, and the cast saturates"
    )]
    let header_ns = (header.timestamp.unwrap_or(0.0) * 1e9) as u64;
    match opened_ns {
        Some(opened) if header_ns == 0 || opened.abs_diff(header_ns) < 3_000_000_000 => opened,
        _ => header_ns,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn output(ms: u64, text: &str) -> cast::Event {
        cast::Event { at: Duration::from_millis(ms), what: What::Output(text.to_owned()) }
    }

    fn note(ms: u64, index: u64) -> Note {
        Note { index, time_ns: 5_000_000_000 + ms * 1_000_000, text: "exec".to_owned(), is_bad: false }
    }

    #[test]
    fn in_order() {
        let marker = |ms, label: &str| cast::Event {
            at: Duration::from_millis(ms),
            what: What::Marker(label.to_owned()),
        };
        let events = vec![
            output(0, "a"),
            output(100, "b"),
            marker(110, "record 3: blocked x"),
            marker(110, "binary"),
            output(200, "c"),
        ];
        let merged = merge(events, vec![note(150, 3), note(50, 2), note(999, 4)], 5_000_000_000);
        let shape: Vec<String> = merged
            .iter()
            .map(|timed| match &timed.item {
                Item::Output(text) => format!("{text}{}", timed.at.as_millis()),
                Item::Kernel(note) => format!("#{}@{}", note.index, timed.at.as_millis()),
                Item::Remark(text) => text.clone(),
                other => format!("{other:?}"),
            })
            .collect();
        assert_eq!(shape, ["a0", "#2@50", "b100", "binary", "#3@150", "c200", "#4@999"]);
    }

    #[test]
    fn markers_stay_without_notes() {
        let events = vec![cast::Event { at: Duration::ZERO, what: What::Marker("blocked x".to_owned()) }];
        assert_eq!(merge(events, Vec::new(), 0).len(), 1);
    }

    #[test]
    fn the_exact_start_is_taken_if_it_fits() {
        let header = cast::Header {
            columns: 80,
            rows: 24,
            timestamp: Some(100.0),
            title: String::new(),
            command: String::new(),
            is_terminal: true,
        };
        assert_eq!(start_ns(&header, Some(100_700_000_000)), 100_700_000_000);
        assert_eq!(start_ns(&header, Some(900_000_000_000)), 100_000_000_000);
        assert_eq!(start_ns(&header, None), 100_000_000_000);
    }
}
