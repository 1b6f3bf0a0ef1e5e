//! Byte movers: nonblocking reads in big steps, gathered writes, the link's queues.

use std::collections::VecDeque;
use std::io::{ErrorKind, IoSlice, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;

use bytes::{Buf, Bytes, BytesMut};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use sallyport_contract::v1::ChannelFrame;

use crate::frames::{self, FrameError, MAX_FRAME};

/// Most bytes read from the program in one step, and so the largest chunk made.
pub(crate) const STEP: usize = 128 << 10;
/// Above so many bytes queued on the link, no more output is read from the program.
pub(crate) const LINK_QUEUE: usize = 1 << 20;
/// Gathered in one write at most (far below IOV_MAX).
const GATHER: usize = 64;

/// What a read came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reading {
    /// So many bytes; the buffer may have been too small for all.
    Bytes(usize),
    /// Nothing now.
    Later,
    /// Nothing ever again.
    End,
}

/// Reads until `buffer` is full or there is nothing more now (terminals give 4 KiB at a time).
pub(crate) fn read_step(fd: impl AsFd, buffer: &mut [u8]) -> Reading {
    let mut filled = 0;
    while filled < buffer.len() {
        match nix::unistd::read(fd.as_fd(), &mut buffer[filled..]) {
            // With something read, the end is found again by the next call.
            Ok(0) if filled == 0 => return Reading::End,
            Ok(0) => break,
            Ok(n) => filled += n,
            Err(Errno::EINTR) => {}
            Err(Errno::EAGAIN) if filled == 0 => return Reading::Later,
            // EIO: the last holder of a terminal's other side is gone.
            Err(error) if filled == 0 && error != Errno::EAGAIN => return Reading::End,
            Err(_) => break,
        }
    }
    Reading::Bytes(filled)
}

/// Makes a descriptor nonblocking.
pub(crate) fn set_nonblocking(fd: impl AsFd) -> nix::Result<()> {
    let flags = OFlag::from_bits_truncate(fcntl(fd.as_fd(), FcntlArg::F_GETFL)?);
    fcntl(fd.as_fd(), FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK)).map(drop)
}

/// The connection that carries frames.
#[derive(Debug)]
pub(crate) struct Link {
    stream: UnixStream,
    incoming: BytesMut,
    outgoing: VecDeque<Bytes>,
    outgoing_bytes: usize,
}

/// The link is of no use any more.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LinkLost {
    /// Closed by the other side.
    #[error("the link was closed")]
    Closed,
    /// Broken.
    #[error("the link broke")]
    Broken(#[source] std::io::Error),
    /// Not frames.
    #[error("the link carried something else than frames")]
    Frames(#[from] FrameError),
}

impl Link {
    /// Takes over a nonblocking stream.
    pub(crate) fn new(stream: UnixStream) -> Self {
        Self { stream, incoming: BytesMut::new(), outgoing: VecDeque::new(), outgoing_bytes: 0 }
    }

    /// The descriptor, for poll.
    pub(crate) fn stream(&self) -> &UnixStream {
        &self.stream
    }

    /// Bytes waiting to be written.
    pub(crate) fn queued(&self) -> usize {
        self.outgoing_bytes
    }

    /// Queues a frame.
    pub(crate) fn push(&mut self, frame: &ChannelFrame) {
        let (head, data) = frames::encode(frame);
        for bytes in [head, data] {
            if !bytes.is_empty() {
                self.outgoing_bytes += bytes.len();
                self.outgoing.push_back(bytes);
            }
        }
    }

    /// Writes what the socket takes.
    ///
    /// # Errors
    /// The link is lost.
    pub(crate) fn flush(&mut self) -> Result<(), LinkLost> {
        while !self.outgoing.is_empty() {
            let slices: Vec<IoSlice<'_>> =
                self.outgoing.iter().take(GATHER).map(|bytes| IoSlice::new(bytes)).collect();
            match self.stream.write_vectored(&slices) {
                Ok(0) => return Err(LinkLost::Closed),
                Ok(n) => self.wrote(n),
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(LinkLost::Broken(error)),
            }
        }
        Ok(())
    }

    fn wrote(&mut self, mut n: usize) {
        self.outgoing_bytes -= n;
        while let Some(front) = self.outgoing.front_mut() {
            if n < front.len() {
                front.advance(n);
                return;
            }
            n -= front.len();
            self.outgoing.pop_front();
        }
    }

    /// Reads once; frames are then had from [`Self::frame`]. At most one incomplete frame stays in memory.
    ///
    /// # Errors
    /// The link is lost.
    pub(crate) fn fill(&mut self, scratch: &mut [u8]) -> Result<(), LinkLost> {
        debug_assert!(self.incoming.len() < 2 * MAX_FRAME);
        match self.stream.read(scratch) {
            Ok(0) => Err(LinkLost::Closed),
            Ok(n) => {
                self.incoming.extend_from_slice(&scratch[..n]);
                Ok(())
            }
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => Ok(()),
            Err(error) => Err(LinkLost::Broken(error)),
        }
    }

    /// The next complete frame that was read.
    ///
    /// # Errors
    /// These are not frames: the link is lost.
    pub(crate) fn frame(&mut self) -> Result<Option<ChannelFrame>, LinkLost> {
        Ok(frames::decode(&mut self.incoming)?)
    }
}

/// Input on its way to the program.
#[derive(Debug, Default)]
pub(crate) struct InputQueue {
    chunks: VecDeque<(u64, Bytes)>,
    /// The frame that said there is no more.
    end: Option<u64>,
}

/// What a write of input came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Feeding {
    /// Go on when the program reads.
    Later,
    /// Everything was written, and there will be more.
    Empty,
    /// Everything was written and there is no more: close the program's input.
    End,
    /// Nobody reads: throw further input away.
    NoReader,
}

impl InputQueue {
    /// Queues a chunk.
    pub(crate) fn push(&mut self, seq: u64, data: Bytes) {
        self.chunks.push_back((seq, data));
    }

    /// Notes that frame `seq` was the end of input.
    pub(crate) fn finish(&mut self, seq: u64) {
        self.end = Some(seq);
    }

    /// Whether there is something to write.
    pub(crate) fn wants_write(&self) -> bool {
        !self.chunks.is_empty()
    }

    /// Writes what the program takes and reports frames that were written whole to `taken`.
    pub(crate) fn feed(&mut self, fd: impl AsFd, mut taken: impl FnMut(u64)) -> Feeding {
        while !self.chunks.is_empty() {
            let slices: Vec<IoSlice<'_>> =
                self.chunks.iter().take(GATHER).map(|(_, data)| IoSlice::new(data)).collect();
            let mut n = match nix::sys::uio::writev(fd.as_fd(), &slices) {
                Ok(n) => n,
                Err(Errno::EAGAIN) => return Feeding::Later,
                Err(Errno::EINTR) => continue,
                Err(_) => return Feeding::NoReader,
            };
            while let Some((seq, data)) = self.chunks.front_mut() {
                if n < data.len() {
                    data.advance(n);
                    break;
                }
                n -= data.len();
                taken(*seq);
                self.chunks.pop_front();
            }
        }
        match self.end.take() {
            Some(seq) => {
                taken(seq);
                Feeding::End
            }
            None => Feeding::Empty,
        }
    }

    /// Throws everything away, as taken.
    pub(crate) fn discard(&mut self, mut taken: impl FnMut(u64)) {
        self.chunks.drain(..).for_each(|(seq, _)| taken(seq));
        self.end.take().into_iter().for_each(taken);
    }
}
