//! Log-ins that did not come through a gateway: console, direct `ssh`, cron as a person. Seen, recorded, and governed by
//! the policy for `User::"unbrokered"`, if the configuration says so.
//!
//! The kernel tags a process that executes a program, has a login uid and no tag. For each account with a login
//! shell, and once for all others, there is a session in the kernel for that; its number is [`NUMBERS`] plus the login uid,
//! so a restarted sensor knows it at sight. In mode `record` it is watched: nothing is denied, and what would be is
//! recorded. In mode `enforce` verdicts hold, except where that would lock out a host: without a policy, for an account
//! for which the policy cannot be compiled, and for break-glass accounts there is only a record, and a loud word.
//!
//! Kernels without audit have no login uid: such log-ins cannot be seen there, and the log and `doctor` say so.

mod accounts;
mod apply;
mod logins;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use sallyport_evidence::Record;
use sallyport_evidence::record::{Decision, Identity, Kind, Outcome, Process, Session};
use sallyport_policy::{Principal, Question};

use crate::clock;
use crate::kernel::{Event, Head, Kernel};
use crate::policies::Policies;
use crate::processes;
use crate::records::{Owner, blank, message_record};
use crate::spool::Spool;

use accounts::Stamp;
use logins::{Login, Logins};

pub use apply::Prepared;

/// Numbers of the kernel sessions are this plus the login uid. Brokered sessions are numbered by nanoseconds since boot,
/// which get here in three centuries.
pub const NUMBERS: u64 = 1 << 63;
/// Their principal: `User::"unbrokered"` in `Group::"unbrokered"`, of that kind.
pub const NAME: &str = "unbrokered";

/// What is done about them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Wanted {
    /// They are not looked at.
    Off,
    /// They are recorded, with what policy would have denied; nothing is denied.
    #[default]
    Record,
    /// Policy holds for them, too.
    Enforce,
}

/// From the configuration.
#[derive(Clone, Debug)]
pub struct Settings {
    /// This host's name.
    pub host: String,
    /// Runtime folder.
    pub run_dir: PathBuf,
    /// What is wanted.
    pub wanted: Wanted,
    /// Accounts that are only recorded, even when policy is enforced.
    pub break_glass: Vec<String>,
}

/// How things stand, for `doctor`.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Standing {
    /// What is wanted.
    pub wanted: Wanted,
    /// The kernel has login uids.
    pub audit: bool,
    /// Accounts with a session of their own.
    pub accounts: usize,
    /// Accounts on which policy is enforced.
    pub enforced: usize,
    /// Log-ins that are going on.
    pub logins: usize,
    /// Why it is less than what is wanted.
    pub troubles: Vec<String>,
}

/// The log-ins of this host. See the module's text.
#[derive(Debug)]
pub struct Unbrokered {
    settings: Settings,
    kernel: Arc<Kernel>,
    policies: Arc<Policies>,
    spool: Spool,
    tables: Mutex<Tables>,
}

#[derive(Debug)]
struct Tables {
    /// By login uid ([`sallyport_sensor_abi::session::ANY_LOGIN`]: all others).
    accounts: BTreeMap<u32, Held>,
    logins: Logins,
    /// State of the list of accounts that was read last.
    stamp: Option<Stamp>,
    /// Troubles that have been told already.
    told: BTreeSet<String>,
}

/// An account with a session in the kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Held {
    name: String,
    enforced: bool,
}

/// Whether this kernel keeps login uids (`CONFIG_AUDIT`).
#[must_use]
pub fn has_audit() -> bool {
    Path::new("/proc/self/loginuid").exists()
}

/// Whether a kernel session is one of these.
#[must_use]
pub fn is_number(session: u64) -> bool {
    session & NUMBERS != 0
}

/// The number of the session for a login uid.
fn number(uid: u32) -> u64 {
    NUMBERS + u64::from(uid)
}

