//! Kernel events become evidence: who (the session), what was decided by which rule of which policy version, by which
//! process of which parents.

mod acts;
mod programs;

use std::ffi::OsString;
use std::net::IpAddr;
use std::os::unix::ffi::OsStringExt as _;
use std::path::PathBuf;

use sallyport_evidence::record::{
    Decision, Endpoint, Identity, Kind, Loss, Outcome, Process, Record, Session, Source, limits,
};

use crate::clock;
use crate::enrich::{Answer, Question};
use crate::kernel::{Cause, Connect, Destination, Event, Exec, Head, Judgement, Mode};
use crate::lineage::{Key, Lineage};
use crate::policies::Generation;

pub(crate) use programs::arguments;
use programs::{image, show, status};

/// Who a session belongs to, as events need it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Owner {
    /// Who acts.
    pub identity: Identity,
    /// In which session; its channel is filled in from the event.
    pub session: Session,
}

/// What else an event is told by: the sensor's tables.
pub trait Context {
    /// The owner of a session, and the channel's id.
    fn owner(&self, session: u64, channel: u32) -> Option<Owner>;
    /// The policy that a generation stands for.
    fn generation(&self, generation: u64) -> Option<std::sync::Arc<Generation>>;
}

/// Makes records out of events.
#[derive(Debug)]
pub struct Recorder {
    host: String,
    boot: String,
    mode: Mode,
    lineage: Lineage,
}

/// A record without content.
#[must_use]
pub fn blank(kind: Kind, host: &str, time_ns: u64, boot_ns: u64) -> Record {
    Record {
        // The spool numbers it.
        source: Source { maker: host.into(), boot: String::new(), seq: 0 },
        time_ns,
        boot_ns,
        host: Some(host.into()),
        ..Record::empty(kind)
    }
}

/// A record of something the sensor itself did or saw.
#[must_use]
pub fn message_record(kind: Kind, host: &str, message: impl Into<String>) -> Record {
    Record { message: Some(message.into()), ..blank(kind, host, clock::wall_ns(), clock::boot_ns()) }
}

/// A record of a loss.
#[must_use]
pub fn loss_record(host: &str, loss: Loss) -> Record {
    Record { loss: Some(loss), ..blank(Kind::Loss, host, clock::wall_ns(), clock::boot_ns()) }
}

impl Recorder {
    /// For this host and boot.
    #[must_use]
    pub fn new(host: &str, boot: &str, mode: Mode, lineage: Lineage) -> Self {
        Self { host: host.into(), boot: boot.into(), mode, lineage }
    }

    /// What must be looked up for an event's record, if anything.
    #[must_use]
    pub fn question(&self, id: u64, event: &Event) -> Option<Question> {
        let head = event.head();
        let unknown = head.process.cgroup != 0 && self.lineage.cgroup(head.process.cgroup).is_none();
        let mut question = Question {
            id,
            tgid: head.process.tgid,
            started: head.process.started,
            time_ns: self.wall(head),
            cgroup: if unknown { head.process.cgroup } else { 0 },
            ..Question::default()
        };
        if let Event::Exec { exec, .. } = event {
            question.folder = (exec.cwd_inode != 0).then_some((exec.cwd_device, exec.cwd_inode));
            let path = PathBuf::from(OsString::from_vec(exec.path.clone()));
            question.executable = Some(((exec.device, exec.inode), path));
        }
        (unknown || question.executable.is_some()).then_some(question)
    }

    /// The record of an event, with what was looked up for it.
    pub fn record(&mut self, event: &Event, answer: Option<&Answer>, context: &dyn Context) -> Record {
        let head = event.head();
        let kind = kind(event);
        let key: Key = (head.process.tgid, head.process.started);
        if let Some(cgroup) = answer.and_then(|answer| answer.cgroup.clone()) {
            self.lineage.remember_cgroup(head.process.cgroup, cgroup);
        }
        let mut record = blank(kind, &self.host, self.wall(head), head.time);
        let mut subject = key;
        match event {
            Event::Fork { child_tgid, child_started, .. } => {
                subject = (*child_tgid, *child_started);
                self.lineage.forked(key, subject);
            }
            Event::Exec { exec, .. } => self.executed(key, head, exec, answer),
            Event::Connect { connect, .. } => record.endpoint = Some(endpoint(connect)),
            Event::File { file, .. } => record.file = Some(acts::file_action(file)),
            Event::System { system, .. } => {
                record.system =
                    Some(acts::system_action(system, |tgid, started| self.exec_id((tgid, started))));
            }
            Event::Exit { .. } => {}
        }
        let mut process = self.process(head, subject);
        match event {
            // A program that did not start is told as what it was to be; the process goes on with its old one.
            Event::Exec { exec, .. } => {
                show(&mut process, &image(exec, answer), limits::PATH, true);
                if process.parent_pid == 0 {
                    process.parent_pid = exec.parent_tgid;
                    process.parent_exec_id = self.id_of(exec.parent_tgid);
                }
            }
            Event::Exit { code, .. } => {
                process.status = status(*code);
                self.lineage.exited(key.0, key.1);
            }
            _ => {}
        }
        match context.owner(head.session, head.channel) {
            Some(owner) => {
                record.identity = Some(owner.identity);
                record.session = Some(owner.session);
            }
            None => {
                record.message =
                    Some(format!("the session (number {}) is not known to this sensor", head.session));
            }
        }
        record.process = Some(process);
        record.decision = self.decision(event, head, context);
        record
    }

