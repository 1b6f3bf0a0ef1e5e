//! Connected sensors and the channels that run through them.

mod channel;
pub mod registry;
mod start;

use crate::authorize::{AuthorizedSession, EndReason};
use bytes::Bytes;
use sallyport_contract::v1::{Exit, WindowSize, Work};
use std::sync::Arc;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use tokio::sync::{Notify, mpsc};

/// A channel was not started; nothing ran. `Display` is the text for the person.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The session has ended.
    #[error("{0}")]
    Ended(EndReason),
    /// No sensor of that name is connected.
    #[error(
        "{host} is not connected to the gateway; its sensor may be down or cut off. Try again, or ask whoever runs {host}"
    )]
    Offline {
        /// The host.
        host: String,
    },
    /// The recording or the record of the start cannot be written.
    #[error("nothing was started: it cannot be recorded ({0}). Tell whoever runs the gateway")]
    Unrecorded(String),
    /// The sensor refused.
    #[error("{host} refused to start it: {reason}")]
    Refused {
        /// The host.
        host: String,
        /// Its reason.
        reason: String,
    },
    /// The sensor did not attach in time.
    #[error("{host} did not start it in time; its sensor may be overloaded. Try again")]
    TimedOut {
        /// The host.
        host: String,
    },
}

/// What the person's client sends.
#[derive(Clone, Debug, PartialEq)]
pub enum Input {
    /// Bytes for stdin or the terminal. Any size; it is cut into frames.
    Data(Bytes),
    /// No more of it.
    Eof,
    /// The terminal has a new size.
    Resize(WindowSize),
    /// A signal, without `SIG` (RFC 4254 section 6.10).
    Signal(String),
    /// The client is gone.
    Hangup,
}

/// What the host sends.
#[derive(Clone, Debug, PartialEq)]
pub enum Output {
    /// Bytes of stdout or the terminal.
    Stdout(Bytes),
    /// Bytes of stderr.
    Stderr(Bytes),
    /// No more output of either stream; the exit may still be to come.
    Eof,
    /// How it ended: always the last.
    Exit(Exit),
}

/// The channel is over; what was sent goes nowhere.
#[derive(Debug, thiserror::Error)]
#[error("the channel is closed")]
pub struct ChannelClosed;

/// A running channel on a host. The halves may live in two tasks; dropping the output half hangs up.
pub struct HostChannel {
    /// Towards the host.
    pub input: ChannelInput,
    /// From the host.
    pub output: ChannelOutput,
}

/// Towards the host.
#[derive(Clone)]
pub struct ChannelInput {
    data: mpsc::Sender<Input>,
    urgent: mpsc::Sender<Input>,
}

/// From the host.
pub struct ChannelOutput {
    frames: mpsc::UnboundedReceiver<(u64, Output)>,
    taken: Arc<Taken>,
    lost: Arc<OnceLock<String>>,
}

/// How far the consumer has come; read by the channel's task.
#[derive(Default)]
struct Taken {
    seq: AtomicU64,
    changed: Notify,
}

impl ChannelInput {
    /// Sends; waits while the host takes no more. Signals, sizes and hang-ups do not wait behind data.
    ///
    /// # Errors
    /// The channel is over.
    pub async fn send(&self, input: Input) -> Result<(), ChannelClosed> {
        let queue = match input {
            Input::Data(_) | Input::Eof => &self.data,
            Input::Resize(_) | Input::Signal(_) | Input::Hangup => &self.urgent,
        };
        queue.send(input).await.map_err(|_| ChannelClosed)
    }
}

impl ChannelOutput {
    /// The next output. `None` without an [`Output::Exit`] before it: the channel was lost, see
    /// [`Self::lost`]. Only what was received here is acknowledged to the host, so a slow caller slows the host's
    /// program and nothing else. Cancel-safe.
    pub async fn recv(&mut self) -> Option<Output> {
        let (seq, output) = self.frames.recv().await?;
        self.taken.seq.store(seq, Ordering::Release);
        self.taken.changed.notify_one();
        Some(output)
    }

    /// Why the channel was lost, once [`Self::recv`] gave `None` without an exit: a sentence for the person.
    #[must_use]
    pub fn lost(&self) -> Option<String> {
        self.lost.get().cloned()
    }
}

impl AuthorizedSession {
    /// Opens the channel's recording, orders the sensor to start `work`, and waits until it is attached.
    ///
    /// # Errors
    /// Nothing was started: see [`StartError`].
    pub async fn start_channel(&self, work: Work) -> Result<HostChannel, StartError> {
        self.sensors().start_channel(self.live().clone(), work).await
    }
}
