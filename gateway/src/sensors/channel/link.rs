//! The side of a channel that faces its host: attaching, frames in, frames out, acknowledgements.

use super::{CHUNK, Channel, Connection, EXIT_WITHIN, FRAMES, Stop, Waiting};
use crate::recorder::cast::Stream;
use crate::sensors::Output;
use sallyport_contract::resume::{Incoming, PeerMisbehaved};
use sallyport_contract::v1::channel_frame::Body;
use sallyport_contract::v1::{self, ChannelFrame, Chunk};
use tokio::time::Instant;
use tonic::Status;

impl Channel {
    pub(super) async fn attached(&mut self, connection: Connection) -> Result<(), Stop> {
        // A new connection replaces an old one that may not have noticed its end yet.
        let Connection { first, .. } = &connection;
        let first = first.clone();
        let attach = self.end.attach_frame();
        self.link = Some(connection);
        self.write_frame(attach);
        self.arrived(Some(first)).await?;
        if self.end.is_attached() {
            // What was taken while there was no connection: the host may be waiting to hear of it.
            self.acknowledge();
            if let Some(started) = self.started.take() {
                let _ = started.send(Ok(()));
            }
            if matches!(self.deadline, Some((_, Waiting::Start | Waiting::Reattach))) {
                self.deadline = self.hung_up.then(|| (Instant::now() + EXIT_WITHIN, Waiting::Exit));
            }
        }
        Ok(())
    }

    /// A frame, or the end of the connection.
    pub(super) async fn arrived(&mut self, frame: Option<ChannelFrame>) -> Result<(), Stop> {
        let Some(frame) = frame else {
            self.detach();
            return Ok(());
        };
        match self.end.on_frame(frame) {
            Ok(Incoming::Deliver { seq, body }) => self.deliver(seq, body).await,
            Ok(Incoming::Attached { resend }) => {
                for frame in resend {
                    self.write_frame(frame);
                }
                Ok(())
            }
            Ok(Incoming::Acked | Incoming::Duplicate) => Ok(()),
            Err(err) => self.misbehaved(&err),
        }
    }

    fn misbehaved(&mut self, err: &PeerMisbehaved) -> Result<(), Stop> {
        tracing::warn!(channel = self.id, host = self.session.host, %err, "the sensor broke the channel's rules");
        if let Some(link) = self.link.take() {
            let _ = link.outgoing.try_send(Err(Status::failed_precondition(err.to_string())));
        }
        self.detach();
        if err.is_fatal() {
            return Err(Stop::Lost(format!("{} lost track of this channel: {err}", self.session.host)));
        }
        Ok(())
    }

    async fn deliver(&mut self, seq: u64, body: Body) -> Result<(), Stop> {
        let output = match body {
            Body::Chunk(Chunk { stream, data }) => {
                let (to, output) = if stream == i32::from(v1::Stream::Stderr) {
                    (Stream::Stderr, Output::Stderr(data.clone()))
                } else {
                    (Stream::Stdout, Output::Stdout(data.clone()))
                };
                self.recording.output(to, &data);
                self.write().await?;
                Some(output)
            }
            Body::Eof(_) => Some(Output::Eof),
            Body::Exit(exit) => {
                self.exit = Some((seq, exit.clone()));
                Some(Output::Exit(exit))
            }
            // Frames that only we send.
            Body::Resize(_) | Body::Signal(_) | Body::Hangup(_) | Body::Attach(_) | Body::Ack(_) => None,
        };
        let delivered = match (&self.output, output) {
            (Some(to), Some(output)) => to.send((seq, output)).is_ok(),
            _ => false,
        };
        if !delivered {
            self.end.take(seq);
            self.acknowledge();
        }
        Ok(())
    }

    pub(super) fn take_up_to(&mut self, seq: u64) {
        for taken in self.taken_seen + 1..=seq {
            self.end.take(taken);
        }
        self.taken_seen = self.taken_seen.max(seq);
        self.acknowledge();
    }

    /// Nobody reads: everything delivered counts as taken.
    pub(super) fn take_all(&mut self) {
        let newest = self.taken_seen + u64::try_from(FRAMES).unwrap_or(u64::MAX);
        for seq in self.taken_seen + 1..=newest {
            self.end.take(seq);
        }
        self.acknowledge();
    }

    pub(super) fn acknowledge(&mut self) {
        // Idle when the consumer has everything: then the host should know at once.
        let idle = self.end.pending_bytes() == 0;
        if let Some(ack) = self.end.ack_due(idle) {
            self.write_frame(ack);
        }
    }

    pub(super) fn send_rest(&mut self) {
        if let Some(mut data) = self.rest.take() {
            let piece = data.split_to(data.len().min(CHUNK));
            self.rest = (!data.is_empty()).then_some(data);
            if !piece.is_empty() {
                self.send(Body::Chunk(Chunk { stream: v1::Stream::Stdin.into(), data: piece }));
            }
        }
    }

    pub(super) fn send(&mut self, body: Body) {
        match self.end.send(body) {
            Ok(Some(frame)) => self.write_frame(frame),
            Ok(None) => {}
            // Data is only sent with room, the rest only with room in the reserve.
            Err(err) => tracing::debug!(channel = self.id, %err, "frame dropped"),
        }
    }

    fn write_frame(&mut self, frame: ChannelFrame) {
        let Some(link) = &self.link else { return };
        if link.outgoing.try_send(Ok(frame)).is_err() {
            // It does not read, or has gone: what was not acknowledged is resent when it comes back.
            self.detach();
        }
    }

    pub(super) fn detach(&mut self) {
        self.link = None;
        self.end.on_detach();
        if self.deadline.is_none() || matches!(self.deadline, Some((_, Waiting::Exit))) {
            // A channel that was told to end is not waited for as one that somebody works in.
            let within = if self.hung_up { self.grace.min(EXIT_WITHIN) } else { self.grace };
            self.deadline = Some((Instant::now() + within, Waiting::Reattach));
        }
    }
}
