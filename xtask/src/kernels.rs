//! Fetches Debian's cloud kernels for the virtual machines, without touching the machine's own apt sources.
//!
//! A private list file is derived from the mirror that apt is configured with; all of apt's state for it
//! lies in the cache. Versions move: the newest of each series is taken, and which one that was is recorded
//! beside it. Once fetched, a kernel is used as it is until `cargo xtask vm --refresh`.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::{places, run};

/// A series of kernels that Sallyport is tested on.
pub(crate) struct Series {
    /// `6.1`
    pub(crate) name: &'static str,
    /// The Debian suite that has it.
    suite: &'static str,
}

/// All of them. Debian's cloud kernels have `bpf` in their default list of LSMs from 6.1 on.
pub(crate) const SERIES: &[Series] =
    &[Series { name: "6.1", suite: "bookworm" }, Series { name: "6.12", suite: "bookworm-backports" }];

/// A kernel image to boot.
#[derive(Debug)]
pub(crate) struct Kernel {
    pub(crate) image: PathBuf,
    /// The Debian package and its version.
    pub(crate) version: String,
}

/// The series called `name`.
pub(crate) fn series(name: &str) -> Result<&'static Series> {
    SERIES.iter().find(|series| series.name == name).with_context(|| {
        let known: Vec<&str> = SERIES.iter().map(|series| series.name).collect();
        format!("no kernel series `{name}` is known; there are {}", known.join(" and "))
    })
}

/// The kernel of a series: from the cache, else from the mirror.
pub(crate) fn kernel(series: &Series, refresh: bool) -> Result<Kernel> {
    let folder = places::cache().join("kernels").join(series.name);
    let image = folder.join("vmlinuz");
    let version = folder.join("VERSION");
    if image.is_file() && version.is_file() && !refresh {
        let version = std::fs::read_to_string(version)?.trim().to_owned();
        return Ok(Kernel { image, version });
    }
    let found = fetch(series, &folder).with_context(|| format!("fetch Debian's kernel {}", series.name))?;
    std::fs::copy(&found.image, &image).context("keep the kernel image")?;
    std::fs::remove_dir_all(folder.join("unpacked"))?;
    // Last: a folder with this file is complete.
    std::fs::write(&version, &found.version)?;
    run::say(format_args!("kernel {}: {}", series.name, found.version));
    Ok(Kernel { image, version: found.version })
}

fn fetch(series: &Series, folder: &Path) -> Result<Kernel> {
    let apt = Apt::prepare(series.suite)?;
    let package = apt.cloud_kernel(series)?;
    let unpacked = folder.join("unpacked");
    if unpacked.exists() {
        std::fs::remove_dir_all(&unpacked)?;
    }
    std::fs::create_dir_all(&unpacked)?;
    run::quiet(
        &format!("download {} {} for the virtual machines", package.name, package.version),
        apt.command("apt-get")
            .current_dir(&unpacked)
            .args(["download", &format!("{}={}", package.name, package.version)]),
    )?;
    let archive = only_file(&unpacked, |name| name.ends_with(".deb"))?;
    run::output(Command::new("dpkg").arg("-x").arg(&archive).arg(&unpacked))?;
    // Newer packages keep the image with the modules.
    let image = only_file(&unpacked.join("boot"), |name| name.starts_with("vmlinuz-"))
        .or_else(|_| image_among_modules(&unpacked))?;
    Ok(Kernel { image, version: format!("{} {}", package.name, package.version) })
}

fn image_among_modules(unpacked: &Path) -> Result<PathBuf> {
    let modules = unpacked.join("usr/lib/modules");
    let version = only_file(&modules, |_| true)?;
    Ok(version.join("vmlinuz"))
}

/// The file in `folder` whose name matches.
pub(crate) fn only_file(folder: &Path, matches: impl Fn(&str) -> bool) -> Result<PathBuf> {
    let entries = std::fs::read_dir(folder).with_context(|| format!("read {}", folder.display()))?;
    for entry in entries {
        let entry = entry?;
        if entry.file_name().to_str().is_some_and(&matches) {
            return Ok(entry.path());
        }
    }
    bail!("{} has no such file", folder.display())
}

