//! What is probably a mistake although it is valid Cedar: the part of `policy check` that looks at what rules mean.
//!
//! Whether a rule can ever apply, and whether others make it idle, is decided on the compiled conditions (`solve`), action by
//! action, never by their text. Looking for habits that go wrong (`literals`) is by text, with the condition's meaning as
//! judge where it has one. Findings are about the bundle's own rules; included ones are their authors' concern.

mod compare;
mod kind;
mod leaves;
mod literals;
mod rest;
mod solve;
mod wide;
mod world;

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use cedar_policy::pst::Expr;
use serde::Serialize;

pub use self::kind::FINDING_CODES;
use self::kind::Kind;
use self::solve::Solver;
use self::world::World;
use crate::bundle::{Bundle, INCLUDE};
use crate::diagnostic::Fault;
use crate::expr::Leaf;
use crate::formula::{Atoms, Formula, and};
use crate::load::Policy;
use crate::question::GatewayAction;
use crate::residual::{self, Action, OPEN_SESSION};
use crate::rule::Rule;
use crate::source::{self, Chunk, Parts};

/// How much a finding matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    /// The bundle does not do what it says.
    Error,
    /// It is probably not what was meant.
    Warning,
}

/// Something that is probably a mistake.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// How much it matters.
    pub severity: Severity,
    /// What kind it is; stable, for filters: one of [`FINDING_CODES`], which docs/policy-check.md explains.
    pub code: &'static str,
    /// Id of the rule concerned; empty if it is about none.
    pub rule: String,
    /// Place, sentence and remedy.
    #[serde(flatten)]
    pub fault: Fault,
}

/// What looking at a whole bundle gave.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Examination {
    /// By file and place.
    pub findings: Vec<Finding>,
    /// Ids of rules that could not be compared with the others within the bounds of work.
    pub not_compared: Vec<String>,
}

impl Examination {
    /// How many errors there are.
    pub fn errors(&self) -> usize {
        self.findings.iter().filter(|finding| finding.severity == Severity::Error).count()
    }

    /// How many warnings there are.
    pub fn warnings(&self) -> usize {
        self.findings.len() - self.errors()
    }
}

impl From<Fault> for Finding {
    /// A fault that loading found: code `fault`.
    fn from(fault: Fault) -> Self {
        Self { severity: Severity::Error, code: "fault", rule: String::new(), fault }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Fault { message, .. } = &self.fault;
        let severity = match self.severity {
            Severity::Error => "error",
            Severity::Warning => "warning",
        };
        let told = Fault { message: format!("{severity} [{}]: {message}", self.code), ..self.fault.clone() };
        write!(f, "{told}")
    }
}

impl Policy {
    /// Looks for what is probably a mistake in the bundle that this policy was loaded from.
    pub fn lint(&self, bundle: &Bundle) -> Examination {
        let world = World::new(&self.inner);
        let left = solve::allowance();
        let mut views = Vec::new();
        for action in all_actions() {
            views.push(View::new(self, &world, action, &left));
        }
        let sheets = sheets(self, bundle);
        let own: Vec<&Sheet<'_>> = sheets.iter().collect();
        let mut report = Report::default();
        let idle = leaves::examine(&mut report, &own, &mut views);
        compare::examine(&mut report, &own, &mut views, &idle);
        wide::examine(&mut report, &own, &mut views);
        for sheet in &own {
            literals::examine(&mut report, sheet);
        }
        rest::examine(&mut report, self, bundle, &mut views);
        let mut findings = report.findings;
        findings.sort_by(|a, b| (&a.fault, a.code).cmp(&(&b.fault, b.code)));
        findings.dedup();
        Examination { findings, not_compared: report.not_compared.into_iter().collect() }
    }
}

/// Line and column of each clause of the bundle's own rules, by id.
pub(crate) fn clauses(policy: &Policy, bundle: &Bundle) -> BTreeMap<String, Vec<(u32, u32)>> {
    let place = |sheet: &Sheet<'_>, at: (usize, usize)| {
        let fault = Fault::at((sheet.file, sheet.text), at, "", None);
        (fault.line, fault.column)
    };
    let sheets = sheets(policy, bundle);
    let all = sheets.iter().map(|sheet| {
        let clauses = 0..sheet.rule.body.clauses().len();
        (sheet.rule.info.id.clone(), clauses.map(|number| place(sheet, sheet.clause(number))).collect())
    });
    all.collect()
}

/// The bundle's own rules beside their text.
fn sheets<'a>(policy: &'a Policy, bundle: &'a Bundle) -> Vec<Sheet<'a>> {
    let mut cut: BTreeMap<&str, BTreeMap<usize, Chunk<'a>>> = BTreeMap::new();
    let mut sheets = Vec::new();
    for rule in policy.inner.rules.values().filter(|rule| !rule.info.file.starts_with(INCLUDE)) {
        let Some((file, content)) = bundle.files.get_key_value(&rule.info.file) else { continue };
        let Ok(text) = std::str::from_utf8(content) else { continue };
        let chunks = cut
            .entry(file)
            .or_insert_with(|| source::cut(text).into_iter().map(|chunk| (chunk.offset, chunk)).collect());
        if let Some(chunk) = chunks.remove(&rule.offset) {
            sheets.push(Sheet::new((file, text), chunk, rule));
        }
    }
    sheets
}

