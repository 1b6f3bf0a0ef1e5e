//! What of a recording may reach the terminal: text, colours, cursor movement. What makes a terminal answer,
//! touch the clipboard, print, or change how it reports keys and mouse is left out; so are titles.
//!
//! Also keeps track of what the player must know: whether the cursor is at the start of a line, whether a
//! full-screen program has the screen, and which colours are on.

/// Longest control sequence that is passed; longer ones are left out whole.
const LONGEST_SEQUENCE: usize = 128;
/// Private modes (`CSI ? n h`) that change only what is seen.
const VISIBLE_MODES: [u16; 9] = [3, 5, 6, 7, 12, 25, 47, 1047, 1049];
/// Modes that switch to the alternate screen.
const ALTERNATE: [u16; 3] = [47, 1047, 1049];

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum State {
    #[default]
    Ground,
    Escape,
    /// `ESC` and intermediates, as in `ESC ( B`.
    EscapeMore,
    Csi,
    /// A control sequence that is already too long.
    CsiTooLong,
    /// OSC, DCS, SOS, PM or APC: left out up to its end.
    Text,
    TextEscape,
}

/// The filter. Its state lasts over events, as sequences may be cut.
#[derive(Debug, Default)]
pub struct Screen {
    /// Leave out all sequences: the output is no terminal.
    plain: bool,
    state: State,
    sequence: String,
    mid_line: bool,
    alternate: bool,
    colours: String,
}

impl Screen {
    /// `plain`: only text and line breaks pass.
    #[must_use]
    pub fn new(plain: bool) -> Self {
        Self { plain, ..Self::default() }
    }

    /// Nothing was printed on the current line.
    #[must_use]
    pub fn at_line_start(&self) -> bool {
        !self.mid_line
    }

    /// A full-screen program has the screen.
    #[must_use]
    pub fn is_alternate(&self) -> bool {
        self.alternate
    }

    /// What turns on the colours that are on.
    #[must_use]
    pub fn colours(&self) -> &str {
        &self.colours
    }

    /// Adds to `out` what of `text` may be shown.
    pub fn pass(&mut self, text: &str, out: &mut String) {
        for c in text.chars() {
            self.step(c, out);
        }
    }

    fn step(&mut self, c: char, out: &mut String) {
        match (self.state, c) {
            // CAN and SUB end any sequence, ESC begins a new one.
            (_, '\x18' | '\x1a') => self.state = State::Ground,
            (State::Text, '\x1b') => self.state = State::TextEscape,
            (State::TextEscape, '\\') | (State::Text, '\x07' | '\u{9c}') => self.state = State::Ground,
            (State::Text, _) => {}
            (State::TextEscape, _) => {
                self.state = State::Escape;
                self.sequence.clear();
                self.step(c, out);
            }
            (_, '\x1b') => {
                self.state = State::Escape;
                self.sequence.clear();
            }
            (State::Ground, _) => self.ground(c, out),
            (State::Escape, '[') => self.state = State::Csi,
            (State::Escape, ']' | 'P' | 'X' | '^' | '_') => self.state = State::Text,
            (State::Escape | State::EscapeMore, ' '..='/') if self.sequence.len() < 8 => {
                self.sequence.push(c);
                self.state = State::EscapeMore;
            }
            (State::Escape | State::EscapeMore, _) => {
                self.state = State::Ground;
                // `ESC Z` asks the terminal who it is.
                if matches!(c, '0'..='Y' | '\\'..='~') && !self.plain {
                    out.push('\x1b');
                    out.push_str(&self.sequence);
                    out.push(c);
                }
                if c == 'c' && self.sequence.is_empty() {
                    (self.mid_line, self.alternate) = (false, false);
                    self.colours.clear();
                }
            }
            (State::Csi | State::CsiTooLong, '@'..='~') => {
                let keep = self.state == State::Csi;
                self.state = State::Ground;
                if keep {
                    self.control(c, out);
                }
            }
            (State::Csi, ' '..='?') => {
                self.sequence.push(c);
                if self.sequence.len() > LONGEST_SEQUENCE {
                    self.state = State::CsiTooLong;
                }
            }
            (State::Csi | State::CsiTooLong, _) => {}
        }
    }

    fn ground(&mut self, c: char, out: &mut String) {
        match c {
            '\n' => {
                self.mid_line = false;
                out.push(c);
            }
            '\t' => {
                self.mid_line = true;
                out.push(c);
            }
            // `\r\n` in a file reads as `\n`.
            '\r' | '\x08' | '\x0e' | '\x0f' => {
                if !self.plain {
                    out.push(c);
                }
            }
            '\u{9b}' => {
                self.state = State::Csi;
                self.sequence.clear();
            }
            '\u{90}' | '\u{98}' | '\u{9d}'..='\u{9f}' => self.state = State::Text,
            c if c.is_control() => {}
            c => {
                self.mid_line = true;
                out.push(c);
            }
        }
    }

