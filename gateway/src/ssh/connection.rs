//! One SSH connection: russh's callbacks, none of which waits for anything but a log-in.

use super::address::{self, Address};
use super::caller::Caller;
use super::channel;
use super::inbox::{self, Aside, Inbox, TRICKLE, WINDOW};
use super::jump;
use super::login::Login;
use super::shared::{Ending, Shared};
use super::terminal::Terminal;
use super::work::{Preparation, TerminalRequest, signal_name};
use super::Door;
use futures::FutureExt;
use russh::keys::{Certificate, PublicKey};
use russh::server::{Auth, ChannelOpenHandle, Handler, Msg, PublicKeyOffer, Response, Session, VerifiedPublicKey};
use russh::{Channel, ChannelId, ChannelOpenFailure, ChannelWriteHalf, Pty, Sig};
use sallyport_contract::v1::{WindowSize, Work};
use std::collections::HashMap;
use std::net::SocketAddr;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// How often a channel that nobody reads may send its two bytes: the pause holds up the rest of the connection,
/// a round trip without it would cost a packet each.
const TRICKLE_PAUSE: Duration = Duration::from_millis(20);

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
    door: Arc<Door>,
    client: SocketAddr,
    origin: Origin,
    login: Login,
    logged_in: CancellationToken,
    end: Arc<Ending>,
    login_name: String,
    channels: HashMap<ChannelId, Entry>,
    shared: Option<Arc<Shared>>,
}

struct Entry {
    inbox: Arc<Inbox>,
    waiting: Option<Waiting>,
}

/// A session channel on which nothing runs yet.
struct Waiting {
    write: ChannelWriteHalf<Msg>,
    preparation: Preparation,
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
            shared: None,
        }
    }

    fn note_user(&mut self, user: &str) {
        if self.login_name != user {
            user.clone_into(&mut self.login_name);
        }
    }

    /// Reserves a channel's place; rejects it when there is none.
    async fn admit(&mut self, reply: ChannelOpenHandle) -> Option<ChannelOpenHandle> {
        // Those that we closed: russh does not tell when the client closes its side of them.
        self.channels.retain(|_, entry| !entry.inbox.gone().is_cancelled());
        if self.channels.len() < self.door.config.max_channels {
            return Some(reply);
        }
        let reason = format!("more than {} channels at once are not permitted", self.door.config.max_channels);
        reply.reject(prohibited(reason)).await;
        None
    }

    fn preparation(&mut self, id: ChannelId) -> Option<&mut Preparation> {
        Some(&mut self.channels.get_mut(&id)?.waiting.as_mut()?.preparation)
    }

    /// Starts what was asked for on a channel on which nothing runs yet.
    fn start(
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
    fn tunnel(&mut self, channel: Channel<Msg>, host: &str, session: &Session) {
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
    fn tunnel_target<'a>(&self, host: &'a str, port: u32) -> Result<&'a str, String> {
        if !matches!(self.origin, Origin::Outside) {
            return Err("a connection through the gateway cannot lead on to another".to_owned());
        }
        if port != 22 || !address::is_host_name(host) {
            return Err(format!("the gateway forwards to no port; {host} can be reached with ssh -J alone, port 22"));
        }
        // A caller without identity may reach nothing, and learns nothing: the inner connection holds it.
        if let Some(Caller::Known(identity)) = self.shared.as_ref().map(|shared| &shared.caller) {
            let targets = self.door.hosts.targets(identity);
            if !targets.iter().any(|target| target.host == host) {
                let names: Vec<_> = targets.iter().map(|target| target.host.as_str()).collect();
                return Err(format!("there is no host {host} that you may reach; there are: {}", names.join(", ")));
            }
        }
        Ok(host)
    }

    fn push_aside(&self, id: ChannelId, aside: Aside) {
        if let Some(entry) = self.channels.get(&id) {
            entry.inbox.push_aside(aside);
        }
    }
}

