//! One SSH connection: its state and what can be done with its channels. [`super::handler`] calls it.

use super::Door;
use super::address;
use super::caller::Caller;
use super::channel;
use super::inbox::{Aside, Inbox};
use super::jump;
use super::login::Login;
use super::shared::{Ending, Shared};
use super::terminal::Terminal;
use super::work::Preparation;
use futures::FutureExt;
use russh::server::{ChannelOpenHandle, Msg, Session};
use russh::{Channel, ChannelId, ChannelOpenFailure, ChannelWriteHalf};
use sallyport_contract::v1::Work;
use std::collections::HashMap;
use std::net::SocketAddr;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use tokio_util::sync::CancellationToken;

/// russh keeps a few kilobytes of every channel that we closed, to the end of its connection: so many channels
/// may one have in its life. Nobody's work comes near it.
const MAX_CHANNELS_EVER: usize = 10_000;
/// Before it is known who asks.
const MAX_CHANNELS_PENDING: usize = 64;

/// Where a connection comes from.
pub enum Origin {
    /// The network.
    Outside,
    /// A `direct-tcpip` channel of another connection, to this host.
    Inside {
        /// The host.
        host: String,
    },
}

/// russh's view of a connection.
pub struct Connection {
    pub(super) door: Arc<Door>,
    pub(super) client: SocketAddr,
    pub(super) origin: Origin,
    pub(super) login: Login,
    pub(super) logged_in: CancellationToken,
    pub(super) end: Arc<Ending>,
    pub(super) login_name: String,
    pub(super) channels: HashMap<ChannelId, Entry>,
    pub(super) n_opened: usize,
    pub(super) shared: Option<Arc<Shared>>,
}

/// One of its channels.
pub(super) struct Entry {
    pub(super) inbox: Arc<Inbox>,
    pub(super) waiting: Option<Waiting>,
}

/// A session channel on which nothing runs yet.
pub(super) struct Waiting {
    pub(super) write: ChannelWriteHalf<Msg>,
    pub(super) preparation: Preparation,
}

impl Connection {
    /// `logged_in` is cancelled when authentication succeeds.
    pub fn new(
        door: Arc<Door>,
        client: SocketAddr,
        origin: Origin,
        login: Login,
        logged_in: CancellationToken,
        end: Arc<Ending>,
    ) -> Self {
        Self {
            door,
            client,
            origin,
            login,
            logged_in,
            end,
            login_name: String::new(),
            channels: HashMap::new(),
            n_opened: 0,
            shared: None,
        }
    }

    pub(super) fn note_user(&mut self, user: &str) {
        if self.login_name != user {
            user.clone_into(&mut self.login_name);
        }
    }

    /// Reserves a channel's place; rejects it when there is none.
    pub(super) async fn admit(&mut self, reply: ChannelOpenHandle) -> Option<ChannelOpenHandle> {
        // Those that we closed: russh does not tell when the client closes its side of them.
        self.channels.retain(|_, entry| !entry.inbox.gone().is_cancelled());
        let most_ever = match self.shared.as_ref().map(|shared| &shared.caller) {
            Some(Caller::Known(_)) => MAX_CHANNELS_EVER,
            _ => MAX_CHANNELS_PENDING,
        };
        let reason = if self.channels.len() >= self.door.config.max_channels {
            format!("more than {} channels at once are not permitted", self.door.config.max_channels)
        } else if self.n_opened >= most_ever {
            "this connection has had too many channels; make a new one".to_owned()
        } else {
            self.n_opened += 1;
            return Some(reply);
        };
        reply.reject(prohibited(reason)).await;
        None
    }

    pub(super) fn preparation(&mut self, id: ChannelId) -> Option<&mut Preparation> {
        Some(&mut self.channels.get_mut(&id)?.waiting.as_mut()?.preparation)
    }

