//! Why a question is answered as it is: which rules hold, what is missing to those that do not, and which rule would change
//! the answer.
//!
//! The verdict is Cedar's authorizer's. Beside it each rule is taken apart (scope, and the parts of its conditions that are
//! joined by `&&`), and each part is evaluated by Cedar alone; `tests/meaning` holds that both always agree.

use std::cmp::Reverse;
use std::collections::BTreeSet;
use std::sync::Arc;

use cedar_policy::pst::{BinaryOp, Clause, Expr, Var};
use cedar_policy::{Entities, EntityUid, EvalResult, Expression, Request};
use serde::Serialize;

use crate::decide::request;
use crate::entities::{chain, uid};
use crate::expr::{parts, strings};
use crate::load::Policy;
use crate::placement::{self, Place};
use crate::question::{Answer, Question, RuleInfo};
use crate::rule::Rule;
use crate::scope;

/// Most rules that are named as near.
const NEAR: usize = 3;
/// Longest part of a condition that is shown, in characters.
const SHOWN: usize = 300;

/// An answer with its grounds.
#[derive(Clone, Debug)]
pub struct Explanation {
    /// What [`Policy::decide`] answers.
    pub answer: Answer,
    /// The rules that hold: those that decide first, the one that is named before the others.
    pub holding: Vec<Examined>,
    /// Where it is enforced, by the rule that is named (without one, by the action).
    pub place: Option<Place>,
    /// What would change the answer.
    pub remedy: Remedy,
}

/// One rule, held against a question.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Examined {
    /// The rule.
    pub rule: RuleInfo,
    /// It forbids; otherwise it permits.
    pub forbids: bool,
    /// It is only watched.
    pub monitored: bool,
    /// What it asks for and the question does not have. Nothing: it holds.
    pub unmet: Vec<Unmet>,
}

/// Part of a rule that is not met.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Unmet {
    /// The part as Cedar writes it; of a scope, its line.
    pub part: String,
    /// What there was instead.
    pub because: String,
    /// It belongs to the scope: who, or where.
    pub scope: bool,
}

/// What would change an answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Remedy {
    /// Denied: the forbids that stand against it, all of which would have to go.
    pub lift: Vec<RuleInfo>,
    /// Denied: whether a permit holds, so that lifting the forbids is enough.
    pub permitted: bool,
    /// Denied and not permitted: the permits that come nearest. Allowed: the forbids that do.
    pub near: Vec<Examined>,
    /// Allowed: the permits that hold; without all of them it would be denied.
    pub relies_on: Vec<RuleInfo>,
}

impl Policy {
    /// Explains the answer to a question.
    pub fn explain(&self, question: &Question) -> Explanation {
        let answer = self.decide(question);
        let examined = self.examine(question);
        let action = question.action();
        let (mut holding, failing): (Vec<_>, Vec<_>) =
            examined.into_iter().partition(|(_, examined)| examined.unmet.is_empty());
        let decides = |rule: &Rule| match (answer.allowed, rule.forbids, rule.monitored) {
            (false, true, false) | (true, false, _) => 0,
            (true, true, true) => 1,
            _ => 2,
        };
        holding.sort_by(|(a, _), (b, _)| {
            decides(a).cmp(&decides(b)).then_with(|| a.precedence().cmp(&b.precedence()))
        });
        let named = holding.first().map(|(rule, _)| *rule).filter(|rule| decides(rule) == 0);
        let place = match named {
            Some(rule) => placement::place(&rule.body, action),
            None => placement::place_of_action(action),
        };
        let chosen = |forbids: bool| {
            let these = holding.iter().filter(|(rule, _)| rule.forbids == forbids && !rule.monitored);
            these.map(|(rule, _)| rule.info.clone()).collect::<Vec<_>>()
        };
        let (forbids, permits) = (chosen(true), chosen(false));
        let wanted = answer.allowed;
        let near =
            if answer.allowed || permits.is_empty() { nearest(question, failing, wanted) } else { vec![] };
        let remedy = Remedy {
            permitted: !permits.is_empty(),
            relies_on: if answer.allowed { permits } else { vec![] },
            lift: forbids,
            near,
        };
        let holding = holding.into_iter().map(|(_, examined)| examined).collect();
        Explanation { answer, holding, place, remedy }
    }