    /// A whole control sequence with its final character.
    fn control(&mut self, last: char, out: &mut String) {
        let sequence = std::mem::take(&mut self.sequence);
        let passed = match (sequence.as_bytes().first(), last) {
            (Some(b'?'), 'h' | 'l') => self.modes(&sequence[1..], last),
            (Some(b'?'), 'J' | 'K') if is_numbers(&sequence[1..]) => Some(sequence),
            // Device attributes, status reports, terminal parameters, window operations, printing.
            (_, 'c' | 'n' | 'x' | 't' | 'i') => None,
            // Cursor shape and soft reset have an intermediate character.
            (_, 'q') if sequence.strip_suffix(' ').is_some_and(is_numbers) => Some(sequence),
            (Some(b'!'), 'p') if sequence.len() == 1 => Some(sequence),
            (_, 'q' | 'p' | 'y' | 'w' | 'v' | '{' | '|' | '}' | '~') => None,
            (_, 'm') if is_numbers(&sequence) => {
                self.colour(&sequence);
                Some(sequence)
            }
            _ if is_numbers(&sequence) => {
                self.mid_line |= matches!(last, 'H' | 'f' | 'C' | 'G' | 'd' | 'A' | 'B');
                Some(sequence)
            }
            _ => None,
        };
        if let Some(sequence) = passed.filter(|_| !self.plain) {
            out.push_str("\x1b[");
            out.push_str(&sequence);
            out.push(last);
        }
    }

    /// Those of the modes that only change what is seen.
    fn modes(&mut self, modes: &str, last: char) -> Option<String> {
        let visible: Vec<u16> = modes
            .split(';')
            .filter_map(|mode| mode.parse().ok())
            .filter(|mode| VISIBLE_MODES.contains(mode))
            .collect();
        if visible.iter().any(|mode| ALTERNATE.contains(mode)) {
            self.alternate = last == 'h';
        }
        let text: Vec<String> = visible.iter().map(u16::to_string).collect();
        (!text.is_empty()).then(|| format!("?{}", text.join(";")))
    }

    fn colour(&mut self, parameters: &str) {
        if parameters.is_empty()
            || parameters == "0"
            || parameters.starts_with("0;")
            || self.colours.len() > 512
        {
            self.colours.clear();
        }
        if !matches!(parameters, "" | "0") {
            self.colours.push_str("\x1b[");
            self.colours.push_str(parameters);
            self.colours.push('m');
        }
    }
}

fn is_numbers(parameters: &str) -> bool {
    parameters.bytes().all(|b| b.is_ascii_digit() || b == b';' || b == b':')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(text: &str) -> String {
        let mut out = String::new();
        Screen::new(false).pass(text, &mut out);
        out
    }

    #[test]
    fn ordinary_output_passes() {
        for text in [
            "plain grüße\r\n",
            "\x1b[1;31mred\x1b[0m",
            "\x1b[2J\x1b[H\x1b[10;5Hx\x1b[K",
            "\x1b[?1049h\x1b[?25lvim\x1b[?1049l",
            "\x1b(B\x1b7\x1b8\x1b=\x1bM",
            "\x1b[38:2::1:2:3m\x1b[5 q",
        ] {
            assert_eq!(shown(text), text);
        }
    }

    #[test]
    fn what_would_reach_beyond_the_screen_does_not_pass() {
        for text in [
            "\x1b]52;c;ZXZpbA==\x07",  // clipboard
            "\x1b]0;title\x1b\\",      // title
            "\x1b[c",                  // who are you
            "\x1b[6n",                 // where is the cursor
            "\x1b[>0q",                // which version
            "\x1b[21t",                // report the title: it would be typed in
            "\x1bP$qm\x1b\\",          // request a setting
            "\x1b[?1000h",             // mouse reports
            "\x1b[?2004h",             // bracketed paste
            "\x1b[>1u\x1b[?u",         // keyboard protocol
            "\x1b[>4;2m",              // modified keys
            "\x1b[?$p\x1b[5i",         // mode request, print
            "\x05",                    // answer back
            "\x1bZ",                   // identify
            "\u{9b}6n\u{9d}0;x\u{9c}", // the same in eight bits
            "\x1b_payload\x1b\\",      // application command
            "\x07",                    // bell
        ] {
            assert_eq!(shown(text), "", "{text:?}");
        }
        assert_eq!(shown("\x1b[?1000;1049h"), "\x1b[?1049h", "the harmless part passes");
    }

    #[test]
    fn a_sequence_cut_in_two_is_still_caught() {
        let mut screen = Screen::new(false);
        let mut out = String::new();
        for piece in ["a\x1b", "]52;c;", "ZXZpbA", "==\x07", "b\x1b[", "6", "nc"] {
            screen.pass(piece, &mut out);
        }
        assert_eq!(out, "abc");
    }

    #[test]
    fn endless_sequences_are_swallowed() {
        let endless = format!("\x1b[{}mx", "1;".repeat(100_000));
        assert_eq!(shown(&endless), "x");
        assert_eq!(shown(&format!("\x1b]{}\x07x", "y".repeat(100_000))), "x");
    }

    #[test]
    fn plain_is_only_text() {
        let mut screen = Screen::new(true);
        let mut out = String::new();
        screen.pass("\x1b[1mbold\x1b[0m\r\n\x1b(Bnext\t.\x08", &mut out);
        assert_eq!(out, "bold\nnext\t.");
    }

    #[test]
    fn knows_where_it_is() {
        let mut screen = Screen::new(false);
        let mut out = String::new();
        assert!(screen.at_line_start());
        screen.pass("$ ls", &mut out);
        assert!(!screen.at_line_start());
        screen.pass("\r\n\x1b[?2004l\r", &mut out);
        assert!(screen.at_line_start());
        screen.pass("\x1b[1m\x1b[32m", &mut out);
        assert_eq!(screen.colours(), "\x1b[1m\x1b[32m");
        screen.pass("\x1b[m\x1b[?1049h", &mut out);
        assert!(screen.colours().is_empty() && screen.is_alternate());
        screen.pass("\x1b[?1049l", &mut out);
        assert!(!screen.is_alternate());
    }
}
