//! An apt of our own: it reads other suites of the mirror that this machine's apt uses, and leaves that one's sources alone.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::{places, run};

/// Another list of sources, its state in the cache.
pub(crate) struct Apt {
    list: PathBuf,
    state: PathBuf,
}

/// A package in that list.
#[derive(Debug)]
pub(crate) struct Package {
    pub(crate) name: String,
    pub(crate) version: String,
    /// Of the archive, in bytes.
    pub(crate) size: u64,
}

impl Apt {
    /// Reads the package list of `suite`. Its security updates (`bullseye-security`) lie in an archive of their own, and
    /// suites that Debian supports no more end up in another.
    pub(crate) fn prepare(suite: &str) -> Result<Self> {
        if run::find("apt-get").is_none() {
            bail!("this is no Debian or Ubuntu: what is fetched here comes from Debian's archive");
        }
        let state = places::cache().join("apt").join(suite);
        std::fs::create_dir_all(state.join("lists/partial"))?;
        std::fs::create_dir_all(state.join("archives/partial"))?;
        let apt = Self { list: state.join("sources.list"), state };
        let keyring = Path::new("/usr/share/keyrings/debian-archive-keyring.gpg");
        let signed = match keyring.exists() {
            true => format!("[signed-by={}] ", keyring.display()),
            false => String::new(),
        };
        let mut tried = Vec::new();
        for archive in archives(suite)? {
            std::fs::write(&apt.list, format!("deb {signed}{archive} {suite} main\n"))?;
            let read = run::quiet(
                &format!(
                    "read the package list of {suite} at {archive} (the machine's own sources stay as they are)"
                ),
                apt.command("apt-get").args(["-q", "-o", "APT::Update::Error-Mode=any", "update"]),
            );
            match read {
                Ok(()) => return Ok(apt),
                Err(error) => tried.push(format!("{archive}: {error:#}")),
            }
        }
        bail!("no archive has suite {suite}: {}", tried.join("; "))
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

    /// All packages whose name matches, in all their versions.
    pub(crate) fn packages(&self, pattern: &str) -> Result<Vec<Package>> {
        let text = run::output(self.command("apt-cache").args(["show", pattern]))?;
        let stanza = |stanza: &str| {
            let field = |name: &str| {
                stanza.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": ").map(str::to_owned))
            };
            Some(Package {
                name: field("Package")?,
                version: field("Version")?,
                size: field("Size")?.parse().ok()?,
            })
        };
        Ok(text.split("\n\n").filter_map(stanza).collect())
    }

    /// Downloads a package and unpacks it into `folder`.
    pub(crate) fn unpack(&self, package: &Package, why: &str, folder: &Path) -> Result<()> {
        let work = folder.join("archive");
        std::fs::create_dir_all(&work)?;
        run::quiet(
            &format!(
                "download {} {} ({} MB) {why}",
                package.name,
                package.version,
                package.size.div_ceil(1_000_000)
            ),
            self.command("apt-get")
                .current_dir(&work)
                .args(["download", &format!("{}={}", package.name, package.version)]),
        )?;
        let archive = only_file(&work, |name| name.ends_with(".deb"))?;
        run::output(Command::new("dpkg").arg("-x").arg(&archive).arg(folder))?;
        Ok(std::fs::remove_dir_all(&work)?)
    }
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

/// Whether one package version comes after another.
pub(crate) fn newer(left: &str, right: &str) -> bool {
    let compared = Command::new("dpkg").args(["--compare-versions", left, "gt", right]).status();
    compared.is_ok_and(|status| status.success())
}

/// Where a suite may lie, the likeliest first.
fn archives(suite: &str) -> Result<Vec<String>> {
    let mirror = mirror()?;
    let mirror = mirror.trim_end_matches('/');
    let name = match suite.ends_with("-security") {
        true => "debian-security",
        false => "debian",
    };
    let base = mirror.strip_suffix("/debian").unwrap_or(mirror);
    Ok(vec![format!("{base}/{name}"), format!("http://archive.debian.org/{name}")])
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