    /// Every rule that speaks of the question's action, held against it.
    fn examine(&self, question: &Question) -> Vec<(&Rule, Examined)> {
        let (Some(request), Some(entities)) =
            (request(question), self.inner.known.with(question.principal(), question.host()))
        else {
            return vec![];
        };
        let person = uid("User", &question.principal().user);
        let place = question.host().map_or_else(|| uid("Gateway", "gateway"), |host| uid("Host", host));
        let case = Case { request: &request, entities: &entities, person, place };
        let speaking = self.inner.rules.values().filter(|rule| rule.speaks_of(question.action()));
        speaking
            .map(|rule| {
                let examined = Examined {
                    rule: rule.info.clone(),
                    forbids: rule.forbids,
                    monitored: rule.monitored,
                    unmet: case.unmet(rule),
                };
                (rule, examined)
            })
            .collect()
    }
}

/// The rules of one effect that lack least. Among equals, those that speak of texts like the question's.
fn nearest(question: &Question, failing: Vec<(&Rule, Examined)>, forbids: bool) -> Vec<Examined> {
    let subject = match question {
        Question::Exec { path, .. } | Question::File { path, .. } => path.as_str(),
        Question::System { operation, .. } => operation.name(),
        _ => "",
    };
    let mut near: Vec<_> = failing
        .into_iter()
        .filter(|(rule, _)| rule.forbids == forbids && !rule.monitored)
        .map(|(rule, examined)| {
            let mut texts = BTreeSet::new();
            for clause in rule.body.clauses() {
                let (Clause::When(expr) | Clause::Unless(expr)) = clause;
                strings(expr, &mut texts);
            }
            let common =
                |text: &String| text.bytes().zip(subject.bytes()).take_while(|(a, b)| a == b).count();
            let alike = texts.iter().map(common).max().unwrap_or(0);
            ((examined.unmet.len(), Reverse(alike), rule.info.id.as_str()), examined)
        })
        .collect();
    near.sort_by_key(|(nearness, _)| *nearness);
    let least = near.first().map_or(0, |((unmet, ..), _)| *unmet);
    let near = near.into_iter().filter(|((unmet, ..), _)| *unmet == least);
    near.map(|(_, examined)| examined).take(NEAR).collect()
}

/// A question as Cedar has it.
struct Case<'a> {
    request: &'a Request,
    entities: &'a Entities,
    person: EntityUid,
    place: EntityUid,
}

