//! docs/performance.md: each benchmark's figures in a section of its own, with the machine, its kernel and the date.
//!
//! A run replaces the sections of what it measured and leaves the others as they are.

use std::collections::BTreeMap;
use std::process::Command;

use anyhow::{Context, Result};

use crate::{places, run};

const FILE: &str = "docs/performance.md";
const BEGINNING: &str = "# What Sallyport costs\n\nWritten by `cargo xtask bench`; do not edit. Ratios are what to look at: absolute \
                         figures are those of one machine.\n";

/// Writes the sections: title → figures.
pub(crate) fn write(sections: &BTreeMap<&'static str, String>) -> Result<()> {
    let path = places::root().join(FILE);
    let old = std::fs::read_to_string(&path).unwrap_or_default();
    let machine = machine()?;
    let mut all = split(&old);
    for (title, figures) in sections {
        all.insert((*title).to_owned(), format!("{machine}\n\n{}", figures.trim()));
    }
    let mut text = BEGINNING.to_owned();
    for (title, section) in all {
        text += &format!("\n## {title}\n\n{}\n", section.trim());
    }
    std::fs::create_dir_all(path.parent().context("no folder")?)?;
    std::fs::write(&path, text).with_context(|| format!("write {FILE}"))?;
    run::say(format_args!("the figures are in {FILE}"));
    Ok(())
}

/// The sections of a document, by title.
fn split(text: &str) -> BTreeMap<String, String> {
    text.split("\n## ")
        .skip(1)
        .filter_map(|section| section.split_once('\n'))
        .map(|(title, section)| (title.trim().to_owned(), section.to_owned()))
        .collect()
}

/// What the figures are of.
fn machine() -> Result<String> {
    let cpus = std::fs::read_to_string("/proc/cpuinfo")?;
    let model = cpus.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    let model = model.map_or("unknown CPU", |(_, model)| model.trim());
    let count = std::thread::available_parallelism()?;
    let kernel = run::output(Command::new("uname").args(["-sr"]))?;
    let date = run::output(Command::new("date").args(["-u", "+%Y-%m-%d"]))?;
    Ok(format!("{} · {} · {model}, {count} CPUs", date.trim(), kernel.trim()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sections_are_found_again() {
        let text = format!("{BEGINNING}\n## One\n\nfirst\n### Part\n\n## Two\n\nsecond\n");
        let sections = split(&text);
        assert_eq!(sections.keys().collect::<Vec<_>>(), ["One", "Two"]);
        assert!(sections["One"].contains("### Part") && sections["Two"].contains("second"));
    }
}
