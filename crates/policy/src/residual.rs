//! From a Cedar policy to a formula: everything known in advance is folded away.
//!
//! For one person, host and local user only what the kernel sees stays open: path, name, arguments, calling program,
//! operation, address, port, protocol. Every part of a condition that does not look at those is evaluated by Cedar itself.

mod compare;
mod literal;
mod operators;

use self::literal::range;
pub(crate) use self::literal::{matches, parse_range, pieces};
use std::collections::BTreeMap;
use std::rc::Rc;

use cedar_policy::pst::{self, BinaryOp, Expr, Literal, UnaryOp, Var};
use cedar_policy::{Entities, EvalResult, Expression, Request};
use sallyport_sensor_abi::policy::file_op;

use crate::expr::parts;
use crate::formula::{Atom, Atoms, Formula, Known, Prefix, Text, and, choose, not};
use crate::port::PortExpr;

/// Attributes of `exec` that only the kernel knows.
const EXEC: [&str; 7] = ["path", "name", "args", "command_line", "fileless", "setuid", "caller"];
/// Attributes of what is done to files.
const FILE: [&str; 4] = ["path", "name", "fileless", "caller"];
/// Attributes of `system`.
const SYSTEM: [&str; 3] = ["operation", "outside", "caller"];
/// Attributes of `connect` and `listen`.
const NET: [&str; 3] = ["address", "port", "protocol"];
/// The action by which sessions begin.
pub(crate) const OPEN_SESSION: &str = "open_session";
/// Deepest nesting of a condition that is followed: the walk is recursive.
pub(crate) const MAX_NESTING: usize = 260;

/// The actions that the kernel judges.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Action {
    Exec,
    /// One of [`file_op`].
    File(u32),
    System,
    Connect,
    Listen,
    /// One that the gateway decides, by name. Only where a bundle is examined; it never gets into tables.
    Gateway(&'static str),
}

impl Action {
    /// All that the kernel judges.
    pub(crate) fn all() -> impl Iterator<Item = Self> {
        std::iter::once(Self::Exec).chain((0..file_op::COUNT).map(Self::File)).chain([
            Self::System,
            Self::Connect,
            Self::Listen,
        ])
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Exec => "exec",
            Self::File(op) => file_op::NAMES[op as usize],
            Self::System => "system",
            Self::Connect => "connect",
            Self::Listen => "listen",
            Self::Gateway(name) => name,
        }
    }

    /// It is done to a host, or on one; otherwise to the gateway itself.
    pub(crate) fn on_host(self) -> bool {
        !matches!(self, Self::Gateway(name) if name != OPEN_SESSION)
    }

    fn has(self, attribute: &str) -> bool {
        if let Self::Gateway(name) = self {
            return name == OPEN_SESSION && ["local_user", "client_address"].contains(&attribute);
        }
        attribute == "local_user"
            || match self {
                Self::Gateway(_) => false,
                Self::Exec => EXEC.contains(&attribute),
                Self::File(_) => FILE.contains(&attribute),
                Self::System => SYSTEM.contains(&attribute),
                Self::Connect | Self::Listen => NET.contains(&attribute),
            }
    }
}

/// Why a condition cannot be judged by the kernel: the part of it, and a sentence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Unplaceable {
    pub(crate) part: String,
    pub(crate) why: &'static str,
}

/// What is known in advance.
pub(crate) struct Given<'a> {
    /// Person, action, host, and a context that holds only the local user.
    pub(crate) request: &'a Request,
    pub(crate) entities: &'a Entities,
}

/// The condition of a policy's clauses. Without `given`, only whether it can be judged at all is of interest.
pub(crate) fn condition(
    body: &pst::Template,
    action: Action,
    atoms: &mut Atoms,
    given: Option<&Given<'_>>,
) -> Result<Formula, Unplaceable> {
    fold(body, Folder { action, atoms, given, world: None })
}

/// The condition of a policy's clauses for everybody at once: what depends on person, host and local user is left to `world`.
pub(crate) fn open_condition(
    body: &pst::Template,
    action: Action,
    atoms: &mut Atoms,
    world: &dyn Unknown,
) -> Result<Formula, Unplaceable> {
    fold(body, Folder { action, atoms, given: None, world: Some(world) })
}

/// One expression, as in [`open_condition`].
pub(crate) fn open_truth(
    expr: &Expr,
    action: Action,
    atoms: &mut Atoms,
    world: &dyn Unknown,
) -> Result<Formula, Unplaceable> {
    Folder { action, atoms, given: None, world: Some(world) }.truth(expr)
}

