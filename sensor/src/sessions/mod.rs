//! The sessions of this host: who they belong to, their channels, and how they live through a restart of the sensor.
//!
//! `run_dir/sessions/NUMBER` holds what is known of each session and is written before anything of it
//! runs; `run_dir/channels/ID/` is the folder of a channel's shepherd. Both are gone after a reboot, as the
//! kernel's maps are. Numbers are never used twice.

mod attend;
mod end;
mod restore;
mod start;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use sallyport_contract::v1::{self, LiveChannel, PolicyBundle};
use sallyport_evidence::Record;
use sallyport_evidence::record::{Identity, Kind, Session};
use sallyport_policy::Principal;
use serde::{Deserialize, Serialize};
use tokio::sync::{RwLock, mpsc};

use crate::kernel::{Kernel, KernelError, Mode};
use crate::policies::{Generation, Policies, PolicyError};
use crate::records::{Context, Owner, message_record};
use crate::shepherd::protocol::Command;
use crate::spool::Spool;
use crate::unbrokered::Unbrokered;
use crate::uplink::Uplink;

pub use start::Refusal;

/// An ended session is remembered so long for events that are still under way.
const REMEMBER: Duration = Duration::from_secs(600);
/// Commands that may wait for a shepherd: notices are limited already, so this is never reached by a living one.
const COMMANDS: usize = 64;

/// What sessions are started with.
#[derive(Clone, Debug)]
pub struct Settings {
    /// This host's name.
    pub host: String,
    /// Runtime folder.
    pub run_dir: PathBuf,
    /// Program to run as `shepherd`: this one.
    pub program: PathBuf,
    /// Sessions at once at most.
    pub max_sessions: usize,
    /// Channels per session at most.
    pub max_channels: usize,
    /// Processes per session at most.
    pub max_processes: u32,
    /// Names of variables taken from clients; `*` at the end matches the rest.
    pub accept_env: Vec<String>,
    /// Candidates for the sftp server.
    pub sftp_server: Vec<PathBuf>,
    /// See [`crate::shepherd::protocol::Spec`].
    pub reattach_grace: Duration,
    /// See [`crate::shepherd::protocol::Spec`].
    pub hangup_grace: Duration,
    /// `ip port` of this host as tools in a session see it.
    pub server: String,
}

/// The sessions of this host.
#[derive(Debug)]
pub struct Sessions {
    settings: Settings,
    kernel: Arc<Kernel>,
    policies: Arc<Policies>,
    spool: Spool,
    uplink: Uplink,
    unbrokered: Arc<Unbrokered>,
    tables: Mutex<Tables>,
    /// Starting reads, replacing the policy writes: no session starts under a policy that is being replaced.
    gate: RwLock<()>,
}

#[derive(Debug, Default)]
struct Tables {
    /// By session id.
    live: HashMap<String, Live>,
    /// By number, for events; ended ones with the time of their end.
    known: HashMap<u64, (SessionFile, Option<Instant>)>,
}

#[derive(Debug)]
struct Live {
    number: u64,
    channels: HashMap<String, Handle>,
    starting: usize,
    ending: bool,
    idle_since: Option<Instant>,
}

/// A running channel.
#[derive(Clone, Debug)]
struct Handle {
    number: u32,
    commands: mpsc::Sender<Command>,
}

/// What is kept of a session.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct SessionFile {
    id: String,
    number: u64,
    identity: Identity,
    principal: Principal,
    local_user: String,
    client: String,
    expires_at_ms: i64,
    channels: Vec<ChannelFile>,
}

/// What is kept of a channel.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct ChannelFile {
    id: String,
    number: u32,
}

impl Sessions {
    /// No sessions yet; see [`Self::restore`].
    #[must_use]
    pub fn new(
        settings: Settings,
        kernel: Arc<Kernel>,
        policies: Arc<Policies>,
        spool: Spool,
        uplink: Uplink,
        unbrokered: Arc<Unbrokered>,
    ) -> Arc<Self> {
        let (tables, gate) = (Mutex::default(), RwLock::new(()));
        Arc::new(Self { settings, kernel, policies, spool, uplink, unbrokered, tables, gate })
    }

    /// The channels that are alive, for the gateway.
    #[must_use]
    pub fn live_channels(&self) -> Vec<LiveChannel> {
        let tables = self.tables();
        let of = |(session, live): (&String, &Live)| {
            live.channels
                .keys()
                .map(|channel| LiveChannel { session_id: session.clone(), channel_id: channel.clone() })
                .collect::<Vec<_>>()
        };
        tables.live.iter().flat_map(of).collect()
    }

