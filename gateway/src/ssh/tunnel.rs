//! A channel of one SSH connection as the byte stream of another: the inner connection of `ssh -J`.

use super::inbox::{Arrival, Inbox};
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Reads an inbox, writes a channel.
pub struct Tunnel<W> {
    inbox: Arc<Inbox>,
    writer: W,
}

impl<W> Tunnel<W> {
    /// Joins the two directions.
    pub fn new(inbox: Arc<Inbox>, writer: W) -> Self {
        Self { inbox, writer }
    }
}

impl<W: Unpin> AsyncRead for Tunnel<W> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        // At the end nothing is put in, which is how a reader says so.
        if let Arrival::Data(data) = std::task::ready!(self.inbox.poll_next(cx, buf.remaining())) {
            buf.put_slice(&data);
        }
        Poll::Ready(Ok(()))
    }
}

impl<W: AsyncWrite + Unpin> AsyncWrite for Tunnel<W> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.writer).poll_write(cx, buf)
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.writer).poll_flush(cx)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.writer).poll_shutdown(cx)
    }
}
