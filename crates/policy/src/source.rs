//! Cedar source files, cut into single policies, so that a fault in one never hides faults in others.

/// One policy's text in a file.
#[derive(Clone, Debug)]
pub(crate) struct Chunk<'a> {
    /// Byte offset of `text` in the file.
    pub(crate) offset: usize,
    /// From the first token to the semicolon.
    pub(crate) text: &'a str,
    /// The annotations, in order.
    pub(crate) annotations: Vec<Annotation>,
}

/// Where an annotation stands.
#[derive(Clone, Debug)]
pub(crate) struct Annotation {
    /// Without the `@`.
    pub(crate) name: String,
    /// Byte offset in the file of the `@`.
    pub(crate) offset: usize,
    /// Length of `@name`.
    pub(crate) length: usize,
    /// Byte offset and length in the file of the quoted value, if there is one.
    pub(crate) value: Option<(usize, usize)>,
}

/// Cuts a file at the semicolons that end policies.
pub(crate) fn cut(text: &str) -> Vec<Chunk<'_>> {
    let mut chunks = Vec::new();
    let mut start = None;
    let mut last = 0;
    let mut tokens = Tokens { text, at: 0 };
    while let Some((token, offset, end)) = tokens.next() {
        let begin = *start.get_or_insert(offset);
        last = end;
        if token == Token::Semicolon {
            chunks.push(chunk(text, begin, end));
            start = None;
        }
    }
    if let Some(begin) = start {
        chunks.push(chunk(text, begin, last));
    }
    chunks
}

fn chunk(file: &str, begin: usize, end: usize) -> Chunk<'_> {
    let text = &file[begin..end];
    let mut annotations = Vec::new();
    let mut tokens = Tokens { text, at: 0 };
    let mut next = tokens.next();
    while let Some((Token::At, at, _)) = next {
        let Some((Token::Word, word, word_end)) = tokens.next() else { break };
        let mut annotation = Annotation {
            name: text[word..word_end].to_owned(),
            offset: begin + at,
            length: word_end - at,
            value: None,
        };
        next = tokens.next();
        if let Some((Token::Open, ..)) = next {
            if let Some((Token::Quoted, quote, quote_end)) = tokens.next() {
                annotation.value = Some((begin + quote, quote_end - quote));
            }
            // The closing parenthesis; whatever else stands here is for Cedar's parser to report.
            tokens.next();
            next = tokens.next();
        }
        annotations.push(annotation);
    }
    Chunk { offset: begin, text, annotations }
}

/// The comments of a text, in order, without the spaces around them.
pub(crate) fn comments(text: &str) -> Vec<&str> {
    let mut tokens = Tokens { text, at: 0 };
    let mut comments = Vec::new();
    loop {
        let before = tokens.at;
        let next = tokens.next();
        let between = &text[before..next.map_or(text.len(), |(_, at, _)| at)];
        comments.extend(between.lines().filter_map(|line| Some(line[line.find("//")?..].trim())));
        if next.is_none() {
            return comments;
        }
    }
}

/// Where the parts of a policy stand, as byte offsets and lengths in its file.
#[derive(Clone, Debug, Default)]
pub(crate) struct Parts {
    /// `permit` or `forbid`.
    pub(crate) effect: (usize, usize),
    /// `when` and `unless`.
    pub(crate) clauses: Vec<(usize, usize)>,
    /// Quoted texts of the conditions.
    pub(crate) quoted: Vec<(usize, usize)>,
    /// Numbers of the conditions.
    pub(crate) numbers: Vec<(usize, usize)>,
}

/// Finds the parts of a policy.
pub(crate) fn parts(chunk: &Chunk<'_>) -> Parts {
    let mut tokens = Tokens { text: chunk.text, at: 0 };
    let mut parts = Parts { effect: (chunk.offset, 1), ..Parts::default() };
    let (mut depth, mut in_head, mut scope_over) = (0usize, true, false);
    while let Some((token, at, end)) = tokens.next() {
        let place = (chunk.offset + at, end - at);
        let text = &chunk.text[at..end];
        match token {
            Token::Word if in_head && depth == 0 && ["permit", "forbid"].contains(&text) => {
                parts.effect = place;
                in_head = false;
            }
            Token::Word if scope_over && depth == 0 && ["when", "unless"].contains(&text) => {
                parts.clauses.push(place);
            }
            Token::Word if scope_over && text.starts_with(|c: char| c.is_ascii_digit()) => {
                parts.numbers.push(place);
            }
            Token::Quoted if scope_over => parts.quoted.push(place),
            Token::Open => depth += 1,
            Token::Other if ["[", "{"].contains(&text) => depth += 1,
            Token::Other if [")", "]", "}"].contains(&text) => {
                depth = depth.saturating_sub(1);
                scope_over |= depth == 0 && !in_head;
            }
            _ => {}
        }
    }
    parts
}

/// Weight of a bracket in [`nesting`]: Cedar's parser takes about that many times the stack for it.
const BRACKET: usize = 10;

