//! Fuzzing the compiler with rules that are valid by construction, so that every byte leads somewhere.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use super::{agree, principal, questions};
use crate::bundle::Bundle;
use crate::load::Policy;

const PATHS: [&str; 8] =
    ["/usr/bin/a", "/usr/bin/b", "/etc/shadow", "/tmp/a", "/a", "/usr/a/b", "/b", "/etc/a"];
const PATTERNS: [&str; 8] = ["/usr/*", "*/a", "/etc/*", "*b*", "/usr/bin/*", "/*/a", "*", "/tmp/*"];
const WORDS: [&str; 6] = ["a", "b", "-r", "-rf", "x y", ""];
const FILE_ACTIONS: [&str; 4] = ["read_file", "write_file", "map_code", "connect_unix"];

/// Makes rules of bytes, compiles them, and asks the tables and Cedar the same questions. Then leaves out what the
/// examination calls idle: no answer may change. Returns how many were left out. For fuzzing.
pub fn fuzz_compiler(bytes: &[u8]) -> usize {
    let rules = Maker { bytes, at: 0 }.rules();
    let Some(policy) = load(&rules) else { return 0 };
    let asked = questions(&PATHS, &WORDS);
    let Ok(compiled) = policy.0.compile(&principal(), "h", "root") else { return 0 };
    let answers: Vec<_> = asked.iter().map(|question| agree(&policy.0, &compiled, question)).collect();
    let found = policy.0.lint(&policy.1);
    let idle: BTreeSet<&str> = found
        .findings
        .iter()
        .filter(|finding| {
            ["never-applies", "idle-permit", "idle-forbid", "shadowed-permit"].contains(&finding.code)
        })
        .map(|finding| finding.rule.as_str())
        .collect();
    let kept: Vec<String> = rules
        .into_iter()
        .filter(|rule| !idle.iter().any(|id| rule.starts_with(&format!("@id(\"{id}\")"))))
        .collect();
    if idle.is_empty() || kept.is_empty() {
        return 0;
    }
    let left_out = idle.len();
    let Some(without) = load(&kept) else { return 0 };
    for (question, before) in asked.iter().zip(answers) {
        let after = without.0.decide(question);
        let words = |answer: &crate::Answer| {
            (
                answer.allowed,
                answer.quiet,
                answer.observed.is_some(),
                answer.rule.as_ref().map(|rule| rule.on_violation),
            )
        };
        assert_eq!(words(&before), words(&after), "{question:?}, without {idle:?}");
    }
    left_out
}

fn load(rules: &[String]) -> Option<(Policy, Bundle)> {
    let files =
        [("bundle.toml", "name = \"fuzz\"\nschema = 2\n".to_owned()), ("rules.cedar", rules.concat())];
    let bundle = Bundle::from_files(files).ok()?;
    // Cedar's validator refuses rules that can never hold, which is fine.
    let policy = Policy::load(&bundle).ok()?;
    Some((policy, bundle))
}

/// Choices from bytes; zeros when there are none left.
struct Maker<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Maker<'_> {
    fn choose(&mut self, n: usize) -> usize {
        let byte = self.bytes.get(self.at).copied().unwrap_or(0);
        self.at += 1;
        usize::from(byte) % n
    }

    fn one(&mut self, of: &[&'static str]) -> &'static str {
        of[self.choose(of.len())]
    }

    fn rules(&mut self) -> Vec<String> {
        let count = 1 + self.choose(6);
        (0..count).map(|at| self.rule(at)).collect()
    }

    fn rule(&mut self, at: usize) -> String {
        let kind = self.choose(5);
        let action = match kind {
            0 => "exec",
            1 => self.one(&FILE_ACTIONS),
            2 => "system",
            3 => "connect",
            _ => "listen",
        };
        let mut rule = format!("@id(\"r{at}\")");
        let effect = self.choose(4);
        match effect {
            0 | 1 => {
                rule.push_str(if effect == 1 { "@record(\"none\")" } else { "" });
                rule.push_str("permit");
            }
            _ => {
                let why = self.one(&["one", "two"]);
                let violation = self.one(&["block", "kill", "end_session"]);
                let mode = if effect == 3 { "monitor" } else { "enforce" };
                let _ =
                    write!(rule, "@reason(\"{why}\")@on_violation(\"{violation}\")@mode(\"{mode}\")forbid");
            }
        }
        let condition = self.condition(action, 2);
        let clause = self.one(&["when", "when", "unless"]);
        let _ = writeln!(
            rule,
            "(principal, action == Action::\"{action}\", resource) {clause} {{ {condition} }};"
        );
        rule
    }

    fn condition(&mut self, action: &str, depth: usize) -> String {
        if depth > 0 {
            match self.choose(6) {
                0 => {
                    return format!(
                        "({} && {})",
                        self.condition(action, depth - 1),
                        self.condition(action, depth - 1)
                    );
                }
                1 => {
                    return format!(
                        "({} || {})",
                        self.condition(action, depth - 1),
                        self.condition(action, depth - 1)
                    );
                }
                2 => return format!("!({})", self.condition(action, depth - 1)),
                3 => {
                    let (a, b, c) = (
                        self.condition(action, depth - 1),
                        self.condition(action, depth - 1),
                        self.condition(action, depth - 1),
                    );
                    return format!("(if {a} then {b} else {c})");
                }
                _ => {}
            }
        }
        match action {
            "connect" | "listen" => self.net(),
            "system" => match self.choose(3) {
                0 => "context.outside".to_owned(),
                1 => format!(
                    "context.operation == \"{}\"",
                    self.one(&["trace", "signal", "mount", "set_user"])
                ),
                _ => format!("context.caller == \"{}\"", self.one(&PATHS)),
            },
            "exec" if self.choose(2) == 0 => match self.choose(4) {
                0 => format!("context.args.contains(\"{}\")", self.one(&WORDS)),
                1 => format!("context.command_line like \"*{}*\"", self.one(&["a", "-r", " "])),
                2 => "context.setuid".to_owned(),
                _ => {
                    format!("[\"{}\", \"{}\"].containsAll(context.args)", self.one(&WORDS), self.one(&WORDS))
                }
            },
            _ => match self.choose(7) {
                0 => format!("context.path == \"{}\"", self.one(&PATHS)),
                1 => format!("context.path like \"{}\"", self.one(&PATTERNS)),
                2 => format!("context.name == \"{}\"", self.one(&["a", "b", "shadow"])),
                3 => format!("[\"{}\", \"{}\"].contains(context.path)", self.one(&PATHS), self.one(&PATHS)),
                4 => format!("context.caller like \"{}\"", self.one(&PATTERNS)),
                5 => format!("context.local_user == \"{}\"", self.one(&["root", "dev"])),
                _ => "context.fileless".to_owned(),
            },
        }
    }

    fn net(&mut self) -> String {
        match self.choose(5) {
            0 => format!(
                "context.port {} {}",
                self.one(&["==", "<", ">="]),
                self.one(&["0", "22", "443", "65535"])
            ),
            1 => format!("context.protocol == \"{}\"", self.one(&["tcp", "udp", "icmp"])),
            2 => format!(
                "context.address.isInRange(ip(\"{}\"))",
                self.one(&["10.0.0.0/8", "0.0.0.0/0", "::/0", "10.0.0.0/30"])
            ),
            3 => "context.address.isLoopback()".to_owned(),
            _ => format!(
                "context.port + {} > {}",
                self.one(&["1", "9223372036854775800"]),
                self.one(&["23", "443"])
            ),
        }
    }
}