/// Every action that there is.
fn all_actions() -> impl Iterator<Item = Action> {
    let at_gateway = GatewayAction::ALL.map(|action| Action::Gateway(action.name()));
    [Action::Gateway(OPEN_SESSION)].into_iter().chain(Action::all()).chain(at_gateway)
}

/// The rules of one action, each with its condition for everybody at once.
struct View<'a> {
    action: Action,
    atoms: Atoms,
    rules: Vec<Ruled<'a>>,
    solver: Solver<'a>,
    world: &'a World,
}

struct Ruled<'a> {
    rule: &'a Rule,
    /// None: it cannot be had for everybody at once.
    formula: Option<Formula>,
}

impl<'a> View<'a> {
    fn new(policy: &'a Policy, world: &'a World, action: Action, left: &'a Cell<usize>) -> Self {
        let mut atoms = Atoms::default();
        let rules = policy.inner.rules.values().filter(|rule| rule.speaks_of(action.name()));
        let rules = rules
            .map(|rule| {
                let scope = world.scope(&rule.body, action, &mut atoms);
                let condition = residual::open_condition(&rule.body, action, &mut atoms, world);
                Ruled { rule, formula: condition.ok().map(|condition| and(scope, condition)) }
            })
            .collect();
        Self { action, atoms, rules, solver: Solver::new(world, action, left), world }
    }

    fn formula(&self, rule: &Rule) -> Option<&Formula> {
        let found = self.rules.iter().find(|ruled| ruled.rule.info.id == rule.info.id)?;
        found.formula.as_ref()
    }

    /// The formula of one expression.
    fn truth(&mut self, expr: &Expr) -> Option<Formula> {
        residual::open_truth(expr, self.action, &mut self.atoms, self.world).ok()
    }
}

/// A rule beside its text.
struct Sheet<'a> {
    rule: &'a Rule,
    file: &'a str,
    text: &'a str,
    chunk: Chunk<'a>,
    parts: Parts,
    leaves: Vec<Leaf<'a>>,
    /// Texts and numbers are where they were counted.
    exact: bool,
}

impl<'a> Sheet<'a> {
    fn new((file, text): (&'a str, &'a str), chunk: Chunk<'a>, rule: &'a Rule) -> Self {
        let parts = source::parts(&chunk);
        let (leaves, quoted, numbers) = crate::expr::leaves(&rule.body);
        let exact = parts.quoted.len() == quoted && parts.numbers.len() == numbers;
        Self { rule, file, text, chunk, parts, leaves, exact }
    }

    /// Where a clause begins.
    fn clause(&self, number: usize) -> (usize, usize) {
        self.parts.clauses.get(number).copied().unwrap_or(self.parts.effect)
    }

    /// Where a leaf's first literal stands, or its clause.
    fn leaf(&self, leaf: &Leaf<'_>) -> (usize, usize) {
        if !self.exact {
            return self.clause(leaf.clause);
        }
        let quoted = leaf.quoted.clone().next().and_then(|at| self.parts.quoted.get(at));
        let number = leaf.numbers.clone().next().and_then(|at| self.parts.numbers.get(at));
        quoted.or(number).copied().unwrap_or_else(|| self.clause(leaf.clause))
    }

    /// Where one of a leaf's texts stands.
    fn quoted(&self, leaf: &Leaf<'_>, at: usize) -> (usize, usize) {
        let place = self.exact.then(|| self.parts.quoted.get(leaf.quoted.start + at)).flatten();
        place.copied().unwrap_or_else(|| self.leaf(leaf))
    }

    /// Where an annotation stands, or the effect.
    fn annotation(&self, name: &str) -> (usize, usize) {
        let found = self.chunk.annotations.iter().find(|annotation| annotation.name == name);
        found.map_or(self.parts.effect, |annotation| (annotation.offset, annotation.length))
    }
}

/// Collects findings.
#[derive(Default)]
struct Report {
    findings: Vec<Finding>,
    not_compared: BTreeSet<String>,
}

impl Report {
    fn warn(
        &mut self,
        sheet: &Sheet<'_>,
        place: (usize, usize),
        kind: Kind,
        message: impl Into<String>,
        help: impl Into<String>,
    ) {
        self.add(Severity::Warning, sheet, place, kind, message.into(), help.into());
    }

    fn error(
        &mut self,
        sheet: &Sheet<'_>,
        place: (usize, usize),
        kind: Kind,
        message: impl Into<String>,
        help: impl Into<String>,
    ) {
        self.add(Severity::Error, sheet, place, kind, message.into(), help.into());
    }

    fn add(
        &mut self,
        severity: Severity,
        sheet: &Sheet<'_>,
        place: (usize, usize),
        kind: Kind,
        message: String,
        help: String,
    ) {
        let fault = Fault::at((sheet.file, sheet.text), place, message, Some(help));
        self.findings.push(Finding { severity, code: kind.code(), rule: sheet.rule.info.id.clone(), fault });
    }

    /// A warning about no rule.
    fn elsewhere(
        &mut self,
        source: (&str, &str),
        place: (usize, usize),
        kind: Kind,
        message: impl Into<String>,
        help: impl Into<String>,
    ) {
        let fault = Fault::at(source, place, message, Some(help.into()));
        let (severity, code) = (Severity::Warning, kind.code());
        self.findings.push(Finding { severity, code, rule: String::new(), fault });
    }
}
