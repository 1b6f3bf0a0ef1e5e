//! What holds for the whole host: the sign of life, processes that are guarded, log-ins outside of a gateway.

use std::mem::offset_of;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use sallyport_sensor_abi::session::{HOST_UNBROKERED, Host, MAX_ACCOUNTS, Unbrokered};

use super::{Kernel, KernelError};
use crate::clock;

impl Kernel {
    /// Says that the sensor is alive. See [`Self::set_grace`].
    pub fn heartbeat(&self) {
        self.host_double(offset_of!(Host, alive)).store(clock::boot_ns(), Ordering::SeqCst);
    }

    /// How long the sensor may be silent before tagged sessions can start nothing new: programs, connections, listening
    /// sockets, connections to Unix sockets. Zero: for ever. Gives a sign of life first.
    pub fn set_grace(&self, grace: Duration) {
        self.heartbeat();
        let grace = u64::try_from(grace.as_nanos()).unwrap_or(u64::MAX);
        self.host_double(offset_of!(Host, grace)).store(grace, Ordering::SeqCst);
    }

    /// Lets no tagged process signal or trace this one, whatever policy says.
    pub fn guard(&self, tgid: u32) -> Result<(), KernelError> {
        let started = super::sessions::started(tgid).ok_or(KernelError::NoProcess(tgid))?;
        let mut guarded = self.guarded.lock().unwrap_or_else(PoisonError::into_inner);
        guarded.insert(tgid, started, 0).map_err(|source| map_error("GUARDED", source))
    }

    /// Takes back [`Self::guard`]; of a process that is not guarded, nothing.
    pub fn unguard(&self, tgid: u32) {
        // Only its absence can be an error.
        let _ = self.guarded.lock().unwrap_or_else(PoisonError::into_inner).remove(&tgid);
    }

    /// Forgets guarded processes that ended: of an earlier sensor, for one.
    pub(super) fn sweep_guarded(&self) -> Result<(), KernelError> {
        let mut guarded = self.guarded.lock().unwrap_or_else(PoisonError::into_inner);
        let all: Vec<(u32, u64)> =
            guarded.iter().collect::<Result<_, _>>().map_err(|source| map_error("GUARDED", source))?;
        for (tgid, started) in all {
            if super::sessions::started(tgid) != Some(started) {
                let _ = guarded.remove(&tgid);
            }
        }
        Ok(())
    }

    /// Whether log-ins outside of a gateway are tagged, and with which open session: by login uid
    /// ([`sallyport_sensor_abi::session::ANY_LOGIN`] for all others). A process is tagged when it executes a program.
    ///
    /// Replaces what was set before. Processes tagged earlier keep their session.
    pub fn set_unbrokered(
        &self,
        enabled: bool,
        accounts: impl IntoIterator<Item = (u32, u64)>,
    ) -> Result<(), KernelError> {
        let mut wanted = std::collections::HashMap::new();
        for (login, session) in accounts {
            let slot = self.slot(session).ok_or(KernelError::NoSession(session))?;
            wanted.insert(login, Unbrokered { session, slot, _pad: 0 });
        }
        if wanted.len() > MAX_ACCOUNTS as usize {
            return Err(KernelError::Full { what: "accounts of log-ins", limit: MAX_ACCOUNTS });
        }
        let flags = self.host_word(offset_of!(Host, flags));
        if !enabled {
            flags.fetch_and(!HOST_UNBROKERED, Ordering::SeqCst);
        }
        let mut map = self.unbrokered.lock().unwrap_or_else(PoisonError::into_inner);
        let before: Vec<u32> = map.keys().flatten().collect();
        for login in before.iter().filter(|login| !wanted.contains_key(login)) {
            let _ = map.remove(login);
        }
        for (login, session) in wanted {
            map.insert(login, session, 0).map_err(|source| map_error("UNBROKERED", source))?;
        }
        if enabled {
            flags.fetch_or(HOST_UNBROKERED, Ordering::SeqCst);
        }
        Ok(())
    }

    pub(super) fn host_word(&self, offset: usize) -> &AtomicU32 {
        self.host.word(0, offset)
    }

    fn host_double(&self, offset: usize) -> &AtomicU64 {
        self.host.double_word(0, offset)
    }
}

pub(super) fn map_error(map: &'static str, source: aya::maps::MapError) -> KernelError {
    KernelError::Map { map, action: "write to", source: source.into() }
}
