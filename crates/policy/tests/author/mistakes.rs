//! Planted mistakes: each is found at its place with a sentence that helps, and nothing is found once it is mended.
//!
//! One file each in `mistakes/`: `place` (file:line:column), `severity`, `code`, texts of sentence and remedy, the files of
//! a bundle, and `mend`, replacements that correct it. A file that is not given is the smallest that is valid.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use sallyport_policy::{Bundle, FINDING_CODES, Policy, Severity};
use serde::Deserialize;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Mistake {
    place: String,
    severity: String,
    code: String,
    says: String,
    helps: String,
    /// Codes of what else is found; it is mended with it.
    #[serde(default)]
    also: Vec<String>,
    mend: Vec<(String, String)>,
    files: BTreeMap<String, String>,
}

/// What is told of a bundle.
#[derive(Debug)]
struct Told {
    place: String,
    severity: &'static str,
    code: String,
    message: String,
    help: String,
    excerpt: String,
    shown: String,
}

fn examine(files: &BTreeMap<String, String>) -> Vec<Told> {
    let mut files = files.clone();
    files.entry("bundle.toml".into()).or_insert_with(|| "name = \"case\"\nschema = 2\n".into());
    let bundle = Bundle::from_files(files).expect("acceptable files");
    let told = |fault: &sallyport_policy::Fault, severity, code: &str, shown: String| Told {
        place: format!("{}:{}:{}", fault.file, fault.line, fault.column),
        severity,
        code: code.to_owned(),
        message: fault.message.clone(),
        help: fault.help.clone().unwrap_or_default(),
        excerpt: fault.excerpt.clone(),
        shown,
    };
    match Policy::load(&bundle) {
        Err(faults) => {
            faults.faults.iter().map(|fault| told(fault, "error", "fault", fault.to_string())).collect()
        }
        Ok(policy) => {
            let found = policy.lint(&bundle);
            assert_eq!(found.not_compared, Vec::<String>::new());
            let severity = |severity| if severity == Severity::Error { "error" } else { "warning" };
            let findings = found.findings.iter();
            findings.map(|it| told(&it.fault, severity(it.severity), it.code, it.to_string())).collect()
        }
    }
}

/// The files of the mistakes, by name.
fn planted() -> Vec<(String, Mistake)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/mistakes");
    let mut paths: Vec<_> = std::fs::read_dir(folder)
        .expect("the cases are there")
        .map(|entry| entry.expect("readable").path())
        .filter(|path| path.extension().is_some_and(|ending| ending == "toml"))
        .collect();
    paths.sort();
    let read = |path: std::path::PathBuf| {
        let name = path.file_stem().expect("has a name").to_string_lossy().into_owned();
        let text = std::fs::read_to_string(&path).expect("readable");
        let mistake = toml::from_str(&text).unwrap_or_else(|error| panic!("{name}: {error}"));
        (name, mistake)
    };
    paths.into_iter().map(read).collect()
}

#[test]
fn every_kind_of_finding_has_a_planted_mistake_and_a_line_in_the_documentation() {
    let known: BTreeSet<&str> = FINDING_CODES.iter().copied().collect();
    assert_eq!(known.len(), FINDING_CODES.len(), "a code is given twice");
    let planted = planted();
    let shown: BTreeSet<&str> = planted.iter().map(|(_, mistake)| mistake.code.as_str()).collect();
    let without: Vec<_> = known.difference(&shown).collect();
    assert!(without.is_empty(), "no planted mistake shows {without:?}: add one to tests/mistakes");
    assert!(shown.is_subset(&known), "{:?}", shown.difference(&known).collect::<Vec<_>>());
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/policy-check.md");
    let page = std::fs::read_to_string(page).expect("the page is there");
    let rows = page.lines().filter(|line| line.starts_with("| `")).filter_map(|line| line.split('|').nth(1));
    let told: BTreeSet<&str> = rows.flat_map(|cell| cell.split('`').skip(1).step_by(2)).collect();
    let missing: Vec<_> = known.difference(&told).filter(|code| **code != "fault").collect();
    assert!(missing.is_empty(), "docs/policy-check.md does not explain {missing:?}");
    assert!(told.is_subset(&known), "{:?}", told.difference(&known).collect::<Vec<_>>());
}

#[test]
fn every_planted_mistake_is_found_and_its_mended_twin_is_not() {
    let names = planted();
    assert!(names.len() >= 55, "only {} cases", names.len());
    let mut wrong = Vec::new();
    for (name, mistake) in &names {
        let mut told = examine(&mistake.files);
        for also in &mistake.also {
            let at = told.iter().position(|told| told.code == *also);
            told.remove(at.unwrap_or_else(|| panic!("{name}: {also} is not found")));
        }
        let fits = |told: &Told| {
            told.place == mistake.place
                && told.severity == mistake.severity
                && told.code == mistake.code
                && told.message.contains(&mistake.says)
                && told.help.contains(&mistake.helps)
        };
        if !matches!(told.as_slice(), [only] if fits(only)) {
            let shown: Vec<String> =
                told.iter().map(|told| format!("[{}] {}", told.code, told.shown)).collect();
            wrong.push(format!(
                "── {name}: wanted {} [{}]\n{}",
                mistake.place,
                mistake.code,
                shown.join("\n")
            ));
        } else if told[0].excerpt.is_empty() || !told[0].shown.contains('^') {
            wrong.push(format!("── {name}: no excerpt with a caret\n{}", told[0].shown));
        }
        let mut mended = mistake.files.clone();
        for (from, to) in &mistake.mend {
            let mut found = false;
            for content in mended.values_mut().filter(|content| content.contains(from)) {
                *content = content.replacen(from, to, 1);
                found = true;
            }
            assert!(found, "{name}: there is nothing to mend: {from}");
        }
        let told = examine(&mended);
        if !told.is_empty() {
            let shown: Vec<String> = told.into_iter().map(|told| told.shown).collect();
            wrong.push(format!("── {name}, mended:\n{}", shown.join("\n")));
        }
    }
    assert!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), names.len(), wrong.join("\n"));
}
