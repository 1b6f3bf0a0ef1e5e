//! A rule: a Cedar policy and what its annotations say.

use std::cmp::Reverse;
use std::time::Duration;

use cedar_policy::pst;

use crate::diagnostic::{Faults, nearest};
use crate::question::{OnViolation, RuleInfo};
use crate::residual::Action;
use crate::source::Chunk;

/// The id that stands for "no rule permits it".
pub(crate) const DEFAULT_RULE: &str = "default-deny";
/// Annotations that mean something.
pub(crate) const KNOWN: [&str; 8] =
    ["id", "reason", "contact", "on_violation", "mode", "record", "session_limit", "wide"];
/// Attributes that only the kernel knows, but for the path.
const NOT_PATH: [&str; 11] = [
    "name",
    "args",
    "command_line",
    "fileless",
    "setuid",
    "caller",
    "operation",
    "outside",
    "address",
    "port",
    "protocol",
];
/// Longest text shown to people, in characters.
pub(crate) const MAX_TEXT: usize = 200;
/// Longest `@id`, in bytes.
pub(crate) const MAX_ID: usize = 64;

/// A rule of the bundle.
#[derive(Clone, Debug)]
pub(crate) struct Rule {
    pub(crate) info: RuleInfo,
    /// Where it begins in its file, in bytes.
    pub(crate) offset: usize,
    pub(crate) forbids: bool,
    /// `@mode("monitor")`.
    pub(crate) monitored: bool,
    /// `@record("none")`.
    pub(crate) quiet: bool,
    /// Of what only the kernel knows its condition looks at nothing but the path.
    by_path: bool,
    /// `@wide("…")`: that so much is permitted is meant.
    pub(crate) wide: bool,
    pub(crate) session_limit: Option<Duration>,
    pub(crate) body: pst::Template,
}

impl Rule {
    /// Of several rules of one effect that hold, the one with the least precedence is named, and its effect counts.
    ///
    /// Of forbids the strongest `@on_violation`; of permits one that is recorded before one that is not. Then those that
    /// look at the path alone: what a whole folder is treated like need not be told apart further, which
    /// keeps tables small. Then the first id.
    pub(crate) fn precedence(&self) -> (Reverse<OnViolation>, bool, bool, &str) {
        let violation = if self.forbids { self.info.on_violation } else { OnViolation::Block };
        (Reverse(violation), self.quiet, !self.by_path, &self.info.id)
    }

    /// Whether the rule's scope admits something that happens inside of a session.
    fn in_session(body: &pst::Template) -> bool {
        Action::all().any(|action| speaks_of(&body.action, action.name()))
    }

    /// Whether the rule's scope admits this action.
    pub(crate) fn speaks_of(&self, action: &str) -> bool {
        speaks_of(&self.body.action, action)
    }
}

fn speaks_of(constraint: &pst::ActionConstraint, action: &str) -> bool {
    match constraint {
        pst::ActionConstraint::Any => true,
        pst::ActionConstraint::Eq(uid) => uid.eid == action,
        pst::ActionConstraint::In(uids) => uids.iter().any(|uid| uid.eid == action),
    }
}

