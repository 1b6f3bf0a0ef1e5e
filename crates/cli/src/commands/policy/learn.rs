//! `policy learn`: a proposal from what sessions did.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;

use sallyport_policy::{Act, Args, Learned, Outcome, Principal, Proposal, Question, Text};
use serde_json::json;

use super::{evidence, load};
use crate::{
    args::Learn,
    commands::events::parse_since,
    failure::Failure,
    gateway::Context,
    recorded::{Recorded, Subject, lacking},
    text::safe,
};

/// What one thread has seen.
#[derive(Default)]
struct Seen {
    acts: Vec<(u64, Learned)>,
    left_out: BTreeMap<&'static str, u64>,
    joined: String,
}

impl Seen {
    fn take(&mut self, since: u64, index: u64, bytes: &[u8]) {
        let Ok(record) = Recorded::parse(bytes) else { return };
        let Some(decision) =
            record.decision.as_ref().filter(|_| record.is_decided() && record.time_ns >= since)
        else {
            return;
        };
        let mut joined = std::mem::take(&mut self.joined);
        match question(&record, &mut joined) {
            Err(why) => *self.left_out.entry(why).or_default() += 1,
            Ok(question) => {
                let outcome = match (&*decision.outcome, &*decision.rule) {
                    ("allowed", _) | ("observed", "") => Outcome::Went,
                    ("blocked" | "killed", "") => Outcome::Unpermitted,
                    (_, rule) => Outcome::Forbidden(rule.to_owned()),
                };
                let session = record.session().to_owned();
                self.acts.push((index, Learned { question, outcome, session }));
            }
        }
        self.joined = joined;
    }
}

