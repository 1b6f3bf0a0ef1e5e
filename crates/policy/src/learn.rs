//! From what was seen to a proposal: the least that would have permitted it, as Cedar rules that a person edits and reviews.
//!
//! Objects that the same people used in the same places make one rule. Files of one folder become a pattern if there are many of
//! them; programs, addresses, ports and operations stay exact. What a rule forbade is never permitted: it is told in a comment.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use serde::Serialize;

use crate::decide::protocol_name;
use crate::question::{Principal, Question};

/// Folders of which no pattern is made, with everything below: other people's files, and what decides who may do what.
const NEVER: [&str; 10] =
    ["/etc", "/root", "/home", "/tmp", "/var/tmp", "/dev", "/proc", "/sys", "/boot", "/run"];
/// Longest list in one rule.
const MOST: usize = 200;

/// What came of an act.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Outcome {
    /// It went ahead, or would have been denied only by default in a session that is watched.
    Went,
    /// It was denied because no rule permits it.
    Unpermitted,
    /// A rule forbids it, or would if it were not only watched.
    Forbidden(String),
}

/// An act that was seen.
#[derive(Clone, Debug)]
pub struct Learned {
    /// What was asked.
    pub question: Question,
    /// What came of it.
    pub outcome: Outcome,
    /// In which session.
    pub session: String,
}

/// How a proposal is made.
#[derive(Clone, Debug)]
pub struct Proposal {
    /// Ids of rules begin so.
    pub prefix: String,
    /// Ids that are taken.
    pub taken: BTreeSet<String>,
    /// So many files of one folder become a pattern.
    pub folder_at: usize,
    /// For the members of this group instead of the people who were seen.
    pub group: Option<String>,
    /// For every host instead of those where it was seen.
    pub any_host: bool,
    /// Propose what was denied by default as well.
    pub unpermitted: bool,
}

/// Cedar text, and what is in it.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Text {
    /// The rules.
    pub cedar: String,
    /// How many rules there are.
    pub rules: usize,
    /// Acts that they permit.
    pub permitted: u64,
    /// Acts that a rule forbade: in comments only.
    pub forbidden: u64,
    /// Acts that were denied by default and are in comments only.
    pub unpermitted: u64,
    /// Acts for which no rule can be written, in comments.
    pub unwritten: u64,
}

/// Who did it where: user, host, local user.
type Where = (String, String, String);
/// Action, the conditions that do not depend on the object, and how objects are compared.
type Shape = (String, Vec<String>, &'static str);

/// What is known of one object.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Uses {
    places: BTreeSet<Where>,
    sessions: BTreeSet<String>,
    count: u64,
}

impl Uses {
    fn add(&mut self, other: &Self) {
        self.places.extend(other.places.iter().cloned());
        self.sessions.extend(other.sessions.iter().cloned());
        self.count += other.count;
    }
}

/// Makes a proposal of what was seen.
pub fn learn(seen: &[Learned], how: &Proposal) -> Text {
    let mut text = Text::default();
    let mut used: BTreeMap<Shape, BTreeMap<String, Uses>> = BTreeMap::new();
    let mut comments: BTreeMap<String, (String, u64)> = BTreeMap::new();
    for Learned { question, outcome, session } in seen {
        let mut comment = |why: String| {
            let line = format!(
                "{} on {}: {question}",
                question.principal().user,
                question.host().unwrap_or("the gateway")
            );
            comments.entry(line).or_insert((why, 0)).1 += 1;
        };
        match outcome {
            Outcome::Forbidden(rule) => {
                text.forbidden += 1;
                comment(format!("forbidden by \"{rule}\""));
                continue;
            }
            Outcome::Unpermitted if !how.unpermitted => {
                text.unpermitted += 1;
                comment("denied, no rule permits it".to_owned());
                continue;
            }
            Outcome::Unpermitted | Outcome::Went => {}
        }
        let Some((shape, object)) = shape(question) else {
            text.unwritten += 1;
            comment("write a rule for this by hand".to_owned());
            continue;
        };
        text.permitted += 1;
        let Principal { user, .. } = question.principal();
        let place = (
            user.clone(),
            question.host().unwrap_or_default().to_owned(),
            question.local_user().unwrap_or_default().to_owned(),
        );
        let uses = used.entry(shape).or_default().entry(object).or_default();
        uses.places.insert(place);
        uses.sessions.insert(session.clone());
        uses.count += 1;
    }
    let mut number = 0;
    for (shape, objects) in &used {
        for (uses, objects) in groups(shape, objects, how) {
            for part in objects.chunks(MOST) {
                let id = loop {
                    number += 1;
                    let id = format!("{}-{}-{number}", how.prefix, shape.0);
                    if !how.taken.contains(&id) {
                        break id;
                    }
                };
                rule(&mut text.cedar, &id, shape, &uses, part, how);
                text.rules += 1;
            }
        }
    }
    if !comments.is_empty() {
        text.cedar += "// Not permitted by this proposal:\n";
        for (line, (why, count)) in comments {
            let times = if count == 1 { String::new() } else { format!(", {count} times") };
            let _ = writeln!(text.cedar, "//   {} ({}{times})", line.escape_debug(), why.escape_debug());
        }
    }
    text
}