    /// Follows an order of policy, in every running session that it is for too. On an error nothing has changed.
    ///
    /// # Errors
    /// Why it is not followed.
    pub async fn install(self: &Arc<Self>, bundle: PolicyBundle) -> Result<(), PolicyError> {
        let _no_starts = self.gate.write().await;
        let this = self.clone();
        let installed = tokio::task::spawn_blocking(move || {
            let Some(change) = this.policies.accept(&bundle)? else { return Ok(()) };
            let mut swaps = Vec::new();
            for file in this.files() {
                let Some(current) = change.next.for_session(&file.id) else { continue };
                swaps
                    .push((file.number, this.policies.compiled(current, &file.principal, &file.local_user)?));
            }
            // Log-ins outside of the gateway follow as far as they can: nobody's push fails because of them.
            let logins = this.unbrokered.prepare(change.next.for_logins());
            this.policies.keep(change)?;
            for (number, slot) in swaps {
                this.swap(number, slot);
            }
            this.unbrokered.commit(logins);
            this.policies.sweep();
            Ok(())
        });
        let installed =
            installed.await.unwrap_or_else(|error| Err(PolicyError::Disk(std::io::Error::other(error))));
        self.policies
            .note_trouble(&installed.as_ref().err().map_or_else(String::new, |e| crate::uplink::chain(e)));
        installed
    }

    fn swap(&self, number: u64, slot: u32) {
        match self.kernel.set_session_policy(number, slot) {
            Ok(()) | Err(KernelError::NoSession(_)) => {}
            Err(error) => {
                // It would go on under the old policy: better it does nothing at all.
                tracing::error!(%error, number, "a session cannot be moved to the new policy; it is sealed");
                let _ = self.kernel.seal_session(number);
            }
        }
    }

    /// Shows a line in a channel's output.
    pub fn notify(&self, session: u64, channel: u32, line: &str) {
        let handle = {
            let tables = self.tables();
            let live = tables.live.values().find(|live| live.number == session);
            live.and_then(|live| live.channels.values().find(|handle| handle.number == channel)).cloned()
        };
        if let Some(handle) = handle {
            let _ = handle.commands.try_send(Command::Notice(line.to_owned()));
        }
    }

    /// Shows a line in the output of the channel with this number, whichever session it belongs to.
    pub fn notify_channel(&self, channel: u32, line: &str) {
        let session = {
            let tables = self.tables();
            let has = |live: &&Live| live.channels.values().any(|handle| handle.number == channel);
            tables.live.values().find(has).map(|live| live.number)
        };
        if let Some(session) = session {
            self.notify(session, channel, line);
        }
    }

    /// The id of the session with this number.
    #[must_use]
    pub fn id_of(&self, number: u64) -> Option<String> {
        self.tables().known.get(&number).map(|(file, _)| file.id.clone())
    }

    /// Enters a session's owner into a record.
    pub fn name(&self, record: &mut Record, number: u64) {
        if let Some(owner) = self.owner(number, 0) {
            (record.identity, record.session) = (Some(owner.identity), Some(owner.session));
        }
    }

    /// How the kernel enforces.
    #[must_use]
    pub fn mode(&self) -> Mode {
        self.kernel.mode()
    }

    fn files(&self) -> Vec<SessionFile> {
        let tables = self.tables();
        tables.known.values().filter(|(_, ended)| ended.is_none()).map(|(file, _)| file.clone()).collect()
    }

    fn session_path(&self, number: u64) -> PathBuf {
        self.settings.run_dir.join("sessions").join(number.to_string())
    }

    fn channel_dir(&self, channel: &str) -> PathBuf {
        self.settings.run_dir.join("channels").join(channel)
    }

    fn tables(&self) -> MutexGuard<'_, Tables> {
        self.tables.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn record(&self, kind: Kind, owner: Option<Owner>, message: String) {
        let mut record = message_record(kind, &self.settings.host, message);
        if let Some(owner) = owner {
            (record.identity, record.session) = (Some(owner.identity), Some(owner.session));
        }
        if let Err(error) = self.spool.append(vec![record]).await {
            tracing::error!(%error, "a record could not be kept");
        }
    }
}

impl Context for Sessions {
    fn owner(&self, session: u64, channel: u32) -> Option<Owner> {
        let tables = self.tables();
        match tables.known.get(&session) {
            Some((file, _)) => Some(file.owner(channel)),
            None => self.unbrokered.owner(session, channel),
        }
    }

    fn generation(&self, generation: u64) -> Option<Arc<Generation>> {
        self.policies.generation(generation)
    }
}

impl SessionFile {
    fn owner(&self, channel: u32) -> Owner {
        let channel = self.channels.iter().find(|known| known.number == channel);
        let session = Session {
            id: self.id.clone(),
            channel: channel.map_or_else(String::new, |channel| channel.id.clone()),
            local_user: self.local_user.clone(),
            client: self.client.clone(),
        };
        Owner { identity: self.identity.clone(), session }
    }
}

/// The contract's person as policy knows them.
fn principal(person: &v1::Principal) -> Principal {
    Principal {
        user: person.user.clone(),
        groups: person.groups.clone(),
        kind: person.kind.clone(),
        issuer: person.issuer.clone(),
        on_behalf_of: person.on_behalf_of.clone(),
    }
}

/// The contract's person as evidence knows them.
fn identity(person: &v1::Principal) -> Identity {
    Identity {
        user: person.user.clone(),
        name: person.display_name.clone(),
        groups: person.groups.clone(),
        kind: person.kind.clone(),
        issuer: person.issuer.clone(),
        subject: person.subject.clone(),
        on_behalf_of: person.on_behalf_of.clone(),
        method: person.auth_method.clone(),
    }
}
