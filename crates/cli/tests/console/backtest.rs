//! `policy backtest` and `policy learn` over stored records: against a brute force with Cedar's authorizer, with planted
//! differences, and with records that do not say enough.

use std::collections::BTreeMap;
use std::fs;

use sallyport_evidence::record::{
    Decision, Endpoint, FileAction, Identity, Kind, Outcome, Process, Record, Session, SystemAction,
};
use sallyport_policy::{Bundle, Details, Effect, Policy, Principal, Question};

use super::person::{Person, signed_in};

/// Records of the comparison.
const RECORDS: usize = 6_000;

const OLD: &str = r#"
@id("sessions") permit (principal in Group::"ops", action == Action::"open_session", resource);
@id("programs") permit (principal, action == Action::"exec", resource) when { context.path like "/usr/bin/*" };
@id("network") permit (principal, action == Action::"connect", resource) when { context.address.isInRange(ip("10.0.0.0/8")) };
@id("listening") permit (principal, action == Action::"listen", resource) when { context.port > 1024 };
@id("files") permit (principal, action in [Action::"read_file", Action::"write_file"], resource);
@id("shadow") @reason("r") forbid (principal, action, resource is Host) when { context has path && context.path == "/etc/shadow" };
@id("system") permit (principal, action == Action::"system", resource) when { !context.outside };
@id("evidence") permit (principal in Group::"ops", action == Action::"read_evidence", resource);
"#;

/// The same, with differences that are planted.
const NEW: &str = r#"
@id("sessions") permit (principal in Group::"ops", action == Action::"open_session", resource)
    unless { context.client_address.isInRange(ip("198.51.100.0/24")) };
@id("programs") permit (principal, action == Action::"exec", resource) when { context.path like "/usr/*" };
@id("recursive") @reason("r") @on_violation("kill") forbid (principal, action == Action::"exec", resource)
    when { context.name == "rm" && context.args.contains("-rf") };
@id("network") permit (principal, action == Action::"connect", resource) when { context.address.isInRange(ip("10.1.0.0/16")) };
@id("listening") permit (principal, action == Action::"listen", resource) when { context.port > 80 };
@id("files") permit (principal, action in [Action::"read_file", Action::"write_file"], resource);
@id("writers") @reason("r") forbid (principal, action == Action::"write_file", resource)
    when { context.path like "/etc/*" && context.caller != "/usr/bin/dpkg" };
@id("watched") @reason("r") @mode("monitor") forbid (principal in Group::"dev", action == Action::"exec", resource)
    when { context.path == "/usr/bin/id" };
@id("system") permit (principal, action == Action::"system", resource) when { context.operation != "trace" };
"#;

fn bundle(person: &Person, name: &str, rules: &str) -> String {
    let dir = person.path(name);
    fs::create_dir_all(&dir).expect("made");
    let entities = r#"[{"uid": {"type": "Group", "id": "ops"}, "attrs": {}, "parents": []},
        {"uid": {"type": "Group", "id": "dev"}, "attrs": {}, "parents": []},
        {"uid": {"type": "Host", "id": "web-1"}, "attrs": {}, "parents": []},
        {"uid": {"type": "Host", "id": "web-2"}, "attrs": {}, "parents": []}]"#;
    for (file, text) in [
        ("bundle.toml", "schema = 2\nname = \"test\"\n"),
        ("entities.json", entities),
        ("rules.cedar", rules),
    ] {
        fs::write(dir.join(file), text).expect("written");
    }
    dir.to_str().expect("utf-8").to_owned()
}

fn policy(dir: &str) -> Policy {
    Policy::load(&Bundle::read_dir(dir.as_ref()).expect("a bundle"))
        .unwrap_or_else(|faults| panic!("{faults}"))
}

/// Numbers that are the same in each run.
struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % n
    }

    fn one<'a>(&mut self, list: &[&'a str]) -> &'a str {
        list[self.below(list.len())]
    }
}

