//! What policies cost: words in the kernel's arena, and time to compile.

use std::fmt::Write as _;
use std::time::{Duration, Instant};

use sallyport_policy::{Bundle, CompileError, Policy, Principal, Program};
use sallyport_sensor_abi::policy::DENY;

fn policy(rules: &str) -> Policy {
    let bundle = Bundle::from_files([("bundle.toml", "name = \"t\"\nschema = 2\n"), ("rules.cedar", rules)]);
    Policy::load(&bundle.expect("a bundle")).unwrap_or_else(|faults| panic!("{faults}"))
}

fn timed<T>(what: &str, work: impl FnOnce() -> T) -> T {
    let start = Instant::now();
    let result = work();
    println!("{what}: {:?}", start.elapsed());
    // Generous: tests run unoptimised and beside others.
    assert!(start.elapsed() < Duration::from_secs(60), "{what} took {:?}", start.elapsed());
    result
}

/// 2,000 rules with a path each, and 5,000 paths in one set.
#[test]
fn thousands_of_exact_paths() {
    let mut rules = String::from("@id(\"all\") permit(principal, action == Action::\"exec\", resource);\n");
    for n in 0..2_000 {
        writeln!(
            rules,
            "@id(\"rule-{n}\") @reason(\"no\") forbid(principal, action == Action::\"exec\", resource) when {{ context.path == \"/usr/bin/program-{n}\" }};"
        )
        .expect("writes");
    }
    let paths: Vec<String> = (0..5_000).map(|n| format!("\"/opt/tool-{n}/bin/run\"")).collect();
    writeln!(
        rules,
        "@id(\"set\") @reason(\"no\") forbid(principal, action == Action::\"exec\", resource) when {{ [{}].contains(context.path) }};",
        paths.join(", ")
    )
    .expect("writes");
    let policy = timed("check", || policy(&rules));
    let compiled = timed("compile", || policy.compile(&Principal::default(), "h", "root")).expect("compiles");
    println!("{} words", compiled.arena.len());
    for (path, rule) in [
        ("/usr/bin/program-0", "rule-0"),
        ("/usr/bin/program-1999", "rule-1999"),
        ("/opt/tool-4999/bin/run", "set"),
        ("/usr/bin/program-2000", "all"),
        ("/usr/bin/program-", "all"),
    ] {
        let names = [path.as_bytes()];
        let word = compiled.judge_exec(&Program { names: &names, args: b"x\0", ..Program::default() });
        assert_eq!(compiled.rule(word).map(|rule| rule.id.as_str()), Some(rule), "{path}");
        assert_eq!(word & DENY != 0, rule != "all");
    }
}

/// 1,000 rules with a range and a port each.
#[test]
fn a_thousand_destinations() {
    let mut rules = String::new();
    for n in 0..1_000 {
        writeln!(
            rules,
            "@id(\"to-{n}\") permit(principal, action == Action::\"connect\", resource) when {{ context.address.isInRange(ip(\"10.{}.{}.0/24\")) && context.port == {} }};",
            n / 250,
            n % 250,
            1_000 + n % 20,
        )
        .expect("writes");
    }
    let policy = timed("check", || policy(&rules));
    let compiled = timed("compile", || policy.compile(&Principal::default(), "h", "root")).expect("compiles");
    println!("{} words", compiled.arena.len());
    let word = compiled.judge_connect("10.3.7.9".parse().expect("an address"), 1_017, 6);
    assert_eq!(compiled.rule(word).map(|rule| rule.id.as_str()), Some("to-757"));
}

/// Too much is an error that names the rules, and comes in reasonable time.
#[test]
fn too_much_is_told() {
    let mut rules = String::new();
    for n in 0..40 {
        writeln!(
            rules,
            "@id(\"argument-{n}\") permit(principal, action == Action::\"exec\", resource) when {{ context.args.contains(\"--option-{n}\") && context.args.contains(\"--with-{n}\") }};"
        )
        .expect("writes");
    }
    let policy = policy(&rules);
    let error = timed("compile", || policy.compile(&Principal::default(), "h", "root"))
        .map(|compiled| compiled.arena.len())
        .expect_err("too much");
    assert!(matches!(error, CompileError::TooLarge { .. }));
    assert!(error.to_string().contains("`argument-0`"), "{error}");
    println!("{error}");
}
