//! The resumable channel: frames arrive exactly once and in order, over connections that break.
//!
//! Sans-IO. Both ends of a channel (the gateway and the shepherd) hold one [`Resumable`]; whatever carries
//! frames between them may be cut at any frame and replaced by another connection. Rules:
//!
//! 1. On every new connection each end sends [`Resumable::attach_frame`] first. Nothing else may be sent
//!    before the peer's `attach` has arrived ([`Resumable::on_frame`] answers it with what to resend).
//! 2. [`Resumable::send`] numbers a frame, keeps it until it is acknowledged, and returns it for writing
//!    if there is a connection. Without one it is kept and goes out after the next attach.
//! 3. Kept frames are limited by [`WINDOW`] bytes: a full window refuses, which is the back-pressure.
//! 4. An acknowledgement means that the peer's *consumer* has taken the frames ([`Resumable::take`]), not that
//!    they arrived. So it is credit too, and no more than a window is ever in memory at either end.
//! 5. Frames may be taken out of order (a hang-up must not wait behind unread input); the acknowledgement
//!    covers the contiguous part.
//!
//! ```text
//!  gateway                        shepherd
//!  attach(received=0)  ───────▶
//!            ◀───────  attach(received=0)
//!  1 chunk, 2 chunk    ───────▶   take(1)
//!            ◀───────  ack(1)
//!            ╳  connection lost, 2 may be lost
//!  attach(received=7)  ───────▶
//!            ◀───────  attach(received=1)
//!  2 chunk             ───────▶
//! ```

use std::collections::VecDeque;

use crate::v1::{Ack, Attach, ChannelFrame, Chunk, channel_frame::Body};

/// Most bytes sent and not acknowledged, per direction, [`FRAME_COST`] included.
pub const WINDOW: usize = 4 << 20;
/// Room beyond [`WINDOW`] that only frames without data may use, so that a signal or hang-up passes a
/// peer that does not read its input.
pub const RESERVE: usize = 64 << 10;
/// Largest [`Chunk::data`] in bytes. A larger one is refused by the receiver.
pub const MAX_CHUNK: usize = 256 << 10;
/// What a frame counts beside its data: about what it takes in memory.
pub const FRAME_COST: usize = 128;
/// An acknowledgement is sent at the latest when this many bytes were taken since the last.
pub const ACK_EVERY: usize = WINDOW / 8;
/// Longest text in a signal, hang-up or exit frame, in bytes.
pub const MAX_TEXT: usize = 4 << 10;

/// One end of a channel. See the module's text.
#[derive(Debug)]
pub struct Resumable {
    channel_id: String,
    link: Link,
    // Outgoing: frames `acked + 1 ..= sent`, oldest first.
    kept: VecDeque<ChannelFrame>,
    kept_cost: usize,
    acked: u64,
    sent: u64,
    // Incoming: frames `taken + 1 ..= received` are with the consumer.
    pending: VecDeque<Pending>,
    pending_cost: usize,
    taken: u64,
    received: u64,
    taken_since_ack: usize,
    ack_sent: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Link {
    /// No connection, or one on which the peer's `attach` has not arrived yet.
    ExpectAttach,
    /// Frames may flow.
    Attached,
}

#[derive(Clone, Copy, Debug)]
struct Pending {
    cost: usize,
    taken: bool,
}

/// What an incoming frame amounts to.
#[derive(Debug, PartialEq)]
pub enum Incoming {
    /// A frame for the consumer, exactly once and in order. Report [`Resumable::take`] with `seq` when it has
    /// really been taken over.
    Deliver {
        /// Its number.
        seq: u64,
        /// What it says; never `Attach` or `Ack`.
        body: Body,
    },
    /// The peer is attached: write these frames first, in order.
    Attached {
        /// Frames that the peer has not received, oldest first.
        resend: Vec<ChannelFrame>,
    },
    /// Acknowledged; there may be room in the window now.
    Acked,
    /// Seen before; nothing to do.
    Duplicate,
}

/// The window is full: wait until [`Resumable::on_frame`] returns [`Incoming::Acked`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the peer has not acknowledged {WINDOW} bytes yet")]
pub struct WindowFull;

/// The peer broke the rules of the channel. The connection is of no use any more; what can be resumed and
/// what cannot is said by [`PeerMisbehaved::is_fatal`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PeerMisbehaved {
    /// A frame came before `attach`.
    #[error("a frame came before the peer's attach")]
    AttachExpected,
    /// A second `attach` on one connection.
    #[error("a second attach on one connection")]
    AttachTwice,
    /// `attach` for another channel.
    #[error("the peer attached to channel `{got}`, this is `{expected}`")]
    WrongChannel {
        /// This one.
        expected: String,
        /// The peer's.
        got: String,
    },
    /// The peer claims frames that were never sent.
    #[error("the peer claims frame {claimed}, the newest is {newest}")]
    NeverSent {
        /// Claimed by the peer.
        claimed: u64,
        /// The newest sent.
        newest: u64,
    },
    /// The peer wants frames again that it had acknowledged: it lost its state.
    #[error("the peer asks for frames from {wanted}, which it had acknowledged up to {acked}")]
    Forgot {
        /// First frame it lacks.
        wanted: u64,
        /// What it had acknowledged.
        acked: u64,
    },
    /// Frames are missing in between.
    #[error("frame {got} came where {expected} was due")]
    Gap {
        /// Due.
        expected: u64,
        /// Came.
        got: u64,
    },
    /// More bytes than the window allows.
    #[error("the peer sent more than its window of {WINDOW} bytes")]
    WindowExceeded,
    /// A chunk or text beyond the limits.
    #[error("a frame of {bytes} bytes is too large")]
    TooLarge {
        /// Its size.
        bytes: usize,
    },
    /// A frame that has no body, or has a number where none belongs, or none where one does.
    #[error("a malformed frame")]
    Malformed,
}

