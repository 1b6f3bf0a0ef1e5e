//! Standard output: plain lines, colours where they help, JSON where asked.

use std::io::{self, IsTerminal, Write};

use serde::Serialize;

use crate::text;

/// Where and how a command prints.
#[derive(Clone, Copy, Debug)]
pub struct Out {
    /// `--json`.
    pub json: bool,
    /// Standard output is a terminal and colours are wanted.
    pub colour: bool,
}

/// Looks. Each is an SGR parameter.
#[derive(Clone, Copy, Debug)]
pub enum Look {
    /// Less important.
    Dim,
    /// More important.
    Bold,
    /// Good.
    Green,
    /// Bad.
    Red,
    /// Odd.
    Yellow,
}

impl Out {
    /// Honours `NO_COLOR` (any value but empty) and `TERM=dumb`.
    #[must_use]
    pub fn new(json: bool) -> Self {
        let unwanted = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty())
            || std::env::var_os("TERM").is_some_and(|value| value == "dumb");
        Self { json, colour: !unwanted && !json && io::stdout().is_terminal() }
    }

    /// The text in that look, if colours are on.
    #[must_use]
    pub fn look(&self, look: Look, text: &str) -> String {
        if !self.colour || text.is_empty() {
            return text.to_owned();
        }
        let code = match look {
            Look::Dim => "2",
            Look::Bold => "1",
            Look::Green => "32",
            Look::Red => "31",
            Look::Yellow => "33",
        };
        format!("\x1b[{code}m{text}\x1b[0m")
    }

    /// One line on standard output.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn line(&self, line: impl AsRef<str>) -> io::Result<()> {
        let mut stdout = io::stdout().lock();
        stdout.write_all(line.as_ref().as_bytes())?;
        stdout.write_all(b"\n")
    }

    /// A remark for people: nothing with `--json`.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn remark(&self, line: impl AsRef<str>) -> io::Result<()> {
        if self.json { Ok(()) } else { self.line(line) }
    }

    /// One JSON document on one line.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn json(&self, value: &impl Serialize) -> io::Result<()> {
        let json = serde_json::to_string(value)?;
        self.line(text::safe_json(&json))
    }

    /// Several lines.
    ///
    /// # Errors
    /// They cannot be written.
    pub fn lines(&self, lines: impl IntoIterator<Item = String>) -> io::Result<()> {
        lines.into_iter().try_for_each(|line| self.line(line))
    }
}
