//! The kernel's answer is Cedar's answer: random policies, random questions, both ways.
//!
//! Cedar's own authorizer decides each question ([`Policy::decide`]); the reference walker decides it over the compiled
//! tables ([`KernelPolicy`]). A difference in verdict, rule, effect or monitored rule is a failure, and proptest
//! shrinks it.

mod generate;
mod world;

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use sallyport_policy::{Answer, FileOp, KernelPolicy, OnViolation, Operation, Policy, Program, Question};
use sallyport_sensor_abi::policy::{
    ARGS_ROW_WORDS, ARGS_TABLE, DENY, END_SESSION, EXEC_INDICES, INDEX_MASK, KILL, NEEDS_ARGS, OBSERVED,
    QUIET, UNJUDGED, Word, file_op, operation,
};

use crate::generate::{ADDRESSES, Ask, PORTS, exec, file, net, rule, system};
use crate::world::{PLACES, bundle, people};

/// Whether the tables' word says what Cedar answered.
fn agrees(compiled: &KernelPolicy, word: Word, answer: &Answer) -> bool {
    let named = compiled.rule(word);
    if answer.allowed != (word & DENY == 0) || word & UNJUDGED != 0 {
        return false;
    }
    if let Some(observed) = &answer.observed {
        return word & OBSERVED != 0 && word & QUIET == 0 && named == Some(observed);
    }
    let effect = match answer.rule.as_ref().map(|rule| rule.on_violation) {
        Some(OnViolation::Kill) if !answer.allowed => KILL,
        Some(OnViolation::EndSession) if !answer.allowed => END_SESSION,
        _ => 0,
    };
    let rule = match &answer.rule {
        Some(rule) => named == Some(rule),
        None => named == Some(&compiled.rules[0]),
    };
    let quiet = if answer.quiet { QUIET } else { 0 };
    rule && word & (KILL | END_SESSION | OBSERVED | QUIET) == effect | quiet
}

