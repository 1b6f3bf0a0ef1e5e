//! What a faulty bundle is told: every fault, with its place and a sentence that helps.

use std::fs;

use sallyport_policy::{Bundle, BundleError, Policy};

/// The faults of a bundle with these rules, as `LINE:COLUMN message`.
fn faults(rules: &str) -> Vec<String> {
    let entities = r#"[
  {"uid": {"type": "Group", "id": "engineers"}, "attrs": {}, "parents": []},
  {"uid": {"type": "Host", "id": "web-1"}, "attrs": {}, "parents": []}
]"#;
    let bundle = Bundle::from_files([
        ("bundle.toml", "name = \"t\"\nschema = 2\n"),
        ("entities.json", entities),
        ("rules.cedar", rules),
    ])
    .expect("a bundle");
    match Policy::load(&bundle) {
        Ok(_) => vec![],
        Err(diagnostics) => diagnostics
            .faults
            .iter()
            .map(|fault| format!("{}:{} {}", fault.line, fault.column, fault.message))
            .collect(),
    }
}

#[track_caller]
fn check(rules: &str, expected: &[&str]) {
    assert_eq!(faults(rules), expected, "{rules}");
}

const EXEC: &str = "(principal, action == Action::\"exec\", resource)";

#[test]
fn all_faults_are_told_at_once() {
    let rules = "\
@id(\"a\") @reson(\"x\") permit(principal in Group::\"enginers\", action == Action::\"exec\", resource);
@id(\"b\") forbid(principal, action == Action::\"exec\", resource) when { context.nam == \"x\" };
permit(principal, action == Action::\"exec\", resource) whn { true };
@id(\"a\") permit(principal, action == Action::\"exec\", resource);
permit(principal, action == Action::\"exec\", resource);
";
    check(
        rules,
        &[
            "1:10 unknown annotation `@reson`",
            "1:42 unknown entity `Group::\"enginers\"`",
            "2:1 a forbid needs a `@reason`",
            "2:71 attribute `nam` in context for Action::\"exec\" not found",
            "3:55 invalid policy condition: whn",
            "4:5 the id `a` is already used",
            "5:1 the rule has no `@id`",
        ],
    );
}

#[test]
fn annotations_must_mean_something() {
    for (rule, expected) in [
        (format!("@id(\"x y\") permit{EXEC};"), "1:5 `x y` cannot be an id"),
        (format!("@id(\"default-deny\") permit{EXEC};"), "1:5 the id `default-deny` is reserved"),
        (
            format!("@id(\"a\") @reason(\"r\") @on_violation(\"kil\") forbid{EXEC};"),
            "1:37 unknown value `kil` of `@on_violation`",
        ),
        (
            format!("@id(\"a\") @on_violation(\"kill\") permit{EXEC};"),
            "1:10 a permit cannot be violated",
        ),
        (
            format!("@id(\"a\") @mode(\"monitor\") permit{EXEC};"),
            "1:10 a permit cannot be monitored",
        ),
        (format!("@id(\"a\") @record(\"some\") permit{EXEC};"), "1:18 unknown value `some` of `@record`"),
        (
            format!("@id(\"a\") @reason(\"r\") @record(\"none\") forbid{EXEC};"),
            "1:23 what a forbid denies is always recorded",
        ),
        (
            "@id(\"a\") @record(\"none\") permit(principal, action == Action::\"open_session\", resource);".to_owned(),
            "1:10 `@record` has no effect on this action",
        ),
        (
            format!("@id(\"a\") @session_limit(\"8h\") permit{EXEC};"),
            "1:10 `@session_limit` has no effect here",
        ),
        (
            "@id(\"a\") @session_limit(\"8x\") permit(principal, action == Action::\"open_session\", resource);"
                .to_owned(),
            "1:25 `8x` is not a length of time",
        ),
        (
            format!("@id(\"a\") @reason(\"\\u{{1b}}[2J\") forbid{EXEC};"),
            "1:18 `@reason` cannot be shown to people as it is",
        ),
    ] {
        check(&rule, &[expected]);
    }
}

#[test]
fn a_rule_that_nothing_can_enforce_is_a_fault() {
    let rule = |condition: &str| faults(&format!("@id(\"a\") permit{EXEC} when {{ {condition} }};"));
    for condition in [
        "context.path == context.command_line",
        "context.args.contains(context.name)",
        "resource.hasTag(context.name)",
        "context == context",
    ] {
        let faults = rule(condition);
        assert!(
            faults.iter().any(|fault| fault.contains("rule `a` cannot be enforced")),
            "{condition}: {faults:?}"
        );
    }
    // Controls: much like these, but with an answer.
    for condition in [
        "context.path == context.path || context.fileless",
        "context.args.contains(principal.issuer)",
        "resource.hasTag(context.local_user)",
    ] {
        assert_eq!(rule(condition), Vec::<String>::new(), "{condition}");
    }
}

#[test]
fn placement_is_told_for_each_action() {
    use sallyport_policy::Enforcement as E;
    let placed = |rule: &str| {
        let files =
            [("bundle.toml", "name = \"t\"\nschema = 2\n".to_owned()), ("rules.cedar", rule.to_owned())];
        let policy =
            Policy::load(&Bundle::from_files(files).expect("a bundle")).unwrap_or_else(|f| panic!("{f}"));
        let places = policy.placement().remove(0).places;
        places.into_iter().map(|place| (place.action, place.lsm, place.tracepoint)).collect::<Vec<_>>()
    };
    let forbid = |action: &str, condition: &str| {
        placed(&format!(
            "@id(\"a\") @reason(\"r\") forbid(principal, action in [{action}], resource) when {{ {condition} }};"
        ))
    };
    let before = E::DeniedBeforeItHappens;
    assert_eq!(
        forbid("Action::\"exec\", Action::\"map_code\"", "context.name == \"x\""),
        [
            ("exec".into(), E::DeniedBeforeItRuns, E::KilledAtFirstInstruction),
            ("map_code".into(), before, E::NotJudged)
        ]
    );
    assert_eq!(
        forbid("Action::\"system\"", "context.operation == \"bpf\""),
        [("system".into(), before, E::GivenUpByTheSession)]
    );
    assert_eq!(
        forbid("Action::\"system\"", "context.caller == \"/x\""),
        [("system".into(), before, E::NotJudged)]
    );
    assert_eq!(
        forbid("Action::\"listen\"", "context.port == 1"),
        [("listen".into(), E::BindRefused, E::BindRefused)]
    );
    assert_eq!(
        forbid("Action::\"exec\"", "context.args.contains(\"x\")"),
        [("exec".into(), E::KilledAtFirstInstruction, E::KilledAtFirstInstruction)]
    );
}

#[test]
fn long_chains_are_a_fault_and_no_overflow() {
    let condition = |text: String| faults(&format!("@id(\"a\") permit{EXEC} when {{ {text} }};"));
    let chain = |n: usize| {
        let parts: Vec<String> = (0..n).map(|n| format!("context.name == \"p{n}\"")).collect();
        parts.join(" || ")
    };
    for hostile in [
        chain(5_000),
        format!("{}context.fileless", "!".repeat(5_000)),
        format!("{}true{}", "(".repeat(50_000), ")".repeat(50_000)),
        format!("{}1", "[".repeat(50_000)),
        format!("context{}", ".a".repeat(50_000)),
        format!("{}true", "if true then true else ".repeat(5_000)),
        format!("{{{}", "a:{".repeat(50_000)),
        format!("1{} == context.port", " + 1".repeat(5_000)),
    ] {
        let told = condition(hostile);
        assert_eq!(told.len(), 1, "{told:?}");
        assert!(told[0].contains("nested too deeply"), "{told:?}");
    }
    // Controls: as long as may be, and a set of any length.
    assert_eq!(condition(chain(150)), Vec::<String>::new());
    let set: Vec<String> = (0..5_000).map(|n| format!("\"p{n}\"")).collect();
    assert_eq!(condition(format!("[{}].contains(context.name)", set.join(", "))), Vec::<String>::new());
    // Just below the bound nothing overflows.
    for deepest in [
        format!("{}1", "(".repeat(45)),
        format!("{}true{}", "(".repeat(45), ")".repeat(45)),
        format!("{}1{} == 1", "[".repeat(45), "]".repeat(45)),
        format!("{}1{} == 1", "{a: ".repeat(45), "}".repeat(45)),
        format!("{}true", "!".repeat(480)),
        format!("{}1 == 1", "-".repeat(480)),
        format!("context{}", ".a".repeat(480)),
        format!("1{} == 1", " + 1".repeat(480)),
        format!("{}true", "if true then true else ".repeat(45)),
        format!("true{}", " && true".repeat(480)),
    ] {
        condition(deepest);
    }
}

#[test]
fn faults_show_their_line_and_nothing_that_steers_a_terminal() {
    let bundle = Bundle::from_files([
        ("bundle.toml", "name = \"t\"\nschema = 2\n"),
        (
            "rules.cedar",
            "\t@id(\"a\") @oops(\"\u{1b}[31m\") permit(principal, action == Action::\"exec\", resource);",
        ),
    ])
    .expect("a bundle");
    let shown = Policy::load(&bundle).expect_err("a fault").to_string();
    let expected = "\
rules.cedar:1:11: unknown annotation `@oops`
   |
 1 | \t@id(\"a\") @oops(\"\u{fffd}[31m\") permit(principal, action == Action::\"exec\", resource);
   | \t         ^^^^^
   = help: the annotations are @id, @reason, @contact, @on_violation, @mode, @record, @session_limit, @wide
";
    assert_eq!(shown, expected);
}

#[test]
fn entities_are_checked() {
    let entities = r#"[
  {"uid": {"type": "Group", "id": "a"}, "attrs": {}, "parents": [{"type": "Group", "id": "missing"}]},
  {"uid": {"type": "Group", "id": "a"}, "attrs": {}, "parents": []},
  {"uid": {"type": "User", "id": "alice"}, "attrs": {}, "parents": []},
  {"uid": {"type": "Hots", "id": "web-1"}, "attrs": {}, "parents": []}
]"#;
    let bundle = Bundle::from_files([
        ("bundle.toml", "name = \"t\"\nschema = 2\n"),
        ("entities.json", entities),
        ("rules.cedar", "@id(\"a\") permit(principal, action == Action::\"exec\", resource);"),
    ])
    .expect("a bundle");
    let faults = Policy::load(&bundle).expect_err("faults").faults;
    let told: Vec<&str> = faults.iter().map(|fault| fault.message.as_str()).collect();
    assert_eq!(told.len(), 4, "{told:#?}");
    for part in ["unknown parent `Group::\"missing\"`", "listed twice", "people do not belong here", "Hots"] {
        assert!(told.iter().any(|message| message.contains(part)), "{part}: {told:#?}");
    }
}

#[test]
fn folders_are_read_with_care() {
    let root = tempfile::tempdir().expect("a folder");
    let make = |path: &str, content: &str| {
        let path = root.path().join(path);
        fs::create_dir_all(path.parent().expect("a parent")).expect("made");
        fs::write(path, content).expect("written");
    };
    make("a/bundle.toml", "name = \"a\"\nschema = 2\ninclude = [\"../b\"]\n");
    make("a/rules.cedar", "");
    make("a/README.md", "left out");
    make("a/tests/t.toml", "");
    make("b/bundle.toml", "name = \"b\"\nschema = 2\n");
    make("b/x/rules.cedar", "");
    make("b/tests/t.toml", "");
    let bundle = Bundle::read_dir(&root.path().join("a")).expect("a bundle");
    let paths: Vec<&str> = bundle.paths().collect();
    assert_eq!(
        paths,
        ["bundle.toml", "include/b/bundle.toml", "include/b/x/rules.cedar", "rules.cedar", "tests/t.toml"]
    );
    // The content counts, and nothing else.
    let version = bundle.version();
    make("a/README.md", "changed");
    assert_eq!(Bundle::read_dir(&root.path().join("a")).expect("a bundle").version(), version);
    make("b/x/rules.cedar", "// changed");
    assert_ne!(Bundle::read_dir(&root.path().join("a")).expect("a bundle").version(), version);

    std::os::unix::fs::symlink("/etc/passwd", root.path().join("b/evil.cedar")).expect("linked");
    let error = Bundle::read_dir(&root.path().join("a")).expect_err("a link");
    assert!(matches!(error, BundleError::Link { .. }), "{error}");
    fs::remove_file(root.path().join("b/evil.cedar")).expect("removed");

    // What the bundle itself holds is taken as it lies; an included one may not bring others with it.
    make("a/include/b/bundle.toml", "name = \"b\"\nschema = 2\n");
    make("a/include/b/tests/t.toml", "");
    make("a/include/README.md", "left out");
    let held = Bundle::read_dir(&root.path().join("a")).expect("a bundle");
    let paths: Vec<&str> = held.paths().filter(|path| path.starts_with("include")).collect();
    assert_eq!(paths, ["include/b/bundle.toml", "include/b/tests/t.toml"]);
    fs::remove_dir_all(root.path().join("a/include")).expect("removed");
    make("b/include/c/bundle.toml", "name = \"c\"\nschema = 2\n");
    let error = Bundle::read_dir(&root.path().join("a")).expect_err("a folder `include`");
    assert!(error.to_string().contains("include those bundles themselves"), "{error}");
    fs::remove_dir_all(root.path().join("b/include")).expect("removed");

    make("b/bundle.toml", "name = \"b\"\nschema = 2\ninclude = [\"../a\"]\n");
    let error = Bundle::read_dir(&root.path().join("a")).expect_err("a cycle");
    assert!(matches!(error, BundleError::Cycle { .. }), "{error}");

    for (version, told) in
        [("1", "add permits for the actions `read_file`"), ("3", "`schema = 3` is not known")]
    {
        make("b/bundle.toml", &format!("name = \"b\"\nschema = {version}\n"));
        let error = Bundle::read_dir(&root.path().join("a")).expect_err("another schema");
        assert!(error.to_string().contains(told), "{error}");
    }
    let error = Bundle::read_dir(root.path()).expect_err("no bundle");
    assert!(matches!(error, BundleError::NoManifest { .. }), "{error}");
}
