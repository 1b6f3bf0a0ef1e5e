//! Accepts connections and bounds what each may cost.

use super::Door;
use super::connection::{Connection, Origin};
use super::cut::Cut;
use super::login::Login;
use super::shared::{Ending, say_goodbye};
use russh::server::RunningSession;
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// After an accept failed for want of file descriptors, nothing gets better at once.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Between the last words and the cut: clients read them and close.
const GRACE: Duration = Duration::from_secs(2);
/// When the gateway stops, sessions get this long to say so in their terminals and to end.
const LAST_WORDS: Duration = Duration::from_secs(3);
/// When one channel has decided that the connection ends, the others get this long to say why.
const OTHERS: Duration = Duration::from_millis(300);
/// A connection that is neither closed nor cut by then is left to the end of the process.
const SHUTDOWN: Duration = Duration::from_secs(8);

/// Serves until the gateway shuts down and its connections are closed.
pub async fn serve(door: Arc<Door>, listener: TcpListener) {
    let connections = TaskTracker::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = door.shutdown.cancelled() => break,
        };
        match accepted {
            Ok((stream, client)) => {
                let client = SocketAddr::new(client.ip().to_canonical(), client.port());
                connections.spawn(connection(Arc::clone(&door), stream, client));
            }
            Err(err) => {
                tracing::warn!(%err, "a connection could not be accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    drop(listener);
    connections.close();
    if tokio::time::timeout(SHUTDOWN, connections.wait()).await.is_err() {
        tracing::warn!(left = connections.len(), "some connections did not close in time");
    }
}

async fn connection(door: Arc<Door>, stream: TcpStream, client: SocketAddr) {
    let Some(slot) = door.slots.take(client.ip()) else {
        tracing::info!(%client, "too many connections without a log-in; refused");
        // RFC 4253 section 4.2 permits lines before the version. A client that is not there misses nothing.
        let _ = stream
            .try_write(b"sallyport: too many connections are waiting to log in; try again in a minute\r\n");
        return;
    };
    if let Err(err) = stream.set_nodelay(true) {
        tracing::debug!(%client, %err, "no TCP_NODELAY");
    }
    let config = match door.server_config(&door.names()) {
        Ok(config) => config,
        Err(err) => {
            tracing::error!(%err, "no host certificate");
            return;
        }
    };
    let (switch, logged_in, end) =
        (CancellationToken::new(), CancellationToken::new(), Arc::new(Ending::default()));
    let login = Login::new(Arc::clone(&door), client, slot);
    let handler = Connection::new(
        Arc::clone(&door),
        client,
        Origin::Outside,
        login,
        logged_in.clone(),
        Arc::clone(&end),
    );
    let stream = Cut::new(stream, switch.clone());
    drive(&door, client, russh::server::run_stream(config, stream, handler), &logged_in, &end, &switch).await;
}

/// Runs a connection: ends it when it does not log in in time, when it is to end from inside, and when the gateway
/// shuts down.
pub async fn drive(
    door: &Door,
    client: SocketAddr,
    start: impl Future<Output = Result<RunningSession<Connection>, russh::Error>>,
    logged_in: &CancellationToken,
    end: &Ending,
    switch: &CancellationToken,
) {
    // Whatever way this returns, nothing of the connection stays behind.
    let _cut_at_last = switch.clone().drop_guard();
    let mut deadline = pin!(tokio::time::sleep(door.config.login_timeout));
    let started = tokio::select! {
        started = start => started,
        () = &mut deadline => Err(io::Error::from(io::ErrorKind::TimedOut).into()),
        () = door.shutdown.cancelled() => return,
    };
    let running = match started {
        Ok(running) => running,
        Err(err) => {
            tracing::debug!(%client, %err, "not an SSH client, or not in time");
            return;
        }
    };
    let handle = running.handle();
    let mut running = pin!(running);
    tokio::select! {
        result = &mut running => return finished(client, result),
        () = in_time(deadline, logged_in) => {
            tracing::info!(%client, "not logged in in time");
            say_goodbye(&handle, "log-in took too long").await;
        }
        () = end.wanted.cancelled() => {
            tokio::time::sleep(OTHERS).await;
            say_goodbye(&handle, end.reason()).await;
        }
        () = door.shutdown.cancelled() => {
            // They close the connection when they are done.
            let _ = tokio::time::timeout(LAST_WORDS, end.wanted.cancelled()).await;
            say_goodbye(&handle, "the gateway is shutting down; connect again soon").await;
        }
    }
    if let Ok(result) = tokio::time::timeout(GRACE, &mut running).await {
        finished(client, result);
    }
}

/// Resolves only if the deadline passes without a log-in.
async fn in_time(deadline: impl Future<Output = ()>, logged_in: &CancellationToken) {
    tokio::select! {
        () = deadline => {}
        () = logged_in.cancelled() => std::future::pending().await,
    }
}

fn finished(client: SocketAddr, result: Result<(), russh::Error>) {
    match result {
        Ok(()) => tracing::info!(%client, "connection closed"),
        Err(russh::Error::Join(err)) => {
            tracing::error!(%client, %err, "a connection panicked; the others live on")
        }
        Err(err) => tracing::info!(%client, %err, "connection broken"),
    }
}
