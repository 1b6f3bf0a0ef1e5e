//! What the comparison is made of: random rules over every operator, and random questions that often meet them.

use std::net::IpAddr;

use proptest::prelude::*;
use proptest::sample::select;
use sallyport_policy::{FileOp, Operation, Principal, Question};
use sallyport_sensor_abi::policy::{file_op, operation};

/// Texts that rules compare with and that questions consist of, so that they meet often.
pub(crate) const TEXTS: [&str; 20] = [
    "/usr/bin/a",
    "/usr/bin/b",
    "/usr/bin/ab",
    "/tmp/a b",
    "/tmp/a",
    "/",
    "a",
    "b",
    "ab",
    "a b",
    "b a",
    "-r",
    "-rf",
    "",
    "é",
    "/é/a",
    "a*",
    "/usr/bin/",
    "a a",
    "aba",
];
pub(crate) const PATTERNS: [&str; 20] = [
    "*",
    "",
    "/usr/*",
    "*a",
    "a*",
    "*a*",
    "/usr/bin/*b",
    "*/a",
    "*/*/*",
    "a b*",
    "* *",
    "*b a*",
    "a\\*",
    "*é*",
    "-r*",
    "/tmp/* b",
    "a",
    "*a*b*",
    "/*/a",
    "ab*a",
];
pub(crate) const RANGES: [&str; 16] = [
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
    "10.0.0.1/8",
    "fd00:1::/33",
    "172.16.0.0/12",
    "0.0.0.0",
];
pub(crate) const ADDRESSES: [&str; 18] = [
    "10.0.0.1",
    "10.0.0.0",
    "10.0.0.2",
    "10.255.1.2",
    "127.0.0.1",
    "127.9.9.9",
    "0.0.0.0",
    "::",
    "::1",
    "fd00::1",
    "fd00:1::",
    "fd00:1:8000::1",
    "224.0.0.1",
    "ff02::1",
    "::ffff:10.0.0.1",
    "192.168.1.64",
    "192.168.1.96",
    "11.0.0.0",
];
pub(crate) const NUMBERS: [&str; 12] =
    ["0", "1", "-1", "22", "443", "1023", "1024", "65535", "65536", "9223372036854775807", "-5", "2"];
pub(crate) const PORTS: [u16; 10] = [0, 1, 2, 22, 443, 1023, 1024, 32_768, 65_534, 65_535];

pub(crate) fn one(list: &'static [&'static str]) -> impl Strategy<Value = String> {
    select(list).prop_map(str::to_owned)
}

/// A string of the language, quoted.
pub(crate) fn text() -> impl Strategy<Value = String> {
    prop_oneof![one(&TEXTS), "[ab/ é*]{0,6}"].prop_map(|text| format!("{text:?}"))
}

pub(crate) fn pattern() -> impl Strategy<Value = String> {
    prop_oneof![one(&PATTERNS), "[ab/ *]{0,6}"].prop_map(|pattern| format!("\"{pattern}\""))
}

pub(crate) fn texts() -> impl Strategy<Value = String> {
    prop::collection::vec(text(), 1..4).prop_map(|texts| format!("[{}]", texts.join(", ")))
}

pub(crate) fn range() -> impl Strategy<Value = String> {
    one(&RANGES).prop_map(|range| format!("ip(\"{range}\")"))
}

pub(crate) fn seen() -> impl Strategy<Value = String> {
    one(&["context.path", "context.name", "context.command_line", "context.caller"])
}

/// Conditions that are known in advance, of every kind; some of them err.
pub(crate) fn known() -> impl Strategy<Value = String> {
    one(&[
        "principal in Group::\"g1\"",
        "principal in Group::\"all\"",
        "principal in [Group::\"g1\", Group::\"g2\"]",
        "principal.kind == \"ci\"",
        "principal.on_behalf_of like \"b*\"",
        "principal is User",
        "resource in HostGroup::\"hg\"",
        "resource == Host::\"h2\"",
        "(resource.hasTag(\"env\") && resource.getTag(\"env\") == \"a\")",
        "context.local_user == \"root\"",
        "[\"root\", \"dev\"].contains(context.local_user)",
        "9223372036854775807 + 1 > 0",
        "ip(\"10.0.0.1\").isInRange(ip(\"10.0.0.0/8\"))",
        "datetime(\"2026-01-01\") < datetime(\"2025-01-01\")",
    ])
}

