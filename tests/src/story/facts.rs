//! What the story's policy says, as far as the story needs to know.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::programs;

/// The policy of a story and the names in it.
#[derive(Clone, Debug)]
pub struct Facts {
    /// The bundle's folder.
    pub bundle: PathBuf,
    /// As in `ssh web-1+root@gateway`.
    pub target: String,
    /// A program that policy forbids and that writes a file: `PROGRAM if=… of=MARKER`.
    pub forbidden_program: String,
    /// The rule that forbids it.
    pub forbidden_rule: String,
    /// An address of this computer that policy forbids to connect to.
    pub forbidden_address: String,
    /// The rule that forbids it.
    pub connect_rule: String,
    /// A rule to add: it forbids what was allowed before.
    pub added_rule: String,
}

impl Facts {
    /// The story's own bundle.
    ///
    /// # Errors
    /// It is not here.
    pub fn new() -> Result<Self> {
        let bundle = bundle("story")?;
        Ok(Self {
            bundle,
            target: "web-1+root".to_owned(),
            forbidden_program: "/usr/bin/dd".to_owned(),
            forbidden_rule: "no-raw-copies".to_owned(),
            forbidden_address: "127.77.0.1".to_owned(),
            connect_rule: "no-production-data".to_owned(),
            added_rule: "no-truncate".to_owned(),
        })
    }

    /// Writes the changed policy into `folder`: the same, and a rule that forbids `truncate`.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn write_changed_bundle(&self, folder: &Path) -> Result<()> {
        copy_folder(&self.bundle, folder)?;
        let rule = format!(
            "@id(\"{}\")\n@reason(\"files on this host are frozen for the incident review\")\n\
             @contact(\"incident@example.org\")\n\
             forbid (principal, action == Action::\"exec\", resource)\n\
             when {{ context.path == \"/usr/bin/truncate\" }};\n",
            self.added_rule
        );
        std::fs::write(folder.join("incident.cedar"), rule).context("write the changed policy")
    }
}

/// A bundle of the tests: beside the programs in a virtual machine, else in this package.
fn bundle(name: &str) -> Result<PathBuf> {
    let beside = programs::folder()?.join("../bundles").join(name);
    let here = programs::package_file("bundles").join(name);
    [beside, here]
        .into_iter()
        .find(|path| path.is_dir())
        .with_context(|| format!("bundle {name} is not here"))
}

fn copy_folder(from: &Path, to: &Path) -> Result<()> {
    std::fs::create_dir_all(to)?;
    for entry in std::fs::read_dir(from)? {
        let entry = entry?;
        let copy = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy_folder(&entry.path(), &copy)?;
        } else {
            std::fs::copy(entry.path(), &copy)?;
        }
    }
    Ok(())
}
