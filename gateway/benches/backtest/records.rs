//! The records: what people in sessions did, with the outcomes that the bundle then in force gave, stored by the recorder.

use std::collections::HashMap;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result};
use sallyport_evidence::note::Signer;
use sallyport_evidence::record::{
    Decision, Endpoint, FileAction, Identity, Kind, Outcome, Process, Record, Session, Source,
};
use sallyport_gateway::recorder::store::{NewLeaf, Store};
use sallyport_policy::{Effect, FileOp, Policy, Principal, Question, Verdict};

use crate::bundles;

/// People.
pub(crate) const PEOPLE: u64 = 400;
/// Hosts that the bundles list; one in ten sessions is on another.
pub(crate) const HOSTS: u64 = 50;
/// Sessions, each of one person on one host.
const SESSIONS: u64 = 2_000;
/// Records that follow each other in one session.
const RUN: u64 = 40;
/// Records that are made durable at once.
const BATCH: u64 = 5_000;
/// What starts every program: it is not on the record.
pub(crate) const SHELL: &str = "/usr/bin/bash";

/// What a session does; `#` stands for a number.
enum Act {
    Exec(&'static str, &'static [&'static str]),
    File(&'static str, &'static str, &'static str),
    Connect(&'static str, u16, u8),
}

/// What sessions do, as often as it stands here.
const ACTS: &[Act] = &[
    Act::Exec("/usr/bin/ls", &["ls", "-l", "/srv/data/#"]),
    Act::Exec("/usr/bin/ls", &["ls", "--color=auto"]),
    Act::Exec("/usr/bin/cat", &["cat", "/srv/data/#/notes"]),
    Act::Exec("/usr/bin/grep", &["grep", "-rn", "error #", "/var/log/app"]),
    Act::Exec("/usr/bin/git", &["git", "log", "-n", "#"]),
    Act::Exec("/usr/bin/psql", &["psql", "-h", "db", "-c", "select #"]),
    Act::Exec("/usr/bin/psql", &["psql", "-h", "db", "-f", "/srv/scripts/#.sql"]),
    Act::Exec("/usr/bin/systemctl", &["systemctl", "status", "unit-#"]),
    Act::Exec("/usr/bin/python3", &["python3", "/srv/app/job-#.py", "--once"]),
    Act::Exec("/usr/bin/rm", &["rm", "/srv/data/#/old"]),
    Act::Exec("/usr/bin/rm", &["rm", "-rf", "/srv/data/#"]),
    Act::Exec("/usr/bin/nmap", &["nmap", "10.0.0.#"]),
    Act::Exec("/usr/bin/whoami", &["whoami"]),
    Act::Exec("/usr/sbin/useradd", &["useradd", "person-#"]),
    Act::Exec("/opt/tool-#/bin/run", &["run", "--file", "#"]),
    Act::File("read_file", "/srv/data/#/file", "/usr/bin/cat"),
    Act::File("read_file", "/srv/data/#/file", "/usr/bin/grep"),
    Act::File("write_file", "/srv/data/#/file", "/usr/bin/python3"),
    Act::File("read_file", "/etc/passwd", "/usr/bin/ls"),
    Act::File("read_file", "/etc/shadow", "/usr/bin/cat"),
    Act::File("read_file", "/var/log/app/#.log", "/usr/bin/grep"),
    Act::File("write_file", "/etc/crontab", "/usr/bin/python3"),
    Act::File("write_file", "/home/dev/notes-#", "/usr/bin/python3"),
    Act::Connect("10.1.#.7", 443, 6),
    Act::Connect("203.0.113.9", 443, 6),
    Act::Connect("10.20.3.7", 5432, 6),
    Act::Connect("10.1.2.#", 22, 6),
    Act::Connect("127.0.0.1", 15432, 6),
    Act::Connect("192.0.2.53", 53, 17),
];

/// One record's question, and what it was made from.
pub(crate) struct Asked {
    /// What was asked of the policy.
    pub(crate) question: Question,
    /// The person's number.
    pub(crate) person: u64,
    session: u64,
    act: usize,
}

/// Whose a record is.
pub(crate) fn person(number: u64) -> u64 {
    number / RUN % SESSIONS % PEOPLE
}

/// The question behind a record: the same in each run.
pub(crate) fn asked(number: u64) -> Result<Asked> {
    let session = number / RUN % SESSIONS;
    let person = person(number);
    let act = (chance(number, 1) % ACTS.len() as u64) as usize;
    let n = chance(number, 2) % 5_000;
    let fill = |text: &str| text.replace('#', &n.to_string());
    let (principal, host) = (principal(person), host(session));
    let local_user = ["root", "dev"][(session / PEOPLE % 2) as usize].to_owned();
    let question = match ACTS[act] {
        Act::Exec(path, args) => Question::Exec {
            principal,
            host,
            local_user,
            path: fill(path),
            args: args.iter().map(|arg| fill(arg)).collect(),
            fileless: false,
            setuid: false,
            caller: SHELL.to_owned(),
        },
        Act::File(op, path, caller) => Question::File {
            principal,
            host,
            local_user,
            op: FileOp::from_name(op).context("an action")?,
            path: fill(path),
            fileless: false,
            caller: caller.to_owned(),
        },
        Act::Connect(address, port, protocol) => Question::Connect {
            principal,
            host,
            local_user,
            address: address.replace('#', &(n % 250).to_string()).parse()?,
            port,
            protocol,
        },
    };
    Ok(Asked { question, person, session, act })
}

/// Stores records; returns their bytes.
pub(crate) fn fill(path: &Path, records: u64, before: &Policy) -> Result<u64> {
    let signer = Signer::new("bench", &[7; 32]).context("a signer")?;
    let mut store = Store::open(path, signer.verifier())?;
    let now = u64::try_from(SystemTime::now().duration_since(UNIX_EPOCH)?.as_nanos())?;
    // No rule then in force looks at the numbers, so one answer stands for all of them.
    let mut outcomes: HashMap<(u64, usize), (Outcome, String)> = HashMap::new();
    let mut bytes = 0;
    for from in (0..records).step_by(usize::try_from(BATCH)?) {
        let mut leaves = Vec::new();
        for number in from..records.min(from + BATCH) {
            let asked = asked(number)?;
            let (outcome, rule) = outcomes
                .entry((asked.session, asked.act))
                .or_insert_with(|| recorded(before, Effect::of(&before.decide(&asked.question))))
                .clone();
            let record = record(&asked, number, now, outcome, rule).to_bytes()?;
            bytes += record.len() as u64;
            leaves.push(NewLeaf { head: serde_json::from_slice(&record)?, bytes: record });
        }
        store.commit(&leaves, now, |_| None)?;
    }
    Ok(bytes)
}

/// Outcome and rule, as a sensor records them.
pub(crate) fn recorded(policy: &Policy, effect: Effect) -> (Outcome, String) {
    match effect.verdict {
        Verdict::Observed => (Outcome::Observed, effect.rule),
        // The kernel does not name the permit.
        Verdict::Allowed | Verdict::Unrecorded => (Outcome::Allowed, String::new()),
        Verdict::Killed => (Outcome::Killed, effect.rule),
        Verdict::Denied | Verdict::SessionEnded if effect.rule == policy.default_rule().id => {
            (Outcome::Blocked, String::new())
        }
        Verdict::Denied | Verdict::SessionEnded => (Outcome::Blocked, effect.rule),
    }
}

/// A number that looks like chance and is the same in each run (splitmix64).
fn chance(number: u64, salt: u64) -> u64 {
    let mut z = number.wrapping_mul(4).wrapping_add(salt).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

fn principal(person: u64) -> Principal {
    let team = ["engineers", "oncall", "contractors"][(person % 3) as usize];
    Principal {
        user: format!("person-{person}@example.org"),
        groups: vec![team.to_owned(), "staff".to_owned()],
        kind: "human".to_owned(),
        issuer: "https://id.example.org".to_owned(),
        on_behalf_of: String::new(),
    }
}

fn host(session: u64) -> String {
    let number = chance(session, 3) % (HOSTS + HOSTS / 9);
    if number < HOSTS { bundles::host(number) } else { format!("unlisted-{number}") }
}

/// The record that a sensor makes.
fn record(asked: &Asked, number: u64, now: u64, outcome: Outcome, rule: String) -> Record {
    let session = asked.session;
    let principal = asked.question.principal();
    let host = asked.question.host().unwrap_or_default().to_owned();
    let boot = "0b1c2d3e-4f50-6172-8394-a5b6c7d8e9f0";
    let process = |path: &str, args: Vec<String>| Process {
        exec_id: format!("{boot}/{}/{}", 1_000_000_000 + number, number % 32_768),
        parent_exec_id: format!("{boot}/{}/{}", 900_000_000 + number, number % 32_000),
        pid: (number % 32_768) as u32,
        path: path.to_owned(),
        args,
        comm: path.rsplit('/').next().unwrap_or_default().chars().take(15).collect(),
        cwd: "/srv/data".into(),
        inode: "8:1/131080".into(),
        sha256: "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855".into(),
        cgroup: "/sallyport/session".into(),
        ..Process::default()
    };
    let mut record = Record {
        source: Source { maker: host.clone(), boot: boot.into(), seq: number + 1 },
        time_ns: now,
        host: Some(host),
        identity: Some(Identity {
            user: principal.user.clone(),
            groups: principal.groups.clone(),
            kind: principal.kind.clone(),
            issuer: principal.issuer.clone(),
            subject: format!("auth0|{:024}", asked.person),
            method: "certificate".into(),
            ..Identity::default()
        }),
        session: Some(Session {
            id: format!("01930000-0000-7000-8000-{session:012}"),
            channel: format!("01930000-0000-7000-9000-{session:012}"),
            local_user: asked.question.local_user().unwrap_or_default().to_owned(),
            client: "198.51.100.7:50122".into(),
        }),
        decision: Some(Decision {
            action: asked.question.action().to_owned(),
            outcome,
            policy: "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855".into(),
            rule,
            reason: String::new(),
            point: "kernel-lsm".into(),
        }),
        ..Record::empty(Kind::Exec)
    };
    match &asked.question {
        Question::File { op, path, caller, .. } => {
            record.kind = Kind::File;
            record.process = Some(process(caller, vec![]));
            let (op, path) = (op.name().to_owned(), path.clone());
            record.file = Some(FileAction { op, path, inode: "8:1/99".into(), ..FileAction::default() });
        }
        Question::Connect { address, port, protocol, .. } => {
            record.kind = Kind::Connect;
            record.process = Some(process(SHELL, vec![]));
            let protocol = if *protocol == 17 { "udp" } else { "tcp" };
            record.endpoint = Some(Endpoint {
                address: address.to_string(),
                port: *port,
                protocol: protocol.into(),
                op: "connect".into(),
            });
        }
        Question::Exec { path, args, .. } => record.process = Some(process(path, args.clone())),
        _ => {}
    }
    record
}
