//! `explain` and `diff` say what Cedar's authorizer says: random pairs of policies, random questions.
//!
//! Each question is explained under the old policy, and must be in the comparison's difference exactly if Cedar answers it
//! otherwise under the new one. `SALLYPORT_CASES=N` runs N pairs.

#[path = "../differential/generate.rs"]
mod generate;
#[path = "../differential/world.rs"]
mod world;

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use proptest::sample::select;
use proptest::test_runner::{Config, TestRunner};
use sallyport_policy::{
    Bundle, Change, Comparison, Diff, Effect, Explanation, GatewayAction, Policy, Question, Scope, Verdict,
};

use crate::generate::{ADDRESSES, RANGES, exec, file, net, one, rule, system};
use crate::world::{PLACES, bundle, people};

/// How many questions must be compared, at the least.
const QUESTIONS: u64 = 100_000;
/// The grounds of every so many questions are tried by taking rules away.
const TRIED: u64 = 40;

fn cases() -> u32 {
    std::env::var("SALLYPORT_CASES").ok().and_then(|n| n.parse().ok()).unwrap_or(240)
}

/// A rule on sessions, or on Sallyport itself.
fn session_rule() -> impl Strategy<Value = String> {
    let condition = prop_oneof![
        one(&RANGES).prop_map(|range| format!("context.client_address.isInRange(ip(\"{range}\"))")),
        one(&["isLoopback", "isMulticast", "isIpv4"])
            .prop_map(|test| format!("context.client_address.{test}()")),
        one(&["root", "dev", "a"]).prop_map(|user| format!("context.local_user == \"{user}\"")),
        Just("principal.kind == \"ci\"".to_owned()),
    ];
    let head = one(&[
        "permit",
        "@session_limit(\"1h\") permit",
        "@session_limit(\"8h\") permit",
        "@reason(\"no\") forbid",
        "@reason(\"no\") @mode(\"monitor\") forbid",
    ]);
    prop_oneof![
        4 => (head, one(&["when", "unless"]), condition).prop_map(|(head, word, condition)| {
            format!("{head}(principal, action == Action::\"open_session\", resource) {word} {{ {condition} }};")
        }),
        1 => one(&["push_policy", "read_evidence"]).prop_map(|action| {
            format!("permit(principal in Group::\"g1\", action == Action::\"{action}\", resource);")
        }),
    ]
}

/// How the new policy comes about.
#[derive(Clone, Debug)]
struct Edit {
    dropped: usize,
    added: Vec<String>,
}

impl Edit {
    fn apply(&self, rules: &[String]) -> Vec<String> {
        let mut rules = rules.to_vec();
        // Now and then nothing is dropped.
        if self.dropped < rules.len() {
            rules.remove(self.dropped);
        }
        rules.extend(self.added.iter().cloned());
        rules
    }
}

fn edit() -> impl Strategy<Value = Edit> {
    let added = prop::collection::vec(prop_oneof![3 => rule(), 1 => session_rule()], 0..3);
    (0usize..9, added).prop_map(|(dropped, added)| Edit { dropped, added })
}

/// The bundle without some of its rules.
fn without(bundle: &Bundle, ids: &BTreeSet<String>) -> Option<Policy> {
    let text = |path: &str| String::from_utf8(bundle.file(path)?.to_vec()).ok();
    let named = |rule: &&str| ids.iter().any(|id| rule.starts_with(&format!("@id(\"{id}\") ")));
    let text_of_rules = text("rules.cedar")?;
    let kept: Vec<&str> = text_of_rules.split('\n').filter(|rule| !named(rule)).collect();
    let left = if kept.is_empty() {
        "@id(\"x\") permit(principal, action == Action::\"manage_sensors\", resource);".to_owned()
    } else {
        kept.join("\n")
    };
    let files = [
        ("bundle.toml", text("bundle.toml")?),
        ("entities.json", text("entities.json")?),
        ("rules.cedar", left),
    ];
    Policy::load(&Bundle::from_files(files).ok()?).ok()
}

/// What is wrong with an explanation.
fn fault(policy: &Policy, question: &Question, explained: &Explanation) -> Option<String> {
    let answer = policy.decide(question);
    if answer != explained.answer {
        return Some("the verdict is not Cedar's".into());
    }
    // The rules, taken apart and put together again.
    let holds = |forbids: bool, monitored: bool| {
        explained.holding.iter().find(|held| held.forbids == forbids && held.monitored == monitored)
    };
    let (forbid, permit, watched) = (holds(true, false), holds(false, false), holds(true, true));
    let allowed = forbid.is_none() && permit.is_some();
    if allowed != answer.allowed {
        return Some(format!("the rules that hold say {allowed}"));
    }
    let named = forbid.or(permit).map(|held| &held.rule);
    if named != answer.rule.as_ref() {
        return Some(format!("it names {named:?}"));
    }
    let noticed = watched.filter(|_| allowed).map(|held| &held.rule);
    (noticed != answer.observed.as_ref()).then(|| format!("it is noticed by {noticed:?}"))
}

