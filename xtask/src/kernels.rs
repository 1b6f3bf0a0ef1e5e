//! Fetches Debian's cloud kernels for the virtual machines, without touching the machine's own apt sources.
//!
//! Versions move: the newest of each series is taken, and which one that was is recorded beside it, with the few modules
//! that the guest may want. Once fetched, a kernel is used as it is, without a network, until `cargo xtask vm --refresh`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::apt::{self, Apt, Package};
use crate::{places, run};

/// A series of kernels that Sallyport is tested on.
pub(crate) struct Series {
    /// `6.1`
    pub(crate) name: &'static str,
    /// How the versions of the series begin.
    begins: &'static str,
    /// The Debian suites that may have it.
    suites: &'static [&'static str],
    /// For the kernel's command line.
    pub(crate) arguments: &'static [&'static str],
}

/// All of them, from Debian 11's to the newest that Debian has. From 6.1 on Debian's kernels have `bpf` in their list of LSMs;
/// in 5.10 it is built in but not in the list, so programs load, attach, and never run.
pub(crate) const SERIES: &[Series] = &[
    Series {
        name: "5.10",
        begins: "5.10.",
        suites: &["bullseye-security", "bullseye"],
        arguments: &["lsm=lockdown,capability,yama,apparmor,bpf"],
    },
    Series { name: "6.1", begins: "6.1.", suites: &["bookworm-security", "bookworm"], arguments: &[] },
    Series {
        name: "6.12",
        begins: "6.12.",
        suites: &["bookworm-security", "bookworm-backports"],
        arguments: &[],
    },
    Series { name: "6.18", begins: "6.18.", suites: &["trixie-backports"], arguments: &[] },
    Series { name: "newest", begins: "", suites: &["trixie-backports"], arguments: &[] },
];

/// Modules that the guest may load, with what they depend on: file systems and socket families that a cloud kernel does not
/// have built in, and `dummy`, which stands for any module.
const MODULES: &[&str] = &["overlay", "binfmt_misc", "dccp_ipv4", "sctp", "vsock_loopback", "dummy"];

/// A kernel image to boot.
#[derive(Debug)]
pub(crate) struct Kernel {
    pub(crate) image: PathBuf,
    /// The Debian package and its version.
    pub(crate) version: String,
    /// Uncompressed modules, each after those that it needs.
    pub(crate) modules: Vec<PathBuf>,
}

/// The series called `name`.
pub(crate) fn series(name: &str) -> Result<&'static Series> {
    SERIES.iter().find(|series| series.name == name).with_context(|| {
        let known: Vec<&str> = SERIES.iter().map(|series| series.name).collect();
        format!("no kernel series `{name}` is known; there are {}", known.join(", "))
    })
}

/// The kernel of a series: from the cache, else from the mirror.
pub(crate) fn kernel(series: &Series, refresh: bool) -> Result<Kernel> {
    let folder = places::cache().join("kernels").join(series.name);
    let (image, version) = (folder.join("vmlinuz"), folder.join("VERSION"));
    let (modules, list) = (folder.join("modules"), folder.join("MODULES"));
    if refresh || !image.is_file() || !version.is_file() || !list.is_file() {
        if version.is_file() {
            std::fs::remove_file(&version)?;
        }
        let fetched = fetch(series, &folder, &image, &modules)
            .with_context(|| format!("fetch Debian's kernel {}", series.name))?;
        std::fs::write(&list, fetched.modules.join("\n"))?;
        // Last: a folder with this file is complete.
        std::fs::write(&version, &fetched.version)?;
        run::say(format_args!("kernel {}: {}", series.name, fetched.version));
    }
    let version = std::fs::read_to_string(version)?.trim().to_owned();
    let list = std::fs::read_to_string(list)?;
    Ok(Kernel { image, version, modules: list.lines().map(|name| modules.join(name)).collect() })
}

struct Fetched {
    version: String,
    /// File names, each after those that it needs.
    modules: Vec<String>,
}

fn fetch(series: &Series, folder: &Path, image: &Path, modules: &Path) -> Result<Fetched> {
    let (apt, package) = find(series)?;
    let unpacked = folder.join("unpacked");
    if unpacked.exists() {
        std::fs::remove_dir_all(&unpacked)?;
    }
    std::fs::create_dir_all(&unpacked)?;
    apt.unpack(&package, "for the virtual machines", &unpacked)?;
    // The newest packages have the modules apart.
    if let Some(release) = package.name.strip_prefix("linux-binary-") {
        let more = apt.packages(&format!("^linux-modules-{}$", release.replace('+', "\\+")))?;
        let more = more.iter().find(|more| more.version == package.version);
        apt.unpack(more.context("it has no package of modules")?, "for the virtual machines", &unpacked)?;
    }
    // Newer packages keep the image with the modules.
    let found = apt::only_file(&unpacked.join("boot"), |name| name.starts_with("vmlinuz-"))
        .or_else(|_| image_among_modules(&unpacked))?;
    std::fs::copy(&found, image).context("keep the kernel image")?;
    let modules = keep_modules(&unpacked, modules).context("keep the modules")?;
    std::fs::remove_dir_all(unpacked)?;
    Ok(Fetched { version: format!("{} {}", package.name, package.version), modules })
}

