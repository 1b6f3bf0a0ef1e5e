//! asciicast v3, read as it arrives: <https://docs.asciinema.org/manual/asciicast/v3/>.
//!
//! Sans-IO: bytes in, events out. A recording holds what a host chose to print, so lines, times and sizes are
//! bounded, and what does not fit the format is an error with its line.

use std::time::Duration;

use serde::Deserialize;

/// Longest line. The recorder writes frames of at most 64 KiB, which escaping may multiply by six.
pub const LONGEST_LINE: usize = 4 << 20;
/// Longest recording in time.
const LONGEST: Duration = Duration::from_secs(366 * 86_400);

/// Why a recording cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CastError {
    /// Nothing there.
    #[error("the recording is empty")]
    Empty,
    /// The first line.
    #[error("line 1 is not the header of an asciicast version 3 recording")]
    Header,
    /// A line is no event.
    #[error("line {line} is not an event; the recording is damaged there")]
    Event {
        /// Which.
        line: u64,
    },
    /// A line is too long.
    #[error("line {line} is longer than 4 MiB; the recording is damaged there")]
    TooLong {
        /// Which.
        line: u64,
    },
    /// A time is no time.
    #[error("line {line} has an impossible time; the recording is damaged there")]
    Time {
        /// Which.
        line: u64,
    },
}

/// The first line.
#[derive(Clone, Debug, PartialEq)]
pub struct Header {
    /// Columns.
    pub columns: u16,
    /// Rows.
    pub rows: u16,
    /// Start, seconds since the Unix epoch.
    pub timestamp: Option<f64>,
    /// One line for people.
    pub title: String,
    /// The command, if one was asked for.
    pub command: String,
    /// It was recorded from a terminal (and not from pipes).
    pub is_terminal: bool,
}

#[derive(Deserialize)]
struct RawHeader {
    version: u32,
    #[serde(default)]
    term: RawTerm,
    #[serde(default)]
    timestamp: Option<f64>,
    #[serde(default)]
    title: Option<String>,
    #[serde(default)]
    command: Option<String>,
}

#[derive(Default, Deserialize)]
struct RawTerm {
    #[serde(default)]
    cols: u16,
    #[serde(default)]
    rows: u16,
    #[serde(default, rename = "type")]
    kind: Option<String>,
}

/// One event.
#[derive(Clone, Debug, PartialEq)]
pub struct Event {
    /// Since the start.
    pub at: Duration,
    /// What.
    pub what: What,
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum What {
    /// Output.
    Output(String),
    /// Input, where it was recorded.
    Input(String),
    /// A marker.
    Marker(String),
    /// The terminal's new size: columns and rows.
    Resize(u16, u16),
    /// The exit status.
    Exit(String),
}

/// Reads a recording piece by piece.
#[derive(Default)]
pub struct Parser {
    partial: Vec<u8>,
    line: u64,
    at: Duration,
    header: Option<Header>,
}

impl Parser {
    /// The header, once it was read.
    #[must_use]
    pub fn header(&self) -> Option<&Header> {
        self.header.as_ref()
    }

    /// The next bytes; gives the events that are whole.
    ///
    /// # Errors
    /// See [`CastError`]. Nothing more can be read then.
    pub fn push(&mut self, mut bytes: &[u8]) -> Result<Vec<Event>, CastError> {
        let mut events = Vec::new();
        while let Some(end) = bytes.iter().position(|&b| b == b'\n') {
            let (head, tail) = bytes.split_at(end);
            bytes = &tail[1..];
            let mut line = std::mem::take(&mut self.partial);
            self.check_length(line.len() + head.len())?;
            line.extend_from_slice(head);
            self.line += 1;
            events.extend(self.line(&line)?);
        }
        self.check_length(self.partial.len() + bytes.len())?;
        self.partial.extend_from_slice(bytes);
        Ok(events)
    }

    /// No more bytes. The last line may be torn: a recording may still be written, or a crash ended it.
    ///
    /// # Errors
    /// There was not even a header.
    pub fn finish(mut self) -> Result<(Header, Vec<Event>), CastError> {
        let line = std::mem::take(&mut self.partial);
        self.line += 1;
        let last = if self.header.is_some() {
            self.line(&line).ok().flatten()
        } else if line.is_empty() {
            return Err(CastError::Empty);
        } else {
            self.line(&line)?
        };
        let header = self.header.ok_or(CastError::Header)?;
        Ok((header, last.into_iter().collect()))
    }

    fn check_length(&self, length: usize) -> Result<(), CastError> {
        if length > LONGEST_LINE { Err(CastError::TooLong { line: self.line + 1 }) } else { Ok(()) }
    }

