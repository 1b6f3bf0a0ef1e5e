//! The sensor's kernel side with the battery's policies, and a session for each person.

use std::path::PathBuf;

use anyhow::{Context as _, Result, bail};
use sallyport_policy::{Bundle, Policy, Principal};
use sallyport_sensor::kernel::{Kernel, KernelOptions, Mode};

use crate::technique::Person;

/// Loaded programs, attached, with open sessions. All of it goes when dropped.
pub(crate) struct Enforcer {
    kernel: Option<Kernel>,
    pin_dir: PathBuf,
}

impl Enforcer {
    /// Loads everything. `bundle` is the folder of the policies.
    pub(crate) fn start(bundle: &std::path::Path, mode: Option<Mode>) -> Result<Self> {
        let bundle = Bundle::read_dir(bundle).context("read the battery's policies")?;
        let policy = match Policy::load(&bundle) {
            Ok(policy) => policy,
            Err(faults) => bail!("the battery's policies have faults: {faults}"),
        };
        let pin_dir = PathBuf::from(format!("/sys/fs/bpf/sallyport-battery-{}", std::process::id()));
        let options = KernelOptions { pin_dir: pin_dir.clone(), cgroup_root: None, mode };
        let (kernel, _) = Kernel::start(&options).context("load the kernel programs")?;
        let enforcer = Self { kernel: Some(kernel), pin_dir };
        for person in Person::ALL {
            let principal = Principal::new(person.name());
            let compiled = policy
                .compile(&principal, "battery", "root")
                .with_context(|| format!("compile the policy of {}", person.name()))?;
            let kernel = enforcer.kernel()?;
            let loaded = kernel.load_policy(&compiled.header, &compiled.arena)?;
            kernel.open_session(number(person), loaded.slot, 10_000)?;
        }
        Ok(enforcer)
    }

    fn kernel(&self) -> Result<&Kernel> {
        self.kernel.as_ref().context("the kernel side is gone")
    }

    /// How it enforces.
    pub(crate) fn mode(&self) -> Result<Mode> {
        Ok(self.kernel()?.mode())
    }

    /// Makes a process one of a person's session.
    pub(crate) fn tag(&self, process: i32, person: Person) -> Result<()> {
        Ok(self.kernel()?.tag(process as u32, number(person), 1)?)
    }
}

impl Drop for Enforcer {
    fn drop(&mut self) {
        drop(self.kernel.take());
        if let Err(error) = Kernel::unpin_all(&self.pin_dir) {
            eprintln!("the programs stay attached: {error}");
        }
    }
}

/// The number of a person's session.
fn number(person: Person) -> u64 {
    1 + Person::ALL.iter().position(|other| *other == person).unwrap_or_default() as u64
}
