//! Policy on this host: the last good bundle, compiled policies by person and local user, and what each generation
//! in the kernel stands for.
//!
//! On disk: `state_dir/policy/` holds the last good bundle, so that a restart without a gateway goes on enforcing.
//! `run_dir/generations/` holds version and rules of every compiled policy loaded since boot, so that an event
//! that lay in the ring while no sensor ran is still told with the exact version and rule.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use sallyport_contract::v1::PolicyBundle;
use sallyport_policy::{Answer, Bundle, Policy, Principal, Question, RuleInfo, SystemDenials};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::files;
use crate::guard::{Names, OwnFiles};
use crate::kernel::{Kernel, KernelError, LoadedPolicy};

/// Largest bundle archive in bytes.
pub const MAX_ARCHIVE: usize = 32 << 20;
/// How many earlier versions a host remembers.
const HISTORY: usize = 64;

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
    /// Damaged or forged on the way.
    #[error("the bundle does not have the version it is sent as ({announced}, but it is {actual})")]
    Version {
        /// As announced.
        announced: String,
        /// As computed.
        actual: String,
    },
    /// Too large.
    #[error("the bundle has {0} bytes, the limit is {MAX_ARCHIVE}")]
    TooLarge(usize),
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

/// A loaded bundle.
#[derive(Clone)]
pub struct Current {
    /// Hex SHA-256 of its archive.
    pub version: String,
    /// Parsed.
    policy: Arc<Policy>,
}

impl Current {
    /// A policy that comes with the sensor: its version is empty.
    #[must_use]
    pub fn built_in(policy: Policy) -> Self {
        Self { version: String::new(), policy: Arc::new(policy) }
    }

    /// What it answers.
    #[must_use]
    pub fn decide(&self, question: &Question) -> Answer {
        self.policy.decide(question)
    }
}

impl std::fmt::Debug for Current {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Current").field("version", &self.version).finish_non_exhaustive()
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Key {
    version: String,
    principal: Principal,
    local_user: String,
}

#[derive(Default)]
struct Tables {
    current: Option<Current>,
    history: Vec<String>,
    loaded: HashMap<Key, LoadedPolicy>,
    generations: HashMap<u64, Arc<Generation>>,
}

/// The policies of this host. See the module's text.
pub struct Policies {
    host: String,
    bundle_dir: PathBuf,
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
        host: &str,
        state_dir: &Path,
        run_dir: &Path,
        own: OwnFiles,
    ) -> std::io::Result<Self> {
        let bundle_dir = state_dir.join("policy");
        let generation_dir = run_dir.join("generations");
        files::private_dir(&bundle_dir)?;
        files::private_dir(&generation_dir)?;
        let mut tables = Tables::default();
        let history = std::fs::read_to_string(bundle_dir.join("history")).unwrap_or_default();
        tables.history = history.lines().map(str::to_owned).collect();
        match load_kept(&bundle_dir) {
            Ok(current) => tables.current = current,
            Err(error) => {
                tracing::error!(%error, "the kept policy bundle cannot be used; waiting for the gateway's")
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
            host: host.into(),
            bundle_dir,
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

    /// The bundle in force.
    #[must_use]
    pub fn current(&self) -> Option<Current> {
        self.tables().current.clone()
    }

    /// Version of the bundle in force; empty: none.
    #[must_use]
    pub fn version(&self) -> String {
        self.current().map_or_else(String::new, |current| current.version)
    }

    /// Whether this version is or was in force here.
    #[must_use]
    pub fn has_known(&self, version: &str) -> bool {
        let tables = self.tables();
        tables.current.as_ref().is_some_and(|current| current.version == version)
            || tables.history.iter().any(|known| known == version)
    }

    /// What a generation stands for.
    #[must_use]
    pub fn generation(&self, generation: u64) -> Option<Arc<Generation>> {
        self.tables().generations.get(&generation).cloned()
    }

    /// Checks a bundle that the gateway sent. Nothing changes yet. Blocks while it is parsed.
    ///
    /// # Errors
    /// It cannot come into force.
    pub fn check(bundle: &PolicyBundle) -> Result<Current, PolicyError> {
        if bundle.archive.len() > MAX_ARCHIVE {
            return Err(PolicyError::TooLarge(bundle.archive.len()));
        }
        let actual = hex::encode(Sha256::digest(&bundle.archive));
        if actual != bundle.version {
            return Err(PolicyError::Version { announced: bundle.version.clone(), actual });
        }
        let parsed = Bundle::from_archive(&bundle.archive)?;
        let policy = Policy::load(&parsed).map_err(PolicyError::Faults)?;
        Ok(Current { version: actual, policy: Arc::new(policy) })
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
        let compiled = current.policy.compile(principal, &self.host, local_user).map_err(|source| {
            let (user, source) = (principal.user.clone(), Box::new(source));
            PolicyError::Compile { user, local_user: local_user.into(), source }
        })?;
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

    /// Keeps a bundle as the last good one.
    ///
    /// # Errors
    /// The disk does not take it; the previous one is still there.
    pub fn keep(&self, bundle: &PolicyBundle, current: Current) -> Result<(), PolicyError> {
        files::write_private(&self.bundle_dir.join("bundle"), &bundle.archive)?;
        let mut tables = self.tables();
        if let Some(previous) = tables.current.take() {
            tables.history.retain(|version| *version != previous.version);
            tables.history.push(previous.version);
            let surplus = tables.history.len().saturating_sub(HISTORY);
            tables.history.drain(..surplus);
        }
        tables.current = Some(current);
        files::write_private(&self.bundle_dir.join("history"), tables.history.join("\n").as_bytes())?;
        Ok(())
    }

    /// Unloads compiled policies of earlier versions that no session uses. What they stood for stays known until the next
    /// boot: events about them may still be under way.
    pub fn sweep(&self) {
        let _one = self.compiling.lock().unwrap_or_else(PoisonError::into_inner);
        let version = self.version();
        let used: Vec<u32> = self.kernel.sessions().iter().map(|session| session.policy_slot).collect();
        let stale: Vec<(Key, LoadedPolicy)> = {
            let tables = self.tables();
            let is_stale =
                |key: &Key, loaded: &LoadedPolicy| key.version != version && !used.contains(&loaded.slot);
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

fn load_kept(dir: &Path) -> Result<Option<Current>, PolicyError> {
    let archive = match std::fs::read(dir.join("bundle")) {
        Ok(archive) => archive,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    let version = hex::encode(Sha256::digest(&archive));
    Policies::check(&PolicyBundle { version, commit: String::new(), archive }).map(Some)
}