/// Bound of how deeply the expressions of a policy's text can be nested, found without recursion.
///
/// Cedar and this crate walk expressions recursively; a text that would exhaust the stack must not get there.
/// Every operator between two commas may nest what it stands between by one more.
pub(crate) fn nesting(text: &str) -> usize {
    let mut tokens = Tokens { text, at: 0 };
    // Operators since the last comma, for each open bracket.
    let mut levels = vec![0usize];
    let (mut sum, mut deepest) = (0usize, 0usize);
    let mut doubled = false;
    while let Some((token, at, end)) = tokens.next() {
        deepest = deepest.max(sum);
        let last = levels.len() - 1;
        match (token, text.as_bytes()[at]) {
            (Token::Open, _) | (Token::Other, b'[' | b'{') => {
                levels.push(BRACKET);
                sum += BRACKET;
            }
            (Token::Other, b')' | b']' | b'}') if last > 0 => {
                sum -= levels[last];
                levels.pop();
                // What follows (`.contains(`, another operand) takes the bracket as its part.
                let last = levels.len() - 1;
                levels[last] += 1;
                sum += 1;
            }
            (Token::Other, b',') => sum -= std::mem::take(&mut levels[last]),
            (Token::Other, b'.' | b'!' | b'+' | b'-' | b'*') => {
                levels[last] += 1;
                sum += 1;
            }
            // `||` and `&&` are two tokens each; comparisons cannot be chained.
            (Token::Other, b'|' | b'&') if !doubled => {
                levels[last] += 1;
                sum += 1;
                doubled = true;
                continue;
            }
            (Token::Word, b'i') if text[at..end] == *"if" => {
                levels[last] += BRACKET;
                sum += BRACKET;
            }
            _ => {}
        }
        doubled = false;
    }
    deepest.max(sum)
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Token {
    At,
    Word,
    Open,
    Quoted,
    Semicolon,
    Other,
}

/// A tokenizer that knows just enough: comments, strings, words.
struct Tokens<'a> {
    text: &'a str,
    at: usize,
}

impl Tokens<'_> {
    fn next(&mut self) -> Option<(Token, usize, usize)> {
        let bytes = self.text.as_bytes();
        loop {
            while bytes.get(self.at).is_some_and(u8::is_ascii_whitespace) {
                self.at += 1;
            }
            if !self.text[self.at..].starts_with("//") {
                break;
            }
            self.at = self.text[self.at..].find('\n').map_or(bytes.len(), |n| self.at + n);
        }
        let start = self.at;
        let token = match *bytes.get(start)? {
            b'@' => Token::At,
            b'(' => Token::Open,
            b';' => Token::Semicolon,
            b'"' => {
                self.at += 1;
                while let Some(byte) = bytes.get(self.at) {
                    match byte {
                        b'"' => break,
                        b'\\' => self.at += 2,
                        _ => self.at += 1,
                    }
                }
                self.at = (self.at + 1).min(bytes.len());
                return Some((Token::Quoted, start, self.text.ceil_char_boundary(self.at)));
            }
            byte if byte.is_ascii_alphanumeric() || byte == b'_' => {
                while bytes.get(self.at).is_some_and(|b| b.is_ascii_alphanumeric() || *b == b'_') {
                    self.at += 1;
                }
                return Some((Token::Word, start, self.at));
            }
            _ => Token::Other,
        };
        self.at += self.text[start..].chars().next().map_or(1, char::len_utf8);
        Some((token, start, self.at))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn policies_are_cut_where_they_end() {
        let text =
            "// a;b\n@id(\"x;\\\"y\") // c\n@reason(\"é\")\npermit(principal, action, resource);\nforbid (";
        let chunks = cut(text);
        assert_eq!(chunks.len(), 2);
        assert_eq!(chunks[0].annotations.len(), 2);
        assert_eq!(chunks[0].annotations[1].name, "reason");
        let (at, length) = chunks[0].annotations[0].value.expect("has a value");
        assert_eq!(&text[at..at + length], "\"x;\\\"y\"");
        assert_eq!(chunks[1].text, "forbid (");
        assert_eq!(&text[chunks[1].offset..], "forbid (");
    }

    #[test]
    fn chains_nest_and_sets_do_not() {
        let chain = vec!["context.name == \"a\""; 1_000].join(" || ");
        assert!(nesting(&chain) > 1_000);
        let set = format!("[{}].contains(context.name)", vec!["\"a\""; 1_000].join(", "));
        assert!(nesting(&set) < 40);
        assert!(nesting(&"(".repeat(1_000)) >= 1_000);
    }

    #[test]
    fn nothing_in_a_file_makes_it_panic() {
        for text in [
            "",
            "\"",
            "\"\\",
            "@",
            "@id",
            "@id(",
            "@id(\"",
            "é;é",
            "\"é\\é",
            "//",
            ";;",
            "@é(\"x\")",
            ")]},",
            "é",
        ] {
            cut(text);
            nesting(text);
        }
    }
}
