//! Faults of a bundle: each with its place, the line, a caret, and a sentence that helps.

use std::fmt;

use serde::Serialize;

/// All faults that were found in a bundle; never empty.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Diagnostics {
    /// In order of file and place.
    pub faults: Vec<Fault>,
}

/// One fault.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Fault {
    /// File in the bundle.
    pub file: String,
    /// Line, from 1; 0 if the fault concerns the whole file.
    pub line: u32,
    /// Column in characters, from 1; 0 if the fault concerns the whole file.
    pub column: u32,
    /// What is wrong.
    pub message: String,
    /// The line of the file.
    pub excerpt: String,
    /// How many characters of the line are meant.
    pub length: u32,
    /// What to do about it.
    pub help: Option<String>,
}

impl fmt::Display for Diagnostics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, fault) in self.faults.iter().enumerate() {
            if i > 0 {
                writeln!(f)?;
            }
            write!(f, "{fault}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Diagnostics {}

impl Fault {
    /// At byte `offset` of a file's `text`, `length` bytes long.
    pub(crate) fn at(
        (file, text): (&str, &str),
        (offset, length): (usize, usize),
        message: impl Into<String>,
        help: Option<String>,
    ) -> Self {
        let offset = text.floor_char_boundary(offset.min(text.len()));
        let end = text.floor_char_boundary((offset + length).min(text.len()));
        let start_of_line = text[..offset].rfind('\n').map_or(0, |at| at + 1);
        let end_of_line = text[offset..].find('\n').map_or(text.len(), |at| offset + at);
        let marked = &text[offset..end.clamp(offset, end_of_line)];
        Self {
            file: file.to_owned(),
            line: line_of(text, offset),
            column: small(text[start_of_line..offset].chars().count() + 1),
            message: message.into(),
            excerpt: printable(&text[start_of_line..end_of_line]),
            length: small(marked.chars().count().max(1)),
            help,
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.line == 0 {
            writeln!(f, "{}: {}", self.file, self.message)?;
        } else {
            writeln!(f, "{}:{}:{}: {}", self.file, self.line, self.column, self.message)?;
            let number = self.line.to_string();
            let margin = " ".repeat(number.len());
            // The caret must stand under the text, so tabs are repeated.
            let indent: String = self
                .excerpt
                .chars()
                .take(self.column.saturating_sub(1) as usize)
                .map(|c| if c == '\t' { '\t' } else { ' ' })
                .collect();
            writeln!(f, " {margin} |")?;
            writeln!(f, " {number} | {}", self.excerpt)?;
            writeln!(f, " {margin} | {indent}{}", "^".repeat(self.length.max(1) as usize))?;
        }
        if let Some(help) = &self.help {
            writeln!(f, "   = help: {help}")?;
        }
        Ok(())
    }
}

/// Collects faults.
#[derive(Default)]
pub(crate) struct Faults {
    faults: Vec<Fault>,
}

impl Faults {
    /// A fault of a whole file.
    pub(crate) fn file(&mut self, file: &str, message: impl Into<String>, help: Option<String>) {
        self.faults.push(Fault {
            file: file.to_owned(),
            line: 0,
            column: 0,
            message: message.into(),
            excerpt: String::new(),
            length: 0,
            help,
        });
    }

    /// A fault at byte `offset` of a file's `text`, `length` bytes long.
    pub(crate) fn at(
        &mut self,
        (file, text): (&str, &str),
        (offset, length): (usize, usize),
        message: impl Into<String>,
        help: Option<String>,
    ) {
        self.faults.push(Fault::at((file, text), (offset, length), message, help));
    }

    /// Takes over faults that were found elsewhere.
    pub(crate) fn join(&mut self, more: Diagnostics) {
        self.faults.extend(more.faults);
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.faults.is_empty()
    }

    /// `value` if there was no fault.
    pub(crate) fn result<T>(mut self, value: T) -> Result<T, Diagnostics> {
        if self.faults.is_empty() {
            return Ok(value);
        }
        self.faults.sort();
        self.faults.dedup();
        Err(Diagnostics { faults: self.faults })
    }
}

/// Line of a byte offset, from 1.
pub(crate) fn line_of(text: &str, offset: usize) -> u32 {
    small(text[..offset].matches('\n').count() + 1)
}

/// A policy comes from others: nothing in it may steer the terminal that shows it.
pub(crate) fn printable(text: &str) -> String {
    text.trim_end_matches('\r')
        .chars()
        .map(|c| if c.is_control() && c != '\t' { '\u{fffd}' } else { c })
        .collect()
}

/// As [`printable`], for several lines.
pub(crate) fn printable_lines(text: &str) -> String {
    text.lines().map(printable).collect::<Vec<_>>().join("\n")
}

fn small(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}

/// The candidate closest to `word`, if one is close enough to be meant.
pub(crate) fn nearest<'a>(word: &str, candidates: &[&'a str]) -> Option<&'a str> {
    candidates
        .iter()
        .map(|candidate| (distance(word, candidate), *candidate))
        .filter(|(distance, candidate)| *distance <= candidate.len().max(3) / 3)
        .min()
        .map(|(_, candidate)| candidate)
}

/// Levenshtein distance.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let next = (diagonal + usize::from(x != *y)).min(row[j] + 1).min(row[j + 1] + 1);
            diagonal = row[j + 1];
            row[j + 1] = next;
        }
    }
    row[b.len()]
}