/// Of files and programs alike.
fn file_atom() -> BoxedStrategy<String> {
    let seen = || one(&["context.path", "context.path", "context.name", "context.caller"]);
    prop_oneof![
        4 => (seen(), one(&["==", "!="]), text()).prop_map(|(a, op, b)| format!("{a} {op} {b}")),
        5 => (seen(), pattern()).prop_map(|(a, b)| format!("{a} like {b}")),
        3 => (texts(), seen()).prop_map(|(a, b)| format!("{a}.contains({b})")),
        2 => Just("context.fileless".to_owned()),
        1 => (text(), text(), seen())
            .prop_map(|(a, b, c)| format!("(if context.fileless then {a} else {b}) == {c}")),
        2 => known(),
    ]
    .boxed()
}

fn system_atom() -> BoxedStrategy<String> {
    prop_oneof![
        4 => (one(&["==", "!="]), operation()).prop_map(|(op, a)| format!("context.operation {op} {a}")),
        3 => (operation(), operation()).prop_map(|(a, b)| format!("[{a}, {b}, \"x\"].contains(context.operation)")),
        2 => one(&["*", "s*", "*mount", "*e*", "set_*", "bpf"]).prop_map(|a| format!("context.operation like \"{a}\"")),
        3 => Just("context.outside".to_owned()),
        2 => (one(&["==", "!="]), text()).prop_map(|(op, a)| format!("context.caller {op} {a}")),
        2 => pattern().prop_map(|a| format!("context.caller like {a}")),
        2 => known(),
    ]
    .boxed()
}

fn operation() -> impl Strategy<Value = String> {
    select(operation::NAMES.as_slice()).prop_map(|name| format!("{name:?}"))
}

fn exec_atom() -> BoxedStrategy<String> {
    prop_oneof![
        4 => (seen(), one(&["==", "!="]), text()).prop_map(|(a, op, b)| format!("{a} {op} {b}")),
        1 => (text(), seen()).prop_map(|(a, b)| format!("{a} == {b}")),
        5 => (seen(), pattern()).prop_map(|(a, b)| format!("{a} like {b}")),
        3 => (texts(), seen()).prop_map(|(a, b)| format!("{a}.contains({b})")),
        1 => (text(), seen(), text()).prop_map(|(a, b, c)| format!("[{a}, {b}].contains({c})")),
        1 => (seen(), texts()).prop_map(|(a, b)| format!("{b}.containsAny([{a}])")),
        4 => text().prop_map(|a| format!("context.args.contains({a})")),
        2 => texts().prop_map(|a| format!("context.args.containsAny({a})")),
        2 => texts().prop_map(|a| format!("context.args.containsAll({a})")),
        2 => texts().prop_map(|a| format!("{a}.containsAll(context.args)")),
        1 => texts().prop_map(|a| format!("{a}.containsAny(context.args)")),
        1 => texts().prop_map(|a| format!("context.args == {a}")),
        3 => Just("context.args.isEmpty()".to_owned()),
        3 => Just("context.fileless".to_owned()),
        3 => Just("context.setuid".to_owned()),
        1 => (text(), text(), seen())
            .prop_map(|(a, b, c)| format!("(if context.fileless then {a} else {b}) == {c}")),
        3 => (seen(), pattern()).prop_map(|(a, b)| format!("{{x: {a}}}.x like {b}")),
        1 => Just("(resource.hasTag(\"env\") && resource.getTag(\"env\") == context.name)".to_owned()),
        1 => Just("[context.local_user].contains(context.name)".to_owned()),
        3 => known(),
    ]
    .boxed()
}