/// Stands for person, host and local user where they are not given.
pub(crate) trait Unknown {
    /// The formula of an expression that does not look at what only the kernel knows.
    fn truth(&self, expr: &Expr, action: Action, atoms: &mut Atoms) -> Formula;
}

fn fold(body: &pst::Template, mut folder: Folder<'_>) -> Result<Formula, Unplaceable> {
    let mut whole = Formula::True;
    for clause in body.clauses() {
        if matches!(whole, Formula::False | Formula::Error) {
            break;
        }
        let (pst::Clause::When(expr) | pst::Clause::Unless(expr)) = clause;
        if nesting(expr) > MAX_NESTING {
            return Err(Unplaceable {
                part: "…".into(),
                why: "the condition is nested too deeply; compare with a set, `[…].contains(…)`, instead of a long chain of `||`",
            });
        }
        let part = folder.truth(expr)?;
        let part = if matches!(clause, pst::Clause::Unless(_)) { not(part) } else { part };
        whole = and(whole, part);
    }
    Ok(whole)
}

/// Depth of an expression, found without recursion.
fn nesting(expr: &Expr) -> usize {
    let mut deepest = 0;
    let mut open = vec![(expr, 1)];
    while let Some((expr, depth)) = open.pop() {
        deepest = deepest.max(depth);
        open.extend(parts(expr).into_iter().map(|part| (&**part, depth + 1)));
    }
    deepest
}

/// Whether an expression looks at something that only the kernel knows.
fn kernel_visible(expr: &Expr) -> bool {
    match expr {
        Expr::GetAttr { expr, attr } if is_context(expr) => attr != "local_user",
        Expr::Var(Var::Context) => true,
        other => parts(other).into_iter().any(|part| kernel_visible(part)),
    }
}

fn is_context(expr: &Expr) -> bool {
    matches!(expr, Expr::Var(Var::Context))
}

/// A value that may depend on what only the kernel knows.
#[derive(Clone, Debug)]
enum Value {
    Bool(Formula),
    Long(i64),
    Text(String),
    Range(Prefix),
    Set(Vec<Value>),
    Record(BTreeMap<String, Value>),
    /// Entities, and extension values other than addresses.
    Other(EvalResult),
    /// `context.path`, `context.name`, `context.command_line`, `context.caller`.
    Seen(Seen),
    /// `context.operation`.
    Operation,
    /// `context.args`.
    Args,
    /// `context.address`.
    Address,
    /// `context.protocol`.
    Protocol,
    /// `context.port`, and what is computed from it.
    Port(Rc<PortExpr>),
    /// Known later; only while checking.
    Later,
    /// Evaluation fails.
    Error,
    /// Depends on a condition.
    Either(Formula, Box<Value>, Box<Value>),
}

/// Texts that only the kernel knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Seen {
    File(Text),
    CommandLine,
    Caller,
}

struct Folder<'a> {
    action: Action,
    atoms: &'a mut Atoms,
    given: Option<&'a Given<'a>>,
    world: Option<&'a dyn Unknown>,
}

type Folded<T> = Result<T, Unplaceable>;

const NOT_JUDGED: &str = "the kernel's tables cannot hold this comparison; compare each attribute with literal values, sets of literals, or known attributes of principal and resource";