/// Counts of what the runs covered, by name.
#[derive(Default)]
struct Coverage(BTreeMap<&'static str, u64>);

impl Coverage {
    fn count(&mut self, what: &'static str) {
        *self.0.entry(what).or_default() += 1;
    }

    fn answer(&mut self, answer: &Answer) {
        self.count(match (answer.allowed, &answer.rule, &answer.observed) {
            (true, _, Some(_)) => "answer: allowed, observed",
            (true, ..) if answer.quiet => "answer: allowed, not recorded",
            (true, ..) => "answer: allowed",
            (false, None, _) => "answer: denied by default",
            (false, Some(rule), _) => match rule.on_violation {
                OnViolation::Block => "answer: denied by rule",
                OnViolation::Kill => "answer: denied, kill",
                OnViolation::EndSession => "answer: denied, end session",
            },
        });
    }

    fn policy(&mut self, text: &str) {
        for operator in OPERATORS {
            if text.contains(operator) {
                self.count(operator);
            }
        }
    }
}

/// Every operator that must occur in policies that were compared.
const OPERATORS: [&str; 43] = [
    "&&",
    "||",
    "!(",
    "if ",
    "==",
    "!=",
    "<",
    "<=",
    ">",
    ">=",
    "+ ",
    "- ",
    "* ",
    "(-",
    "like",
    ".contains(",
    ".containsAny(",
    ".containsAll(",
    ".isEmpty()",
    ".isInRange(context",
    "address.isInRange(",
    ".isIpv4()",
    ".isIpv6()",
    ".isLoopback()",
    ".isMulticast()",
    "fileless",
    "setuid",
    "context.caller",
    "context.operation ==",
    "contains(context.operation)",
    "operation like",
    "outside",
    "record(\"none\")",
    "in [Action::\"exec\", Action::\"map_code\"]",
    "hasTag",
    "getTag",
    "has path",
    "is User",
    "unless",
    "}.x",
    "in [Action",
    "9223372036854775807 + 1",
    "monitor",
];

/// How often there are so many policies, until all that must occur has.
const ROUNDS: u32 = 4;

/// `SALLYPORT_CASES=N` runs N policies instead.
fn cases() -> u32 {
    std::env::var("SALLYPORT_CASES").ok().and_then(|n| n.parse().ok()).unwrap_or(256)
}

/// Rules, and questions of each kind.
type Case = (Vec<String>, Vec<Ask>, Vec<Ask>, Vec<Ask>, Vec<Ask>);

#[test]
fn the_tables_answer_as_cedar_does() {
    let coverage = RefCell::new(Coverage::default());
    let mut runner = TestRunner::new(Config {
        cases: cases(),
        max_global_rejects: cases() * 4,
        failure_persistence: None,
        // A step costs as much as a case.
        max_shrink_iters: 300,
        ..Config::default()
    });
    let strategy = (
        prop::collection::vec(rule(), 1..7),
        prop::collection::vec(exec(), 10),
        prop::collection::vec(file(), 24),
        prop::collection::vec(system(), 6),
        prop::collection::vec(net(), 16),
    );
    let one = |(rules, execs, files, systems, nets): Case| {
        let bundle = bundle(&rules);
        // Some rules can never apply, which the check refuses.
        let Ok(policy) = Policy::load(&bundle) else {
            coverage.borrow_mut().count("refused");
            return Err(TestCaseError::reject("the check refuses it"));
        };
        coverage.borrow_mut().count("policies");
        coverage.borrow_mut().policy(&rules.join("\n"));
        for principal in people() {
            for (host, user) in PLACES {
                let Ok(compiled) = policy.compile(&principal, host, user) else {
                    coverage.borrow_mut().count("too large");
                    continue;
                };
                for ask in execs.iter().chain(&files).chain(&systems).chain(&nets) {
                    let question = ask.question(&principal, (host, user));
                    let answer = policy.decide(&question);
                    let word = compiled.judge(&question).expect("of a session");
                    coverage.borrow_mut().answer(&answer);
                    coverage.borrow_mut().count(question.action());
                    prop_assert!(
                        agrees(&compiled, word, &answer),
                        "{question:?}: tables {word:#x}, Cedar {answer:?}"
                    );
                }
            }
        }
        Ok(())
    };
    let answers = [
        "answer: allowed",
        "answer: allowed, observed",
        "answer: allowed, not recorded",
        "answer: denied by default",
        "answer: denied by rule",
        "answer: denied, kill",
        "answer: denied, end session",
    ];
    let wanted = OPERATORS
        .iter()
        .chain(&answers)
        .chain(&file_op::NAMES)
        .chain(&["exec", "system", "connect", "listen"]);
    // Chance may leave something out; then there are more policies.
    let mut uncovered = Vec::new();
    for _ in 0..ROUNDS {
        if let Err(error) = runner.run(&strategy, one) {
            panic!("{error}");
        }
        let coverage = coverage.borrow();
        uncovered = wanted.clone().filter(|what| !coverage.0.contains_key(**what)).collect();
        if uncovered.is_empty() {
            break;
        }
    }
    assert!(uncovered.is_empty(), "never covered: {uncovered:?}");
    let coverage = coverage.into_inner();
    for (what, count) in &coverage.0 {
        println!("{count:8} {what}");
    }
    let asked: u64 = answers.iter().filter_map(|what| coverage.0.get(what)).sum();
    println!("{asked:8} questions compared");
    assert!(asked >= u64::from(cases()) * 200, "only {asked} questions were compared");
}

/// A fixed policy with something of everything, and questions to it.
fn sample() -> (Policy, Vec<Ask>) {
    let rules = [
        "permit(principal, action == Action::\"exec\", resource) when { context.path like \"/usr/*\" };",
        "@reason(\"no\") forbid(principal, action == Action::\"exec\", resource) when { context.name == \"b\" && context.caller != \"/x\" };",
        "@reason(\"no\") forbid(principal, action == Action::\"exec\", resource) when { context.args.contains(\"-r\") && context.setuid };",
        "permit(principal, action == Action::\"connect\", resource) when { context.address.isInRange(ip(\"10.0.0.0/8\")) && context.port < 1024 };",
        "@reason(\"no\") forbid(principal, action == Action::\"connect\", resource) when { context.protocol == \"udp\" };",
        "@record(\"none\") permit(principal, action in [Action::\"read_file\", Action::\"map_code\"], resource) when { context.path like \"/usr/*\" };",
        "@reason(\"no\") forbid(principal, action in [Action::\"read_file\", Action::\"delete_file\"], resource) when { context.caller == \"/x\" };",
        "permit(principal, action == Action::\"system\", resource) when { context.operation == \"signal\" && !context.outside };",
        "permit(principal, action == Action::\"listen\", resource) when { context.port >= 1024 };",
    ];
    let policy = Policy::load(&bundle(&rules.map(str::to_owned))).expect("valid");
    let mut asks = Vec::new();
    let paths = ["/usr/bin/a", "/usr/bin/b", "/usr/a", "/tmp/a", "/tmp/b", "/usr", "", "/usr/-r", "b", "/b/"];
    for caller in ["/x", "/y"].map(str::to_owned) {
        for flags in 0..4 {
            let (fileless, setuid) = (flags & 1 != 0, flags & 2 != 0);
            for path in paths.map(str::to_owned) {
                for args in [&["a"][..], &["a", "-r"], &["-r"], &["-rf"], &["a", "-"]] {
                    let args = args.iter().map(|arg| (*arg).to_owned()).collect();
                    asks.push(Ask::Exec {
                        path: path.clone(),
                        args,
                        fileless,
                        setuid,
                        caller: caller.clone(),
                    });
                }
                for op in FileOp::all() {
                    asks.push(Ask::File { op, path: path.clone(), fileless, caller: caller.clone() });
                }
            }
        }
        for operation in Operation::all() {
            for outside in [false, true] {
                asks.push(Ask::System { operation, outside, caller: caller.clone() });
            }
        }
    }
    for address in ADDRESSES.map(|address| address.parse().expect("an address")) {
        for port in PORTS {
            for protocol in [6, 17] {
                asks.push(Ask::Connect { address, port, protocol });
                asks.push(Ask::Listen { address, port, protocol });
            }
        }
    }
    (policy, asks)
}

/// How many questions the tables answer otherwise than Cedar does.
fn differences(compiled: &KernelPolicy, asks: &[(Question, Answer)]) -> usize {
    let differs = |(question, answer): &&(Question, Answer)| {
        !agrees(compiled, compiled.judge(question).expect("of a session"), answer)
    };
    asks.iter().filter(differs).count()
}

/// The comparison can fail: spoil any decision in the tables, and some question is answered otherwise.
#[test]
fn a_spoiled_table_is_noticed() {
    let (policy, asks) = sample();
    let alice = &people()[0];
    let asks: Vec<(Question, Answer)> = asks
        .iter()
        .map(|ask| ask.question(alice, PLACES[0]))
        .map(|question| (question.clone(), policy.decide(&question)))
        .collect();
    let compiled = policy.compile(alice, PLACES[0].0, PLACES[0].1).expect("compiles");
    assert_eq!(differences(&compiled, &asks), 0);
    let header = &compiled.header;
    let at = |from: u32, words: u32| from as usize..(from + words) as usize;
    let callers = header.caller.classes;
    assert!(callers > 1 && header.path.classes > 1 && header.file.classes > 1);
    let exec_table = at(header.exec_table, header.path.classes * EXEC_INDICES * callers);
    let rows: BTreeSet<Word> =
        compiled.arena[exec_table.clone()].iter().copied().filter(|word| word & NEEDS_ARGS != 0).collect();
    assert!(!rows.is_empty(), "the sample should depend on arguments");
    let mut spots: Vec<usize> = exec_table.collect();
    for row in &rows {
        let row = header.args_rows + (row & INDEX_MASK) * ARGS_ROW_WORDS;
        let table = compiled.arena[(row + ARGS_TABLE) as usize];
        spots.extend(at(table, 2));
    }
    for op in (0..file_op::COUNT).filter(|op| header.uniform[*op as usize] == 0) {
        let size = header.file.classes * 2 * callers;
        spots.extend(at(header.file_table + op * size, size));
    }
    spots.extend(at(header.system_table, operation::COUNT * 2 * callers));
    for net in [&header.connect, &header.listen] {
        let protocols = u32::from(net.protocols.iter().copied().max().unwrap_or(0)) + 1;
        spots.extend(at(net.table, protocols * net.port_classes * net.address_classes));
    }
    for at in &spots {
        let mut spoiled = compiled.clone();
        // Go on with arguments that do not exist, or the other verdict.
        spoiled.arena[*at] ^= if spoiled.arena[*at] & NEEDS_ARGS != 0 { 0xff00 } else { DENY };
        assert!(differences(&spoiled, &asks) > 0, "nobody noticed that word {at} was spoiled");
    }
    for op in (0..file_op::COUNT).filter(|op| header.uniform[*op as usize] != 0) {
        let mut spoiled = compiled.clone();
        spoiled.header.uniform[op as usize] ^= DENY;
        assert!(differences(&spoiled, &asks) > 0, "nobody noticed that the word of action {op} was spoiled");
    }
    println!("{} words spoiled, each noticed", spots.len());
}

/// Words that lead out of the tables end in a denial.
#[test]
fn a_table_that_leads_nowhere_denies() {
    let (policy, asks) = sample();
    let mut compiled = policy.compile(&people()[0], PLACES[0].0, PLACES[0].1).expect("compiles");
    compiled.arena.truncate(1);
    compiled.header.uniform = Default::default();
    for ask in asks {
        let question = ask.question(&people()[0], PLACES[0]);
        assert_eq!(compiled.judge(&question), Some(DENY | UNJUDGED));
    }
}

/// A file's other names count: the first denial, else the path.
#[test]
fn registered_names_are_judged_too() {
    let (policy, _) = sample();
    let compiled = policy.compile(&people()[0], PLACES[0].0, PLACES[0].1).expect("compiles");
    let read = FileOp::from_name("read_file").expect("an action");
    let judge = |names: &[&[u8]]| compiled.judge_file(read, names, false, b"/y");
    assert_eq!(judge(&[b"/usr/a"]) & DENY, 0);
    assert_eq!(judge(&[b"/usr/a", b"/etc/a"]) & DENY, DENY);
    assert_eq!(judge(&[b"/etc/a", b"/usr/a"]) & DENY, DENY);
    assert_eq!(judge(&[]), DENY | UNJUDGED);
    let exec = |names: &[&[u8]]| compiled.judge_exec(&Program { names, ..Program::default() });
    assert_eq!(exec(&[b"/usr/a", b"/usr/c"]) & DENY, 0);
    assert_eq!(exec(&[b"/usr/a", b"/usr/b"]) & DENY, DENY);
}
