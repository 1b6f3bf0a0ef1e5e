//! The layout of rules: stable, and nothing is lost by it.

use cedar_policy::PolicySet;
use proptest::prelude::*;
use sallyport_policy::format;

/// Everything that a file's policies say, annotations included.
fn meaning(text: &str) -> serde_json::Value {
    let set: PolicySet = text.parse().unwrap_or_else(|error| panic!("{error}: {text}"));
    set.to_json().expect("static policies")
}

#[test]
fn comments_and_annotations_survive() {
    let text = "// first\n@id(\"a\") // of the id\n@reason(\"// no comment\")\npermit(principal,action==Action::\"exec\",resource) // scope\n\
                when { // begin\n context.path == \"/a//b\" // one\n || context.name == \"b\" };\n// last\n";
    let once = format("a.cedar", text).unwrap_or_else(|faults| panic!("{faults}"));
    assert_ne!(once, text);
    for comment in ["// first", "// of the id", "// scope", "// begin", "// one", "// last"] {
        assert_eq!(once.matches(comment).count(), 1, "{comment}:\n{once}");
    }
    assert_eq!(meaning(&once), meaning(text));
    assert_eq!(format("a.cedar", &once).ok(), Some(once));
}

#[test]
fn what_is_not_cedar_is_told_with_its_place() {
    let faults =
        format("a.cedar", "permit(principal, action, resource);\npermit (principal;").expect_err("no policy");
    assert_eq!((faults.faults[0].line, faults.faults.len()), (2, 1), "{faults}");
    assert_eq!(format("a.cedar", "// nothing here\n").ok().as_deref(), Some("// nothing here\n"));
}

/// A condition of the kinds that bundles have.
fn condition() -> impl Strategy<Value = String> {
    let leaf = prop_oneof![
        "[a-z/]{1,12}".prop_map(|text| format!("context.path == \"/{text}\"")),
        "[a-z*/]{1,12}".prop_map(|text| format!("context.path like \"/{text}*\"")),
        "[a-z]{1,6}".prop_map(|text| format!("[\"{text}\", \"b\"].contains(context.name)")),
        (0u16..).prop_map(|port| format!("context.port >= {port}")),
        Just("context.address.isInRange(ip(\"10.0.0.0/8\"))".to_owned()),
        Just("principal in Group::\"a\"".to_owned()),
    ];
    leaf.prop_recursive(4, 24, 3, |inner| {
        prop_oneof![
            (inner.clone(), inner.clone()).prop_map(|(a, b)| format!("({a}) && {b}")),
            (inner.clone(), inner.clone()).prop_map(|(a, b)| format!("({a}) || // why\n ({b})")),
            inner.clone().prop_map(|a| format!("!({a})")),
            (inner.clone(), inner.clone(), inner).prop_map(|(a, b, c)| format!("(if {a} then {b} else {c})")),
        ]
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn laid_out_twice_is_laid_out_once_and_means_the_same(
        rules in prop::collection::vec((condition(), condition(), "[a-z ]{0,20}"), 1..4),
    ) {
        let rule = |(at, (when, unless, said)): (usize, &(String, String, String))| format!(
            "// {said}\n@id(\"r{at}\") @reason(\"{said}.\")\nforbid (principal, action, resource) when {{ {when} }}\nunless {{ {unless} }};\n"
        );
        let text: String = rules.iter().enumerate().map(rule).collect();
        match format("a.cedar", &text) {
            Ok(once) => {
                prop_assert_eq!(meaning(&text), meaning(&once));
                prop_assert_eq!(once.matches("//").count(), text.matches("//").count());
                prop_assert_eq!(format("a.cedar", &once).ok(), Some(once));
            }
            // Cedar's formatter drops comments in a few odd places; such a file is refused, not changed.
            Err(faults) => {
                prop_assert!(faults.faults.iter().all(|fault| fault.message.contains("would lose a comment")), "{}", faults);
                prop_assert!(text.contains("// why"), "{}", text);
            }
        }
    }
}