fn prohibited(reason: String) -> ChannelOpenFailure {
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

impl Handler for Connection {
    type Error = russh::Error;

    async fn auth_none(&mut self, user: &str) -> Result<Auth, Self::Error> {
        self.note_user(user);
        Ok(self.login.none())
    }

    async fn auth_publickey_offered(&mut self, _user: &str, offer: PublicKeyOffer<'_>) -> Result<Auth, Self::Error> {
        Ok(self.login.offered(offer.public_key, offer.algorithm).await)
    }

    async fn auth_publickey(&mut self, user: &str, key: VerifiedPublicKey<'_>) -> Result<Auth, Self::Error> {
        self.note_user(user);
        let key: &PublicKey = key.public_key;
        Ok(self.login.proved(key).await)
    }

    async fn auth_openssh_certificate(&mut self, user: &str, certificate: &Certificate) -> Result<Auth, Self::Error> {
        self.note_user(user);
        Ok(self.login.certified(certificate).await)
    }

    async fn auth_keyboard_interactive<'a>(
        &'a mut self,
        user: &str,
        _submethods: &str,
        response: Option<Response<'a>>,
    ) -> Result<Auth, Self::Error> {
        self.note_user(user);
        let is_answer = response.is_some();
        Ok(self.login.interactive(is_answer).await)
    }

    async fn auth_succeeded(&mut self, _session: &mut Session) -> Result<(), Self::Error> {
        // Authentication succeeds with a caller alone.
        let caller = self.login.caller().cloned().ok_or(russh::Error::Inconsistent)?;
        let address = match &self.origin {
            Origin::Outside => Address::parse(&self.login_name),
            Origin::Inside { host } if address::is_user_name(&self.login_name) => {
                Address::Full { host: host.clone(), user: self.login_name.clone() }
            }
            Origin::Inside { .. } => Address::Invalid,
        };
        tracing::info!(client = %self.client, %address, "logged in");
        let (door, end) = (Arc::clone(&self.door), Arc::clone(&self.end));
        self.shared = Some(Shared::new(door, self.client, caller, address, end));
        self.logged_in.cancel();
        Ok(())
    }

    async fn channel_open_session(
        &mut self,
        channel: Channel<Msg>,
        reply: ChannelOpenHandle,
        _session: &mut Session,
    ) -> Result<(), Self::Error> {
        let Some(reply) = self.admit(reply).await else { return Ok(()) };
        let id = channel.id();
        // The read half is dropped: what arrives goes into the inbox, through the callbacks below.
        let (_, write) = channel.split();
        let waiting = Some(Waiting { write, preparation: Preparation::default() });
        self.channels.insert(id, Entry { inbox: Arc::new(Inbox::new()), waiting });
        reply.accept().await;
        Ok(())
    }

    async fn channel_open_direct_tcpip(
        &mut self,
        channel: Channel<Msg>,
        host: &str,
        port: u32,
        _originator: &str,
        _originator_port: u32,
        reply: ChannelOpenHandle,
        session: &mut Session,
    ) -> Result<(), Self::Error> {
        let Some(reply) = self.admit(reply).await else { return Ok(()) };
        match self.tunnel_target(host, port) {
            Ok(host) => {
                reply.accept().await;
                self.tunnel(channel, host, session);
            }
            Err(why) => reply.reject(prohibited(why)).await,
        }
        Ok(())
    }

    async fn channel_open_direct_streamlocal(
        &mut self,
        _channel: Channel<Msg>,
        _path: &str,
        reply: ChannelOpenHandle,
        _session: &mut Session,
    ) -> Result<(), Self::Error> {
        reply.reject(prohibited("the gateway does not forward sockets".to_owned())).await;
        Ok(())
    }

    fn adjust_window(&mut self, _channel: ChannelId, _current: u32) -> u32 {
        // russh has one target for all channels of a connection: the fullest inbox sets it.
        let fullest = self.channels.values().map(|entry| entry.inbox.backlog()).max();
        inbox::credit(fullest.unwrap_or_default())
    }

    async fn data(&mut self, id: ChannelId, data: &[u8], _session: &mut Session) -> Result<(), Self::Error> {
        let Some(entry) = self.channels.get(&id) else { return Ok(()) };
        entry.inbox.push(data);
        if data.len() <= TRICKLE as usize && entry.inbox.backlog() >= WINDOW as usize {
            tokio::time::sleep(TRICKLE_PAUSE).await;
        }
        entry.inbox.within_limit().await;
        Ok(())
    }

    async fn channel_eof(&mut self, id: ChannelId, _session: &mut Session) -> Result<(), Self::Error> {
        if let Some(entry) = self.channels.get(&id) {
            entry.inbox.end();
        }
        Ok(())
    }

    async fn channel_close(&mut self, id: ChannelId, _session: &mut Session) -> Result<(), Self::Error> {
        if let Some(entry) = self.channels.remove(&id) {
            entry.inbox.close();
        }
        Ok(())
    }

    async fn pty_request(
        &mut self,
        id: ChannelId,
        term: &str,
        columns: u32,
        rows: u32,
        width_px: u32,
        height_px: u32,
        modes: &[(Pty, u32)],
        session: &mut Session,
    ) -> Result<(), Self::Error> {
        let request = TerminalRequest { term, size: WindowSize { columns, rows, width_px, height_px }, modes };
        let taken = self.preparation(id).is_some_and(|preparation| preparation.terminal(&request));
        if taken { session.channel_success(id) } else { session.channel_failure(id) }
    }

    async fn env_request(
        &mut self,
        id: ChannelId,
        name: &str,
        value: &str,
        session: &mut Session,
    ) -> Result<(), Self::Error> {
        let door = Arc::clone(&self.door);
        let taken =
            self.preparation(id).is_some_and(|preparation| preparation.variable(&door.config.env, name, value));
        if taken { session.channel_success(id) } else { session.channel_failure(id) }
    }

    async fn shell_request(&mut self, id: ChannelId, session: &mut Session) -> Result<(), Self::Error> {
        self.start(id, session, |preparation| Some(preparation.shell()))
    }

    async fn exec_request(&mut self, id: ChannelId, line: &[u8], session: &mut Session) -> Result<(), Self::Error> {
        self.start(id, session, |preparation| Some(preparation.command(line)))
    }

    async fn subsystem_request(&mut self, id: ChannelId, name: &str, session: &mut Session) -> Result<(), Self::Error> {
        self.start(id, session, |preparation| preparation.subsystem(name))
    }

    async fn window_change_request(
        &mut self,
        id: ChannelId,
        columns: u32,
        rows: u32,
        width_px: u32,
        height_px: u32,
        _session: &mut Session,
    ) -> Result<(), Self::Error> {
        let size = WindowSize { columns, rows, width_px, height_px };
        match self.preparation(id) {
            Some(preparation) => preparation.resize(size),
            None => self.push_aside(id, Aside::Resize(size)),
        }
        Ok(())
    }

    async fn signal(&mut self, id: ChannelId, signal: Sig, _session: &mut Session) -> Result<(), Self::Error> {
        self.push_aside(id, Aside::Signal(signal_name(&signal)));
        Ok(())
    }

    async fn x11_request(
        &mut self,
        id: ChannelId,
        _single: bool,
        _protocol: &str,
        _cookie: &str,
        _screen: u32,
        session: &mut Session,
    ) -> Result<(), Self::Error> {
        // Clients say so themselves: "X11 forwarding request failed".
        session.channel_failure(id)
    }
}