/// What kind of rule permits this, and the object that it names; none if it cannot be written safely.
fn shape(question: &Question) -> Option<(Shape, String)> {
    // Characters that look like others are faults in a bundle, so they are for a person to write.
    // An end like a pattern's would be taken for one.
    let plain = |text: &str| text.chars().all(|c| (' '..='~').contains(&c)) && !text.ends_with("/*");
    let flag = |is: bool, name: &str| if is { format!("context.{name}") } else { format!("!context.{name}") };
    let action = question.action().to_owned();
    Some(match question {
        Question::OpenSession { .. } => ((action, vec![], ""), String::new()),
        Question::Exec { path, fileless, setuid, .. } => {
            let path = plain(path).then(|| path.clone())?;
            ((action, vec![flag(*fileless, "fileless"), flag(*setuid, "setuid")], "path"), path)
        }
        Question::File { path, fileless, .. } => {
            let path = plain(path).then(|| path.clone())?;
            ((action, vec![flag(*fileless, "fileless")], "path"), path)
        }
        Question::System { operation, outside, .. } => {
            ((action, vec![flag(*outside, "outside")], "operation"), operation.name().to_owned())
        }
        Question::Connect { address, port, protocol, .. }
        | Question::Listen { address, port, protocol, .. } => {
            let protocol = protocol_name(*protocol);
            let conditions = vec![format!("context.protocol == \"{protocol}\"")];
            if protocol == "icmp" {
                // It is allowed to every address, or to none.
                return Some(((action, conditions, ""), String::new()));
            }
            let address = match question {
                Question::Connect { .. } => crate::decide::judged_as(*address),
                _ => address.to_canonical(),
            };
            ((action, conditions, "address"), format!("{address} {port}"))
        }
        Question::Gateway { .. } => return None,
    })
}

/// Objects that make one rule: those that the same people used in the same places.
fn groups(shape: &Shape, objects: &BTreeMap<String, Uses>, how: &Proposal) -> Vec<(Uses, Vec<String>)> {
    let mut merged = objects.clone();
    if shape.2 == "path" && shape.0 != "exec" {
        let mut folders: BTreeMap<String, Vec<&String>> = BTreeMap::new();
        for path in objects.keys() {
            if let Some(folder) = folder(path) {
                folders.entry(folder.to_owned()).or_default().push(path);
            }
        }
        for (folder, files) in folders.into_iter().filter(|(_, files)| files.len() >= how.folder_at) {
            let mut uses = Uses::default();
            for file in files {
                uses.add(&merged.remove(file).unwrap_or_default());
            }
            // A pattern; no path ends so.
            merged.insert(format!("{folder}/*"), uses);
        }
    }
    let mut groups: BTreeMap<BTreeSet<Where>, (Uses, Vec<String>)> = BTreeMap::new();
    for (object, uses) in merged {
        let (all, list) = groups.entry(uses.places.clone()).or_default();
        all.add(&uses);
        list.push(object);
    }
    groups.into_values().collect()
}

/// The folder of a path, if a pattern may be made of it.
fn folder(path: &str) -> Option<&str> {
    let (folder, _) = path.rsplit_once('/')?;
    let below =
        |top: &str| folder == top || folder.strip_prefix(top).is_some_and(|rest| rest.starts_with('/'));
    let deep = folder.matches('/').count() >= 2;
    (deep && path.starts_with('/') && !NEVER.iter().any(|top| below(top)) && !path.contains('*'))
        .then_some(folder)
}

