//! What is learned passes the check, permits everything that was seen, and nothing of a control set.

use std::collections::BTreeSet;

use sallyport_policy::{Bundle, Details, Learned, Outcome, Policy, Principal, Proposal, Question, learn};

const ENTITIES: &str = r#"[{"uid": {"type": "Host", "id": "web-1"}, "attrs": {}, "parents": []},
  {"uid": {"type": "Host", "id": "web-2"}, "attrs": {}, "parents": []}]"#;

fn ask(user: &str, host: &str, local_user: &str, words: &[&str]) -> Question {
    let principal = Principal { user: user.into(), kind: "human".into(), ..Principal::default() };
    let words: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
    Question::asked(principal, host, local_user, &words, Details::default()).expect("a question")
}

fn how() -> Proposal {
    Proposal {
        prefix: "learned".into(),
        taken: BTreeSet::from(["learned-exec-1".to_owned()]),
        folder_at: 5,
        group: None,
        any_host: false,
        unpermitted: false,
    }
}

fn seen() -> Vec<Learned> {
    let mut seen = Vec::new();
    let mut add = |question: Question, outcome: Outcome| {
        seen.push(Learned { question, outcome, session: format!("0192-{}", seen.len() % 4) });
    };
    let alice = |words: &[&str]| ask("alice", "web-1", "root", words);
    for words in [
        &["open_session"][..],
        &["exec", "/usr/bin/id"],
        &["exec", "/usr/bin/id"],
        &["exec", "/opt/a \"b\"\\c*"],
        &["connect", "10.0.0.1:5432/tcp"],
        &["connect", "10.0.0.2:5432/tcp"],
        &["connect", "[fd00::1]:53/udp"],
        &["connect", "10.0.0.9/icmp"],
        &["listen", "127.0.0.1:8080/tcp"],
        &["system", "signal"],
        &["connect_unix", "@bus"],
        &["write_file", "/etc/app/one"],
    ] {
        add(alice(words), Outcome::Went);
    }
    for n in 0..6 {
        add(alice(&["read_file", &format!("/srv/app/data/{n}")]), Outcome::Went);
        add(alice(&["read_file", &format!("/etc/ssl/{n}")]), Outcome::Went);
    }
    add(ask("bob", "web-2", "dev", &["exec", "/usr/bin/id"]), Outcome::Went);
    add(alice(&["exec", "/usr/bin/nmap"]), Outcome::Forbidden("no-scanners".into()));
    add(
        alice(&["exec", "/usr/bin/gcc\n\"); permit (principal, action, resource); //"]),
        Outcome::Forbidden("x".into()),
    );
    add(alice(&["exec", "/usr/bin/strace"]), Outcome::Unpermitted);
    seen
}

fn policy(cedar: &str) -> Policy {
    let files =
        [("bundle.toml", "name = \"t\"\nschema = 2\n"), ("entities.json", ENTITIES), ("l.cedar", cedar)];
    Policy::load(&Bundle::from_files(files).expect("a bundle"))
        .unwrap_or_else(|faults| panic!("{faults}\n{cedar}"))
}

#[test]
fn everything_seen_and_nothing_else() {
    let seen = seen();
    let text = learn(&seen, &how());
    let policy = policy(&text.cedar);
    for learned in &seen {
        let allowed = policy.decide(&learned.question).allowed;
        assert_eq!(allowed, learned.outcome == Outcome::Went, "{}\n{}", learned.question, text.cedar);
    }
    assert_eq!((text.forbidden, text.unpermitted, text.unwritten), (2, 1, 0));
    assert!(
        text.cedar.contains("//   alice on web-1: exec /usr/bin/nmap (forbidden by \\\"no-scanners\\\")"),
        "{}",
        text.cedar
    );
    assert!(!policy.rules().any(|rule| rule.id == "learned-exec-1"), "a taken id is not used again");
    assert!(policy.rules().all(|rule| rule.reason.contains("seen ") && rule.reason.ends_with("; review")));
    let alice = |words: &[&str]| ask("alice", "web-1", "root", words);
    // A folder of many files is a pattern; one of /etc never is.
    assert!(policy.decide(&alice(&["read_file", "/srv/app/data/new"])).allowed);
    let control = [
        alice(&["read_file", "/etc/ssl/new"]),
        alice(&["read_file", "/srv/app/datax"]),
        alice(&["write_file", "/srv/app/data/0"]),
        alice(&["exec", "/usr/bin/ls"]),
        alice(&["connect", "10.0.0.1:5433/tcp"]),
        alice(&["connect", "10.0.0.3:5432/tcp"]),
        alice(&["connect", "10.0.0.1:5432/udp"]),
        alice(&["listen", "0.0.0.0:8080/tcp"]),
        alice(&["system", "trace"]),
        alice(&["read_evidence"]),
        ask("alice", "web-1", "dev", &["exec", "/usr/bin/id"]),
        ask("alice", "web-2", "root", &["exec", "/usr/bin/id"]),
        ask("alice", "web-2", "dev", &["exec", "/usr/bin/id"]),
        ask("bob", "web-1", "root", &["exec", "/usr/bin/id"]),
        ask("bob", "web-2", "dev", &["open_session"]),
        ask("eve", "web-1", "root", &["exec", "/usr/bin/id"]),
    ];
    for question in &control {
        assert!(!policy.decide(question).allowed, "{question}\n{}", text.cedar);
    }
    // The control set can fail: with wider ways it is permitted.
    let wide = Proposal { any_host: true, unpermitted: true, ..how() };
    let wide = self::policy(&learn(&seen, &wide).cedar);
    assert!(wide.decide(&ask("alice", "web-2", "root", &["exec", "/usr/bin/id"])).allowed);
    assert!(wide.decide(&alice(&["exec", "/usr/bin/strace"])).allowed);
    assert!(!wide.decide(&alice(&["exec", "/usr/bin/nmap"])).allowed, "what was forbidden is never proposed");
}
