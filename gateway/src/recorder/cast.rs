//! asciicast v3, written event by event: <https://docs.asciinema.org/manual/asciicast/v3/>.
//!
//! Sans-IO: events in, bytes out. Text output is kept whole. Bytes that are no text (a file copied through a
//! pipe) cannot stand in a JSON string: the first [`BINARY_KEPT`] bytes are shown with replacement characters, and
//! from there on only counted and hashed, in markers.

use serde_json::json;
use sha2::{Digest as _, Sha256};
use std::time::Duration;

/// Binary output shown per stream before it is only counted and hashed: enough to see what it is.
pub const BINARY_KEPT: u64 = 16 * 1024;

/// What the header says.
#[derive(Clone, Debug)]
pub struct Header {
    /// Columns and rows.
    pub size: (u32, u32),
    /// Terminal type; none for pipes.
    pub term: Option<String>,
    /// Start, seconds since the Unix epoch.
    pub timestamp: u64,
    /// One line for people.
    pub title: String,
    /// The command, if one was asked for.
    pub command: Option<String>,
}

/// An output stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stream {
    /// Terminal or stdout.
    Stdout,
    /// stderr.
    Stderr,
}

/// Encodes the events of one recording.
pub struct Cast {
    last: Duration,
    out: Vec<u8>,
    streams: [StreamState; 2],
}

struct StreamState {
    name: &'static str,
    /// The start of a character whose rest has not come yet.
    partial: Vec<u8>,
    binary_shown: u64,
    counted: u64,
    hash: Sha256,
}

impl Cast {
    /// Starts with the header.
    #[must_use]
    pub fn new(header: &Header) -> Self {
        let Header { size, term, timestamp, title, command } = header;
        let mut terminal = json!({ "cols": size.0.max(1), "rows": size.1.max(1) });
        if let Some(term) = term {
            terminal["type"] = json!(term);
        }
        let mut head = json!({ "version": 3, "term": terminal, "timestamp": timestamp, "title": title });
        if let Some(command) = command {
            head["command"] = json!(command);
        }
        let stream = |name| StreamState {
            name,
            partial: Vec::new(),
            binary_shown: 0,
            counted: 0,
            hash: Sha256::new(),
        };
        Self {
            last: Duration::ZERO,
            out: format!("{head}\n").into_bytes(),
            streams: [stream("stdout"), stream("stderr")],
        }
    }

    /// Bytes waiting to be taken.
    #[must_use]
    pub fn pending(&self) -> usize {
        self.out.len()
    }

