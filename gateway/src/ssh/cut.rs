//! A byte stream with a switch: once it is cut, reading and writing fail, so that whoever owns the stream ends.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

/// The stream. Its halves must be used from one task, as russh does: only one waker is kept for the switch.
pub struct Cut<S> {
    inner: S,
    switched: Pin<Box<WaitForCancellationFutureOwned>>,
}

impl<S> Cut<S> {
    /// `inner`, until `switch` is cancelled.
    pub fn new(inner: S, switch: CancellationToken) -> Self {
        Self { inner, switched: Box::pin(switch.cancelled_owned()) }
    }

    fn check(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        match self.switched.as_mut().poll(cx) {
            Poll::Ready(()) => Err(io::ErrorKind::ConnectionAborted.into()),
            Poll::Pending => Ok(()),
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Cut<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.check(cx)?;
        Pin::new(&mut self.inner).poll_read(cx, buf)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Cut<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.check(cx)?;
        Pin::new(&mut self.inner).poll_write(cx, buf)
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.check(cx)?;
        Pin::new(&mut self.inner).poll_flush(cx)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.check(cx)?;
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::AsyncReadExt;

    #[tokio::test]
    async fn a_blocked_reader_is_freed() {
        let (stream, _other) = tokio::io::duplex(8);
        let switch = CancellationToken::new();
        let mut stream = Cut::new(stream, switch.clone());
        let reader = tokio::spawn(async move { stream.read(&mut [0; 8]).await });
        tokio::task::yield_now().await;
        switch.cancel();
        let err = reader.await.expect("no panic").expect_err("cut");
        assert_eq!(err.kind(), io::ErrorKind::ConnectionAborted);
    }
}