/// Writes one rule.
fn rule(out: &mut String, id: &str, shape: &Shape, uses: &Uses, objects: &[String], how: &Proposal) {
    let (action, conditions, object) = shape;
    let mut all: Vec<String> = vec![places(&uses.places, how)];
    all.extend(conditions.iter().cloned());
    all.push(match *object {
        "path" => paths(objects),
        "operation" => one_of("context.operation", objects.iter().map(|name| quoted(name))),
        "address" => endpoints(objects),
        _ => String::new(),
    });
    all.retain(|condition| !condition.is_empty());
    let sessions: Vec<String> = uses.sessions.iter().take(2).map(|id| plain_id(id)).collect();
    let more = uses.sessions.len().saturating_sub(2);
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    let times = if uses.count == 1 { "once".to_owned() } else { format!("{} times", uses.count) };
    let _ = writeln!(out, "@id(\"{id}\")");
    let _ = writeln!(out, "@reason(\"seen {times} in sessions {}{more}; review\")", sessions.join(", "));
    let principal = how
        .group
        .as_ref()
        .map_or_else(|| "principal".to_owned(), |group| format!("principal in Group::{}", quoted(group)));
    let _ = write!(out, "permit ({principal}, action == Action::\"{action}\", resource)");
    if all.is_empty() {
        out.push_str(";\n\n");
        return;
    }
    let _ = writeln!(out, "\nwhen {{\n  {}\n}};\n", all.join(" &&\n  "));
}

/// Who, where and as whom. Each combination that was seen, and no other.
fn places(places: &BTreeSet<Where>, how: &Proposal) -> String {
    let mut by_person: BTreeMap<(String, String), BTreeSet<String>> = BTreeMap::new();
    for (user, host, local_user) in places {
        let user = if how.group.is_some() { String::new() } else { user.clone() };
        let host = if how.any_host { String::new() } else { host.clone() };
        by_person.entry((user, host)).or_default().insert(local_user.clone());
    }
    let one = |((user, host), local_users): (&(String, String), &BTreeSet<String>)| {
        let mut all = Vec::new();
        if !user.is_empty() {
            all.push(format!("principal == User::{}", quoted(user)));
        }
        if !host.is_empty() {
            all.push(format!("resource == Host::{}", quoted(host)));
        }
        if local_users.iter().any(|user| !user.is_empty()) {
            all.push(one_of("context.local_user", local_users.iter().map(|user| quoted(user))));
        }
        all.join(" && ")
    };
    either(by_person.iter().map(one).collect())
}

fn paths(objects: &[String]) -> String {
    let (patterns, exact): (Vec<&String>, Vec<&String>) =
        objects.iter().partition(|object| object.ends_with("/*"));
    let mut all = Vec::new();
    if !exact.is_empty() {
        all.push(one_of("context.path", exact.iter().map(|path| quoted(path))));
    }
    all.extend(patterns.iter().map(|pattern| format!("context.path like {}", quoted(pattern))));
    either(all)
}

/// Addresses with the ports that were used of each; those with the same ports together.
fn endpoints(objects: &[String]) -> String {
    let mut ports: BTreeMap<&str, BTreeSet<u16>> = BTreeMap::new();
    for object in objects {
        if let Some((address, port)) = object.split_once(' ') {
            ports.entry(address).or_default().extend(port.parse::<u16>());
        }
    }
    let mut alike: BTreeMap<BTreeSet<u16>, Vec<&str>> = BTreeMap::new();
    for (address, ports) in ports {
        alike.entry(ports).or_default().push(address);
    }
    let all = alike.into_iter().map(|(ports, addresses)| {
        let addresses =
            one_of("context.address", addresses.iter().map(|address| format!("ip(\"{address}\")")));
        format!("{addresses} && {}", one_of("context.port", ports.iter().map(ToString::to_string)))
    });
    either(all.collect())
}

fn one_of(attribute: &str, values: impl Iterator<Item = String>) -> String {
    let values: Vec<String> = values.collect();
    match values.as_slice() {
        [one] => format!("{attribute} == {one}"),
        all => format!("[{}].contains({attribute})", all.join(", ")),
    }
}

fn either(mut all: Vec<String>) -> String {
    match all.len() {
        0 => String::new(),
        1 => all.remove(0),
        _ => format!("({})", all.iter().map(|one| format!("({one})")).collect::<Vec<_>>().join(" ||\n   ")),
    }
}

/// A string of Cedar's. In patterns a star that is meant as such does not occur: see [`folder`].
fn quoted(text: &str) -> String {
    let mut out = String::from("\"");
    for c in text.chars() {
        match c {
            '"' | '\\' => out.extend(['\\', c]),
            ' '..='~' => out.push(c),
            other => {
                let _ = write!(out, "\\u{{{:x}}}", u32::from(other));
            }
        }
    }
    out.push('"');
    out
}

/// A session's id, as far as it is one.
fn plain_id(id: &str) -> String {
    id.chars().filter(|c| c.is_ascii_alphanumeric() || *c == '-').take(36).collect()
}
