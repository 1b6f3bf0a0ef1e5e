//! What a policy would say of acts that are on the record, of which not everything was kept.
//!
//! Nothing is guessed: what is missing is taken as anything it can be, and only if the verdict is the same for all of it there is
//! one. So a cut list of arguments is followed by every continuation, and an unknown caller is every class of callers.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};

use sallyport_sensor_abi::ARGS_JUDGED;
use sallyport_sensor_abi::policy::{
    ARGS_TABLE, DENY, EXEC_INDEX_FILELESS, EXEC_INDEX_SETUID, EXEC_INDICES, INDEX_MASK, NEEDS_ARGS, UNIFORM,
    UNJUDGED, Word,
};

use crate::compile::CompileError;
use crate::diff::Verdict;
use crate::diff::product::{Shape, Side, reached, row};
use crate::entities::uid;
use crate::kernel::KernelPolicy;
use crate::load::Policy;
use crate::question::{FileOp, Operation, Principal, RuleInfo};

/// An act as it is on the record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Act<'a> {
    /// A program was to start.
    Exec {
        /// Its path.
        path: &'a str,
        /// Its arguments, one after the other with a zero in between.
        args: Args<'a>,
        /// It has no name.
        fileless: bool,
        /// It is set-uid or set-gid.
        setuid: bool,
        /// The program that started it; none: not recorded.
        caller: Option<&'a str>,
        /// It was judged by a name that rules know, and reached by another.
        other_name: bool,
    },
    /// Something was to be done to a file or Unix socket.
    File {
        /// What.
        op: FileOp,
        /// To what.
        path: &'a str,
        /// It has no name.
        fileless: bool,
        /// The program that did it; none: not recorded.
        caller: Option<&'a str>,
        /// It was judged by a name that rules know, and reached by another.
        other_name: bool,
    },
    /// Something was asked of the system.
    System {
        /// What.
        operation: Operation,
        /// Of a process outside of the session.
        outside: bool,
        /// The program that asked; none: not recorded.
        caller: Option<&'a str>,
    },
    /// A connection, or a datagram.
    Connect(IpAddr, u16, u8),
    /// A socket was to be bound, or to listen.
    Listen(IpAddr, u16, u8),
    /// A socket for ICMP: it is permitted if ICMP is to every address.
    IcmpSocket,
}

/// Arguments on the record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Args<'a> {
    /// All of them.
    All(&'a str),
    /// They begin so; so many bytes there were (0: not known).
    Beginning(&'a str, u32),
}

/// What a policy would say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Foreseen<'a> {
    /// What would come of it.
    pub verdict: Verdict,
    /// The rule that would be named; none: that depends on what was not recorded.
    pub rule: Option<&'a RuleInfo>,
}

/// What would have to be known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Unsaid {
    /// The verdict depends on the calling program.
    Caller,
    /// The verdict depends on arguments that were cut off.
    Args,
    /// The file was reached by another name.
    OtherName,
}

impl Unsaid {
    /// In words.
    pub fn name(self) -> &'static str {
        match self {
            Self::Caller => "it depends on the calling program, which is not on the record",
            Self::Args => "it depends on arguments that are not on the record",
            Self::OtherName => "the file was reached by another name, which is not on the record",
        }
    }
}

