//! The inner connection of `ssh -J gateway root@web-1`: it ends here too, under a host certificate for `web-1`, so that it is
//! judged and recorded like any other. The outer connection has proved who it is; nothing more is asked.

use super::Door;
use super::caller::Caller;
use super::connection::{Connection, Origin};
use super::cut::Cut;
use super::inbox::Inbox;
use super::listener;
use super::login::Login;
use super::shared::Ending;
use super::tunnel::Tunnel;
use std::net::SocketAddr;
use std::sync::Arc;
use tokio::io::AsyncWrite;
use tokio_util::sync::CancellationToken;

/// Serves it until either connection ends.
pub async fn serve(
    door: Arc<Door>,
    client: SocketAddr,
    caller: Caller,
    host: String,
    inbox: Arc<Inbox>,
    writer: impl AsyncWrite + Unpin + Send + 'static,
) {
    let (logged_in, end) = (CancellationToken::new(), Arc::new(Ending::default()));
    // When the outer channel closes, a writer may be waiting for a window that never opens.
    let switch = inbox.gone().child_token();
    let stream = Cut::new(Tunnel::new(inbox, writer), switch.clone());
    let config = match door.server_config(std::slice::from_ref(&host)) {
        Ok(config) => config,
        Err(err) => {
            tracing::error!(%err, host, "no host certificate");
            return;
        }
    };
    let login = Login::inherited(Arc::clone(&door), client, caller);
    let origin = Origin::Inside { host };
    let handler =
        Connection::new(Arc::clone(&door), client, origin, login, logged_in.clone(), Arc::clone(&end));
    listener::drive(
        &door,
        client,
        russh::server::run_stream(config, stream, handler),
        &logged_in,
        &end,
        &switch,
    )
    .await;
}
