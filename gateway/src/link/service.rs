//! The server on the listener: its services, gRPC and HTTP, and their limits.

use super::{Connection, enrolment, sensor};
use crate::authority::x509::Authority;
use crate::authorize::Authorizer;
use crate::changes::Changes;
use crate::changes::http::Http;
use crate::console;
use crate::policy::MAX_ARCHIVE;
use crate::state::State;
use sallyport_contract::v1::console_server::ConsoleServer;
use sallyport_contract::v1::enrolment_server::EnrolmentServer;
use sallyport_contract::v1::sensor_link_server::SensorLinkServer;
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::Server;

/// A frame has 256 KiB of data at most, a batch of evidence some MiB.
const SENSOR_MESSAGE: usize = 8 << 20;
/// Requests of strangers are small.
const JOIN_MESSAGE: usize = 64 << 10;
/// Streams on one connection: a sensor has one per channel.
const STREAMS: u32 = 2048;
/// HTTP/2 windows: what may be under way on a stream and on a connection. With round trips of some ten
/// milliseconds this is what a channel's throughput needs; memory behind them is bounded by `contract::resume`.
const STREAM_WINDOW: u32 = 4 << 20;
const CONNECTION_WINDOW: u32 = 16 << 20;
/// Larger frames than HTTP/2's 16 KiB: fewer headers per chunk.
const FRAME: u32 = 256 << 10;
const KEEPALIVE: Duration = Duration::from_secs(10);
const KEEPALIVE_WITHIN: Duration = Duration::from_secs(20);

/// What the services need.
pub struct Parts {
    /// Signs.
    pub authority: Arc<Authority>,
    /// State.
    pub state: State,
    /// Everything else.
    pub authorizer: Authorizer,
    /// Changes of policy.
    pub changes: Changes,
    /// How people sign in.
    pub sign_in: Arc<dyn console::SignIn>,
    /// The gateway's name, SSH host and port for ready-made commands.
    pub ssh_command: console::SshCommand,
    /// The gateway stops: no new connections and calls.
    pub shutdown: CancellationToken,
    /// All sessions have ended: streams end too.
    pub streams_end: CancellationToken,
}

/// Serves until shutdown, then lets what is open end for a moment.
///
/// # Errors
/// The server failed.
pub async fn serve(
    connections: mpsc::Receiver<io::Result<Connection>>,
    parts: Parts,
) -> Result<(), tonic::transport::Error> {
    let Parts { authority, state, authorizer, changes, sign_in, ssh_command, shutdown, streams_end } = parts;
    let join = enrolment::Service {
        authority: authority.clone(),
        state: state.clone(),
        authorizer: authorizer.clone(),
    };
    let link = sensor::Service {
        authority: authority.clone(),
        state: state.clone(),
        authorizer: authorizer.clone(),
        streams_end,
    };
    let http = Http::new(changes.clone());
    let console = console::Service {
        authority,
        state,
        authorizer,
        changes,
        sign_in,
        ssh_command,
        shutdown: shutdown.clone(),
    };
    Server::builder()
        // For `/v1/`; gRPC itself is HTTP/2 only.
        .accept_http1(true)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_frame_size(FRAME)
        .max_concurrent_streams(STREAMS)
        .http2_keepalive_interval(Some(KEEPALIVE))
        .http2_keepalive_timeout(Some(KEEPALIVE_WITHIN))
        .http2_max_pending_accept_reset_streams(Some(32))
        .add_service(EnrolmentServer::new(join).max_decoding_message_size(JOIN_MESSAGE))
        .add_service(SensorLinkServer::new(link).max_decoding_message_size(SENSOR_MESSAGE))
        .add_service(ConsoleServer::new(console).max_decoding_message_size(MAX_ARCHIVE + (64 << 10)))
        .add_service(http)
        .serve_with_incoming_shutdown(ReceiverStream::new(connections), shutdown.cancelled_owned())
        .await
}