/// As policy knows them.
#[must_use]
pub fn principal() -> Principal {
    Principal {
        user: NAME.into(),
        groups: vec![NAME.into()],
        kind: NAME.into(),
        issuer: String::new(),
        on_behalf_of: String::new(),
    }
}

/// A sensor that was started by hand carries the login uid of whoever did it, and would hand it on. It is nobody's log-in.
/// To be called before there are threads.
pub fn forget_own_login() {
    // Refused where audit has made login uids unchangeable, or is absent. Then the kernel leaves this process alone since
    // it is guarded.
    let _ = std::fs::write("/proc/self/loginuid", u32::MAX.to_string());
}

impl Unbrokered {
    /// Nothing is tagged yet; see [`Self::start`].
    #[must_use]
    pub fn new(settings: Settings, kernel: Arc<Kernel>, policies: Arc<Policies>, spool: Spool) -> Arc<Self> {
        let logins = Logins::open(settings.run_dir.join("logins.json"));
        let tables = Tables { accounts: BTreeMap::new(), logins, stamp: None, told: BTreeSet::new() };
        Arc::new(Self { settings, kernel, policies, spool, tables: Mutex::new(tables) })
    }

    /// To be called with each event before its record is made: the record of a log-in's opening, if this is the first sight of
    /// it.
    pub fn seen(&self, event: &Event) -> Option<Record> {
        let head = head(event);
        if !is_number(head.session) || matches!(event, Event::Exit { .. }) {
            return None;
        }
        let uid = head.process.login_uid.unwrap_or(u32::MAX);
        let login = self.tables().logins.see(head.channel, head.session, uid, || {
            let boot = clock::boot_id();
            let boot = boot.get(..8).unwrap_or(&boot);
            (format!("login-{boot}-{}", head.channel), account_name(uid))
        })?;
        Some(self.opened(&login, head, event))
    }

    fn opened(&self, login: &Login, head: &Head, event: &Event) -> Record {
        let enforced = self.enforced(login.number);
        let how = if enforced { "policy is enforced" } else { "recorded only" };
        let text = format!(
            "a log-in that did not come through a gateway: {} (login uid {}, audit session {}); {how}",
            login.account, login.uid, head.channel
        );
        let mut process = Process {
            pid: head.process.tgid,
            uid: head.process.uid,
            gid: head.process.gid,
            comm: head.process.comm.clone(),
            login_uid: Some(login.uid),
            audit_session: Some(head.channel),
            ..Process::default()
        };
        process.exec_id = format!("{}/{}/{}", clock::boot_id(), head.process.started, head.process.tgid);
        if let Event::Exec { exec, .. } = event {
            process.path = String::from_utf8_lossy(&exec.path).into_owned();
        }
        let wall = clock::wall_ns().wrapping_sub(clock::boot_ns()).wrapping_add(head.time);
        let owner = owner(login);
        Record {
            identity: Some(owner.identity),
            session: Some(owner.session),
            decision: self.decision(login),
            process: Some(process),
            message: Some(text),
            ..blank(Kind::SessionOpen, &self.settings.host, wall, head.time)
        }
    }

    /// What policy says of opening such a session. It is there already, so this is never more than an observation.
    fn decision(&self, login: &Login) -> Option<Decision> {
        let current = self.policies.for_logins()?;
        let question = Question::OpenSession {
            principal: principal(),
            host: self.settings.host.clone(),
            local_user: login.account.clone(),
            // Where it comes from is not known here.
            client_address: std::net::Ipv4Addr::UNSPECIFIED.into(),
        };
        let answer = current.decide(&question);
        Some(Decision {
            action: "open_session".into(),
            outcome: if answer.allowed { Outcome::Allowed } else { Outcome::Observed },
            policy: current.version.clone(),
            rule: answer.rule.as_ref().map_or_else(String::new, |rule| rule.id.clone()),
            reason: match answer.rule {
                Some(rule) => rule.reason,
                None if answer.allowed => String::new(),
                None => "no rule permits it".into(),
            },
            point: "sensor".into(),
        })
    }

