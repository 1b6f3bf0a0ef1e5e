//! The examples of the pages on policy are bundles that load, and whose cases pass.
//!
//! All fenced blocks of a page together are one bundle: the first `toml` block with a schema is its manifest, `json` is its
//! entities, each `cedar` block is rules, each `toml` block with cases is a file of cases.

use std::path::{Path, PathBuf};

use sallyport_policy::{Bundle, Policy, TestReport};

fn root() -> PathBuf {
    [env!("CARGO_MANIFEST_DIR"), "../.."].iter().collect()
}

/// Fenced blocks: language and content.
fn blocks(page: &str) -> Vec<(String, String)> {
    let mut blocks = Vec::new();
    let mut open: Option<(String, String)> = None;
    for line in page.lines() {
        match (line.strip_prefix("```"), open.take()) {
            (Some(_), Some(block)) => blocks.push(block),
            (Some(language), None) => open = Some((language.trim().to_owned(), String::new())),
            (None, Some((language, mut content))) => {
                content.push_str(line);
                content.push('\n');
                open = Some((language, content));
            }
            (None, None) => {}
        }
    }
    assert!(open.is_none(), "a block is not closed");
    blocks
}

/// The page's bundle in a folder of its own, loaded and tested. None if it has no rules.
fn tried(page: &str) -> Option<Result<TestReport, String>> {
    let folder = tempfile::tempdir().expect("a folder");
    let write = |path: &str, content: &str| {
        let path = folder.path().join(path);
        std::fs::create_dir_all(path.parent().expect("a parent")).expect("a folder");
        std::fs::write(path, content).expect("writes");
    };
    let blocks = blocks(page);
    let of = |language: &str| -> Vec<&str> {
        blocks.iter().filter(|(name, _)| name == language).map(|(_, content)| content.as_str()).collect()
    };
    let rules = of("cedar");
    if rules.is_empty() {
        return None;
    }
    let policies = root().join("policies");
    let manifest = of("toml").into_iter().find(|block| block.contains("schema ="));
    let manifest = manifest.expect("a manifest").replace("\"../", &format!("\"{}/", policies.display()));
    write("bundle.toml", &manifest);
    for (n, block) in rules.iter().enumerate() {
        write(&format!("rules-{n}.cedar"), block);
    }
    if let Some(entities) = of("json").first() {
        write("entities.json", entities);
    }
    let cases = of("toml").into_iter().filter(|block| block.contains("[[case]]"));
    for (n, block) in cases.enumerate() {
        write(&format!("tests/{n}.toml"), block);
    }
    let bundle = Bundle::read_dir(folder.path()).unwrap_or_else(|error| panic!("{error}"));
    Some(Policy::load(&bundle).map(|policy| policy.run_tests(&bundle)).map_err(|faults| faults.to_string()))
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

#[test]
fn the_guides_examples_hold() {
    let page = read(&root().join("docs/policy.md"));
    let report = tried(&page).expect("examples").unwrap_or_else(|faults| panic!("{faults}"));
    assert!(report.passed() && report.uncovered.is_empty(), "{report}");
    assert!(report.cases >= 15, "{report}");
    // It can fail: another answer in a case, and an attribute that does not exist.
    let report = tried(&page.replacen("expect = \"deny\"", "expect = \"allow\"", 1)).expect("examples");
    assert_eq!(report.expect("it loads").failures.len(), 1);
    let faults = tried(&page.replacen("context.name", "context.nmae", 1)).expect("examples");
    assert!(faults.expect_err("no such attribute").contains("nmae"));
}

#[test]
fn the_packs_examples_load() {
    let mut tried_out = 0;
    let packs = std::fs::read_dir(root().join("policies")).expect("the folder of policies");
    let pages = packs.map(|entry| entry.expect("an entry").path().join("README.md"));
    for page in pages.chain([root().join("policies/README.md")]) {
        if !page.is_file() {
            continue;
        }
        if let Some(result) = tried(&read(&page)) {
            result.unwrap_or_else(|faults| panic!("{}: {faults}", page.display()));
            tried_out += 1;
        }
    }
    assert_eq!(tried_out, 6, "workstation, production, ci, ai-agent, database, and the index");
}
