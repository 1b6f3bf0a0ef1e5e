//! The kernel's decisions on policies compiled from Cedar equal the reference walker's (which the policy crate's own
//! tests hold against Cedar's authorizer). Needs root.

mod asks;
#[path = "../kernel/attack.rs"]
mod attack;
mod cedar;
#[path = "../kernel/helper.rs"]
mod helper;
#[path = "../kernel/host.rs"]
#[allow(dead_code, reason = "shared with the other kernel tests, which use all of it")]
mod host;
#[path = "../kernel/tables.rs"]
#[allow(dead_code, reason = "as above; the policies here are compiled")]
mod tables;

mod numbers;
mod rules;
#[path = "../kernel/uring.rs"]
mod uring;

use std::fmt::Write as _;
use std::net::IpAddr;

use sallyport_policy::{Bundle, KernelPolicy, Policy, Principal, Program};
use sallyport_sensor::kernel::{Destination, Event, Judgement};
use sallyport_sensor_abi::policy::{DENY, END_SESSION, INDEX_MASK, KILL, OBSERVED, UNJUDGED, Word};

use helper::{Numbers, shell_function};
use host::Host;

/// What the tests' programs do besides starting others and connecting.
const REST: &str = r#"
@id("rest") @record("none")
permit (principal, action in [Action::"read_file", Action::"write_file", Action::"create_file",
  Action::"delete_file", Action::"rename_file", Action::"link_file", Action::"change_file", Action::"map_code",
  Action::"connect_unix", Action::"listen", Action::"system"], resource);
"#;

fn compile(rules: &str) -> KernelPolicy {
    let files =
        [("bundle.toml", "name = \"test\"\nschema = 2\n"), ("rules.cedar", rules), ("rest.cedar", REST)];
    let bundle = Bundle::from_files(files).expect("a bundle");
    let policy = Policy::load(&bundle).unwrap_or_else(|faults| panic!("{faults}"));
    policy.compile(&Principal::default(), "web-1", "root").expect("compiles")
}

fn open(host: &Host, policy: &KernelPolicy) {
    let loaded = host.kernel.load_policy(&policy.header, &policy.arena).expect("load");
    host.kernel.open_session(1, loaded.slot, 1000).expect("open");
}

/// What the reference's word looks like in an event.
fn expected(word: Word) -> Judgement {
    let rule = (word & INDEX_MASK) as u16;
    assert_eq!(word & UNJUDGED, 0, "nothing here is too long");
    if word & DENY != 0 {
        Judgement::Denied { rule, kill: word & KILL != 0, end_session: word & END_SESSION != 0 }
    } else if word & OBSERVED != 0 {
        Judgement::Observed { rule }
    } else {
        Judgement::Allowed
    }
}

