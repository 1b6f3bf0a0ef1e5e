//! The page for people.

use sallyport_policy::{Bundle, Policy};

#[test]
fn a_page_says_who_may_do_what_where_and_why_not() {
    let rules = "@id(\"enter\")\n@session_limit(\"90m\")\npermit (principal in Group::\"ops\", action == Action::\"open_session\", resource in HostGroup::\"web\")\nwhen { context.local_user == \"root\" };\n\
                 @id(\"no-scans\")\n@reason(\"scans <b>are</b> *not* for production\")\n@on_violation(\"kill\")\nforbid (principal, action == Action::\"exec\", resource) when { context.name == \"nmap\" };\n\
                 @id(\"push\")\npermit (principal in Group::\"ops\", action == Action::\"push_policy\", resource);\n";
    let entities = "[{\"uid\": {\"type\": \"Group\", \"id\": \"ops\"}, \"attrs\": {}, \"parents\": []}, {\"uid\": {\"type\": \"HostGroup\", \"id\": \"web\"}, \"attrs\": {}, \"parents\": []}]";
    let bundle = Bundle::from_files([
        ("bundle.toml", "name = \"page\"\nschema = 2\ncontact = \"security@example.org\"\n"),
        ("entities.json", entities),
        ("rules.cedar", rules),
    ])
    .expect("a bundle");
    let policy = Policy::load(&bundle).unwrap_or_else(|faults| panic!("{faults}"));
    let page = policy.page(&bundle);
    for line in [
        "# Policy `page`",
        "- Groups of people: `ops`",
        "## Sessions",
        "- May: people in `ops` on hosts in `web`: `open_session`",
        "- For at most 1 h 30 min",
        "#### no-scans",
        "Scans &lt;b>are&lt;/b> \\*not\\* for production.",
        "- The process that tries is killed",
        "- Whom to ask: security@example.org",
        "- Enforced in the kernel, denied before it runs (without BPF LSM: in the kernel, killed before its first instruction)",
        "## Sallyport itself",
        "<details><summary>Rule, rules.cedar:5</summary>",
    ] {
        assert!(page.lines().any(|it| it == line), "{line}\n\n{page}");
    }
    for id in ["enter", "no-scans", "push"] {
        assert_eq!(page.matches(&format!("#### {id}\n")).count(), 1, "{page}");
    }
}
