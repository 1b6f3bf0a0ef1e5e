//! `policy backtest`: yesterday's decisions, made again under a candidate bundle.

use std::collections::hash_map::DefaultHasher;
use std::collections::{BTreeMap, HashMap};
use std::hash::{Hash as _, Hasher as _};
use std::sync::Arc;

use sallyport_evidence::record::MAX_BYTES;
use sallyport_policy::{Compiler, Effect, KernelPolicy, Policy, Principal, Question, Verdict};
use serde::Serialize;
use serde_json::json;

use super::{evidence, source};
use crate::{
    args::Backtest,
    commands::events::parse_since,
    failure::Failure,
    gateway::Context,
    out::{Look, Out},
    recorded::{Recorded, Subject, lacking},
    text::safe,
};

/// Example records that are kept of each change.
const EXAMPLES: usize = 3;
/// The rule, where which one it would be depends on what is not on the record.
const ONE_OF_SEVERAL: &str = "(one of several)";

/// What would have been different.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
enum Change {
    NewlyBlocked,
    NewlyAllowed,
    NewlyNoticed,
    NoLongerNoticed,
}

impl Change {
    const ALL: [Self; 4] =
        [Self::NewlyBlocked, Self::NewlyAllowed, Self::NewlyNoticed, Self::NoLongerNoticed];

    fn name(self) -> &'static str {
        match self {
            Self::NewlyBlocked => "newly blocked",
            Self::NewlyAllowed => "newly allowed",
            Self::NewlyNoticed => "newly noticed by a monitored rule",
            Self::NoLongerNoticed => "no longer noticed by a monitored rule",
        }
    }

    /// Between an outcome on the record and a verdict.
    fn between(outcome: &str, rule: &str, verdict: Verdict) -> Option<Self> {
        let was_denied = matches!(outcome, "blocked" | "killed");
        // Without a rule: a session that is only watched, in which the policy denied by default.
        let watched = outcome == "observed" && rule.is_empty();
        match (was_denied || watched, verdict.allows()) {
            (true, true) => Some(Self::NewlyAllowed),
            (false, false) => Some(Self::NewlyBlocked),
            (true, false) => None,
            (false, true) => match (outcome == "observed", verdict == Verdict::Observed) {
                (false, true) => Some(Self::NewlyNoticed),
                (true, false) => Some(Self::NoLongerNoticed),
                _ => None,
            },
        }
    }
}

/// What is told together.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
struct Key {
    change: Change,
    user: String,
    host: String,
    action: String,
    rule_before: String,
    rule_after: String,
}

/// How often, and which records.
#[derive(Clone, Debug, Default, Serialize)]
struct Group {
    count: u64,
    /// Numbers of the first records.
    records: Vec<u64>,
    /// What the first of them is about.
    example: String,
}

impl Group {
    fn take(&mut self, index: u64, example: impl FnOnce() -> String) {
        self.count += 1;
        let first = self.records.first().is_none_or(|first| index < *first);
        if first {
            self.example = example();
        }
        let at = self.records.partition_point(|kept| *kept < index);
        if at < EXAMPLES {
            self.records.insert(at, index);
            self.records.truncate(EXAMPLES);
        }
    }

    fn join(&mut self, other: Self) {
        let first = |records: &[u64]| records.first().copied().unwrap_or(u64::MAX);
        if first(&other.records) < first(&self.records) {
            self.example = other.example;
        }
        self.count += other.count;
        self.records.extend(other.records);
        self.records.sort_unstable();
        self.records.truncate(EXAMPLES);
    }
}

/// What one thread has found.
#[derive(Default)]
struct Tally {
    records: u64,
    unreadable: u64,
    decisions: u64,
    changes: HashMap<Key, Group>,
    unsaid: BTreeMap<String, Group>,
    /// By a hash of person, host and local user.
    tables: HashMap<u64, Vec<Tables>>,
    args: String,
}

/// The tables of somebody somewhere.
struct Tables {
    principal: Principal,
    host: String,
    local_user: String,
    tables: Result<Arc<KernelPolicy>, String>,
}

