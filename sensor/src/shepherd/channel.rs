//! The shepherd's loop: program, link and control connections, timers, and the order in which a channel ends.

mod ending;

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::{Duration, Instant};

use bytes::Bytes;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, killpg};
use nix::sys::signalfd::SignalFd;
use nix::sys::wait::{Id, WaitPidFlag, waitid};
use nix::unistd::{Uid, seteuid};
use sallyport_contract::resume::{FRAME_COST, Incoming, Resumable};
use sallyport_contract::v1::{Chunk, Exit, Stream, WindowSize, channel_frame::Body};

use super::Ends;
use super::control::{self, Control, Kind};
use super::io::{Feeding, InputQueue, LINK_QUEUE, Link, LinkLost, Reading, STEP, read_step};
use super::leader::Leader;
use super::notice::Notices;
use super::protocol::{Command, Report, Spec};
use super::terminal;
use ending::{exit_of, signalled};

/// So long a leader waits to be let go; after that the sensor is taken for dead and nothing runs.
const GO_WITHIN: Duration = Duration::from_secs(30);
/// A terminal that gives nothing for so long after its leader's end has been drained.
const DRAINED_AFTER: Duration = Duration::from_millis(60);
/// A leader that was killed, or could not execute, may have been refused by policy: so long its end is held back for the line
/// that says why.
const EXPLAINED_WITHIN: Duration = Duration::from_millis(300);
/// Bytes read from a terminal after its leader's end at most: it holds far less, so more comes from a process
/// left in the background.
const DRAIN_LIMIT: usize = 1 << 20;

/// What a shepherd is made of.
pub(crate) struct Parts {
    pub(crate) spec: Spec,
    pub(crate) uid: Uid,
    pub(crate) leader: Leader,
    pub(crate) listener: UnixListener,
    pub(crate) signals: SignalFd,
    pub(crate) ends: Ends,
}

/// The shepherd of one channel.
pub(crate) struct Shepherd {
    spec: Spec,
    uid: Uid,
    leader: Leader,
    listener: UnixListener,
    signals: SignalFd,
    unknown: Vec<UnixStream>,
    controls: Vec<Control>,
    link: Option<Link>,
    channel: Resumable,
    input: Option<OwnedFd>,
    queue: InputQueue,
    /// Standard output (or the terminal), standard error.
    outputs: [Output; 2],
    notices: Notices,
    noticed: Option<Instant>,
    exit: Option<Ended>,
    exit_sent: bool,
    /// The last word said when the channel was ended from outside, and when SIGKILL is due.
    ending: Option<Instant>,
    killed: bool,
    started: Instant,
    detached: Option<Instant>,
    scratch: Vec<u8>,
}

/// One stream of output.
struct Output {
    stream: Stream,
    fd: Option<OwnedFd>,
    eof_sent: bool,
}

/// How the leader ended.
struct Ended {
    at: Instant,
    frame: Exit,
    text: String,
    drained: usize,
    last_output: Instant,
}

/// What a ready descriptor belongs to.
#[derive(Clone, Copy)]
enum Tag {
    Listener,
    Signals,
    Unknown(usize),
    Control(usize),
    Link,
    Input,
    Output(usize),
}

impl Shepherd {
    pub(crate) fn new(parts: Parts) -> Self {
        let Parts { spec, uid, leader, listener, signals, ends } = parts;
        let now = Instant::now();
        let terminal = ends.error.is_none();
        let mut notices = Notices::new(terminal);
        if terminal && !spec.announcement.is_empty() {
            spec.announcement.lines().for_each(|line| notices.push(line, now));
        }
        let has_error = ends.error.is_some();
        Self {
            channel: Resumable::new(spec.channel_id.clone()),
            spec,
            uid,
            leader,
            listener,
            signals,
            unknown: Vec::new(),
            controls: Vec::new(),
            link: None,
            input: Some(ends.input),
            queue: InputQueue::default(),
            outputs: [
                Output { stream: Stream::Stdout, fd: Some(ends.output), eof_sent: false },
                Output { stream: Stream::Stderr, fd: ends.error, eof_sent: !has_error },
            ],
            notices,
            noticed: None,
            exit: None,
            exit_sent: false,
            ending: None,
            killed: false,
            started: now,
            detached: None,
            scratch: vec![0; STEP],
        }
    }

