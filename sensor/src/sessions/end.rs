//! Ending sessions: seal in the kernel, tell the person, kill what is left; expiry, and forgetting what is over.

use std::sync::Arc;
use std::time::{Duration, Instant};

use sallyport_evidence::record::Kind;

use super::{REMEMBER, Sessions};
use crate::clock;
use crate::processes;
use crate::shepherd::protocol::Command;

/// So long killing is repeated until nothing of the session is left.
const KILL_FOR: Duration = Duration::from_secs(30);
/// Between two rounds of killing.
const KILL_EVERY: Duration = Duration::from_millis(20);
/// A session without channels and processes is forgotten by the kernel after so long.
const IDLE: Duration = Duration::from_secs(5);

impl Sessions {
    /// Ends a session: nothing of it can execute or connect any more when the first step is done, and nothing of it
    /// runs when the last one is. An unknown id is nothing to do.
    pub async fn end(self: &Arc<Self>, id: &str, reason: &str) {
        let (number, channels) = {
            let mut tables = self.tables();
            let Some(live) = tables.live.get_mut(id) else { return };
            if std::mem::replace(&mut live.ending, true) {
                return;
            }
            (live.number, live.channels.values().cloned().collect::<Vec<_>>())
        };
        if let Err(error) = self.kernel.seal_session(number) {
            tracing::error!(%error, id, "the session cannot be sealed; its processes are killed all the same");
        }
        for channel in &channels {
            // Full only if the shepherd is stuck; its leader is killed below like everything else.
            let _ = channel.commands.try_send(Command::End(format!("this session has ended: {reason}")));
        }
        let owner = self.tables().known.get(&number).map(|(file, _)| file.owner(0));
        self.record(Kind::Sensor, owner, format!("the session was ended on the host: {reason}")).await;
        // Sealed, so whatever is forked from now on can execute nothing: repeat until none is left.
        let deadline = Instant::now() + KILL_FOR;
        loop {
            let kernel = self.kernel.clone();
            let killed = tokio::task::spawn_blocking(move || {
                processes::signal(&kernel, libc::SIGKILL, |task| task.session == number)
            });
            if killed.await.is_ok_and(|n| n == 0) {
                break;
            }
            if Instant::now() > deadline {
                tracing::error!(id, "processes of an ended session could not be killed; they stay sealed");
                break;
            }
            tokio::time::sleep(KILL_EVERY).await;
        }
    }

    /// Ends the sessions whose grant is over, and forgets those that are gone. To be called about every second.
    pub async fn tend(self: &Arc<Self>) {
        let now_ms = clock::wall_ms();
        for file in self.files() {
            if file.expires_at_ms > 0 && file.expires_at_ms <= now_ms {
                let (this, id) = (self.clone(), file.id);
                tokio::spawn(async move { this.end(&id, "the grant has ended").await });
            }
        }
        self.forget_ended(Instant::now());
    }

    fn forget_ended(&self, now: Instant) {
        let tasks: std::collections::HashMap<u64, u32> =
            self.kernel.sessions().into_iter().map(|session| (session.number, session.tasks)).collect();
        let mut gone = Vec::new();
        {
            let mut tables = self.tables();
            for (id, live) in &mut tables.live {
                let busy = !live.channels.is_empty()
                    || live.starting > 0
                    || tasks.get(&live.number).is_some_and(|tasks| *tasks > 0);
                if busy {
                    live.idle_since = None;
                } else if now.duration_since(*live.idle_since.get_or_insert(now)) >= IDLE {
                    gone.push((id.clone(), live.number));
                }
            }
            for (id, number) in &gone {
                tables.live.remove(id);
                if let Some((_, ended)) = tables.known.get_mut(number) {
                    *ended = Some(now);
                }
            }
            tables.known.retain(|_, (_, ended)| ended.is_none_or(|at| now.duration_since(at) < REMEMBER));
        }
        for (_, number) in gone {
            let _ = self.kernel.close_session(number);
            let _ = std::fs::remove_file(self.session_path(number));
        }
    }
}