    /// The record of a hash that came after the record of the exec it belongs to; none if it brings nothing new.
    pub fn executable(&mut self, answer: &Answer, of: &Record) -> Option<Record> {
        let sha256 = answer.sha256.clone()?;
        let process = of.process.as_ref()?;
        self.lineage.hashed((answer.tgid, answer.started), &process.inode, &sha256);
        let process = Process {
            exec_id: process.exec_id.clone(),
            pid: process.pid,
            path: process.path.clone(),
            path_cut: process.path_cut,
            fileless: process.fileless,
            inode: process.inode.clone(),
            uid: process.uid,
            gid: process.gid,
            sha256,
            ..Process::default()
        };
        Some(Record {
            identity: of.identity.clone(),
            session: of.session.clone(),
            process: Some(process),
            ..blank(Kind::Executable, &self.host, clock::wall_ns(), clock::boot_ns())
        })
    }

    fn wall(&self, head: &Head) -> u64 {
        clock::wall_ns().wrapping_sub(clock::boot_ns()).wrapping_add(head.time)
    }

    /// Notes what a process runs from now on.
    fn executed(&mut self, key: Key, head: &Head, exec: &Exec, answer: Option<&Answer>) {
        if head.judgement.is_denied() {
            self.lineage.seen(key.0, key.1);
        } else {
            self.lineage.executed(key, image(exec, answer));
        }
    }

    fn exec_id(&self, (tgid, started): Key) -> String {
        format!("{}/{started}/{tgid}", self.boot)
    }

    fn id_of(&self, tgid: u32) -> String {
        self.lineage.started(tgid).map_or_else(String::new, |started| self.exec_id((tgid, started)))
    }

    /// A process as it is known, with the program that it runs.
    fn process(&self, head: &Head, key: Key) -> Process {
        let own = &head.process;
        let ancestors = self.lineage.ancestors(key);
        let cgroup = self.lineage.cgroup(own.cgroup);
        let mut process = Process {
            exec_id: self.exec_id(key),
            parent_exec_id: ancestors.first().map_or_else(String::new, |parent| self.exec_id(*parent)),
            ancestors: ancestors.iter().skip(1).map(|ancestor| self.exec_id(*ancestor)).collect(),
            pid: key.0,
            parent_pid: ancestors.first().map_or(0, |(tgid, _)| *tgid),
            comm: own.comm.clone(),
            uid: own.uid,
            gid: own.gid,
            login_uid: own.login_uid,
            cgroup: cgroup.map_or_else(String::new, |cgroup| cgroup.path.clone()),
            container: cgroup.map_or_else(String::new, |cgroup| cgroup.container.clone()),
            ..Process::default()
        };
        if let Some(image) = self.lineage.image(key) {
            show(&mut process, image, limits::PATH_ELSEWHERE, false);
        }
        process
    }

