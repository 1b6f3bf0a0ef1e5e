//! After a restart: sessions and channels from what the predecessor wrote, the kernel's maps and the shepherds that live.

use std::collections::HashSet;
use std::sync::Arc;

use sallyport_evidence::record::Kind;

use super::{Live, SessionFile, Sessions, attend};
use crate::files;
use crate::processes;
use crate::unbrokered;

impl Sessions {
    /// Takes over what an earlier sensor left running. Must be done before orders are taken.
    ///
    /// # Errors
    /// The runtime folder cannot be used.
    pub async fn restore(self: &Arc<Self>) -> std::io::Result<()> {
        let sessions = self.settings.run_dir.join("sessions");
        files::private_dir(&sessions)?;
        files::private_dir(&self.settings.run_dir.join("channels"))?;
        let mut in_kernel = self.kernel.sessions();
        // Those of log-ins outside of the gateway are known by their numbers.
        in_kernel.retain(|session| !unbrokered::is_number(session.number));
        let sealed: HashSet<u64> =
            in_kernel.iter().filter(|session| session.sealed).map(|s| s.number).collect();
        let in_kernel: HashSet<u64> = in_kernel.iter().map(|session| session.number).collect();
        let mut restored: HashSet<u64> = HashSet::new();
        let mut attended: HashSet<String> = HashSet::new();
        for entry in std::fs::read_dir(&sessions)?.flatten() {
            let Ok(file) = files::read_json::<SessionFile>(&entry.path()) else {
                let _ = std::fs::remove_file(entry.path());
                continue;
            };
            let enforced = in_kernel.contains(&file.number);
            restored.insert(file.number);
            let channels = self.adopt(file.clone()).await;
            attended.extend(channels);
            if !enforced {
                // Its processes are not judged any more: it must not go on.
                self.record(
                    Kind::Sensor,
                    Some(file.owner(0)),
                    "the kernel no longer knows this session".into(),
                )
                .await;
                self.end(&file.id, "this host's enforcement was replaced").await;
            } else if sealed.contains(&file.number) {
                // Its end had begun.
                self.end(&file.id, "it was being ended when the sensor was restarted").await;
            }
        }
        self.end_unknown(&in_kernel, &restored);
        self.remove_dead(&attended);
        self.reconcile_policy().await;
        Ok(())
    }

    /// Enters a session and attends those of its channels whose shepherd lives; returns these.
    async fn adopt(self: &Arc<Self>, file: SessionFile) -> Vec<String> {
        {
            let mut tables = self.tables();
            let live = Live {
                number: file.number,
                channels: std::collections::HashMap::new(),
                starting: 0,
                ending: false,
                idle_since: None,
            };
            tables.live.insert(file.id.clone(), live);
            tables.known.insert(file.number, (file.clone(), None));
        }
        let mut attended = Vec::new();
        for channel in &file.channels {
            // A leader that its predecessor tagged and did not let go is not let go now: it ends by itself, since
            // nobody at the gateway waits for it any more.
            if let Ok(control) = attend::connect(&self.channel_dir(&channel.id)).await {
                // An earlier version may not have done it.
                if let Some(shepherd) = control.peer_cred().ok().and_then(|peer| peer.pid()) {
                    let _ = self.kernel.guard(shepherd.unsigned_abs());
                }
                self.attend(&file.id, &channel.id, channel.number, control, false);
                attended.push(channel.id.clone());
            }
        }
        attended
    }

    /// Sessions in the kernel of which nothing is known: nobody could say whose they are.
    fn end_unknown(&self, in_kernel: &HashSet<u64>, restored: &HashSet<u64>) {
        for number in in_kernel.difference(restored) {
            tracing::error!(
                number,
                "a session in the kernel belongs to nobody known; it is sealed and its processes are killed"
            );
            let _ = self.kernel.seal_session(*number);
            // Processes that cannot be killed at once stay sealed; the next start tries again.
            for _ in 0..50 {
                if processes::signal(&self.kernel, libc::SIGKILL, |task| task.session == *number) == 0 {
                    let _ = self.kernel.close_session(*number);
                    break;
                }
                std::thread::sleep(std::time::Duration::from_millis(20));
            }
        }
    }

    /// Folders of channels whose shepherd is gone.
    fn remove_dead(&self, attended: &HashSet<String>) {
        let Ok(entries) = std::fs::read_dir(self.settings.run_dir.join("channels")) else { return };
        for entry in entries.flatten() {
            if entry.file_name().to_str().is_none_or(|name| !attended.contains(name)) {
                let _ = std::fs::remove_dir_all(entry.path());
            }
        }
    }

    /// A predecessor may have been killed between keeping a new bundle and moving its sessions to it.
    async fn reconcile_policy(self: &Arc<Self>) {
        let this = self.clone();
        let moved = tokio::task::spawn_blocking(move || {
            for file in this.files() {
                let Some(current) = this.policies.for_session(&file.id) else { continue };
                match this.policies.compiled(&current, &file.principal, &file.local_user) {
                    Ok(slot) => this.swap(file.number, slot),
                    Err(error) => {
                        tracing::error!(%error, session = file.id, "the session's policy cannot be restored; it is sealed");
                        let _ = this.kernel.seal_session(file.number);
                    }
                }
            }
            this.policies.sweep();
        });
        if let Err(error) = moved.await {
            tracing::error!(%error, "policies could not be restored");
        }
    }
}
