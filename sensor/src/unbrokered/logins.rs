//! The log-ins that are going on: opened at the first sight of one, closed when its last process has ended.
//!
//! A log-in is known by its audit session, a number that the kernel gives once per boot; the programs put it where events
//! of brokered sessions have their channel. Events can be lost, so the end is taken from the kernel's tags, not from
//! counting exits. Kept on disk, so that a restarted sensor neither opens a log-in twice nor forgets to close it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::files;

/// A log-in.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Login {
    /// Of the session in records.
    pub(super) id: String,
    /// The kernel's session that it is judged in.
    pub(super) number: u64,
    /// Who logged in.
    pub(super) uid: u32,
    /// Name of that account.
    pub(super) account: String,
    /// No tag of it was there when they were looked at last.
    #[serde(default, skip)]
    idle: bool,
    /// The close was recorded; kept for events that are still under way.
    #[serde(default)]
    closed: bool,
}

/// Closed log-ins that are remembered for late events.
const REMEMBERED: usize = 1_024;

/// All of them, by audit session.
#[derive(Debug, Default)]
pub(super) struct Logins {
    file: PathBuf,
    logins: BTreeMap<u32, Login>,
}

impl Logins {
    /// With what a predecessor wrote on this boot.
    pub(super) fn open(file: PathBuf) -> Self {
        // A file that is damaged costs at most a second record of an opening.
        let logins = files::read_json(&file).unwrap_or_default();
        Self { file, logins }
    }

    pub(super) fn get(&self, audit_session: u32) -> Option<&Login> {
        self.logins.get(&audit_session)
    }

    /// Whether any are open.
    pub(super) fn any(&self) -> bool {
        self.logins.values().any(|login| !login.closed)
    }

    /// How many are open.
    pub(super) fn count(&self) -> usize {
        self.logins.values().filter(|login| !login.closed).count()
    }

    /// Enters one, if it is not open.
    pub(super) fn see(
        &mut self,
        audit_session: u32,
        number: u64,
        uid: u32,
        named: impl FnOnce() -> (String, String),
    ) -> Option<Login> {
        if let Some(login) = self.logins.get_mut(&audit_session) {
            login.idle = false;
            if !login.closed {
                return None;
            }
            // A process of it was in the middle of starting when the last one before it ended.
            login.closed = false;
            let again = login.clone();
            self.keep();
            return Some(again);
        }
        let (id, account) = named();
        let login = Login { id, number, uid, account, idle: false, closed: false };
        self.logins.insert(audit_session, login.clone());
        self.keep();
        Some(login)
    }

    /// Given the audit sessions that have tags now: those that have ended. One without tags is closed the second time it
    /// is found so, when the events of its last processes have been read.
    pub(super) fn ended(&mut self, alive: &BTreeSet<u32>) -> Vec<(u32, Login)> {
        let mut ended = Vec::new();
        for (audit_session, login) in &mut self.logins {
            if login.closed {
                continue;
            }
            if alive.contains(audit_session) {
                login.idle = false;
            } else if !std::mem::replace(&mut login.idle, true) {
                // Look again the next time.
            } else {
                login.closed = true;
                ended.push((*audit_session, login.clone()));
            }
        }
        if !ended.is_empty() {
            let closed: Vec<u32> =
                self.logins.iter().filter(|(_, login)| login.closed).map(|(audit, _)| *audit).collect();
            // Audit sessions are numbered upwards.
            for audit_session in closed.iter().take(closed.len().saturating_sub(REMEMBERED)) {
                self.logins.remove(audit_session);
            }
            self.keep();
        }
        ended
    }

    fn keep(&self) {
        if let Err(error) = files::write_json(&self.file, &self.logins) {
            tracing::error!(%error, file = %self.file.display(), "the list of log-ins cannot be kept");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named() -> (String, String) {
        ("id".into(), "alice".into())
    }

    #[test]
    fn a_login_is_opened_once_and_closed_once() {
        let dir = tempfile::tempdir().expect("dir");
        let file = dir.path().join("logins");
        let mut logins = Logins::open(file.clone());
        assert!(logins.see(7, 1, 1000, named).is_some());
        assert!(logins.see(7, 1, 1000, named).is_none());
        assert!(logins.ended(&BTreeSet::from([7])).is_empty());
        assert!(logins.ended(&BTreeSet::new()).is_empty(), "its last events may still be in the ring");
        // A restarted sensor knows it.
        let mut logins = Logins::open(file.clone());
        assert!(logins.see(7, 1, 1000, named).is_none() && logins.any());
        assert!(logins.ended(&BTreeSet::new()).is_empty());
        let ended = logins.ended(&BTreeSet::new());
        assert_eq!(ended.len(), 1);
        assert_eq!(ended[0].1.account, "alice");
        assert!(logins.ended(&BTreeSet::new()).is_empty() && !logins.any());
        assert!(logins.get(7).is_some(), "late events still find it");
        assert!(logins.see(7, 1, 1000, named).is_some(), "it goes on after all");
        assert!(!Logins::open(file).logins[&7].closed);
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let dir = tempfile::tempdir().expect("dir");
        let mut logins = Logins::open(dir.path().join("logins"));
        // Without the file: a thousand flushes take a while.
        logins.file = PathBuf::from("/nonexistent/logins");
        for audit_session in 0..2 * u32::try_from(REMEMBERED).expect("small") {
            logins.see(audit_session, 1, 0, named);
        }
        logins.ended(&BTreeSet::new());
        logins.ended(&BTreeSet::new());
        assert_eq!(logins.logins.len(), REMEMBERED);
        assert!(logins.get(0).is_none() && logins.get(2_047).is_some());
    }
}