impl PeerMisbehaved {
    /// Whether the channel is lost, not only this connection.
    #[must_use]
    pub fn is_fatal(&self) -> bool {
        matches!(self, Self::WrongChannel { .. } | Self::NeverSent { .. } | Self::Forgot { .. })
    }
}

impl Resumable {
    /// A channel on which nothing was sent yet.
    #[must_use]
    pub fn new(channel_id: impl Into<String>) -> Self {
        Self {
            channel_id: channel_id.into(),
            link: Link::ExpectAttach,
            kept: VecDeque::new(),
            kept_cost: 0,
            acked: 0,
            sent: 0,
            pending: VecDeque::new(),
            pending_cost: 0,
            taken: 0,
            received: 0,
            taken_since_ack: 0,
            ack_sent: 0,
        }
    }

    /// The channel this is an end of.
    #[must_use]
    pub fn channel_id(&self) -> &str {
        &self.channel_id
    }

    /// The first frame to write on every new connection. Forgets the previous connection.
    pub fn attach_frame(&mut self) -> ChannelFrame {
        self.on_detach();
        let attach = Attach { channel_id: self.channel_id.clone(), received: self.received };
        ChannelFrame { seq: 0, body: Some(Body::Attach(attach)) }
    }

    /// The connection is gone; until the next attach frames are only kept.
    pub fn on_detach(&mut self) {
        self.link = Link::ExpectAttach;
    }

    /// Whether frames can flow now.
    #[must_use]
    pub fn is_attached(&self) -> bool {
        self.link == Link::Attached
    }

    /// Bytes of data that [`Self::send`] surely takes now as one chunk; 0: none.
    #[must_use]
    pub fn room(&self) -> usize {
        WINDOW.saturating_sub(self.kept_cost).saturating_sub(FRAME_COST)
    }

    /// Frames sent and not acknowledged.
    #[must_use]
    pub fn unacked(&self) -> usize {
        self.kept.len()
    }

    /// Bytes kept for sending again, [`FRAME_COST`] included.
    #[must_use]
    pub fn kept_bytes(&self) -> usize {
        self.kept_cost
    }

    /// Bytes delivered and not taken by the consumer, [`FRAME_COST`] included.
    #[must_use]
    pub fn pending_bytes(&self) -> usize {
        self.pending_cost
    }

    /// Numbers and keeps a frame. Returns it if it is to be written now, `None` if there is no connection (it will
    /// be among those resent).
    ///
    /// # Errors
    /// The window is full; nothing was changed.
    pub fn send(&mut self, body: Body) -> Result<Option<ChannelFrame>, WindowFull> {
        let cost = cost(&body);
        let limit = if matches!(body, Body::Chunk(_)) { WINDOW } else { WINDOW + RESERVE };
        if self.kept_cost + cost > limit {
            return Err(WindowFull);
        }
        self.sent += 1;
        self.kept_cost += cost;
        let frame = ChannelFrame { seq: self.sent, body: Some(body) };
        // Payloads are reference-counted, so keeping a frame does not copy its data.
        self.kept.push_back(frame.clone());
        Ok(self.is_attached().then_some(frame))
    }

    /// Takes one frame from the connection.
    ///
    /// # Errors
    /// The peer broke the rules: drop the connection. See [`PeerMisbehaved::is_fatal`].
    pub fn on_frame(&mut self, frame: ChannelFrame) -> Result<Incoming, PeerMisbehaved> {
        let ChannelFrame { seq, body: Some(body) } = frame else {
            return Err(PeerMisbehaved::Malformed);
        };
        match body {
            Body::Attach(attach) if seq == 0 => self.on_attach(&attach),
            Body::Ack(ack) if seq == 0 => self.on_ack(&ack),
            Body::Attach(_) | Body::Ack(_) => Err(PeerMisbehaved::Malformed),
            _ if seq == 0 => Err(PeerMisbehaved::Malformed),
            body => self.on_numbered(seq, body),
        }
    }

