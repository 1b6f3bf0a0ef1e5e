//! Where things are: the repository, the target directory, and the cache of downloads below it.

use std::path::PathBuf;

/// The repository's root.
pub(crate) fn root() -> PathBuf {
    let parent = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..");
    parent.canonicalize().unwrap_or(parent)
}

/// Cargo's target directory, as cargo itself would choose it.
pub(crate) fn target() -> PathBuf {
    match std::env::var_os("CARGO_TARGET_DIR") {
        Some(directory) => root().join(directory),
        None => root().join("target"),
    }
}

/// What xtask fetches or makes and can make again: kernels, guest images, tools.
pub(crate) fn cache() -> PathBuf {
    target().join("sallyport")
}

/// Where cargo puts the programs of a profile.
pub(crate) fn programs(release: bool) -> PathBuf {
    target().join(if release { "release" } else { "debug" })
}