fn question(random: &mut Random) -> Question {
    let (user, groups) = [("alice", &["ops"][..]), ("bob", &["dev"]), ("eve", &[])][random.below(3)];
    let principal = Principal {
        user: user.into(),
        groups: groups.iter().map(|group| (*group).to_owned()).collect(),
        kind: "human".into(),
        ..Principal::default()
    };
    let path =
        random.one(&["/usr/bin/id", "/usr/bin/rm", "/usr/sbin/x", "/opt/x", "/etc/shadow", "/etc/motd"]);
    let address =
        random.one(&["10.1.2.3:80/tcp", "10.2.3.4:443/tcp", "192.0.2.7:22/udp", "[fd00::1]:53/udp"]);
    let words: &[&str] = match random.below(7) {
        0 => &["open_session"],
        1 => &["read_evidence"],
        2 => &["connect", address],
        3 => &["listen", random.one(&["0.0.0.0:80/tcp", "127.0.0.1:443/tcp", "[::1]:8080/tcp"])],
        4 => &["system", random.one(&["trace", "signal", "mount"])],
        5 => &[random.one(&["read_file", "write_file"]), path],
        _ => &["exec", path],
    };
    let is = |action: &str| words[0] == action;
    let details = Details {
        caller: Some(random.one(&["/usr/bin/bash", "/usr/bin/dpkg"]).to_owned()),
        setuid: is("exec") && random.below(5) == 0,
        outside: is("system") && random.below(2) == 0,
        client: is("open_session")
            .then(|| random.one(&["198.51.100.7", "192.0.2.9"]).parse().expect("an address")),
        args: if is("exec") {
            [&[][..], &["-rf"], &["-r", "x"]][random.below(3)].iter().map(|a| (*a).to_owned()).collect()
        } else {
            vec![]
        },
        ..Details::default()
    };
    let words: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
    Question::asked(principal, random.one(&["web-1", "web-2"]), random.one(&["root", "www"]), &words, details)
        .expect("a question")
}

/// The record that the gateway or a sensor makes of a decision.
fn record(question: &Question, outcome: Outcome, rule: &str) -> Record {
    let principal = question.principal();
    let mut record = Record::empty(Kind::Exec);
    record.time_ns = now_ns();
    record.host = question.host().map(str::to_owned);
    record.identity = Some(Identity {
        user: principal.user.clone(),
        groups: principal.groups.clone(),
        kind: principal.kind.clone(),
        ..Identity::default()
    });
    let mut session = Session {
        id: format!("session-{}", principal.user),
        local_user: question.local_user().unwrap_or_default().to_owned(),
        ..Session::default()
    };
    record.decision = Some(Decision {
        action: question.action().to_owned(),
        outcome,
        policy: "v".into(),
        rule: rule.to_owned(),
        reason: String::new(),
        point: "kernel-lsm".into(),
    });
    let acting = |caller: &str| Process {
        path: caller.to_owned(),
        comm: caller.rsplit('/').next().unwrap_or_default().to_owned(),
        ..Process::default()
    };
    let endpoint = |address: &std::net::IpAddr, port: u16, protocol: u8, op: &str| Endpoint {
        address: address.to_string(),
        port,
        protocol: match protocol {
            6 => "tcp".into(),
            17 => "udp".into(),
            other => other.to_string(),
        },
        op: op.into(),
    };
    match question {
        Question::OpenSession { client_address, .. } => session.client = format!("{client_address}:50000"),
        Question::Exec { path, args, fileless, setuid, .. } => {
            record.process = Some(Process {
                path: path.clone(),
                args: args.clone(),
                fileless: *fileless,
                setuid: *setuid,
                ..Process::default()
            });
        }
        Question::File { op, path, fileless, caller, .. } => {
            record.process = Some(acting(caller));
            record.file = Some(FileAction {
                op: op.name().into(),
                path: path.clone(),
                fileless: *fileless,
                ..FileAction::default()
            });
        }
        Question::System { operation, outside, caller, .. } => {
            record.process = Some(acting(caller));
            record.system = Some(SystemAction {
                operation: operation.name().into(),
                outside: *outside,
                ..SystemAction::default()
            });
        }
        Question::Connect { address, port, protocol, .. } => {
            record.endpoint = Some(endpoint(address, *port, *protocol, "connect"));
        }
        Question::Listen { address, port, protocol, .. } => {
            record.endpoint = Some(endpoint(address, *port, *protocol, "bind"));
        }
        Question::Gateway { .. } => {}
    }
    record.session = Some(session);
    record
}

