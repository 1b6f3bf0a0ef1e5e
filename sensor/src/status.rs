//! What a running sensor knows of itself and `doctor` cannot see from outside: written to `run_dir/status.json` from time to
//! time, read by `doctor`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::clock;
use crate::files;
use crate::kernel::{Event, Judgement};
use crate::policies;
use crate::unbrokered::Standing;

/// Name of the file in the runtime folder.
const FILE: &str = "status.json";

/// The content.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Status {
    /// When it was written, in nanoseconds since boot.
    pub written_boot_ns: u64,
    /// The boot it was written on.
    pub boot_id: String,
    /// Of the sensor that wrote it.
    pub version: String,
    /// Policy version in force; empty: none.
    pub policy: String,
    /// The order that brought it.
    pub policy_serial: u64,
    /// Version of the canary beside it; empty: none.
    pub canary: String,
    /// Why the last order of policy was refused; empty: it was not.
    pub policy_trouble: String,
    /// What could not be judged, counted by cause since the sensor was started: denied, or in watched sessions observed.
    pub unjudged: BTreeMap<String, u64>,
    /// Log-ins outside of the gateway.
    pub unbrokered: Standing,
}

impl Status {
    /// What a sensor wrote last on this boot, if it did.
    #[must_use]
    pub fn read(run_dir: &Path) -> Option<Self> {
        let status: Self = files::read_json(&run_dir.join(FILE)).ok()?;
        (status.boot_id == clock::boot_id()).then_some(status)
    }
}

/// Gathers it in the sensor.
#[derive(Debug)]
pub struct Reporter {
    path: PathBuf,
    status: Status,
    written: Option<Status>,
}

impl Reporter {
    /// Nothing is counted yet.
    #[must_use]
    pub fn new(run_dir: &Path) -> Self {
        let status = Status {
            boot_id: clock::boot_id(),
            version: env!("CARGO_PKG_VERSION").into(),
            ..Status::default()
        };
        Self { path: run_dir.join(FILE), status, written: None }
    }

    /// Counts what could not be judged.
    pub fn note(&mut self, event: &Event) {
        let (Judgement::Unjudged(cause) | Judgement::ObservedUnjudged(cause)) = event.head().judgement else {
            return;
        };
        *self.status.unjudged.entry(format!("{cause:?}")).or_default() += 1;
    }

    /// Writes it, if anything has changed.
    pub fn write(&mut self, policy: policies::Standing, unbrokered: Standing) {
        self.status.policy = policy.version;
        self.status.policy_serial = policy.serial;
        self.status.canary = policy.canary;
        self.status.policy_trouble = policy.trouble;
        self.status.unbrokered = unbrokered;
        if self.written.as_ref() == Some(&self.status) {
            return;
        }
        let now = Status { written_boot_ns: clock::boot_ns(), ..self.status.clone() };
        match files::write_json(&self.path, &now) {
            Ok(()) => self.written = Some(self.status.clone()),
            Err(error) => tracing::warn!(%error, "the status for `doctor` cannot be written"),
        }
    }
}
