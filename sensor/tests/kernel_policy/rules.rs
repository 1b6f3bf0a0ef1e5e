//! Random rules over every operator and attribute of what the kernel judges.

use sallyport_sensor_abi::policy::{file_op, operation};

use crate::numbers::Random;

/// Literals that rules are made of. Some begin others, some end others, some hold a `*` or a letter of two bytes.
const PATHS: [&str; 26] = [
    "/usr/bin/a",
    "/usr/bin/ab",
    "/usr/bin/b",
    "/usr/sbin/a",
    "/usr/lib/x.so",
    "/usr/lib/x.so.1",
    "/tmp/a b",
    "/tmp/a",
    "/tmp/ab/c",
    "/etc/shadow",
    "/etc/ssh/key",
    "/etc/ssh",
    "/etc",
    "/",
    "/home/dev/.ssh/id",
    "/home/dev/a",
    "/home/ops/a",
    "/é/a",
    "/var/log/a*",
    "/dev/pts/1",
    "@abstract",
    "@",
    "/run/x.sock",
    "/a/a/a/a",
    "/aa",
    "/aaa",
];
const NAMES: [&str; 12] = ["a", "ab", "b", "x.so", "x.so.1", "shadow", "id", "a b", "é", "a*", "", "c"];
const ARGS: [&str; 14] =
    ["a", "-r", "-rf", "-f", "--force", "x", "x y", "", "é", "/tmp/a", "a*", "-", "--", "-rr"];
const PATTERNS: [&str; 24] = [
    "*",
    "/usr/*",
    "/usr/bin/*",
    "*/a",
    "*a",
    "a*",
    "*a*",
    "/etc/ssh*",
    "/home/*/.ssh/*",
    "/home/*/a",
    "*.so*",
    "@*",
    "/tmp/* b",
    "*/*/*",
    "/*",
    "*é*",
    "/var/log/a\\*",
    "",
    "*a*b*",
    "-r*",
    "*r f*",
    "* x*",
    "*/aa*",
    "/a/*/a",
];
const RANGES: [&str; 18] = [
    "10.0.0.0/8",
    "10.0.0.1",
    "10.0.0.0/31",
    "0.0.0.0/0",
    "127.0.0.0/8",
    "127.0.0.1",
    "::/0",
    "::1",
    "fd00::/8",
    "fd00::1",
    "192.168.1.64/27",
    "224.0.0.0/4",
    "fd00:1::/33",
    "172.16.0.0/12",
    "0.0.0.0",
    "::",
    "203.0.113.7/29",
    "128.0.0.0/1",
];
const NUMBERS: [&str; 14] = [
    "0",
    "1",
    "-1",
    "22",
    "53",
    "80",
    "443",
    "1023",
    "1024",
    "65534",
    "65535",
    "65536",
    "9223372036854775807",
    "2",
];

/// Every operator, attribute and annotation that must be in rules which decide.
pub(crate) const FEATURES: [&str; 52] = [
    "&&",
    "||",
    "!(",
    "(if ",
    " == ",
    " != ",
    " < ",
    " <= ",
    " > ",
    " >= ",
    " + ",
    " - ",
    " * ",
    "(-context",
    " like ",
    ".contains(",
    ".containsAny(",
    ".containsAll(",
    "].containsAll(context.args",
    ".isEmpty()",
    ".isInRange(context",
    "address.isInRange(",
    ".isIpv4()",
    ".isIpv6()",
    ".isLoopback()",
    ".isMulticast()",
    "context.path",
    "context.name",
    "context.args",
    "context.command_line",
    "context.fileless",
    "context.setuid",
    "context.caller",
    "context.operation",
    "context.outside",
    "context.address",
    "context.port",
    "context.protocol",
    "context.local_user",
    "hasTag(",
    "getTag(",
    "context has",
    "principal.kind",
    "principal in Group",
    "resource in HostGroup",
    "principal is User",
    "unless",
    "action in [",
    "@mode(\"monitor\")",
    "@on_violation(\"kill\")",
    "@on_violation(\"end_session\")",
    "@record(\"none\")",
];

/// What a rule is about.
#[derive(Clone, Copy, PartialEq)]
enum About {
    Exec,
    File,
    System,
    Net,
}