impl Tally {
    fn take(&mut self, policy: &Policy, compiler: &Compiler<'_>, since: u64, index: u64, bytes: &[u8]) {
        let parsed = if bytes.len() > MAX_BYTES { None } else { Recorded::parse(bytes).ok() };
        let Some(record) = parsed else {
            self.unreadable += 1;
            return;
        };
        if record.time_ns < since {
            return;
        }
        self.records += 1;
        let Some(decision) = record.decision.as_ref().filter(|_| record.is_decided()) else { return };
        self.decisions += 1;
        let mut args = std::mem::take(&mut self.args);
        let judged = self.judge(policy, compiler, &record, &mut args);
        self.args = args;
        match judged {
            Err(why) => self.unsaid.entry(why).or_default().take(index, || what(&record)),
            Ok((verdict, rule)) => {
                let Some(change) = Change::between(&decision.outcome, &decision.rule, verdict) else {
                    return;
                };
                let rule_before = match &*decision.rule {
                    "" if decision.outcome != "allowed" => policy.default_rule().id.clone(),
                    rule => rule.to_owned(),
                };
                let key = Key {
                    change,
                    user: record.user().to_owned(),
                    host: record.host().to_owned(),
                    action: decision.action.to_string(),
                    rule_before,
                    rule_after: rule,
                };
                self.changes.entry(key).or_default().take(index, || what(&record));
            }
        }
    }

    /// What the policy says of the same; or why that cannot be said.
    fn judge(
        &mut self,
        policy: &Policy,
        compiler: &Compiler<'_>,
        record: &Recorded<'_>,
        args: &mut String,
    ) -> Result<(Verdict, String), String> {
        let question = match record.subject(args)? {
            Subject::Act(act) => {
                let tables = self.tables(compiler, record)?;
                let found = tables.foresee(&act).map_err(|unsaid| unsaid.name().to_owned())?;
                let rule = found.rule.map_or_else(|| ONE_OF_SEVERAL.to_owned(), |rule| rule.id.clone());
                return Ok((found.verdict, rule));
            }
            Subject::Session(client_address) => Question::OpenSession {
                principal: record.principal().ok_or(lacking::IDENTITY)?,
                host: record.host().to_owned(),
                local_user: record.local_user().to_owned(),
                client_address,
            },
            Subject::Gateway(action) => Question::Gateway {
                principal: record.principal().ok_or(lacking::IDENTITY)?,
                action,
                change: sallyport_policy::Change::default(),
            },
        };
        let effect = Effect::of(&policy.decide(&question));
        Ok((effect.verdict, effect.rule))
    }

    fn tables(&mut self, compiler: &Compiler<'_>, record: &Recorded<'_>) -> Result<&KernelPolicy, String> {
        let (user, host, local_user) = (record.user(), record.host(), record.local_user());
        let mut hasher = DefaultHasher::new();
        (user, host, local_user).hash(&mut hasher);
        let made = self.tables.entry(hasher.finish()).or_default();
        let known = made
            .iter()
            .position(|one| one.host == host && one.local_user == local_user && record.is_of(&one.principal));
        let at = match known {
            Some(at) => at,
            None => {
                let principal = record.principal().ok_or(lacking::IDENTITY)?;
                let tables = compiler.tables(&principal, host, local_user).map_err(|err| err.to_string());
                let (host, local_user) = (host.to_owned(), local_user.to_owned());
                made.push(Tables { principal, host, local_user, tables });
                made.len() - 1
            }
        };
        made[at].tables.as_deref().map_err(Clone::clone)
    }

    fn join(&mut self, other: Self) {
        self.records += other.records;
        self.unreadable += other.unreadable;
        self.decisions += other.decisions;
        for (key, group) in other.changes {
            self.changes.entry(key).or_default().join(group);
        }
        for (why, group) in other.unsaid {
            self.unsaid.entry(why).or_default().join(group);
        }
    }
}

/// What a record is about, in words.
fn what(record: &Recorded<'_>) -> String {
    let action = record.decision.as_ref().map_or("", |decision| &decision.action);
    let object = record.object();
    let text = if object.is_empty() { action.to_owned() } else { format!("{action} {object}") };
    text.chars().take(300).collect()
}