    /// Whose an event is.
    #[must_use]
    pub fn owner(&self, session: u64, channel: u32) -> Option<Owner> {
        if !is_number(session) {
            return None;
        }
        let tables = self.tables();
        let known = tables.logins.get(channel).map(owner);
        // The log-in is forgotten, or was never seen: at least whose account it was.
        known.or_else(|| {
            let uid = u32::try_from(session - NUMBERS).ok()?;
            let account = tables.accounts.get(&uid).map_or_else(String::new, |held| held.name.clone());
            Some(owner_of(String::new(), account))
        })
    }

    /// Closes log-ins whose last process has ended, and follows changes of the list of accounts. To be called about every
    /// second, not from within the runtime: it can block for some milliseconds.
    pub fn tend(&self) -> Vec<Record> {
        if self.settings.wanted != Wanted::Off
            && self.tables().stamp != Stamp::of(Path::new(accounts::PASSWD))
        {
            self.apply(self.policies.for_logins().as_ref());
        }
        if !self.tables().logins.any() {
            return Vec::new();
        }
        let alive = match self.kernel.tasks() {
            Ok(tasks) => tasks.iter().filter(|task| is_number(task.session)).map(|t| t.channel).collect(),
            Err(error) => {
                tracing::error!(%error, "the tagged processes cannot be listed");
                return Vec::new();
            }
        };
        let ended = self.tables().logins.ended(&alive);
        let close = |(audit_session, login): (u32, Login)| {
            let owner = owner(&login);
            Record {
                identity: Some(owner.identity),
                session: Some(owner.session),
                ..message_record(
                    Kind::SessionClose,
                    &self.settings.host,
                    format!(
                        "the last process of {}'s log-in has ended (login uid {}, audit session {audit_session})",
                        login.account, login.uid
                    ),
                )
            }
        };
        ended.into_iter().map(close).collect()
    }

    /// A rule ends sessions that do this: kills every process of the log-in that did, if policy is enforced on it.
    pub fn end(&self, session: u64, audit_session: u32) {
        if self.enforced(session) {
            processes::signal(&self.kernel, libc::SIGKILL, |task| {
                task.session == session && task.channel == audit_session
            });
        }
    }

    /// How things stand.
    #[must_use]
    pub fn standing(&self) -> Standing {
        let tables = self.tables();
        Standing {
            wanted: self.settings.wanted,
            audit: has_audit(),
            accounts: tables.accounts.len(),
            enforced: tables.accounts.values().filter(|held| held.enforced).count(),
            logins: tables.logins.count(),
            troubles: tables.told.iter().cloned().collect(),
        }
    }

    fn enforced(&self, session: u64) -> bool {
        let uid = u32::try_from(session.wrapping_sub(NUMBERS)).ok();
        uid.is_some_and(|uid| self.tables().accounts.get(&uid).is_some_and(|held| held.enforced))
    }

    fn tables(&self) -> MutexGuard<'_, Tables> {
        self.tables.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What every event begins with.
fn head(event: &Event) -> &Head {
    event.head()
}

fn owner(login: &Login) -> Owner {
    owner_of(login.id.clone(), login.account.clone())
}

fn owner_of(id: String, account: String) -> Owner {
    let identity = Identity {
        user: NAME.into(),
        name: account.clone(),
        groups: vec![NAME.into()],
        kind: NAME.into(),
        ..Identity::default()
    };
    let session = Session { id, channel: String::new(), local_user: account, client: String::new() };
    Owner { identity, session }
}

/// Name of the account with this number: the host's, or its directory's; the number if it has none.
fn account_name(uid: u32) -> String {
    let user = nix::unistd::User::from_uid(nix::unistd::Uid::from_raw(uid));
    user.ok().flatten().map_or_else(|| uid.to_string(), |user| user.name)
}