/// Takes away what the explanation names, and sees whether that changes the answer as it says.
fn untrue_remedy(bundle: &Bundle, question: &Question, explained: &Explanation) -> Option<String> {
    let remedy = &explained.remedy;
    let named = if explained.answer.allowed { &remedy.relies_on } else { &remedy.lift };
    let ids: BTreeSet<String> = named.iter().map(|rule| rule.id.clone()).collect();
    let after = without(bundle, &ids)?.decide(question).allowed;
    let expected = !explained.answer.allowed && remedy.permitted;
    (after != expected).then(|| format!("without {ids:?} it is {after}, not {expected}"))
}

#[derive(Default)]
struct Counts {
    questions: u64,
    remedies: u64,
    pairs: u64,
    differing: BTreeMap<&'static str, u64>,
    unchanged: u64,
    spoiled: u64,
    noticed: u64,
    examples: u64,
}

#[test]
fn explanations_and_differences_are_cedars() {
    let counts = RefCell::new(Counts::default());
    let mut runner = TestRunner::new(Config {
        cases: cases(),
        max_global_rejects: cases() * 4,
        failure_persistence: None,
        max_shrink_iters: 200,
        ..Config::default()
    });
    let strategy = (
        prop::collection::vec(rule(), 1..6),
        prop::collection::vec(session_rule(), 0..3),
        edit(),
        (prop::collection::vec(exec(), 14), prop::collection::vec(file(), 18)),
        (prop::collection::vec(system(), 6), prop::collection::vec(net(), 14)),
        prop::collection::vec(select(&ADDRESSES), 3),
    );
    let outcome =
        runner.run(&strategy, |(mut rules, sessions, edit, (execs, files), (systems, nets), clients)| {
            rules.extend(sessions);
            let (old, new) = (bundle(&rules), bundle(&edit.apply(&rules)));
            let (Ok(before), Ok(after)) = (Policy::load(&old), Policy::load(&new)) else {
                return Err(TestCaseError::reject("the check refuses it"));
            };
            let mut counts = counts.borrow_mut();
            counts.pairs += 1;
            // The whole difference, for these people; each example was confirmed by Cedar, or this fails.
            let scope = Scope {
                people: people(),
                hosts: PLACES.map(|(host, _)| host.to_owned()).to_vec(),
                local_users: PLACES.map(|(_, user)| user.to_owned()).to_vec(),
            };
            let diff =
                Diff::new(&before, &after, &scope).map_err(|error| TestCaseError::fail(error.to_string()))?;
            for difference in &diff.differences {
                let Some(question) = &difference.example else { continue };
                counts.examples += 1;
                let answers = (Effect::of(&before.decide(question)), Effect::of(&after.decide(question)));
                prop_assert_eq!(&answers, &(difference.before.clone(), difference.after.clone()));
                prop_assert!(!answers.0.same(&answers.1), "{question}: no difference");
            }
            for principal in people() {
                for (host, user) in PLACES {
                    let Ok(mut comparison) = Comparison::new(&before, &after, &principal, host, user) else {
                        continue;
                    };
                    let all = execs.iter().chain(&files).chain(&systems).chain(&nets);
                    let mut questions: Vec<Question> =
                        all.map(|ask| ask.question(&principal, (host, user))).collect();
                    questions.extend(clients.iter().map(|client| Question::OpenSession {
                        principal: principal.clone(),
                        host: host.to_owned(),
                        local_user: user.to_owned(),
                        client_address: client.parse().expect("an address"),
                    }));
                    questions.extend(GatewayAction::ALL.map(|action| Question::Gateway {
                        principal: principal.clone(),
                        action,
                        change: Change::default(),
                    }));
                    let mut differing = Vec::new();
                    for question in &questions {
                        counts.questions += 1;
                        let explained = before.explain(question);
                        let wrong = fault(&before, question, &explained);
                        prop_assert!(wrong.is_none(), "{question:?}: {wrong:?}: {explained:?}");
                        if counts.questions % TRIED == 0 {
                            counts.remedies += 1;
                            let wrong = untrue_remedy(&old, question, &explained);
                            prop_assert!(wrong.is_none(), "{question:?}: {wrong:?}: {explained:?}");
                        }
                        let answers = (Effect::of(&explained.answer), Effect::of(&after.decide(question)));
                        let differs = !answers.0.same(&answers.1);
                        prop_assert_eq!(
                            comparison.contains(question),
                            differs,
                            "{:?}: {:?}",
                            question,
                            answers
                        );
                        if differs {
                            *counts.differing.entry(question.action()).or_default() += 1;
                            differing.push(question);
                            let told = diff.differences.iter().any(|difference| {
                                difference.action == question.action()
                                    && (difference.before.same(&answers.0)
                                        && difference.after.same(&answers.1))
                            });
                            prop_assert!(told, "{question}: nobody is told of it");
                        } else {
                            counts.unchanged += 1;
                        }
                    }
                    // The comparison above can fail: forget some differences.
                    if comparison.spoil() {
                        counts.spoiled += 1;
                        counts.noticed +=
                            u64::from(differing.iter().any(|question| !comparison.contains(question)));
                    }
                }
            }
            Ok(())
        });
    if let Err(error) = outcome {
        panic!("{error}");
    }
    let counts = counts.into_inner();
    let differing: u64 = counts.differing.values().sum();
    println!(
        "{} pairs of policies, {} questions: {differing} differ ({:?}), {} do not; {} remedies tried, {} examples \
         confirmed; {} of {} spoiled comparisons noticed",
        counts.pairs,
        counts.questions,
        counts.differing,
        counts.unchanged,
        counts.remedies,
        counts.examples,
        counts.noticed,
        counts.spoiled
    );
    if cases() >= 240 {
        assert!(counts.questions >= QUESTIONS, "only {} questions were asked", counts.questions);
    }
    assert!(differing * 50 > counts.questions, "too few questions differ to show anything");
    for action in ["exec", "read_file", "system", "connect", "listen", "open_session"] {
        assert!(counts.differing.contains_key(action), "nothing differed of {action}");
    }
    assert!(counts.noticed * 4 > counts.spoiled, "spoiled comparisons are noticed too seldom");
}

