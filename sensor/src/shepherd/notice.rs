//! Placing the sensor's own lines in a program's output: in order, whole, and not inside a character or an escape.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use bytes::Bytes;

/// Lines kept while they cannot be placed; more are dropped (the sensor limits their rate already).
const QUEUE: usize = 32;
/// Longest line in bytes.
const LONGEST: usize = 2_048;
/// So long a line waits for the program to finish a character or escape sequence.
const PATIENCE: Duration = Duration::from_millis(100);
/// An escape sequence that has not ended within so many bytes is none.
const ESCAPE: usize = 64;

/// Lines to place and what the stream they go to ended with.
#[derive(Debug)]
pub(crate) struct Notices {
    lines: VecDeque<(String, Instant)>,
    end_of_line: &'static str,
    tail: Vec<u8>,
}

impl Notices {
    /// For a terminal (`\r\n`) or for standard error of a program without one (`\n`).
    pub(crate) fn new(terminal: bool) -> Self {
        Self { lines: VecDeque::new(), end_of_line: if terminal { "\r\n" } else { "\n" }, tail: Vec::new() }
    }

    /// Queues a line. Control characters are taken out: what a rule or a path says never steers a terminal.
    pub(crate) fn push(&mut self, line: &str, now: Instant) {
        if self.lines.len() < QUEUE {
            let clean: String = line.chars().map(|c| if c.is_control() { '?' } else { c }).collect();
            let mut end = clean.len().min(LONGEST);
            while !clean.is_char_boundary(end) {
                end -= 1;
            }
            self.lines.push_back((clean[..end].to_owned(), now));
        }
    }

    /// Whether a line waits.
    pub(crate) fn is_waiting(&self) -> bool {
        !self.lines.is_empty()
    }

    /// Remembers how the stream's output ends. Looks at the last bytes only.
    pub(crate) fn saw(&mut self, output: &[u8]) {
        if output.len() >= ESCAPE {
            self.tail.clear();
        }
        self.tail.extend_from_slice(&output[output.len().saturating_sub(ESCAPE)..]);
        let surplus = self.tail.len().saturating_sub(ESCAPE);
        self.tail.drain(..surplus);
    }

    /// When a waiting line must be placed whatever the stream ends with.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.lines.front().map(|(_, since)| *since + PATIENCE)
    }

    /// All waiting lines as output, if this is a moment for them (or `force`).
    pub(crate) fn take(&mut self, now: Instant, force: bool) -> Option<Bytes> {
        let deadline = self.deadline()?;
        if !force && now < deadline && is_inside_sequence(&self.tail) {
            return None;
        }
        let mut text = String::new();
        if self.tail.last().is_some_and(|byte| *byte != b'\n') {
            text.push_str(self.end_of_line);
        }
        for (line, _) in self.lines.drain(..) {
            text.push_str(&line);
            text.push_str(self.end_of_line);
        }
        self.saw(text.as_bytes());
        Some(Bytes::from(text))
    }
}

/// Whether more bytes of the same character or escape sequence must follow.
fn is_inside_sequence(tail: &[u8]) -> bool {
    is_inside_utf8(tail)
        || tail.iter().rposition(|byte| *byte == 0x1b).is_some_and(|at| is_open_escape(&tail[at + 1..]))
}

fn is_inside_utf8(tail: &[u8]) -> bool {
    let n_continuation = tail.iter().rev().take_while(|byte| **byte & 0xc0 == 0x80).count();
    let lead = tail.len().checked_sub(n_continuation + 1).map_or(0, |at| tail[at]);
    let n_expected = match lead {
        0xc2..=0xdf => 1,
        0xe0..=0xef => 2,
        0xf0..=0xf4 => 3,
        _ => return false,
    };
    n_continuation < n_expected
}

/// What follows ESC has not come to its end (ECMA-48: CSI to a final byte; OSC, DCS, APC, PM to BEL or ST).
fn is_open_escape(after: &[u8]) -> bool {
    match after {
        [] => true,
        [b'[', rest @ ..] => !rest.iter().any(|byte| (0x40..=0x7e).contains(byte)),
        // ST is itself an ESC, so an ended string is not seen here; only BEL ends it within.
        [b']' | b'P' | b'_' | b'^', rest @ ..] => !rest.contains(&7),
        // Intermediates, then one final byte.
        rest => !rest.iter().any(|byte| *byte >= 0x30),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn open_sequences_are_seen() {
        for open in [&b"abc\x1b"[..], b"\x1b[", b"\x1b[1;3", b"\x1b]0;title", b"\xc3", b"x\xe2\x82", b"\x1b("]
        {
            assert!(is_inside_sequence(open), "{open:?}");
        }
        for closed in [
            &b""[..],
            b"abc",
            b"\x1b[1m",
            b"\x1b]0;t\x07",
            b"\x1b]0;t\x1b\\",
            "é€".as_bytes(),
            b"\x1b(B",
            b"\xff\x80",
        ] {
            assert!(!is_inside_sequence(closed), "{closed:?}");
        }
    }

    #[test]
    fn lines_wait_for_the_sequence_but_not_for_ever() {
        let now = Instant::now();
        let mut notices = Notices::new(true);
        notices.saw(b"$ \x1b[");
        notices.push("sallyport: blocked\x1b[2J", now);
        assert_eq!(notices.take(now, false), None);
        notices.saw(b"0m");
        assert_eq!(notices.take(now, false).as_deref(), Some(&b"\r\nsallyport: blocked?[2J\r\n"[..]));
        notices.saw(b"\x1b[");
        notices.push("two", now);
        assert!(notices.take(now, false).is_none());
        assert!(notices.take(now + PATIENCE, false).is_some());
    }

    #[test]
    fn a_flood_is_bounded() {
        let mut notices = Notices::new(false);
        for _ in 0..1_000 {
            notices.push(&"é".repeat(5_000), Instant::now());
        }
        assert!(notices.take(Instant::now(), true).is_some_and(|bytes| bytes.len() <= QUEUE * (LONGEST + 1)));
    }
}