impl Folder<'_> {
    /// Folds a boolean expression.
    fn truth(&mut self, expr: &Expr) -> Folded<Formula> {
        match expr {
            Expr::UnaryOp { op: UnaryOp::Not, expr } => Ok(not(self.truth(expr)?)),
            Expr::BinaryOp { op: BinaryOp::And, left, right } => match self.truth(left)? {
                sure @ (Formula::False | Formula::Error) => Ok(sure),
                left => Ok(and(left, self.truth(right)?)),
            },
            Expr::BinaryOp { op: BinaryOp::Or, left, right } => match self.truth(left)? {
                sure @ (Formula::True | Formula::Error) => Ok(sure),
                left => {
                    let right = self.truth(right)?;
                    Ok(self.atoms.or(left, right))
                }
            },
            Expr::IfThenElse { cond, then_expr, else_expr } => match self.truth(cond)? {
                Formula::True => self.truth(then_expr),
                Formula::False => self.truth(else_expr),
                Formula::Error => Ok(Formula::Error),
                cond => Ok(choose(cond, self.truth(then_expr)?, self.truth(else_expr)?)),
            },
            _ => {
                if let Some(world) = self.world
                    && !matches!(expr, Expr::Literal(_))
                    && (!kernel_visible(expr) || !self.action.on_host())
                {
                    return Ok(world.truth(expr, self.action, self.atoms));
                }
                let value = self.value(expr)?;
                self.as_truth(expr, value)
            }
        }
    }

    /// Some condition that is known later. While checking, an atom that nothing else uses keeps both ways open; while a
    /// bundle is examined, each needs its own.
    fn later(&mut self) -> Formula {
        if self.world.is_none() {
            return self.atoms.intern(Atom::Fileless);
        }
        let free = Known::Free(format!("#{}", self.atoms.len()));
        self.atoms.intern(Atom::Known(free))
    }

    fn as_truth(&mut self, expr: &Expr, value: Value) -> Folded<Formula> {
        match value {
            Value::Bool(formula) => Ok(formula),
            Value::Later => Ok(self.later()),
            Value::Either(cond, a, b) => {
                let (a, b) = (self.as_truth(expr, *a)?, self.as_truth(expr, *b)?);
                Ok(choose(cond, a, b))
            }
            Value::Error => Ok(Formula::Error),
            _ => Err(unplaceable(expr)),
        }
    }

    fn value(&mut self, expr: &Expr) -> Folded<Value> {
        if let Expr::Literal(literal) = expr {
            match literal {
                Literal::Bool(true) => return Ok(Value::Bool(Formula::True)),
                Literal::Bool(false) => return Ok(Value::Bool(Formula::False)),
                Literal::Long(number) => return Ok(Value::Long(*number)),
                Literal::String(text) => return Ok(Value::Text(text.to_string())),
                _ => {}
            }
        }
        if let Expr::Set(elements) = expr {
            return self.set(elements);
        }
        if !kernel_visible(expr) {
            return self.known(expr);
        }
        match expr {
            Expr::GetAttr { expr: inner, attr } if is_context(inner) => self.attribute(expr, attr),
            Expr::GetAttr { expr: inner, attr } => match self.value(inner)? {
                Value::Record(mut fields) => fields.remove(attr.as_str()).ok_or_else(|| unplaceable(expr)),
                Value::Error => Ok(Value::Error),
                _ => Err(unplaceable(expr)),
            },
            Expr::HasAttr { expr: inner, attrs } if is_context(inner) && attrs.len() == 1 => {
                Ok(Value::Bool(constant(self.action.has(&attrs.head))))
            }
            Expr::Record(fields) => {
                let mut record = BTreeMap::new();
                for (name, field) in fields {
                    match self.value(field)? {
                        Value::Error => return Ok(Value::Error),
                        value => record.insert(name.clone(), value),
                    };
                }
                Ok(Value::Record(record))
            }
            Expr::Like { expr: inner, pattern } => {
                let value = self.value(inner)?;
                self.each(value, &mut |folder, value| folder.like(expr, value, pattern))
            }
            Expr::IfThenElse { cond, then_expr, else_expr } => match self.truth(cond)? {
                Formula::True => self.value(then_expr),
                Formula::False => self.value(else_expr),
                Formula::Error => Ok(Value::Error),
                cond => {
                    let (a, b) = (self.value(then_expr)?, self.value(else_expr)?);
                    Ok(Value::Either(cond, Box::new(a), Box::new(b)))
                }
            },
            Expr::UnaryOp { op: UnaryOp::Not, .. }
            | Expr::BinaryOp { op: BinaryOp::And | BinaryOp::Or, .. } => Ok(Value::Bool(self.truth(expr)?)),
            Expr::UnaryOp { op, expr: inner } => {
                let value = self.value(inner)?;
                self.each(value, &mut |folder, value| folder.unary(expr, *op, value))
            }
            Expr::BinaryOp { op, left, right } => {
                let left = self.value(left)?;
                if matches!(left, Value::Error) {
                    return Ok(Value::Error);
                }
                let right = self.value(right)?;
                self.each(left, &mut |folder, left| {
                    folder.each(right.clone(), &mut |folder, right| {
                        folder.binary(expr, *op, left.clone(), right)
                    })
                })
            }
            _ => Err(unplaceable(expr)),
        }
    }

    /// Applies `apply` to a value; where that depends on a condition, to both.
    fn each(
        &mut self,
        value: Value,
        apply: &mut dyn FnMut(&mut Self, Value) -> Folded<Value>,
    ) -> Folded<Value> {
        match value {
            Value::Either(cond, a, b) => {
                let (a, b) = (self.each(*a, apply)?, self.each(*b, apply)?);
                Ok(Value::Either(cond, Box::new(a), Box::new(b)))
            }
            Value::Error => Ok(Value::Error),
            value => apply(self, value),
        }
    }

    fn set(&mut self, elements: &[std::sync::Arc<Expr>]) -> Folded<Value> {
        let mut values = Vec::with_capacity(elements.len());
        for element in elements {
            match self.value(element)? {
                Value::Error => return Ok(Value::Error),
                value => values.push(value),
            }
        }
        // An element that depends on a condition makes two sets.
        let Some(at) = values.iter().position(|value| matches!(value, Value::Either(..))) else {
            return Ok(Value::Set(values));
        };
        let choice = values[at].clone();
        self.each(choice, &mut |_, value| {
            if values.iter().filter(|value| matches!(value, Value::Either(..))).count() > 1 {
                return Err(Unplaceable { part: "if … then … else …".into(), why: NOT_JUDGED });
            }
            let mut values = values.clone();
            values[at] = value;
            Ok(Value::Set(values))
        })
    }

    /// Evaluates with Cedar what does not depend on the kernel.
    fn known(&mut self, expr: &Expr) -> Folded<Value> {
        let Some(given) = self.given else {
            return Ok(match expr {
                Expr::Literal(Literal::EntityUID(_)) => Value::Later,
                _ => range(expr).map_or(Value::Later, Value::Range),
            });
        };
        if let Some(range) = range(expr) {
            return Ok(Value::Range(range));
        }
        let Ok(expression) = expr.to_string().parse::<Expression>() else {
            return Err(unplaceable(expr));
        };
        Ok(match cedar_policy::eval_expression(given.request, given.entities, &expression) {
            Ok(result) => from_cedar(result),
            Err(_) => Value::Error,
        })
    }

    fn attribute(&mut self, expr: &Expr, attribute: &str) -> Folded<Value> {
        if !self.action.has(attribute) {
            // The validator lets this pass only behind a `has` that is false here.
            return Ok(Value::Error);
        }
        Ok(match attribute {
            "path" => Value::Seen(Seen::File(Text::Path)),
            "name" => Value::Seen(Seen::File(Text::Name)),
            "command_line" => Value::Seen(Seen::CommandLine),
            "args" => Value::Args,
            "caller" => Value::Seen(Seen::Caller),
            "fileless" => Value::Bool(self.atoms.intern(Atom::Fileless)),
            "setuid" => Value::Bool(self.atoms.intern(Atom::Setuid)),
            "outside" => Value::Bool(self.atoms.intern(Atom::Outside)),
            "operation" => Value::Operation,
            "address" | "client_address" => Value::Address,
            "protocol" => Value::Protocol,
            "port" => Value::Port(Rc::new(PortExpr::Port)),
            _ => return Err(unplaceable(expr)),
        })
    }
}

