//! Rules of the repository that no other tool checks. Each is a test as well.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Result, bail};

use crate::{places, run};

/// Longest file of Rust, in lines without its tests. STYLE: discuss at 400.
const LONGEST: usize = 600;
/// Generated code is not held to rules about writing.
const GENERATED: &str = "crates/contract/src/gen/";

/// All rules; every breach is printed.
pub(crate) fn check() -> Result<()> {
    let mut breaches = Vec::new();
    for file in tracked_files()? {
        let Ok(text) = std::fs::read_to_string(places::root().join(&file)) else { continue };
        breaches
            .extend(judge(&file, &text).into_iter().map(|breach| format!("{}: {breach}", file.display())));
    }
    breaches.extend(unlinted()?);
    if breaches.is_empty() {
        return Ok(());
    }
    for breach in &breaches {
        eprintln!("{breach}");
    }
    bail!("{} breaches of the repository's rules", breaches.len())
}

fn tracked_files() -> Result<Vec<PathBuf>> {
    let listed = run::output(Command::new("git").current_dir(places::root()).args(["ls-files"]))?;
    Ok(listed.lines().map(PathBuf::from).filter(|path| places::root().join(path).is_file()).collect())
}

fn judge(file: &Path, text: &str) -> Vec<String> {
    let mut breaches = Vec::new();
    if file.starts_with(GENERATED) {
        return breaches;
    }
    if file.extension().is_some_and(|extension| extension == "rs") {
        if !text.starts_with("//!") {
            breaches.push("the first line must be `//!` and say what the file is for".to_owned());
        }
        let own = text.split("\n#[cfg(test)]\nmod tests {").next().unwrap_or(text);
        let lines = own.lines().count();
        // Tables of cases may be long; code may not.
        let is_test =
            file.ends_with("tests.rs") || file.parent().is_some_and(|folder| folder.ends_with("tests"));
        if lines > LONGEST && !is_test {
            breaches.push(format!("{lines} lines, {LONGEST} are allowed: split it"));
        }
        let stem = file.file_stem().unwrap_or_default();
        if stem == "common" || stem == "utils" || stem == "util" {
            breaches.push("name the module for what it does".to_owned());
        }
    }
    for (number, line) in (1..).zip(text.lines()) {
        if let Some(place) = machine_path(line) {
            breaches.push(format!("line {number} names a place of one machine: {place}"));
        }
        // Markdown's line breaks, and recorded output, are as they are.
        let written = file.extension().is_none_or(|extension| extension != "md" && extension != "txt");
        if written && line.ends_with([' ', '\t']) {
            breaches.push(format!("line {number} ends in white space"));
        }
    }
    breaches
}

/// Home folders and work trees do not exist elsewhere.
fn machine_path(line: &str) -> Option<&'static str> {
    // Written in two parts, so that this file passes its own rule.
    const PLACES: [(&str, &str); 3] = [("/wo", "rk/main"), ("/root/.ca", "rgo"), ("/tm", "p/t/")];
    const SHOWN: [&str; 3] = ["a work tree", "a home folder", "a private target folder"];
    PLACES
        .iter()
        .zip(SHOWN)
        .find(|((first, second), _)| line.contains(&format!("{first}{second}")))
        .map(|(_, shown)| shown)
}

/// Members of the workspace that do not take its lints.
fn unlinted() -> Result<Vec<String>> {
    let root = places::root();
    let workspace: toml::Value = toml::from_str(&std::fs::read_to_string(root.join("Cargo.toml"))?)?;
    let members = workspace.get("workspace").and_then(|it| it.get("members")).and_then(toml::Value::as_array);
    let mut breaches = Vec::new();
    for member in members.into_iter().flatten().filter_map(toml::Value::as_str) {
        let manifest: toml::Value =
            toml::from_str(&std::fs::read_to_string(root.join(member).join("Cargo.toml"))?)?;
        let inherits = manifest.get("lints").and_then(|lints| lints.get("workspace"));
        if inherits.and_then(toml::Value::as_bool) != Some(true) {
            breaches.push(format!("{member}: does not take the workspace's lints"));
        }
    }
    Ok(breaches)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_repository_is_tidy() -> Result<()> {
        check()
    }

    #[test]
    fn breaches_are_found() {
        let long = "//! Long.\n".to_owned() + &"fn f() {}\n".repeat(LONGEST);
        assert_eq!(judge(Path::new("a/b.rs"), &long).len(), 1);
        assert_eq!(judge(Path::new("a/b.rs"), "fn f() {}\n").len(), 1);
        assert_eq!(judge(Path::new("a/b.rs"), "//! x \n").len(), 1);
        let place = format!("{}{}", "/wo", "rk/main/x");
        assert_eq!(judge(Path::new("a.md"), &place).len(), 1);
        assert!(judge(Path::new("a/b.rs"), "//! What it is for.\n").is_empty());
    }
}
