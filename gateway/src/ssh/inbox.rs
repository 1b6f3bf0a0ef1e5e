//! What a client sent on one channel and nobody has taken yet: bounded, filled without waiting, read by one task.
//!
//! russh gives window credit back when a packet arrives, whether or not anybody takes it, and reads nothing else of the
//! connection while a handler waits. So a handler that waited for a program that reads nothing would stop every
//! other channel, the other direction, and window adjustments too; one that did not wait would keep everything. Instead
//! the credit follows the backlog: [`credit`] shrinks as the inbox fills, down to [`TRICKLE`] bytes. An exhausted
//! window of zero could never be opened again (russh opens windows only when data arrives); two bytes per round
//! trip keep it alive at no cost, and the first of them after the program has read on reopens it.
//!
//! What this cannot do: russh has one target window for all channels of a connection, so while one of them is stalled in
//! mid-upload, another bulk upload on the same connection trickles too. Output, keys, signals and new channels are not
//! touched by it, nor is any other connection.

use bytes::{Buf, Bytes, BytesMut};
use sallyport_contract::v1::WindowSize;
use std::collections::VecDeque;
use std::future::poll_fn;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use tokio_util::sync::CancellationToken;

/// Credit of a channel whose bytes are taken as they come: 40 MiB/s over a way of 100 ms.
pub const WINDOW: u32 = 4 * 1024 * 1024;
/// Least credit; russh opens a window when less than half of it is left.
pub const TRICKLE: u32 = 2;
/// A client that keeps to its windows never gets here: the connection is not read until the inbox is below it.
const LIMIT: usize = 2 * WINDOW as usize;
/// Packets smaller than this are joined, so that a flood of them does not cost an allocation each.
const JOIN: usize = 32 * 1024;
/// Signals and window sizes that wait to be taken. More at once mean nothing to anybody: the oldest are dropped.
const MAX_ASIDE: usize = 64;

/// The window that may be open beside a backlog of so many bytes.
#[must_use]
pub fn credit(backlog: usize) -> u32 {
    let backlog = u32::try_from(backlog).unwrap_or(u32::MAX);
    WINDOW.saturating_sub(backlog).max(TRICKLE)
}

/// The next of a channel's bytes.
#[derive(Debug, PartialEq)]
pub enum Arrival {
    /// Bytes of the channel.
    Data(Bytes),
    /// The client sends no more bytes.
    Eof,
    /// The client closed the channel or is gone. Given again and again.
    Gone,
}

/// What does not wait behind bytes.
#[derive(Debug, PartialEq)]
pub enum Aside {
    /// The terminal has a new size.
    Resize(WindowSize),
    /// A signal, without `SIG`.
    Signal(String),
}

/// One channel's inbox. One task reads its bytes, and the same or another one the rest.
pub struct Inbox {
    state: Mutex<State>,
    gone: CancellationToken,
    drained: tokio::sync::Notify,
}

#[derive(Default)]
struct State {
    data: VecDeque<BytesMut>,
    backlog: usize,
    aside: VecDeque<Aside>,
    eof: Eof,
    reader: Option<Waker>,
    aside_reader: Option<Waker>,
}

#[derive(Default, PartialEq)]
enum Eof {
    #[default]
    No,
    Came,
    Given,
}

impl Inbox {
    /// An empty one.
    #[must_use]
    pub fn new() -> Self {
        Self { state: Mutex::default(), gone: CancellationToken::new(), drained: tokio::sync::Notify::new() }
    }

    /// Bytes that arrived and were not taken.
    #[must_use]
    pub fn backlog(&self) -> usize {
        self.lock().backlog
    }

    /// Takes in bytes; never waits.
    pub fn push(&self, data: &[u8]) {
        if data.is_empty() || self.gone.is_cancelled() {
            return;
        }
        let mut state = self.lock();
        if state.eof != Eof::No {
            return;
        }
        state.backlog += data.len();
        match state.data.back_mut() {
            Some(last) if last.len() + data.len() <= JOIN => last.extend_from_slice(data),
            _ => state.data.push_back(BytesMut::from(data)),
        }
        state.wake();
    }

    /// Waits while the backlog is above what any client may cause that keeps to its windows.
    pub async fn within_limit(&self) {
        while self.backlog() > LIMIT {
            tokio::select! {
                () = self.drained.notified() => {}
                () = self.gone.cancelled() => return,
            }
        }
    }

    /// Takes in a signal or a window size.
    pub fn push_aside(&self, aside: Aside) {
        let mut state = self.lock();
        // Of several sizes only the last one matters.
        if matches!(aside, Aside::Resize(_)) {
            state.aside.retain(|waiting| !matches!(waiting, Aside::Resize(_)));
        }
        if state.aside.len() == MAX_ASIDE {
            state.aside.pop_front();
        }
        state.aside.push_back(aside);
        state.wake();
    }

    /// The client sends no more bytes.
    pub fn end(&self) {
        let mut state = self.lock();
        if state.eof == Eof::No {
            state.eof = Eof::Came;
        }
        state.wake();
    }

    /// The client closed the channel or is gone; what was not taken is dropped.
    pub fn close(&self) {
        self.gone.cancel();
        let mut state = self.lock();
        state.data.clear();
        state.backlog = 0;
        state.wake();
    }

    /// Resolves when the client has closed the channel or is gone.
    #[must_use]
    pub fn gone(&self) -> &CancellationToken {
        &self.gone
    }

