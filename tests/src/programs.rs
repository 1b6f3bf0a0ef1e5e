//! Where the programs under test are: beside the program that asks, or where `SALLYPORT_PROGRAMS` says.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

/// The folder with `sallyport-gateway` and the others.
///
/// # Errors
/// There are none: they have not been built.
pub fn folder() -> Result<PathBuf> {
    if let Some(folder) = std::env::var_os("SALLYPORT_PROGRAMS") {
        return Ok(folder.into());
    }
    let me = std::env::current_exe().context("where is this program?")?;
    // Test programs lie in `deps`, one below.
    let candidates = me.ancestors().skip(1).take(2);
    candidates
        .map(Path::to_path_buf)
        .find(|folder| folder.join("sallyport-gateway").is_file())
        .context("the programs are not built: `cargo xtask build`")
}

/// One program.
///
/// # Errors
/// It has not been built.
pub fn path(name: &str) -> Result<PathBuf> {
    let path = folder()?.join(name);
    if !path.is_file() {
        bail!("{} is missing: `cargo xtask build`", path.display());
    }
    Ok(path)
}

/// The shipped policies: in the repository, or beside the programs in a virtual machine.
///
/// # Errors
/// They are in neither place.
pub fn policies() -> Result<PathBuf> {
    let repository = Path::new(env!("CARGO_MANIFEST_DIR")).join("../policies");
    let beside = folder()?.join("../policies");
    [beside, repository]
        .into_iter()
        .find(|path| path.join("demo").is_dir())
        .context("the shipped policies are not here")
}

/// A file of this package, such as the certified provider's script.
#[must_use]
pub fn package_file(relative: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(relative)
}