fn question(record: &Recorded<'_>, joined: &mut String) -> Result<Question, &'static str> {
    let principal: Principal = record.principal().ok_or(lacking::IDENTITY)?;
    let (host, local_user) = (record.host().to_owned(), record.local_user().to_owned());
    // Proposals look neither at arguments nor at callers.
    let named = |caller: Option<&str>| caller.unwrap_or_default().to_owned();
    let act = match record.subject(joined)? {
        Subject::Act(act) => act,
        Subject::Session(client_address) => {
            return Ok(Question::OpenSession { principal, host, local_user, client_address });
        }
        Subject::Gateway(_) => return Err("rights at the gateway are not learned"),
    };
    Ok(match act {
        Act::Exec { path, args, fileless, setuid, caller, .. } => {
            let (Args::All(args) | Args::Beginning(args, _)) = args;
            let args = args.split('\0').map(str::to_owned).collect();
            let (path, caller) = (path.to_owned(), named(caller));
            Question::Exec { principal, host, local_user, path, args, fileless, setuid, caller }
        }
        Act::File { op, path, fileless, caller, .. } => {
            let (path, caller) = (path.to_owned(), named(caller));
            Question::File { principal, host, local_user, op, path, fileless, caller }
        }
        Act::System { operation, outside, caller } => {
            Question::System { principal, host, local_user, operation, outside, caller: named(caller) }
        }
        Act::Connect(address, port, protocol) => {
            Question::Connect { principal, host, local_user, address, port, protocol }
        }
        Act::Listen(address, port, protocol) => {
            Question::Listen { principal, host, local_user, address, port, protocol }
        }
        Act::IcmpSocket => {
            let address = IpAddr::V4(Ipv4Addr::LOCALHOST);
            Question::Connect { principal, host, local_user, address, port: 0, protocol: 1 }
        }
    })
}

pub(super) async fn learn(context: &Context, args: Learn) -> Result<(), Failure> {
    if args.evidence.user.is_none() && args.evidence.sessions.is_empty() {
        return Err(
            Failure::usage("whose sessions?").next("name a person with --user, or sessions with --session")
        );
    }
    let prefix_is_one = !args.id_prefix.is_empty()
        && args.id_prefix.len() <= 30
        && args
            .id_prefix
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.'));
    if !prefix_is_one {
        return Err(Failure::usage(format!("`{}` cannot begin an id", safe(&args.id_prefix, 60)))
            .next("use up to 30 letters, digits, `-`, `_` or `.`"));
    }
    let since = parse_since(&args.evidence.since)?;
    let mut taken = BTreeSet::new();
    let mut hosts = None;
    if let Some(dir) = &args.dir {
        let (_, policy) = load(context, dir)?;
        taken.extend(policy.rules().map(|rule| rule.id.clone()));
        hosts = Some(policy.hosts());
    }
    let seen = evidence::each(context, &args.evidence, Seen::default, |seen, index, record| {
        seen.take(since, index, record);
    })?;
    let mut acts = Vec::new();
    let mut left_out: BTreeMap<&'static str, u64> = BTreeMap::new();
    for one in seen {
        acts.extend(one.acts);
        for (why, count) in one.left_out {
            *left_out.entry(why).or_default() += count;
        }
    }
    // In the order of the log, whichever thread was first.
    acts.sort_by_key(|(index, _)| *index);
    let acts: Vec<Learned> = acts.into_iter().map(|(_, act)| act).collect();
    if acts.is_empty() {
        return Err(Failure::failed("nothing was recorded of that in this time")
            .next("`sallyport sessions` lists sessions; --since goes farther back"));
    }
    if let (Some(listed), false) = (&hosts, args.any_host) {
        unlisted(listed, &acts)?;
    }
    let how = Proposal {
        prefix: args.id_prefix,
        taken,
        folder_at: usize::from(args.folder_at),
        group: args.for_group,
        any_host: args.any_host,
        unpermitted: args.include_denied,
    };
    let text = sallyport_policy::learn(&acts, &how);
    write(context, args.out.as_deref(), &text, &left_out)
}

/// Rules can only name hosts that a bundle lists.
fn unlisted(listed: &[String], acts: &[Learned]) -> Result<(), Failure> {
    let seen: BTreeSet<&str> = acts.iter().filter_map(|act| act.question.host()).collect();
    let missing: Vec<&str> =
        seen.into_iter().filter(|host| !listed.iter().any(|known| known == host)).collect();
    if missing.is_empty() {
        return Ok(());
    }
    Err(Failure::failed(format!("the bundle does not list {}", safe(&missing.join(", "), 300))).next(
        "add them to entities.json ({\"uid\": {\"type\": \"Host\", \"id\": \"NAME\"}, \"attrs\": {}, \"parents\": []}), or \
         propose rules for every host with --any-host",
    ))
}

fn write(
    context: &Context,
    file: Option<&Path>,
    text: &Text,
    left_out: &BTreeMap<&'static str, u64>,
) -> Result<(), Failure> {
    let out = context.out;
    if let Some(file) = file {
        use std::io::Write as _;
        let cannot = |err: std::io::Error| {
            Failure::failed(format!("cannot write `{}`", file.display()))
                .because(&err)
                .next("name a file that is not there yet")
        };
        let mut created = std::fs::File::create_new(file).map_err(cannot)?;
        created.write_all(text.cedar.as_bytes()).map_err(cannot)?;
    }
    if out.json {
        out.json(&json!({ "proposal": text, "left_out": left_out }))?;
        return Ok(());
    }
    if file.is_none() {
        out.lines(text.cedar.lines().map(|line| safe(line, 100_000)))?;
    }
    // Beside the rules, which may go into a file.
    eprintln!(
        "{} rules for {} acts. Not permitted: {} that a rule forbade, {} that no rule permits, {} to write by hand.",
        text.rules, text.permitted, text.forbidden, text.unpermitted, text.unwritten
    );
    for (why, count) in left_out {
        eprintln!("{count} left out: {why}");
    }
    eprintln!("Review each rule; then run `sallyport policy check` and `sallyport policy backtest`.");
    Ok(())
}