/// A bundle's rules, one a line; rule number N has the id `rN` with some other number, so that ids are in another order.
pub(crate) fn bundle(random: &mut Random) -> Vec<String> {
    let count = 5 + random.below(12);
    (0..count).map(|number| format!("@id(\"r{}\") {}", number * 7 % 97, rule(random))).collect()
}

fn rule(random: &mut Random) -> String {
    let about = *random.pick(&[
        About::Exec,
        About::Exec,
        About::Exec,
        About::File,
        About::File,
        About::File,
        About::System,
        About::Net,
        About::Net,
    ]);
    let head = if random.one_in(2) {
        format!("{}permit", random.pick(&["", "", "@record(\"none\") ", "@record(\"all\") "]))
    } else {
        let mode = random.pick(&["", "", "@mode(\"monitor\") "]);
        let effect = random.pick(&["", "", "@on_violation(\"kill\") ", "@on_violation(\"end_session\") "]);
        format!("@reason(\"no\") {mode}{effect}forbid")
    };
    let principal = random.pick(&[
        "principal",
        "principal",
        "principal",
        "principal",
        "principal in Group::\"all\"",
        "principal is User",
        "principal is User in Group::\"g1\"",
    ]);
    let resource = random.pick(&["resource", "resource", "resource", "resource in HostGroup::\"hg\""]);
    let action = action(random, about);
    let mut text = format!("{head}({principal}, {action}, {resource})");
    // Without a condition: what lets the forbids show.
    for _ in 0..*random.pick(&[0, 1, 1, 1, 1, 2]) {
        let word = random.pick(&["when", "when", "unless"]);
        text += &format!(" {word} {{ {} }}", expression(random, about, 3));
    }
    text + ";"
}

fn action(random: &mut Random, about: About) -> String {
    let one = |name: &str| format!("action == Action::\"{name}\"");
    match about {
        About::Exec => one("exec"),
        About::System => one("system"),
        About::Net => match random.below(3) {
            0 => one("connect"),
            1 => one("listen"),
            _ => "action in [Action::\"connect\", Action::\"listen\"]".to_owned(),
        },
        About::File if random.one_in(3) => one(file_op::NAMES[random.below(file_op::NAMES.len())]),
        About::File => {
            let mut names: Vec<&str> =
                file_op::NAMES.into_iter().filter(|_| !random.one_in(2)).chain(["read_file"]).collect();
            if random.one_in(4) {
                names.push("exec");
            }
            names.dedup();
            let names: Vec<String> = names.iter().map(|name| format!("Action::\"{name}\"")).collect();
            format!("action in [{}]", names.join(", "))
        }
    }
}

fn expression(random: &mut Random, about: About, depth: usize) -> String {
    if depth == 0 || random.one_in(2) {
        return atom(random, about);
    }
    let mut part = || expression(random, about, depth - 1);
    let (a, b, c) = (part(), part(), part());
    match random.below(9) {
        0..=2 => format!("({a} && {b})"),
        3..=5 => format!("({a} || {b})"),
        6 => format!("!({a})"),
        7 => format!("(if {a} then {b} else {c})"),
        _ => format!("(({a}) == ({b}))"),
    }
}

fn atom(random: &mut Random, about: About) -> String {
    if random.one_in(9) {
        return known(random);
    }
    match about {
        About::Exec => exec(random),
        About::File => file(random),
        About::System => system(random),
        About::Net => net(random),
    }
}

/// Known in advance; some err.
fn known(random: &mut Random) -> String {
    (*random.pick(&[
        "principal in Group::\"g1\"",
        "principal in [Group::\"g1\", Group::\"g2\"]",
        "principal.kind == \"ci\"",
        "principal.on_behalf_of like \"b*\"",
        "resource in HostGroup::\"hg\"",
        "resource == Host::\"h2\"",
        "(resource.hasTag(\"env\") && resource.getTag(\"env\") == \"a\")",
        "context.local_user == \"root\"",
        "[\"root\", \"dev\"].contains(context.local_user)",
        "9223372036854775807 + 1 > 0",
        "ip(\"10.0.0.1\").isInRange(ip(\"10.0.0.0/8\"))",
        "context has local_user",
    ]))
    .to_owned()
}

