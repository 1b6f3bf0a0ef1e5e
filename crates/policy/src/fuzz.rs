//! Fuzzing the way of rules into the kernel: whatever loads compiles within its limits, and the tables answer as Cedar does.

use std::net::IpAddr;

use sallyport_sensor_abi::policy::{DENY, OBSERVED, QUIET};

use crate::bundle::Bundle;
use crate::load::Policy;
use crate::question::{FileOp, Operation, Principal, Question};

/// Texts of questions.
const TEXTS: [&str; 6] = ["/usr/bin/a", "/etc/shadow", "/", "@x", "a b", ""];

/// Takes bytes as the rules of a bundle, and asks what they decide. For fuzzing.
pub fn fuzz_rules(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let files = [("bundle.toml", "name = \"fuzz\"\nschema = 2\n"), ("rules.cedar", text)];
    let Ok(bundle) = Bundle::from_files(files) else { return };
    let Ok(policy) = Policy::load(&bundle) else { return };
    policy.placement();
    let principal = Principal { user: "u".into(), kind: "human".into(), ..Principal::default() };
    let (host, local_user) = ("h".to_owned(), "root".to_owned());
    let Ok(compiled) = policy.compile(&principal, &host, &local_user) else { return };
    let mut questions = Vec::new();
    let base = || (principal.clone(), host.clone(), local_user.clone());
    for path in TEXTS.map(str::to_owned) {
        for flag in [false, true] {
            let (principal, host, local_user) = base();
            let (args, caller) = (vec![path.clone(), "-r".into()], TEXTS[0].to_owned());
            questions.push(Question::Exec {
                principal,
                host,
                local_user,
                path: path.clone(),
                args,
                fileless: flag,
                setuid: !flag,
                caller,
            });
            for op in FileOp::all() {
                let (principal, host, local_user) = base();
                let caller = path.clone();
                let path = path.clone();
                questions.push(Question::File {
                    principal,
                    host,
                    local_user,
                    op,
                    path,
                    fileless: flag,
                    caller,
                });
            }
        }
    }
    for operation in Operation::all() {
        let (principal, host, local_user) = base();
        let caller = TEXTS[0].to_owned();
        questions.push(Question::System { principal, host, local_user, operation, outside: true, caller });
    }
    for address in [IpAddr::from([10, 0, 0, 1]), IpAddr::from([0; 4]), IpAddr::from([0; 16])] {
        for port in [0, 22, 65_535] {
            let (principal, host, local_user) = base();
            questions.push(Question::Connect { principal, host, local_user, address, port, protocol: 6 });
            let (principal, host, local_user) = base();
            questions.push(Question::Listen { principal, host, local_user, address, port, protocol: 17 });
        }
    }
    for question in questions {
        let answer = policy.decide(&question);
        let word = compiled.judge(&question).unwrap_or(DENY);
        assert_eq!(word & DENY == 0, answer.allowed, "{question:?}");
        assert_eq!(word & OBSERVED != 0, answer.observed.is_some(), "{question:?}");
        assert_eq!(word & QUIET != 0, answer.quiet, "{question:?}");
    }
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
