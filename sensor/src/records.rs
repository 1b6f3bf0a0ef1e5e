//! Kernel events become evidence: who (the session), what was decided by which rule of which policy version, by which
//! process of which parents.

use std::net::IpAddr;

use sallyport_evidence::record::{
    Decision, Endpoint, Identity, Kind, Loss, Outcome, Process, Record, Session, Source,
};

use crate::clock;
use crate::kernel::{Cause, Connect, Destination, Event, Exec, Head, Judgement, Mode};
use crate::lineage::Lineage;
use crate::policies::Generation;

/// Most arguments kept in a record; the rest counts as cut.
const MAX_ARGS: usize = 512;

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

    /// The record of an event.
    pub fn record(&mut self, event: &Event, context: &dyn Context) -> Record {
        let (kind, head) = match event {
            Event::Fork { head, .. } => (Kind::Fork, head),
            Event::Exec { head, .. } => (Kind::Exec, head),
            Event::Exit { head, .. } => (Kind::Exit, head),
            Event::Connect { head, .. } => (Kind::Connect, head),
        };
        let wall = clock::wall_ns().wrapping_sub(clock::boot_ns()).wrapping_add(head.time);
        let mut record = blank(kind, &self.host, wall, head.time);
        match context.owner(head.session, head.channel) {
            Some(owner) => {
                record.identity = Some(owner.identity);
                record.session = Some(owner.session);
            }
            None => {
                record.message =
                    Some(format!("the session (number {}) is not known to this sensor", head.session))
            }
        }
        let mut process = self.process(head);
        match event {
            Event::Fork { child_tgid, child_started, .. } => {
                self.lineage.forked((head.process.tgid, head.process.started), (*child_tgid, *child_started));
                process = self.child(head, *child_tgid, *child_started);
            }
            Event::Exec { exec, .. } => {
                self.lineage.seen(head.process.tgid, head.process.started);
                describe(&mut process, exec);
                if process.parent_pid == 0 {
                    process.parent_pid = exec.parent_tgid;
                    process.parent_exec_id = self.id_of(exec.parent_tgid);
                }
            }
            Event::Exit { code, .. } => {
                process.status = status(*code);
                self.lineage.exited(head.process.tgid, head.process.started);
            }
            Event::Connect { connect, .. } => record.endpoint = Some(endpoint(connect)),
        }
        record.process = Some(process);
        record.decision = self.decision(event, head, context);
        record
    }

    fn exec_id(&self, tgid: u32, started: u64) -> String {
        format!("{}/{started}/{tgid}", self.boot)
    }

    fn id_of(&self, tgid: u32) -> String {
        self.lineage.started(tgid).map_or_else(String::new, |started| self.exec_id(tgid, started))
    }

    fn process(&self, head: &Head) -> Process {
        let own = &head.process;
        let parent = self.lineage.parent(own.tgid, own.started);
        Process {
            exec_id: self.exec_id(own.tgid, own.started),
            parent_exec_id: parent.map_or_else(String::new, |(tgid, started)| self.exec_id(tgid, started)),
            pid: own.tgid,
            parent_pid: parent.map_or(0, |(tgid, _)| tgid),
            comm: own.comm.clone(),
            uid: own.uid,
            gid: own.gid,
            ..Process::default()
        }
    }

    fn child(&self, head: &Head, tgid: u32, started: u64) -> Process {
        let own = &head.process;
        Process {
            exec_id: self.exec_id(tgid, started),
            parent_exec_id: self.exec_id(own.tgid, own.started),
            pid: tgid,
            parent_pid: own.tgid,
            comm: own.comm.clone(),
            uid: own.uid,
            gid: own.gid,
            ..Process::default()
        }
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
        };
        Some(Decision {
            action: match event {
                Event::Connect { .. } => "connect",
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
            (Mode::Lsm, _) => "kernel-lsm",
            (Mode::Tracepoint, _) => "kernel-cgroup",
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
        Event::Fork { .. } => Outcome::Killed,
        _ => Outcome::Blocked,
    }
}

fn describe(process: &mut Process, exec: &Exec) {
    process.path = String::from_utf8_lossy(&exec.path).into_owned();
    if exec.path_cut {
        process.path.insert(0, '…');
    }
    process.args = exec.arguments();
    if exec.args_cut() || process.args.len() > MAX_ARGS {
        process.args.truncate(MAX_ARGS);
        process.args_cut_from = Some(exec.args_total);
    }
    process.fileless = exec.fileless;
    process.inode = format!("{}:{}/{}", exec.device >> 20, exec.device & 0xf_ffff, exec.inode);
}

/// `task_struct.exit_code` as `wait` shows it.
fn status(code: u32) -> String {
    match code & 0x7f {
        0 => ((code >> 8) & 0xff).to_string(),
        number => nix::sys::signal::Signal::try_from(number.cast_signed())
            .map_or_else(|_| format!("SIG{number}"), |signal| signal.as_str().to_owned()),
    }
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
