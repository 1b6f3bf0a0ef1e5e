//! The task of one channel: the gateway's end of `contract::resume`, between the person's client and
//! the host, with the recording in between.
//!
//! Memory is bounded by the windows of `contract::resume`: input is taken from the client only while
//! there is room towards the host; output is acknowledged only when the client took it.

mod link;

use super::{ChannelInput, ChannelOutput, HostChannel, Input, Output, StartError, Taken};
use crate::authorize::EndReason;
use crate::recorder::recording::{Finished, RecordingError, RecordingOpen};
use crate::sessions::LiveSession;
use bytes::Bytes;
use sallyport_contract::resume::{MAX_TEXT, RESERVE, Resumable, WINDOW};
use sallyport_contract::v1::channel_frame::Body;
use sallyport_contract::v1::{self, ChannelFrame, Exit, Hangup, exit};
use std::sync::atomic::Ordering;
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, sleep_until};
use tonic::{Status, Streaming};

/// Frames towards the sensor that its connection has not taken. A window holds this many at most (its
/// frames cost 128 bytes each), so that only a peer that does not read at all fills it.
pub(super) const FRAMES: usize = 40_000;
/// Inputs waiting; a client's data beyond the window to the host waits at the client.
const INPUTS: usize = 4;
/// Signals and window sizes waiting.
const URGENT: usize = 64;
/// Size of a frame of input in bytes: large enough for throughput, small enough to share a link.
const CHUNK: usize = 64 * 1024;
/// A sensor that was ordered to start a channel attaches within this time.
const START_WITHIN: Duration = Duration::from_secs(20);
/// After the session's end a channel gets this long to report its exit.
const EXIT_WITHIN: Duration = Duration::from_secs(10);
/// After the exit was delivered, this long for the last acknowledgement to leave.
const LAST_ACK: Duration = Duration::from_secs(5);

/// What others tell a channel.
pub(super) enum Note {
    /// Its sensor opened a stream for it.
    Attached(Box<Connection>),
    /// Its sensor refused to start it.
    Refused(String),
    /// Its sensor says that it is over and knows no more of it.
    Forgotten,
    /// Something was blocked in it: for its recording.
    Marker(String),
}

/// A stream of the sensor for this channel.
pub(super) struct Connection {
    /// Its first frame, an `attach`.
    pub(super) first: ChannelFrame,
    /// From the sensor.
    pub(super) incoming: Streaming<ChannelFrame>,
    /// To the sensor.
    pub(super) outgoing: mpsc::Sender<Result<ChannelFrame, Status>>,
}

/// How a channel ended.
pub(super) struct Ended {
    /// The exit status, if it came.
    pub(super) exit: Option<Exit>,
    /// Otherwise: why the channel was lost.
    pub(super) lost: Option<String>,
    /// The recording, or why there is none.
    pub(super) recording: Result<Finished, RecordingError>,
}

/// The task's state.
pub(super) struct Channel {
    id: String,
    session: Arc<LiveSession>,
    session_end: watch::Receiver<Option<EndReason>>,
    grace: Duration,
    end: Resumable,
    link: Option<Connection>,
    /// When the channel is given up unless something happens before.
    deadline: Option<(Instant, Waiting)>,
    data: mpsc::Receiver<Input>,
    urgent: mpsc::Receiver<Input>,
    notes: mpsc::Receiver<Note>,
    output: Option<mpsc::UnboundedSender<(u64, Output)>>,
    taken: Arc<Taken>,
    taken_seen: u64,
    lost: Arc<OnceLock<String>>,
    started: Option<oneshot::Sender<Result<(), StartError>>>,
    /// Input cut from a larger piece.
    rest: Option<Bytes>,
    input_over: bool,
    hung_up: bool,
    exit: Option<(u64, Exit)>,
    recording: RecordingOpen,
}

/// What a deadline waits for.
#[derive(Clone, Copy, PartialEq)]
enum Waiting {
    Start,
    Reattach,
    Exit,
    LastAck,
}

/// Why the task stops.
enum Stop {
    Done,
    Lost(String),
}

