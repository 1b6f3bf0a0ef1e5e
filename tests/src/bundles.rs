//! The scenarios' own policy bundle: small, and only about programs that every Debian has.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::programs;

/// The bundle `story`: alice may enter `web-1` as root and run what is installed, but not `/usr/bin/dd`.
///
/// # Errors
/// It is not here.
pub fn small() -> Result<PathBuf> {
    let path = programs::package_file("bundles/story");
    path.is_dir().then_some(path).context("the tests' bundle is not here")
}

/// Writes a changed copy of it into `folder`: it forbids `/usr/bin/truncate` as well.
///
/// # Errors
/// It cannot be written.
pub fn write_changed(folder: &Path) -> Result<()> {
    std::fs::create_dir_all(folder)?;
    for entry in std::fs::read_dir(small()?)? {
        let entry = entry?;
        std::fs::copy(entry.path(), folder.join(entry.file_name()))?;
    }
    let rule = "@id(\"no-truncate\")\n@reason(\"files on this host are frozen for the incident review\")\n\
                forbid (principal, action == Action::\"exec\", resource)\n\
                when { context.path == \"/usr/bin/truncate\" };\n";
    std::fs::write(folder.join("incident.cedar"), rule).context("write the changed policy")
}
