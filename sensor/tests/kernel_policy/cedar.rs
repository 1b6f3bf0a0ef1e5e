//! The kernel programs' answers equal those of Cedar's authorizer: random bundles, random questions, at least a million.
//!
//! Each question is decided by `cedar-policy` and by the compiled tables *in the kernel*, through the functions that the hooks
//! call (`sensor-ebpf/src/hooks/question.rs`). `SALLYPORT_KERNEL_CASES=N` asks N questions instead. Needs root.

use std::collections::BTreeMap;
use std::time::Instant;

use sallyport_policy::{Answer, Bundle, KernelPolicy, OnViolation, Policy, Principal, Question, mutant};
use sallyport_sensor::kernel::Questions;
use sallyport_sensor_abi::policy::{DENY, END_SESSION, KILL, OBSERVED, QUIET, UNJUDGED, Word, file_op};

use crate::asks::{Literals, raw};
use crate::numbers::Random;
use crate::rules::{self, FEATURES};

/// Questions for each person, host and user of a bundle.
const QUESTIONS: usize = 384;
/// Whose and where: three of these for each bundle.
const PLACES: [(&str, &str); 3] = [("h1", "root"), ("h2", "dev"), ("elsewhere", "a")];

const ENTITIES: &str = r#"[
  {"uid": {"type": "Group", "id": "all"}, "attrs": {}, "parents": []},
  {"uid": {"type": "Group", "id": "g1"}, "attrs": {}, "parents": [{"type": "Group", "id": "all"}]},
  {"uid": {"type": "Group", "id": "g2"}, "attrs": {}, "parents": []},
  {"uid": {"type": "HostGroup", "id": "hg"}, "attrs": {}, "parents": []},
  {"uid": {"type": "Host", "id": "h1"}, "attrs": {}, "parents": [{"type": "HostGroup", "id": "hg"}], "tags": {"env": "a"}},
  {"uid": {"type": "Host", "id": "h2"}, "attrs": {}, "parents": []}
]"#;

fn people() -> [Principal; 3] {
    let person = |user: &str, groups: &[&str], kind: &str| Principal {
        user: user.into(),
        groups: groups.iter().map(|group| (*group).to_owned()).collect(),
        kind: kind.into(),
        issuer: String::new(),
        on_behalf_of: if kind == "agent" { "bob".into() } else { String::new() },
    };
    [person("alice", &["g1"], "human"), person("bot", &["g2"], "ci"), person("agent", &[], "agent")]
}

/// Whether the kernel's word says what Cedar answered.
fn agrees(compiled: &KernelPolicy, word: Word, answer: &Answer) -> bool {
    let named = compiled.rule(word);
    if answer.allowed != (word & DENY == 0) || word & UNJUDGED != 0 {
        return false;
    }
    let (rule, flags) = match (answer.allowed, &answer.observed) {
        (true, Some(observed)) => (Some(observed), OBSERVED),
        (true, None) => (answer.rule.as_ref(), if answer.quiet { QUIET } else { 0 }),
        (false, _) => {
            let flags = match answer.rule.as_ref().map(|rule| rule.on_violation) {
                Some(OnViolation::Kill) => KILL,
                Some(OnViolation::EndSession) => END_SESSION,
                _ => 0,
            };
            (answer.rule.as_ref(), flags)
        }
    };
    named == Some(rule.unwrap_or(&compiled.rules[0]))
        && word & (KILL | END_SESSION | OBSERVED | QUIET) == flags
}

/// What one worker saw.
#[derive(Default)]
struct Seen {
    asked: u64,
    bundles: u64,
    refused: u64,
    too_large: u64,
    counts: BTreeMap<String, u64>,
    disagreements: Vec<String>,
}

impl Seen {
    fn count(&mut self, what: &str) {
        match self.counts.get_mut(what) {
            Some(count) => *count += 1,
            None => drop(self.counts.insert(what.to_owned(), 1)),
        }
    }

    fn join(&mut self, other: Self) {
        self.asked += other.asked;
        self.bundles += other.bundles;
        self.refused += other.refused;
        self.too_large += other.too_large;
        for (what, count) in other.counts {
            *self.counts.entry(what).or_default() += count;
        }
        self.disagreements.extend(other.disagreements);
    }
}