    /// Takes what is encoded: whole lines.
    #[must_use]
    pub fn take(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.out)
    }

    /// Output at `now` since the start.
    pub fn output(&mut self, now: Duration, stream: Stream, data: &[u8]) {
        let state = &mut self.streams[stream as usize];
        let joined;
        let data = if state.partial.is_empty() {
            data
        } else {
            joined = [&std::mem::take(&mut state.partial), data].concat();
            &joined
        };
        let text = match std::str::from_utf8(data) {
            Ok(text) => text,
            // A character cut in two by a frame's end: the rest will come.
            Err(err) if err.error_len().is_none() => {
                let (whole, rest) = data.split_at(err.valid_up_to());
                state.partial = rest.to_vec();
                std::str::from_utf8(whole).unwrap_or_default()
            }
            Err(_) => return self.binary(now, stream, data),
        };
        if text.contains('\0') {
            return self.binary(now, stream, text.as_bytes());
        }
        if !text.is_empty() {
            self.event(now, 'o', text);
        }
    }

    /// The terminal's new size.
    pub fn resize(&mut self, now: Duration, columns: u32, rows: u32) {
        self.event(now, 'r', &format!("{columns}x{rows}"));
    }

    /// A marker.
    pub fn marker(&mut self, now: Duration, label: &str) {
        self.event(now, 'm', label);
    }

    /// The end: what is left of cut characters, the sums of binary output, and the exit status, if it is known.
    pub fn end(&mut self, now: Duration, status: Option<u32>) {
        for stream in [Stream::Stdout, Stream::Stderr] {
            let rest = std::mem::take(&mut self.streams[stream as usize].partial);
            if !rest.is_empty() {
                self.event(now, 'o', &String::from_utf8_lossy(&rest));
            }
            let state = &mut self.streams[stream as usize];
            if state.counted > 0 {
                let hash = hex::encode(state.hash.finalize_reset());
                let label =
                    format!("{}: {} bytes of binary output, sha256 {hash}", state.name, state.counted);
                self.event(now, 'm', &label);
            }
        }
        if let Some(status) = status {
            self.event(now, 'x', &status.to_string());
        }
    }

    fn binary(&mut self, now: Duration, stream: Stream, data: &[u8]) {
        let state = &mut self.streams[stream as usize];
        let first = state.counted == 0;
        state.counted += data.len() as u64;
        state.hash.update(data);
        let name = state.name;
        let room = usize::try_from(BINARY_KEPT.saturating_sub(state.binary_shown)).unwrap_or(usize::MAX);
        let shown = &data[..data.len().min(room)];
        state.binary_shown += shown.len() as u64;
        if first {
            self.marker(now, &format!("{name}: binary output; its first {BINARY_KEPT} bytes are shown, all is counted and hashed"));
        }
        if !shown.is_empty() {
            self.event(now, 'o', &String::from_utf8_lossy(shown));
        }
    }

    fn event(&mut self, now: Duration, code: char, data: &str) {
        // The format wants seconds since the event before, at least milliseconds.
        let interval = now.saturating_sub(self.last);
        self.last = now.max(self.last);
        let head = format!("[{}.{:06},\"{code}\",", interval.as_secs(), interval.subsec_micros());
        self.out.extend_from_slice(head.as_bytes());
        // Writing a string into memory cannot fail.
        let _ = serde_json::to_writer(&mut self.out, data);
        self.out.extend_from_slice(b"]\n");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;

    fn cast() -> Cast {
        Cast::new(&Header {
            size: (80, 24),
            term: Some("xterm".into()),
            timestamp: 1_750_000_000,
            title: "alice as root on web-1".into(),
            command: None,
        })
    }

    fn lines(cast: &mut Cast) -> Vec<Value> {
        String::from_utf8(cast.take()).unwrap().lines().map(|l| serde_json::from_str(l).unwrap()).collect()
    }

    #[test]
    fn header_and_relative_times() {
        let mut cast = cast();
        cast.output(Duration::from_millis(1500), Stream::Stdout, b"hi \"you\"\r\n\x1b[1m");
        cast.resize(Duration::from_millis(1750), 100, 50);
        cast.marker(Duration::from_millis(1750), "12 blocked");
        cast.end(Duration::from_secs(2), Some(3));
        let lines = lines(&mut cast);
        assert_eq!(lines[0]["version"], 3);
        assert_eq!(lines[0]["term"], json!({ "cols": 80, "rows": 24, "type": "xterm" }));
        assert_eq!(lines[1], json!([1.5, "o", "hi \"you\"\r\n\u{1b}[1m"]));
        assert_eq!(lines[2], json!([0.25, "r", "100x50"]));
        assert_eq!(lines[3], json!([0.0, "m", "12 blocked"]));
        assert_eq!(lines[4], json!([0.25, "x", "3"]));
    }

    #[test]
    fn characters_cut_in_two_are_joined_per_stream() {
        let mut cast = cast();
        let text = "grüße ✓".as_bytes();
        for byte in text {
            cast.output(Duration::ZERO, Stream::Stdout, &[*byte]);
            cast.output(Duration::ZERO, Stream::Stderr, b".");
        }
        let joined: String =
            lines(&mut cast)[1..].iter().filter_map(|l| l[2].as_str()).filter(|s| *s != ".").collect();
        assert_eq!(joined, "grüße ✓");
    }

    #[test]
    fn binary_is_counted_and_hashed_and_stays_small() {
        let mut cast = cast();
        let block = [0u8, 159, 146, 150].repeat(16 * 1024);
        for _ in 0..100 {
            cast.output(Duration::ZERO, Stream::Stdout, &block);
        }
        cast.output(Duration::ZERO, Stream::Stdout, b"then text\n");
        cast.end(Duration::ZERO, Some(0));
        assert!(cast.pending() < 20 * usize::try_from(BINARY_KEPT).unwrap());
        let lines = lines(&mut cast);
        let hash = hex::encode(Sha256::digest(block.repeat(100)));
        let sum = format!("stdout: {} bytes of binary output, sha256 {hash}", block.len() * 100);
        assert!(lines.contains(&json!([0.0, "m", sum])));
        assert!(lines.contains(&json!([0.0, "o", "then text\n"])));
    }

    #[test]
    fn a_cut_character_at_the_end_is_not_lost() {
        let mut cast = cast();
        cast.output(Duration::ZERO, Stream::Stdout, b"a\xe2\x9c");
        cast.end(Duration::ZERO, None);
        assert_eq!(lines(&mut cast)[2], json!([0.0, "o", "\u{fffd}"]));
    }
}
