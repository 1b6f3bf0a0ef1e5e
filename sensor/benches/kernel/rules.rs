//! Bundles of any size, as a company's policies might be: names, paths, folders, addresses, ports and arguments, mixed.

use std::fmt::Write as _;

use anyhow::{Context, Result, anyhow};
use sallyport_policy::{Bundle, KernelPolicy, Policy, Principal};

/// What the benchmark's own processes do is permitted by these, and none of the other rules is about it.
const PERMITS: &str = r#"
@id("programs") permit(principal, action == Action::"exec", resource);
@id("destinations") permit(principal, action == Action::"connect", resource);
@id("listeners") permit(principal, action == Action::"listen", resource);
@id("system") permit(principal, action == Action::"system", resource);
@id("files") permit(principal, action in [Action::"read_file", Action::"write_file", Action::"create_file",
  Action::"delete_file", Action::"rename_file", Action::"link_file", Action::"change_file", Action::"map_code",
  Action::"connect_unix"], resource);
"#;

/// Rules of each size that is measured. One rule: one for programs, one for destinations and one for files, so that none
/// is judged without its tables.
pub(crate) const SIZES: [usize; 4] = [1, 100, 1_000, 10_000];

/// The text of a bundle with that many rules that forbid something.
pub(crate) fn text(rules: usize, recorded: bool) -> String {
    let mut text = String::new();
    if !recorded {
        text += "@record(\"none\")";
    }
    // The rule on programs is the first.
    text += PERMITS;
    let kinds: Vec<usize> =
        if rules == 1 { vec![1, 3, 6] } else { (0..rules).map(|rule| rule % 8).collect() };
    for (number, kind) in kinds.into_iter().enumerate() {
        let (action, condition) = rule(kind, number);
        let _ = writeln!(
            text,
            "@id(\"rule-{number}\") @reason(\"not on this host\") forbid(principal, action {action}, resource) when {{ {condition} }};"
        );
    }
    text
}

/// Action and condition of one rule.
fn rule(kind: usize, n: usize) -> (&'static str, String) {
    const EXEC: &str = "== Action::\"exec\"";
    const CONNECT: &str = "== Action::\"connect\"";
    const FILES: &str = "in [Action::\"read_file\", Action::\"write_file\"]";
    // Eight kinds take turns: this counts those of one kind.
    let k = n / 8;
    match kind {
        0 => (EXEC, format!("context.name == \"tool-{k}\"")),
        1 => (EXEC, format!("context.path == \"/opt/app-{k}/bin/run\"")),
        2 => (EXEC, format!("context.path like \"/srv/release-{k}/*\"")),
        3 => (CONNECT, format!("context.address.isInRange(ip(\"10.{}.{}.0/24\"))", k / 250, k % 250)),
        4 => (
            CONNECT,
            format!(
                "context.address.isInRange(ip(\"172.16.{}.0/24\")) && context.port == {}",
                k % 200,
                1_024 + k % 500
            ),
        ),
        5 => (
            EXEC,
            format!("context.path == \"/usr/bin/admin-{k}\" && context.args.contains(\"--force-{k}\")"),
        ),
        6 => (FILES, format!("context.path == \"/etc/app-{k}/secret\"")),
        _ => (FILES, format!("context.path like \"/var/lib/app-{k}/*\"")),
    }
}

/// Compiles the bundle for one person on one host. `recorded`: permitted programs are.
pub(crate) fn compile(rules: usize, recorded: bool) -> Result<KernelPolicy> {
    let text = text(rules, recorded);
    let files = [("bundle.toml", "name = \"bench\"\nschema = 2\n"), ("rules.cedar", text.as_str())];
    let bundle = Bundle::from_files(files).context("make a bundle")?;
    let policy = Policy::load(&bundle).map_err(|faults| anyhow!("{faults}"))?;
    policy.compile(&Principal::default(), "web-1", "root").with_context(|| format!("compile {rules} rules"))
}
