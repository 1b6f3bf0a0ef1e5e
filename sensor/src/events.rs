//! The event pump: kernel events become records in the spool, lines in terminals and, where a rule says so, an end.

mod late;

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use sallyport_evidence::record::{Kind, Loss};
use tokio_util::sync::CancellationToken;

use crate::enrich::{Answer, Enricher};
use crate::guard::Names;
use crate::heartbeat::Pulse;
use crate::kernel::{Counters, Event, EventStream, FileOp, Head, Judgement, Kernel, KindCounters};
use crate::notices::{self, Limiter};
use crate::policies::Policies;
use crate::processes;
use crate::records::{Recorder, loss_record};
use crate::sessions::Sessions;
use crate::spool::{Spool, SpoolError};
use crate::status::Reporter;
use crate::unbrokered::{self, Unbrokered};

use late::Late;

/// How often counters are looked at, sessions are tended and held-back notices are summed up.
const TICK: Duration = Duration::from_secs(1);

/// What the pump works with.
#[derive(Debug)]
pub struct Pump {
    /// Kernel.
    pub kernel: Arc<Kernel>,
    /// Its events.
    pub events: EventStream,
    /// Makes records.
    pub recorder: Recorder,
    /// Looks up what events do not carry.
    pub enricher: Enricher,
    /// Whose they are.
    pub sessions: Arc<Sessions>,
    /// Log-ins outside of the gateway.
    pub unbrokered: Arc<Unbrokered>,
    /// What `doctor` is told.
    pub reporter: Reporter,
    /// What decided.
    pub policies: Arc<Policies>,
    /// The names that the kernel knows.
    pub names: Arc<Names>,
    /// Where they go.
    pub spool: Spool,
    /// This host.
    pub host: String,
    /// Tells that the pump turns.
    pub pulse: Pulse,
}