/// A bundle whose rules Cedar's validator accepts; those that can never apply are left out.
fn load(random: &mut Random, seen: &mut Seen) -> (Vec<String>, Policy) {
    loop {
        let mut rules = rules::bundle(random);
        // Of what is refused the faults name the lines; without those rules the rest mostly passes.
        for _ in 0..3 {
            let bundle = Bundle::from_files([
                ("bundle.toml", "name = \"t\"\nschema = 2\n".to_owned()),
                ("entities.json", ENTITIES.to_owned()),
                ("rules.cedar", rules.join("\n")),
            ])
            .expect("a bundle");
            match Policy::load(&bundle) {
                Ok(policy) => return (rules, policy),
                Err(faults) => {
                    let bad: Vec<u32> = faults.faults.iter().map(|fault| fault.line).collect();
                    seen.refused += 1;
                    let mut line = 0;
                    rules.retain(|_| {
                        line += 1;
                        !bad.contains(&line)
                    });
                }
            }
        }
    }
}

/// Asks of one bundle. `spoil` may change the tables that the kernel gets.
fn compare(kernel: &mut Questions, random: &mut Random, seen: &mut Seen, spoil: &dyn Fn(&mut KernelPolicy)) {
    let (rules, policy) = load(random, seen);
    seen.bundles += 1;
    let literals = Literals::of(&rules);
    let features: BTreeMap<&str, Vec<&str>> = rules
        .iter()
        .map(|rule| {
            let id = rule.split('"').nth(1).unwrap_or_default();
            (id, FEATURES.into_iter().filter(|feature| rule.contains(feature)).collect())
        })
        .collect();
    for principal in people() {
        let place = *random.pick(&PLACES);
        let Ok(mut compiled) = policy.compile(&principal, place.0, place.1) else {
            seen.too_large += 1;
            continue;
        };
        spoil(&mut compiled);
        kernel.set_policy(&compiled.header, &compiled.arena);
        let decider = policy.decider(&principal, place.0).expect("names as they are");
        let questions: Vec<Question> =
            (0..QUESTIONS).map(|_| literals.question(random, &principal, place)).collect();
        let mut args = vec![Vec::new(); questions.len()];
        let mut asked: Vec<_> =
            questions.iter().zip(&mut args).map(|(question, args)| raw(question, args)).collect();
        kernel.ask(&mut asked).expect("asked");
        for (question, asked) in questions.iter().zip(&asked) {
            let answer = decider.decide(question);
            seen.asked += 1;
            seen.count(question.action());
            seen.count(kind_of(&answer));
            for rule in answer.rule.iter().chain(&answer.observed) {
                for feature in &features[rule.id.as_str()] {
                    seen.count(feature);
                }
            }
            if !agrees(&compiled, asked.word, &answer) && seen.disagreements.len() < 3 {
                seen.disagreements.push(format!(
                    "{question:?}\n  kernel: {:#x} (cause {}), rule {:?}\n  Cedar: {answer:?}\n  rules:\n{}",
                    asked.word,
                    asked.cause,
                    compiled.rule(asked.word).map(|rule| &rule.id),
                    rules.join("\n")
                ));
            }
        }
    }
}

fn kind_of(answer: &Answer) -> &'static str {
    match (answer.allowed, &answer.rule, &answer.observed) {
        (true, _, Some(_)) => "allowed, observed",
        (true, ..) if answer.quiet => "allowed, not recorded",
        (true, ..) => "allowed",
        (false, None, _) => "denied by default",
        (false, Some(_), _) => "denied by a rule",
    }
}

fn cases() -> u64 {
    std::env::var("SALLYPORT_KERNEL_CASES").ok().and_then(|n| n.parse().ok()).unwrap_or(1_000_000)
}

