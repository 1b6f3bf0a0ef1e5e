//! The kernel's answer is Cedar's answer: random policies, random questions, both ways.
//!
//! Cedar's own authorizer decides each question ([`Policy::decide`]); the reference walker decides it over the compiled
//! tables ([`KernelPolicy`]). A difference in verdict, rule, effect or monitored rule is a failure, and proptest
//! shrinks it.

mod generate;

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use sallyport_policy::{Answer, Bundle, KernelPolicy, OnViolation, Policy, Principal, Question};
use sallyport_sensor_abi::policy::{DENY, END_SESSION, KILL, NEEDS_ARGS, OBSERVED, UNJUDGED, Word};

use crate::generate::{ADDRESSES, Connect, Exec, PORTS, connect, exec, rule};

const ENTITIES: &str = r#"[
  {"uid": {"type": "Group", "id": "all"}, "attrs": {}, "parents": []},
  {"uid": {"type": "Group", "id": "g1"}, "attrs": {}, "parents": [{"type": "Group", "id": "all"}]},
  {"uid": {"type": "Group", "id": "g2"}, "attrs": {}, "parents": []},
  {"uid": {"type": "HostGroup", "id": "hg"}, "attrs": {}, "parents": []},
  {"uid": {"type": "Host", "id": "h1"}, "attrs": {}, "parents": [{"type": "HostGroup", "id": "hg"}], "tags": {"env": "a"}},
  {"uid": {"type": "Host", "id": "h2"}, "attrs": {}, "parents": []}
]"#;

fn people() -> Vec<Principal> {
    let person = |user: &str, groups: &[&str], kind: &str| Principal {
        user: user.into(),
        groups: groups.iter().map(|group| (*group).to_owned()).collect(),
        kind: kind.into(),
        issuer: "https://issuer.example".into(),
        on_behalf_of: if kind == "agent" { "bob".into() } else { String::new() },
    };
    vec![
        person("alice", &["g1", "unknown"], "human"),
        person("bot", &["g2"], "ci"),
        person("agent", &[], "agent"),
    ]
}

/// Where and as whom; the last host is not in the bundle.
const PLACES: [(&str, &str); 3] = [("h1", "root"), ("h2", "dev"), ("elsewhere", "a")];

fn bundle(rules: &[String]) -> Bundle {
    // Ids in another order than the rules, so that the order of ids is seen to count.
    let text: Vec<String> =
        rules.iter().enumerate().map(|(n, rule)| format!("@id(\"r{}\") {rule}", (n * 7) % 10)).collect();
    Bundle::from_files([
        ("bundle.toml", "name = \"t\"\nschema = 1\n".to_owned()),
        ("entities.json", ENTITIES.to_owned()),
        ("rules.cedar", text.join("\n")),
    ])
    .expect("a bundle")
}

/// Whether the tables' word says what Cedar answered.
fn agrees(compiled: &KernelPolicy, word: Word, answer: &Answer) -> bool {
    let named = compiled.rule(word);
    if answer.allowed != (word & DENY == 0) || word & UNJUDGED != 0 {
        return false;
    }
    if let Some(observed) = &answer.observed {
        return word & OBSERVED != 0 && named == Some(observed);
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
    rule && word & (KILL | END_SESSION | OBSERVED) == effect
}

/// Arguments as they lie in memory.
fn memory(args: &[String]) -> Vec<u8> {
    args.iter().flat_map(|arg| arg.bytes().chain([0])).collect()
}

fn exec_question(principal: &Principal, (host, local_user): (&str, &str), exec: &Exec) -> Question {
    Question::Exec {
        principal: principal.clone(),
        host: host.into(),
        local_user: local_user.into(),
        path: exec.path.clone(),
        args: exec.args.clone(),
        fileless: exec.fileless,
    }
}

fn connect_question(principal: &Principal, (host, local_user): (&str, &str), to: &Connect) -> Question {
    Question::Connect {
        principal: principal.clone(),
        host: host.into(),
        local_user: local_user.into(),
        address: to.address,
        port: to.port,
        protocol: to.protocol,
    }
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
const OPERATORS: [&str; 35] = [
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

/// `SALLYPORT_CASES=N` runs N policies instead.
fn cases() -> u32 {
    std::env::var("SALLYPORT_CASES").ok().and_then(|n| n.parse().ok()).unwrap_or(256)
}

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
        prop::collection::vec(exec(), 12),
        prop::collection::vec(connect(), 12),
    );
    let outcome = runner.run(&strategy, |(rules, execs, connects)| {
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
                for exec in &execs {
                    let answer = policy.decide(&exec_question(&principal, (host, user), exec));
                    let word = compiled.judge_exec(exec.path.as_bytes(), &memory(&exec.args), exec.fileless);
                    coverage.borrow_mut().answer(&answer);
                    prop_assert!(
                        agrees(&compiled, word, &answer),
                        "{principal:?} {host} {user} {exec:?}: tables {word:#x}, Cedar {answer:?}"
                    );
                }
                for to in &connects {
                    let answer = policy.decide(&connect_question(&principal, (host, user), to));
                    let word = compiled.judge_connect(to.address, to.port, to.protocol);
                    coverage.borrow_mut().answer(&answer);
                    prop_assert!(
                        agrees(&compiled, word, &answer),
                        "{principal:?} {host} {user} {to:?}: tables {word:#x}, Cedar {answer:?}"
                    );
                }
            }
        }
        Ok(())
    });
    if let Err(error) = outcome {
        panic!("{error}");
    }
    let coverage = coverage.into_inner();
    for (what, count) in &coverage.0 {
        println!("{count:8} {what}");
    }
    let answers: Vec<&str> = vec![
        "answer: allowed",
        "answer: allowed, observed",
        "answer: denied by default",
        "answer: denied by rule",
        "answer: denied, kill",
        "answer: denied, end session",
    ];
    for what in OPERATORS.iter().chain(&answers) {
        assert!(coverage.0.contains_key(what), "never covered: {what}");
    }
    let asked: u64 = answers.iter().filter_map(|what| coverage.0.get(what)).sum();
    println!("{asked:8} questions compared");
    assert!(asked >= u64::from(cases()) * 200, "only {asked} questions were compared");
}

