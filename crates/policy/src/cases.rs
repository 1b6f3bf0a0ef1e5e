//! Test cases of a bundle: `tests/*.toml`, each a question with the answer that is expected.
//!
//! Every case of a session is asked twice, of Cedar's authorizer and of the compiled tables.

mod ask;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::net::IpAddr;

use sallyport_sensor_abi::policy::{DENY, OBSERVED, QUIET, Word};
use serde::{Deserialize, Serialize};

use self::ask::{question, title};
use crate::bundle::{Bundle, INCLUDE};
use crate::change::Change;
use crate::coverage::{Condition, Watch};
use crate::kernel::KernelPolicy;
use crate::load::Policy;
use crate::question::{Answer, GatewayAction, Principal, Question, RuleInfo};
use crate::rule::DEFAULT_RULE;
use crate::standin::StandIn;

/// What running a bundle's cases gave.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct TestReport {
    /// How many cases there are.
    pub cases: usize,
    /// Those that failed, and files that are not valid.
    pub failures: Vec<TestFailure>,
    /// Rules of the bundle itself (not of included ones) that no case calls on.
    pub uncovered: Vec<RuleInfo>,
    /// Every case, in order of files and lines.
    pub results: Vec<CaseResult>,
    /// Conditions of the bundle's own rules, and what cases have seen of them.
    pub conditions: Vec<Condition>,
}

/// What became of one case.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct CaseResult {
    /// File in the bundle.
    pub file: String,
    /// Line where the case begins, from 1.
    pub line: u32,
    /// The question.
    pub case: String,
    /// What was expected and what came, if the case failed.
    pub failure: Option<String>,
}

/// A case that failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct TestFailure {
    /// File in the bundle.
    pub file: String,
    /// Line where the case begins, from 1.
    pub line: u32,
    /// The question.
    pub case: String,
    /// What was expected and what came.
    pub message: String,
}

impl TestReport {
    /// Whether every case passed.
    pub fn passed(&self) -> bool {
        self.failures.is_empty()
    }
}

impl fmt::Display for TestReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for failure in &self.failures {
            let TestFailure { file, line, case, message } = failure;
            writeln!(f, "{file}:{line}: {case}: {message}")?;
        }
        for rule in &self.uncovered {
            writeln!(f, "{}:{}: no case calls on rule `{}`", rule.file, rule.line, rule.id)?;
        }
        let failed = self.failures.len();
        write!(f, "{} cases, {failed} failed, {} rules without a case", self.cases, self.uncovered.len())
    }
}

/// A file of cases.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    people: BTreeMap<String, Person>,
    /// Hosts that `entities.json` does not list.
    #[serde(default)]
    hosts: BTreeMap<String, StandIn>,
    #[serde(default, rename = "case")]
    cases: Vec<toml::Spanned<Case>>,
}

/// `[people.NAME]`.
#[derive(Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct Person {
    user: String,
    #[serde(default)]
    groups: Vec<String>,
    #[serde(default = "human")]
    kind: String,
    #[serde(default)]
    issuer: String,
    #[serde(default)]
    on_behalf_of: String,
}

fn human() -> String {
    "human".to_owned()
}