/// Makes a channel: its task, the owner's halves, and how others reach it.
#[allow(clippy::type_complexity, reason = "the three ends of one channel, taken apart at once")]
pub(super) fn new(
    id: &str,
    session: Arc<LiveSession>,
    recording: RecordingOpen,
    grace: Duration,
) -> (Channel, HostChannel, mpsc::Sender<Note>, oneshot::Receiver<Result<(), StartError>>) {
    let (data_in, data) = mpsc::channel(INPUTS);
    let (urgent_in, urgent) = mpsc::channel(URGENT);
    let (notes_in, notes) = mpsc::channel(URGENT);
    // Unbounded, but never holds more than a window: what lies here is not acknowledged.
    let (output, frames) = mpsc::unbounded_channel();
    let (started, start) = oneshot::channel();
    let (taken, lost) = (Arc::new(Taken::default()), Arc::new(OnceLock::new()));
    let host = HostChannel {
        input: ChannelInput { data: data_in, urgent: urgent_in },
        output: ChannelOutput { frames, taken: taken.clone(), lost: lost.clone() },
    };
    let channel = Channel {
        id: id.to_owned(),
        session_end: session.end_watch(),
        session,
        grace,
        end: Resumable::new(id),
        link: None,
        deadline: Some((Instant::now() + START_WITHIN, Waiting::Start)),
        data,
        urgent,
        notes,
        output: Some(output),
        taken,
        taken_seen: 0,
        lost,
        started: Some(started),
        rest: None,
        input_over: false,
        hung_up: false,
        exit: None,
        recording,
    };
    (channel, host, notes_in, start)
}

impl Channel {
    /// Runs to the channel's end.
    pub(super) async fn run(mut self) -> Ended {
        let stop = loop {
            match self.turn().await {
                Ok(()) => {}
                Err(stop) => break stop,
            }
        };
        let exit = self.exit.take().map(|(_, exit)| exit);
        let lost = match stop {
            Stop::Lost(why) if exit.is_none() => Some(why),
            _ => None,
        };
        if let Some(why) = &lost {
            // Set before the output closes: whoever sees the end can read why.
            let _ = self.lost.set(why.clone());
            if let Some(started) = self.started.take() {
                let _ = started
                    .send(Err(StartError::Refused { host: self.session.host.clone(), reason: why.clone() }));
            }
        }
        self.output = None;
        let status = exit.as_ref().and_then(exit_status);
        let recording = self.recording.finish(status).await;
        Ended { exit, lost, recording }
    }

