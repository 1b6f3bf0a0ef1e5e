//! Attending a channel: the control connection to its shepherd, and the relay of its frames.

use std::path::Path;
use std::sync::Arc;

use sallyport_contract::v1::{ChannelEnded, sensor_report};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::{COMMANDS, Handle, Sessions};
use crate::processes;
use crate::relay;
use crate::shepherd::protocol::{CONTROL, Command, Report, line, socket_path};

/// Connects to a shepherd's control side.
pub(super) async fn connect(directory: &Path) -> std::io::Result<UnixStream> {
    let mut stream = UnixStream::connect(socket_path(directory)).await?;
    stream.write_all(&[CONTROL]).await?;
    Ok(stream)
}

impl Sessions {
    /// Attends a channel until it has ended. `go`: its leader still waits.
    pub(super) fn attend(
        self: &Arc<Self>,
        session: &str,
        channel: &str,
        number: u32,
        control: UnixStream,
        go: bool,
    ) {
        let (commands, orders) = mpsc::channel(COMMANDS);
        let stop = CancellationToken::new();
        if go {
            // There is room: it is the first.
            let _ = commands.try_send(Command::Go);
        }
        if let Some(live) = self.tables().live.get_mut(session) {
            let handle = Handle { number, commands };
            live.channels.insert(channel.to_owned(), handle);
            live.idle_since = None;
        }
        let relay = relay::run(self.channel_dir(channel), self.uplink.clone());
        let relay_stop = stop.clone();
        tokio::spawn(async move {
            tokio::select! {
                () = relay_stop.cancelled() => {}
                () = relay => {}
            }
        });
        let (this, session, channel) = (self.clone(), session.to_owned(), channel.to_owned());
        tokio::spawn(async move {
            let done = this.converse(control, orders).await;
            stop.cancel();
            this.ended(&session, &channel, number, done).await;
        });
    }

    /// Passes commands on and hears reports, until the shepherd ends. Whether it said so.
    async fn converse(&self, control: UnixStream, mut orders: mpsc::Receiver<Command>) -> bool {
        let (reader, mut writer) = control.into_split();
        let mut reports = BufReader::new(reader).lines();
        loop {
            tokio::select! {
                report = reports.next_line() => {
                    let Ok(Some(text)) = report else { return false };
                    match serde_json::from_str(&text) {
                        Ok(Report::Done { .. }) => return true,
                        Ok(Report::State { .. }) => {}
                        Err(error) => tracing::warn!(%error, "a report of a shepherd cannot be read"),
                    }
                }
                // Without senders the channel has been forgotten; reports still come.
                Some(command) = orders.recv() => {
                    if writer.write_all(&line(&command)).await.is_err() {
                        return false;
                    }
                }
            }
        }
    }

    pub(super) async fn ended(&self, session: &str, channel: &str, number: u32, done: bool) {
        let known = {
            let mut tables = self.tables();
            match tables.live.get_mut(session) {
                Some(live) => {
                    live.channels.remove(channel);
                    Some(live.number)
                }
                None => None,
            }
        };
        if let Some(session_number) = known.filter(|_| !done) {
            tracing::warn!(
                session,
                channel,
                "the channel's shepherd ended unexpectedly; hanging up its processes"
            );
            processes::signal(&self.kernel, libc::SIGHUP, |task| {
                task.session == session_number && task.channel == number
            });
        }
        let ended = ChannelEnded { session_id: session.to_owned(), channel_id: channel.to_owned() };
        self.uplink.report(sensor_report::Report::Ended(ended));
        let _ = tokio::fs::remove_dir_all(self.channel_dir(channel)).await;
    }
}