fn now_ns() -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("a clock");
    u64::try_from(now.as_nanos()).expect("this century")
}

/// Stores records as the recorder does.
fn store(person: &Person, name: &str, records: &[Record]) -> String {
    let dir = person.path(name);
    fs::create_dir_all(&dir).expect("made");
    let mut database = rusqlite::Connection::open(dir.join("evidence.db")).expect("opened");
    database
        .execute_batch(
            "CREATE TABLE leaves (idx INTEGER PRIMARY KEY, hash BLOB NOT NULL, record BLOB NOT NULL, \
             recv_ns INTEGER NOT NULL, kind TEXT NOT NULL, host TEXT, user TEXT, session TEXT, outcome TEXT) STRICT;",
        )
        .expect("made");
    let transaction = database.transaction().expect("begun");
    for (index, record) in records.iter().enumerate() {
        let user = record.identity.as_ref().map(|identity| identity.user.clone());
        let session = record.session.as_ref().map(|session| session.id.clone());
        transaction
            .execute(
                "INSERT INTO leaves VALUES (?, x'00', ?, ?, 'exec', ?, ?, ?, 'allowed')",
                rusqlite::params![
                    index,
                    record.to_bytes().expect("small"),
                    record.time_ns,
                    record.host,
                    user,
                    session
                ],
            )
            .expect("stored");
    }
    transaction.commit().expect("stored");
    dir.to_str().expect("utf-8").to_owned()
}

fn decided(policy: &Policy, question: &Question) -> (Outcome, String) {
    let effect = Effect::of(&policy.decide(question));
    let rule = if effect.rule == "default-deny" { String::new() } else { effect.rule };
    match (effect.verdict.allows(), effect.verdict == sallyport_policy::Verdict::Observed) {
        (true, true) => (Outcome::Observed, rule),
        // The kernel does not name the permit.
        (true, false) => (Outcome::Allowed, String::new()),
        (false, _) => (Outcome::Blocked, rule),
    }
}

