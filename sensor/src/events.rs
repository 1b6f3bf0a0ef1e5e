//! The event pump: kernel events become records in the spool, lines in terminals and, where a rule says so, an end.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use sallyport_evidence::record::{Kind, Loss};
use tokio_util::sync::CancellationToken;

use crate::kernel::{Counters, Event, EventStream, Head, Judgement, Kernel, KindCounters};
use crate::notices::{self, Limiter};
use crate::policies::Policies;
use crate::processes;
use crate::records::{Recorder, loss_record};
use crate::sessions::Sessions;
use crate::spool::{Spool, SpoolError};

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
    /// Whose they are.
    pub sessions: Arc<Sessions>,
    /// What decided.
    pub policies: Arc<Policies>,
    /// Where they go.
    pub spool: Spool,
    /// This host.
    pub host: String,
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

impl Pump {
    /// Runs until `stop`, then takes what is in the ring at that moment.
    ///
    /// # Errors
    /// Evidence cannot be taken any more. The kernel goes on enforcing and keeps events in its ring.
    pub async fn run(mut self, stop: CancellationToken) -> Result<(), PumpError> {
        let mut limiter = Limiter::default();
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut ending = HashSet::new();
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => break,
                _ = tick.tick() => {
                    self.count_losses().await?;
                    self.sessions.tend().await;
                    for (channel, line) in limiter.summaries(Instant::now()) {
                        self.summary(channel, &line);
                    }
                }
                events = self.events.next() => self.take(&events?, &mut limiter, &mut ending).await?,
            }
        }
        loop {
            let events = self.events.try_next();
            if events.is_empty() {
                break;
            }
            self.take(&events, &mut limiter, &mut ending).await?;
        }
        self.count_losses().await
    }

    async fn take(
        &mut self,
        events: &[Event],
        limiter: &mut Limiter,
        ending: &mut HashSet<u64>,
    ) -> Result<(), PumpError> {
        let records = events.iter().map(|event| self.recorder.record(event, &*self.sessions)).collect();
        // First on its way to the disk, then to the eye.
        self.spool.append(records).await?;
        let now = Instant::now();
        for event in events {
            self.react(event, limiter, now, ending);
        }
        Ok(())
    }

    fn react(&self, event: &Event, limiter: &mut Limiter, now: Instant, ending: &mut HashSet<u64>) {
        let (Event::Fork { head, .. }
        | Event::Exec { head, .. }
        | Event::Connect { head, .. }
        | Event::Exit { head, .. }) = event;
        if !head.judgement.is_denied() {
            return;
        }
        let generation = self.policies.generation(head.generation);
        if let Some(line) = notices::line(event, generation.as_deref())
            && limiter.admit(head.channel, now)
        {
            self.sessions.notify(head.session, head.channel, &line);
        }
        if let Judgement::Denied { rule, kill, end_session } = head.judgement {
            if kill && matches!(event, Event::Connect { .. }) {
                self.kill(head);
            }
            if end_session && ending.insert(head.session) {
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

    fn summary(&self, channel: u32, line: &str) {
        self.sessions.notify_channel(channel, line);
    }

    /// Emits a record for what the kernel counted as lost since the last one. Counted over restarts.
    async fn count_losses(&mut self) -> Result<(), PumpError> {
        let counters = match self.kernel.counters() {
            Ok(counters) => counters,
            Err(error) => {
                tracing::error!(%error, "the kernel's counters cannot be read");
                return Ok(());
            }
        };
        let Counters { fork, exec, exit, connect } = counters;
        let kinds = [(Kind::Fork, fork), (Kind::Exec, exec), (Kind::Exit, exit), (Kind::Connect, connect)];
        for (kind, KindCounters { seen, lost }) in kinds {
            let what = crate::spool::kind_name(kind);
            self.report_loss(&what, "ring_full", lost, seen).await?;
        }
        let undecodable = self.events.undecodable();
        if undecodable > 0 {
            self.report_loss("event", "undecodable", undecodable, undecodable).await?;
        }
        Ok(())
    }

    async fn report_loss(&self, what: &str, why: &str, lost: u64, seen: u64) -> Result<(), PumpError> {
        let name = format!("lost/{}/{why}/{what}", crate::clock::boot_id());
        let known = self.spool.note(&name, None).await?;
        // Fewer than known: the maps were made anew.
        let count = if lost < known { lost } else { lost - known };
        if count > 0 {
            let loss = Loss { what: what.into(), why: why.into(), count, seen };
            self.spool.append_durably(vec![loss_record(&self.host, loss)]).await?;
        }
        if lost != known {
            self.spool.note(&name, Some(lost)).await?;
        }
        Ok(())
    }
}
