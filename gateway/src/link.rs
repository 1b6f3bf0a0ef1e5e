//! The gRPC listener: one TLS port for joining sensors, connected sensors, the console, and the HTTP interface for CI.
//!
//! TLS asks for a client certificate and does not need one: [`sensor`] does, each service knows its own
//! credential. Hostile peers cost a bounded amount: handshakes, connections, streams and messages have limits, and
//! nothing of one connection waits for another.

pub mod enrolment;
mod sensor;
pub mod service;
mod strangers;

use crate::authority::x509::{self, Authority, PeerCertificate, Rotating};
use rustls::server::WebPkiClientVerifier;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
pub(crate) use strangers::network;
use strangers::{Place, Strangers};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::server::Connected;

/// Connections at once: sensors hold one each, consoles one per command.
const CONNECTIONS: usize = 8192;
/// Handshakes at once: what strangers can make us compute.
const HANDSHAKES: usize = 128;
/// A handshake takes this long at most.
const HANDSHAKE_WITHIN: Duration = Duration::from_secs(10);

/// Who is at the other end of a connection.
#[derive(Clone, Debug)]
pub struct Peer {
    /// Address.
    pub address: SocketAddr,
    /// The client certificate, verified by TLS; revocation is checked by the services.
    pub certificate: Option<PeerCertificate>,
}

/// An established TLS connection.
pub struct Connection {
    stream: TlsStream<TcpStream>,
    peer: Peer,
    _permit: OwnedSemaphorePermit,
    /// Held unless a sensor's certificate was shown.
    _stranger: Option<Place>,
}

/// The TLS settings of the listener.
///
/// # Errors
/// The CA is not usable.
pub fn tls(authority: &Authority, certificate: Arc<Rotating>) -> anyhow::Result<rustls::ServerConfig> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut roots = rustls::RootCertStore::empty();
    roots.add(authority.certificate_der().clone())?;
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone())
        .allow_unauthenticated()
        .build()?;
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(verifier)
        .with_cert_resolver(certificate);
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    // A resumed session would skip the check of a certificate that was revoked or ended since.
    config.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(config)
}

/// Accepts until `shutdown`; established connections come out of the receiver.
pub fn accept(
    listener: TcpListener,
    config: rustls::ServerConfig,
    shutdown: CancellationToken,
) -> mpsc::Receiver<io::Result<Connection>> {
    // One at a time: the server takes them at once.
    let (ready, connections) = mpsc::channel(1);
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let open = Arc::new(Semaphore::new(CONNECTIONS));
    let handshakes = Arc::new(Semaphore::new(HANDSHAKES));
    let strangers = Strangers::default();
    tokio::spawn(async move {
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                () = shutdown.cancelled() => return,
            };
            let (stream, address) = match accepted {
                Ok(accepted) => accepted,
                Err(err) => {
                    // Out of file descriptors, mostly: wait for some to be free rather than spin.
                    tracing::warn!(%err, "cannot accept a connection");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            };
            let Some(place) = strangers.admit(address.ip()) else {
                tracing::debug!(%address, "refused a connection: too many without a sensor's certificate");
                continue;
            };
            let Ok(permit) = open.clone().try_acquire_owned() else {
                tracing::warn!(%address, "refused a connection: {CONNECTIONS} are open");
                continue;
            };
            let (acceptor, ready, handshakes) = (acceptor.clone(), ready.clone(), handshakes.clone());
            tokio::spawn(async move {
                let established = async {
                    let _turn = handshakes.acquire().await;
                    stream.set_nodelay(true)?;
                    acceptor.accept(stream).await
                };
                match tokio::time::timeout(HANDSHAKE_WITHIN, established).await {
                    Ok(Ok(stream)) => {
                        let certificate = stream
                            .get_ref()
                            .1
                            .peer_certificates()
                            .and_then(|c| c.first())
                            .and_then(x509::peer);
                        let stranger = certificate.is_none().then_some(place);
                        let peer = Peer { address, certificate };
                        // The server is gone at shutdown.
                        let _ = ready
                            .send(Ok(Connection { stream, peer, _permit: permit, _stranger: stranger }))
                            .await;
                    }
                    Ok(Err(err)) => tracing::info!(%address, %err, "refused a connection: no TLS"),
                    Err(_) => tracing::info!(%address, "refused a connection: the handshake took too long"),
                }
            });
        }
    });
    connections
}

impl Connected for Connection {
    type ConnectInfo = Peer;
    fn connect_info(&self) -> Peer {
        self.peer.clone()
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, data)
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, data)
    }
    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}