impl Case<'_> {
    /// What keeps a rule from holding.
    fn unmet(&self, rule: &Rule) -> Vec<Unmet> {
        let mut unmet = Vec::new();
        let body = &rule.body;
        if !scope::principal_fits(body, &self.person, self.entities) {
            let part = body.principal.to_string();
            unmet.push(Unmet { part, because: self.belongs(&self.person), scope: true });
        }
        if !scope::resource_fits(body, &self.place, self.entities) {
            let part = body.resource.to_string();
            unmet.push(Unmet { part, because: self.belongs(&self.place), scope: true });
        }
        // What follows a false part may fail because of that: it was the guard.
        let mut guarded = true;
        for clause in body.clauses() {
            match clause {
                Clause::When(expr) => {
                    let mut joined = Vec::new();
                    conjuncts(expr, &mut joined);
                    for part in joined {
                        self.part(part, true, &mut guarded, &mut unmet);
                    }
                }
                Clause::Unless(expr) => self.part(expr, false, &mut guarded, &mut unmet),
            }
        }
        unmet
    }

    fn part(&self, expr: &Arc<Expr>, wanted: bool, guarded: &mut bool, unmet: &mut Vec<Unmet>) {
        let because = match self.evaluate(expr) {
            Ok(EvalResult::Bool(value)) if value == wanted => return,
            Ok(_) => self.seen(expr),
            Err(_) if !*guarded => return,
            Err(error) => format!("it cannot be evaluated ({error}), so the rule counts for nothing"),
        };
        *guarded = false;
        let text = short(&expr.to_string());
        let part = if wanted { text } else { format!("unless {text}") };
        unmet.push(Unmet { part, because, scope: false });
    }

    fn evaluate(&self, expr: &Expr) -> Result<EvalResult, String> {
        let expression: Expression = expr.to_string().parse().map_err(|error| chain(&error))?;
        cedar_policy::eval_expression(self.request, self.entities, &expression).map_err(|error| chain(&error))
    }

    /// The values of what an expression looks at.
    fn seen(&self, expr: &Expr) -> String {
        let mut looked_at = BTreeSet::new();
        variables(expr, &mut looked_at);
        let mut told = Vec::new();
        for text in looked_at {
            match text.as_str() {
                "principal" => told.push(self.belongs(&self.person)),
                "resource" => told.push(self.belongs(&self.place)),
                "action" | "context" => {}
                attribute => {
                    let value = attribute.parse::<Expression>().ok().and_then(|expression| {
                        cedar_policy::eval_expression(self.request, self.entities, &expression).ok()
                    });
                    if let Some(value) = value {
                        told.push(format!("{attribute} is {}", short(&value.to_string())));
                    }
                }
            }
        }
        if told.is_empty() { "it never holds".to_owned() } else { told.join("; ") }
    }

    /// What something is a member of.
    fn belongs(&self, thing: &EntityUid) -> String {
        let mut groups: Vec<String> = self
            .entities
            .ancestors(thing)
            .map(|all| all.map(ToString::to_string).collect())
            .unwrap_or_default();
        groups.sort();
        match groups.as_slice() {
            [] => format!("{thing} is in no group"),
            groups => format!("{thing} is in {}", groups.join(", ")),
        }
    }
}

/// The parts of an expression that are joined by `&&`.
fn conjuncts<'a>(expr: &'a Arc<Expr>, into: &mut Vec<&'a Arc<Expr>>) {
    // Chains lean to the left, and can be long.
    let mut rest = expr;
    let mut rights = Vec::new();
    while let Expr::BinaryOp { op: BinaryOp::And, left, right } = &**rest {
        rights.push(right);
        rest = left;
    }
    into.push(rest);
    for right in rights.into_iter().rev() {
        conjuncts(right, into);
    }
}

/// The variables, and attributes of variables, that an expression looks at.
fn variables(expr: &Expr, into: &mut BTreeSet<String>) {
    match expr {
        Expr::GetAttr { expr: inner, .. } if matches!(&**inner, Expr::Var(_)) => {
            into.insert(expr.to_string());
        }
        Expr::Var(variable) => {
            let name = match variable {
                Var::Principal => "principal",
                Var::Action => "action",
                Var::Resource => "resource",
                Var::Context => "context",
            };
            into.insert(name.to_owned());
        }
        other => {
            for part in parts(other) {
                variables(part, into);
            }
        }
    }
}

fn short(text: &str) -> String {
    if text.chars().count() <= SHOWN {
        return text.to_owned();
    }
    text.chars().take(SHOWN - 1).collect::<String>() + "…"
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Bundle, Principal};

    const RULES: &str = r#"
@id("scanners") @reason("no scanners") forbid (principal, action == Action::"exec", resource)
    when { context.name == "nmap" };
@id("tools") permit (principal in Group::"ops", action == Action::"exec", resource)
    when { context.path like "/usr/bin/*" && context.caller == "/usr/bin/bash" };
