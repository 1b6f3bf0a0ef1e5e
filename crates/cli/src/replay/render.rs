//! Printing the timeline: output as it was, and between its lines what the kernel saw.
//!
//! A line of the kernel's never cuts a line of the session's in two: it waits for the next line's start, or at
//! most [`PATIENCE`]; while a full-screen program has the screen, it waits until that ends. Each carries a mark that
//! is drawn by lot for every replay, so nothing recorded can look like one.

use std::time::Duration;

use super::{
    screen::Screen,
    timeline::{Item, Timed},
};

/// How long, in the recording's time, a note waits for the current line to end.
const PATIENCE: Duration = Duration::from_millis(300);
/// Notes that wait at most; a full-screen program may run for hours. The rest is counted.
const WAITING: usize = 500;

/// Turns items into what is written to the terminal or file.
pub struct Render {
    screen: Screen,
    colour: bool,
    plain: bool,
    mark: String,
    waiting: Vec<String>,
    waiting_since: Duration,
    left_out: usize,
}

impl Render {
    /// `plain`: not a terminal, only text. `mark` begins the kernel's lines.
    #[must_use]
    pub fn new(plain: bool, colour: bool, mark: &str) -> Self {
        Self {
            screen: Screen::new(plain),
            colour,
            plain,
            mark: mark.to_owned(),
            waiting: Vec::new(),
            waiting_since: Duration::ZERO,
            left_out: 0,
        }
    }

    /// What brings a terminal back to its ordinary state.
    #[must_use]
    pub fn reset() -> &'static str {
        // Soft reset, main screen, cursor on, no colours.
        "\x1b[!p\x1b[?1049l\x1b[?25h\x1b[0m"
    }

    /// Starts again on an empty screen.
    pub fn clear(&mut self, out: &mut String) {
        *self = Self::new(self.plain, self.colour, &self.mark);
        if !self.plain {
            out.push_str(Self::reset());
            out.push_str("\x1b[2J\x1b[H");
        }
    }

    /// Adds what is to be written for an item.
    pub fn item(&mut self, timed: &Timed, out: &mut String) {
        if timed.at.saturating_sub(self.waiting_since) > PATIENCE {
            self.show_waiting(true, out);
        }
        match &timed.item {
            Item::Output(text) => self.output(text, out),
            Item::Kernel(note) => self.note(&note.text, note.is_bad, timed.at, out),
            Item::Remark(text) => self.note(&format!("recorder: {text}"), false, timed.at, out),
            // The player's terminal has the size that it has.
            Item::Resize(..) => {}
            Item::Exit(status) => {
                self.note(&format!("ended with status {status}"), status != "0", timed.at, out)
            }
        }
    }

    /// The end: what still waits.
    pub fn finish(&mut self, out: &mut String) {
        if self.screen.is_alternate() {
            out.push_str(if self.plain { "" } else { "\x1b[?1049l" });
            self.screen = Screen::new(self.plain);
        }
        self.show_waiting(true, out);
        if !self.screen.at_line_start() {
            out.push_str("\r\n".trim_start_matches(if self.plain { '\r' } else { '\0' }));
        }
    }

    fn output(&mut self, text: &str, out: &mut String) {
        let mut rest = text;
        while !self.waiting.is_empty() {
            let Some(end) = rest.find('\n') else { break };
            let (line, tail) = rest.split_at(end + 1);
            self.screen.pass(line, out);
            rest = tail;
            self.show_waiting(false, out);
            if self.screen.is_alternate() {
                break;
            }
        }
        self.screen.pass(rest, out);
    }

    fn note(&mut self, text: &str, is_bad: bool, at: Duration, out: &mut String) {
        if self.waiting.is_empty() {
            self.waiting_since = at;
        }
        if self.waiting.len() < WAITING {
            let (on, off) = match (self.colour, is_bad) {
                (false, _) => ("", ""),
                (true, true) => ("\x1b[0;1;31m", "\x1b[0m"),
                (true, false) => ("\x1b[0;2m", "\x1b[0m"),
            };
            self.waiting.push(format!("{on}{} {text}{off}", self.mark));
        } else {
            self.left_out += 1;
        }
        self.show_waiting(false, out);
    }

    fn show_waiting(&mut self, even_within_a_line: bool, out: &mut String) {
        if self.waiting.is_empty() || self.screen.is_alternate() {
            return;
        }
        let line_end = if self.plain { "\n" } else { "\r\n" };
        if !self.screen.at_line_start() {
            if !even_within_a_line {
                return;
            }
            self.screen.pass(line_end, out);
        }
        for line in self.waiting.drain(..) {
            out.push_str(&line);
            out.push_str(line_end);
        }
        if self.left_out > 0 {
            out.push_str(&format!("{} and {} more{line_end}", self.mark, self.left_out));
            self.left_out = 0;
        }
        if self.colour {
            out.push_str(self.screen.colours());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{super::timeline::Note, *};

    fn output(ms: u64, text: &str) -> Timed {
        Timed { at: Duration::from_millis(ms), item: Item::Output(text.to_owned()) }
    }

    fn kernel(ms: u64, text: &str) -> Timed {
        let note = Note { index: 1, time_ns: 0, text: text.to_owned(), is_bad: false };
        Timed { at: Duration::from_millis(ms), item: Item::Kernel(note) }
    }

    fn shown(items: &[Timed]) -> String {
        let mut render = Render::new(false, false, "|k|");
        let mut out = String::new();
        for timed in items {
            render.item(timed, &mut out);
        }
        render.finish(&mut out);
        out
    }

    #[test]
    fn between_the_lines() {
        let shown = shown(&[output(0, "$ nmap"), kernel(10, "exec nmap"), output(20, "\r\nEPERM\r\n$ ")]);
        assert_eq!(shown, "$ nmap\r\n|k| exec nmap\r\nEPERM\r\n$ \r\n");
    }

    #[test]
    fn a_line_that_does_not_end_is_broken_after_a_while() {
        let shown = shown(&[output(0, "working"), kernel(10, "exec x"), output(900, "...")]);
        assert_eq!(shown, "working\r\n|k| exec x\r\n...\r\n");
    }

    #[test]
    fn full_screen_programs_are_not_disturbed() {
        let shown = shown(&[
            output(0, "\x1b[?1049hvim"),
            kernel(10, "exec sh"),
            output(2000, "~\r\n~"),
            output(3000, "\x1b[?1049l"),
            output(4000, "$ "),
        ]);
        assert_eq!(shown, "\x1b[?1049hvim~\r\n~\x1b[?1049l\r\n|k| exec sh\r\n$ \r\n");
    }

    #[test]
    fn colours_of_the_session_come_back() {
        let mut render = Render::new(false, true, "|k|");
        let mut out = String::new();
        render.item(&output(0, "\x1b[32mgreen\r\n"), &mut out);
        render.item(&kernel(0, "exec"), &mut out);
        assert!(out.ends_with("\x1b[0;2m|k| exec\x1b[0m\r\n\x1b[32m"), "{out:?}");
    }

    #[test]
    fn as_text() {
        let mut render = Render::new(true, false, "|k|");
        let mut out = String::new();
        for timed in [output(0, "\x1b[1ma\x1b[0m\r\nb"), kernel(1000, "exec")] {
            render.item(&timed, &mut out);
        }
        render.finish(&mut out);
        assert_eq!(out, "a\nb\n|k| exec\n");
    }
}