impl KernelPolicy {
    /// What it would say of an act.
    pub fn foresee(&self, act: &Act<'_>) -> Result<Foreseen<'_>, Unsaid> {
        match act {
            Act::Exec { path, args, fileless, setuid, caller, other_name } => {
                let flags =
                    u32::from(*fileless) * EXEC_INDEX_FILELESS + u32::from(*setuid) * EXEC_INDEX_SETUID;
                let path = self.path_class(&self.header.path, path.as_bytes());
                let classes = self.header.caller.classes.max(1);
                let found = self.each_caller(*caller, |caller| {
                    let Some(path) = path else { return Ok(self.said(DENY | UNJUDGED)) };
                    let index = (path * EXEC_INDICES + flags) * classes + caller;
                    let word = self.read(self.header.exec_table, index).unwrap_or(DENY | UNJUDGED);
                    self.with_args(word, *args)
                })?;
                by_name(found, *other_name)
            }
            Act::File { op, path, fileless, caller, other_name } => {
                let uniform = self.header.uniform[op.number() as usize];
                if uniform & UNIFORM != 0 {
                    return Ok(self.said(uniform & !UNIFORM));
                }
                let path = self.path_class(&self.header.file, path.as_bytes());
                let classes = self.header.caller.classes.max(1);
                let found = self.each_caller(*caller, |caller| {
                    let Some(path) = path else { return Ok(self.said(DENY | UNJUDGED)) };
                    let at = (op.number() * self.header.file.classes + path) * 2 + u32::from(*fileless);
                    let word = self.read(self.header.file_table, at * classes + caller);
                    Ok(self.said(word.unwrap_or(DENY | UNJUDGED)))
                })?;
                by_name(found, *other_name)
            }
            Act::System { operation, outside, caller } => self.each_caller(*caller, |caller| {
                let classes = self.header.caller.classes.max(1);
                let at = (operation.number() * 2 + u32::from(*outside)) * classes + caller;
                Ok(self.said(self.read(self.header.system_table, at).unwrap_or(DENY | UNJUDGED)))
            }),
            Act::Connect(address, port, protocol) => {
                Ok(self.said(self.judge_connect(*address, *port, *protocol)))
            }
            Act::Listen(address, port, protocol) => {
                Ok(self.said(self.judge_listen(*address, *port, *protocol)))
            }
            Act::IcmpSocket => {
                let net = &self.header.connect;
                let port = self.descend(net.port, &[0, 0]).unwrap_or(0);
                let row = u32::from(net.protocols[1]) * net.port_classes + port;
                let words: Vec<Word> = (0..net.address_classes)
                    .map(|class| self.read(net.table, row * net.address_classes + class))
                    .map(|word| word.unwrap_or(DENY | UNJUDGED))
                    .collect();
                let denial = words.iter().find(|word| **word & DENY != 0);
                Ok(self.said(*denial.or(words.first()).unwrap_or(&(DENY | UNJUDGED))))
            }
        }
    }

    fn said(&self, word: Word) -> Foreseen<'_> {
        Foreseen { verdict: Verdict::of_word(word), rule: self.rules.get((word & INDEX_MASK) as usize) }
    }

    /// The verdict for this caller; if it is not known, the one for every caller.
    fn each_caller<'a>(
        &'a self,
        caller: Option<&str>,
        judged: impl Fn(u32) -> Result<Foreseen<'a>, Unsaid>,
    ) -> Result<Foreseen<'a>, Unsaid> {
        let Some(caller) = caller else {
            let all = (0..self.header.caller.classes.max(1)).map(judged);
            return all_alike(all, Unsaid::Caller);
        };
        match self.caller(caller.as_bytes()) {
            Some(class) => judged(class),
            None => Ok(self.said(DENY | UNJUDGED)),
        }
    }

    fn with_args(&self, word: Word, args: Args<'_>) -> Result<Foreseen<'_>, Unsaid> {
        if word & NEEDS_ARGS == 0 {
            return Ok(self.said(word));
        }
        let decided = |class: u32| {
            let table = self.read(row(self, word), ARGS_TABLE);
            self.said(table.and_then(|table| self.read(table, class)).unwrap_or(DENY | UNJUDGED))
        };
        let side = Side::args(self, word);
        match args {
            Args::All(text) if text.len() > ARGS_JUDGED => Ok(self.said(DENY | UNJUDGED)),
            Args::All(text) => Ok(decided(side.class_of(text.as_bytes()))),
            // One is counted for the end of each argument.
            Args::Beginning(_, total) if total as usize > ARGS_JUDGED + 1 => Ok(self.said(DENY | UNJUDGED)),
            Args::Beginning(text, _) => {
                // The last character may have been cut through.
                let text = text.trim_end_matches(char::REPLACEMENT_CHARACTER);
                let classes = reached(&side, &Side::Constant, Shape::Args, text.as_bytes());
                all_alike(classes.into_keys().map(|(class, _)| Ok(decided(class))), Unsaid::Args)
            }
        }
    }
}