pub(super) async fn backtest(context: &Context, args: Backtest) -> Result<(), Failure> {
    let policy = source::named(context, &args.policy).await?;
    let since = parse_since(&args.evidence.since)?;
    let compiler = Compiler::new(&policy);
    let begun = std::time::Instant::now();
    let tallies = evidence::each(context, &args.evidence, Tally::default, |tally, index, record| {
        tally.take(&policy, &compiler, since, index, record);
    })?;
    let mut whole = Tally::default();
    for tally in tallies {
        whole.join(tally);
    }
    let seconds = begun.elapsed().as_secs_f64();
    let mut changes: Vec<(Key, Group)> = whole.changes.drain().collect();
    changes.sort_by(|(a, x), (b, y)| (a.change, y.count, a).cmp(&(b.change, x.count, b)));
    if context.out.json {
        let lines: Vec<serde_json::Value> = changes.iter().map(document).collect();
        let unsaid: Vec<serde_json::Value> = whole
            .unsaid
            .iter()
            .map(|(why, group)| json!({ "why": why, "count": group.count, "records": group.records }))
            .collect();
        context.out.json(&json!({
            "version": policy.version(),
            "records": whole.records,
            "decisions": whole.decisions,
            "unreadable": whole.unreadable,
            "changes": lines,
            "cannot_be_said": unsaid,
            "tables": compiler.different(),
            "seconds": seconds,
        }))?;
    } else {
        print(context.out, &whole, &changes, args.lines, seconds)?;
    }
    let matters =
        changes.iter().any(|(key, _)| matches!(key.change, Change::NewlyBlocked | Change::NewlyAllowed));
    if args.exit_code && matters { Err(Failure::said()) } else { Ok(()) }
}

fn document((key, group): &(Key, Group)) -> serde_json::Value {
    json!({
        "change": key.change,
        "user": key.user,
        "host": key.host,
        "action": key.action,
        "rule_before": key.rule_before,
        "rule_after": key.rule_after,
        "count": group.count,
        "records": group.records,
        "example": group.example,
    })
}

fn print(
    out: Out,
    whole: &Tally,
    changes: &[(Key, Group)],
    most: usize,
    seconds: f64,
) -> Result<(), Failure> {
    for change in Change::ALL {
        let these: Vec<_> = changes.iter().filter(|(key, _)| key.change == change).collect();
        let count: u64 = these.iter().map(|(_, group)| group.count).sum();
        let look = match change {
            _ if count == 0 => Look::Dim,
            Change::NewlyBlocked => Look::Red,
            Change::NewlyAllowed => Look::Green,
            _ => Look::Yellow,
        };
        out.line(out.look(look, &format!("{}: {count}", change.name())))?;
        for (key, group) in these.iter().take(most) {
            let records: Vec<String> = group.records.iter().map(|index| format!("#{index}")).collect();
            let before = match &*key.rule_before {
                "" => String::new(),
                rule => format!("\"{}\" → ", safe(rule, 100)),
            };
            let place =
                if key.host.is_empty() { String::new() } else { format!(" on {}", safe(&key.host, 100)) };
            out.line(format!(
                "  {:>7} × {}{place}: {before}\"{}\"  {}  {}",
                group.count,
                safe(&key.user, 100),
                safe(&key.rule_after, 100),
                safe(&group.example, 200),
                out.look(Look::Dim, &records.join(" ")),
            ))?;
        }
        if these.len() > most {
            out.line(format!("  … and {} lines more (--lines, --json)", these.len() - most))?;
        }
    }
    let unsaid: u64 = whole.unsaid.values().map(|group| group.count).sum();
    if unsaid > 0 {
        out.line(out.look(Look::Yellow, &format!("cannot be said: {unsaid}")))?;
        for (why, group) in &whole.unsaid {
            let records: Vec<String> = group.records.iter().map(|index| format!("#{index}")).collect();
            out.line(format!("  {:>7} × {}  {}", group.count, safe(why, 300), records.join(" ")))?;
        }
    }
    if whole.unreadable > 0 {
        out.line(out.look(
            Look::Yellow,
            &format!("{} records were made by another version and not understood", whole.unreadable),
        ))?;
    }
    out.line(format!(
        "{} decisions on {} records made again in {seconds:.1} s. What was permitted without being recorded is not among them.",
        whole.decisions, whole.records
    ))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outcomes_against_verdicts() {
        for (outcome, rule, verdict, change) in [
            ("allowed", "", Verdict::Allowed, None),
            ("allowed", "", Verdict::Unrecorded, None),
            ("allowed", "", Verdict::Killed, Some(Change::NewlyBlocked)),
            ("allowed", "", Verdict::Observed, Some(Change::NewlyNoticed)),
            ("observed", "r", Verdict::Denied, Some(Change::NewlyBlocked)),
            ("observed", "r", Verdict::Allowed, Some(Change::NoLongerNoticed)),
            ("observed", "", Verdict::Denied, None),
            ("observed", "", Verdict::Allowed, Some(Change::NewlyAllowed)),
            ("killed", "r", Verdict::Denied, None),
            ("blocked", "", Verdict::Allowed, Some(Change::NewlyAllowed)),
        ] {
            assert_eq!(Change::between(outcome, rule, verdict), change, "{outcome} {rule} {verdict:?}");
        }
    }
}