/// A fixed policy with something of everything, and questions to it.
fn sample() -> (Policy, Vec<Exec>, Vec<Connect>) {
    let rules = [
        "permit(principal, action == Action::\"exec\", resource) when { context.path like \"/usr/*\" };",
        "@reason(\"no\") forbid(principal, action == Action::\"exec\", resource) when { context.name == \"b\" };",
        "@reason(\"no\") forbid(principal, action == Action::\"exec\", resource) when { context.args.contains(\"-r\") };",
        "permit(principal, action == Action::\"connect\", resource) when { context.address.isInRange(ip(\"10.0.0.0/8\")) && context.port < 1024 };",
        "@reason(\"no\") forbid(principal, action == Action::\"connect\", resource) when { context.protocol == \"udp\" };",
    ];
    let policy = Policy::load(&bundle(&rules.map(str::to_owned))).expect("valid");
    let mut execs = Vec::new();
    for path in ["/usr/bin/a", "/usr/bin/b", "/usr/a", "/tmp/a", "/tmp/b", "/usr", "", "/usr/-r", "b", "/b/"]
    {
        for args in [&["a"][..], &["a", "-r"], &["-r"], &["-rf"], &["a", "-"]] {
            let args = args.iter().map(|arg| (*arg).to_owned()).collect();
            execs.push(Exec { path: path.into(), args, fileless: false });
        }
    }
    let mut connects = Vec::new();
    for address in ADDRESSES {
        for port in PORTS {
            for protocol in [6, 17] {
                connects.push(Connect { address: address.parse().expect("an address"), port, protocol });
            }
        }
    }
    (policy, execs, connects)
}

/// How many questions the tables answer otherwise than Cedar does.
fn differences(policy: &Policy, compiled: &KernelPolicy, execs: &[Exec], connects: &[Connect]) -> usize {
    let alice = &people()[0];
    let exec = execs.iter().filter(|exec| {
        let answer = policy.decide(&exec_question(alice, PLACES[0], exec));
        let word = compiled.judge_exec(exec.path.as_bytes(), &memory(&exec.args), exec.fileless);
        !agrees(compiled, word, &answer)
    });
    let connect = connects.iter().filter(|to| {
        let answer = policy.decide(&connect_question(alice, PLACES[0], to));
        !agrees(compiled, compiled.judge_connect(to.address, to.port, to.protocol), &answer)
    });
    exec.count() + connect.count()
}

/// The comparison can fail: spoil any decision in the tables, and some question is answered otherwise.
#[test]
fn a_spoiled_table_is_noticed() {
    let (policy, execs, connects) = sample();
    let compiled = policy.compile(&people()[0], PLACES[0].0, PLACES[0].1).expect("compiles");
    assert_eq!(differences(&policy, &compiled, &execs, &connects), 0);
    let header = &compiled.header;
    let exec_words = (header.args_table - header.exec_table) as usize;
    // Decisions about programs without a file are not asked for here: every second word.
    let exec_table = (0..exec_words).step_by(2).map(|n| header.exec_table as usize + n);
    let exec_table: Vec<usize> = exec_table.collect();
    let rows: BTreeSet<Word> =
        exec_table.iter().map(|at| compiled.arena[*at]).filter(|word| word & NEEDS_ARGS != 0).collect();
    let args_table = header.args_table as usize;
    let args_table = args_table..args_table + rows.len() * header.args.classes as usize;
    assert!(rows.len() > 1, "the sample should depend on arguments in several ways");
    let connect_table = header.connect_table as usize..compiled.arena.len();
    for at in exec_table.into_iter().chain(args_table).chain(connect_table) {
        let mut spoiled = compiled.clone();
        // The row of arguments to go on with, or the verdict.
        spoiled.arena[at] ^= if spoiled.arena[at] & NEEDS_ARGS != 0 { 1 } else { DENY };
        let differences = differences(&policy, &spoiled, &execs, &connects);
        assert!(differences > 0, "nobody noticed that word {at} was spoiled");
    }
}

/// Words that lead out of the tables end in a denial.
#[test]
fn a_table_that_leads_nowhere_denies() {
    let (policy, execs, connects) = sample();
    let mut compiled = policy.compile(&people()[0], PLACES[0].0, PLACES[0].1).expect("compiles");
    compiled.arena.truncate(1);
    for exec in execs {
        let word = compiled.judge_exec(exec.path.as_bytes(), &memory(&exec.args), false);
        assert_eq!(word, DENY | UNJUDGED);
    }
    for to in connects {
        assert_eq!(compiled.judge_connect(to.address, to.port, to.protocol), DENY | UNJUDGED);
    }
}
