//! Results of a bundle's cases in JUnit's XML form, which CI systems show.

use std::fmt::Write as _;

use sallyport_policy::{CaseResult, TestReport};

/// One document: a suite for each file of cases.
pub(super) fn document(name: &str, report: &TestReport) -> String {
    let failed = |results: &[&CaseResult]| results.iter().filter(|result| result.failure.is_some()).count();
    let all: Vec<&CaseResult> = report.results.iter().collect();
    let mut xml = String::from("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n");
    // Writing to a string cannot fail.
    let _ = writeln!(
        xml,
        "<testsuites name=\"{}\" tests=\"{}\" failures=\"{}\" errors=\"0\">",
        escape(name),
        all.len(),
        failed(&all)
    );
    let mut files: Vec<&str> = all.iter().map(|result| result.file.as_str()).collect();
    files.dedup();
    for file in files {
        let cases: Vec<&CaseResult> = all.iter().copied().filter(|result| result.file == file).collect();
        let _ = writeln!(
            xml,
            "  <testsuite name=\"{}\" tests=\"{}\" failures=\"{}\" errors=\"0\" skipped=\"0\">",
            escape(file),
            cases.len(),
            failed(&cases)
        );
        for CaseResult { file, line, case, failure } in cases {
            let (file, case) = (escape(file), escape(case));
            let _ = write!(
                xml,
                "    <testcase classname=\"{file}\" name=\"line {line}: {case}\" file=\"{file}\" line=\"{line}\""
            );
            let _ = match failure {
                None => writeln!(xml, "/>"),
                Some(message) => {
                    let message = escape(message);
                    writeln!(
                        xml,
                        ">\n      <failure type=\"answer\" message=\"{message}\">{file}:{line}: {message}</failure>\n    </testcase>"
                    )
                }
            };
        }
        xml.push_str("  </testsuite>\n");
    }
    xml.push_str("</testsuites>\n");
    xml
}

/// Text for an attribute or an element. What XML 1.0 cannot hold at all becomes U+FFFD.
fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '&' => out.push_str("&amp;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&apos;"),
            '\t' | '\n' | '\r' => {
                let _ = write!(out, "&#{};", u32::from(c));
            }
            '\0'..='\u{1f}' | '\u{fffe}' | '\u{ffff}' => out.push('\u{fffd}'),
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_become_one_document() {
        let result = |file: &str, line, case: &str, failure: Option<&str>| CaseResult {
            file: file.into(),
            line,
            case: case.into(),
            failure: failure.map(Into::into),
        };
        let report = TestReport {
            results: vec![
                result("tests/a.toml", 3, "alice runs /bin/sh [\"sh\", \"-c\", \"a && b < c\"]", None),
                result(
                    "tests/a.toml",
                    9,
                    "a \u{1b}[31mred\u{0} 'name'\n",
                    Some("expected <deny> & got allow"),
                ),
                result("tests/b.toml", 1, "é", None),
            ],
            ..TestReport::default()
        };
        let xml = document("demo \"x\"", &report);
        assert_eq!(xml, include_str!("junit.xml"), "the golden file was checked with an XML parser");
    }
}