fn quoted(random: &mut Random, list: &[&str]) -> String {
    format!("{:?}", random.pick(list))
}

fn set(random: &mut Random, list: &[&str]) -> String {
    let count = 1 + random.below(4);
    let texts: Vec<String> = (0..count).map(|_| quoted(random, list)).collect();
    format!("[{}]", texts.join(", "))
}

/// A comparison of an attribute that is a text.
fn text(random: &mut Random, attribute: &str, list: &[&str]) -> String {
    match random.below(8) {
        0 => format!("context.{attribute} != {}", quoted(random, list)),
        1 | 2 => format!("context.{attribute} == {}", quoted(random, list)),
        3..=5 => format!("context.{attribute} like \"{}\"", random.pick(&PATTERNS)),
        6 => format!("{}.contains(context.{attribute})", set(random, list)),
        _ => format!("{}.containsAny([context.{attribute}])", set(random, list)),
    }
}

fn file(random: &mut Random) -> String {
    match random.below(10) {
        0 => "context.fileless".to_owned(),
        1 => text(random, "caller", &PATHS),
        2 | 3 => text(random, "name", &NAMES),
        4 => {
            let (a, b) = (quoted(random, &PATHS), quoted(random, &PATHS));
            format!("(if context.fileless then {a} else {b}) == context.path")
        }
        _ => text(random, "path", &PATHS),
    }
}

fn exec(random: &mut Random) -> String {
    match random.below(16) {
        0..=5 => file(random),
        6 => "context.setuid".to_owned(),
        7 | 8 => format!("context.args.contains({})", quoted(random, &ARGS)),
        9 => format!("context.args.containsAny({})", set(random, &ARGS)),
        10 => format!("context.args.containsAll({})", set(random, &ARGS)),
        11 => format!("{}.containsAll(context.args)", set(random, &ARGS)),
        12 => match random.below(4) {
            0 => "context.args.isEmpty()".to_owned(),
            1 => format!("context.args == {}", set(random, &ARGS)),
            2 => format!("{}.containsAny(context.args)", set(random, &ARGS)),
            _ => "context.args.contains(context.local_user)".to_owned(),
        },
        13 | 14 => format!("context.command_line like \"{}\"", random.pick(&PATTERNS)),
        _ => text(random, "command_line", &ARGS),
    }
}

fn system(random: &mut Random) -> String {
    match random.below(8) {
        0 | 1 => "context.outside".to_owned(),
        2 | 3 => text(random, "caller", &PATHS),
        4 => format!("context.operation like \"{}\"", random.pick(&["*mount", "s*", "*e*", "set_*", "bpf"])),
        _ => text(random, "operation", &operation::NAMES),
    }
}

fn net(random: &mut Random) -> String {
    let port = match random.below(8) {
        0 => format!("(context.port {} {})", random.pick(&["+", "-", "*"]), random.pick(&NUMBERS)),
        1 => "(-context.port)".to_owned(),
        2 => format!("(if context.address.isIpv6() then context.port else {})", random.pick(&NUMBERS)),
        _ => "context.port".to_owned(),
    };
    let range = |random: &mut Random| format!("ip(\"{}\")", random.pick(&RANGES));
    match random.below(16) {
        0..=3 => format!("context.address.isInRange({})", range(random)),
        4 => format!("{}.isInRange(context.address)", range(random)),
        5 => format!("context.address {} {}", random.pick(&["==", "!="]), range(random)),
        6 => format!("[{}, {}].contains(context.address)", range(random), range(random)),
        7 => format!("context.address.{}()", random.pick(&["isIpv4", "isIpv6", "isLoopback", "isMulticast"])),
        8..=11 => {
            let operator = random.pick(&["<", "<=", ">", ">=", "==", "!="]);
            format!("{port} {operator} {}", random.pick(&NUMBERS))
        }
        12 => format!("[{}, {}].contains(context.port)", random.pick(&NUMBERS), random.pick(&NUMBERS)),
        13 => format!("context.protocol like \"{}\"", random.pick(&["*p", "1*", "*c*"])),
        _ => text(random, "protocol", &["tcp", "udp", "icmp", "132", "0"]),
    }
}
