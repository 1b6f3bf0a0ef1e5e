//! One session's flood, or fork bomb, beside what another session does: nobody loses by another's flood, of what is denied and of
//! what is allowed, of sessions and of log-ins outside of a gateway.

use std::path::Path;
use std::process::Command;

use sallyport_sensor::kernel::{Cause, Destination, Event, Judgement, Mode, inspect};
use sallyport_sensor_abi::policy::DENY;
use sallyport_sensor_abi::session::ANY_LOGIN;

use crate::addresses::{Listener, deny_ports};
use crate::floods::{Flood, Received};
use crate::forks::Shared;
use crate::host::Host;
use crate::racer::{Racer, Score};
use crate::tables::Tables;

/// Forbidden and permitted things of a session that is not the one that floods.
const ACTS: u64 = 300;
/// How many of them start the forbidden program, too.
const PROGRAMS: u64 = ACTS / 10;
/// A login uid that no account has.
const LOGIN: u32 = 4242;

/// How acts end, by the session that they are in.
const REFUSED_BY_LSM: &str = "lsm";
const KILLED_BY_TRACEPOINT: &str = "tracepoint";
/// There is no session, or it is only watched.
const DONE: &str = "done";

/// Datagrams to both ports, and now and then the forbidden program. Each must end as the fourth word says: an act that failed for
/// another reason would be missed among the events, or, worse, not be missed.
pub(crate) fn acts(words: &[&str]) -> Score {
    let port = |at: usize| -> u16 { words[at].parse().expect("a port") };
    let ends = words[3];
    let socket = std::net::UdpSocket::bind("127.0.0.1:0").expect("socket");
    let mut again = 0;
    for act in 0..ACTS {
        socket.send_to(b"x", ("127.0.0.1", port(1))).expect("the permitted port");
        let sent = socket.send_to(b"x", ("127.0.0.1", port(2)));
        assert_eq!(sent.is_ok(), ends == DONE, "the forbidden port: {sent:?}");
        if act % 10 == 0 {
            again += start_forbidden(ends);
        }
    }
    Score { calls: ACTS, flipped: again }
}

/// Starts `truncate`, and again if there is no process number left for it. How often that was.
fn start_forbidden(ends: &str) -> u64 {
    use std::os::unix::process::ExitStatusExt as _;
    let mut again = 0;
    loop {
        let status = Command::new("/usr/bin/truncate").args(["-s", "+1", "hit"]).status();
        match (ends, status) {
            (DONE, Ok(status)) if status.success() => return again,
            (KILLED_BY_TRACEPOINT, Ok(status)) if status.signal() == Some(9) => return again,
            (REFUSED_BY_LSM, Err(error)) if error.raw_os_error() == Some(libc::EPERM) => return again,
            (_, Err(error)) if error.raw_os_error() == Some(libc::EAGAIN) && again < 10_000 => {
                again += 1;
                std::thread::sleep(std::time::Duration::from_millis(1));
            }
            (_, status) => panic!("the forbidden program ended otherwise than `{ends}`: {status:?}"),
        }
    }
}

fn ends(host: &Host) -> &'static str {
    match host.kernel.mode() {
        Mode::Lsm => REFUSED_BY_LSM,
        Mode::Tracepoint => KILLED_BY_TRACEPOINT,
    }
}

