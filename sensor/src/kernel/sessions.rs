//! Sessions and tags in the kernel.

use std::mem::offset_of;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{MutexGuard, PoisonError};

use aya::maps::{HashMap, MapData, MapError};
use sallyport_sensor_abi::MAX_SESSIONS;
use sallyport_sensor_abi::session::{ENDED_LIMIT, Host, SESSION_MONITORED, SESSION_SEALED, Session, Tag};

use super::mapped::grace_period;
use super::{Kernel, KernelError};

/// Flag of a map update: the key must be new.
const BPF_NOEXIST: u64 = 1;

/// A session as the kernel has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OpenSession {
    /// The sensor's number for it.
    pub number: u64,
    /// Policy that judges it.
    pub policy_slot: u32,
    /// Everything is denied.
    pub sealed: bool,
    /// Tagged processes alive.
    pub tasks: u32,
    /// How many it may have.
    pub task_limit: u32,
    /// Tagged processes that ended and that nobody has waited for, or that the kernel has not freed yet.
    pub ended: u32,
    /// Nothing is denied, only reported.
    pub monitored: bool,
    /// Bytes of its events in the ring.
    pub queued: u64,
    /// Events of its that were lost.
    pub lost: u64,
}

/// A tagged process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TaggedTask {
    /// Process, in the initial pid namespace.
    pub tgid: u32,
    /// Its session.
    pub session: u64,
    /// The sensor's number for the channel it descends from.
    pub channel: u32,
    /// When it started, in nanoseconds since boot. For a process that the sensor tagged itself, rounded down to
    /// what `/proc` shows.
    pub started: u64,
}

impl Kernel {
    /// Opens a session that is judged by the policy in `policy_slot` and may have `task_limit` processes.
    pub fn open_session(&self, number: u64, policy_slot: u32, task_limit: u32) -> Result<(), KernelError> {
        self.open_with(number, policy_slot, task_limit, 0)
    }

    /// As [`Self::open_session`], but nothing is denied: what would be is reported as observed.
    pub fn open_monitored_session(
        &self,
        number: u64,
        policy_slot: u32,
        task_limit: u32,
    ) -> Result<(), KernelError> {
        self.open_with(number, policy_slot, task_limit, SESSION_MONITORED)
    }

    fn open_with(
        &self,
        number: u64,
        policy_slot: u32,
        task_limit: u32,
        flags: u32,
    ) -> Result<(), KernelError> {
        self.require_policy(policy_slot)?;
        let mut freed = self.freed_session.lock().unwrap_or_else(PoisonError::into_inner);
        if number == 0 || self.slot(number).is_some() {
            return Err(KernelError::SessionNumber(number));
        }
        if *freed {
            grace_period();
            *freed = false;
        }
        let slot = (0..MAX_SESSIONS)
            .find(|slot| self.number(*slot).load(Ordering::SeqCst) == 0)
            .ok_or(KernelError::Full { what: "sessions", limit: MAX_SESSIONS })?;
        let session = Session {
            policy: policy_slot,
            flags,
            task_limit,
            ended_limit: ENDED_LIMIT,
            ..Session::default()
        };
        self.sessions.write(slot, &session);
        self.number(slot).store(number, Ordering::SeqCst);
        Ok(())
    }

    /// Has a running session judged by another policy, from its next action on.
    pub fn set_session_policy(&self, number: u64, policy_slot: u32) -> Result<(), KernelError> {
        self.require_policy(policy_slot)?;
        let slot = self.slot(number).ok_or(KernelError::NoSession(number))?;
        self.word(slot, offset_of!(Session, policy)).store(policy_slot, Ordering::SeqCst);
        Ok(())
    }

    /// Has a session only watched from now on (nothing is denied), or judged again.
    pub fn set_session_monitored(&self, number: u64, monitored: bool) -> Result<(), KernelError> {
        let slot = self.slot(number).ok_or(KernelError::NoSession(number))?;
        let flags = self.word(slot, offset_of!(Session, flags));
        if monitored {
            flags.fetch_or(SESSION_MONITORED, Ordering::SeqCst);
        } else {
            flags.fetch_and(!SESSION_MONITORED, Ordering::SeqCst);
        }
        Ok(())
    }

