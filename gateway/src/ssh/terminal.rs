//! The client's end of one channel: where output, messages and the exit status go.
//!
//! Writing waits for the client's window and for the connection, and for nothing once the client has closed
//! the channel: russh's own halves would then wait for a window that never comes.

use super::inbox::Inbox;
use super::work::signal;
use bytes::Bytes;
use russh::server::{Handle, Msg};
use russh::{ChannelId, ChannelWriteHalf};
use std::sync::Arc;
use std::time::Duration;

/// Extended data of type 1 is stderr (RFC 4254 section 5.2).
const STDERR: u32 = 1;
/// A client that takes nothing cannot hold up the end of its channel for longer.
const PATIENCE: Duration = Duration::from_secs(5);

/// The client has closed the channel or is gone.
#[derive(Debug)]
pub struct Gone;

/// How a channel ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// With this status.
    Code(u32),
    /// Killed.
    Signal {
        /// Without `SIG`.
        name: String,
        /// It left a core.
        core_dumped: bool,
        /// For people.
        message: String,
    },
    /// Nobody is there to be told.
    Gone,
}

/// One channel.
pub struct Terminal {
    /// What comes from the client.
    pub inbox: Arc<Inbox>,
    /// The client's terminal is in raw mode: lines end with CR and LF.
    pub is_raw: bool,
    write: ChannelWriteHalf<Msg>,
    handle: Handle,
}

impl Terminal {
    /// Joins what belongs to one channel.
    pub fn new(inbox: Arc<Inbox>, is_raw: bool, write: ChannelWriteHalf<Msg>, handle: Handle) -> Self {
        Self { inbox, is_raw, write, handle }
    }

    /// Its number, for logs.
    pub fn id(&self) -> ChannelId {
        self.write.id()
    }

    /// Sends output.
    ///
    /// # Errors
    /// Nobody is there.
    pub async fn stdout(&self, data: Bytes) -> Result<(), Gone> {
        self.unless_gone(self.write.data_bytes(data)).await
    }

    /// Sends error output.
    ///
    /// # Errors
    /// Nobody is there.
    pub async fn stderr(&self, data: Bytes) -> Result<(), Gone> {
        self.unless_gone(self.write.extended_data_bytes(STDERR, data)).await
    }

    /// Says something to the person on stderr, each line marked as ours.
    ///
    /// # Errors
    /// Nobody is there.
    pub async fn say(&self, text: &str) -> Result<(), Gone> {
        let ending = if self.is_raw { "\r\n" } else { "\n" };
        let mut marked = String::new();
        for line in text.lines() {
            marked.push_str("sallyport: ");
            // Names in it may come from clients and providers: text, nothing that moves a cursor.
            marked.extend(line.chars().map(|c| if c.is_control() { '?' } else { c }));
            marked.push_str(ending);
        }
        self.stderr(Bytes::from(marked)).await
    }

    /// [`Self::say`], given up if the client takes nothing: for last words.
    pub async fn say_briefly(&self, text: &str) {
        // Nobody there, or nobody listening.
        let _ = tokio::time::timeout(PATIENCE, self.say(text)).await;
    }

    /// Prints lines as the channel's output.
    ///
    /// # Errors
    /// Nobody is there.
    pub async fn print(&self, text: &str) -> Result<(), Gone> {
        let text = if self.is_raw { text.replace('\n', "\r\n") } else { text.to_owned() };
        self.stdout(Bytes::from(text)).await
    }

    /// Tells how it ended and closes the channel.
    pub async fn finish(&self, end: &End) {
        let id = self.write.id();
        let told = async {
            match end {
                End::Gone => {}
                End::Code(code) => self.write.exit_status(*code).await.map_err(|_| ())?,
                End::Signal { name, core_dumped, message } => {
                    self.handle
                        .exit_signal_request(id, signal(name), *core_dumped, message.clone(), String::new())
                        .await?;
                }
            }
            self.handle.eof(id).await?;
            // Also when the client closed it first: closing twice is ignored.
            self.handle.close(id).await
        };
        // The connection may be over, or its client may read nothing: then there is nobody to tell.
        let _ = tokio::time::timeout(PATIENCE, told).await;
        self.inbox.close();
    }

    async fn unless_gone<E>(&self, write: impl Future<Output = Result<(), E>>) -> Result<(), Gone> {
        tokio::select! {
            biased;
            () = self.inbox.gone().cancelled() => Err(Gone),
            written = write => written.map_err(|_| Gone),
        }
    }
}