    /// The next bytes, or their end.
    pub async fn next(&self) -> Arrival {
        poll_fn(|cx| self.poll_next(cx, usize::MAX)).await
    }

    /// As [`Self::next`], with at most `most` bytes.
    pub fn poll_next(&self, cx: &mut Context<'_>, most: usize) -> Poll<Arrival> {
        if self.gone.is_cancelled() {
            return Poll::Ready(Arrival::Gone);
        }
        let mut state = self.lock();
        if let Some(first) = state.data.front_mut() {
            let data = if first.len() > most { first.split_to(most) } else { std::mem::take(first) };
            if first.is_empty() {
                state.data.pop_front();
            }
            let was_above = state.backlog > LIMIT;
            state.backlog -= data.len();
            if was_above {
                self.drained.notify_waiters();
                self.drained.notify_one();
            }
            return Poll::Ready(Arrival::Data(data.freeze()));
        }
        if state.eof == Eof::Came {
            state.eof = Eof::Given;
            return Poll::Ready(Arrival::Eof);
        }
        state.reader = Some(cx.waker().clone());
        Poll::Pending
    }

    /// The next signal or window size; waits for ever once the client is gone.
    pub async fn next_aside(&self) -> Aside {
        poll_fn(|cx| {
            let mut state = self.lock();
            match state.aside.pop_front() {
                Some(aside) => Poll::Ready(aside),
                None => {
                    state.aside_reader = Some(cx.waker().clone());
                    Poll::Pending
                }
            }
        })
        .await
    }

    /// Resolves when the person presses Ctrl-C: a byte 3 from a terminal in raw mode. Takes everything up to it,
    /// for there is nobody yet to give it to; signals `INT`, `TERM` and `HUP` count too.
    pub async fn interrupted(&self) {
        const CTRL_C: u8 = 3;
        poll_fn(|cx| {
            let mut state = self.lock();
            let mut pressed = false;
            state.aside.retain(|aside| {
                let stops =
                    matches!(aside, Aside::Signal(name) if matches!(name.as_str(), "INT" | "TERM" | "HUP"));
                pressed |= stops;
                !stops
            });
            if let Some(at) = state.data.iter().position(|chunk| chunk.contains(&CTRL_C)) {
                for mut chunk in state.data.drain(..=at).collect::<Vec<_>>() {
                    state.backlog -= chunk.remaining();
                    chunk.clear();
                }
                pressed = true;
            }
            if pressed {
                return Poll::Ready(());
            }
            state.reader = Some(cx.waker().clone());
            Poll::Pending
        })
        .await;
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // No code that can panic runs under it with the state half changed.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Default for Inbox {
    fn default() -> Self {
        Self::new()
    }
}

impl State {
    fn wake(&mut self) {
        for reader in [self.reader.take(), self.aside_reader.take()].into_iter().flatten() {
            reader.wake();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt;

    fn now(inbox: &Inbox) -> Option<Arrival> {
        inbox.next().now_or_never()
    }

    #[test]
    fn bytes_come_out_in_order_and_once_and_signals_beside_them() {
        let inbox = Inbox::new();
        inbox.push(b"ab");
        inbox.push(b"cd");
        inbox.push_aside(Aside::Signal("INT".into()));
        inbox.end();
        inbox.push(b"after the end");
        assert_eq!(inbox.backlog(), 4);
        assert_eq!(inbox.next_aside().now_or_never(), Some(Aside::Signal("INT".into())));
        assert_eq!(inbox.next_aside().now_or_never(), None);
        assert_eq!(now(&inbox), Some(Arrival::Data(Bytes::from_static(b"abcd"))));
        assert_eq!(now(&inbox), Some(Arrival::Eof));
        assert_eq!(now(&inbox), None);
        assert_eq!(inbox.backlog(), 0);
        inbox.close();
        assert_eq!(now(&inbox), Some(Arrival::Gone));
        assert_eq!(now(&inbox), Some(Arrival::Gone));
    }

    #[test]
    fn credit_shrinks_with_the_backlog_and_never_to_nothing() {
        assert_eq!(credit(0), WINDOW);
        assert_eq!(credit(WINDOW as usize - 100), 100);
        assert_eq!(credit(usize::MAX), TRICKLE);
    }

    #[test]
    fn small_packets_are_joined_and_floods_of_signals_dropped() {
        let inbox = Inbox::new();
        for _ in 0..JOIN {
            inbox.push(b"x");
        }
        for _ in 0..10_000 {
            inbox.push_aside(Aside::Signal("INT".into()));
        }
        assert_eq!(inbox.lock().data.len(), 1);
        assert_eq!(inbox.lock().aside.len(), MAX_ASIDE);
    }

    #[test]
    fn ctrl_c_is_seen_among_other_keys() {
        let inbox = Inbox::new();
        inbox.push(b"ls\r");
        assert_eq!(inbox.interrupted().now_or_never(), None);
        inbox.push(b"\x03");
        assert_eq!(inbox.interrupted().now_or_never(), Some(()));
        assert_eq!(inbox.backlog(), 0);
    }

    #[tokio::test]
    async fn a_client_that_ignores_its_window_is_not_read_on() {
        let inbox = Inbox::new();
        inbox.push(&vec![0; LIMIT + 1]);
        assert_eq!(inbox.within_limit().now_or_never(), None);
        let (_, taken) = tokio::join!(inbox.within_limit(), inbox.next());
        assert!(matches!(taken, Arrival::Data(_)));
    }
}
