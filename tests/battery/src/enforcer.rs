//! The sensor's kernel side with the battery's policies, and a session for each person.

use std::collections::BTreeSet;
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;

use anyhow::{Context as _, Result, bail};
use sallyport_policy::{Bundle, Policy, Principal};
use sallyport_sensor::kernel::{Kernel, KernelOptions, Mode, name};
use sallyport_sensor::refusals::{self, Means};
use sallyport_sensor::shepherd::filter::Refusals;
use sallyport_sensor_abi::names::{Inode, NAME_GUARDED, NAME_SECRET, Name};

use crate::stage::text;
use crate::technique::Person;

/// Loaded programs, attached, with open sessions. All of it goes when dropped.
pub(crate) struct Enforcer {
    kernel: Option<Kernel>,
    pin_dir: PathBuf,
    /// Paths that the policies name.
    names: BTreeSet<String>,
    /// What the first process of each person's session gives up.
    refusals: Vec<Refusals>,
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
        let mut enforcer =
            Self { kernel: Some(kernel), pin_dir, names: BTreeSet::new(), refusals: Vec::new() };
        for person in Person::ALL {
            let principal = Principal {
                user: person.name().to_owned(),
                groups: Vec::new(),
                kind: "human".to_owned(),
                issuer: String::new(),
                on_behalf_of: String::new(),
            };
            let compiled = policy
                .compile(&principal, "battery", "root")
                .with_context(|| format!("compile the policy of {}", person.name()))?;
            let kernel = enforcer.kernel()?;
            let loaded = kernel.load_policy(&compiled.header, &compiled.arena)?;
            kernel.open_session(number(person), loaded.slot, 10_000)?;
            let plan = refusals::plan(&compiled.system_denials(), &Means::of(kernel.mode()));
            enforcer.refusals.push(plan.refusals);
            enforcer.names.extend(compiled.names);
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

    /// What the first process of a person's session gives up before it becomes the user.
    pub(crate) fn refusals(&self, person: Person) -> Refusals {
        let at = Person::ALL.iter().position(|other| *other == person).unwrap_or_default();
        self.refusals.get(at).copied().unwrap_or_default()
    }

    /// Registers the files that the policies name, as they are now, and those of the sensor, which a folder stands for.
    pub(crate) fn register(&self) -> Result<()> {
        let policies = self.names.iter().map(|path| (path.as_str(), 0));
        let (guarded, secret) = (text("guarded"), text("guarded/secret"));
        let own = [(guarded.as_str(), NAME_GUARDED), (secret.as_str(), NAME_GUARDED | NAME_SECRET)];
        Ok(self
            .kernel()?
            .set_names(policies.chain(own).filter_map(|(path, flags)| registered(path, flags)))?)
    }

    /// Counts a process among the sensor's own, or no more.
    pub(crate) fn guard(&self, process: i32, guarded: bool) -> Result<()> {
        match guarded {
            true => Ok(self.kernel()?.guard(process as u32)?),
            false => {
                self.kernel()?.unguard(process as u32);
                Ok(())
            }
        }
    }

    /// Makes a process one of a person's session.
    pub(crate) fn tag(&self, process: i32, person: Person) -> Result<()> {
        self.kernel()?.tag(process as u32, number(person), 1)?;
        Ok(())
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

/// A path's entry, if there is such a file.
fn registered(path: &str, flags: u32) -> Option<(Inode, Name)> {
    let metadata = std::fs::metadata(path).ok()?;
    let (major, minor) = (nix::sys::stat::major(metadata.dev()), nix::sys::stat::minor(metadata.dev()));
    // As the kernel keeps it.
    let device = (major << 20 | minor) as u32;
    Some((Inode { inode: metadata.ino(), device, _pad: 0 }, name(path.as_bytes(), flags)?))
}
