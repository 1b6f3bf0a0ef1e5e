//! Loading: parse and check a whole bundle, and report everything that is wrong with it at once.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, LazyLock};

use cedar_policy::{PolicyId, PolicySet, Schema, ValidationMode, Validator};
use miette::Diagnostic as _;

use crate::bundle::{Bundle, MANIFEST, Manifest};
use crate::diagnostic::{Diagnostics, Faults};
use crate::entities::{self, Known};
use crate::formula::Atoms;
use crate::question::{OnViolation, RuleInfo};
use crate::residual::{self, Action};
use crate::rule::{self, DEFAULT_RULE, Rule};
use crate::source::{self, Chunk};

/// Whom to ask when neither rule nor bundle says so.
const DEFAULT_CONTACT: &str = "your security team";
/// Most rules of a bundle: a compiled decision has 16 bits for the rule.
pub(crate) const MAX_RULES: usize = 65_534;

/// Bound of [`source::nesting`] for one policy: what a thread's usual stack of 2 MiB surely holds, unoptimised.
pub(crate) const MAX_NESTING: usize = 500;

/// What to do about a bundle that lacks what it includes.
const LACKS: &str = "a folder `include` in the bundle, as `policy show --extract` writes it, must hold everything that is \
    included, each in a folder of its name; delete it, and what is included is looked up again";

/// The schema's text, for people and editors.
pub const SCHEMA: &str = include_str!("schema.cedarschema");

/// The schema, parsed once.
static PARSED: LazyLock<Result<Schema, String>> = LazyLock::new(|| {
    Schema::from_cedarschema_str(SCHEMA).map(|(schema, _)| schema).map_err(|error| entities::chain(&error))
});

/// A checked policy. Cheap to clone and to share.
#[derive(Clone, Debug)]
pub struct Policy {
    pub(crate) inner: Arc<Inner>,
}

#[derive(Clone, Debug)]
pub(crate) struct Inner {
    pub(crate) version: String,
    pub(crate) name: String,
    /// All rules, by id.
    pub(crate) rules: BTreeMap<String, Rule>,
    /// Without the monitored ones.
    pub(crate) enforced: PolicySet,
    pub(crate) monitored: PolicySet,
    pub(crate) known: Known,
    pub(crate) default_rule: RuleInfo,
}

impl Policy {
    /// Parses and checks a bundle. The error holds all faults of all its files.
    pub fn load(bundle: &Bundle) -> Result<Self, Diagnostics> {
        let mut faults = Faults::default();
        let schema = match &*PARSED {
            Ok(schema) => schema,
            Err(error) => {
                faults.file("schema.cedarschema", error.clone(), None);
                return Err(faults.result(()).err().unwrap_or(Diagnostics { faults: vec![] }));
            }
        };
        let mut contacts = BTreeMap::new();
        let mut manifests = Vec::new();
        let mut name = String::new();
        for part in bundle.parts() {
            let file = format!("{part}{MANIFEST}");
            let Some(content) = bundle.file(&file) else {
                faults.file(&file, "the bundle has no manifest", None);
                continue;
            };
            match Manifest::parse(&file, content) {
                Ok(manifest) => {
                    if part.is_empty() {
                        name.clone_from(&manifest.name);
                    }
                    contacts.insert(part, manifest.contact.clone());
                    manifests.push((file, manifest));
                }
                Err(found) => faults.join(found),
            }
        }
        for (file, include) in Bundle::lacks(&manifests) {
            let text =
                bundle.file(&file).and_then(|bytes| std::str::from_utf8(bytes).ok()).unwrap_or_default();
            let written = format!("{include:?}");
            let offset = text.find(&written).or_else(|| text.find("include")).unwrap_or(0);
            let message =
                format!("it includes `{}`, and the bundle does not hold that", include.escape_debug());
            faults.at((&file, text), (offset, written.len()), message, Some(LACKS.into()));
        }
        let root_contact = contacts.get("").cloned().flatten();
        let root_contact = root_contact.unwrap_or_else(|| DEFAULT_CONTACT.to_owned());
        let known = entities::read(&mut faults, bundle, schema);
        let mut loader = Loader { faults, known: &known, chunks: BTreeMap::new(), rules: BTreeMap::new() };
        let mut all = PolicySet::new();
        for part in bundle.parts() {
            let contact = contacts.get(&part).cloned().flatten();
            let contact = contact.unwrap_or_else(|| root_contact.clone());
            for (file, content) in &bundle.files {
                let own = if part.is_empty() {
                    !file.starts_with(crate::bundle::INCLUDE)
                } else {
                    file.starts_with(&part)
                };
                if own && file.ends_with(".cedar") {
                    match std::str::from_utf8(content) {
                        Ok(text) => loader.file(&mut all, file, text, &contact),
                        Err(_) => loader.faults.file(file, "the file is not UTF-8", None),
                    }
                }
            }
        }
        let invalid = loader.validate(&all, schema);
        loader.check_placement(&invalid);
        let Loader { mut faults, rules, .. } = loader;
        if rules.is_empty() && faults.is_empty() {
            faults.file(
                MANIFEST,
                "the bundle has no rules",
                Some("put policies into *.cedar files; without any, everything is denied".into()),
            );
        }
        if rules.len() > MAX_RULES {
            faults.file(MANIFEST, format!("there are more than {MAX_RULES} rules"), None);
        }
        let (mut enforced, mut monitored) = (PolicySet::new(), PolicySet::new());
        for policy in all.policies() {
            let watched = rules.get(&policy.id().to_string()).is_some_and(|rule| rule.monitored);
            let set = if watched { &mut monitored } else { &mut enforced };
            // Ids are unique in `all`, so adding cannot fail; if it did, a rule would be missing.
            if let Err(error) = set.add(policy.clone()) {
                faults.file(MANIFEST, entities::chain(&error), None);
            }
        }
        let default_rule = RuleInfo {
            id: DEFAULT_RULE.to_owned(),
            reason: "no rule permits it".to_owned(),
            contact: root_contact,
            on_violation: OnViolation::Block,
            file: MANIFEST.to_owned(),
            line: 1,
        };
        faults.result(())?;
        Ok(Self {
            inner: Arc::new(Inner {
                version: bundle.version(),
                name,
                rules,
                enforced,
                monitored,
                known,
                default_rule,
            }),
        })
    }

