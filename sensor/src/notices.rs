//! What people read in their terminal when something was refused: one line each, and few of them.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use crate::kernel::{Destination, Event, Exec, File, FileOp, Judgement, Operation, System};
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
    let head = event.head();
    let what = match event {
        Event::Exec { exec, .. } => program(exec),
        Event::Connect { connect, .. } => destination(&connect.destination, connect.protocol),
        Event::File { file, .. } => on_file(file),
        Event::System { system, .. } => asked(system),
        Event::Fork { .. } => format!("a new process of {}", head.process.comm),
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
        Judgement::None
        | Judgement::Allowed
        | Judgement::Observed { .. }
        | Judgement::ObservedUnjudged(_) => return None,
    };
    Some(format!("sallyport: blocked {what}: {why}"))
}

fn program(exec: &Exec) -> String {
    let path = String::from_utf8_lossy(&exec.path);
    if exec.fileless { format!("{path} (a program without a file)") } else { path.into_owned() }
}

/// What it would have been, and to which file.
fn on_file(file: &File) -> String {
    let path = String::from_utf8_lossy(&file.path);
    let doing = match file.op {
        FileOp::Read => "reading",
        FileOp::Write => "writing to",
        FileOp::Create => "creating",
        FileOp::Delete => "deleting",
        FileOp::Rename => "renaming",
        FileOp::Link => "another name for",
        FileOp::Change => "changing mode, owner or attributes of",
        FileOp::Map => "running code from",
        FileOp::Unix => "connecting to the socket",
    };
    let other = if file.other_name { " (reached by another name)" } else { "" };
    let fileless = if file.fileless { " (a file without a name)" } else { "" };
    format!("{doing} {path}{other}{fileless}")
}

fn asked(system: &System) -> String {
    let what = match system.operation {
        Operation::Trace => "tracing or reading another process",
        Operation::Signal => "a signal to another process",
        Operation::ReceiveSocket => "a network socket passed in from outside",
        Operation::Mount => "mounting",
        Operation::Unmount => "unmounting",
        Operation::Chroot => "changing the root folder",
        Operation::Namespace => "a new namespace",
        Operation::SetUser => "becoming another user or group",
        Operation::SetCapabilities => "changing capabilities",
        Operation::Module => "loading kernel modules",
        Operation::Kexec => "loading another kernel",
        Operation::Bpf => "bpf",
        Operation::Perf => "performance monitoring",
        Operation::Keyring => "keys and keyrings",
        Operation::IoUring => "io_uring in this form",
        Operation::TerminalInput => "putting input into a terminal",
        Operation::KernelAccess => "access to kernel memory or hardware",
        Operation::OpenByHandle => "opening a file by handle",
        Operation::NetworkAdmin => "changing the network's set-up",
        Operation::Reboot => "restarting or stopping the host",
        Operation::Clock => "setting the clock",
    };
    let on = system.target.map_or_else(String::new, |(tgid, _)| format!(" (process {tgid})"));
    let outside = if system.outside { " outside of the session" } else { "" };
    format!("{what}{outside}{on}")
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
        Destination::Bound(address, port) => {
            format!("binding {name} to {}", std::net::SocketAddr::new(address.to_canonical(), *port))
        }
        Destination::Listening(Some((address, port))) => {
            format!("listening on {name} {}", std::net::SocketAddr::new(address.to_canonical(), *port))
        }
        Destination::Listening(None) => format!("listening on {name}"),
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
mod tests;
