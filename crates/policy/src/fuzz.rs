//! Fuzzing the way of rules into the kernel: whatever loads compiles within its limits, and the tables answer as Cedar does.

mod bundle;
mod compiler;

pub use bundle::fuzz_bundle;
pub use compiler::fuzz_compiler;

use std::net::IpAddr;

use sallyport_sensor_abi::policy::{DENY, OBSERVED, QUIET};

use crate::bundle::Bundle;
use crate::kernel::KernelPolicy;
use crate::load::Policy;
use crate::question::{Answer, FileOp, Operation, Principal, Question};

/// Texts of questions.
const TEXTS: [&str; 6] = ["/usr/bin/a", "/etc/shadow", "/", "@x", "a b", ""];

/// Takes bytes as the rules of a bundle, and asks what they decide. For fuzzing.
pub fn fuzz_rules(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let files = [("bundle.toml", "name = \"fuzz\"\nschema = 2\n"), ("rules.cedar", text)];
    let Ok(bundle) = Bundle::from_files(files) else { return };
    let Ok(policy) = Policy::load(&bundle) else { return };
    policy.placement();
    let Ok(compiled) = policy.compile(&principal(), HOST, LOCAL_USER) else { return };
    for question in questions(&TEXTS, &["-r"]) {
        agree(&policy, &compiled, &question);
    }
}

const HOST: &str = "h";
const LOCAL_USER: &str = "root";

/// Who asks.
fn principal() -> Principal {
    Principal { user: "u".into(), kind: "human".into(), ..Principal::default() }
}

/// Cedar's answer, which the tables must give, too.
fn agree(policy: &Policy, compiled: &KernelPolicy, question: &Question) -> Answer {
    let answer = policy.decide(question);
    let word = compiled.judge(question).unwrap_or(DENY);
    assert_eq!(word & DENY == 0, answer.allowed, "{question:?}");
    assert_eq!(word & OBSERVED != 0, answer.observed.is_some(), "{question:?}");
    assert_eq!(word & QUIET != 0, answer.quiet, "{question:?}");
    answer
}

/// Questions of every kind with these paths and arguments.
fn questions(paths: &[&str], words: &[&str]) -> Vec<Question> {
    let mut questions = Vec::new();
    let base = || (principal(), HOST.to_owned(), LOCAL_USER.to_owned());
    let caller = paths[0].to_owned();
    for path in paths.iter().map(|path| (*path).to_owned()) {
        for flag in [false, true] {
            for word in words {
                let (principal, host, local_user) = base();
                questions.push(Question::Exec {
                    principal,
                    host,
                    local_user,
                    path: path.clone(),
                    args: vec![path.clone(), (*word).to_owned()],
                    fileless: flag,
                    setuid: !flag,
                    caller: caller.clone(),
                });
            }
            for op in FileOp::all() {
                let (principal, host, local_user) = base();
                questions.push(Question::File {
                    principal,
                    host,
                    local_user,
                    op,
                    path: path.clone(),
                    fileless: flag,
                    caller: path.clone(),
                });
            }
        }
    }
    for operation in Operation::all() {
        for outside in [false, true] {
            let (principal, host, local_user) = base();
            let caller = caller.clone();
            questions.push(Question::System { principal, host, local_user, operation, outside, caller });
        }
    }
    for address in [IpAddr::from([10, 0, 0, 1]), IpAddr::from([0; 4]), IpAddr::from([0; 16])] {
        for port in [0, 22, 443, 65_535] {
            for protocol in [6, 17] {
                let (principal, host, local_user) = base();
                questions.push(Question::Connect { principal, host, local_user, address, port, protocol });
                let (principal, host, local_user) = base();
                questions.push(Question::Listen { principal, host, local_user, address, port, protocol });
            }
        }
    }
    questions
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_of_every_kind_pass() {
        for rules in [
            "@id(\"a\") permit(principal, action, resource);",
            "@id(\"a\") @record(\"none\") permit(principal, action == Action::\"read_file\", resource) when { context.path like \"/etc/*\" };",
            "@id(\"a\") @reason(\"r\") forbid(principal, action == Action::\"system\", resource) unless { context.outside };",
            "@id(\"a\") permit(principal, action == Action::\"exec\", resource) when { context.setuid || context.caller == \"/\" };",
            "not a rule",
        ] {
            fuzz_rules(rules.as_bytes());
        }
    }
}