#[test]
fn a_million_answers_are_cedars() {
    let start = Instant::now();
    let workers = std::thread::available_parallelism().map_or(2, usize::from).clamp(1, 8) as u64;
    let each = cases().div_ceil(workers);
    let threads: Vec<_> = (0..workers)
        .map(|worker| {
            std::thread::spawn(move || {
                let mut kernel = Questions::load().unwrap_or_else(|error| panic!("{error}"));
                let mut random = Random::new(1 + worker);
                let mut seen = Seen::default();
                while seen.asked < each && seen.disagreements.is_empty() {
                    compare(&mut kernel, &mut random, &mut seen, &|_| ());
                }
                seen
            })
        })
        .collect();
    let mut seen = Seen::default();
    for thread in threads {
        seen.join(thread.join().expect("a worker"));
    }
    for (what, count) in &seen.counts {
        println!("{count:10} {what}");
    }
    println!(
        "{} answers of the kernel compared with Cedar's in {:?}: {} bundles ({} rejected at first), {} too large",
        seen.asked,
        start.elapsed(),
        seen.bundles,
        seen.refused,
        seen.too_large
    );
    assert!(seen.disagreements.is_empty(), "{}", seen.disagreements.join("\n\n"));
    let answers =
        ["allowed", "allowed, observed", "allowed, not recorded", "denied by default", "denied by a rule"];
    let actions = file_op::NAMES.into_iter().chain(["exec", "system", "connect", "listen"]);
    for what in FEATURES.into_iter().chain(answers).chain(actions) {
        // A short run need not meet the rare ones.
        if cases() < 500_000 {
            break;
        }
        let count = seen.counts.get(what).copied().unwrap_or(0);
        assert!(count > 0, "never part of what decided: {what}");
    }
    assert!(seen.asked >= cases());
}

/// Whether some question is answered otherwise within so many bundles; and after how many questions.
fn noticed(kernel: &mut Questions, bundles: u64, spoil: &dyn Fn(&mut KernelPolicy)) -> Option<u64> {
    let mut random = Random::new(77);
    let mut seen = Seen::default();
    while seen.bundles < bundles {
        compare(kernel, &mut random, &mut seen, spoil);
        if !seen.disagreements.is_empty() {
            return Some(seen.asked);
        }
    }
    None
}

/// The comparison can fail: with each of the compiler's deliberate faults it does.
#[test]
fn every_fault_of_the_compiler_is_noticed() {
    let mut kernel = Questions::load().unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(noticed(&mut kernel, 10, &|_| ()), None);
    for fault in 1..=mutant::FAULTS {
        mutant::make(fault);
        let after = noticed(&mut kernel, 400, &|_| ());
        mutant::make(0);
        let after = after.unwrap_or_else(|| panic!("nobody noticed fault {fault} of the compiler"));
        println!("fault {fault}: noticed within {after} questions");
    }
}

/// Likewise with each table spoiled, as the kernel has it.
#[test]
fn every_spoiled_table_is_noticed() {
    type Spoil = (&'static str, fn(&mut KernelPolicy));
    fn flip(policy: &mut KernelPolicy, from: u32, words: u32) {
        let end = policy.arena.len().min((from + words) as usize);
        for word in &mut policy.arena[from as usize..end] {
            *word ^= DENY;
        }
    }
    let spoils: [Spoil; 9] = [
        ("decisions on programs", |p| flip(p, p.header.exec_table, p.header.path.classes)),
        ("decisions on files", |p| {
            flip(p, p.header.file_table, p.header.file.classes);
        }),
        ("decisions on operations", |p| flip(p, p.header.system_table, 8)),
        ("decisions on connections", |p| flip(p, p.header.connect.table, 1)),
        ("decisions on listening", |p| flip(p, p.header.listen.table, 1)),
        ("the word for all files", |p| {
            for word in p.header.uniform.iter_mut().filter(|word| **word != 0) {
                *word ^= DENY;
            }
        }),
        ("symbols of paths", |p| p.header.file.symbols[usize::from(b'/')] ^= 1),
        ("symbols of callers", |p| p.header.caller.symbols[usize::from(b'a')] ^= 1),
        ("where arguments lie", |p| p.header.args_rows += 68),
    ];
    let mut kernel = Questions::load().unwrap_or_else(|error| panic!("{error}"));
    for (what, spoil) in spoils {
        let after = noticed(&mut kernel, 100, &spoil).unwrap_or_else(|| panic!("nobody noticed: {what}"));
        println!("{what}: noticed within {after} questions");
    }
}
