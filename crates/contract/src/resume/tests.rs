//! Tests of the resumable channel: by hand, and two ends over a link that drops and reconnects at random.

use bytes::Bytes;
use proptest::prelude::*;

use super::*;
use crate::v1::{Hangup, Stream};

fn chunk(data: impl Into<Bytes>) -> Body {
    Body::Chunk(Chunk { stream: Stream::Stdin as i32, data: data.into() })
}

fn connect(a: &mut Resumable, b: &mut Resumable) -> (Vec<ChannelFrame>, Vec<ChannelFrame>) {
    let (from_a, from_b) = (a.attach_frame(), b.attach_frame());
    let Ok(Incoming::Attached { resend: a_to_b }) = a.on_frame(from_b) else { panic!("a attaches") };
    let Ok(Incoming::Attached { resend: b_to_a }) = b.on_frame(from_a) else { panic!("b attaches") };
    (a_to_b, b_to_a)
}

fn attached(name: &str) -> Resumable {
    let (mut a, mut b) = (Resumable::new(name), Resumable::new(name));
    connect(&mut a, &mut b);
    a
}

fn numbered(seq: u64, body: Body) -> ChannelFrame {
    ChannelFrame { seq, body: Some(body) }
}

#[test]
fn window_refuses_and_ack_gives_room() {
    let mut a = attached("c");
    let data = Bytes::from(vec![7u8; MAX_CHUNK]);
    let mut n = 0u64;
    while a.send(chunk(data.clone())).is_ok() {
        n += 1;
    }
    assert!(a.kept_bytes() <= WINDOW && n >= 15, "{n} chunks, {} bytes", a.kept_bytes());
    assert!(a.room() < MAX_CHUNK, "{}", a.room());
    // A hang-up still passes.
    assert!(a.send(Body::Hangup(Hangup::default())).is_ok());
    let ack = ChannelFrame { seq: 0, body: Some(Body::Ack(Ack { received: n })) };
    assert_eq!(a.on_frame(ack), Ok(Incoming::Acked));
    assert_eq!(a.unacked(), 1);
    assert!(a.send(chunk(data)).is_ok());
}

#[test]
fn control_frames_are_bounded_too() {
    let mut a = attached("c");
    let mut n = 0;
    while a.send(Body::Signal("INT".into())).is_ok() {
        n += 1;
    }
    assert!(a.kept_bytes() <= WINDOW + RESERVE, "{n} signals, {} bytes", a.kept_bytes());
}

#[test]
fn a_flooding_peer_is_refused_within_the_bound() {
    let mut a = attached("c");
    let data = Bytes::from(vec![0u8; MAX_CHUNK]);
    let mut seq = 1;
    let error = loop {
        match a.on_frame(numbered(seq, chunk(data.clone()))) {
            Ok(_) => seq += 1,
            Err(error) => break error,
        }
    };
    assert_eq!(error, PeerMisbehaved::WindowExceeded);
    assert!(a.pending_bytes() <= WINDOW + RESERVE);
}

#[test]
fn taken_out_of_order_is_acknowledged_contiguously() {
    let mut a = attached("c");
    for seq in 1..=3 {
        assert!(matches!(a.on_frame(numbered(seq, chunk("x"))), Ok(Incoming::Deliver { .. })));
    }
    a.take(3);
    assert_eq!(a.ack_due(true), None);
    a.take(1);
    let ack = |received| Some(ChannelFrame { seq: 0, body: Some(Body::Ack(Ack { received })) });
    assert_eq!(a.ack_due(true), ack(1));
    a.take(2);
    a.take(2);
    a.take(99);
    assert_eq!(a.ack_due(true), ack(3));
    assert_eq!(a.ack_due(true), None);
    assert_eq!(a.pending_bytes(), 0);
}

#[test]
fn every_breach_has_its_error() {
    let mut fresh = Resumable::new("c");
    assert_eq!(fresh.on_frame(numbered(1, chunk("x"))), Err(PeerMisbehaved::AttachExpected));
    let attach = |id: &str, received| numbered(0, Body::Attach(Attach { channel_id: id.into(), received }));
    let wrong = fresh.on_frame(attach("d", 0));
    assert!(matches!(&wrong, Err(error @ PeerMisbehaved::WrongChannel { .. }) if error.is_fatal()));
    assert!(matches!(
        fresh.on_frame(attach("c", 9)),
        Err(PeerMisbehaved::NeverSent { claimed: 9, newest: 0 })
    ));
    let mut a = attached("c");
    assert_eq!(a.on_frame(attach("c", 0)), Err(PeerMisbehaved::AttachTwice));
    assert_eq!(a.on_frame(numbered(5, chunk("x"))), Err(PeerMisbehaved::Gap { expected: 1, got: 5 }));
    assert_eq!(a.on_frame(numbered(0, chunk("x"))), Err(PeerMisbehaved::Malformed));
    assert_eq!(a.on_frame(ChannelFrame { seq: 1, body: None }), Err(PeerMisbehaved::Malformed));
    let large = chunk(vec![0; MAX_CHUNK + 1]);
    assert!(matches!(a.on_frame(numbered(1, large)), Err(PeerMisbehaved::TooLarge { .. })));
    let _ = a.send(chunk("x"));
    let _ = a.on_frame(numbered(0, Body::Ack(Ack { received: 1 })));
    a.on_detach();
    assert!(matches!(a.on_frame(attach("c", 0)), Err(PeerMisbehaved::Forgot { wanted: 1, acked: 1 })));
}