/// A denial of the name on the record is one of the file; a permit of it is not.
fn by_name(found: Foreseen<'_>, other_name: bool) -> Result<Foreseen<'_>, Unsaid> {
    if other_name && found.verdict.allows() { Err(Unsaid::OtherName) } else { Ok(found) }
}

/// The one verdict of all.
fn all_alike<'a>(
    mut all: impl Iterator<Item = Result<Foreseen<'a>, Unsaid>>,
    otherwise: Unsaid,
) -> Result<Foreseen<'a>, Unsaid> {
    let mut first = all.next().ok_or(otherwise)??;
    for one in all {
        let one = one?;
        if one.verdict != first.verdict {
            return Err(otherwise);
        }
        if one.rule != first.rule {
            first.rule = None;
        }
    }
    Ok(first)
}

/// Compiles for many people and hosts, each combination once, and the same tables once. For several threads.
#[derive(Debug)]
pub struct Compiler<'a> {
    policy: &'a Policy,
    /// People whom rules name.
    named: HashSet<String>,
    /// By what rules can tell apart.
    known: Mutex<HashMap<Key, Arc<KernelPolicy>>>,
    made: Mutex<HashMap<u64, Arc<KernelPolicy>>>,
}

/// What rules can tell apart of somebody somewhere: a name that no rule has, and a host that is not listed, are like any other.
type Key = (Principal, Option<String>, String);

impl<'a> Compiler<'a> {
    /// Of this policy.
    pub fn new(policy: &'a Policy) -> Self {
        let sets = [&policy.inner.enforced, &policy.inner.monitored];
        let literals =
            sets.into_iter().flat_map(|set| set.policies()).flat_map(|rule| rule.entity_literals());
        let users = literals.filter(|uid| uid.type_name().to_string() == "User");
        let named = users.map(|uid| uid.id().unescaped().to_owned()).collect();
        Self { policy, named, known: Mutex::default(), made: Mutex::default() }
    }

    /// The tables of one person on one host as one local user.
    pub fn tables(
        &self,
        principal: &Principal,
        host: &str,
        local_user: &str,
    ) -> Result<Arc<KernelPolicy>, CompileError> {
        let mut like = principal.clone();
        if !self.named.contains(&like.user) {
            like.user.clear();
        }
        let listed = self.policy.inner.known.uids.contains(&uid("Host", host)).then(|| host.to_owned());
        let key = (like, listed, local_user.to_owned());
        let known = || self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(tables) = known().get(&key) {
            return Ok(Arc::clone(tables));
        }
        let tables = self.compiled(principal, host, local_user)?;
        known().insert(key, Arc::clone(&tables));
        Ok(tables)
    }

    fn compiled(
        &self,
        principal: &Principal,
        host: &str,
        local_user: &str,
    ) -> Result<Arc<KernelPolicy>, CompileError> {
        let folded = self.policy.folded(principal, host, local_user)?;
        let fingerprint = folded.fingerprint();
        let made = || self.made.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(tables) = made().get(&fingerprint) {
            return Ok(Arc::clone(tables));
        }
        let tables = Arc::new(self.policy.build(&folded, principal, host)?);
        made().insert(fingerprint, Arc::clone(&tables));
        Ok(tables)
    }