/// The newest signed cloud kernel of the series, in the first suite that has one.
fn find(series: &Series) -> Result<(Apt, Package)> {
    let mut tried = Vec::new();
    for suite in series.suites {
        match Apt::prepare(suite).and_then(|apt| Ok((newest(&apt, series)?, apt))) {
            Ok((package, apt)) => return Ok((apt, package)),
            Err(error) => tried.push(format!("{suite}: {error:#}")),
        }
    }
    anyhow::bail!("{}", tried.join("; "))
}

fn newest(apt: &Apt, series: &Series) -> Result<Package> {
    let mut best: Option<Package> = None;
    for package in apt.packages("^linux-(image|binary)-[0-9].*-cloud-amd64$")? {
        let release =
            package.name.strip_prefix("linux-image-").or(package.name.strip_prefix("linux-binary-"));
        let fits = release.is_some_and(|release| release.starts_with(series.begins));
        // An image's package may be empty and depend on one with the binary.
        let whole = package.size > 1_000_000;
        if fits && whole && best.as_ref().is_none_or(|best| apt::newer(&package.version, &best.version)) {
            best = Some(package);
        }
    }
    best.context("has no such cloud kernel")
}

fn image_among_modules(unpacked: &Path) -> Result<PathBuf> {
    let version = apt::only_file(&unpacked.join("usr/lib/modules"), |_| true)?;
    Ok(version.join("vmlinuz"))
}

/// Copies the modules that are wanted, uncompressed. What a kernel does not have as a module is left out.
fn keep_modules(unpacked: &Path, into: &Path) -> Result<Vec<String>> {
    let mut all = BTreeMap::new();
    for folder in ["lib/modules", "usr/lib/modules"] {
        index(&unpacked.join(folder), &mut all)?;
    }
    if into.exists() {
        std::fs::remove_dir_all(into)?;
    }
    std::fs::create_dir_all(into)?;
    let mut kept = Vec::new();
    for module in MODULES {
        keep(module, &all, into, &mut kept)?;
    }
    Ok(kept)
}

/// Module name → file.
fn index(folder: &Path, all: &mut BTreeMap<String, PathBuf>) -> Result<()> {
    let Ok(entries) = std::fs::read_dir(folder) else { return Ok(()) };
    for entry in entries {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if entry.file_type()?.is_dir() {
            index(&entry.path(), all)?;
        } else if let Some((name, "ko" | "ko.xz")) = name.split_once('.') {
            all.insert(name.replace('-', "_"), entry.path());
        }
    }
    Ok(())
}

fn keep(module: &str, all: &BTreeMap<String, PathBuf>, into: &Path, kept: &mut Vec<String>) -> Result<()> {
    let file = format!("{module}.ko");
    let Some(from) = all.get(module).filter(|_| !kept.contains(&file)) else { return Ok(()) };
    let to = into.join(&file);
    if from.extension().is_some_and(|extension| extension == "xz") {
        let status = Command::new("xz").arg("-dc").arg(from).stdout(std::fs::File::create(&to)?).status()?;
        anyhow::ensure!(status.success(), "xz cannot read {}", from.display());
    } else {
        std::fs::copy(from, &to)?;
    }
    for needed in depends(&std::fs::read(&to)?) {
        keep(&needed.replace('-', "_"), all, into, kept)?;
    }
    kept.push(file);
    Ok(())
}

/// What a module says that it needs: the entry `depends=a,b` of its section `.modinfo`.
fn depends(module: &[u8]) -> Vec<String> {
    let key = b"\0depends=";
    let Some(at) = module.windows(key.len()).position(|window| window == key) else { return Vec::new() };
    let rest = &module[at + key.len()..];
    let text = rest.split(|byte| *byte == 0).next().unwrap_or_default();
    let names = text.split(|byte| *byte == b',').filter(|name| !name.is_empty());
    names.map(|name| String::from_utf8_lossy(name).into_owned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_module_names_what_it_needs() {
        assert_eq!(depends(b"license=GPL\0depends=dccp,crc-ccitt\0name=x\0"), ["dccp", "crc-ccitt"]);
        assert!(depends(b"license=GPL\0depends=\0name=x\0").is_empty());
    }
}
