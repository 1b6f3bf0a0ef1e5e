//! What people read in their terminal when something was refused: one line each, and few of them.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use crate::kernel::{Destination, Event, Exec, Judgement};
use crate::policies::Generation;

/// Lines that a channel may get at once.
const BURST: f64 = 8.0;
/// Lines per second after that.
const RATE: f64 = 1.0;
/// The count of what was not shown comes at the earliest so long after the last line.
const SUMMARY_AFTER: Duration = Duration::from_secs(2);
/// Channels remembered; idle ones are forgotten first.
const CHANNELS: usize = 4_096;

/// The line for an event; none if nothing was refused.
#[must_use]
pub fn line(event: &Event, generation: Option<&Generation>) -> Option<String> {
    let (head, what) = match event {
        Event::Exec { head, exec } => (head, program(exec)),
        Event::Connect { head, connect } => (head, destination(&connect.destination, connect.protocol)),
        Event::Fork { head, .. } => (head, format!("a new process of {}", head.process.comm)),
        Event::Exit { .. } => return None,
    };
    let why = match head.judgement {
        Judgement::Denied { rule: index, .. } => {
            let rule = generation.and_then(|generation| generation.rules.get(usize::from(index)));
            let contact = rule.map(|rule| rule.contact.as_str()).filter(|contact| !contact.is_empty());
            let ask = contact.map_or_else(String::new, |contact| format!(". Ask {contact}"));
            match rule {
                Some(rule) if index > 0 => {
                    let reason = rule.reason.trim_end_matches('.');
                    let colon = if reason.is_empty() { "" } else { ": " };
                    format!("rule \"{}\"{colon}{reason}{ask}", rule.id)
                }
                _ => format!("no rule permits it{ask}"),
            }
        }
        Judgement::Unjudged(cause) => format!("it could not be judged: {cause}"),
        Judgement::None | Judgement::Allowed | Judgement::Observed { .. } => return None,
    };
    Some(format!("sallyport: blocked {what}: {why}"))
}

fn program(exec: &Exec) -> String {
    let path = String::from_utf8_lossy(&exec.path);
    if exec.fileless { format!("{path} (a program without a file)") } else { path.into_owned() }
}

fn destination(destination: &Destination, protocol: u16) -> String {
    let name = match protocol {
        6 => "tcp".to_owned(),
        17 => "udp".to_owned(),
        number => format!("protocol {number}"),
    };
    match destination {
        Destination::Connection(address, port) | Destination::Datagram(address, port) => {
            format!("{name} to {}", std::net::SocketAddr::new(address.to_canonical(), *port))
        }
        Destination::Socket => format!("a socket ({name})"),
    }
}

/// Limits the lines of each channel and counts what is held back.
#[derive(Debug, Default)]
pub struct Limiter {
    channels: HashMap<u32, Bucket>,
}

#[derive(Debug)]
struct Bucket {
    tokens: f64,
    at: Instant,
    held_back: u64,
}

impl Limiter {
    /// Whether a line may be shown now; if not it is counted.
    pub fn admit(&mut self, channel: u32, now: Instant) -> bool {
        if self.channels.len() >= CHANNELS {
            self.channels
                .retain(|_, bucket| bucket.held_back > 0 || now.duration_since(bucket.at) < SUMMARY_AFTER);
        }
        let bucket = self.channels.entry(channel).or_insert(Bucket { tokens: BURST, at: now, held_back: 0 });
        bucket.tokens = (bucket.tokens + now.duration_since(bucket.at).as_secs_f64() * RATE).min(BURST);
        bucket.at = now;
        // What is held back is summed up first, so that lines stay in order.
        if bucket.tokens >= 1.0 && bucket.held_back == 0 {
            bucket.tokens -= 1.0;
            true
        } else {
            bucket.held_back += 1;
            false
        }
    }