    /// How many different tables were made.
    pub fn different(&self) -> usize {
        self.made.lock().unwrap_or_else(PoisonError::into_inner).len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Bundle;

    const RULES: &str = "@id(\"p\") permit(principal, action == Action::\"exec\", resource);\n\
        @id(\"c\") @reason(\"r\") forbid(principal, action == Action::\"exec\", resource)\n\
            when { context.path == \"/usr/bin/mount\" && context.caller != \"/usr/bin/bash\" };\n\
        @id(\"a\") @reason(\"r\") forbid(principal, action == Action::\"exec\", resource)\n\
            when { context.path == \"/usr/bin/rm\" && context.args.contains(\"-rf\") };\n";

    fn foreseen<'a>(
        tables: &'a KernelPolicy,
        path: &str,
        args: Args<'_>,
        caller: Option<&str>,
        other_name: bool,
    ) -> Result<(bool, Option<&'a str>), Unsaid> {
        let act = Act::Exec { path, args, fileless: false, setuid: false, caller, other_name };
        let found = tables.foresee(&act)?;
        Ok((found.verdict.allows(), found.rule.map(|rule| rule.id.as_str())))
    }

    #[test]
    fn people_and_hosts_are_one_only_where_no_rule_tells_them_apart() {
        let rules = "@id(\"p\") permit(principal == User::\"alice\", action == Action::\"exec\", resource == Host::\"web-1\");";
        let entities = r#"[{"uid": {"type": "Host", "id": "web-1"}, "attrs": {}, "parents": []}]"#;
        let files =
            [("bundle.toml", "name = \"t\"\nschema = 2\n"), ("entities.json", entities), ("r.cedar", rules)];
        let policy = Policy::load(&Bundle::from_files(files).expect("a bundle")).expect("no fault");
        let compiler = Compiler::new(&policy);
        let allowed = |user: &str, host: &str| {
            let principal = Principal { user: user.into(), ..Principal::default() };
            let tables = compiler.tables(&principal, host, "root").expect("compiles");
            foreseen(&tables, "/x", Args::All("x"), None, false).expect("said").0
        };
        for _ in 0..2 {
            assert!(allowed("alice", "web-1"));
            assert!(!allowed("bob", "web-1") && !allowed("eve", "web-1"));
            assert!(!allowed("alice", "web-2") && !allowed("alice", "web-3"));
        }
        assert_eq!(compiler.different(), 2);
    }

    #[test]
    fn what_is_missing_is_anything() {
        let files = [("bundle.toml", "name = \"t\"\nschema = 2\n"), ("r.cedar", RULES)];
        let policy = Policy::load(&Bundle::from_files(files).expect("a bundle")).expect("no fault");
        let compiler = Compiler::new(&policy);
        let tables = compiler.tables(&Principal::default(), "h", "root").expect("compiles");
        let (all, cut) = (Args::All, |text| Args::Beginning(text, 0));
        let ask = |path, args, caller, other| foreseen(&tables, path, args, caller, other);
        assert_eq!(ask("/usr/bin/mount", all("mount"), None, false), Err(Unsaid::Caller));
        assert_eq!(ask("/usr/bin/mount", all("mount"), Some("/usr/bin/bash"), false), Ok((true, Some("p"))));
        assert_eq!(ask("/usr/bin/mount", all("mount"), Some("/x"), false), Ok((false, Some("c"))));
        // Who started it does not matter to another program.
        assert_eq!(ask("/usr/bin/id", all("id"), None, false), Ok((true, Some("p"))));
        assert_eq!(ask("/usr/bin/rm", cut("rm\0x"), Some("/x"), false), Err(Unsaid::Args));
        assert_eq!(ask("/usr/bin/rm", cut("rm\0-rf\0x"), Some("/x"), false), Ok((false, Some("a"))));
        assert_eq!(ask("/usr/bin/rm", all("rm\0x"), Some("/x"), false), Ok((true, Some("p"))));
        assert_eq!(ask("/usr/bin/rm", all("rm\0-rf"), Some("/x"), true), Ok((false, Some("a"))));
        assert_eq!(ask("/usr/bin/rm", all("rm\0x"), Some("/x"), true), Err(Unsaid::OtherName));
        assert!(Arc::ptr_eq(&tables, &compiler.tables(&Principal::default(), "g", "x").expect("compiles")));
    }
}