    /// The bundle's version: SHA-256 of its archive in hexadecimal.
    pub fn version(&self) -> &str {
        &self.inner.version
    }

    /// The bundle's name.
    pub fn name(&self) -> &str {
        &self.inner.name
    }

    /// All rules, by id.
    pub fn rules(&self) -> impl Iterator<Item = &RuleInfo> {
        self.inner.rules.values().map(|rule| &rule.info)
    }

    /// What stands for "no rule permits it": id `default-deny`.
    pub fn default_rule(&self) -> &RuleInfo {
        &self.inner.default_rule
    }

    /// Hosts that the bundle lists, sorted.
    pub fn hosts(&self) -> Vec<String> {
        self.inner.known.hosts.clone()
    }

    /// Those of them that belong to a host group, directly or through others. None: the bundle has no such group.
    pub fn hosts_in(&self, group: &str) -> Option<Vec<String>> {
        let known = &self.inner.known;
        let group = entities::uid("HostGroup", group);
        let belongs = |host: &&String| known.entities.is_ancestor_of(&group, &entities::uid("Host", host));
        known.uids.contains(&group).then(|| known.hosts.iter().filter(belongs).cloned().collect())
    }
}

/// A policy's place: its file, the file's text, and its own part of it.
struct Place<'a> {
    file: &'a str,
    text: &'a str,
    chunk: Chunk<'a>,
}

struct Loader<'a> {
    faults: Faults,
    known: &'a Known,
    /// By the id under which Cedar knows the policy.
    chunks: BTreeMap<String, Place<'a>>,
    rules: BTreeMap<String, Rule>,
}

impl<'a> Loader<'a> {
    fn file(&mut self, all: &mut PolicySet, file: &'a str, text: &'a str, contact: &str) {
        for chunk in source::cut(text) {
            if source::nesting(chunk.text) > MAX_NESTING {
                let message = "the condition is too long or nested too deeply";
                let help = "compare with a set, `[…].contains(…)`, instead of a long chain of `||`, or make several rules";
                self.faults.at((file, text), (chunk.offset, 1), message, Some(help.into()));
                continue;
            }
            // Until the annotations are read; also keeps rules without a proper id apart.
            let provisional = format!("{file}:{}", chunk.offset);
            let parsed = cedar_policy::Policy::parse(Some(PolicyId::new(&provisional)), chunk.text);
            let policy = match parsed {
                Ok(policy) => policy,
                Err(errors) => {
                    self.syntax(file, text, &chunk, &errors);
                    continue;
                }
            };
            let body = match policy.to_pst() {
                Ok(policy) => policy.body().clone(),
                Err(error) => {
                    let place = (chunk.offset, chunk.text.len());
                    self.faults.at((file, text), place, entities::chain(&error), None);
                    continue;
                }
            };
            self.unknown_entities(file, text, &chunk, &policy);
            let rule = rule::rule(&mut self.faults, (file, text), &chunk, body, contact);
            let mut id = rule.info.id.clone();
            if id.is_empty() {
                id = provisional;
            } else if let Some(first) = self.rules.get(&id) {
                let place = chunk
                    .annotations
                    .iter()
                    .find(|annotation| annotation.name == "id")
                    .and_then(|annotation| annotation.value)
                    .unwrap_or((chunk.offset, 1));
                let message = format!("the id `{id}` is already used");
                let help =
                    format!("{}:{} has it; every rule needs its own", first.info.file, first.info.line);
                self.faults.at((file, text), place, message, Some(help));
                id = provisional;
            }
            if let Err(error) = all.add(policy.new_id(PolicyId::new(&id))) {
                self.faults.at((file, text), (chunk.offset, 1), entities::chain(&error), None);
            }
            self.rules.insert(id.clone(), rule);
            self.chunks.insert(id, Place { file, text, chunk });
        }
    }

