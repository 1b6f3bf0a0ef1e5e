//! Which commit a bundle is, asked of the `git` that is installed.

use std::{path::Path, process::Command};

/// Where a bundle comes from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Origin {
    /// Full hash, with `-dirty` if the folder differs from it; empty outside Git.
    pub commit: String,
    /// `Name <address>` of the commit's author.
    pub author: String,
    /// The commit's subject.
    pub subject: String,
    /// The folder differs from the commit.
    pub is_dirty: bool,
}

/// Asks Git about a folder. Outside a repository, or without Git, nothing is known.
#[must_use]
pub fn origin(dir: &Path) -> Origin {
    let Some(head) = git(dir, &["log", "-1", "--format=%H%n%an <%ae>%n%s"]) else { return Origin::default() };
    let mut lines = head.lines();
    let mut next = || lines.next().unwrap_or_default().to_owned();
    let (commit, author, subject) = (next(), next(), next());
    let is_dirty =
        // Signatures lie beside what they are on, and change nothing of it.
        git(dir, &["status", "--porcelain", "--", ".", ":(exclude)*.sig"]).is_none_or(|changes| !changes.trim().is_empty());
    let commit = if is_dirty { format!("{commit}-dirty") } else { commit };
    Origin { commit, author, subject, is_dirty }
}

fn git(dir: &Path, args: &[&str]) -> Option<String> {
    let output = Command::new("git")
        .arg("-C")
        .arg(dir)
        // A repository's own configuration must not run programs here.
        .args(["-c", "core.fsmonitor=false", "-c", "log.showSignature=false"])
        .args(args)
        .env("GIT_OPTIONAL_LOCKS", "0")
        .output()
        .ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(dir: &Path, args: &[&str]) {
        let names = ["-c", "user.name=Ann", "-c", "user.email=ann@example.org", "-c", "commit.gpgsign=false"];
        let output =
            Command::new("git").arg("-C").arg(dir).args(names).args(args).output().expect("git runs");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }

    #[test]
    fn commit_author_and_changes() {
        let dir = tempfile::tempdir().expect("temp dir");
        let bundle = dir.path().join("bundle");
        std::fs::create_dir(&bundle).expect("made");
        std::fs::write(bundle.join("a.cedar"), "x").expect("written");
        run(dir.path(), &["init", "-q"]);
        assert_eq!(origin(&bundle), Origin::default(), "no commit yet");
        run(dir.path(), &["add", "."]);
        run(dir.path(), &["commit", "-q", "-m", "First rules"]);
        let clean = origin(&bundle);
        assert_eq!((clean.author.as_str(), clean.subject.as_str()), ("Ann <ann@example.org>", "First rules"));
        assert!(clean.commit.len() == 40 && !clean.is_dirty);
        std::fs::write(dir.path().join("elsewhere"), "y").expect("written");
        assert!(!origin(&bundle).is_dirty, "what lies outside the bundle does not count");
        std::fs::write(bundle.join("b.cedar"), "y").expect("written");
        let dirty = origin(&bundle);
        assert!(dirty.is_dirty && dirty.commit.ends_with("-dirty"));
    }
}