/// The pump cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum PumpError {
    /// Records cannot be kept.
    #[error(transparent)]
    Spool(#[from] SpoolError),
    /// Events cannot be read.
    #[error("the kernel's events cannot be read")]
    Events(#[from] std::io::Error),
}

/// What one run of the pump remembers.
#[derive(Default)]
struct State {
    limiter: Limiter,
    /// Sessions that a rule ends.
    ending: HashSet<u64>,
    late: Late,
    /// Numbers of questions to the enricher.
    asked: u64,
}

impl Pump {
    /// Runs until `stop`, then takes what is in the ring at that moment.
    ///
    /// # Errors
    /// Evidence cannot be taken any more. The kernel goes on enforcing and keeps events in its ring.
    pub async fn run(mut self, stop: CancellationToken) -> Result<(), PumpError> {
        let mut state = State::default();
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => break,
                _ = tick.tick() => {
                    self.count_losses().await?;
                    self.sessions.tend().await;
                    self.tend_logins().await?;
                    self.reporter.write(self.policies.standing(), self.unbrokered.standing());
                    self.names.tend();
                    for (channel, line) in state.limiter.summaries(Instant::now()) {
                        self.summary(channel, &line);
                    }
                }
                answer = self.enricher.next() => self.tell_late(vec![answer], &mut state).await?,
                events = self.events.next() => self.take(&events?, &mut state).await?,
            }
            self.pulse.turn();
        }
        loop {
            let events = self.events.try_next();
            if events.is_empty() {
                break;
            }
            self.take(&events, &mut state).await?;
        }
        self.count_losses().await
    }

    async fn take(&mut self, events: &[Event], state: &mut State) -> Result<(), PumpError> {
        let first = state.asked;
        state.asked += events.len() as u64;
        let mut cgroups = HashSet::new();
        let mut questions = Vec::new();
        for (id, event) in (first..).zip(events) {
            let Some(mut question) = self.recorder.question(id, event) else { continue };
            // One of a batch is enough.
            if question.cgroup != 0 && !cgroups.insert(question.cgroup) {
                question.cgroup = 0;
            }
            if question.executable.is_some() || question.cgroup != 0 {
                questions.push(question);
            }
        }
        let (answers, late) = self.enricher.ask(questions).await;
        let mut records = Vec::with_capacity(events.len());
        for (id, event) in (first..).zip(events) {
            self.reporter.note(event);
            records.extend(self.unbrokered.seen(event));
            let answer = answers.get(&id);
            let record = self.recorder.record(event, answer, &*self.sessions);
            if matches!(event, Event::Exec { .. }) {
                state.late.expect(id, answer, &record);
            }
            records.push(record);
        }
        // First on its way to the disk, then to the eye.
        self.spool.append(records).await?;
        self.tell_late(late, state).await?;
        let now = Instant::now();
        for event in events {
            self.react(event, state, now);
        }
        Ok(())
    }

    /// Hashes that came after their records.
    async fn tell_late(&mut self, answers: Vec<Answer>, state: &mut State) -> Result<(), PumpError> {
        let mut records = Vec::new();
        for answer in answers {
            if let Some(of) = state.late.settle(&answer) {
                records.extend(self.recorder.executable(&answer, &of));
            }
        }
        if records.is_empty() { Ok(()) } else { Ok(self.spool.append(records).await?) }
    }

    fn react(&self, event: &Event, state: &mut State, now: Instant) {
        let head = event.head();
        if let Event::File { file, .. } = event
            && matches!(file.op, FileOp::Create | FileOp::Delete | FileOp::Rename | FileOp::Link)
        {
            self.names.touched(&file.path);
        }
        if !head.judgement.is_denied() {
            return;
        }
        let generation = self.policies.generation(head.generation);
        if let Some(line) = notices::line(event, generation.as_deref())
            && state.limiter.admit(head.channel, now)
        {
            self.sessions.notify(head.session, head.channel, &line);
        }
        if let Judgement::Denied { rule, kill, end_session } = head.judgement {
            if kill && !matches!(event, Event::Exec { .. } | Event::Fork { .. }) {
                self.kill(head);
            }
            if end_session && unbrokered::is_number(head.session) {
                let (logins, session, login) = (self.unbrokered.clone(), head.session, head.channel);
                tokio::task::spawn_blocking(move || logins.end(session, login));
            } else if end_session && state.ending.insert(head.session) {
                let rule = generation.as_ref().and_then(|generation| generation.rules.get(usize::from(rule)));
                let reason = rule.map_or_else(
                    || "a rule ends sessions that do this".to_owned(),
                    |rule| format!("rule \"{}\" ends sessions that do this", rule.id),
                );
                let sessions = self.sessions.clone();
                if let Some(id) = sessions.id_of(head.session) {
                    tokio::spawn(async move { sessions.end(&id, &reason).await });
                }
            }
        }
    }

    /// A rule wants the process killed, and the kernel only refused what it did.
    fn kill(&self, head: &Head) {
        let (tgid, session) = (head.process.tgid, head.session);
        let kernel = self.kernel.clone();
        tokio::task::spawn_blocking(move || {
            processes::signal(&kernel, libc::SIGKILL, |task| task.tgid == tgid && task.session == session)
        });
    }

    /// Log-ins that are over are closed in the evidence.
    async fn tend_logins(&self) -> Result<(), PumpError> {
        let logins = self.unbrokered.clone();
        let closed =
            tokio::task::spawn_blocking(move || logins.tend()).await.map_err(std::io::Error::other)?;
        if !closed.is_empty() {
            self.spool.append(closed).await?;
        }
        Ok(())
    }

    fn summary(&self, channel: u32, line: &str) {
        self.sessions.notify_channel(channel, line);
    }

    /// Emits a record for what the kernel counted as lost since the last one: by kind, and again by session. Counted over
    /// restarts.
    async fn count_losses(&mut self) -> Result<(), PumpError> {
        let counters = match self.kernel.counters() {
            Ok(counters) => counters,
            Err(error) => {
                tracing::error!(%error, "the kernel's counters cannot be read");
                return Ok(());
            }
        };
        let Counters { fork, exec, exit, connect, file, system } = counters;
        let kinds = [
            (Kind::Fork, fork),
            (Kind::Exec, exec),
            (Kind::Exit, exit),
            // Binding and listening are counted with it.
            (Kind::Connect, connect),
            (Kind::File, file),
            (Kind::System, system),
        ];
        for (kind, KindCounters { seen, lost }) in kinds {
            let what = crate::spool::kind_name(kind);
            self.report_loss(&what, "ring_full", lost, seen, None).await?;
        }
        for session in self.kernel.sessions() {
            if session.lost > 0 {
                self.report_loss("session", "ring_full", session.lost, 0, Some(session.number)).await?;
            }
        }
        let undecodable = self.events.undecodable();
        if undecodable > 0 {
            self.report_loss("event", "undecodable", undecodable, undecodable, None).await?;
        }
        Ok(())
    }

    async fn report_loss(
        &self,
        what: &str,
        why: &str,
        lost: u64,
        seen: u64,
        session: Option<u64>,
    ) -> Result<(), PumpError> {
        let of = session.map_or_else(String::new, |number| format!("/{number}"));
        let name = format!("lost/{}/{why}/{what}{of}", crate::clock::boot_id());
        let known = self.spool.note(&name, None).await?;
        // Fewer than known: the maps were made anew.
        let count = if lost < known { lost } else { lost - known };
        if count > 0 {
            let loss = Loss { what: what.into(), why: why.into(), count, seen };
            let mut record = loss_record(&self.host, loss);
            if let Some(number) = session {
                self.sessions.name(&mut record, number);
                record.message =
                    Some("of all kinds, in this session; they are in the counts by kind, too".into());
            }
            self.spool.append_durably(vec![record]).await?;
        }
        if lost != known {
            self.spool.note(&name, Some(lost)).await?;
        }
        Ok(())
    }
}