    fn syntax(&mut self, file: &str, text: &str, chunk: &Chunk<'_>, errors: &cedar_policy::ParseErrors) {
        for error in errors.iter() {
            let (offset, length) = span(error).unwrap_or((0, 1));
            let help = error.help().map(|help| help.to_string());
            self.faults.at((file, text), (chunk.offset + offset, length), entities::chain(error), help);
        }
    }

    fn unknown_entities(&mut self, file: &str, text: &str, chunk: &Chunk<'_>, policy: &cedar_policy::Policy) {
        let mut literals = policy.entity_literals();
        literals.sort();
        literals.dedup();
        for uid in literals {
            let kind = uid.type_name().to_string();
            if !["Group", "HostGroup", "Host"].contains(&kind.as_str()) || self.known.uids.contains(&uid) {
                continue;
            }
            let written = uid.to_string();
            let offset = chunk.text.find(&written).unwrap_or(0);
            let same_kind: Vec<&str> = self
                .known
                .uids
                .iter()
                .filter(|known| known.type_name() == uid.type_name())
                .map(|known| known.id().unescaped())
                .collect();
            let help = crate::diagnostic::nearest(uid.id().unescaped(), &same_kind).map_or_else(
                || format!("list it in {}, or correct the name", crate::bundle::ENTITIES),
                |near| format!("did you mean `{kind}::\"{near}\"`?"),
            );
            let place = (chunk.offset + offset, written.len());
            self.faults.at((file, text), place, format!("unknown entity `{written}`"), Some(help));
        }
    }

    /// Cedar's own strict validation. Its warnings (a rule that can never apply, confusable
    /// characters) are faults here: a policy that does not mean what it seems to is worse than none.
    /// Returns the ids of the policies concerned.
    fn validate(&mut self, all: &PolicySet, schema: &Schema) -> BTreeSet<String> {
        let mut invalid = BTreeSet::new();
        let result = Validator::new(schema.clone()).validate(all, ValidationMode::Strict);
        let errors = result.validation_errors().map(|error| {
            (error.policy_id(), entities::chain(error), span(error), error.help().map(|h| h.to_string()))
        });
        let warnings = result.validation_warnings().map(|warning| {
            (
                warning.policy_id(),
                entities::chain(warning),
                span(warning),
                warning.help().map(|h| h.to_string()),
            )
        });
        let all: Vec<_> = errors.chain(warnings).collect();
        // What follows from an unknown action says nothing more.
        let unknown: BTreeSet<String> = all
            .iter()
            .filter(|(_, message, ..)| message.contains("unrecognized action"))
            .map(|(id, ..)| id.to_string())
            .collect();
        for (id, message, span, help) in all {
            let id = id.to_string();
            if unknown.contains(&id) && !message.contains("unrecognized") {
                continue;
            }
            let message = message.replace(&format!("for policy `{id}`, "), "");
            let Some(place) = self.chunks.get(&id) else {
                self.faults.file(MANIFEST, message, help);
                continue;
            };
            let (offset, length) = span.unwrap_or((0, 1));
            let at = (place.chunk.offset + offset, length);
            self.faults.at((place.file, place.text), at, message, help);
            invalid.insert(id);
        }
        invalid
    }

    /// Conditions on what happens in sessions that the kernel's tables cannot hold.
    fn check_placement(&mut self, invalid: &BTreeSet<String>) {
        for (id, rule) in self.rules.iter().filter(|(id, _)| !invalid.contains(*id)) {
            let Some(place) = self.chunks.get(id) else { continue };
            for action in Action::all() {
                if !rule.speaks_of(action.name()) {
                    continue;
                }
                let checked = residual::condition(&rule.body, action, &mut Atoms::default(), None);
                if let Err(fault) = checked {
                    // Cedar's form has no places; the first attribute of the part is near enough.
                    let offset = fault
                        .part
                        .find("context.")
                        .and_then(|at| {
                            let rest = &fault.part[at..];
                            let word = |c: char| !(c.is_alphanumeric() || c == '_' || c == '.');
                            place.chunk.text.find(&rest[..rest.find(word).unwrap_or(rest.len())])
                        })
                        .unwrap_or(0);
                    let message = format!(
                        "rule `{}` cannot be enforced: nothing can judge `{}` for `{}`",
                        rule.info.id,
                        fault.part,
                        action.name(),
                    );
                    let at = (place.chunk.offset + offset, 1);
                    self.faults.at((place.file, place.text), at, message, Some(fault.why.into()));
                }
            }
        }
    }
}

/// Offset and length of the place that a Cedar error speaks of, in the policy's own text.
pub(crate) fn span(error: &dyn miette::Diagnostic) -> Option<(usize, usize)> {
    let label = error.labels()?.next()?;
    Some((label.offset(), label.len()))
}
