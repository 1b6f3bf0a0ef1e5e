//! Who may push policy is itself policy: rules on where a change comes from, who signed it, who approved it.

use sallyport_policy::{Bundle, Change, GatewayAction, Policy, Principal, Question};

const RULES: &str = r#"
@id("main-branch-pushes")
permit (principal, action == Action::"push_policy", resource == Gateway::"gateway")
when {
  principal.kind == "ci" && principal.issuer == "https://token.actions.githubusercontent.com" &&
  context has repository && context.repository == "acme/policies" &&
  context has ref && context.ref == "refs/heads/main" &&
  context has environment && context.environment == "production" &&
  context.signed_by.contains("release")
};
@id("two-people") @reason("production policy takes two people")
forbid (principal, action == Action::"push_policy", resource == Gateway::"gateway")
when { context.approvals < 1 };
@id("security-approves")
permit (principal in Group::"security", action == Action::"approve_policy", resource == Gateway::"gateway")
unless { context has proposed_by && context.proposed_by == "mallory" };
"#;

const CASES: &str = r#"
[people.job]
user = "github:acme/policies@refs/heads/main"
kind = "ci"
issuer = "https://token.actions.githubusercontent.com"
[people.sam]
user = "sam"
groups = ["security"]

[[case]]
who = "job"
gateway = "push_policy"
change = { repository = "acme/policies", ref = "refs/heads/main", environment = "production", signed_by = ["release"], approvals = 1 }
expect = "allow"
rule = "main-branch-pushes"

[[case]]
who = "job"
gateway = "push_policy"
change = { repository = "acme/policies", ref = "refs/heads/main", environment = "production", signed_by = ["release"] }
expect = "deny"
rule = "two-people"

[[case]]
who = "job"
gateway = "push_policy"
change = { repository = "acme/policies", ref = "refs/heads/other", environment = "production", signed_by = ["release"], approvals = 1 }
expect = "deny"
rule = "default-deny"

[[case]]
who = "sam"
gateway = "approve_policy"
change = { proposed_by = "github:acme/policies@refs/heads/main" }
expect = "allow"

[[case]]
who = "sam"
gateway = "approve_policy"
change = { proposed_by = "mallory" }
expect = "deny"
"#;

fn bundle(rules: &str, cases: &str) -> Bundle {
    let files = [
        ("bundle.toml", "name = \"t\"\nschema = 2\ncontact = \"security@test\"\n"),
        ("entities.json", r#"[{"uid": {"type": "Group", "id": "security"}, "attrs": {}, "parents": []}]"#),
        ("rules.cedar", rules),
        ("tests/changes.toml", cases),
    ];
    Bundle::from_files(files).expect("a bundle")
}

#[test]
fn cases_ask_with_the_change() {
    let bundle = bundle(RULES, CASES);
    let policy = Policy::load(&bundle).expect("sound");
    let report = policy.run_tests(&bundle);
    assert!(report.passed() && report.cases == 5 && report.uncovered.is_empty(), "{report}");
    // The control: the same cases under rules that do not look at the branch.
    let wider = RULES.replace("context.ref == \"refs/heads/main\"", "true");
    let bundle = self::bundle(&wider, CASES);
    let report = Policy::load(&bundle).expect("sound").run_tests(&bundle);
    assert_eq!(report.failures.len(), 1, "{report}");
    assert!(report.failures[0].case.contains("of acme/policies at refs/heads/other"), "{report}");
}

#[test]
fn a_case_says_a_change_only_where_there_is_one() {
    for (case, wanted) in [
        ("gateway = \"read_evidence\"\nchange = { approvals = 1 }", "`change` belongs to"),
        ("gateway = \"push_policy\"\nchange = { colour = \"blue\" }", "unknown field `colour`"),
    ] {
        let cases =
            format!("[people.sam]\nuser = \"sam\"\n[[case]]\nwho = \"sam\"\n{case}\nexpect = \"deny\"\n");
        let bundle = bundle(RULES, &cases);
        let report = Policy::load(&bundle).expect("sound").run_tests(&bundle);
        assert!(report.failures[0].message.contains(wanted), "{report}");
    }
}

#[test]
fn what_a_token_may_lack_must_be_asked_for() {
    let careless = RULES.replace("context has ref && ", "");
    let faults = Policy::load(&bundle(&careless, "")).expect_err("refused");
    assert!(faults.to_string().contains("ref"), "{faults}");
}

#[test]
fn rules_of_before_hold_as_they_are() {
    let rules = r#"@id("carol") permit (principal == User::"carol",
        action in [Action::"push_policy", Action::"read_evidence"], resource == Gateway::"gateway");"#;
    let policy = Policy::load(&bundle(rules, "")).expect("sound");
    let ask = |user: &str, change: Change| {
        let principal = Principal { user: user.into(), kind: "human".into(), ..Principal::default() };
        policy.decide(&Question::Gateway { principal, action: GatewayAction::PushPolicy, change }).allowed
    };
    assert!(ask("carol", Change::default()));
    assert!(ask("carol", Change { repository: Some("x/y".into()), ..Change::default() }));
    assert!(!ask("bob", Change::default()));
}
