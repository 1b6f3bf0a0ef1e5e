//! Groups, host groups and hosts: `entities.json`, and the entities of one question.

use std::collections::{BTreeSet, HashMap, HashSet};

use cedar_policy::{Entities, Entity, EntityId, EntityTypeName, EntityUid, RestrictedExpression, Schema};

use crate::bundle::{Bundle, ENTITIES};
use crate::diagnostic::Faults;
use crate::question::Principal;

/// Most entities in a bundle: every question copies them.
pub(crate) const MAX_ENTITIES: usize = 20_000;

/// What the bundle's `entities.json` files say, together.
#[derive(Clone, Debug)]
pub(crate) struct Known {
    pub(crate) entities: Entities,
    pub(crate) uids: BTreeSet<EntityUid>,
    pub(crate) hosts: Vec<String>,
}

/// Reads all `entities.json` of the bundle.
pub(crate) fn read(faults: &mut Faults, bundle: &Bundle, schema: &Schema) -> Known {
    let mut entities: Vec<Entity> = Vec::new();
    let mut uids = BTreeSet::new();
    let mut sources = Vec::new();
    for part in bundle.parts() {
        let file = format!("{part}{ENTITIES}");
        let Some(content) = bundle.file(&file) else { continue };
        let Ok(text) = std::str::from_utf8(content) else {
            faults.file(&file, "the file is not UTF-8", None);
            continue;
        };
        let values: Vec<serde_json::Value> = match serde_json::from_str(text) {
            Ok(values) => values,
            Err(error) => {
                let offset = offset_of(text, error.line(), error.column());
                let message = error.to_string();
                let message = message.split(" at line ").next().unwrap_or_default().to_owned();
                let help = "the file is a JSON list of entities: `[{\"uid\": {\"type\": \"Group\", \"id\": \"engineers\"}, \"attrs\": {}, \"parents\": []}]`";
                faults.at((&file, text), (offset, 1), message, Some(help.into()));
                continue;
            }
        };
        for value in values {
            let place = place_of(text, &value);
            if kind_of(&value) == Some("User") {
                let help = "the identity provider says who exists and in which groups they are; write rules for its groups";
                faults.at((&file, text), place, "people do not belong here", Some(help.into()));
                continue;
            }
            match Entity::from_json_value(value, Some(schema)) {
                Err(error) => faults.at((&file, text), place, chain(&error), None),
                Ok(entity) => {
                    let uid = entity.uid();
                    if uids.insert(uid.clone()) {
                        entities.push(entity);
                    } else {
                        let help = "list it once, with all its parents (included bundles count)";
                        let message = format!("`{uid}` is listed twice");
                        faults.at((&file, text), place, message, Some(help.into()));
                    }
                }
            }
        }
        sources.push((file, text));
    }
    if entities.len() > MAX_ENTITIES {
        faults.file(ENTITIES, format!("there are more than {MAX_ENTITIES} entities"), None);
        entities.clear();
    }
    for entity in &entities {
        for parent in parents(entity) {
            if !uids.contains(&parent) {
                let id = format!("\"{}\"", parent.id().unescaped());
                let found = sources.iter().find_map(|(file, text)| Some((file, text, text.find(&id)?)));
                let message = format!("`{}` has the unknown parent `{parent}`", entity.uid());
                let help = Some("list the parent as an entity too".to_owned());
                match found {
                    Some((file, text, at)) => faults.at((file, text), (at, id.len()), message, help),
                    None => faults.file(ENTITIES, message, help),
                }
            }
        }
    }
    let hosts = uids
        .iter()
        .filter(|uid| uid.type_name().to_string() == "Host")
        .map(|uid| uid.id().unescaped().to_owned())
        .collect();
    let entities = Entities::from_entities(entities, Some(schema)).unwrap_or_else(|error| {
        faults.file(ENTITIES, chain(&error), None);
        Entities::empty()
    });
    Known { entities, uids, hosts }
}

impl Known {
    /// The bundle's entities with the person and the host of a question.
    ///
    /// The person's groups are the token's; a host that the bundle does not list is in no group. None cannot
    /// happen with names as they are; if it did, there would be no answer but denial.
    pub(crate) fn with(&self, principal: &Principal, host: Option<&str>) -> Option<Entities> {
        let attributes = HashMap::from([
            ("kind".to_owned(), RestrictedExpression::new_string(principal.kind.clone())),
            ("issuer".to_owned(), RestrictedExpression::new_string(principal.issuer.clone())),
            ("on_behalf_of".to_owned(), RestrictedExpression::new_string(principal.on_behalf_of.clone())),
        ]);
        let groups: HashSet<EntityUid> = principal.groups.iter().map(|group| uid("Group", group)).collect();
        let name = uid("User", &principal.user);
        let person = Entity::new(name, attributes, groups).ok()?;
        let host = host
            .map(|host| uid("Host", host))
            .filter(|host| !self.uids.contains(host))
            .map(|host| Entity::new_no_attrs(host, HashSet::new()));
        let added: Vec<Entity> = std::iter::once(person).chain(host).collect();
        self.entities.clone().upsert_entities(added, None).ok()
    }
}

/// An entity id of one of the schema's types.
pub(crate) fn uid(kind: &str, id: &str) -> EntityUid {
    static TYPES: std::sync::LazyLock<HashMap<&'static str, EntityTypeName>> =
        std::sync::LazyLock::new(|| {
            ["Action", "Gateway", "Group", "Host", "HostGroup", "User"]
                .into_iter()
                .filter_map(|name| Some((name, name.parse().ok()?)))
                .collect()
        });
    EntityUid::from_type_name_and_id(TYPES[kind].clone(), EntityId::new(id))
}

fn parents(entity: &Entity) -> HashSet<EntityUid> {
    let (_, _, parents) = entity.clone().into_inner();
    parents
}

fn offset_of(text: &str, line: usize, column: usize) -> usize {
    let start: usize = text.split_inclusive('\n').take(line.saturating_sub(1)).map(str::len).sum();
    start + column.saturating_sub(1)
}

/// Type of a listed entity, in either of Cedar's two forms.
fn kind_of(value: &serde_json::Value) -> Option<&str> {
    let uid = value.get("uid")?;
    uid.get("type").or_else(|| uid.get("__entity")?.get("type"))?.as_str()
}

/// Where an entity stands in the text: where its id is first quoted.
fn place_of(text: &str, value: &serde_json::Value) -> (usize, usize) {
    let uid = value.get("uid").unwrap_or(value);
    let id = uid
        .get("id")
        .or_else(|| uid.get("__entity").and_then(|inner| inner.get("id")))
        .and_then(serde_json::Value::as_str);
    let Some(id) = id else { return (0, 1) };
    let quoted = serde_json::Value::from(id).to_string();
    // Prefer the place that defines it to those that name it as a parent.
    let defining = text.match_indices("\"uid\"").find_map(|(at, _)| {
        let window = text.get(at..)?.split('}').next()?;
        window.find(&quoted).map(|n| at + n)
    });
    let at = defining.or_else(|| text.find(&quoted)).unwrap_or(0);
    (at, quoted.len())
}

/// An error with its causes, in one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut out = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let text = cause.to_string();
        if !out.contains(&text) {
            out.push_str(": ");
            out.push_str(&text);
        }
        source = cause.source();
    }
    crate::diagnostic::printable(&out)
}
