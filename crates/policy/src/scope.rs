//! Scopes of rules: whether a rule's first line admits a person and a host (or the gateway).

use cedar_policy::{Entities, EntityUid, pst};

/// Whether the scope admits this principal.
pub(crate) fn principal_fits(body: &pst::Template, person: &EntityUid, entities: &Entities) -> bool {
    match &body.principal {
        pst::PrincipalConstraint::Any => true,
        pst::PrincipalConstraint::Eq(pst::EntityOrSlot::Entity(one)) => named(one).as_ref() == Some(person),
        pst::PrincipalConstraint::In(pst::EntityOrSlot::Entity(group)) => within(person, group, entities),
        pst::PrincipalConstraint::Is(kind) => is(person, &kind.to_string()),
        pst::PrincipalConstraint::IsIn(kind, pst::EntityOrSlot::Entity(group)) => {
            is(person, &kind.to_string()) && within(person, group, entities)
        }
        _ => false,
    }
}

/// Whether the scope admits this resource.
pub(crate) fn resource_fits(body: &pst::Template, place: &EntityUid, entities: &Entities) -> bool {
    match &body.resource {
        pst::ResourceConstraint::Any => true,
        pst::ResourceConstraint::Eq(pst::EntityOrSlot::Entity(one)) => named(one).as_ref() == Some(place),
        pst::ResourceConstraint::In(pst::EntityOrSlot::Entity(group)) => within(place, group, entities),
        pst::ResourceConstraint::Is(kind) => is(place, &kind.to_string()),
        pst::ResourceConstraint::IsIn(kind, pst::EntityOrSlot::Entity(group)) => {
            is(place, &kind.to_string()) && within(place, group, entities)
        }
        _ => false,
    }
}

/// The entity that a rule names, as Cedar's other interfaces have it.
pub(crate) fn named(uid: &pst::EntityUID) -> Option<EntityUid> {
    let kind = uid.ty.to_string().parse().ok()?;
    Some(EntityUid::from_type_name_and_id(kind, cedar_policy::EntityId::new(&uid.eid)))
}

fn within(thing: &EntityUid, group: &pst::EntityUID, entities: &Entities) -> bool {
    named(group).is_some_and(|group| *thing == group || entities.is_ancestor_of(&group, thing))
}

fn is(thing: &EntityUid, kind: &str) -> bool {
    thing.type_name().to_string() == kind
}
