//! A record as one line for people: when, who, where, what happened, by which rule, and its number in the log.

use sallyport_evidence::record::{Decision, Kind, Outcome, Record};

use crate::{
    clock,
    out::{Look, Out},
    text,
};

/// Kinds as they are written in records and in `--kind`.
pub const KINDS: [&str; 17] = [
    "sign_in",
    "session_open",
    "session_close",
    "channel_open",
    "channel_close",
    "fork",
    "exec",
    "exit",
    "connect",
    "listen",
    "file",
    "system",
    "executable",
    "policy",
    "sensor",
    "loss",
    "access",
];

/// Outcomes as they are written in records and in `--outcome`.
pub const OUTCOMES: [&str; 4] = ["allowed", "blocked", "killed", "observed"];

/// `2026-11-22 13:08:54.123Z  alice@example.org  root@web-1  exec nmap -sS  BLOCKED by "no-scanners": …  #12`
#[must_use]
pub fn line(out: Out, index: u64, record: &Record) -> String {
    let mut parts = vec![out.look(Look::Dim, &clock::stamp_ns(record.time_ns)), who(record), place(record)];
    let what = what(record);
    let judged = record.decision.as_ref().map(|decision| judged(out, decision)).unwrap_or_default();
    parts.push(if is_bad(record) { out.look(Look::Bold, &what) } else { what });
    parts.push(judged);
    parts.push(out.look(Look::Dim, &format!("#{index}")));
    parts.retain(|part| !part.is_empty());
    parts.join("  ")
}

/// Something was refused, killed, would have been refused, or was lost.
#[must_use]
pub fn is_bad(record: &Record) -> bool {
    record.kind == Kind::Loss
        || record.decision.as_ref().is_some_and(|decision| decision.outcome != Outcome::Allowed)
}

fn who(record: &Record) -> String {
    let Some(identity) = &record.identity else {
        return format!("({})", text::safe(&record.source.maker, 60));
    };
    let mut who = text::safe(&identity.user, 80);
    if !identity.on_behalf_of.is_empty() {
        who = format!("{who} for {}", text::safe(&identity.on_behalf_of, 80));
    }
    who
}

fn place(record: &Record) -> String {
    let host = record.host.as_deref().map(|host| text::safe(host, 80));
    let user = record.session.as_ref().map(|session| text::safe(&session.local_user, 40)).unwrap_or_default();
    match host {
        Some(host) if user.is_empty() => host,
        Some(host) => format!("{user}@{host}"),
        None => String::new(),
    }
}

/// What happened, without who, where and verdict.
#[must_use]
pub fn what(record: &Record) -> String {
    let message = record.message.as_deref().map(|message| text::safe(message, 300)).unwrap_or_default();
    let said = |what: &str| if message.is_empty() { what.to_owned() } else { format!("{what}: {message}") };
    let client = record.session.as_ref().map(|session| text::safe(&session.client, 60)).unwrap_or_default();
    match record.kind {
        Kind::SignIn => {
            let method =
                record.identity.as_ref().map(|identity| text::safe(&identity.method, 20)).unwrap_or_default();
            // The gateway's message may name the method, too.
            let named = method.is_empty() || message.contains(&method);
            said(&if named { "sign-in".to_owned() } else { format!("sign-in by {method}") })
        }
        Kind::SessionOpen if client.is_empty() => said("session"),
        Kind::SessionOpen => said(&format!("session from {client}")),
        Kind::SessionClose => said("session ended"),
        Kind::ChannelOpen => said("channel opened"),
        Kind::ChannelClose => said("channel closed"),
        Kind::Fork => said(&format!("fork {}", program(record))),
        Kind::Exec => said(&format!("exec {}", program(record))),
        Kind::Exit => {
            let status =
                record.process.as_ref().map(|process| text::safe(&process.status, 20)).unwrap_or_default();
            said(format!("exit {status} {}", program(record)).trim())
        }
        Kind::Connect | Kind::Listen => said(&endpoint(record)),
        Kind::File => said(&file(record)),
        Kind::System => said(&system(record)),
        Kind::Executable => said(&executable(record)),
        Kind::Policy => said("policy"),
        Kind::Sensor => said("sensor"),
        Kind::Loss => match &record.loss {
            Some(loss) => {
                let what = if loss.what == "session" { "events" } else { &loss.what };
                let seen = if loss.seen == 0 { String::new() } else { format!(" of {} seen", loss.seen) };
                said(&format!(
                    "LOST {} {}{seen} ({})",
                    loss.count,
                    text::safe(what, 30),
                    text::safe(&loss.why, 40)
                ))
            }
            None => said("LOST"),
        },
        Kind::Access => said("access"),
    }
}

