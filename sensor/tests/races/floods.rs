//! Floods: each event is received or counted as lost, of each kind. That nobody loses by another's flood is in `beside.rs`.

use std::process::Command;

use sallyport_sensor::kernel::{Event, KindCounters, Mode};

use crate::addresses::{Listener, deny_ports};
use crate::host::Host;
use crate::racer::{Racer, Score};

/// What was received.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Received {
    fork: u64,
    exec: u64,
    exit: u64,
    connect: u64,
    file: u64,
    system: u64,
}

impl Received {
    pub(crate) fn add(&mut self, events: &[Event]) {
        for event in events {
            match event {
                Event::Fork { .. } => self.fork += 1,
                Event::Exec { .. } => self.exec += 1,
                Event::Exit { .. } => self.exit += 1,
                Event::Connect { .. } => self.connect += 1,
                Event::File { .. } => self.file += 1,
                Event::System { .. } => self.system += 1,
            }
        }
    }

    /// Takes all that is there.
    fn drain(&mut self, host: &mut Host) {
        loop {
            let events = host.events.try_next();
            if events.is_empty() {
                return;
            }
            self.add(&events);
        }
    }

    /// Of each kind all that was seen was received here or counted as lost, and each loss was somebody's. Returns the losses.
    pub(crate) fn check(&self, host: &Host) -> u64 {
        let counters = host.kernel.counters().expect("counters");
        let all = [
            ("fork", self.fork, counters.fork),
            ("exec", self.exec, counters.exec),
            ("exit", self.exit, counters.exit),
            ("connect", self.connect, counters.connect),
            ("file", self.file, counters.file),
            ("system", self.system, counters.system),
        ];
        for (kind, received, KindCounters { seen, lost }) in all {
            println!("{kind}: {seen} seen, {received} received, {lost} lost");
            assert_eq!(seen, received + lost, "{kind}: seen, and received or lost");
        }
        let lost = all.iter().map(|(.., counters)| counters.lost).sum();
        let of_sessions: u64 = host.kernel.sessions().iter().map(|session| session.lost).sum();
        assert_eq!(of_sessions, lost, "lost by a session, and of a kind");
        lost
    }
}

/// What the generator did, by its own count.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Flood {
    pub(crate) forks: u64,
    pub(crate) execs: u64,
    pub(crate) datagrams: u64,
    pub(crate) opens: u64,
}

impl Flood {
    /// The racer's words.
    pub(crate) fn words(self, port: u16) -> String {
        format!("flood {} {} {} {port} {}", self.forks, self.execs, self.datagrams, self.opens)
    }

    pub(crate) fn start(self, host: &Host, session: u64, port: u16) -> Racer {
        let racer = Racer::start(&self.words(port), host.folder.path());
        host.kernel.tag(racer.pid(), session, 1).expect("tag");
        racer
    }

    /// Holds the generator's count against what was seen, received and lost. Returns what was lost.
    fn check(self, host: &Host, received: Received) -> u64 {
        let counters = host.kernel.counters().expect("counters");
        received.check(host);
        let all = [
            ("fork", self.forks + self.execs, received.fork, counters.fork),
            ("exec", self.execs, received.exec, counters.exec),
            // The generator itself, too.
            ("exit", self.forks + self.execs + 1, received.exit, counters.exit),
            // The generator binds its socket, too.
            ("connect", self.datagrams + 1, received.connect, counters.connect),
            // Programs open files, too, which the generator cannot count.
            (
                "file",
                if self.execs == 0 { self.opens } else { counters.file.seen },
                received.file,
                counters.file,
            ),
        ];
        for (kind, done, received, KindCounters { seen, lost }) in all {
            println!("{kind}: {done} done, {seen} seen, {received} received, {lost} lost");
            assert_eq!(done, seen, "{kind}: done and seen");
            assert_eq!(done, received + lost, "{kind}: done, and received or lost");
        }
        all.iter().map(|(.., counters)| counters.lost).sum()
    }
}