fn connect_atom() -> BoxedStrategy<String> {
    let port = || {
        prop_oneof![
            9 => Just("context.port".to_owned()),
            3 => (one(&["+", "-", "*"]), one(&NUMBERS))
                .prop_map(|(op, n)| format!("(context.port {op} {n})")),
            3 => Just("(-context.port)".to_owned()),
            1 => one(&NUMBERS).prop_map(|n| format!("(if context.address.isIpv6() then context.port else {n})")),
        ]
    };
    prop_oneof![
        5 => range().prop_map(|a| format!("context.address.isInRange({a})")),
        1 => range().prop_map(|a| format!("{a}.isInRange(context.address)")),
        3 => (one(&["==", "!="]), range()).prop_map(|(op, a)| format!("context.address {op} {a}")),
        2 => (range(), range()).prop_map(|(a, b)| format!("[{a}, {b}].contains(context.address)")),
        3 => one(&["isIpv4", "isIpv6", "isLoopback", "isMulticast"])
            .prop_map(|a| format!("context.address.{a}()")),
        6 => (port(), one(&["<", "<=", ">", ">=", "==", "!="]), one(&NUMBERS))
            .prop_map(|(a, op, b)| format!("{a} {op} {b}")),
        2 => (one(&NUMBERS), one(&NUMBERS)).prop_map(|(a, b)| format!("[{a}, {b}].contains(context.port)")),
        3 => one(&["tcp", "udp", "icmp", "132"]).prop_map(|a| format!("context.protocol == \"{a}\"")),
        1 => one(&["*p", "1*", "*c*"]).prop_map(|a| format!("context.protocol like \"{a}\"")),
        1 => Just("[\"tcp\", \"udp\"].contains(context.protocol)".to_owned()),
        3 => known(),
    ]
    .boxed()
}

fn expression(atom: BoxedStrategy<String>) -> BoxedStrategy<String> {
    atom.prop_recursive(3, 12, 3, |inner| {
        prop_oneof![
            4 => (inner.clone(), inner.clone()).prop_map(|(a, b)| format!("({a} && {b})")),
            4 => (inner.clone(), inner.clone()).prop_map(|(a, b)| format!("({a} || {b})")),
            2 => inner.clone().prop_map(|a| format!("!({a})")),
            1 => (inner.clone(), inner.clone(), inner.clone())
                .prop_map(|(a, b, c)| format!("(if {a} then {b} else {c})")),
            1 => (inner.clone(), inner).prop_map(|(a, b)| format!("(({a}) == ({b}))")),
        ]
    })
    .boxed()
}

/// A rule without its id.
pub(crate) fn rule() -> impl Strategy<Value = String> {
    let clauses = |atom: fn() -> BoxedStrategy<String>| {
        let clause = (one(&["when", "unless"]), expression(atom()))
            .prop_map(|(word, expr)| format!("{word} {{ {expr} }}"));
        prop::collection::vec(clause, 0..3).prop_map(|clauses| clauses.join(" "))
    };
    let file_actions = || {
        prop_oneof![
            3 => select(file_op::NAMES.as_slice()).prop_map(|a| format!("action == Action::\"{a}\"")),
            2 => prop::sample::subsequence(file_op::NAMES.to_vec(), 2..6).prop_map(|all| {
                let all: Vec<String> = all.iter().map(|a| format!("Action::\"{a}\"")).collect();
                format!("action in [{}]", all.join(", "))
            }),
            1 => Just("action in [Action::\"exec\", Action::\"map_code\"]".to_owned()),
        ]
    };
    let net_action = || one(&["connect", "connect", "listen"]);
    let body = prop_oneof![
        6 => clauses(exec_atom).prop_map(|c| format!("action == Action::\"exec\", RESOURCE) {c}")),
        6 => (file_actions(), clauses(file_atom)).prop_map(|(a, c)| format!("{a}, RESOURCE) {c}")),
        3 => clauses(system_atom).prop_map(|c| format!("action == Action::\"system\", RESOURCE) {c}")),
        // Without conditions: what lets the forbids show.
        4 => one(&["exec", "connect", "listen", "system", "read_file", "write_file", "map_code", "connect_unix"])
            .prop_map(|a| format!("action == Action::\"{a}\", RESOURCE)")),
        6 => (net_action(), clauses(connect_atom))
            .prop_map(|(a, c)| format!("action == Action::\"{a}\", RESOURCE) {c}")),
        1 => expression(connect_atom()).prop_map(|e| format!(
            "action in [Action::\"listen\", Action::\"connect\"], RESOURCE) when {{ {e} }}"
        )),
        1 => expression(exec_atom()).prop_map(|e| format!(
            "action in [Action::\"exec\", Action::\"connect\"], RESOURCE) when {{ context has path && {e} }}"
        )),
    ];
    let forbid = (
        one(&["", "", "@mode(\"monitor\") ", "@mode(\"enforce\") "]),
        one(&["", "", "@on_violation(\"kill\") ", "@on_violation(\"end_session\") "]),
    )
        .prop_map(|(mode, effect)| format!("@reason(\"no\") {mode}{effect}forbid"));
    let permit = one(&["", "", "@record(\"none\") ", "@record(\"all\") "])
        .prop_map(|record| format!("{record}permit"));
    let head = prop_oneof![permit, forbid];
    let principal = one(&[
        "principal",
        "principal",
        "principal",
        "principal in Group::\"all\"",
        "principal in Group::\"g2\"",
        "principal == User::\"alice\"",
        "principal is User in Group::\"g1\"",
    ]);
    let resource =
        one(&["resource", "resource", "resource in HostGroup::\"hg\"", "resource == Host::\"h2\""]);
    (head, principal, resource, body).prop_map(|(head, principal, resource, body)| {
        format!("{head}({principal}, {};", body.replace("RESOURCE", &resource))
    })
}