/// The events of session 2: every one of its acts is reported, in order.
fn check_acts(host: &Host, events: &[Event], objected: impl Fn(Judgement) -> bool) {
    let of_two = |event: &&Event| event.head().session == 2;
    let judged: Vec<bool> = events
        .iter()
        .filter(of_two)
        .filter_map(|event| match event {
            Event::Connect { head, connect } if matches!(connect.destination, Destination::Datagram(..)) => {
                Some(objected(head.judgement))
            }
            _ => None,
        })
        .collect();
    let lost = host.kernel.sessions().iter().find(|session| session.number == 2).map(|session| session.lost);
    assert_eq!(lost, Some(0), "session 2 lost events by another's flood");
    assert_eq!(judged.len() as u64, 2 * ACTS, "session 2's datagrams: each reported");
    assert!(judged.chunks(2).all(|pair| pair == [false, true]), "in their order");
    let programs = events.iter().filter(of_two).filter(|event| {
        matches!(event, Event::Exec { head, exec }
            if objected(head.judgement) && exec.path == b"/usr/bin/truncate")
    });
    assert_eq!(programs.count() as u64, PROGRAMS, "session 2's forbidden programs: each reported");
    let mut received = Received::default();
    received.add(events);
    received.check(host);
    let state = inspect(&host.pins.0).expect("state").expect("pinned");
    assert_eq!(state.missed, [], "programs were left out");
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

/// Session 2 is forbidden a port and `truncate`.
fn of_two(forbidden: u16) -> Tables {
    deny_ports(&[forbidden]).path("/usr/bin/truncate", DENY | 2)
}

/// What session 1 and session 2 send to.
struct Ports {
    permitted: Listener,
    forbidden: Listener,
}

impl Ports {
    /// Listens, and does all the acts once outside of sessions: there every one of them has its effect.
    fn start(host: &Host) -> Self {
        let ports = Self { permitted: Listener::start(), forbidden: Listener::start() };
        Racer::start(&ports.words(DONE), host.folder.path()).go();
        assert_eq!(ports.forbidden.heard(), ACTS, "control: datagrams to the port that will be forbidden");
        let hit = host.file("hit");
        let len = std::fs::metadata(&hit).map_or(0, |metadata| metadata.len());
        assert_eq!(len, PROGRAMS, "control: the program that will be forbidden");
        std::fs::remove_file(hit).expect("remove");
        ports
    }

    fn words(&self, ends: &str) -> String {
        format!("acts {} {} {ends}", self.permitted.port, self.forbidden.port)
    }

    /// The acts, in session 2.
    fn start_acts(&self, host: &Host) -> Racer {
        let racer = Racer::start(&self.words(ends(host)), host.folder.path());
        host.kernel.tag(racer.pid(), 2, 1).expect("tag");
        racer
    }

    /// Nothing that is forbidden was done since the control.
    fn check_untouched(&self, host: &Host) {
        assert!(!host.file("hit").exists(), "the forbidden program ran");
        assert_eq!(self.forbidden.heard(), ACTS, "forbidden datagrams arrived");
    }
}

const FLOOD: Flood = Flood { forks: 100, execs: 100, datagrams: 100_000, opens: 0 };

fn lost(host: &Host) -> u64 {
    host.kernel.counters().expect("counters").connect.lost
}

#[tokio::test]
async fn a_flood_displaces_no_other_sessions_events() {
    let mut host = Host::start();
    let ports = Ports::start(&host);
    host.session(1, &deny_ports(&[]));
    host.session(2, &of_two(ports.forbidden.port));
    // Nobody reads. The flood first fills all that it can, and goes on beside the other session.
    FLOOD.start(&host, 1, ports.permitted.port).go();
    assert!(lost(&host) > 0, "the flood was too small");
    let mut flood = FLOOD.start(&host, 1, ports.permitted.port);
    flood.release();
    ports.start_acts(&host).go();
    flood.score();
    let events = all(&mut host);
    check_acts(&host, &events, Judgement::is_denied);
    ports.check_untouched(&host);
}

/// Opens session `number`, which is only watched, for all log-ins outside of a gateway. `false`: this kernel knows of no log-ins.
fn watch_log_ins(host: &Host, number: u64, tables: &Tables) -> bool {
    if !Path::new("/proc/self/loginuid").exists() {
        eprintln!("skipped: this kernel keeps no login uid (CONFIG_AUDIT)");
        return false;
    }
    let (header, arena) = tables.compile();
    let policy = host.kernel.load_policy(&header, &arena).expect("policy");
    host.kernel.open_monitored_session(number, policy.slot, 1000).expect("open");
    host.kernel.set_unbrokered(true, [(ANY_LOGIN, number)]).expect("on");
    true
}

#[tokio::test]
async fn a_sessions_flood_displaces_no_event_of_the_hosts_own_log_ins() {
    let mut host = Host::start();
    let ports = Ports::start(&host);
    host.session(1, &deny_ports(&[]));
    if !watch_log_ins(&host, 2, &of_two(ports.forbidden.port)) {
        return;
    }
    FLOOD.start(&host, 1, ports.permitted.port).go();
    assert!(lost(&host) > 0, "the flood was too small");
    let mut flood = FLOOD.start(&host, 1, ports.permitted.port);
    flood.release();
    Racer::start_logged_in(LOGIN, &ports.words(DONE), host.folder.path()).go();
    flood.score();
    host.kernel.set_unbrokered(false, []).expect("off");
    let events = all(&mut host);
    check_acts(&host, &events, |judgement| matches!(judgement, Judgement::Observed { .. }));
    assert_eq!(ports.forbidden.heard(), 2 * ACTS, "what is only watched is done");
    // LSM mode also sees files and what is asked of the system, how much of it depends on the C library.
    let counted = |event: &Event| !matches!(event, Event::File { .. } | Event::System { .. });
    let logged_in = |event: &&Event| counted(event) && event.head().process.login_uid == Some(LOGIN);
    let of_log_in = events.iter().filter(logged_in).count() as u64;
    // Itself a program, an end and a bound socket; each program a beginning, itself and an end; two datagrams for each act.
    assert_eq!(of_log_in, 3 + 3 * PROGRAMS + 2 * ACTS, "events of the log-in");
}

#[tokio::test]
async fn a_log_ins_flood_displaces_no_event_of_a_session() {
    let mut host = Host::start();
    let ports = Ports::start(&host);
    host.session(2, &of_two(ports.forbidden.port));
    if !watch_log_ins(&host, 1, &deny_ports(&[])) {
        return;
    }
    let flood =
        |host: &Host| Racer::start_logged_in(LOGIN, &FLOOD.words(ports.permitted.port), host.folder.path());
    flood(&host).go();
    assert!(lost(&host) > 0, "the flood was too small");
    let mut flood = flood(&host);
    flood.release();
    ports.start_acts(&host).go();
    flood.score();
    host.kernel.set_unbrokered(false, []).expect("off");
    let events = all(&mut host);
    check_acts(&host, &events, Judgement::is_denied);
    ports.check_untouched(&host);
}

/// How many processes the bomb may have.
const BOMB: u32 = 100;

#[tokio::test]
async fn a_fork_bomb_delays_no_other_sessions_denial() {
    let mut host = Host::start();
    let ports = Ports::start(&host);
    let (header, arena) = deny_ports(&[]).compile();
    let policy = host.kernel.load_policy(&header, &arena).expect("policy");
    host.kernel.open_session(1, policy.slot, BOMB).expect("open");
    host.session(2, &of_two(ports.forbidden.port));
    let shared = Shared::open(&host.file("shared"));
    let mut bomb = Racer::start("bomb", host.folder.path());
    host.kernel.tag(bomb.pid(), 1, 1).expect("tag");
    bomb.release();
    let refused = |events: &[Event]| {
        let too_many = |event: &&Event| {
            matches!(event, Event::Fork { head, .. }
                if head.session == 1 && head.judgement == Judgement::Unjudged(Cause::TooManyTasks))
        };
        events.iter().filter(too_many).count()
    };
    let mut events = Vec::new();
    crate::host::eventually("the bomb is at its limit", || {
        events.extend(all(&mut host));
        refused(&events) > 0
    });
    let mut acts = ports.start_acts(&host);
    acts.release();
    let (mut most, mut alive) = (0, 0);
    while acts.is_running() {
        events.extend(all(&mut host));
        let of_bomb = host.kernel.sessions().into_iter().find(|session| session.number == 1);
        most = most.max(of_bomb.map_or(0, |session| session.tasks));
        alive =
            alive.max(host.kernel.tasks().expect("tasks").iter().filter(|task| task.session == 1).count());
    }
    let again = acts.score().flipped;
    let before = shared.get(Shared::FORKS);
    crate::host::eventually("the bomb goes on to the end", || shared.get(Shared::FORKS) > before);
    shared.set(Shared::STOP, 1);
    bomb.score();
    events.extend(all(&mut host));
    check_acts(&host, &events, Judgement::is_denied);
    ports.check_untouched(&host);
    println!(
        "{} forks of the bomb, at least {} of them refused, beside {} denials; at most {alive} processes alive and {most} that \
         took a process number; the other session found none {again} times",
        shared.get(Shared::FORKS),
        refused(&events),
        ACTS + PROGRAMS
    );
    if host.kernel.mode() == Mode::Lsm {
        // Not one child more than may be: what was begun on another CPU is there already.
        assert!(most <= BOMB + 8, "the bomb had {most} processes");
        assert_eq!(again, 0, "the bomb used up the host's process numbers");
    } else {
        // Whoever forks too much is killed, but has had its child, and takes a process number until somebody has waited for it.
        assert!(alive <= 4 * BOMB as usize, "the bomb had {alive} processes");
    }
}

/// A process that forks, and whose children fork, until the test says stop, and again when all of them have been killed. This
/// process only takes the orphans in.
pub(crate) fn bomb() -> Score {
    let shared = Shared::open(Path::new("shared"));
    crate::forks::bomb(&shared);
    Score { calls: 0, flipped: 0 }
}
