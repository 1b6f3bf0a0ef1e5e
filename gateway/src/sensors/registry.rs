//! The sensors that are connected, what they said, and the channels that run through them.

use super::channel::{Connection, FRAMES, Note};
use crate::authorize::EndReason;
use crate::policy::Enforced;
use crate::recorder::{Noted, Recorder};
use crate::sessions::Sessions;
use crate::state::{State, sensors as table};
use sallyport_contract::v1::{
    self, ChannelFrame, EndSession, GatewayOrder, Hello, PolicyStatus, gateway_order::Order,
};
use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::{Status, Streaming};

/// Orders waiting for a sensor's control stream; a sensor that lets them pile up is cut off.
pub(crate) const ORDERS: usize = 256;

/// All sensors. Cheap to clone.
#[derive(Clone)]
pub struct Sensors {
    pub(super) inner: Arc<Inner>,
}

pub(super) struct Inner {
    pub(super) state: State,
    pub(super) recorder: Recorder,
    sessions: Sessions,
    pub(super) grace: Duration,
    next_link: AtomicU64,
    tables: Mutex<Tables>,
    /// Changes whenever a sensor connects, goes, or reports a policy.
    news: watch::Sender<u64>,
    pub(super) tasks: TaskTracker,
}

#[derive(Default)]
pub(super) struct Tables {
    /// Seen at any time; kept when the link goes.
    known: HashMap<String, Facts>,
    live: HashMap<String, Live>,
    pub(super) channels: HashMap<String, ChannelEntry>,
    /// Cancelled when a host's sensor is revoked; for streams that need no control stream.
    revoked: HashMap<String, CancellationToken>,
}

/// What a sensor said about itself.
#[derive(Clone, Debug, Default)]
pub(crate) struct Facts {
    pub(crate) mode: String,
    pub(crate) kernel: String,
    pub(crate) connected: bool,
    /// It has said hello since the gateway was started, so the rest is known.
    pub(crate) heard: bool,
    pub(crate) enforced: Enforced,
    /// Of the orders that brought those.
    serials: [u64; 2],
    /// The order that it refused last, and why, unless a later one went well.
    refusal: Option<(u64, String)>,
}

struct Live {
    link: u64,
    orders: mpsc::Sender<GatewayOrder>,
    cut: CancellationToken,
}

pub(super) struct ChannelEntry {
    pub(super) host: String,
    pub(super) session: String,
    pub(super) notes: mpsc::Sender<Note>,
}

/// A sensor's control stream, from hello to its end. Dropping it is the end.
pub(crate) struct Link {
    sensors: Sensors,
    pub(crate) host: String,
    number: u64,
    /// Channels of this host that were there before any order could go over this link.
    channels: Vec<String>,
    /// Cancelled when this link must end: revoked, replaced by a newer one, or too slow.
    pub(crate) cut: CancellationToken,
}