/// `[[case]]`: exactly one of `open_session`, `exec`, the actions on files, `system`, `connect`, `listen` and `gateway`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Case {
    /// A name from `[people]`.
    who: String,
    /// Host.
    #[serde(default, rename = "where")]
    host: Option<String>,
    /// Local user.
    #[serde(default, rename = "as")]
    local_user: Option<String>,
    /// Address of the client.
    #[serde(default)]
    open_session: Option<IpAddr>,
    /// Path of the program.
    #[serde(default)]
    exec: Option<String>,
    /// Its arguments; if left out, the program's name alone.
    #[serde(default)]
    args: Option<Vec<String>>,
    #[serde(default)]
    read_file: Option<String>,
    #[serde(default)]
    write_file: Option<String>,
    #[serde(default)]
    create_file: Option<String>,
    #[serde(default)]
    delete_file: Option<String>,
    #[serde(default)]
    rename_file: Option<String>,
    #[serde(default)]
    link_file: Option<String>,
    #[serde(default)]
    change_file: Option<String>,
    #[serde(default)]
    map_code: Option<String>,
    #[serde(default)]
    connect_unix: Option<String>,
    /// Name of an operation.
    #[serde(default)]
    system: Option<String>,
    /// Belongs to `exec` and what is done to files.
    #[serde(default)]
    fileless: Option<bool>,
    /// Belongs to `exec`.
    #[serde(default)]
    setuid: Option<bool>,
    /// Belongs to `system`.
    #[serde(default)]
    outside: Option<bool>,
    /// Path of the calling program. Belongs to `exec`, what is done to files, and `system`; if left out, [`CALLER`].
    #[serde(default)]
    caller: Option<String>,
    /// `tcp 192.0.2.1:443`; protocols are `tcp`, `udp`, `icmp` or a number.
    #[serde(default)]
    connect: Option<String>,
    /// Like `connect`.
    #[serde(default)]
    listen: Option<String>,
    #[serde(default)]
    gateway: Option<GatewayAction>,
    /// Belongs to `push_policy` and `approve_policy`: what the change is, and where it comes from.
    #[serde(default)]
    change: Option<Change>,
    expect: Verdict,
    /// Id of the rule that must decide; `default-deny` for none.
    #[serde(default)]
    rule: Option<String>,
    /// Id of the monitored rule that must be noticed.
    #[serde(default)]
    observed: Option<String>,
    /// Whether it must be recorded; `false` goes with `@record("none")`.
    #[serde(default)]
    recorded: Option<bool>,
}

impl Case {
    /// The file that something is done to, and what.
    fn file(&self) -> Vec<(&'static str, &String)> {
        let all = [
            ("read_file", &self.read_file),
            ("write_file", &self.write_file),
            ("create_file", &self.create_file),
            ("delete_file", &self.delete_file),
            ("rename_file", &self.rename_file),
            ("link_file", &self.link_file),
            ("change_file", &self.change_file),
            ("map_code", &self.map_code),
            ("connect_unix", &self.connect_unix),
        ];
        all.into_iter().filter_map(|(name, path)| Some((name, path.as_ref()?))).collect()
    }
}

/// The calling program of cases that name none.
const CALLER: &str = "/usr/bin/bash";

#[derive(Clone, Copy, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
enum Verdict {
    Allow,
    Deny,
}

impl Policy {
    /// Runs the cases of the bundle that this policy was loaded from.
    pub fn run_tests(&self, bundle: &Bundle) -> TestReport {
        let mut run = Run {
            policy: self.clone(),
            report: TestReport::default(),
            called: BTreeSet::new(),
            compiled: HashMap::new(),
            watch: Watch::new(self, bundle),
        };
        for (path, content) in &bundle.files {
            if path.starts_with("tests/") && path.ends_with(".toml") {
                run.file(self, path, content);
            }
        }
        let own = self.rules().filter(|rule| !rule.file.starts_with(INCLUDE));
        run.report.uncovered = own.filter(|rule| !run.called.contains(rule.id.as_str())).cloned().collect();
        run.report.conditions = run.watch.conditions();
        run.report
    }
}

struct Run {
    /// With the hosts of the file that is at work.
    policy: Policy,
    report: TestReport,
    /// Ids of rules that some case called on.
    called: BTreeSet<String>,
    /// By person, host and local user.
    compiled: HashMap<(Principal, String, String), Result<KernelPolicy, String>>,
    watch: Watch,
}

impl Run {
    fn file(&mut self, policy: &Policy, path: &str, content: &[u8]) {
        let text = String::from_utf8_lossy(content);
        let file: File = match toml::from_str(&text) {
            Ok(file) => file,
            Err(error) => {
                let line = error.span().map_or(1, |span| crate::diagnostic::line_of(&text, span.start));
                let message = error.message().trim_end().to_owned();
                self.fail(path, line, "the file".into(), message);
                return;
            }
        };
        match policy.with_hosts(&file.hosts) {
            Ok(policy) => self.policy = policy,
            Err(message) => {
                self.fail(path, 1, "the file".into(), message);
                return;
            }
        }
        self.compiled.clear();
        for case in &file.cases {
            self.report.cases += 1;
            let line = crate::diagnostic::line_of(&text, case.span().start);
            let case = case.get_ref();
            match question(case, &file.people) {
                Err(message) => self.fail(path, line, "the case".into(), message),
                Ok(question) => {
                    self.watch.ask(&self.policy, &question);
                    let title = title(&case.who, &question);
                    match self.ask(case, &question) {
                        Some(message) => self.fail(path, line, title, message),
                        None => self.result(path, line, title, None),
                    }
                }
            }
        }
    }

