//! Products of automata: for each pair of classes that some text reaches, a shortest text that does.

use std::collections::{HashMap, HashSet, VecDeque};

use sallyport_sensor_abi::policy::{
    ARGS_EOI, ARGS_START, ARGS_SYMBOLS, Automaton, INDEX_MASK, NEEDS_ARGS, Word,
};

use crate::kernel::KernelPolicy;

/// The classes of one value under both policies.
pub(crate) type Pair = (u32, u32);

/// An automaton in an arena; or one class for every text.
pub(crate) enum Side<'a> {
    Constant,
    Automaton { policy: &'a KernelPolicy, start: u32, symbols: Box<[u8; 256]>, eoi: u32 },
}

impl<'a> Side<'a> {
    /// Over paths.
    pub(crate) fn paths(policy: &'a KernelPolicy, automaton: &Automaton) -> Self {
        if automaton.classes <= 1 {
            return Self::Constant;
        }
        Self::Automaton {
            policy,
            start: automaton.start,
            symbols: Box::new(automaton.symbols),
            eoi: automaton.stride - 1,
        }
    }

    /// Over the arguments that a word still asks for.
    pub(crate) fn args(policy: &'a KernelPolicy, word: Word) -> Self {
        if word & NEEDS_ARGS == 0 {
            return Self::Constant;
        }
        let row = row(policy, word);
        let read = |offset| policy.read(row, offset).unwrap_or(0);
        let mut symbols = Box::new([0; 256]);
        for (byte, symbol) in symbols.iter_mut().enumerate() {
            let four = read(ARGS_SYMBOLS + byte as u32 / 4);
            *symbol = (four >> (byte % 4 * 8) & 0xff) as u8;
        }
        Self::Automaton { policy, start: read(ARGS_START), symbols, eoi: read(ARGS_EOI) }
    }

    fn start(&self) -> u32 {
        match self {
            Self::Constant => 0,
            Self::Automaton { start, .. } => *start,
        }
    }

    fn symbol(&self, byte: u8) -> u8 {
        match self {
            Self::Constant => 0,
            Self::Automaton { symbols, .. } => symbols[usize::from(byte)],
        }
    }

    fn next(&self, state: u32, byte: u8) -> u32 {
        match self {
            Self::Constant => 0,
            Self::Automaton { policy, symbols, .. } => {
                policy.read(state, u32::from(symbols[usize::from(byte)])).unwrap_or(0)
            }
        }
    }

    fn class(&self, state: u32) -> u32 {
        match self {
            Self::Constant => 0,
            Self::Automaton { policy, eoi, .. } => policy.read(state, *eoi).unwrap_or(0),
        }
    }

    /// The class of a text.
    pub(crate) fn class_of(&self, text: &[u8]) -> u32 {
        self.class(text.iter().fold(self.start(), |state, byte| self.next(state, *byte)))
    }
}

/// Where an argument row lies in the arena.
pub(crate) fn row(policy: &KernelPolicy, word: Word) -> u32 {
    policy.header.args_rows + (word & INDEX_MASK) * sallyport_sensor_abi::policy::ARGS_ROW_WORDS
}

/// Which texts are looked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shape {
    /// Absolute paths without control characters.
    Path,
    /// Names of abstract sockets.
    Abstract,
    /// Every text without a zero byte.
    Text,
    /// What may follow a first argument: nothing, or more arguments that can be shown.
    MoreArgs,
    /// Any arguments.
    Args,
}

impl Shape {
    /// The next state; none if no such text goes on so.
    fn next(self, state: u8, byte: u8) -> Option<u8> {
        let control = byte < b' ' || byte == 0x7f;
        match (self, state) {
            (Self::Path, 0) => (byte == b'/').then_some(3),
            (Self::Path, 1 | 3) => (byte != b'/' && !control).then_some(2),
            (Self::Path, _) if byte == b'/' => Some(1),
            (Self::Path, _) => (!control).then_some(2),
            (Self::Abstract, 0) => (byte == b'@').then_some(1),
            (Self::Abstract, _) => (!control).then_some(2),
            (Self::Text, _) => (byte != 0).then_some(0),
            (Self::MoreArgs, 0) => (byte == 0).then_some(1),
            (Self::MoreArgs, _) => (byte == 0 || !control).then_some(1),
            (Self::Args, _) => Some(0),
        }
    }

    fn accepts(self, state: u8) -> bool {
        match self {
            Self::Path => matches!(state, 2 | 3),
            Self::Abstract => state == 2,
            _ => true,
        }
    }
}