    /// Until the channel has ended and the gateway has taken it all, or nobody came for it.
    pub(crate) fn run(mut self) {
        loop {
            let now = Instant::now();
            self.on_timers(now);
            self.place_notices(now);
            self.finish(now);
            self.flush();
            if let Some(delivered) = self.is_over(now) {
                return self.leave(delivered);
            }
            for (tag, flags) in self.wait(now) {
                self.on_ready(tag, flags);
            }
        }
    }

    fn is_terminal(&self) -> bool {
        self.spec.pty.is_some()
    }

    /// Whether the program's output may be read: only as much as the window and the link's queue take.
    fn wants_output(&self) -> bool {
        let link_has_room = self.link.as_ref().is_none_or(|link| link.queued() < LINK_QUEUE);
        self.channel.room() > FRAME_COST && link_has_room && !self.exit_sent
    }

    fn wait(&self, now: Instant) -> Vec<(Tag, PollFlags)> {
        let mut wanted: Vec<(Tag, BorrowedFd<'_>, PollFlags)> =
            vec![(Tag::Signals, self.signals.as_fd(), PollFlags::POLLIN)];
        if self.unknown.len() + self.controls.len() < control::MAX_CONNECTIONS {
            wanted.push((Tag::Listener, self.listener.as_fd(), PollFlags::POLLIN));
        }
        for (index, stream) in self.unknown.iter().enumerate() {
            wanted.push((Tag::Unknown(index), stream.as_fd(), PollFlags::POLLIN));
        }
        for (index, control) in self.controls.iter().enumerate() {
            wanted.push((Tag::Control(index), control.stream().as_fd(), PollFlags::POLLIN));
        }
        if let Some(link) = &self.link {
            let mut flags = PollFlags::POLLIN;
            flags.set(PollFlags::POLLOUT, link.queued() > 0);
            wanted.push((Tag::Link, link.stream().as_fd(), flags));
        }
        if let Some(input) = self.input.as_ref().filter(|_| self.queue.wants_write()) {
            wanted.push((Tag::Input, input.as_fd(), PollFlags::POLLOUT));
        }
        if self.wants_output() {
            for (index, output) in self.outputs.iter().enumerate() {
                wanted
                    .extend(output.fd.as_ref().map(|fd| (Tag::Output(index), fd.as_fd(), PollFlags::POLLIN)));
            }
        }
        let mut fds: Vec<PollFd<'_>> = wanted.iter().map(|(_, fd, flags)| PollFd::new(*fd, *flags)).collect();
        // Interrupted: the loop comes round again.
        let _ = poll(&mut fds, self.timeout(now));
        let ready = fds.iter().map(|fd| fd.revents().unwrap_or(PollFlags::empty()));
        wanted.iter().map(|(tag, ..)| *tag).zip(ready).filter(|(_, flags)| !flags.is_empty()).collect()
    }

    fn timeout(&self, now: Instant) -> PollTimeout {
        let reattach = Duration::from_millis(self.spec.reattach_grace_ms);
        let drained = |ended: &Ended| ended.last_output + DRAINED_AFTER;
        let next = [
            self.leader.gate.as_ref().map(|_| self.started + GO_WITHIN),
            // Once it has passed, what follows is driven by the leader's end.
            self.detached.map(|since| since + reattach).filter(|at| *at > now),
            self.ending.filter(|_| !self.killed),
            self.notices.deadline().filter(|_| self.takes_notices()),
            self.exit.as_ref().filter(|_| self.is_terminal() && self.wants_output()).map(drained),
            self.exit.as_ref().filter(|_| self.killed).map(drained).filter(|at| *at > now),
            self.explained_at().filter(|at| *at > now),
        ];
        let Some(at) = next.into_iter().flatten().min() else { return PollTimeout::NONE };
        // Rounded up, so that the moment has come when poll returns.
        let millis = at.saturating_duration_since(now).as_millis().saturating_add(1);
        PollTimeout::try_from(millis).unwrap_or(PollTimeout::MAX)
    }

    fn on_ready(&mut self, tag: Tag, flags: PollFlags) {
        match tag {
            Tag::Signals => self.on_signals(),
            Tag::Listener => self.unknown.extend(control::accept(&self.listener)),
            Tag::Unknown(index) => self.on_unknown(index),
            Tag::Control(index) => self.on_control(index),
            Tag::Link => self.on_link(flags),
            Tag::Input => self.feed(),
            Tag::Output(index) => self.on_output(index),
        }
    }

    fn on_signals(&mut self) {
        while let Ok(Some(signal)) = self.signals.read_signal() {
            if signal.ssi_signo == Signal::SIGTERM as u32 {
                self.notices.push("sallyport: this host is shutting down", Instant::now());
                self.end();
            }
        }
        if self.exit.is_some() {
            return;
        }
        // WNOWAIT: the leader stays a zombie until we end, so its number, which is its group's too, is not reused
        // while we may still send signals to it.
        let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
        let ended = match waitid(Id::Pid(self.leader.pid), flags) {
            Ok(status) => exit_of(status, self.trouble()),
            // A real-time signal, which has no name.
            Err(Errno::EINVAL) => Some((signalled("RT", false, String::new()), "SIGRT".to_owned())),
            Err(_) => None,
        };
        if let Some((frame, text)) = ended {
            let now = Instant::now();
            if !frame.message.is_empty() {
                self.notices.push(&format!("sallyport: {}", frame.message), now);
            }
            self.exit = Some(Ended { at: now, frame, text, drained: 0, last_output: now });
            self.report_state();
        }
    }

    /// What the leader had to say about a failed start.
    fn trouble(&self) -> String {
        let mut buffer = [0u8; 1024];
        let _ = super::io::set_nonblocking(&self.leader.trouble);
        match read_step(&self.leader.trouble, &mut buffer) {
            Reading::Bytes(n) => String::from_utf8_lossy(&buffer[..n]).into_owned(),
            Reading::Later | Reading::End => String::new(),
        }
    }

    fn on_unknown(&mut self, index: usize) {
        // An index that moved since the poll leads to another connection, which then has nothing to read.
        if index >= self.unknown.len() {
            return;
        }
        match control::classify(self.unknown.remove(index)) {
            Kind::Unknown(stream) => self.unknown.push(stream),
            Kind::Gone => {}
            Kind::Control(stream) => {
                let mut control = Control::new(stream);
                if control.write(&self.state()) {
                    self.controls.push(control);
                }
            }
            Kind::Link(stream) => {
                let mut link = Link::new(stream);
                link.push(&self.channel.attach_frame());
                self.link = Some(link);
                self.detached.get_or_insert(Instant::now());
            }
        }
    }

    fn on_control(&mut self, index: usize) {
        let Some(commands) = self.controls.get_mut(index).map(Control::read) else { return };
        let Some(commands) = commands else {
            self.controls.remove(index);
            return;
        };
        for command in commands {
            match command {
                Command::Go => self.go(),
                Command::Notice(text) => {
                    let now = Instant::now();
                    self.notices.push(&text, now);
                    self.noticed = Some(now);
                }
                Command::End(reason) => {
                    self.notices.push(&format!("sallyport: {reason}"), Instant::now());
                    self.end();
                }
            }
        }
    }

    fn go(&mut self) {
        if let Some(mut gate) = self.leader.gate.take() {
            use std::io::Write as _;
            // A leader that is already gone is found by SIGCHLD.
            let _ = gate.write_all(b"g");
            self.detached.get_or_insert(Instant::now());
            self.report_state();
        }
    }

    fn on_link(&mut self, flags: PollFlags) {
        let result = self.read_link(flags);
        if result.is_err() {
            self.lose_link();
        }
    }

    fn lose_link(&mut self) {
        self.link = None;
        self.channel.on_detach();
        self.detached = Some(Instant::now());
    }

    fn read_link(&mut self, flags: PollFlags) -> Result<(), LinkLost> {
        if !flags.intersects(PollFlags::POLLIN | PollFlags::POLLHUP | PollFlags::POLLERR) {
            return Ok(());
        }
        let Some(link) = &mut self.link else { return Ok(()) };
        link.fill(&mut self.scratch)?;
        loop {
            let Some(link) = &mut self.link else { return Ok(()) };
            let Some(frame) = link.frame()? else { break };
            match self.channel.on_frame(frame) {
                Ok(Incoming::Deliver { seq, body }) => self.on_body(seq, body),
                Ok(Incoming::Attached { resend }) => {
                    self.detached = None;
                    resend.iter().for_each(|frame| link.push(frame));
                }
                Ok(Incoming::Acked | Incoming::Duplicate) => {}
                Err(error) => {
                    if error.is_fatal() {
                        self.end();
                    }
                    return Err(LinkLost::Closed);
                }
            }
        }
        self.feed();
        Ok(())
    }

    fn on_body(&mut self, seq: u64, body: Body) {
        match body {
            Body::Chunk(chunk) => return self.queue.push(seq, chunk.data),
            Body::Eof(_) => return self.queue.finish(seq),
            // What follows does not wait behind input that the program has not read.
            Body::Resize(size) => self.resize(&size),
            Body::Signal(name) => self.signal(&name),
            Body::Hangup(_) => self.end(),
            Body::Attach(_) | Body::Ack(_) | Body::Exit(_) => {}
        }
        self.channel.take(seq);
    }

    fn resize(&self, size: &WindowSize) {
        let short = |n: u32| u16::try_from(n).unwrap_or(u16::MAX);
        if let Some(master) = self.outputs[0].fd.as_ref().filter(|_| self.is_terminal()) {
            let size = [short(size.columns), short(size.rows), short(size.width_px), short(size.height_px)];
            let _ = terminal::resize(master, size);
        }
    }

    /// As the session's own user, so that nobody can signal through us what they could not themselves.
    fn signal(&self, name: &str) {
        let Ok(signal) = format!("SIG{name}").parse::<Signal>() else { return };
        if self.leader.gate.is_none() && seteuid(self.uid).is_ok() {
            let _ = killpg(self.leader.pid, signal);
            let _ = seteuid(Uid::current());
        }
    }

    fn feed(&mut self) {
        let Self { input, queue, channel, .. } = self;
        let Some(fd) = input else { return queue.discard(|seq| channel.take(seq)) };
        match queue.feed(fd.as_fd(), |seq| channel.take(seq)) {
            Feeding::Later | Feeding::Empty => {}
            // A terminal has no end of input apart from its hang-up; sshd does nothing here either.
            Feeding::End if self.spec.pty.is_some() => {}
            Feeding::End => *input = None,
            Feeding::NoReader => {
                *input = None;
                queue.discard(|seq| channel.take(seq));
            }
        }
    }

    fn on_output(&mut self, index: usize) {
        let limit = self.channel.room().min(STEP);
        let output = &mut self.outputs[index];
        let Some(fd) = output.fd.as_ref().filter(|_| limit > 0) else { return };
        match read_step(fd, &mut self.scratch[..limit]) {
            Reading::Later => {}
            Reading::End => output.fd = None,
            Reading::Bytes(n) => {
                let (data, stream) = (Bytes::copy_from_slice(&self.scratch[..n]), output.stream);
                if let Some(ended) = &mut self.exit {
                    ended.drained += n;
                    ended.last_output = Instant::now();
                }
                if index == self.notice_stream() {
                    self.notices.saw(&data);
                }
                self.emit(Body::Chunk(Chunk { stream: stream as i32, data }));
            }
        }
    }

    /// Sends a frame; `false`: the window is full.
    fn emit(&mut self, body: Body) -> bool {
        match self.channel.send(body) {
            Ok(frame) => {
                if let (Some(link), Some(frame)) = (&mut self.link, frame) {
                    link.push(&frame);
                }
                true
            }
            Err(_) => false,
        }
    }

    fn notice_stream(&self) -> usize {
        usize::from(!self.is_terminal())
    }

    /// The longest text of all waiting lines must fit.
    fn takes_notices(&self) -> bool {
        !self.exit_sent && !self.outputs[self.notice_stream()].eof_sent && self.channel.room() >= STEP
    }

    fn place_notices(&mut self, now: Instant) {
        let index = self.notice_stream();
        let force = self.outputs[index].fd.is_none();
        if self.takes_notices()
            && let Some(data) = self.notices.take(now, force)
        {
            self.emit(Body::Chunk(Chunk { stream: self.outputs[index].stream as i32, data }));
        }
    }

    fn flush(&mut self) {
        let idle = !self.queue.wants_write();
        let ack = self.channel.ack_due(idle);
        let Some(link) = &mut self.link else { return };
        ack.iter().for_each(|ack| link.push(ack));
        if link.flush().is_err() {
            self.lose_link();
        }
    }

    fn state(&self) -> Report {
        Report::State {
            leader: self.leader.pid.as_raw().unsigned_abs(),
            running: self.leader.gate.is_none(),
            exit: self.exit.as_ref().map(|ended| ended.text.clone()),
        }
    }

    fn report_state(&mut self) {
        let state = self.state();
        self.controls.retain_mut(|control| control.write(&state));
    }
}