    fn line(&mut self, line: &[u8]) -> Result<Option<Event>, CastError> {
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        if self.header.is_none() {
            let raw: RawHeader = serde_json::from_slice(line).map_err(|_| CastError::Header)?;
            if raw.version != 3 {
                return Err(CastError::Header);
            }
            self.header = Some(Header {
                columns: raw.term.cols,
                rows: raw.term.rows,
                timestamp: raw.timestamp.filter(|time| time.is_finite() && *time >= 0.0),
                title: raw.title.unwrap_or_default(),
                command: raw.command.unwrap_or_default(),
                is_terminal: raw.term.kind.is_some(),
            });
            return Ok(None);
        }
        // Blank lines and comments are allowed.
        if line.iter().all(u8::is_ascii_whitespace) || line.starts_with(b"#") {
            return Ok(None);
        }
        let (interval, code, data): (f64, String, serde_json::Value) =
            serde_json::from_slice(line).map_err(|_| CastError::Event { line: self.line })?;
        let bad_time = CastError::Time { line: self.line };
        let interval = Duration::try_from_secs_f64(interval).map_err(|_| bad_time)?;
        self.at = self.at.checked_add(interval).filter(|at| *at <= LONGEST).ok_or(bad_time)?;
        let text = match data {
            serde_json::Value::String(text) => text,
            serde_json::Value::Number(number) => number.to_string(),
            _ => return Err(CastError::Event { line: self.line }),
        };
        let what = match code.as_str() {
            "o" => What::Output(text),
            "i" => What::Input(text),
            "m" => What::Marker(text),
            "x" => What::Exit(text),
            "r" => {
                let size = text.split_once('x').and_then(|(c, r)| Some((c.parse().ok()?, r.parse().ok()?)));
                let (columns, rows) = size.ok_or(CastError::Event { line: self.line })?;
                What::Resize(columns, rows)
            }
            // The format asks readers to skip codes that they do not know.
            _ => return Ok(None),
        };
        Ok(Some(Event { at: self.at, what }))
    }
}

/// Entry for fuzzing: any bytes, in any pieces, give events or an error, and the same in one piece.
pub fn fuzz_cast(bytes: &[u8]) {
    let whole = read(&[bytes]);
    let (first, second) = bytes.split_at(bytes.len() / 2);
    assert_eq!(whole, read(&[first, second]), "how it is cut must not matter");
}

fn read(pieces: &[&[u8]]) -> Result<Vec<Event>, CastError> {
    let mut parser = Parser::default();
    let mut events = Vec::new();
    for piece in pieces {
        events.extend(parser.push(piece)?);
    }
    let (_, last) = parser.finish()?;
    events.extend(last);
    Ok(events)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEADER: &str =
        r#"{"version":3,"term":{"cols":80,"rows":24,"type":"xterm"},"timestamp":1750000000,"title":"t"}"#;

    fn events(lines: &[&str]) -> Result<Vec<Event>, CastError> {
        read(&[format!("{HEADER}\n{}\n", lines.join("\n")).as_bytes()])
    }

    fn at(ms: u64, what: What) -> Event {
        Event { at: Duration::from_millis(ms), what }
    }

    #[test]
    fn intervals_add_up() {
        let read = events(&[
            r#"[1.5,"o","hi\r\n"]"#,
            "# a comment",
            "",
            r#"[0.25,"r","100x50"]"#,
            r#"[0,"m","mark"]"#,
            r#"[0.25,"x","3"]"#,
            r#"[1,"x",0]"#,
            r#"[1,"z","unknown"]"#,
        ]);
        let expected = [
            at(1500, What::Output("hi\r\n".to_owned())),
            at(1750, What::Resize(100, 50)),
            at(1750, What::Marker("mark".to_owned())),
            at(2000, What::Exit("3".to_owned())),
            at(3000, What::Exit("0".to_owned())),
        ];
        assert_eq!(read, Ok(expected.to_vec()));
    }

    #[test]
    fn the_header() {
        let mut parser = Parser::default();
        parser.push(format!("{HEADER}\n").as_bytes()).expect("read");
        let header = parser.header().expect("header");
        assert_eq!((header.columns, header.rows, header.is_terminal), (80, 24, true));
        assert_eq!(header.timestamp, Some(1_750_000_000.0));
        for bad in ["", "x\n", "{\"version\":2}\n", "[0,\"o\",\"x\"]\n"] {
            assert!(read(&[bad.as_bytes()]).is_err(), "{bad}");
        }
    }

    #[test]
    fn damage_is_named_by_its_line() {
        for line in
            [r#"[1,"o"]"#, r#"{"a":1}"#, r#"[1,"o",null]"#, r#"[1,"r","80"]"#, "junk", r#"[1,"r","99999x1"]"#]
        {
            assert_eq!(events(&[r#"[0,"o","x"]"#, line]), Err(CastError::Event { line: 3 }), "{line}");
        }
        for line in [r#"[-1,"o","x"]"#, r#"[1e300,"o","x"]"#] {
            assert_eq!(events(&[line]), Err(CastError::Time { line: 2 }), "{line}");
        }
        let long = vec![b' '; LONGEST_LINE + 1];
        assert_eq!(read(&[HEADER.as_bytes(), b"\n", &long]), Err(CastError::TooLong { line: 2 }));
    }

    #[test]
    fn a_torn_last_line_is_left_out() {
        let text = format!("{HEADER}\n[1,\"o\",\"a\"]\n[1,\"o\",\"b");
        assert_eq!(read(&[text.as_bytes()]), Ok(vec![at(1000, What::Output("a".to_owned()))]));
    }

    #[test]
    fn cuts_do_not_matter() {
        let text = format!("{HEADER}\n[1,\"o\",\"grüße\"]\n[1,\"x\",\"0\"]");
        let whole = read(&[text.as_bytes()]).expect("read");
        for cut in 0..text.len() {
            let (first, second) = text.as_bytes().split_at(cut);
            assert_eq!(read(&[first, second]).as_ref(), Ok(&whole), "cut at {cut}");
        }
        fuzz_cast(text.as_bytes());
        fuzz_cast(b"\xff\n\n[");
    }
}
