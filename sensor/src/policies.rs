//! Policy on this host: the last good bundle and the canary beside it, compiled policies by person and local user, and what
//! each generation in the kernel stands for.
//!
//! On disk: `state_dir/policy/` ([`kept`]) holds what is in force, so that a restart without a gateway goes on enforcing.
//! `run_dir/generations/` holds version and rules of every compiled policy loaded since boot, so that an event
//! that lay in the ring while no sensor ran is still told with the exact version and rule.

mod change;
mod in_force;
mod kept;
pub mod orders;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use sallyport_contract::v1::PolicyBundle;
use sallyport_evidence::note::Verifier;
use sallyport_policy::{Principal, RuleInfo, SystemDenials};
use serde::{Deserialize, Serialize};

use crate::files;
use crate::guard::{Names, OwnFiles};
use crate::kernel::{Kernel, KernelError, LoadedPolicy};
use change::load_kept;
use kept::Kept;
use orders::{Accepted, Held, OrderRefusal, Trust};

pub use change::judge;
pub use in_force::{Current, InForce, Standing};
pub use kept::forget;

/// Largest bundle archive in bytes.
pub const MAX_ARCHIVE: usize = 32 << 20;

/// What a generation in the kernel stands for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Generation {
    /// Policy version.
    pub version: String,
    /// For whom it was compiled.
    pub principal: Principal,
    /// As which local user.
    pub local_user: String,
    /// Rules by index; 0 is the default deny.
    pub rules: Vec<RuleInfo>,
    /// Files and folders that its rules forbid by name.
    #[serde(default)]
    pub names: Vec<String>,
    /// What of action `system` it denies.
    pub system: SystemDenials,
}