    /// Waits for one thing and does it.
    async fn turn(&mut self) -> Result<(), Stop> {
        let room = self.end.room() > CHUNK;
        let can_send = room && self.exit.is_none();
        if can_send && self.rest.is_some() {
            self.send_rest();
            return Ok(());
        }
        let write_at = self.recording.deadline().map(Instant::from_std);
        let closed = async {
            match &self.output {
                Some(output) => output.closed().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            note = self.notes.recv() => match note {
                Some(note) => self.note(note).await,
                None => Err(Stop::Lost("the gateway is shutting down".to_owned())),
            },
            reason = ended(&mut self.session_end), if !self.hung_up => self.session_ended(reason),
            Some(input) = self.urgent.recv(), if !self.hung_up && self.exit.is_none() => {
                self.urgent(input);
                Ok(())
            }
            () = closed => {
                // Nobody reads any more: what comes is taken for the recording alone.
                self.output = None;
                if self.exit.is_none() {
                    self.hang_up("the client has gone");
                }
                self.take_all();
                Ok(())
            }
            () = self.taken.changed.notified() => {
                self.take_up_to(self.taken.seq.load(Ordering::Acquire));
                Ok(())
            }
            frame = next_frame(&mut self.link) => self.arrived(frame).await,
            input = self.data.recv(), if can_send && !self.input_over => {
                match input {
                    Some(Input::Data(data)) => {
                        self.rest = Some(data);
                        self.send_rest();
                    }
                    Some(_) => {
                        self.input_over = true;
                        self.send(Body::Eof(v1::Eof { stream: v1::Stream::Stdin.into() }));
                    }
                    None => self.input_over = true,
                }
                Ok(())
            }
            () = at(write_at) => self.write().await,
            () = at(self.deadline.map(|(at, _)| at)) => Err(self.given_up()),
        }
        .and_then(|()| self.finished())
    }

    fn session_ended(&mut self, reason: EndReason) -> Result<(), Stop> {
        self.hang_up(&reason.to_string());
        match self.started.take() {
            // Nothing runs yet, so there is no end to wait for.
            Some(started) => {
                let text = reason.to_string();
                let _ = started.send(Err(StartError::Ended(reason)));
                Err(Stop::Lost(text))
            }
            None => Ok(()),
        }
    }

    fn urgent(&mut self, input: Input) {
        // The last of the reserve is for the hang-up: a flood of sizes and signals must not use it up.
        let flooded = self.end.kept_bytes() > WINDOW + RESERVE / 2;
        match input {
            Input::Resize(size) if !flooded => {
                self.recording.resize(size.columns, size.rows);
                self.send(Body::Resize(size));
            }
            Input::Signal(name) if !flooded && name.len() <= MAX_TEXT => self.send(Body::Signal(name)),
            Input::Hangup => self.hang_up("the client has gone"),
            Input::Resize(_) | Input::Signal(_) | Input::Data(_) | Input::Eof => {}
        }
    }

    async fn note(&mut self, note: Note) -> Result<(), Stop> {
        match note {
            Note::Attached(connection) => self.attached(*connection).await,
            Note::Refused(reason) => {
                if let Some(started) = self.started.take() {
                    let host = self.session.host.clone();
                    let _ = started.send(Err(StartError::Refused { host, reason: reason.clone() }));
                }
                Err(Stop::Lost(format!("{} refused to start it: {reason}", self.session.host)))
            }
            Note::Forgotten if self.exit.is_none() => Err(Stop::Lost(format!(
                "{} no longer knows this channel; its host may have been restarted",
                self.session.host
            ))),
            Note::Forgotten => Ok(()),
            Note::Marker(label) => {
                self.recording.marker(&label);
                Ok(())
            }
        }
    }

    /// Writes the recording if it is time; without a recording the session must not go on.
    async fn write(&mut self) -> Result<(), Stop> {
        let Err(err) = self.recording.write_due().await else { return Ok(()) };
        tracing::error!(session = self.session.id, err = %crate::chain(&err), "the recording failed; ending the session");
        self.session.end(EndReason::Unrecorded);
        self.hang_up("this session can no longer be recorded");
        // The link goes with the task: nothing more is forwarded.
        Err(Stop::Lost("this session can no longer be recorded; tell whoever runs the gateway".to_owned()))
    }

    fn hang_up(&mut self, reason: &str) {
        if !self.hung_up {
            self.hung_up = true;
            self.rest = None;
            self.input_over = true;
            self.send(Body::Hangup(Hangup { reason: reason.chars().take(500).collect() }));
            if self.exit.is_none() && self.end.is_attached() {
                self.deadline = Some((Instant::now() + EXIT_WITHIN, Waiting::Exit));
            }
        }
    }

    /// After the exit: done when the host knows that it was taken.
    fn finished(&mut self) -> Result<(), Stop> {
        let Some((seq, _)) = &self.exit else { return Ok(()) };
        if self.end.pending_bytes() == 0 || self.taken_seen >= *seq {
            return Err(Stop::Done);
        }
        if !matches!(self.deadline, Some((_, Waiting::LastAck))) && self.output.is_none() {
            self.deadline = Some((Instant::now() + LAST_ACK, Waiting::LastAck));
        }
        if matches!(self.deadline, Some((_, Waiting::Exit | Waiting::Reattach))) && self.output.is_some() {
            // Everything is here; whether the host comes back no longer matters.
            self.deadline = None;
        }
        Ok(())
    }

    fn given_up(&mut self) -> Stop {
        let host = &self.session.host;
        match self.deadline.map(|(_, waiting)| waiting) {
            Some(Waiting::Start) => {
                if let Some(started) = self.started.take() {
                    let _ = started.send(Err(StartError::TimedOut { host: host.clone() }));
                }
                Stop::Lost(format!("{host} did not start it in time"))
            }
            Some(Waiting::Reattach) if self.session.end_reason().is_none() => Stop::Lost(format!(
                "{host} has been cut off from the gateway for {} seconds; what ran there may still run. Connect again when it is back",
                self.grace.as_secs()
            )),
            Some(Waiting::Exit | Waiting::Reattach) => Stop::Lost(match self.session.end_reason() {
                Some(reason) => reason.to_string(),
                None => format!("{host} did not report the end of the program"),
            }),
            Some(Waiting::LastAck) | None => Stop::Done,
        }
    }
}

async fn next_frame(link: &mut Option<Connection>) -> Option<ChannelFrame> {
    match link {
        // An error of the stream is its end.
        Some(link) => link.incoming.message().await.ok().flatten(),
        None => std::future::pending().await,
    }
}

async fn ended(session: &mut watch::Receiver<Option<EndReason>>) -> EndReason {
    match session.wait_for(Option::is_some).await.as_deref() {
        Ok(Some(reason)) => reason.clone(),
        _ => EndReason::Shutdown,
    }
}

async fn at(deadline: Option<Instant>) {
    match deadline {
        Some(at) => sleep_until(at).await,
        None => std::future::pending().await,
    }
}

/// The status as shells count it; none for signals, which have names in SSH.
fn exit_status(exit: &Exit) -> Option<u32> {
    match exit.status {
        Some(exit::Status::Code(code)) => Some(code),
        _ => None,
    }
}

#[cfg(test)]
mod tests;