    /// Starts what was asked for on a channel on which nothing runs yet.
    pub(super) fn start(
        &mut self,
        id: ChannelId,
        session: &mut Session,
        work: impl FnOnce(Preparation) -> Option<Work>,
    ) -> Result<(), russh::Error> {
        let (Some(shared), Some(entry)) = (self.shared.clone(), self.channels.get_mut(&id)) else {
            return session.channel_failure(id);
        };
        let Some(Waiting { write, preparation }) = entry.waiting.take() else {
            return session.channel_failure(id);
        };
        let is_raw = preparation.has_terminal();
        let Some(work) = work(preparation) else {
            return session.channel_failure(id);
        };
        session.channel_success(id)?;
        let handle = session.handle();
        let terminal = Terminal::new(Arc::clone(&entry.inbox), is_raw, write, handle.clone());
        tokio::spawn(async move {
            let run = AssertUnwindSafe(channel::run(shared, terminal, work)).catch_unwind();
            if run.await.is_err() {
                tracing::error!(channel = %id, "a channel panicked; the connection lives on");
                // The connection may be gone as well.
                let _ = handle.close(id).await;
            }
        });
        Ok(())
    }

    /// The inner connection of `ssh -J`.
    pub(super) fn tunnel(&mut self, channel: Channel<Msg>, host: &str, session: &Session) {
        let Some(shared) = &self.shared else { return };
        let (id, handle, inbox) = (channel.id(), session.handle(), Arc::new(Inbox::new()));
        self.channels.insert(id, Entry { inbox: Arc::clone(&inbox), waiting: None });
        let (_, write) = channel.split();
        let (door, client) = (Arc::clone(&self.door), self.client);
        let (caller, host) = (shared.caller.clone(), host.to_owned());
        tokio::spawn(async move {
            let inner = jump::serve(door, client, caller, host, inbox, write.make_writer());
            // A panic inside ends the inner connection alone.
            if AssertUnwindSafe(inner).catch_unwind().await.is_err() {
                tracing::error!(channel = %id, "an inner connection panicked");
            }
            // The connection may be gone as well.
            let _ = handle.close(id).await;
        });
    }

    /// Why a forwarding is refused, or the host that an inner connection is for.
    pub(super) fn tunnel_target<'a>(&self, host: &'a str, port: u32) -> Result<&'a str, String> {
        if !matches!(self.origin, Origin::Outside) {
            return Err("a connection through the gateway cannot lead on to another".to_owned());
        }
        if port != 22 || !address::is_host_name(host) {
            return Err(format!(
                "the gateway forwards to no port; {host} can be reached with ssh -J alone, port 22"
            ));
        }
        // A caller without identity may reach nothing, and learns nothing: the inner connection holds it.
        if let Some(Caller::Known(identity)) = self.shared.as_ref().map(|shared| &shared.caller) {
            let targets = self.door.hosts.targets(identity);
            if !targets.iter().any(|target| target.host == host) {
                let names: Vec<_> = targets.iter().map(|target| target.host.as_str()).collect();
                return Err(format!(
                    "there is no host {host} that you may reach; there are: {}",
                    names.join(", ")
                ));
            }
        }
        Ok(host)
    }

    pub(super) fn push_aside(&self, id: ChannelId, aside: Aside) {
        if let Some(entry) = self.channels.get(&id) {
            entry.inbox.push_aside(aside);
        }
    }
}

/// Why a channel is not opened, in words that clients show.
pub(super) fn prohibited(reason: String) -> ChannelOpenFailure {
    /// `SSH_OPEN_ADMINISTRATIVELY_PROHIBITED` (RFC 4254 section 5.1).
    const CODE: u32 = 1;
    ChannelOpenFailure::Other { code: CODE, reason }
}

impl Drop for Connection {
    fn drop(&mut self) {
        for entry in self.channels.values() {
            entry.inbox.close();
        }
        self.end.over.cancel();
        self.login.abandon();
    }
}
