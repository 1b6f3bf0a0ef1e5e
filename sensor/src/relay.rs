//! The relay: carries a channel's frames between its shepherd's socket and a gRPC stream. It understands none of them.
//!
//! One socket connection per stream: when either breaks, both are made anew, and the ends find out from each other's
//! `attach` what has to be sent again.

use std::io::IoSlice;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::{Buf, BytesMut};
use sallyport_contract::v1::ChannelFrame;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

use crate::frames::{self, FrameError};
use crate::shepherd::protocol::{LINK, socket_path};
use crate::uplink::{Client, Uplink};

/// Frames between socket and stream. At most 128 KiB each: 1 MiB, below which a fast link would run dry.
const UNDER_WAY: usize = 8;
/// After a break, before the next try.
const PAUSE: Duration = Duration::from_millis(250);
/// Read from the socket at once.
const READ: usize = 256 << 10;

#[derive(Debug, thiserror::Error)]
enum Broken {
    #[error("the shepherd's socket failed")]
    Socket(#[from] std::io::Error),
    #[error("the shepherd's frames cannot be read")]
    Frames(#[from] FrameError),
    #[error("the gateway's stream failed")]
    Stream(#[from] Box<tonic::Status>),
    #[error("the gateway closed the stream")]
    Closed,
}

/// Relays until the shepherd's socket is gone.
pub(crate) async fn run(directory: PathBuf, uplink: Uplink) {
    loop {
        let client = uplink.client().await;
        if let Err(error) = once(&directory, client).await {
            tracing::debug!(%error, "a channel's relay broke; connecting again");
        }
        if !socket_path(&directory).exists() {
            return;
        }
        tokio::time::sleep(PAUSE).await;
    }
}

async fn once(directory: &Path, mut client: Client) -> Result<(), Broken> {
    let mut socket = UnixStream::connect(socket_path(directory)).await?;
    socket.write_all(&[LINK]).await?;
    let (reader, writer) = socket.into_split();
    let (frames, outgoing) = mpsc::channel(UNDER_WAY);
    let up = up(reader, frames);
    tokio::pin!(up);
    // The gateway answers only after it has seen the first frame, so both at once.
    let stream = tokio::select! {
        stream = client.channel(ReceiverStream::new(outgoing)) => stream.map_err(Box::new)?.into_inner(),
        broken = &mut up => return broken,
    };
    tokio::select! {
        result = up => result,
        result = down(stream, writer) => result,
    }
}

async fn up(mut reader: OwnedReadHalf, frames: mpsc::Sender<ChannelFrame>) -> Result<(), Broken> {
    let mut buffer = BytesMut::with_capacity(READ);
    loop {
        while let Some(frame) = frames::decode(&mut buffer)? {
            frames.send(frame).await.map_err(|_| Broken::Closed)?;
        }
        buffer.reserve(READ);
        if reader.read_buf(&mut buffer).await? == 0 {
            return Ok(());
        }
    }
}

async fn down(mut stream: Streaming<ChannelFrame>, mut writer: OwnedWriteHalf) -> Result<(), Broken> {
    while let Some(frame) = stream.message().await.map_err(Box::new)? {
        let (mut head, mut data) = frames::encode(&frame);
        while head.has_remaining() || data.has_remaining() {
            let n = writer.write_vectored(&[IoSlice::new(&head), IoSlice::new(&data)]).await?;
            if n == 0 {
                return Err(Broken::Closed);
            }
            let n_head = n.min(head.len());
            head.advance(n_head);
            data.advance(n - n_head);
        }
    }
    Err(Broken::Closed)
}
