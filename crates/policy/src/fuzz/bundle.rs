//! Fuzzing bundles as a whole: an archive, or manifest, entities, cases and rules as they come.

use crate::bundle::{Bundle, ENTITIES, MANIFEST};
use crate::diagnostic::Diagnostics;
use crate::load::Policy;

/// Takes bytes as an archive, and, cut at zero bytes, as the files of a bundle. Whatever they are: no panic, every fault
/// at a place that exists, and a bundle that loads survives its archive, its layout and its examination. For fuzzing.
pub fn fuzz_bundle(bytes: &[u8]) {
    if let Ok(bundle) = Bundle::from_archive(bytes) {
        look_at(&bundle);
    }
    let mut parts = bytes.split(|byte| *byte == 0);
    let mut files = vec![(MANIFEST, parts.next().unwrap_or_default().to_vec())];
    for (path, content) in
        [ENTITIES, "rules.cedar", "tests/t.toml", "more/rules.cedar"].into_iter().zip(parts)
    {
        files.push((path, content.to_vec()));
    }
    if let Ok(bundle) = Bundle::from_files(files) {
        look_at(&bundle);
    }
}

fn look_at(bundle: &Bundle) {
    let again = Bundle::from_archive(&bundle.to_archive()).expect("its own archive");
    assert_eq!(again.version(), bundle.version());
    match Policy::load(bundle) {
        Err(faults) => {
            assert!(!faults.faults.is_empty());
            places(bundle, &faults);
        }
        Ok(policy) => {
            let found = policy.lint(bundle);
            let faults = found.findings.into_iter().map(|finding| finding.fault).collect();
            places(bundle, &Diagnostics { faults });
            policy.run_tests(bundle);
            policy.page(bundle);
        }
    }
    for path in bundle.paths().filter(|path| path.ends_with(".cedar")) {
        let Some(Ok(text)) = bundle.file(path).map(std::str::from_utf8) else { continue };
        if let Ok(once) = crate::format(path, text) {
            assert_eq!(crate::format(path, &once).ok().as_deref(), Some(once.as_str()), "{text}");
        }
    }
}

/// Every place is one of its file, and can be shown.
fn places(bundle: &Bundle, faults: &Diagnostics) {
    for fault in &faults.faults {
        let shown = fault.to_string();
        assert!(!shown.chars().any(|c| c.is_control() && c != '\n' && c != '\t'), "{shown:?}");
        if fault.line > 0 {
            let content = bundle.file(&fault.file).unwrap_or_default();
            let text = String::from_utf8_lossy(content);
            let lines = text.split('\n').count();
            assert!(fault.line as usize <= lines, "{fault:?}");
            assert!(fault.column as usize <= fault.excerpt.chars().count() + 1, "{fault:?}");
        }
    }
}
