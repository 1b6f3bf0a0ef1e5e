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

/// Ten thousand rules of every kind, each of its own: names, paths, folders, arguments, addresses, ports, files, callers.
#[test]
fn ten_thousand_rules() {
    let mut rules =
        String::from("@id(\"all\") permit(principal, action, resource) when { context has local_user };\n");
    let mut rule = |id: String, action: &str, condition: String| {
        writeln!(
            rules,
            "@id(\"{id}\") @reason(\"no\") forbid(principal, action == Action::\"{action}\", resource) when {{ {condition} }};"
        )
        .expect("writes");
    };
    for n in 0..1_500 {
        rule(format!("name-{n}"), "exec", format!("context.name == \"tool-{n}\""));
        rule(format!("path-{n}"), "exec", format!("context.path == \"/usr/lib/package-{n}/bin/run\""));
        rule(
            format!("args-{n}"),
            "exec",
            format!("context.path == \"/usr/bin/program-{n}\" && context.args.contains(\"--option-{n}\")"),
        );
        rule(format!("file-{n}"), "write_file", format!("context.path == \"/srv/data-{n}/secret\""));
        rule(
            format!("to-{n}"),
            "connect",
            format!("context.address.isInRange(ip(\"10.{}.{}.0/24\"))", n / 250, n % 250),
        );
    }
    for n in 0..1_000 {
        rule(format!("folder-{n}"), "exec", format!("context.path like \"/opt/folder-{n}/*\""));
        rule(format!("read-{n}"), "read_file", format!("context.path like \"/srv/private-{n}/*\""));
    }
    for n in 0..500 {
        rule(format!("port-{n}"), "connect", format!("context.port == {}", 20_000 + n));
    }
    let policy = timed("check", || policy(&rules));
    assert!(policy.rules().count() >= 10_001);
    let compiled = timed("compile", || policy.compile(&Principal::default(), "h", "root")).expect("compiles");
    let bytes = compiled.arena.len() * 4;
    println!("{} rules take {bytes} bytes", compiled.rules.len());
    assert!(bytes < 64 << 20);
    let exec = |path: &str, args: &[u8]| {
        let names = [path.as_bytes()];
        compiled.judge_exec(&Program { names: &names, args, ..Program::default() })
    };
    let named = |word| compiled.rule(word).map(|rule| rule.id.as_str());
    assert_eq!(named(exec("/anywhere/tool-1499", b"x\0")), Some("name-1499"));
    assert_eq!(named(exec("/usr/lib/package-7/bin/run", b"x\0")), Some("path-7"));
    assert_eq!(named(exec("/opt/folder-999/a/b", b"x\0")), Some("folder-999"));
    assert_eq!(named(exec("/usr/bin/program-42", b"x\0--option-42\0")), Some("args-42"));
    assert_eq!(named(exec("/usr/bin/program-42", b"x\0--option-43\0")), Some("all"));
    let write = sallyport_policy::FileOp::from_name("write_file").expect("an action");
    assert_eq!(named(compiled.judge_file(write, &[b"/srv/data-3/secret"], false, b"")), Some("file-3"));
    let to = |address: &str, port| compiled.judge_connect(address.parse().expect("an address"), port, 6);
    assert_eq!(named(to("10.1.7.9", 443)), Some("to-257"));
    assert_eq!(named(to("192.0.2.1", 20_499)), Some("port-499"));
    assert_eq!(named(to("192.0.2.1", 20_500)), Some("all"));
    let sample = timed("try out", || policy.try_out()).unwrap_or_else(|faults| panic!("{faults}"));
    println!("{sample:?}");
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
    let faults = timed("try out", || policy.try_out()).expect_err("too much");
    assert!(faults.to_string().contains("`argument-0`"), "{faults}");
    println!("{error}");
}