/// Makes a rule of a parsed policy, reporting everything wrong with its annotations.
pub(crate) fn rule(
    faults: &mut Faults,
    source: (&str, &str),
    chunk: &Chunk<'_>,
    body: pst::Template,
    default_contact: &str,
) -> Rule {
    let reader = Reader { source, chunk, body: &body };
    let forbids = body.effect == pst::Effect::Forbid;
    for name in body.annotations.keys() {
        if !KNOWN.contains(&name.as_str()) {
            let help = nearest(name, &KNOWN).map_or_else(
                || format!("the annotations are @{}", KNOWN.join(", @")),
                |known| format!("did you mean `@{known}`?"),
            );
            reader.name(faults, name, format!("unknown annotation `@{name}`"), help);
        }
    }
    let id = reader.id(faults);
    let reason = reader.text(faults, "reason");
    if forbids && reason.is_none() {
        reader.whole(
            faults,
            "a forbid needs a `@reason`",
            "add `@reason(\"…\")`: the person who is stopped reads it",
        );
    }
    let contact = reader.text(faults, "contact");
    let on_violation = reader.on_violation(faults, forbids);
    let monitored = reader.monitored(faults, forbids);
    let quiet = reader.quiet(faults, forbids);
    let session_limit = reader.session_limit(faults, forbids);
    let wide = reader.text(faults, "wide").is_some();
    if wide && forbids {
        reader.name(
            faults,
            "wide",
            "a forbid may be as wide as it likes".into(),
            "`@wide` says of a permit that it is meant to permit so much; remove it here".into(),
        );
    }
    let by_path = body.clauses().iter().all(|clause| {
        let (pst::Clause::When(expr) | pst::Clause::Unless(expr)) = clause;
        !crate::expr::reads(expr, &NOT_PATH)
    });
    Rule {
        info: RuleInfo {
            id: id.unwrap_or_default(),
            reason: reason.unwrap_or_default(),
            contact: contact.unwrap_or_else(|| default_contact.to_owned()),
            on_violation,
            file: source.0.to_owned(),
            line: crate::diagnostic::line_of(source.1, chunk.offset),
        },
        offset: chunk.offset,
        forbids,
        monitored,
        quiet,
        by_path,
        wide,
        session_limit,
        body,
    }
}

struct Reader<'a> {
    source: (&'a str, &'a str),
    chunk: &'a Chunk<'a>,
    body: &'a pst::Template,
}

