//! How a channel ends: hang-up, grace, the order of the last frames, and when nobody comes for them.

use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, killpg};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
use nix::unistd::tcgetpgrp;
use sallyport_contract::v1::{Eof, Exit, channel_frame::Body, exit::Status};

use super::{DRAIN_LIMIT, DRAINED_AFTER, EXPLAINED_WITHIN, GO_WITHIN, Output, Shepherd};
use crate::shepherd::leader::CANNOT_EXECUTE;
use crate::shepherd::protocol::{Report, line, socket_path};

impl Shepherd {
    pub(super) fn on_timers(&mut self, now: Instant) {
        if self.leader.gate.is_some() && now >= self.started + GO_WITHIN {
            self.leader.gate = None;
        }
        let reattach = Duration::from_millis(self.spec.reattach_grace_ms);
        if self.detached.is_some_and(|since| now >= since + reattach) {
            self.end();
        }
        if !self.killed && self.ending.is_some_and(|at| now >= at) {
            self.killed = true;
            let _ = killpg(self.leader.pid, Signal::SIGKILL);
        }
    }

    /// Hangs up: the client is gone, the grant is over, or nobody came back.
    pub(super) fn end(&mut self) {
        if self.ending.is_some() {
            return;
        }
        // A leader that was not let go ends at its closed gate.
        self.leader.gate = None;
        self.ending = Some(Instant::now() + Duration::from_millis(self.spec.hangup_grace_ms));
        let leader = self.leader.pid;
        let foreground =
            self.outputs[0].fd.as_ref().filter(|_| self.is_terminal()).and_then(|fd| tcgetpgrp(fd).ok());
        let foreground = foreground.filter(|group| *group != leader && group.as_raw() > 1);
        for group in std::iter::once(leader).chain(foreground) {
            let _ = killpg(group, Signal::SIGHUP);
            let _ = killpg(group, Signal::SIGCONT);
        }
        if !self.is_terminal() {
            // Readers see the end of input.
            self.input = None;
            self.feed();
        }
    }

    /// Until when the end of a leader waits for the line that explains it; none: it does not.
    pub(super) fn explained_at(&self) -> Option<Instant> {
        let ended = self.exit.as_ref().filter(|_| !self.exit_sent && self.ending.is_none())?;
        let until = ended.at + EXPLAINED_WITHIN;
        // A line that came shortly before the end explains it as well as one that comes after.
        let explained = self.noticed.is_some_and(|at| at + EXPLAINED_WITHIN >= ended.at);
        (refused_perhaps(&ended.frame) && !explained).then_some(until)
    }

    /// Sends ends of streams and, last, the exit, when their time has come and the window takes them.
    pub(super) fn finish(&mut self, now: Instant) {
        if self.exit_sent {
            return;
        }
        if let Some(ended) = &self.exit {
            let overdue = self.killed && now >= ended.at + DRAINED_AFTER;
            let idle = now >= ended.last_output + DRAINED_AFTER && self.wants_output();
            let drained = self.is_terminal() && (idle || ended.drained > DRAIN_LIMIT);
            if overdue || drained {
                self.outputs.iter_mut().for_each(|output| output.fd = None);
            }
        }
        if self.explained_at().is_some_and(|at| now < at) {
            return;
        }
        let done = self.outputs.iter().all(|output| output.fd.is_none());
        if done && self.exit.is_some() && self.notices.is_waiting() {
            self.place_notices(now);
            if self.notices.is_waiting() {
                return;
            }
        }
        for index in 0..self.outputs.len() {
            let Output { stream, fd, eof_sent } = &self.outputs[index];
            // A stream on which a notice may still come is open until the leader has ended.
            let closed = fd.is_none() && (self.exit.is_some() || index != self.notice_stream());
            if closed && !eof_sent {
                let body = Body::Eof(Eof { stream: *stream as i32 });
                self.outputs[index].eof_sent = self.emit(body);
            }
        }
        if let Some(ended) = self.exit.as_ref().filter(|_| self.outputs.iter().all(|output| output.eof_sent))
        {
            let body = Body::Exit(ended.frame.clone());
            self.exit_sent = self.emit(body);
        }
    }

    /// Whether there is nothing left to do, and if so whether the gateway has taken everything.
    pub(super) fn is_over(&self, now: Instant) -> Option<bool> {
        let ended = self.exit.as_ref()?;
        if self.exit_sent && self.channel.unacked() == 0 {
            return Some(true);
        }
        let reattach = Duration::from_millis(self.spec.reattach_grace_ms);
        let abandoned = self.detached.is_some_and(|since| now >= since + reattach);
        // Never let go: nobody was told of this channel, so nobody will come for its exit.
        let never_ran = self.detached.is_none() && self.link.is_none();
        (now >= ended.at && (abandoned || never_ran)).then_some(false)
    }

    pub(super) fn leave(mut self, delivered: bool) {
        let exit = self.exit.as_ref().map_or_else(String::new, |ended| ended.text.clone());
        let done = Report::Done { exit, delivered };
        // A sensor that is not there now reads it when it comes back.
        let _ = std::fs::write(self.spec.directory.join("done"), line(&done));
        let _ = std::fs::remove_file(socket_path(&self.spec.directory));
        for control in &mut self.controls {
            control.write(&done);
        }
        let _ = waitid(Id::Pid(self.leader.pid), WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG);
    }
}

/// Killed, or 126 ("cannot execute"): how a command ends that policy refuses.
fn refused_perhaps(exit: &Exit) -> bool {
    match &exit.status {
        Some(Status::Signal(name)) => name == "KILL",
        Some(Status::Code(code)) => i64::from(*code) == i64::from(CANNOT_EXECUTE),
        None => false,
    }
}

/// The exit frame, and the text of records: the code, or `SIG…`.
pub(super) fn exit_of(status: WaitStatus, trouble: String) -> Option<(Exit, String)> {
    match status {
        WaitStatus::Exited(_, code) => {
            let code = u32::try_from(code).unwrap_or_default();
            let frame = Exit { status: Some(Status::Code(code)), core_dumped: false, message: trouble };
            Some((frame, code.to_string()))
        }
        WaitStatus::Signaled(_, signal, core) => {
            let name = signal.as_str().trim_start_matches("SIG");
            Some((signalled(name, core, trouble), signal.as_str().to_owned()))
        }
        _ => None,
    }
}

pub(super) fn signalled(name: &str, core_dumped: bool, message: String) -> Exit {
    Exit { status: Some(Status::Signal(name.to_owned())), core_dumped, message }
}
