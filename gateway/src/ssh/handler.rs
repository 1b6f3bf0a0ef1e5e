//! russh's callbacks. None of them waits for anything but a log-in: while one does, nothing else of the connection moves.

use super::address::{self, Address};
use super::connection::{Connection, Entry, Origin, Waiting, prohibited};
use super::inbox::{self, Aside, Inbox, TRICKLE, WINDOW};
use super::shared::Shared;
use super::work::{Preparation, TerminalRequest, signal_name};
use russh::keys::{Certificate, PublicKey};
use russh::server::{
    Auth, ChannelOpenHandle, Handler, Msg, PublicKeyOffer, Response, Session, VerifiedPublicKey,
};
use russh::{Channel, ChannelId, Pty, Sig};
use sallyport_contract::v1::WindowSize;
use std::sync::Arc;
use std::time::Duration;

/// How often a channel that nobody reads may send its two bytes: the pause holds up the rest of the connection,
/// a round trip without it would cost a packet each.
const TRICKLE_PAUSE: Duration = Duration::from_millis(20);

impl Handler for Connection {
    type Error = russh::Error;

    async fn auth_none(&mut self, user: &str) -> Result<Auth, Self::Error> {
        self.note_user(user);
        Ok(self.login.none())
    }

    async fn auth_publickey_offered(
        &mut self,
        _user: &str,
        offer: PublicKeyOffer<'_>,
    ) -> Result<Auth, Self::Error> {
        Ok(self.login.offered(offer.public_key, offer.algorithm).await)
    }

    async fn auth_publickey(&mut self, user: &str, key: VerifiedPublicKey<'_>) -> Result<Auth, Self::Error> {
        self.note_user(user);
        let key: &PublicKey = key.public_key;
        Ok(self.login.proved(key).await)
    }

    async fn auth_openssh_certificate(
        &mut self,
        user: &str,
        certificate: &Certificate,
    ) -> Result<Auth, Self::Error> {
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
        let request =
            TerminalRequest { term, size: WindowSize { columns, rows, width_px, height_px }, modes };
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
        let taken = self
            .preparation(id)
            .is_some_and(|preparation| preparation.variable(&door.config.env, name, value));
        if taken { session.channel_success(id) } else { session.channel_failure(id) }
    }

    async fn shell_request(&mut self, id: ChannelId, session: &mut Session) -> Result<(), Self::Error> {
        self.start(id, session, |preparation| Some(preparation.shell()))
    }

    async fn exec_request(
        &mut self,
        id: ChannelId,
        line: &[u8],
        session: &mut Session,
    ) -> Result<(), Self::Error> {
        self.start(id, session, |preparation| Some(preparation.command(line)))
    }

    async fn subsystem_request(
        &mut self,
        id: ChannelId,
        name: &str,
        session: &mut Session,
    ) -> Result<(), Self::Error> {
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

    async fn signal(
        &mut self,
        id: ChannelId,
        signal: Sig,
        _session: &mut Session,
    ) -> Result<(), Self::Error> {
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