    /// Sets how many ended processes a session may leave behind; [`ENDED_LIMIT`] when it opens.
    pub fn set_session_ended_limit(&self, number: u64, limit: u32) -> Result<(), KernelError> {
        let slot = self.slot(number).ok_or(KernelError::NoSession(number))?;
        self.word(slot, offset_of!(Session, ended_limit)).store(limit, Ordering::SeqCst);
        Ok(())
    }

    /// Denies every exec and connection of a session from now on.
    pub fn seal_session(&self, number: u64) -> Result<(), KernelError> {
        let slot = self.slot(number).ok_or(KernelError::NoSession(number))?;
        self.word(slot, offset_of!(Session, flags)).fetch_or(SESSION_SEALED, Ordering::SeqCst);
        Ok(())
    }

    /// Forgets a session. Processes that still carry its tag are denied everything.
    pub fn close_session(&self, number: u64) -> Result<(), KernelError> {
        let mut freed = self.freed_session.lock().unwrap_or_else(PoisonError::into_inner);
        let slot = self.slot(number).ok_or(KernelError::NoSession(number))?;
        self.number(slot).store(0, Ordering::SeqCst);
        *freed = true;
        Ok(())
    }

    /// The open sessions, also those of an earlier sensor.
    pub fn sessions(&self) -> Vec<OpenSession> {
        (0..MAX_SESSIONS)
            .map(|slot| self.sessions.read(slot))
            .filter(|session| session.number != 0)
            .map(|session| OpenSession {
                number: session.number,
                policy_slot: session.policy,
                sealed: session.flags & SESSION_SEALED != 0,
                tasks: session.tasks,
                task_limit: session.task_limit,
                ended: session.ended,
                monitored: session.flags & SESSION_MONITORED != 0,
                queued: session.queued,
                lost: session.lost,
            })
            .collect()
    }

    /// Tags a process; its later children inherit the tag. Fails if it ended before the tag could hold.
    ///
    /// The process must wait until this returns: what it does before is not judged.
    pub fn tag(&self, tgid: u32, session: u64, channel: u32) -> Result<TaggedTask, KernelError> {
        let slot = self.slot(session).ok_or(KernelError::NoSession(session))?;
        let started = started(tgid).ok_or(KernelError::NoProcess(tgid))?;
        let counters = [self.word(slot, offset_of!(Session, tasks)), self.host_tasks()];
        for counter in counters {
            counter.fetch_add(1, Ordering::SeqCst);
        }
        let inserted = self.tasks_map().insert(
            tgid,
            Tag { session, started, channel, slot, ..Tag::default() },
            BPF_NOEXIST,
        );
        if let Err(error) = inserted {
            for counter in counters {
                counter.fetch_sub(1, Ordering::SeqCst);
            }
            return Err(match &error {
                MapError::SyscallError(call) if call.io_error.raw_os_error() == Some(libc::EEXIST) => {
                    KernelError::Tagged(tgid)
                }
                _ => KernelError::Map { map: "TASKS", action: "write to", source: error.into() },
            });
        }
        self.mark(tgid);
        // Had it ended before the tag was there, nothing would ever remove the tag, and whoever gets its number
        // next would be judged.
        if self::started(tgid) != Some(started) {
            self.untag(tgid)?;
            return Err(KernelError::NoProcess(tgid));
        }
        Ok(TaggedTask { tgid, session, channel, started })
    }

    /// Takes a process's tag away; that of a process without one is not an error.
    pub fn untag(&self, tgid: u32) -> Result<(), KernelError> {
        let mut map = self.tasks_map();
        let Ok(tag) = map.get(&tgid, 0) else { return Ok(()) };
        // Whoever removes it counts it: the exit hook may be first.
        if map.remove(&tgid).is_ok() {
            let (word, bit) = self.tagged_bit(tgid);
            word.fetch_and(!bit, Ordering::SeqCst);
            // Its number could have been given to another process of a session, which then found the bit set.
            if map.get(&tgid, 0).is_ok() {
                word.fetch_or(bit, Ordering::SeqCst);
            }
            self.host_tasks().fetch_sub(1, Ordering::SeqCst);
            if self.slot(tag.session) == Some(tag.slot) {
                self.word(tag.slot, offset_of!(Session, tasks)).fetch_sub(1, Ordering::SeqCst);
            }
        }
        Ok(())
    }