/// A verdict that is taken for another is noticed, too: the comparison of answers is by what they mean.
#[test]
fn every_kind_of_change_is_told() {
    let base = "@id(\"p\") permit(principal, action == Action::\"exec\", resource) when { context.path like \"/usr/bin/*\" };";
    let load = |rules: &str| {
        let files = [("bundle.toml", "name = \"t\"\nschema = 2\n"), ("r.cedar", rules)];
        Policy::load(&Bundle::from_files(files).expect("a bundle"))
            .unwrap_or_else(|faults| panic!("{faults}"))
    };
    let forbid = "@reason(\"r\") forbid(principal, action == Action::\"exec\", resource) when { context.name == \"nmap\" };";
    let before = load(base);
    for (rules, change, verdict) in [
        (format!("{base} @id(\"f\") {forbid}"), "becomes forbidden", Verdict::Denied),
        (format!("{base} @id(\"f\") @on_violation(\"kill\") {forbid}"), "becomes forbidden", Verdict::Killed),
        (format!("{base} @id(\"f\") @mode(\"monitor\") {forbid}"), "becomes monitored", Verdict::Observed),
        (base.replace("@id", "@record(\"none\") @id"), "is no longer recorded", Verdict::Unrecorded),
        (base.replace("/usr/bin/*", "/usr/*bin/*"), "becomes allowed", Verdict::Allowed),
    ] {
        let diff = Diff::new(&before, &load(&rules), &Scope::default()).expect("compared");
        // Who is killed now may have been denied by default before: that is a difference of its own.
        let found = diff.differences.first().unwrap_or_else(|| panic!("{rules}: nothing"));
        assert_eq!(diff.differences.len(), 1 + usize::from(verdict == Verdict::Killed), "{rules}");
        assert_eq!((found.change.name(), found.after.verdict), (change, verdict), "{rules}");
        let example = found.example.as_ref().expect("an example").to_string();
        assert!(example.starts_with("exec /usr/"), "{example}");
        if rules.contains("nmap") {
            assert!(example.ends_with("/nmap"), "{example}");
        }
        // Nothing tells people apart, so somebody stands for everybody.
        assert_eq!(found.concerns.len(), 1, "{:?}", found.concerns);
    }
    // Written otherwise, meaning the same.
    let same = base.replace(
        "context.path like \"/usr/bin/*\"",
        "!(!(context.path like \"/usr/*\" && context.path like \"/usr/bin/*\"))",
    );
    let diff = Diff::new(&before, &load(&same), &Scope::default()).expect("compared");
    assert!(diff.is_empty() && diff.differences.is_empty(), "{:?}", diff.differences);
}