#[tokio::test]
async fn programs() {
    const TRIES: usize = 300;
    let mut host = Host::start();
    let top = host.folder.path().display().to_string();
    let policy = compile(&format!(
        r#"
        @id("all") permit(principal, action == Action::"exec", resource);
        @id("exact") @reason("r") forbid(principal, action == Action::"exec", resource)
          when {{ context.path == "{top}/a/b" }};
        @id("pattern") @reason("r") forbid(principal, action == Action::"exec", resource)
          when {{ context.path like "{top}/*b/a*" && !(context.path like "*aa") }};
        @id("name") @reason("r") @on_violation("end_session") forbid(principal, action == Action::"exec", resource)
          when {{ context.name == "ab" && context.args.contains("x") }};
        @id("line") @reason("r") forbid(principal, action == Action::"exec", resource)
          when {{ context.name == "ba" && context.command_line like "*x y*" }};
        @id("observe") @reason("r") @mode("monitor") forbid(principal, action == Action::"exec", resource)
          when {{ context.args.containsAll(["y", "z"]) }};
        "#
    ));
    open(&host, &policy);
    let mut numbers = Numbers(7);
    let mut script = String::from("cp /usr/bin/true original\n");
    for _ in 0..TRIES {
        let mut path = String::new();
        for _ in 0..1 + numbers.next(3) {
            let name: String =
                (0..1 + numbers.next(2)).map(|_| if numbers.next(2) == 0 { 'a' } else { 'b' }).collect();
            // Folders have another letter, so that no name is both a folder and a program.
            write!(path, "{}d/", name).expect("writes");
        }
        let folder = path.replace("ad/", if numbers.next(2) == 0 { "a/" } else { "ad/" });
        let name = ["a", "b", "ab", "ba", "aa"][numbers.next(5)];
        let args: String =
            (0..numbers.next(5)).map(|_| ["x ", "y ", "z ", "xy ", "'' "][numbers.next(5)]).collect();
        writeln!(script, "mkdir -p {folder} && {{ [ -e {folder}{name} ] || ln original {folder}{name}; }} && [ -f {folder}{name} ] && {folder}{name} {args}")
            .expect("writes");
    }
    // Some names collide with folders; those lines do nothing.
    host.run(Some(1), &format!("exec 2>/dev/null; {script} true"));
    let (mut judged, mut denied, mut observed) = (0, 0, 0);
    let prefix = format!("{top}/");
    for event in host.drain().await {
        let Event::Exec { head, exec } = event else { continue };
        if !exec.path.starts_with(prefix.as_bytes()) {
            continue;
        }
        // Refused before it ran: the arguments are not known, so the path alone decided.
        let args = exec.args.clone().unwrap_or_default();
        let names = [exec.path.as_slice()];
        let program =
            Program { names: &names, args: &args, fileless: exec.fileless, setuid: false, caller: b"" };
        let reference = expected(policy.judge_exec(&program));
        assert_eq!(
            head.judgement,
            reference,
            "{} {:?}",
            String::from_utf8_lossy(&exec.path),
            exec.arguments()
        );
        judged += 1;
        denied += usize::from(head.judgement.is_denied());
        observed += usize::from(matches!(head.judgement, Judgement::Observed { .. }));
    }
    println!("{judged} programs judged alike, {denied} denied, {observed} observed");
    assert!(judged > TRIES / 2 && denied > 10 && observed > 2, "{judged} {denied} {observed}");
}

#[tokio::test]
async fn destinations() {
    let mut host = Host::start();
    let policy = compile(
        r#"
        @id("exec") permit(principal, action == Action::"exec", resource);
        @id("ten") permit(principal, action == Action::"connect", resource)
          when { context.address.isInRange(ip("10.0.0.0/9")) && context.port < 1024 };
        @id("six") permit(principal, action == Action::"connect", resource)
          when { context.address.isInRange(ip("fd00:1::/33")) && context.protocol == "udp" };
        @id("odd") permit(principal, action == Action::"connect", resource)
          when { context.address.isInRange(ip("128.0.0.0/1")) };
        @id("hole") @reason("r") forbid(principal, action == Action::"connect", resource)
          when { context.address.isInRange(ip("10.64.0.0/10")) && context.port >= 512 && context.port <= 600 };
        @id("watch") @reason("r") @mode("monitor") forbid(principal, action == Action::"connect", resource)
          when { context.address.isInRange(ip("10.1.0.0/16")) || context.address.isInRange(ip("fd00:1:1::/48")) };
        "#,
    );
    open(&host, &policy);
    // As many as a session may leave unread. In a network of its own that leads nowhere: what is allowed must not leave this machine.
    let script =
        format!("{}export -f helper; unshare -n bash -c 'helper datagrams 5 3000'", shell_function());
    let ran = host.run(Some(1), &script);
    assert!(ran.ok(), "{ran:?}");
    let (mut judged, mut denied, mut observed) = (0, 0, 0);
    for event in host.drain().await {
        let Event::Connect { head, connect } = event else { continue };
        let Destination::Datagram(address, port) = connect.destination else { panic!("{connect:?}") };
        assert!(!matches!(address, IpAddr::V6(address) if address.to_ipv4_mapped().is_some()));
        let reference = expected(policy.judge_connect(address, port, connect.protocol as u8));
        assert_eq!(head.judgement, reference, "{connect:?}");
        judged += 1;
        denied += usize::from(head.judgement.is_denied());
        observed += usize::from(matches!(head.judgement, Judgement::Observed { .. }));
    }
    println!("{judged} datagrams judged alike, {denied} denied, {observed} observed");
    assert!(judged == 3000 && denied > 400 && observed > 40, "{judged} {denied} {observed}");
}