    /// The consumer has taken frame `seq`. Unknown and repeated numbers are ignored.
    pub fn take(&mut self, seq: u64) {
        let Some(index) = seq.checked_sub(self.taken + 1).and_then(|i| usize::try_from(i).ok()) else {
            return;
        };
        if let Some(pending) = self.pending.get_mut(index) {
            pending.taken = true;
        }
        while let Some(front) = self.pending.front().filter(|front| front.taken) {
            self.pending_cost -= front.cost;
            self.taken_since_ack += front.cost;
            self.taken += 1;
            self.pending.pop_front();
        }
    }

    /// An acknowledgement to write now, if one is due: [`ACK_EVERY`] bytes were taken, or `idle` (the caller has
    /// nothing else to do) and anything was.
    pub fn ack_due(&mut self, idle: bool) -> Option<ChannelFrame> {
        let due =
            self.is_attached() && self.taken > self.ack_sent && (idle || self.taken_since_ack >= ACK_EVERY);
        due.then(|| {
            self.taken_since_ack = 0;
            self.ack_sent = self.taken;
            ChannelFrame { seq: 0, body: Some(Body::Ack(Ack { received: self.taken })) }
        })
    }

    fn on_attach(&mut self, attach: &Attach) -> Result<Incoming, PeerMisbehaved> {
        if self.is_attached() {
            return Err(PeerMisbehaved::AttachTwice);
        }
        if attach.channel_id != self.channel_id {
            return Err(PeerMisbehaved::WrongChannel {
                expected: self.channel_id.clone(),
                got: attach.channel_id.clone(),
            });
        }
        if attach.received > self.sent {
            return Err(PeerMisbehaved::NeverSent { claimed: attach.received, newest: self.sent });
        }
        if attach.received < self.acked {
            return Err(PeerMisbehaved::Forgot { wanted: attach.received + 1, acked: self.acked });
        }
        self.link = Link::Attached;
        // An acknowledgement may have been lost with the old connection: say it again.
        self.ack_sent = 0;
        let resend = self.kept.iter().filter(|frame| frame.seq > attach.received).cloned().collect();
        Ok(Incoming::Attached { resend })
    }

    fn on_ack(&mut self, ack: &Ack) -> Result<Incoming, PeerMisbehaved> {
        if !self.is_attached() {
            return Err(PeerMisbehaved::AttachExpected);
        }
        if ack.received > self.sent {
            return Err(PeerMisbehaved::NeverSent { claimed: ack.received, newest: self.sent });
        }
        while self.acked < ack.received {
            let Some(frame) = self.kept.pop_front() else { break };
            self.kept_cost -= frame.body.as_ref().map_or(0, cost);
            self.acked += 1;
        }
        Ok(Incoming::Acked)
    }

    fn on_numbered(&mut self, seq: u64, body: Body) -> Result<Incoming, PeerMisbehaved> {
        if !self.is_attached() {
            return Err(PeerMisbehaved::AttachExpected);
        }
        if seq <= self.received {
            return Ok(Incoming::Duplicate);
        }
        if seq != self.received + 1 {
            return Err(PeerMisbehaved::Gap { expected: self.received + 1, got: seq });
        }
        check_size(&body)?;
        let cost = cost(&body);
        if self.pending_cost + cost > WINDOW + RESERVE {
            return Err(PeerMisbehaved::WindowExceeded);
        }
        self.received = seq;
        self.pending_cost += cost;
        self.pending.push_back(Pending { cost, taken: false });
        Ok(Incoming::Deliver { seq, body })
    }
}

fn cost(body: &Body) -> usize {
    FRAME_COST
        + match body {
            Body::Chunk(Chunk { data, .. }) => data.len(),
            Body::Signal(name) => name.len(),
            Body::Hangup(hangup) => hangup.reason.len(),
            Body::Exit(exit) => exit.message.len(),
            Body::Attach(_) | Body::Ack(_) | Body::Eof(_) | Body::Resize(_) => 0,
        }
}

fn check_size(body: &Body) -> Result<(), PeerMisbehaved> {
    let data = cost(body) - FRAME_COST;
    let limit = if matches!(body, Body::Chunk(_)) { MAX_CHUNK } else { MAX_TEXT };
    if data > limit { Err(PeerMisbehaved::TooLarge { bytes: data }) } else { Ok(()) }
}

/// Fuzz entry: any sequence of frames leaves an end within its bounds.
pub fn fuzz_resume(bytes: &[u8]) {
    use prost::Message as _;
    let mut end = Resumable::new("fuzz");
    let mut rest = bytes;
    while let Ok(frame) = ChannelFrame::decode_length_delimited(&mut rest) {
        match end.on_frame(frame) {
            Ok(Incoming::Deliver { seq, .. }) if seq % 3 != 0 => end.take(seq),
            Ok(_) => {}
            Err(_) => end.on_detach(),
        }
        let _ = end.ack_due(rest.len().is_multiple_of(2));
        assert!(end.pending_bytes() <= WINDOW + RESERVE && end.kept_bytes() <= WINDOW + RESERVE);
    }
}

#[cfg(test)]
mod tests;
