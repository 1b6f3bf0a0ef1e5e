//! Putting it into force: a compiled policy and a session in the kernel for each account, and the map that tags by it.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::OnceLock;

use sallyport_evidence::record::Kind;
use sallyport_policy::{Bundle, Policy};
use sallyport_sensor_abi::TASKS_SOFT_LIMIT;

use super::accounts::{self, Account, Stamp};
use super::{Held, Unbrokered, Wanted, has_audit, is_number, number, principal};
use crate::kernel::KernelError;
use crate::policies::Current;
use crate::records::message_record;

/// In force where no policy can be: records everything that is started, connected and asked of the system, and
/// passes over files. Its version is empty, as in all records without a policy.
const RECORD_ONLY: [(&str, &str); 2] = [
    ("bundle.toml", "name = \"record-only\"\nschema = 2\ncontact = \"the administrator of this host\"\n"),
    (
        "record.cedar",
        r#"
@id("record-only")
permit (principal, action in [Action::"exec", Action::"connect", Action::"listen", Action::"system"], resource);
@id("record-only-files") @record("none")
permit (principal, action in [Action::"read_file", Action::"write_file", Action::"create_file", Action::"delete_file",
  Action::"rename_file", Action::"link_file", Action::"change_file", Action::"map_code", Action::"connect_unix"], resource);
"#,
    ),
];

/// So often tags are taken away from what forks on meanwhile; a session that still has some stays, watched only.
const ROUNDS: usize = 100;

/// What will be in force for each login uid.
#[derive(Debug)]
pub struct Prepared {
    accounts: Vec<(Account, Slot)>,
    stamp: Option<Stamp>,
    troubles: Vec<String>,
}

#[derive(Clone, Copy, Debug)]
struct Slot {
    policy: u32,
    enforced: bool,
}

impl Unbrokered {
    /// Puts into force what is wanted, under the policy of this moment. Blocks while it is compiled.
    pub fn start(&self) {
        if self.settings.wanted == Wanted::Off {
            self.stop();
        } else {
            if !has_audit() {
                self.tell(
                    "this kernel has no login uids (CONFIG_AUDIT): log-ins that do not come through the gateway cannot be seen here".into(),
                );
            }
            self.apply(self.policies.for_logins().as_ref());
        }
    }

    /// Prepares and puts into force.
    pub(super) fn apply(&self, current: Option<&Current>) {
        let prepared = self.prepare(current);
        self.commit(prepared);
    }

    /// Compiles for every account. Nothing is in force yet; whatever cannot be had is replaced by recording only. Blocks.
    #[must_use]
    pub fn prepare(&self, current: Option<&Current>) -> Prepared {
        let stamp = Stamp::of(Path::new(accounts::PASSWD));
        let mut troubles = Vec::new();
        let mut accounts = Vec::new();
        if self.settings.wanted == Wanted::Off {
            return Prepared { accounts, stamp, troubles };
        }
        let (mut listed, surplus) = accounts::read(Path::new(accounts::PASSWD)).unwrap_or_else(|error| {
            troubles
                .push(format!("{} cannot be read ({error}): all log-ins are judged alike", accounts::PASSWD));
            (Vec::new(), 0)
        });
        if surplus > 0 {
            troubles.push(format!(
                "{surplus} accounts beyond the first {} are judged as accounts that are not listed (`context.local_user` is empty)",
                accounts::MAX
            ));
        }
        listed.push(Account::OTHERS);
        let enforce = self.settings.wanted == Wanted::Enforce;
        if enforce && current.is_none() {
            troubles
                .push("there is no policy yet, so log-ins outside of the gateway are only recorded".into());
        }
        for account in listed {
            let compiled =
                current.map(|current| self.policies.compiled(current, &principal(), &account.name));
            let (slot, works) = match compiled {
                Some(Ok(slot)) => (Ok(slot), true),
                Some(Err(error)) => {
                    troubles.push(format!(
                        "the policy cannot be used for log-ins {}, which are only recorded: {}",
                        whose(&account),
                        crate::uplink::chain(&error)
                    ));
                    (self.record_only(), false)
                }
                None => (self.record_only(), false),
            };
            let break_glass = self.settings.break_glass.contains(&account.name);
            match slot {
                Ok(policy) => {
                    accounts.push((account, Slot { policy, enforced: enforce && works && !break_glass }));
                }
                Err(error) => troubles.push(format!(
                    "log-ins {} are not recorded: {}",
                    whose(&account),
                    crate::uplink::chain(&error)
                )),
            }
        }
        Prepared { accounts, stamp, troubles }
    }