@id("labelled") permit (principal, action == Action::"exec", resource)
    when { resource.hasTag("env") && resource.getTag("env") == "test" && context.path == "/opt/tool" };
@id("watched") @reason("r") @mode("monitor") forbid (principal, action == Action::"exec", resource)
    when { context.path like "/usr/bin/a*" };
"#;

    fn explained(groups: &[&str], path: &str, caller: &str) -> Explanation {
        let entities = r#"[{"uid": {"type": "Group", "id": "ops"}, "attrs": {}, "parents": []}]"#;
        let files =
            [("bundle.toml", "name = \"t\"\nschema = 2\n"), ("entities.json", entities), ("r.cedar", RULES)];
        let policy = Policy::load(&Bundle::from_files(files).expect("a bundle")).expect("no fault");
        policy.explain(&Question::Exec {
            principal: Principal {
                user: "alice".into(),
                groups: groups.iter().map(|group| (*group).to_owned()).collect(),
                ..Principal::default()
            },
            host: "web-1".into(),
            local_user: "root".into(),
            path: path.into(),
            args: vec![],
            fileless: false,
            setuid: false,
            caller: caller.into(),
        })
    }

    fn ids(rules: &[RuleInfo]) -> Vec<&str> {
        rules.iter().map(|rule| rule.id.as_str()).collect()
    }

    #[test]
    fn a_forbid_is_to_be_lifted_and_what_it_beat_is_told() {
        let found = explained(&["ops"], "/usr/bin/nmap", "/usr/bin/bash");
        assert!(!found.answer.allowed);
        assert_eq!(
            found.holding.iter().map(|held| held.rule.id.as_str()).collect::<Vec<_>>(),
            ["scanners", "tools"]
        );
        assert_eq!(ids(&found.remedy.lift), ["scanners"]);
        assert!(found.remedy.permitted && found.remedy.near.is_empty());
        // Without the permit, lifting the forbid is not enough.
        let found = explained(&[], "/usr/bin/nmap", "/usr/bin/bash");
        assert_eq!(ids(&found.remedy.lift), ["scanners"]);
        assert!(!found.remedy.permitted);
        assert_eq!(found.remedy.near[0].rule.id, "tools");
    }

    #[test]
    fn the_nearest_permit_says_which_part_failed() {
        let found = explained(&["ops"], "/usr/bin/id", "/usr/bin/perl");
        assert!(!found.answer.allowed && found.remedy.lift.is_empty());
        let near = &found.remedy.near[0];
        assert_eq!((near.rule.id.as_str(), near.unmet.len()), ("tools", 1));
        assert!(near.unmet[0].part.contains("context.caller"), "{near:?}");
        assert!(near.unmet[0].because.contains("context.caller is \"/usr/bin/perl\""), "{near:?}");
        // What a guard protects is not counted beside the guard.
        let found = explained(&[], "/opt/tool", "/usr/bin/perl");
        let near = &found.remedy.near[0];
        assert_eq!((near.rule.id.as_str(), near.unmet.len()), ("labelled", 1));
        assert!(near.unmet[0].part.contains("hasTag"), "{near:?}");
    }

    #[test]
    fn what_is_allowed_says_on_what_it_relies_and_what_watches() {
        let found = explained(&["ops"], "/usr/bin/awk", "/usr/bin/bash");
        assert!(found.answer.allowed);
        assert_eq!(ids(&found.remedy.relies_on), ["tools"]);
        assert_eq!(found.holding[1].rule.id, "watched");
        assert_eq!(found.remedy.near[0].rule.id, "scanners");
        assert_eq!(found.place.expect("of exec").action, "exec");
    }

    #[test]
    fn scopes_say_who_one_is() {
        let found = explained(&[], "/usr/bin/id", "/usr/bin/bash");
        let near = found.remedy.near.iter().find(|near| near.rule.id == "tools").expect("it is near");
        assert!(near.unmet[0].scope && near.unmet[0].because.contains("in no group"), "{near:?}");
    }
}