/// Bytes that UTF-8 treats alike.
fn kind(byte: u8) -> u8 {
    match byte {
        0 => 0,
        b'/' => 1,
        b'@' => 2,
        0x01..0x20 | 0x7f => 3,
        0x20..0x7f => 4,
        0x80..=0x8f => 5,
        0x90..=0x9f => 6,
        0xa0..=0xbf => 7,
        0xc2..=0xdf => 8,
        0xe0 => 9,
        0xed => 10,
        0xe1..=0xef => 11,
        0xf0 => 12,
        0xf4 => 13,
        0xf1..=0xf3 => 14,
        _ => 15,
    }
}

/// How a text in UTF-8 goes on: the next state, 0 between two characters; none if it does not.
fn utf8(state: u8, byte: u8) -> Option<u8> {
    match (state, kind(byte)) {
        (0, 0..=4) => Some(0),
        (0, 8) => Some(1),
        (0, 11) => Some(2),
        (0, 14) => Some(3),
        (0, 9) => Some(4),
        (0, 10) => Some(5),
        (0, 12) => Some(6),
        (0, 13) => Some(7),
        (1, 5..=7) => Some(0),
        (2, 5..=7) | (4, 7) | (5, 5 | 6) => Some(1),
        (3, 5..=7) | (6, 6 | 7) | (7, 5) => Some(2),
        _ => None,
    }
}

/// One byte for all that both automata, UTF-8 and every shape treat alike; the more readable first.
fn alphabet(a: &Side<'_>, b: &Side<'_>) -> Vec<u8> {
    let mut bytes: Vec<u8> = (0..=255).collect();
    bytes.sort_by_key(|byte| match byte {
        b'a'..=b'z' => 0,
        b'0'..=b'9' => 1,
        b'A'..=b'Z' => 2,
        b'-' | b'_' | b'.' => 3,
        b'!'..=b'~' => 4,
        _ => 5,
    });
    let mut seen = HashSet::new();
    bytes.retain(|byte| seen.insert((a.symbol(*byte), b.symbol(*byte), kind(*byte))));
    bytes
}

/// For each pair of classes a shortest text of this shape that continues `begin`. `begin` is part of the text.
pub(crate) fn reached(a: &Side<'_>, b: &Side<'_>, shape: Shape, begin: &[u8]) -> HashMap<Pair, Vec<u8>> {
    let alphabet = alphabet(a, b);
    let run = |side: &Side<'_>| begin.iter().fold(side.start(), |state, byte| side.next(state, *byte));
    let start = (run(a), run(b), 0u8, 0u8);
    let mut numbers = HashMap::from([(start, 0usize)]);
    // Where each state was reached from, and by which byte.
    let mut trail = vec![(0usize, 0u8)];
    let mut open = VecDeque::from([start]);
    let mut found: HashMap<Pair, Vec<u8>> = HashMap::new();
    while let Some(state @ (in_a, in_b, in_text, in_shape)) = open.pop_front() {
        let number = numbers[&state];
        if in_text == 0 && shape.accepts(in_shape) {
            found.entry((a.class(in_a), b.class(in_b))).or_insert_with(|| {
                let mut word = Vec::new();
                let mut at = number;
                while at != 0 {
                    let (before, byte) = trail[at];
                    word.push(byte);
                    at = before;
                }
                begin.iter().copied().chain(word.into_iter().rev()).collect()
            });
        }
        for byte in &alphabet {
            let (Some(text), Some(form)) = (utf8(in_text, *byte), shape.next(in_shape, *byte)) else {
                continue;
            };
            let next = (a.next(in_a, *byte), b.next(in_b, *byte), text, form);
            let fresh = numbers.len();
            numbers.entry(next).or_insert_with(|| {
                trail.push((number, *byte));
                open.push_back(next);
                fresh
            });
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn utf8_is_rusts() {
        let valid = |bytes: &[u8]| bytes.iter().try_fold(0, |state, byte| utf8(state, *byte)) == Some(0);
        for a in 0..=255u8 {
            assert_eq!(valid(&[a]), std::str::from_utf8(&[a]).is_ok());
            for b in 0..=255u8 {
                assert_eq!(valid(&[a, b]), std::str::from_utf8(&[a, b]).is_ok(), "{a:x} {b:x}");
                for c in [0x00, 0x7f, 0x80, 0x90, 0xa0, 0xbf, 0xc0] {
                    assert_eq!(
                        valid(&[a, b, c]),
                        std::str::from_utf8(&[a, b, c]).is_ok(),
                        "{a:x} {b:x} {c:x}"
                    );
                    let four = [a, b, c, 0x80];
                    assert_eq!(valid(&four), std::str::from_utf8(&four).is_ok(), "{four:x?}");
                }
            }
        }
    }
}