/// What is asked, without person, host and user.
#[derive(Clone, Debug)]
pub(crate) enum Ask {
    Exec { path: String, args: Vec<String>, fileless: bool, setuid: bool, caller: String },
    File { op: FileOp, path: String, fileless: bool, caller: String },
    System { operation: Operation, outside: bool, caller: String },
    Connect { address: IpAddr, port: u16, protocol: u8 },
    Listen { address: IpAddr, port: u16, protocol: u8 },
}

impl Ask {
    /// The question of this person there.
    pub(crate) fn question(&self, principal: &Principal, (host, local_user): (&str, &str)) -> Question {
        let (principal, host, local_user) = (principal.clone(), host.to_owned(), local_user.to_owned());
        match self.clone() {
            Self::Exec { path, args, fileless, setuid, caller } => {
                Question::Exec { principal, host, local_user, path, args, fileless, setuid, caller }
            }
            Self::File { op, path, fileless, caller } => {
                Question::File { principal, host, local_user, op, path, fileless, caller }
            }
            Self::System { operation, outside, caller } => {
                Question::System { principal, host, local_user, operation, outside, caller }
            }
            Self::Connect { address, port, protocol } => {
                Question::Connect { principal, host, local_user, address, port, protocol }
            }
            Self::Listen { address, port, protocol } => {
                Question::Listen { principal, host, local_user, address, port, protocol }
            }
        }
    }
}

fn path() -> impl Strategy<Value = String> {
    prop_oneof![6 => one(&TEXTS), 2 => "[ab/ é]{0,7}", 1 => "/(usr|tmp)/(bin/)?[ab]{1,2}"]
}

pub(crate) fn exec() -> impl Strategy<Value = Ask> {
    let arg = prop_oneof![4 => one(&TEXTS), 1 => "[ab/ é]{0,4}"];
    let flag = || prop::bool::weighted(0.2);
    (path(), prop::collection::vec(arg, 0..4), flag(), flag(), path())
        .prop_map(|(path, args, fileless, setuid, caller)| Ask::Exec { path, args, fileless, setuid, caller })
}

pub(crate) fn file() -> impl Strategy<Value = Ask> {
    let op = (0..file_op::COUNT).prop_map(|op| FileOp::new(op).expect("an action"));
    (op, path(), prop::bool::weighted(0.2), path()).prop_map(|(op, path, fileless, caller)| Ask::File {
        op,
        path,
        fileless,
        caller,
    })
}

pub(crate) fn system() -> impl Strategy<Value = Ask> {
    let operation = (0..operation::COUNT).prop_map(|n| Operation::new(n).expect("an operation"));
    (operation, any::<bool>(), path()).prop_map(|(operation, outside, caller)| Ask::System {
        operation,
        outside,
        caller,
    })
}

pub(crate) fn net() -> impl Strategy<Value = Ask> {
    let address = prop_oneof![
        6 => one(&ADDRESSES).prop_map(|a| a.parse().expect("an address")),
        1 => any::<u32>().prop_map(|a| IpAddr::V4(a.into())),
        1 => any::<u128>().prop_map(|a| IpAddr::V6(a.into())),
    ];
    let port = prop_oneof![3 => select(&PORTS), 1 => any::<u16>()];
    let protocol = prop_oneof![4 => select(&[6u8, 17, 1, 58, 132, 0, 255]), 1 => any::<u8>()];
    (address, port, protocol, any::<bool>()).prop_map(|(address, port, protocol, listens)| {
        if listens {
            Ask::Listen { address, port, protocol }
        } else {
            Ask::Connect { address, port, protocol }
        }
    })
}