    /// An ended process less, of the host and of the session, if that is still there.
    pub(super) fn count_ended_down(&self, session: u64, slot: u32) {
        self.host.word(0, offset_of!(Host, ended)).fetch_sub(1, Ordering::SeqCst);
        if self.slot(session) == Some(slot) {
            self.word(slot, offset_of!(Session, ended)).fetch_sub(1, Ordering::SeqCst);
        }
    }

    /// The tagged processes.
    pub fn tasks(&self) -> Result<Vec<TaggedTask>, KernelError> {
        self.tasks_map()
            .iter()
            .map(|entry| {
                let (tgid, tag) = entry.map_err(|source| KernelError::Map {
                    map: "TASKS",
                    action: "read",
                    source: source.into(),
                })?;
                Ok(TaggedTask { tgid, session: tag.session, channel: tag.channel, started: tag.started })
            })
            .collect()
    }

    /// Sets how many tagged processes the host may have before those that fork are killed.
    pub fn set_host_task_limit(&self, limit: u32) {
        let limit = limit.min(sallyport_sensor_abi::TASKS_SOFT_LIMIT);
        self.host.word(0, offset_of!(Host, task_limit)).store(limit, Ordering::SeqCst);
    }

    /// Tagged processes alive on the host, as the kernel counts them.
    pub fn host_task_count(&self) -> u32 {
        self.host_tasks().load(Ordering::SeqCst)
    }

    /// Sets a process's bit, after its entry is there.
    fn mark(&self, tgid: u32) {
        let (word, bit) = self.tagged_bit(tgid);
        word.fetch_or(bit, Ordering::SeqCst);
    }

    /// Makes bits and entries agree, after a sensor was killed between the two.
    pub(super) fn mark_all(&self) -> Result<(), KernelError> {
        for task in self.tasks()? {
            self.mark(task.tgid);
        }
        Ok(())
    }

    fn tagged_bit(&self, tgid: u32) -> (&AtomicU64, u64) {
        (self.tagged.double_word(tgid / 64, 0), 1 << (tgid % 64))
    }

    fn tasks_map(&self) -> MutexGuard<'_, HashMap<MapData, u32, Tag>> {
        self.tasks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn host_tasks(&self) -> &AtomicU32 {
        self.host.word(0, offset_of!(Host, tasks))
    }

    pub(super) fn slot(&self, number: u64) -> Option<u32> {
        (0..MAX_SESSIONS).find(|slot| number != 0 && self.number(*slot).load(Ordering::SeqCst) == number)
    }

    fn number(&self, slot: u32) -> &AtomicU64 {
        self.sessions.double_word(slot, offset_of!(Session, number))
    }

    fn word(&self, slot: u32, offset: usize) -> &AtomicU32 {
        self.sessions.word(slot, offset)
    }
}

/// When a process that is not a zombie started, in nanoseconds since boot, to a hundredth of a second.
#[expect(unsafe_code, reason = "`sysconf` is not in `nix` with the features used")]
pub(super) fn started(tgid: u32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{tgid}/stat")).ok()?;
    // The name, in parentheses, can hold anything; state is the first field after it, start time the 20th.
    let fields: Vec<_> = stat.get(stat.rfind(')')? + 2..)?.split(' ').collect();
    if matches!(*fields.first()?, "Z" | "X") {
        return None;
    }
    // SAFETY: takes and returns numbers.
    let ticks_per_second = u64::try_from(unsafe { libc::sysconf(libc::_SC_CLK_TCK) }).ok()?;
    Some(fields.get(19)?.parse::<u64>().ok()? * (1_000_000_000 / ticks_per_second))
}