/// An apt of our own: another list of sources, its state in the cache.
pub(crate) struct Apt {
    list: PathBuf,
    state: PathBuf,
}

struct Package {
    name: String,
    version: String,
}

impl Apt {
    /// Reads the package list of `suite`.
    pub(crate) fn prepare(suite: &str) -> Result<Self> {
        if run::find("apt-get").is_none() {
            bail!("this is no Debian or Ubuntu: the virtual machines' kernels come from Debian's archive");
        }
        let state = places::cache().join("apt").join(suite);
        std::fs::create_dir_all(state.join("lists/partial"))?;
        std::fs::create_dir_all(state.join("archives/partial"))?;
        let list = state.join("sources.list");
        let mirror = mirror()?;
        let keyring = Path::new("/usr/share/keyrings/debian-archive-keyring.gpg");
        let signed = match keyring.exists() {
            true => format!("[signed-by={}] ", keyring.display()),
            false => String::new(),
        };
        std::fs::write(&list, format!("deb {signed}{mirror} {suite} main\n"))?;
        let apt = Self { list, state };
        run::quiet(
            &format!("read the package list of {suite} (the machine's own sources stay as they are)"),
            apt.command("apt-get").args(["-q", "update"]),
        )?;
        Ok(apt)
    }

    /// `apt-get` or `apt-cache` on that list alone.
    pub(crate) fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        let mut option = |name: &str, value: &Path| {
            command.arg("-o").arg(format!("{name}={}", value.display()));
        };
        option("Dir::Etc::sourcelist", &self.list);
        option("Dir::Etc::sourceparts", Path::new("/dev/null"));
        option("Dir::State::Lists", &self.state.join("lists"));
        option("Dir::Cache", &self.state);
        // apt drops to a user that may not write into a developer's folders.
        option("APT::Sandbox::User", Path::new("root"));
        command
    }

    /// The newest signed cloud kernel of the series.
    fn cloud_kernel(&self, series: &Series) -> Result<Package> {
        let text = run::output(self.command("apt-cache").args(["show", "linux-image-cloud-amd64"]))?;
        let mut best: Option<Package> = None;
        for stanza in text.split("\n\n") {
            let field = |name: &str| {
                stanza.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": ").map(str::to_owned))
            };
            let (Some(version), Some(depends)) = (field("Version"), field("Depends")) else { continue };
            let prefix = format!("linux-image-{}.", series.name);
            let Some(name) = depends
                .split([',', '|'])
                .filter_map(|dependency| dependency.split_whitespace().next())
                .find(|name| name.starts_with(&prefix))
            else {
                continue;
            };
            if best.as_ref().is_none_or(|best| newer(&version, &best.version)) {
                best = Some(Package { name: name.to_owned(), version });
            }
        }
        best.with_context(|| format!("{} has no cloud kernel {}", series.suite, series.name))
    }
}

/// The mirror that apt takes Debian itself from.
fn mirror() -> Result<String> {
    if let Some(known) = configured_mirror()? {
        return Ok(known);
    }
    // apt names its sources only once it has read their lists.
    run::quiet(
        "update the package lists, to know the mirror",
        Command::new("apt-get").args(["-q", "update"]),
    )
    .context("apt has no package lists yet, and reading them needs root: `sudo apt-get update`")?;
    configured_mirror()?.context("apt is not configured with a Debian mirror")
}

fn configured_mirror() -> Result<Option<String>> {
    let targets = run::output(Command::new("apt-get").args([
        "indextargets",
        "--format",
        "$(REPO_URI) $(RELEASE) $(COMPONENT)",
        "Created-By: Packages",
    ]))?;
    let plain = |line: &str| {
        let mut words = line.split(' ');
        let (uri, release, component) = (words.next()?, words.next()?, words.next()?);
        let suite = !release.contains(['-', '/']) && component == "main";
        (suite && uri.trim_end_matches('/').ends_with("/debian")).then(|| uri.to_owned())
    };
    Ok(targets.lines().find_map(plain))
}

fn newer(left: &str, right: &str) -> bool {
    let compared = Command::new("dpkg").args(["--compare-versions", left, "gt", right]).status();
    compared.is_ok_and(|status| status.success())
}