fn unplaceable(expr: &Expr) -> Unplaceable {
    let mut part = expr.to_string();
    if part.chars().count() > 80 {
        part = part.chars().take(77).collect::<String>() + "…";
    }
    Unplaceable { part, why: NOT_JUDGED }
}

fn constant(value: bool) -> Formula {
    if value { Formula::True } else { Formula::False }
}

fn number(value: &Value) -> Option<Rc<PortExpr>> {
    match value {
        Value::Port(expr) => Some(Rc::clone(expr)),
        Value::Long(number) => Some(Rc::new(PortExpr::Long(*number))),
        _ => None,
    }
}

fn from_cedar(result: EvalResult) -> Value {
    match result {
        EvalResult::Bool(value) => Value::Bool(constant(value)),
        EvalResult::Long(number) => Value::Long(number),
        EvalResult::String(text) => Value::Text(text),
        EvalResult::Set(set) => Value::Set(set.iter().cloned().map(from_cedar).collect()),
        EvalResult::Record(record) => Value::Record(
            record.iter().map(|(name, value)| (name.clone(), from_cedar(value.clone()))).collect(),
        ),
        EvalResult::ExtensionValue(text) => text
            .strip_prefix("ip(\"")
            .and_then(|rest| rest.strip_suffix("\")"))
            .and_then(parse_range)
            .map_or(Value::Other(EvalResult::ExtensionValue(text.clone())), Value::Range),
        other => Value::Other(other),
    }
}