impl Reader<'_> {
    fn value(&self, name: &str) -> Option<&str> {
        self.body.annotations.get(name).map(|value| value.as_str())
    }

    fn id(&self, faults: &mut Faults) -> Option<String> {
        let Some(id) = self.value("id") else {
            self.whole(
                faults,
                "the rule has no `@id`",
                "add `@id(\"…\")`, unique in the bundle: records and messages name the rule by it",
            );
            return None;
        };
        let form = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
        if id.is_empty() || id.len() > MAX_ID || !id.bytes().all(form) {
            self.wrong(
                faults,
                "id",
                format!("`{}` cannot be an id", id.escape_debug()),
                format!("use 1 to {MAX_ID} letters, digits, `-`, `_` or `.`"),
            );
            return None;
        }
        if id == DEFAULT_RULE {
            self.wrong(
                faults,
                "id",
                format!("the id `{DEFAULT_RULE}` is reserved"),
                "it stands in records for actions that no rule permits; choose another".into(),
            );
            return None;
        }
        Some(id.to_owned())
    }

    /// A text that is shown in terminals.
    fn text(&self, faults: &mut Faults, name: &str) -> Option<String> {
        let text = self.value(name)?;
        if text.trim().is_empty() || text.chars().count() > MAX_TEXT || text.chars().any(char::is_control) {
            self.wrong(
                faults,
                name,
                format!("`@{name}` cannot be shown to people as it is"),
                format!("use one line of 1 to {MAX_TEXT} characters without control characters"),
            );
        }
        Some(text.to_owned())
    }

    fn on_violation(&self, faults: &mut Faults, forbids: bool) -> OnViolation {
        let Some(value) = self.value("on_violation") else { return OnViolation::Block };
        let all = [OnViolation::Block, OnViolation::Kill, OnViolation::EndSession];
        let found = all.into_iter().find(|one| one.name() == value);
        if found.is_none() {
            self.unknown_value(faults, "on_violation", value, &all.map(OnViolation::name));
        }
        if !forbids {
            self.name(
                faults,
                "on_violation",
                "a permit cannot be violated".into(),
                "move `@on_violation` to the forbid that should have this effect".into(),
            );
        } else if !Rule::in_session(self.body) {
            self.name(
                faults,
                "on_violation",
                "`@on_violation` has no effect on this action".into(),
                "only what happens inside a session, `exec` and the like, can be killed or end it".into(),
            );
        }
        found.unwrap_or_default()
    }

    fn quiet(&self, faults: &mut Faults, forbids: bool) -> bool {
        let Some(value) = self.value("record") else { return false };
        if !["all", "none"].contains(&value) {
            self.unknown_value(faults, "record", value, &["all", "none"]);
        } else if forbids {
            self.name(
                faults,
                "record",
                "what a forbid denies is always recorded".into(),
                "`@record` belongs on a permit; to try a forbid out, use `@mode(\"monitor\")`".into(),
            );
        } else if !Rule::in_session(self.body) {
            self.name(
                faults,
                "record",
                "`@record` has no effect on this action".into(),
                "only what happens inside a session, `read_file` and the like, can go unrecorded".into(),
            );
        }
        value == "none"
    }

    fn monitored(&self, faults: &mut Faults, forbids: bool) -> bool {
        let Some(value) = self.value("mode") else { return false };
        if !["enforce", "monitor"].contains(&value) {
            self.unknown_value(faults, "mode", value, &["enforce", "monitor"]);
        } else if value == "monitor" && !forbids {
            self.name(
                faults,
                "mode",
                "a permit cannot be monitored".into(),
                "monitoring shows what a forbid would deny; without the permit the action is denied anyway"
                    .into(),
            );
        }
        value == "monitor"
    }

    fn session_limit(&self, faults: &mut Faults, forbids: bool) -> Option<Duration> {
        let value = self.value("session_limit")?;
        let limit = duration(value);
        if limit.is_none() {
            self.wrong(
                faults,
                "session_limit",
                format!("`{}` is not a length of time", value.escape_debug()),
                "write it like \"8h\", \"90m\" or \"1h30m\"; at most 30d".into(),
            );
        }
        if forbids || !speaks_of(&self.body.action, "open_session") {
            self.name(
                faults,
                "session_limit",
                "`@session_limit` has no effect here".into(),
                "it belongs on a permit of `open_session`".into(),
            );
        }
        limit
    }

    fn unknown_value(&self, faults: &mut Faults, name: &str, value: &str, known: &[&str]) {
        let help = nearest(value, known).map_or_else(
            || format!("it is one of \"{}\"", known.join("\", \"")),
            |one| format!("did you mean \"{one}\"?"),
        );
        let message = format!("unknown value `{}` of `@{name}`", value.escape_debug());
        self.wrong(faults, name, message, help);
    }

    /// Points at an annotation's name.
    fn name(&self, faults: &mut Faults, name: &str, message: String, help: String) {
        let place = self
            .chunk
            .annotations
            .iter()
            .find(|annotation| annotation.name == name)
            .map_or((self.chunk.offset, 1), |annotation| (annotation.offset, annotation.length));
        faults.at(self.source, place, message, Some(help));
    }

    /// Points at an annotation's value.
    fn wrong(&self, faults: &mut Faults, name: &str, message: String, help: String) {
        let value = self.chunk.annotations.iter().find(|a| a.name == name).and_then(|a| a.value);
        match value {
            Some(place) => faults.at(self.source, place, message, Some(help)),
            None => self.name(faults, name, message, help),
        }
    }

    /// Points at the rule's beginning.
    fn whole(&self, faults: &mut Faults, message: &str, help: &str) {
        let first_line = self.chunk.text.lines().next().map_or(1, str::len);
        faults.at(self.source, (self.chunk.offset, first_line), message, Some(help.into()));
    }
}

/// Parses `8h`, `1h30m` and the like: days, hours, minutes, seconds, in this order; up to 30 days.
fn duration(text: &str) -> Option<Duration> {
    let mut units = [('d', 86_400u64), ('h', 3_600), ('m', 60), ('s', 1)].into_iter();
    let mut seconds = 0u64;
    let mut rest = text;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit())?;
        let number: u64 = rest[..digits].parse().ok()?;
        let unit = rest[digits..].chars().next()?;
        let (_, factor) = units.find(|(name, _)| *name == unit)?;
        seconds = seconds.checked_add(number.checked_mul(factor)?)?;
        rest = &rest[digits + 1..];
    }
    (seconds > 0 && seconds <= 30 * 86_400).then(|| Duration::from_secs(seconds))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_of_time() {
        for (text, seconds) in [("8h", 28_800), ("90m", 5_400), ("1h30m", 5_400), ("30d", 2_592_000)] {
            assert_eq!(duration(text), Some(Duration::from_secs(seconds)), "{text}");
        }
        for text in ["", "8", "h", "8x", "1m1h", "0h", "31d", "99999999999999999999h", "-1h", "8 h", "8é"] {
            assert_eq!(duration(text), None, "{text}");
        }
    }
}