/// The flood: forks, programs, datagrams, in turns.
pub(crate) fn flood(words: &[&str]) -> Score {
    let number = |at: usize| -> u64 { words[at].parse().expect("a number") };
    let (forks, execs, datagrams, port, opens) = (number(1), number(2), number(3), number(4), number(5));
    let socket = std::net::UdpSocket::bind("127.0.0.1:0").expect("socket");
    let rounds = forks.max(execs).max(1);
    // In each round as many as bring the sum up to its share.
    let share = |all: u64, round: u64| all * (round + 1) / rounds - all * round / rounds;
    for round in 0..rounds {
        for _ in 0..share(forks, round) {
            crate::forks::fork_and_wait();
        }
        for _ in 0..share(execs, round) {
            assert!(Command::new("/usr/bin/true").status().expect("spawn").success());
        }
        for _ in 0..share(datagrams, round) {
            let _ = socket.send_to(b"x", ("127.0.0.1", port as u16));
        }
    }
    for _ in 0..opens {
        drop(std::fs::File::open("/etc/passwd").expect("open"));
    }
    Score { calls: forks + execs + datagrams + opens, flipped: 0 }
}

const FLOOD: Flood = Flood { forks: 3_000, execs: 500, datagrams: 100_000, opens: 0 };

#[tokio::test]
async fn with_a_reader_every_event_is_received_or_counted() {
    let mut host = Host::start();
    let port = Listener::start();
    host.session(1, &deny_ports(&[]));
    let mut racer = FLOOD.start(&host, 1, port.port);
    racer.release();
    let mut received = Received::default();
    while racer.is_running() {
        received.drain(&mut host);
    }
    received.drain(&mut host);
    FLOOD.check(&host, received);
    assert_eq!(host.events.undecodable(), 0);
}

#[tokio::test]
async fn with_a_stalled_reader_what_is_lost_is_counted_exactly() {
    let mut host = Host::start();
    let (permitted, forbidden) = (Listener::start(), Listener::start());
    host.session(1, &deny_ports(&[forbidden.port]));
    FLOOD.start(&host, 1, permitted.port).go();
    let mut received = Received::default();
    received.drain(&mut host);
    assert!(FLOOD.check(&host, received) > 0, "the flood was too small");
    // A session that floods is judged as before.
    let heard = forbidden.heard();
    Flood { forks: 0, execs: 0, datagrams: 100_000, opens: 0 }.start(&host, 1, forbidden.port).go();
    assert_eq!(forbidden.heard(), heard, "a full ring let forbidden datagrams out");
}

#[tokio::test]
async fn over_restarts_every_event_is_received_or_counted() {
    let mut host = Host::start();
    let port = Listener::start();
    host.session(1, &deny_ports(&[]));
    let mut racer = FLOOD.start(&host, 1, port.port);
    racer.release();
    let (mut received, mut restarts) = (Received::default(), 0);
    while racer.is_running() {
        received.drain(&mut host);
        let adopted;
        (host, adopted) = host.restart();
        assert!(adopted);
        restarts += 1;
    }
    received.drain(&mut host);
    println!("{restarts} restarts");
    FLOOD.check(&host, received);
    assert!(restarts > 1);
}

#[tokio::test]
#[ignore = "needs BPF LSM; `cargo xtask vm --program` runs it"]
async fn opened_files_are_received_or_counted() {
    let mut host = Host::start();
    assert_eq!(host.kernel.mode(), Mode::Lsm, "in tracepoint mode opening files is not judged in the kernel");
    host.session(1, &deny_ports(&[]));
    let flood = Flood { forks: 0, execs: 0, datagrams: 0, opens: 20_000 };
    flood.start(&host, 1, 9).go();
    let mut received = Received::default();
    received.drain(&mut host);
    assert!(flood.check(&host, received) > 0, "the flood was too small");
}
