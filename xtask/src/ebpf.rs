//! Builds the kernel programs. (Placeholder until the kernel programs land.)
use anyhow::Result;
use std::path::{Path, PathBuf};
pub(crate) const OBJECT_VARIABLE: &str = "SALLYPORT_EBPF_OBJECT";
pub(crate) fn ensure_toolchain(_root: &Path) -> Result<()> {
    Ok(())
}
pub(crate) fn build(root: &Path, _release: bool) -> Result<PathBuf> {
    Ok(root.join("x"))
}