    fn decision(&self, event: &Event, head: &Head, context: &dyn Context) -> Option<Decision> {
        let generation = context.generation(head.generation);
        let rule = |index: u16| generation.as_ref().and_then(|g| g.rules.get(usize::from(index)).cloned());
        let (outcome, id, reason) = match head.judgement {
            Judgement::None => return None,
            Judgement::Allowed => (Outcome::Allowed, String::new(), String::new()),
            Judgement::Observed { rule: index } => {
                let rule = rule(index);
                (
                    Outcome::Observed,
                    rule_id(index, rule.as_ref()),
                    rule.map_or_else(String::new, |r| r.reason),
                )
            }
            Judgement::Denied { rule: index, .. } => {
                let rule = rule(index);
                let reason = match &rule {
                    Some(rule) if index > 0 || !rule.reason.is_empty() => rule.reason.clone(),
                    Some(_) => "no rule permits it".into(),
                    None => format!("rule number {index} of a policy this sensor no longer knows"),
                };
                (refused(event), rule_id(index, rule.as_ref()), reason)
            }
            Judgement::Unjudged(cause) => (refused(event), String::new(), unjudged(cause)),
            Judgement::ObservedUnjudged(cause) => (Outcome::Observed, String::new(), unjudged(cause)),
        };
        Some(Decision {
            action: match event {
                Event::Connect { connect, .. } if is_listening(connect) => "listen",
                Event::Connect { .. } => "connect",
                Event::File { file, .. } => file.op.name(),
                Event::System { .. } => "system",
                Event::Fork { .. } => "fork",
                Event::Exec { .. } | Event::Exit { .. } => "exec",
            }
            .into(),
            outcome,
            policy: generation.map_or_else(String::new, |generation| generation.version.clone()),
            rule: id,
            reason,
            point: self.point(event).into(),
        })
    }

    fn point(&self, event: &Event) -> &'static str {
        match (self.mode, event) {
            (_, Event::Fork { .. }) | (Mode::Tracepoint, Event::Exec { .. }) => "kernel-exec",
            // Rules on arguments kill at the first instruction in LSM mode, too.
            (Mode::Lsm, Event::Exec { head, exec }) if head.judgement.is_denied() && !exec.prevented => {
                "kernel-exec"
            }
            // There bind is judged by the cgroup in both modes.
            (_, Event::Connect { connect, .. }) if matches!(connect.destination, Destination::Bound(..)) => {
                "kernel-cgroup"
            }
            (Mode::Lsm, _) => "kernel-lsm",
            (Mode::Tracepoint, Event::Connect { .. }) => "kernel-cgroup",
            (Mode::Tracepoint, _) => "kernel-tracepoint",
        }
    }
}

/// Index 0 is the default deny: no rule.
fn rule_id(index: u16, rule: Option<&sallyport_policy::RuleInfo>) -> String {
    rule.filter(|_| index > 0).map_or_else(String::new, |rule| rule.id.clone())
}

fn unjudged(cause: Cause) -> String {
    format!("it could not be judged: {cause}")
}

fn refused(event: &Event) -> Outcome {
    match event {
        Event::Exec { exec, .. } if !exec.prevented => Outcome::Killed,
        Event::File { file, .. } if !file.prevented => Outcome::Killed,
        Event::Fork { .. } => Outcome::Killed,
        _ => Outcome::Blocked,
    }
}

fn kind(event: &Event) -> Kind {
    match event {
        Event::Fork { .. } => Kind::Fork,
        Event::Exec { .. } => Kind::Exec,
        Event::Exit { .. } => Kind::Exit,
        Event::Connect { connect, .. } if is_listening(connect) => Kind::Listen,
        Event::Connect { .. } => Kind::Connect,
        Event::File { .. } => Kind::File,
        Event::System { .. } => Kind::System,
    }
}

fn is_listening(connect: &Connect) -> bool {
    matches!(connect.destination, Destination::Bound(..) | Destination::Listening(..))
}

/// A text of at most `limit` bytes, and whether it was cut.
pub(crate) fn cut(mut text: String, limit: usize) -> (String, bool) {
    if text.len() <= limit {
        return (text, false);
    }
    text.truncate(text.floor_char_boundary(limit));
    (text, true)
}

fn endpoint(connect: &Connect) -> Endpoint {
    let of = |address: IpAddr, port, op: &str| Endpoint {
        address: address.to_canonical().to_string(),
        port,
        protocol: protocol(connect.protocol),
        op: op.into(),
    };
    match connect.destination {
        Destination::Connection(address, port) => of(address, port, "connect"),
        Destination::Datagram(address, port) => of(address, port, "send"),
        Destination::Bound(address, port) => of(address, port, "bind"),
        Destination::Listening(Some((address, port))) => of(address, port, "listen"),
        Destination::Listening(None) => {
            Endpoint { protocol: protocol(connect.protocol), op: "listen".into(), ..Endpoint::default() }
        }
        Destination::Socket => {
            Endpoint { protocol: protocol(connect.protocol), op: "socket".into(), ..Endpoint::default() }
        }
    }
}

fn protocol(number: u16) -> String {
    match number {
        6 => "tcp".into(),
        17 => "udp".into(),
        1 | 58 => "icmp".into(),
        number => number.to_string(),
    }
}

#[cfg(test)]
mod tests;
