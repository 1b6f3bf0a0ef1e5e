//! Builds the kernel programs, and gets what that needs and a plain Rust toolchain lacks.
//!
//! `core` is compiled for the BPF target (`-Z build-std`), so the standard library's source is needed, of the very
//! version of the compiler. `RUSTC_BOOTSTRAP=1` lets the pinned stable compiler do it: its LLVM is the one that
//! bpf-linker was built for.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::{apt, places, run};

/// The last one that works with the LLVM inside of the pinned compiler.
const LINKER: &str = "0.10.3";

/// Suites that may have the source of the pinned compiler, newest compiler last.
const SUITES: [&str; 3] = ["trixie-backports", "forky", "sid"];

/// Sees to the standard library's source and to bpf-linker. Says something only if something is missing.
pub(crate) fn ensure_toolchain(root: &Path) -> Result<()> {
    ensure_source(root)?;
    ensure_linker(root)
}

/// Compiles the programs and puts them where the sensor's build script looks: `ebpf/sallyport.bpf.o` of the target
/// folder. `release` makes no difference to them: the verifier accepts only optimised code.
pub(crate) fn build(root: &Path, _release: bool) -> Result<PathBuf> {
    let target = places::target();
    let folder = target.join("ebpf");
    let work = folder.join("build");
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo
        .current_dir(root.join("sensor-ebpf"))
        .args(["build", "--quiet", "--locked", "--release", "-Z", "build-std=core"])
        .args(["--target", "bpfel-unknown-none", "--target-dir"])
        .arg(&work)
        .env("RUSTC_BOOTSTRAP", "1")
        // Debug information and `--btf`: the kernel wants type information of functions that are verified once.
        .env("CARGO_ENCODED_RUSTFLAGS", "-Cdebuginfo=2\u{1f}-Clink-arg=--btf")
        .env_remove("RUSTFLAGS");
    let status = cargo.status().context("start cargo")?;
    if !status.success() {
        bail!("the kernel programs do not compile ({status})");
    }
    let built = std::fs::read(work.join("bpfel-unknown-none/release/sallyport"))
        .context("read the kernel programs")?;
    let object = folder.join("sallyport.bpf.o");
    // Left alone if it is the same: the sensor is not built again for nothing.
    if std::fs::read(&object).ok().as_deref() != Some(built.as_slice()) {
        let new = folder.join("sallyport.bpf.o.new");
        std::fs::write(&new, &built)
            .and_then(|()| std::fs::rename(&new, &object))
            .context("write the kernel programs")?;
        run::say(format_args!("the kernel programs are in {}", object.display()));
    }
    Ok(object)
}

/// Where the compiler looks for the source of its standard library.
fn ensure_source(root: &Path) -> Result<()> {
    let sysroot = run::output(Command::new("rustc").current_dir(root).args(["--print", "sysroot"]))?;
    let place = Path::new(sysroot.trim()).join("lib/rustlib/src/rust");
    if place.join("library/core/Cargo.toml").is_file() {
        return Ok(());
    }
    let version = compiler_version(root)?;
    run::say(format_args!(
        "the standard library's source for Rust {version} is missing: `core` is compiled for the BPF target"
    ));
    if run::find("rustup").is_some() {
        let added =
            run::output(Command::new("rustup").current_dir(root).args(["component", "add", "rust-src"]));
        match added {
            Ok(_) if place.join("library/core/Cargo.toml").is_file() => return Ok(()),
            Ok(_) => {}
            Err(error) => run::say(format_args!("rustup cannot download it ({error:#})")),
        }
    }
    let source = debian_source(&version).context(
        "get the standard library's source from Debian; with a network, `rustup component add rust-src` does the same",
    )?;
    if let Some(parent) = place.parent() {
        std::fs::create_dir_all(parent)?;
    }
    // A link to a cache that was deleted.
    if place.is_symlink() {
        std::fs::remove_file(&place)?;
    }
    std::os::unix::fs::symlink(&source, &place)
        .with_context(|| format!("link {} to {}", place.display(), source.display()))?;
    run::say(format_args!("linked {} to {}", place.display(), source.display()));
    Ok(())
}

/// `1.95.0`
fn compiler_version(root: &Path) -> Result<String> {
    let text = run::output(Command::new("rustc").current_dir(root).arg("-vV"))?;
    text.lines()
        .find_map(|line| line.strip_prefix("release: "))
        .map(str::to_owned)
        .context("rustc names no release")
}

/// Unpacks Debian's package of exactly that version into the user's cache.
fn debian_source(version: &str) -> Result<PathBuf> {
    let cache = std::env::var_os("XDG_CACHE_HOME")
        .map(PathBuf::from)
        .or_else(|| std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache")));
    let cache = cache.context("neither XDG_CACHE_HOME nor HOME is set")?.join("sallyport");
    let place = cache.join(format!("rust-src-{version}"));
    if place.join("library/core/Cargo.toml").is_file() {
        return Ok(place);
    }
    let work = cache.join(format!("rust-src-{version}.unpacking"));
    let _ = std::fs::remove_dir_all(&work);
    std::fs::create_dir_all(&work)?;
    let mut tried = Vec::new();
    for suite in SUITES {
        let apt = match apt::Apt::prepare(suite) {
            Ok(apt) => apt,
            Err(error) => {
                tried.push(format!("{suite}: {error:#}"));
                continue;
            }
        };
        let known = run::output(apt.command("apt-cache").args(["madison", "rust-src"]))?;
        let Some(package) = known
            .lines()
            .filter_map(|line| line.split('|').nth(1))
            .map(str::trim)
            .find(|found| found.starts_with(&format!("{version}+")))
        else {
            tried.push(format!("{suite}: has no version {version}"));
            continue;
        };
        run::quiet(
            &format!("download rust-src {package} from Debian's {suite}"),
            apt.command("apt-get").current_dir(&work).args(["download", &format!("rust-src={package}")]),
        )?;
        let archive = apt::only_file(&work, |name| name.ends_with(".deb"))?;
        run::output(Command::new("dpkg").arg("-x").arg(&archive).arg(&work))?;
        std::fs::rename(work.join(format!("usr/src/rustc-{version}")), &place)
            .context("the package is laid out differently")?;
        std::fs::remove_dir_all(&work)?;
        return Ok(place);
    }
    bail!("no suite has it: {}", tried.join("; "))
}

fn ensure_linker(root: &Path) -> Result<()> {
    let found = run::output(Command::new("bpf-linker").arg("--version")).unwrap_or_default();
    if found.split_whitespace().any(|word| word == LINKER) {
        return Ok(());
    }
    run::say(match found.trim() {
        "" => format!(
            "bpf-linker is missing: it links the kernel programs; version {LINKER} fits the pinned compiler"
        ),
        other => format!("{other} does not fit the pinned compiler; version {LINKER} does"),
    });
    run::quiet(
        "install bpf-linker (about a minute, once)",
        Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into())).current_dir(root).args([
            "install",
            "--locked",
            "--force",
            "bpf-linker",
            "--version",
            LINKER,
        ]),
    )
}
