//! Text from elsewhere, made safe to show: what a host, a person or a server chose must not move the cursor,
//! hide a line or forge one.

use std::fmt::Write as _;

/// Characters that steer a terminal or the direction of text, and line breaks.
fn is_unsafe(c: char) -> bool {
    c.is_control()
        || matches!(
            c,
            '\u{061c}'
                | '\u{200b}'..='\u{200f}'
                | '\u{2028}'..='\u{202e}'
                | '\u{2060}'..='\u{2069}'
                | '\u{feff}'
                | '\u{fff9}'..='\u{fffb}'
                | '\u{e0000}'..='\u{e007f}'
        )
}

/// One line of at most `limit` characters, with anything that steers a terminal spelled out (`\n`, `\u{1b}`).
#[must_use]
pub fn safe(text: &str, limit: usize) -> String {
    let mut shown = String::with_capacity(text.len().min(limit));
    for (n, c) in text.chars().enumerate() {
        if n >= limit {
            shown.push('…');
            break;
        }
        if is_unsafe(c) {
            shown.extend(c.escape_default());
        } else {
            shown.push(c);
        }
    }
    shown
}

/// Several lines: each as by [`safe`], at most `lines` of them.
#[must_use]
pub fn safe_lines(text: &str, lines: usize) -> String {
    let mut shown: Vec<String> = text.lines().take(lines).map(|line| safe(line, 500)).collect();
    if text.lines().count() > lines {
        shown.push("…".to_owned());
    }
    shown.join("\n")
}

/// JSON whose strings hold raw terminal controls (which JSON permits above U+001F) with those escaped. The
/// value is the same: such characters occur in JSON only inside strings.
#[must_use]
pub fn safe_json(json: &str) -> String {
    let mut shown = String::with_capacity(json.len());
    for c in json.chars() {
        if is_unsafe(c) && c != '\n' {
            let mut units = [0; 2];
            for unit in c.encode_utf16(&mut units) {
                // Writing to a string cannot fail.
                let _ = write!(shown, "\\u{unit:04x}");
            }
        } else {
            shown.push(c);
        }
    }
    shown
}

/// Arguments as one would type them, safe and limited.
#[must_use]
pub fn command_line(args: &[String], limit: usize) -> String {
    let mut line = String::new();
    for arg in args {
        if !line.is_empty() {
            line.push(' ');
        }
        let plain =
            !arg.is_empty() && arg.chars().all(|c| c.is_ascii_alphanumeric() || "-_./=:,@+%".contains(c));
        if plain {
            line.push_str(arg);
        } else {
            line.push('\'');
            line.push_str(&arg.replace('\'', "'\\''"));
            line.push('\'');
        }
        if line.len() > limit.saturating_mul(4) {
            break;
        }
    }
    safe(&line, limit)
}

/// Rows as columns, each as wide as its widest cell, two spaces between; no trailing blanks.
#[must_use]
pub fn columns(rows: &[Vec<String>]) -> Vec<String> {
    let count = rows.iter().map(Vec::len).max().unwrap_or(0);
    let widths: Vec<usize> = (0..count)
        .map(|column| {
            rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max().unwrap_or(0)
        })
        .collect();
    rows.iter()
        .map(|row| {
            let mut line = String::new();
            for (cell, width) in row.iter().zip(&widths) {
                if !line.is_empty() {
                    line.push_str("  ");
                }
                line.push_str(cell);
                line.extend(std::iter::repeat_n(' ', width.saturating_sub(cell.chars().count())));
            }
            line.trim_end().to_owned()
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_that_steers_a_terminal_passes() {
        let hostile = "a\x1b[2Jb\r\nc\u{9b}31md\u{202e}e\u{7f}";
        let shown = safe(hostile, 100);
        assert!(shown.chars().all(|c| !is_unsafe(c)), "{shown}");
        assert!(shown.starts_with("a\\u{1b}[2Jb\\r\\nc\\u{9b}31md"));
        assert_eq!(safe("Grüße, 世界", 100), "Grüße, 世界", "ordinary text is untouched");
    }

    #[test]
    fn length_is_limited() {
        assert_eq!(safe("abcdef", 3), "abc…");
        assert_eq!(safe("abc", 3), "abc");
    }

    #[test]
    fn json_keeps_its_value() {
        let json = "{\"a\":\"x\u{9b}y\u{202e}\u{e0001}\"}";
        let shown = safe_json(json);
        assert!(!shown.contains('\u{9b}') && !shown.contains('\u{202e}'));
        let before: serde_json::Value = serde_json::from_str(json).expect("valid");
        let after: serde_json::Value = serde_json::from_str(&shown).expect("still valid");
        assert_eq!(before, after);
    }

    #[test]
    fn arguments_are_quoted() {
        let args = ["sh", "-c", "echo it's\x1b[0m", ""].map(str::to_owned);
        assert_eq!(command_line(&args, 100), "sh -c 'echo it'\\''s\\u{1b}[0m' ''");
    }

    #[test]
    fn columns_align() {
        let rows = [vec!["a".to_owned(), "b".to_owned()], vec!["long".to_owned(), String::new()]];
        assert_eq!(columns(&rows), ["a     b", "long"]);
    }
}