#[tokio::test]
async fn the_same_as_a_brute_force_with_cedar() {
    let person = Person::new();
    let (old, new) = (bundle(&person, "old", OLD), bundle(&person, "new", NEW));
    let (before, after) = (policy(&old), policy(&new));
    let mut random = Random(7);
    let mut records = Vec::new();
    let mut expected: BTreeMap<(String, String, String, String, String), u64> = BTreeMap::new();
    for _ in 0..RECORDS {
        let question = question(&mut random);
        let (outcome, rule) = decided(&before, &question);
        records.push(record(&question, outcome, &rule));
        let effect = Effect::of(&after.decide(&question));
        let change = match (outcome == Outcome::Allowed, effect.verdict.allows()) {
            (true, false) => "newly_blocked",
            (false, true) => "newly_allowed",
            (true, true) if effect.verdict == sallyport_policy::Verdict::Observed => "newly_noticed",
            _ => continue,
        };
        let key = (
            change.to_owned(),
            question.principal().user.clone(),
            question.host().unwrap_or_default().to_owned(),
            question.action().to_owned(),
            effect.rule,
        );
        *expected.entry(key).or_default() += 1;
    }
    assert!(expected.len() > 20, "{expected:?}");
    let state = store(&person, "state", &records);
    let ran = person.run(&["--json", "policy", "backtest", &new, "--state-dir", &state]).await;
    assert_eq!(ran.code, 0, "{ran:?}");
    let document = &ran.documents()[0];
    assert_eq!(document["decisions"], RECORDS);
    assert_eq!(document["cannot_be_said"].as_array().expect("a list").len(), 0, "{document}");
    let mut found: BTreeMap<(String, String, String, String, String), u64> = BTreeMap::new();
    for line in document["changes"].as_array().expect("a list") {
        let text = |name: &str| line[name].as_str().expect("text").to_owned();
        let key = (text("change"), text("user"), text("host"), text("action"), text("rule_after"));
        *found.entry(key).or_default() += line["count"].as_u64().expect("a number");
        // The examples are records of that person's.
        let first = usize::try_from(line["records"][0].as_u64().expect("a record")).expect("small");
        assert_eq!(
            records[first].identity.as_ref().expect("somebody").user,
            line["user"].as_str().expect("text")
        );
    }
    assert_eq!(found, expected);
    // Under the policy that decided nothing is different; and the comparison can fail.
    let ran = person.run(&["policy", "backtest", &old, "--state-dir", &state, "--exit-code"]).await;
    assert_eq!(ran.code, 0, "{ran:?}");
    assert!(ran.stdout.contains("newly blocked: 0") && ran.stdout.contains("newly allowed: 0"), "{ran:?}");
    let ran = person.run(&["policy", "backtest", &new, "--state-dir", &state, "--exit-code"]).await;
    assert_eq!(ran.code, 1, "{ran:?}");
    assert!(ran.stdout.contains("\"recursive\"") && ran.stdout.contains("-rf"), "{ran:?}");
    // Only one person's.
    let ran =
        person.run(&["--json", "policy", "backtest", &new, "--state-dir", &state, "--user", "bob"]).await;
    let document = &ran.documents()[0];
    assert!(
        document["changes"].as_array().expect("a list").iter().all(|line| line["user"] == "bob"),
        "{document}"
    );
    // Nothing of it is a year old.
    let ran = person
        .run(&["--json", "policy", "backtest", &new, "--state-dir", &state, "--since", "2099-01-01"])
        .await;
    assert_eq!(ran.documents()[0]["records"], 0, "{ran:?}");
}

#[tokio::test]
async fn what_is_not_on_the_record_is_not_guessed() {
    let person = Person::new();
    let rules = NEW.replace(
        "context.args.contains(\"-rf\")",
        "context.args.contains(\"-rf\") && context.caller != \"/x\"",
    );
    let new = bundle(&person, "new", &rules);
    let ask = |words: &[&str]| {
        let words: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
        let principal = Principal { user: "eve".into(), kind: "human".into(), ..Principal::default() };
        Question::asked(principal, "web-1", "root", &words, Details::default()).expect("a question")
    };
    let changed = |words: &[&str], change: &dyn Fn(&mut Record)| {
        let mut record = record(&ask(words), Outcome::Allowed, "");
        change(&mut record);
        record
    };
    let args = |cut: Option<u32>, args: &'static [&'static str]| {
        move |record: &mut Record| {
            let process = record.process.as_mut().expect("a process");
            process.args = args.iter().map(|arg| (*arg).to_owned()).collect();
            process.args_cut_from = cut;
        }
    };
    let records = [
        // Who started it is not on the record, and matters.
        changed(&["exec", "/usr/bin/rm"], &args(None, &["rm", "-rf"])),
        // It does not matter here.
        changed(&["exec", "/usr/bin/id"], &args(None, &["id"])),
        changed(&["exec", "/usr/bin/id"], &args(Some(9_000), &["id", "x"])),
        // The path is incomplete; the program acting is not the one that the record names; another name.
        changed(&["read_file", "/etc/motd"], &|record| record.file.as_mut().expect("a file").path_cut = true),
        changed(&["write_file", "/etc/motd"], &|record| {
            record.process.as_mut().expect("one").comm = "other".into()
        }),
        changed(&["read_file", "/etc/motd"], &|record| {
            record.file.as_mut().expect("a file").other_name = true
        }),
        changed(&["exec", "/usr/bin/id"], &|record| record.identity = None),
        changed(&["connect", "10.1.0.1:80/tcp"], &|record| {
            record.endpoint.as_mut().expect("one").address.clear()
        }),
    ];
    let state = store(&person, "state", &records);
    let ran = person.run(&["--json", "policy", "backtest", &new, "--state-dir", &state]).await;
    let document = &ran.documents()[0];
    assert_eq!(document["changes"].as_array().expect("a list").len(), 0, "{document}");
    let unsaid: Vec<u64> = document["cannot_be_said"]
        .as_array()
        .expect("a list")
        .iter()
        .flat_map(|line| {
            line["records"].as_array().expect("numbers").iter().map(|n| n.as_u64().expect("a number"))
        })
        .collect();
    let mut unsaid = unsaid;
    unsaid.sort_unstable();
    // Reading is permitted whatever the name is: one word for all of them.
    assert!(unsaid.starts_with(&[0, 3, 4]) && unsaid.ends_with(&[6, 7]), "{document}");
}

