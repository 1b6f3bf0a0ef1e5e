//! Floods: each event is received or counted as lost, of each kind; and nobody loses by another's flood.

use std::path::Path;
use std::process::Command;

use sallyport_sensor::kernel::{Destination, Event, KindCounters, Mode};

use crate::addresses::{Listener, deny_ports};
use crate::forks::Shared;
use crate::host::Host;
use crate::racer::{Racer, Score};

/// What was received, of one session.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
struct Received {
    fork: u64,
    exec: u64,
    exit: u64,
    connect: u64,
    file: u64,
}

impl Received {
    fn add(&mut self, events: &[Event]) {
        for event in events {
            match event {
                Event::Fork { .. } => self.fork += 1,
                Event::Exec { .. } => self.exec += 1,
                Event::Exit { .. } => self.exit += 1,
                Event::Connect { .. } => self.connect += 1,
                Event::File { .. } => self.file += 1,
                Event::System { .. } => {}
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
}

/// What the generator did, by its own count.
#[derive(Debug, Clone, Copy)]
struct Flood {
    forks: u64,
    execs: u64,
    datagrams: u64,
    opens: u64,
}

impl Flood {
    fn start(self, host: &Host, session: u64, port: u16) -> Racer {
        let numbers = [self.forks, self.execs, self.datagrams, port.into(), self.opens]
            .map(|number| number.to_string());
        let words: Vec<_> = std::iter::once("flood").chain(numbers.iter().map(String::as_str)).collect();
        let racer = Racer::start(&words, host.folder.path());
        host.kernel.tag(racer.pid(), session, 1).expect("tag");
        racer
    }

    /// Holds the generator's count against what was seen, received and lost. Returns what was lost.
    fn check(self, host: &Host, received: Received) -> u64 {
        let counters = host.kernel.counters().expect("counters");
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

/// Forbidden and permitted things of a session that is not the one that floods.
const ACTS: u64 = 300;

/// Datagrams to both ports, and now and then the forbidden program.
pub(crate) fn acts(words: &[&str]) -> Score {
    let port = |at: usize| -> u16 { words[at].parse().expect("a port") };
    let socket = std::net::UdpSocket::bind("127.0.0.1:0").expect("socket");
    for act in 0..ACTS {
        socket.send_to(b"x", ("127.0.0.1", port(1))).expect("the permitted port");
        socket.send_to(b"x", ("127.0.0.1", port(2))).expect_err("the forbidden port");
        if act % 10 == 0 {
            let _ = Command::new("/usr/bin/truncate").args(["-s", "+1", "hit"]).status();
        }
    }
    Score { calls: ACTS, flipped: 0 }
}

/// Every one of session 2's acts is reported, in order, and what is forbidden was not done.
fn check_acts(host: &Host, events: &[Event]) {
    let of_two = |event: &&Event| event.head().session == 2;
    let judged: Vec<bool> = events
        .iter()
        .filter(of_two)
        .filter_map(|event| match event {
            Event::Connect { head, connect } if matches!(connect.destination, Destination::Datagram(..)) => {
                Some(head.judgement.is_denied())
            }
            _ => None,
        })
        .collect();
    assert_eq!(judged.len() as u64, 2 * ACTS, "session 2's datagrams: each reported");
    assert!(judged.chunks(2).all(|pair| pair == [false, true]), "in their order");
    let programs = events
        .iter()
        .filter(of_two)
        .filter(|event| matches!(event, Event::Exec { head, .. } if head.judgement.is_denied()));
    assert_eq!(programs.count() as u64, ACTS / 10, "session 2's forbidden programs: each reported");
    assert!(!host.file("hit").exists(), "the forbidden program ran");
}

fn all(host: &mut Host) -> Vec<Event> {
    let mut all = Vec::new();
    loop {
        let events = host.events.try_next();
        if events.is_empty() {
            return all;
        }
        all.extend(events);
    }
}

/// Session 2 is forbidden a port and `truncate`; session 1 may do everything.
fn two_sessions(host: &Host, forbidden: u16) {
    host.session(1, &deny_ports(&[]));
    host.session(
        2,
        &deny_ports(&[forbidden]).path("/usr/bin/truncate", sallyport_sensor_abi::policy::DENY | 2),
    );
}

fn start_acts(host: &Host, permitted: u16, forbidden: u16) -> Racer {
    let racer = Racer::start(&["acts", &permitted.to_string(), &forbidden.to_string()], host.folder.path());
    host.kernel.tag(racer.pid(), 2, 1).expect("tag");
    racer
}

#[tokio::test]
async fn a_flood_displaces_no_other_sessions_events() {
    let mut host = Host::start();
    let (permitted, forbidden) = (Listener::start(), Listener::start());
    two_sessions(&host, forbidden.port);
    // Nobody reads. The flood first fills all that it can, and goes on beside the other session.
    Flood { forks: 100, execs: 100, datagrams: 100_000, opens: 0 }.start(&host, 1, permitted.port).go();
    let lost = host.kernel.counters().expect("counters").connect.lost;
    assert!(lost > 0, "the flood was too small");
    let mut flood =
        Flood { forks: 100, execs: 100, datagrams: 100_000, opens: 0 }.start(&host, 1, permitted.port);
    flood.release();
    start_acts(&host, permitted.port, forbidden.port).go();
    flood.score();
    let events = all(&mut host);
    check_acts(&host, &events);
    assert_eq!(forbidden.heard(), 0);
}

/// How many processes the bomb may have.
const BOMB: u32 = 100;

#[tokio::test]
async fn a_fork_bomb_delays_no_other_sessions_denial() {
    let mut host = Host::start();
    let (permitted, forbidden) = (Listener::start(), Listener::start());
    two_sessions(&host, forbidden.port);
    host.kernel.close_session(1).expect("close");
    let policy = host.kernel.policies()[0].slot;
    host.kernel.open_session(1, policy, BOMB).expect("open");
    let shared = Shared::open(&host.file("shared"));
    let mut bomb = Racer::start(&["bomb"], host.folder.path());
    host.kernel.tag(bomb.pid(), 1, 1).expect("tag");
    bomb.release();
    let tasks = |host: &Host| {
        host.kernel.sessions().iter().find(|session| session.number == 1).map_or(0, |session| session.tasks)
    };
    crate::host::eventually("the bomb is at its limit", || tasks(&host) >= BOMB);
    let mut acts = start_acts(&host, permitted.port, forbidden.port);
    acts.release();
    let (mut events, mut most) = (Vec::new(), 0);
    while acts.is_running() {
        events.extend(all(&mut host));
        most = most.max(tasks(&host));
    }
    // It went on to the end.
    let still = tasks(&host);
    shared.set(Shared::STOP, 1);
    bomb.score();
    events.extend(all(&mut host));
    assert!(still >= BOMB / 2, "the bomb was over before the other session was: {still} processes");
    // Those that were killed for one fork too many are counted until they are gone.
    assert!(most <= 4 * BOMB, "the bomb had {most} processes");
    check_acts(&host, &events);
    assert_eq!(forbidden.heard(), 0);
    let bombs = events.iter().filter(|event| matches!(event, Event::Fork { head, .. } if head.session == 1));
    println!("{} forks of the bomb beside {ACTS} denials, at most {most} processes at once", bombs.count());
}

/// A process that forks, and whose children fork, until the test says stop. What is one too many is killed, so there are always
/// as many as may be. This process only takes the orphans in.
pub(crate) fn bomb() -> Score {
    let shared = Shared::open(Path::new("shared"));
    crate::forks::bomb(&shared);
    Score { calls: 0, flipped: 0 }
}
