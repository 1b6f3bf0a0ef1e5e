//! What all channels of a connection share, and how a connection is made to end from inside.

use super::Door;
use super::address::Address;
use super::caller::Caller;
use super::hosts::HostSession;
use crate::authorize::Refusal;
use russh::server::Handle;
use sallyport_evidence::record::Identity;
use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tokio::sync::OnceCell;
use tokio_util::sync::CancellationToken;

/// Channels get this long to say why in their own words, and to take the last output of their programs, before
/// the connection is closed under them.
const LAST_WORDS: Duration = Duration::from_secs(4);
/// The message that says goodbye waits this long for its place.
const GOODBYE: Duration = Duration::from_secs(1);

/// Made when authentication succeeds.
pub struct Shared {
    /// The gateway's side.
    pub door: Arc<Door>,
    /// The person's client.
    pub client: SocketAddr,
    /// Who it is.
    pub caller: Caller,
    /// What was asked for.
    pub address: Address,
    session: OnceCell<Arc<dyn HostSession>>,
    end: Arc<Ending>,
}

/// How a connection ends.
#[derive(Default)]
pub struct Ending {
    /// Cancelled when it is to end.
    pub wanted: CancellationToken,
    /// Cancelled when it has ended.
    pub over: CancellationToken,
    reason: OnceLock<String>,
}

impl Ending {
    /// Why, for the client.
    pub fn reason(&self) -> &str {
        self.reason.get().map_or("goodbye", String::as_str)
    }

    fn want(&self, reason: &str) {
        // The first reason is the one that counts.
        let _ = self.reason.set(reason.to_owned());
        self.wanted.cancel();
    }
}

impl Shared {
    /// For a caller who is known or signing in. A sign-in that fails ends the connection, also when no channel
    /// of it is open.
    pub fn new(
        door: Arc<Door>,
        client: SocketAddr,
        caller: Caller,
        address: Address,
        end: Arc<Ending>,
    ) -> Arc<Self> {
        if let Caller::Pending(pending) = &caller {
            let outcome = pending.outcome();
            end_when(&end, async move {
                match outcome.await {
                    Ok(_) => std::future::pending().await,
                    Err(why) => why.to_string(),
                }
            });
        }
        Arc::new(Self { door, client, caller, address, session: OnceCell::new(), end })
    }

    /// The connection's session: opened by the first channel that gets so far, closed with the connection. When it
    /// must end, so must the connection.
    ///
    /// # Errors
    /// Policy, or the host's absence; the next channel asks again.
    pub async fn session(
        &self,
        identity: &Identity,
        host: &str,
        user: Option<&str>,
    ) -> Result<Arc<dyn HostSession>, Refusal> {
        let open = || async {
            let session = self.door.hosts.open_session(identity, host, user, self.client).await?;
            let session: Arc<dyn HostSession> = Arc::from(session);
            let watched = Arc::clone(&session);
            end_when(&self.end, async move { watched.ended().await.to_string() });
            Ok(session)
        };
        self.session.get_or_try_init(open).await.cloned()
    }

    /// Ends the connection, with a reason for the client.
    pub fn disconnect(&self, reason: &str) {
        self.end.want(reason);
    }
}

/// Ends the connection when `reason` comes, unless it is over before.
fn end_when(end: &Arc<Ending>, reason: impl Future<Output = String> + Send + 'static) {
    let end = Arc::clone(end);
    tokio::spawn(async move {
        tokio::select! {
            reason = reason => {
                tokio::time::sleep(LAST_WORDS).await;
                end.want(&reason);
            }
            () = end.over.cancelled() => {}
        }
    });
}

/// Tells the client that the connection ends; waits for nobody.
pub async fn say_goodbye(handle: &Handle, reason: &str) {
    let goodbye = handle.disconnect(russh::Disconnect::ByApplication, reason.to_owned(), "en".to_owned());
    // A client that reads nothing is cut off afterwards.
    let _ = tokio::time::timeout(GOODBYE, goodbye).await;
}