/// Path, and the arguments after the program's own name (shown too if it lies about it).
fn program(record: &Record) -> String {
    let Some(process) = &record.process else { return String::new() };
    let path = if process.path.is_empty() { &process.comm } else { &process.path };
    let name = path.rsplit('/').next().unwrap_or_default();
    let mut shown = text::safe(path, 200);
    if process.fileless {
        shown.push_str(" (fileless)");
    }
    let (zeroth, rest) =
        process.args.split_first().map_or(("", &[][..]), |(first, rest)| (first.as_str(), rest));
    // With /bin a link to /usr/bin, the folders may differ; a login shell's name begins with a dash.
    let honest = zeroth.is_empty() || zeroth.trim_start_matches('-').rsplit('/').next() == Some(name);
    if !honest {
        shown.push_str(&format!(" (as {})", text::safe(zeroth, 60)));
    }
    if !rest.is_empty() {
        shown.push(' ');
        shown.push_str(&text::command_line(rest, 300));
    }
    if let Some(bytes) = process.args_cut_from {
        let cut = if shown.ends_with('…') { "" } else { " …" };
        shown.push_str(&format!("{cut} ({bytes} bytes in all)"));
    }
    shown
}

fn endpoint(record: &Record) -> String {
    let Some(endpoint) = &record.endpoint else { return "connect".to_owned() };
    let op = if endpoint.op.is_empty() { "connect" } else { endpoint.op.as_str() };
    let address = if endpoint.address.contains(':') {
        format!("[{}]", endpoint.address)
    } else {
        endpoint.address.clone()
    };
    let by = by(record);
    format!(
        "{} {} {}{by}",
        text::safe(op, 10),
        text::safe(&endpoint.protocol, 10),
        text::safe(&format!("{address}:{}", endpoint.port), 60)
    )
}

/// ` by /usr/bin/curl`: the program that did it.
fn by(record: &Record) -> String {
    let Some(process) = &record.process else { return String::new() };
    let path = if process.path.is_empty() { &process.comm } else { &process.path };
    if path.is_empty() { String::new() } else { format!(" by {}", text::safe(path, 200)) }
}

fn file(record: &Record) -> String {
    let Some(file) = &record.file else { return "file".to_owned() };
    // `read_file` reads better without its object, `map_code` and `connect_unix` do not.
    let op = file.op.strip_suffix("_file").unwrap_or(&file.op).replace('_', " ");
    let cut = if file.path_cut { "…" } else { "" };
    let name = if file.other_name { " (reached by another name)" } else { "" };
    let fileless = if file.fileless { " (fileless)" } else { "" };
    format!("{} {cut}{}{name}{fileless}{}", text::safe(&op, 20), text::safe(&file.path, 200), by(record))
}

fn system(record: &Record) -> String {
    let Some(system) = &record.system else { return "system".to_owned() };
    let mut shown = text::safe(&system.operation, 30);
    if !system.detail.is_empty() {
        shown.push_str(&format!(" ({})", text::safe(&system.detail, 60)));
    }
    if let Some(pid) = system.target_pid {
        shown.push_str(&format!(" on process {pid}"));
    }
    if system.outside {
        shown.push_str(" outside of the session");
    }
    shown + &by(record)
}

fn executable(record: &Record) -> String {
    let Some(process) = &record.process else { return "executable".to_owned() };
    format!("executable {} has SHA-256 {}", text::safe(&process.path, 200), text::safe(&process.sha256, 64))
}

/// The verdict, where it is worth a word.
#[must_use]
pub fn judged(out: Out, decision: &Decision) -> String {
    let (word, look) = match decision.outcome {
        Outcome::Allowed => return out.look(Look::Dim, "allowed"),
        Outcome::Blocked => ("BLOCKED", Look::Red),
        Outcome::Killed => ("KILLED", Look::Red),
        Outcome::Observed => ("OBSERVED", Look::Yellow),
    };
    let by = if decision.rule.is_empty() {
        "no rule permits it".to_owned()
    } else {
        format!("rule \"{}\"", text::safe(&decision.rule, 100))
    };
    let reason = text::safe(&decision.reason, 300);
    let reason = if reason.is_empty() { reason } else { format!(": {reason}") };
    format!("{} by {by}{reason}", out.look(look, word))
        .replace("by no rule permits it", "as no rule permits it")
}

#[cfg(test)]
mod tests;