#[tokio::test]
async fn the_gateways_stream_is_read_as_the_store_is() {
    let (gateway, person) = signed_in().await;
    let new = bundle(&person, "new", NEW);
    let mut random = Random(3);
    let old = policy(&bundle(&person, "old", OLD));
    let records: Vec<Record> = (0..500)
        .map(|_| question(&mut random))
        .map(|question| {
            let (outcome, rule) = decided(&old, &question);
            record(&question, outcome, &rule)
        })
        .collect();
    let state = store(&person, "state", &records);
    gateway.state().records = records.iter().map(|record| record.to_bytes().expect("small")).collect();
    let offline = person.run(&["--json", "policy", "backtest", &new, "--state-dir", &state]).await;
    let online = person.run(&["--json", "policy", "backtest", &new]).await;
    assert_eq!(online.code, 0, "{online:?}");
    let (offline, online) = (&offline.documents()[0], &online.documents()[0]);
    assert_eq!(online["decisions"], 500);
    assert_eq!(online["changes"], offline["changes"]);
}

#[tokio::test]
async fn what_is_learned_permits_what_was_recorded_and_passes_the_check() {
    let person = Person::new();
    let old = policy(&bundle(&person, "old", OLD));
    let mut random = Random(11);
    let questions: Vec<Question> = (0..600).map(|_| question(&mut random)).collect();
    let records: Vec<Record> = questions
        .iter()
        .map(|question| {
            let (outcome, rule) = decided(&old, question);
            record(question, outcome, &rule)
        })
        .collect();
    let state = store(&person, "state", &records);
    // A bundle that has hosts, and a rule of its own.
    let dir = bundle(
        &person,
        "mine",
        "@id(\"learned-exec-1\") permit (principal, action == Action::\"manage_sensors\", resource);\n",
    );
    let out = format!("{dir}/learned.cedar");
    let args = ["policy", "learn", &dir, "--user", "alice", "--state-dir", &state, "--out", &out];
    let ran = person.run(&args).await;
    assert_eq!(ran.code, 0, "{ran:?}");
    let checked = person.run(&["policy", "check", &dir]).await;
    assert_eq!(checked.code, 0, "{checked:?}\n{}", fs::read_to_string(&out).expect("written"));
    let learned = policy(&dir);
    let (mut permitted, mut refused) = (0, 0);
    for (question, record) in questions.iter().zip(&records) {
        let went = record.decision.as_ref().expect("one").outcome == Outcome::Allowed;
        let alice = question.principal().user == "alice" && question.host().is_some();
        let allowed = learned.decide(question).allowed;
        if alice && went {
            assert!(allowed, "{question}");
            permitted += 1;
        } else {
            // Arguments and callers are not looked at, so the same program may have been permitted otherwise.
            assert!(!allowed || alice, "{question}");
            refused += u32::from(!allowed);
        }
    }
    assert!(permitted > 50 && refused > 100, "{permitted} {refused}");
    let text = fs::read_to_string(&out).expect("written");
    assert!(text.contains("(forbidden by \\\"shadow\\\""), "{text}");
    assert_eq!(person.run(&args).await.code, 1, "a file that is there is not overwritten");
    assert_eq!(person.run(&["policy", "learn", "--state-dir", &state]).await.code, 2, "whose?");
}