#[test]
fn fuzz_entry_takes_noise() {
    for bytes in [&b""[..], b"\x00", b"\xff\xff\xff\xff\xff", &[8, 1, 34, 2, 8, 1, 0, 0]] {
        fuzz_resume(bytes);
    }
}

/// One step of the simulated pair.
#[derive(Clone, Debug)]
enum Step {
    /// End (0 or 1) sends this many bytes.
    Send(usize, usize),
    /// The link delivers one frame towards the end.
    Deliver(usize),
    /// The end's consumer takes its oldest untaken frame; it acknowledges if due.
    Take(usize),
    /// The link breaks, losing everything under way.
    Cut,
    /// A new link.
    Connect,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (0..2usize, 0..2_000usize).prop_map(|(end, n)| Step::Send(end, n)),
        1 => (0..2usize, Just(MAX_CHUNK)).prop_map(|(end, n)| Step::Send(end, n)),
        8 => (0..2usize).prop_map(Step::Deliver),
        6 => (0..2usize).prop_map(Step::Take),
        1 => Just(Step::Cut),
        2 => Just(Step::Connect),
    ]
}

struct Pair {
    ends: [Resumable; 2],
    /// Frames under way towards each end.
    wire: [VecDeque<ChannelFrame>; 2],
    /// Delivered and not taken, per receiving end.
    untaken: [VecDeque<u64>; 2],
    sent: [Vec<Bytes>; 2],
    got: [Vec<Bytes>; 2],
    connected: bool,
}

impl Pair {
    fn new() -> Self {
        Self {
            ends: [Resumable::new("c"), Resumable::new("c")],
            wire: Default::default(),
            untaken: Default::default(),
            sent: Default::default(),
            got: Default::default(),
            connected: false,
        }
    }

    fn connect(&mut self) {
        self.cut();
        self.connected = true;
        for end in 0..2 {
            let attach = self.ends[end].attach_frame();
            self.wire[1 - end].push_back(attach);
        }
    }

    fn cut(&mut self) {
        self.connected = false;
        for end in 0..2 {
            self.wire[end].clear();
            self.ends[end].on_detach();
        }
    }

    fn deliver(&mut self, end: usize) {
        let Some(frame) = self.wire[end].pop_front() else { return };
        match self.ends[end].on_frame(frame) {
            Ok(Incoming::Deliver { seq, body: Body::Chunk(chunk) }) => {
                self.got[end].push(chunk.data);
                self.untaken[end].push_back(seq);
            }
            Ok(Incoming::Attached { resend }) => self.wire[1 - end].extend(resend),
            Ok(Incoming::Acked | Incoming::Duplicate) => {}
            other => panic!("end {end}: {other:?}"),
        }
    }

    fn take(&mut self, end: usize, idle: bool) {
        if let Some(seq) = self.untaken[end].pop_front() {
            self.ends[end].take(seq);
        }
        if let Some(ack) = self.ends[end].ack_due(idle) {
            self.wire[1 - end].push_back(ack);
        }
    }

    fn apply(&mut self, step: &Step, n: usize) {
        match *step {
            Step::Send(end, len) => {
                let mut data = vec![0u8; len];
                data.iter_mut().zip(n.to_le_bytes()).for_each(|(to, from)| *to = from);
                let data = Bytes::from(data);
                if let Ok(frame) = self.ends[end].send(chunk(data.clone())) {
                    self.sent[end].push(data);
                    self.wire[1 - end].extend(frame);
                }
            }
            Step::Deliver(end) => self.deliver(end),
            Step::Take(end) => self.take(end, n.is_multiple_of(3)),
            Step::Cut => self.cut(),
            Step::Connect => self.connect(),
        }
        for end in &self.ends {
            assert!(end.kept_bytes() <= WINDOW + RESERVE);
            assert!(end.pending_bytes() <= WINDOW + RESERVE);
        }
    }

    /// A link that holds: everything arrives and everything is acknowledged.
    fn settle(&mut self) {
        self.connect();
        for _ in 0..100_000 {
            if self.wire.iter().all(VecDeque::is_empty) && self.untaken.iter().all(VecDeque::is_empty) {
                break;
            }
            for end in 0..2 {
                self.deliver(end);
                self.take(end, true);
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn every_frame_once_and_in_order(steps in proptest::collection::vec(step(), 0..400)) {
        let mut pair = Pair::new();
        for (n, step) in steps.iter().enumerate() {
            pair.apply(step, n);
        }
        pair.settle();
        prop_assert_eq!(&pair.got[1], &pair.sent[0]);
        prop_assert_eq!(&pair.got[0], &pair.sent[1]);
        prop_assert_eq!(pair.ends[0].unacked() + pair.ends[1].unacked(), 0);
        prop_assert_eq!(pair.ends[0].pending_bytes() + pair.ends[1].pending_bytes(), 0);
    }

    #[test]
    fn noise_stays_within_bounds(bytes in proptest::collection::vec(any::<u8>(), 0..2_000)) {
        fuzz_resume(&bytes);
    }
}