impl Sensors {
    pub(crate) async fn open(
        state: State,
        recorder: Recorder,
        sessions: Sessions,
        grace: Duration,
    ) -> Result<Self, crate::state::StateError> {
        let known = table::all(&state)
            .await?
            .into_iter()
            .map(|known| (known.host, Facts { mode: known.mode, kernel: known.kernel, ..Facts::default() }));
        let tables = Tables { known: known.collect(), ..Tables::default() };
        let inner = Inner {
            state,
            recorder,
            sessions,
            grace,
            next_link: AtomicU64::new(1),
            tables: Mutex::new(tables),
            news: watch::Sender::new(0),
            tasks: TaskTracker::new(),
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// A host joined: from now on it is known, though nothing of it is.
    pub(crate) fn joined(&self, host: &str) {
        self.tables().known.entry(host.to_owned()).or_default();
    }

    /// A sensor said hello. Ends an older link of the same host: the newer one is the truth.
    pub(crate) async fn connected(
        &self,
        host: &str,
        hello: &Hello,
        orders: mpsc::Sender<GatewayOrder>,
    ) -> Link {
        let number = self.inner.next_link.fetch_add(1, Ordering::Relaxed);
        let cut = CancellationToken::new();
        let facts = hello.facts.clone().unwrap_or_default();
        let known = Facts {
            mode: clean(&facts.mode),
            kernel: clean(&facts.kernel),
            connected: true,
            heard: true,
            enforced: Enforced {
                version: clean(&hello.policy_version),
                canary: clean(&hello.canary_version),
            },
            serials: [hello.policy_serial, hello.canary_serial],
            refusal: None,
        };
        let row =
            table::Known { host: host.to_owned(), mode: known.mode.clone(), kernel: known.kernel.clone() };
        let channels;
        {
            let mut tables = self.tables();
            let ours = tables.channels.iter().filter(|(_, entry)| entry.host == host);
            channels = ours.map(|(id, _)| id.clone()).collect();
            tables.known.insert(host.to_owned(), known);
            let live = Live { link: number, orders, cut: cut.clone() };
            if let Some(older) = tables.live.insert(host.to_owned(), live) {
                older.cut.cancel();
            }
        }
        self.tell_news();
        if let Err(err) = table::seen(&self.inner.state, row).await {
            tracing::warn!(host, %err, "cannot remember the sensor");
        }
        Link { sensors: self.clone(), host: host.to_owned(), number, channels, cut }
    }

    /// A sensor reports which policy it enforces.
    pub(crate) fn policy_status(&self, host: &str, status: &PolicyStatus) {
        if let Some(facts) = self.tables().known.get_mut(host) {
            facts.enforced =
                Enforced { version: clean(&status.policy_version), canary: clean(&status.canary_version) };
            facts.serials = [status.policy_serial, status.canary_serial];
            facts.refusal = (!status.error.is_empty()).then(|| (status.serial, clean(&status.error)));
        }
        self.tell_news();
    }

    /// Sends an order to a sensor; false: it is not connected (or does not read, and is cut off).
    pub(crate) fn order(&self, host: &str, order: Order) -> bool {
        let tables = self.tables();
        let Some(live) = tables.live.get(host) else { return false };
        let sent = live.orders.try_send(GatewayOrder { order: Some(order) }).is_ok();
        if !sent {
            live.cut.cancel();
        }
        sent
    }

    /// Sends an order to every connected sensor; gives their hosts.
    pub(crate) fn order_all(&self, order: &Order) -> Vec<String> {
        let hosts: Vec<String> = self.tables().live.keys().cloned().collect();
        hosts.into_iter().filter(|host| self.order(host, order.clone())).collect()
    }

    /// Waits until each of `hosts` has said what became of an order, or has gone, or `within` is over.
    pub(crate) async fn answered(&self, hosts: &[String], serial: u64, within: Duration) {
        let mut news = self.inner.news.subscribe();
        let mut waiting: Vec<&String> = hosts.iter().collect();
        let wait = async {
            loop {
                news.borrow_and_update();
                {
                    let tables = self.tables();
                    waiting.retain(|host| {
                        tables.known.get(*host).is_some_and(|f| f.connected && !f.answered(serial))
                    });
                }
                if waiting.is_empty() || news.changed().await.is_err() {
                    return;
                }
            }
        };
        // Whoever is late is told of as late.
        let _ = tokio::time::timeout(within, wait).await;
    }

    /// Why a host's sensor did not put an order into force; none: it has, or has not answered.
    pub(crate) fn policy_refusal(&self, host: &str, serial: u64) -> Option<String> {
        let tables = self.tables();
        let (refused, why) = tables.known.get(host)?.refusal.as_ref()?;
        (*refused == serial).then(|| why.clone())
    }

    /// What is known of a host's sensor.
    pub(crate) fn facts(&self, host: &str) -> Option<Facts> {
        self.tables().known.get(host).cloned()
    }

    /// Whether a host's sensor is connected.
    pub(crate) fn is_connected(&self, host: &str) -> bool {
        self.tables().live.contains_key(host)
    }

    /// Hosts with connected sensors.
    pub(crate) fn connected_hosts(&self) -> Vec<String> {
        self.tables().live.keys().cloned().collect()
    }

    /// Ends the link, the sessions and the channels of a revoked sensor.
    pub(crate) fn cut_off(&self, host: &str) {
        {
            let mut tables = self.tables();
            tables.known.remove(host);
            let live = tables.live.remove(host).map(|live| live.cut);
            for token in live.into_iter().chain(tables.revoked.remove(host)) {
                token.cancel();
            }
        }
        for session in self.inner.sessions.on_host(host) {
            session.end(EndReason::SensorRevoked { host: host.to_owned() });
        }
        self.tell_news();
    }

    /// Cancelled when this host's sensor is revoked.
    pub(crate) fn revoked_token(&self, host: &str) -> CancellationToken {
        self.tables().revoked.entry(host.to_owned()).or_default().clone()
    }

    /// Cancelled when the host's present link ends; none: it has no control stream.
    pub(crate) fn cut_token(&self, host: &str) -> Option<CancellationToken> {
        self.tables().live.get(host).map(|live| live.cut.clone())
    }

    /// A sensor opened a stream for a channel.
    ///
    /// # Errors
    /// There is no such channel on that host.
    pub(crate) async fn attach(
        &self,
        host: &str,
        channel: &str,
        first: ChannelFrame,
        incoming: Streaming<ChannelFrame>,
    ) -> Result<mpsc::Receiver<Result<ChannelFrame, Status>>, Status> {
        let notes = self.channel_notes(host, channel);
        let notes = notes.ok_or_else(|| Status::not_found("no such channel is running on this host"))?;
        let (outgoing, frames) = mpsc::channel(FRAMES);
        let connection = Connection { first, incoming, outgoing };
        notes
            .send(Note::Attached(Box::new(connection)))
            .await
            .map_err(|_| Status::not_found("the channel has just ended"))?;
        Ok(frames)
    }

    /// A sensor refused to start a channel.
    pub(crate) async fn refused(&self, host: &str, channel: &str, reason: &str) {
        self.note(host, channel, Note::Refused(clean(reason))).await;
    }

    /// A sensor no longer has a channel.
    pub(crate) async fn forgotten(&self, host: &str, channel: &str) {
        self.note(host, channel, Note::Forgotten).await;
    }

    /// After a sensor's hello: channels that it lacks are lost, and sessions that we lack are ended there.
    pub(crate) async fn reconcile(&self, link: &Link, alive: &[v1::LiveChannel]) {
        let host = &link.host;
        for id in link.channels.iter().filter(|id| !alive.iter().any(|channel| channel.channel_id == **id)) {
            self.forgotten(host, id).await;
        }
        let mut unknown: Vec<&str> = alive
            .iter()
            .map(|channel| channel.session_id.as_str())
            .filter(|id| self.inner.sessions.find(id).is_none_or(|session| session.host != *host))
            .collect();
        unknown.sort_unstable();
        unknown.dedup();
        for session_id in unknown {
            let reason = "the gateway was restarted and this session ended with it".to_owned();
            self.order(host, Order::EndSession(EndSession { session_id: session_id.to_owned(), reason }));
        }
    }

    /// Puts markers for what was blocked into the recordings it happened in.
    pub(crate) fn mark(&self, host: &str, noted: &[Noted]) {
        for entry in noted {
            let (Some(label), Some(session)) = (entry.head.marker(), &entry.head.session) else { continue };
            let tables = self.tables();
            let of_session = tables.channels.iter().filter(|(id, channel)| {
                channel.host == host
                    && channel.session == session.id
                    && (session.channel.is_empty() || session.channel == **id)
            });
            for (_, channel) in of_session {
                // A full queue loses the marker, not the record.
                let _ = channel.notes.try_send(Note::Marker(format!("record {}: {label}", entry.index)));
            }
        }
    }

    /// All hosts that ever joined and are not revoked.
    pub(crate) fn known_hosts(&self) -> Vec<String> {
        self.tables().known.keys().cloned().collect()
    }

    /// Runs something that shutdown waits for.
    pub(crate) fn background(&self, work: impl Future<Output = ()> + Send + 'static) {
        self.inner.tasks.spawn(work);
    }

    /// Waits until no channel of a session runs any more. A channel of an ended session ends in bounded time.
    pub(crate) async fn channels_gone(&self, session: &str) {
        let mut news = self.inner.news.subscribe();
        loop {
            news.borrow_and_update();
            if !self.tables().channels.values().any(|entry| entry.session == session)
                || news.changed().await.is_err()
            {
                return;
            }
        }
    }

    /// Waits until every channel's end is on the record.
    pub(crate) async fn drained(&self) {
        self.inner.tasks.close();
        self.inner.tasks.wait().await;
    }

    async fn note(&self, host: &str, channel: &str, note: Note) {
        if let Some(notes) = self.channel_notes(host, channel) {
            // It may just have ended.
            let _ = notes.send(note).await;
        }
    }

    /// Only the channel's own host may speak for it.
    fn channel_notes(&self, host: &str, channel: &str) -> Option<mpsc::Sender<Note>> {
        self.tables()
            .channels
            .get(channel)
            .filter(|entry| entry.host == host)
            .map(|entry| entry.notes.clone())
    }

    pub(super) fn tell_news(&self) {
        self.inner.news.send_modify(|n| *n += 1);
    }

    pub(super) fn tables(&self) -> MutexGuard<'_, Tables> {
        // Held for map operations only, never over an await.
        self.inner.tables.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Facts {
    fn answered(&self, serial: u64) -> bool {
        self.serials.contains(&serial) || self.refusal.as_ref().is_some_and(|(refused, _)| *refused == serial)
    }

    /// Why its sensor did not take its last order; empty: it did.
    pub(crate) fn policy_error(&self) -> &str {
        self.refusal.as_ref().map_or("", |(_, why)| why)
    }

    /// The order that brought what is in force for everybody whom no canary covers.
    pub(crate) fn policy_serial(&self) -> u64 {
        self.serials[0]
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        {
            let mut tables = self.sensors.tables();
            if tables.live.get(&self.host).is_none_or(|live| live.link != self.number) {
                return;
            }
            tables.live.remove(&self.host);
            if let Some(facts) = tables.known.get_mut(&self.host) {
                facts.connected = false;
            }
        }
        self.sensors.tell_news();
    }
}

/// Text of a sensor, for logs, terminals and records: short and without control characters.
pub(crate) fn clean(text: &str) -> String {
    text.chars().take(500).map(|c| if c.is_control() { '?' } else { c }).collect()
}