    /// Puts it into force.
    pub fn commit(&self, prepared: Prepared) {
        if self.settings.wanted == Wanted::Off {
            return;
        }
        let Prepared { accounts, stamp, mut troubles } = prepared;
        let mut tables = self.tables();
        let mut held = BTreeMap::new();
        let others = accounts.iter().find(|(account, _)| *account == Account::OTHERS).map(|(_, slot)| *slot);
        for (account, slot) in accounts {
            match self.open(number(account.uid), slot) {
                Ok(()) => {
                    held.insert(account.uid, Held { name: account.name, enforced: slot.enforced });
                }
                Err(error) => troubles.push(format!("log-ins {} are not recorded: {error}", whose(&account))),
            }
        }
        let map: Vec<(u32, u64)> = held.keys().map(|uid| (*uid, number(*uid))).collect();
        if let Err(error) = self.kernel.set_unbrokered(true, map) {
            troubles.push(format!("log-ins outside of the gateway cannot be tagged: {error}"));
        }
        // An account that is gone may still have processes. They go on as those of accounts that are not listed.
        for session in self.kernel.sessions().into_iter().filter(|session| is_number(session.number)) {
            let uid = u32::try_from(session.number - super::NUMBERS);
            if !uid.is_ok_and(|uid| held.contains_key(&uid)) {
                self.retire(session.number, session.tasks, others);
            }
        }
        tables.accounts = held;
        tables.stamp = stamp;
        tables.told.retain(|told| troubles.contains(told));
        drop(tables);
        for trouble in troubles {
            self.tell(trouble);
        }
    }

    /// Opens a session or changes it. Whatever happens in between, nothing is denied that should not be.
    fn open(&self, number: u64, slot: Slot) -> Result<(), KernelError> {
        let monitored = !slot.enforced;
        match self.kernel.set_session_monitored(number, true) {
            Err(KernelError::NoSession(_)) => {
                // A log-in may have thousands of processes, which nobody ever limited; the host's limit remains.
                self.kernel.open_monitored_session(number, slot.policy, TASKS_SOFT_LIMIT)?;
            }
            Err(error) => return Err(error),
            Ok(()) => self.kernel.set_session_policy(number, slot.policy)?,
        }
        if monitored { Ok(()) } else { self.kernel.set_session_monitored(number, false) }
    }

    fn retire(&self, number: u64, tasks: u32, others: Option<Slot>) {
        let done = match others {
            Some(others) if tasks > 0 => self.open(number, others),
            // Tagged processes without a session would be denied everything.
            None if tasks > 0 => self.kernel.set_session_monitored(number, true),
            _ => self.kernel.close_session(number),
        };
        if let Err(error) = done {
            tracing::warn!(%error, number, "the session of an account that is gone cannot be closed");
        }
    }

    /// Nothing is tagged any more, and what was is let go.
    fn stop(&self) {
        if let Err(error) = self.kernel.set_unbrokered(false, []) {
            tracing::error!(%error, "log-ins outside of the gateway cannot be left alone");
        }
        let sessions: Vec<u64> = self
            .kernel
            .sessions()
            .into_iter()
            .map(|session| session.number)
            .filter(|n| is_number(*n))
            .collect();
        for number in sessions {
            let _ = self.kernel.set_session_monitored(number, true);
            // A process may be forking while its tag goes; the child is found in the next round.
            for _ in 0..ROUNDS {
                let tasks = self.kernel.tasks().unwrap_or_default();
                let mut found = false;
                for task in tasks.iter().filter(|task| task.session == number) {
                    found |= self.kernel.untag(task.tgid).is_ok();
                }
                if !found {
                    let _ = self.kernel.close_session(number);
                    break;
                }
            }
        }
    }

    /// The slot of the built-in policy that only records.
    fn record_only(&self) -> Result<u32, crate::policies::PolicyError> {
        static POLICY: OnceLock<Option<Policy>> = OnceLock::new();
        let policy = POLICY.get_or_init(|| {
            let bundle = Bundle::from_files(RECORD_ONLY).ok()?;
            Policy::load(&bundle).ok()
        });
        let policy = policy.clone().ok_or_else(|| std::io::Error::other("the built-in policy is damaged"))?;
        self.policies.compiled(&Current::built_in(policy), &principal(), "")
    }

    /// Says it once, in the log and in the evidence.
    fn tell(&self, trouble: String) {
        if !self.tables().told.insert(trouble.clone()) {
            return;
        }
        tracing::error!("{trouble}");
        let record = message_record(Kind::Sensor, &self.settings.host, trouble);
        let spool = self.spool.clone();
        match tokio::runtime::Handle::try_current() {
            Ok(runtime) => {
                runtime.spawn(async move {
                    if let Err(error) = spool.append(vec![record]).await {
                        tracing::error!(%error, "a record could not be kept");
                    }
                });
            }
            Err(error) => tracing::error!(%error, "a record could not be kept"),
        }
    }
}

fn whose(account: &Account) -> String {
    if account.name.is_empty() {
        "to accounts that are not listed".into()
    } else {
        format!("to `{}`", account.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_built_in_policy_permits_everything() {
        let bundle = Bundle::from_files(RECORD_ONLY).expect("a bundle");
        let policy = Policy::load(&bundle).unwrap_or_else(|faults| panic!("{faults}"));
        policy.compile(&principal(), "web-1", "").expect("it compiles");
    }
}