/// A bundle was refused; the previous one stays in force.
#[derive(Debug, thiserror::Error)]
pub enum PolicyError {
    /// The order is not to be followed.
    #[error(transparent)]
    Order(#[from] OrderRefusal),
    /// It is no bundle.
    #[error("the bundle cannot be read: {0}")]
    Archive(#[from] sallyport_policy::BundleError),
    /// It has faults.
    #[error("the bundle has faults: {0}")]
    Faults(sallyport_policy::Diagnostics),
    /// It does not compile for somebody.
    #[error("it cannot be compiled for {user} as {local_user}: {source}")]
    Compile {
        /// Person.
        user: String,
        /// Local user.
        local_user: String,
        /// Cause.
        source: Box<sallyport_policy::CompileError>,
    },
    /// The kernel does not take it.
    #[error("the kernel does not take it: {0}")]
    Kernel(#[from] KernelError),
    /// It cannot be kept.
    #[error("it cannot be kept on disk: {0}")]
    Disk(#[from] std::io::Error),
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Key {
    version: String,
    principal: Principal,
    local_user: String,
}

/// An order that takes effect, with its bundle checked; see [`Policies::accept`].
#[derive(Debug)]
pub struct Change {
    /// What will be in force.
    pub next: InForce,
    /// The orders that will have been accepted.
    pub held: Held,
    version: String,
    archive: Bytes,
}

#[derive(Default)]
struct Tables {
    in_force: InForce,
    held: Held,
    trouble: String,
    history: Vec<String>,
    loaded: HashMap<Key, LoadedPolicy>,
    generations: HashMap<u64, Arc<Generation>>,
}

/// The policies of this host. See the module's text.
pub struct Policies {
    host: String,
    trust: Mutex<Trust>,
    kept: Kept,
    generation_dir: PathBuf,
    kernel: Arc<Kernel>,
    names: Arc<Names>,
    tables: Mutex<Tables>,
    /// Compiling and loading happen one at a time, so that nothing is loaded twice.
    compiling: Mutex<()>,
}

impl std::fmt::Debug for Policies {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Policies").field("host", &self.host).finish_non_exhaustive()
    }
}

impl Policies {
    /// Opens what an earlier sensor left: the last good bundle, and the generations still in the kernel.
    ///
    /// # Errors
    /// The folders cannot be made. A bundle that is damaged on disk is reported in the log and not used.
    pub fn open(
        kernel: Arc<Kernel>,
        trust: Trust,
        state_dir: &Path,
        run_dir: &Path,
        own: OwnFiles,
    ) -> std::io::Result<Self> {
        let kept = Kept::open(folder(state_dir))?;
        let generation_dir = run_dir.join("generations");
        files::private_dir(&generation_dir)?;
        let mut tables = Tables { history: kept.history(), ..Tables::default() };
        match load_kept(&kept) {
            Ok((held, in_force)) => (tables.held, tables.in_force) = (held, in_force),
            Err(error) => {
                tracing::error!(%error, "the kept policy cannot be used; waiting for the gateway's");
                tables.trouble = format!("the kept policy cannot be used: {}", crate::uplink::chain(&error));
            }
        }
        let in_kernel: HashMap<u64, LoadedPolicy> =
            kernel.policies().into_iter().map(|loaded| (loaded.generation, loaded)).collect();
        for entry in std::fs::read_dir(&generation_dir)?.flatten() {
            let Some(number) = entry.file_name().to_str().and_then(|name| name.parse::<u64>().ok()) else {
                continue;
            };
            let Ok(generation) = files::read_json::<Generation>(&entry.path()) else { continue };
            if let Some(loaded) = in_kernel.get(&number) {
                tables.loaded.insert(key(&generation), *loaded);
            }
            tables.generations.insert(number, Arc::new(generation));
        }
        let policies = Self {
            host: trust.host.clone(),
            trust: Mutex::new(trust),
            kept,
            generation_dir,
            names: Arc::new(Names::new(kernel.clone(), own)),
            kernel,
            tables: Mutex::new(tables),
            compiling: Mutex::new(()),
        };
        policies.register_names();
        Ok(policies)
    }

    /// The names of files that the kernel knows.
    #[must_use]
    pub fn names(&self) -> &Arc<Names> {
        &self.names
    }

    /// Has the kernel know the files that the loaded policies name.
    fn register_names(&self) {
        let names = {
            let tables = self.tables();
            let loaded =
                tables.loaded.values().filter_map(|loaded| tables.generations.get(&loaded.generation));
            loaded.flat_map(|generation| generation.names.iter().cloned()).collect()
        };
        self.names.want(names);
    }

    /// What is in force.
    #[must_use]
    pub fn in_force(&self) -> InForce {
        self.tables().in_force.clone()
    }

    /// The version that judges a session.
    #[must_use]
    pub fn for_session(&self, id: &str) -> Option<Current> {
        self.tables().in_force.for_session(id).cloned()
    }

    /// The version that judges log-ins outside of the gateway.
    #[must_use]
    pub fn for_logins(&self) -> Option<Current> {
        self.tables().in_force.for_logins().cloned()
    }

    /// What is in force, by name.
    #[must_use]
    pub fn standing(&self) -> Standing {
        let tables = self.tables();
        let name = |held: &Option<Accepted>| {
            held.as_ref().map_or_else(Default::default, |o| (o.version.clone(), o.serial))
        };
        let ((version, serial), (canary, canary_serial)) =
            (name(&tables.held.stable), name(&tables.held.canary));
        Standing { version, serial, canary, canary_serial, trouble: tables.trouble.clone() }
    }

    /// Why the last order was refused; empty: it was not.
    pub fn note_trouble(&self, trouble: &str) {
        trouble.clone_into(&mut self.tables().trouble);
    }

    /// From now on orders are verified with this key, unless another one is known.
    ///
    /// # Errors
    /// Another one is known: its owner alone may say what is in force here.
    pub fn learn_key(&self, key: Verifier) -> Result<(), Box<Verifier>> {
        let mut trust = self.trust.lock().unwrap_or_else(PoisonError::into_inner);
        match &trust.key {
            Some(known) if *known != key => Err(Box::new(known.clone())),
            _ => {
                trust.key = Some(key);
                Ok(())
            }
        }
    }

    /// Whether this version is or was in force here.
    #[must_use]
    pub fn has_known(&self, version: &str) -> bool {
        let tables = self.tables();
        tables.in_force.named(version).is_some() || tables.history.iter().any(|known| known == version)
    }

    /// What a generation stands for.
    #[must_use]
    pub fn generation(&self, generation: u64) -> Option<Arc<Generation>> {
        self.tables().generations.get(&generation).cloned()
    }

    /// Decides about an order and checks its bundle. Nothing changes yet; none: it was accepted before. Blocks while it is
    /// parsed.
    ///
    /// # Errors
    /// It is not to be followed, or its bundle cannot come into force.
    pub fn accept(&self, bundle: &PolicyBundle) -> Result<Option<Change>, PolicyError> {
        let (held, in_force) = {
            let tables = self.tables();
            (tables.held.clone(), tables.in_force.clone())
        };
        let trust = self.trust.lock().unwrap_or_else(PoisonError::into_inner).clone();
        judge(&trust, bundle, &held, &in_force, Current::load)
    }

    /// The slot in the kernel with `current`, compiled for somebody. Blocks while it is compiled.
    ///
    /// # Errors
    /// It does not compile, or the kernel does not take it.
    pub fn compiled(
        &self,
        current: &Current,
        principal: &Principal,
        local_user: &str,
    ) -> Result<u32, PolicyError> {
        let _one = self.compiling.lock().unwrap_or_else(PoisonError::into_inner);
        let key = Key {
            version: current.version.clone(),
            principal: principal.clone(),
            local_user: local_user.into(),
        };
        if let Some(loaded) = self.tables().loaded.get(&key) {
            return Ok(loaded.slot);
        }
        let compiled = current.compile(principal, &self.host, local_user)?;
        let loaded = self.kernel.load_policy(&compiled.header, &compiled.arena)?;
        let system = compiled.system_denials();
        let generation = Generation {
            version: current.version.clone(),
            principal: principal.clone(),
            local_user: local_user.into(),
            rules: compiled.rules,
            names: compiled.names,
            system,
        };
        // Before any session uses it: no event may carry a generation that a restart could not name.
        let kept = files::write_json(&self.generation_dir.join(loaded.generation.to_string()), &generation);
        if let Err(error) = kept {
            let _ = self.kernel.unload_policy(loaded.slot);
            return Err(error.into());
        }
        {
            let mut tables = self.tables();
            tables.generations.insert(loaded.generation, Arc::new(generation));
            tables.loaded.insert(key, loaded);
        }
        self.register_names();
        Ok(loaded.slot)
    }

    /// What of action `system` the bundle denies to somebody; none before [`Self::compiled`].
    #[must_use]
    pub fn system_denials(
        &self,
        current: &Current,
        principal: &Principal,
        local_user: &str,
    ) -> Option<SystemDenials> {
        let key = Key {
            version: current.version.clone(),
            principal: principal.clone(),
            local_user: local_user.into(),
        };
        let tables = self.tables();
        let generation = tables.loaded.get(&key)?.generation;
        tables.generations.get(&generation).map(|generation| generation.system)
    }

    /// Keeps what an order changes: from now on it is in force for what is started.
    ///
    /// # Errors
    /// The disk does not take it; what was in force before still is.
    pub fn keep(&self, change: Change) -> Result<(), PolicyError> {
        let Change { next, held, version, archive } = change;
        self.kept.keep(&held, &version, &archive)?;
        let mut tables = self.tables();
        let remains = next.versions();
        let gone: Vec<String> =
            tables.in_force.versions().into_iter().filter(|version| !remains.contains(version)).collect();
        (tables.in_force, tables.held) = (next, held);
        let mut history = std::mem::take(&mut tables.history);
        let remembered = self.kept.remember(&mut history, &gone);
        tables.history = history;
        Ok(remembered?)
    }

    /// Unloads compiled policies of earlier versions that no session uses. What they stood for stays known until the next
    /// boot: events about them may still be under way.
    pub fn sweep(&self) {
        let _one = self.compiling.lock().unwrap_or_else(PoisonError::into_inner);
        let in_force = self.in_force().versions();
        let used: Vec<u32> = self.kernel.sessions().iter().map(|session| session.policy_slot).collect();
        let stale: Vec<(Key, LoadedPolicy)> = {
            let tables = self.tables();
            let is_stale = |key: &Key, loaded: &LoadedPolicy| {
                !in_force.contains(&key.version) && !used.contains(&loaded.slot)
            };
            tables.loaded.iter().filter(|(k, l)| is_stale(k, l)).map(|(k, l)| (k.clone(), *l)).collect()
        };
        for (key, loaded) in stale {
            if self.kernel.unload_policy(loaded.slot).is_ok() {
                self.tables().loaded.remove(&key);
            }
        }
        self.register_names();
    }

    fn tables(&self) -> MutexGuard<'_, Tables> {
        self.tables.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn key(generation: &Generation) -> Key {
    Key {
        version: generation.version.clone(),
        principal: generation.principal.clone(),
        local_user: generation.local_user.clone(),
    }
}

/// Where policy is kept.
fn folder(state_dir: &Path) -> PathBuf {
    state_dir.join("policy")
}