    fn fail(&mut self, file: &str, line: u32, case: String, message: String) {
        self.result(file, line, case.clone(), Some(message.clone()));
        self.report.failures.push(TestFailure { file: file.to_owned(), line, case, message });
    }

    fn result(&mut self, file: &str, line: u32, case: String, failure: Option<String>) {
        self.report.results.push(CaseResult { file: file.to_owned(), line, case, failure });
    }

    /// What is wrong with the answer.
    fn ask(&mut self, case: &Case, question: &Question) -> Option<String> {
        let (answer, rules) = self.policy.decide_by(question);
        self.called.extend(rules.into_iter().map(str::to_owned));
        let got = told(&answer);
        let rule = answer.rule.as_ref().map_or(DEFAULT_RULE, |rule| &rule.id);
        if answer.allowed != (case.expect == Verdict::Allow) {
            let wanted = if case.expect == Verdict::Allow { "allow" } else { "deny" };
            return Some(format!("expected {wanted}, got {got}"));
        }
        if case.rule.as_ref().is_some_and(|wanted| wanted != rule) {
            return Some(format!("expected rule `{}`, got {got}", case.rule.as_deref().unwrap_or_default()));
        }
        let observed = answer.observed.as_ref().map(|rule| rule.id.as_str());
        if case.observed.is_some() && case.observed.as_deref() != observed {
            return Some(format!(
                "expected monitored rule `{}` to notice it, got {got}",
                case.observed.as_deref().unwrap_or_default(),
            ));
        }
        if case.recorded.is_some_and(|recorded| recorded == answer.quiet) {
            let got = if answer.quiet { "unrecorded" } else { "recorded" };
            return Some(format!("it would be {got}"));
        }
        let word = match self.judge(question)? {
            Ok((word, rule)) => (word, rule),
            Err(error) => return Some(error),
        };
        let expected = answer.observed.as_ref().map_or(rule, |rule| &rule.id);
        let same = (word.0 & DENY == 0) == answer.allowed
            && (word.0 & OBSERVED != 0) == answer.observed.is_some()
            && (word.0 & QUIET != 0) == answer.quiet
            && word.1 == expected;
        (!same)
            .then(|| format!("the compiled tables say rule `{}` ({:#x}), Cedar says {got}", word.1, word.0))
    }

    /// The answer of the compiled tables; none for what the kernel does not judge.
    fn judge(&mut self, question: &Question) -> Option<Result<(Word, String), String>> {
        if matches!(question, Question::OpenSession { .. }) {
            return None;
        }
        let principal = question.principal();
        let (host, local_user) = (question.host()?.to_owned(), question.local_user()?.to_owned());
        let key = (principal.clone(), host, local_user);
        let compiled = self.compiled.entry(key).or_insert_with_key(|(_, host, local_user)| {
            self.policy.compile(principal, host, local_user).map_err(|error| error.to_string())
        });
        let compiled = match compiled {
            Ok(compiled) => compiled,
            Err(error) => return Some(Err(error.clone())),
        };
        let word = compiled.judge(question)?;
        let rule = compiled.rule(word).map(|rule| rule.id.clone()).unwrap_or_default();
        Some(Ok((word, rule)))
    }
}

fn told(answer: &Answer) -> String {
    let verdict = if answer.allowed { "allow" } else { "deny" };
    let rule = answer.rule.as_ref().map_or(DEFAULT_RULE, |rule| &rule.id);
    let noticed =
        answer.observed.as_ref().map_or(String::new(), |rule| format!(", noticed by `{}`", rule.id));
    format!("{verdict} by rule `{rule}`{noticed}")
}