    /// Summaries that are due: channel and line.
    pub fn summaries(&mut self, now: Instant) -> Vec<(u32, String)> {
        let mut lines = Vec::new();
        for (channel, bucket) in &mut self.channels {
            let tokens = bucket.tokens + now.duration_since(bucket.at).as_secs_f64() * RATE;
            if bucket.held_back > 0 && tokens >= SUMMARY_AFTER.as_secs_f64() * RATE {
                let n = std::mem::take(&mut bucket.held_back);
                lines.push((
                    *channel,
                    format!("sallyport: {n} more refusals not shown; all of them are recorded"),
                ));
                (bucket.tokens, bucket.at) = (tokens - 1.0, now);
            }
        }
        lines
    }
}

#[cfg(test)]
mod tests {
    use sallyport_policy::{OnViolation, Principal, RuleInfo};

    use super::*;
    use crate::kernel::{Cause, Connect, Head, Process};

    fn head(judgement: Judgement) -> Head {
        let process = Process { tgid: 1, tid: 1, started: 1, uid: 0, gid: 0, comm: "bash".into() };
        Head { time: 1, session: 1, channel: 1, judgement, generation: 1, process }
    }

    fn exec(judgement: Judgement) -> Event {
        let exec = Exec {
            parent_tgid: 1,
            path: b"/usr/bin/nmap".to_vec(),
            path_cut: false,
            args: None,
            args_total: 0,
            fileless: false,
            prevented: true,
            inode: 1,
            device: 1,
        };
        Event::Exec { head: head(judgement), exec }
    }

    fn generation() -> Generation {
        let rule = |id: &str, reason: &str| RuleInfo {
            id: id.into(),
            reason: reason.into(),
            contact: "security@example.org".into(),
            on_violation: OnViolation::Block,
            file: "a.cedar".into(),
            line: 1,
        };
        Generation {
            version: "v".into(),
            principal: Principal::default(),
            local_user: "root".into(),
            rules: vec![
                rule("default", ""),
                rule("no-scanners", "port scanners are not for production hosts."),
            ],
        }
    }

    fn check(event: &Event, expected: &str) {
        assert_eq!(line(event, Some(&generation())).as_deref().unwrap_or(""), expected);
    }

    #[test]
    fn lines_say_what_why_and_whom_to_ask() {
        let denied = |rule| Judgement::Denied { rule, kill: false, end_session: false };
        check(
            &exec(denied(1)),
            "sallyport: blocked /usr/bin/nmap: rule \"no-scanners\": port scanners are not for production hosts. Ask security@example.org",
        );
        check(
            &exec(denied(0)),
            "sallyport: blocked /usr/bin/nmap: no rule permits it. Ask security@example.org",
        );
        check(
            &exec(Judgement::Unjudged(Cause::PathTooLong)),
            "sallyport: blocked /usr/bin/nmap: it could not be judged: its path is too long to be judged",
        );
        check(&exec(Judgement::Allowed), "");
        let connect =
            Connect { destination: Destination::Connection([10, 0, 0, 1].into(), 5432), protocol: 6 };
        check(
            &Event::Connect { head: head(denied(0)), connect },
            "sallyport: blocked tcp to 10.0.0.1:5432: no rule permits it. Ask security@example.org",
        );
    }

    #[test]
    fn a_flood_becomes_a_count() {
        let start = Instant::now();
        let mut limiter = Limiter::default();
        let shown = (0..10_000).filter(|_| limiter.admit(1, start)).count();
        assert_eq!(shown, 8);
        assert!(limiter.admit(2, start), "another channel is not held back");
        assert!(limiter.summaries(start).is_empty());
        let later = start + Duration::from_secs(3);
        let lines = limiter.summaries(later);
        assert_eq!(lines, [(1, "sallyport: 9992 more refusals not shown; all of them are recorded".into())]);
        assert!(limiter.summaries(later).is_empty());
        assert!(limiter.admit(1, later + Duration::from_secs(1)));
    }
}
