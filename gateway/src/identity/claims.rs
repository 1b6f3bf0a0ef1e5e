//! From verified claims to an [`Identity`]: pure, no network.

use super::config::ClaimNames;
use sallyport_evidence::record::Identity;
use serde_json::Value;

/// More groups than this, or longer names, are a fault of the provider, not a person's groups: they go into every
/// record and certificate entry.
const MAX_GROUPS: usize = 512;
const MAX_NAME: usize = 256;

/// The claims do not make an identity. `Display` is for the person and whoever runs the provider.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ClaimsError {
    /// The claim that names the person is missing.
    #[error(
        "the provider did not say who you are: the claim `{claim}` is missing. Whoever runs the gateway can change `openid.user_claim` or the scopes"
    )]
    NoUser {
        /// Its name.
        claim: String,
    },
    /// The address is not verified.
    #[error("your e-mail address `{address}` is not verified at the provider; verify it there and try again")]
    Unverified {
        /// The address.
        address: String,
    },
    /// A claim has a shape that means nothing here.
    #[error("the provider's claim `{claim}` is not {expected}")]
    Shape {
        /// Its name.
        claim: String,
        /// What was expected.
        expected: &'static str,
    },
}

/// Makes the identity from the ID token's claims and, where those lack one, the userinfo endpoint's.
///
/// # Errors
/// A claim that is needed is missing, unverified or misshapen.
pub fn identity(
    names: &ClaimNames,
    issuer: &str,
    method: &str,
    token: &Value,
    userinfo: Option<&Value>,
) -> Result<Identity, ClaimsError> {
    let find = |path: &str| lookup(token, path).or_else(|| lookup(userinfo?, path));
    let user = text(&names.user, find(&names.user))?
        .ok_or_else(|| ClaimsError::NoUser { claim: names.user.clone() })?;
    if names.user == "email" && find("email_verified").is_some_and(is_false) {
        return Err(ClaimsError::Unverified { address: user });
    }
    let kind = match &names.kind {
        None => None,
        Some(claim) => text(claim, find(claim))?,
    };
    let kind = match kind.as_deref() {
        None => "human",
        Some(kind @ ("human" | "ci" | "agent")) => kind,
        Some(_) => {
            return Err(ClaimsError::Shape {
                claim: names.kind.clone().unwrap_or_default(),
                expected: "`human`, `ci` or `agent`",
            });
        }
    };
    let on_behalf_of = match &names.on_behalf_of {
        None => None,
        Some(claim) => text(claim, find(claim))?,
    };
    let name = text("name", find("name"))?.filter(|name| *name != user).unwrap_or_default();
    Ok(Identity {
        name,
        groups: groups(&names.groups, find(&names.groups))?,
        kind: kind.to_owned(),
        issuer: issuer.to_owned(),
        subject: text("sub", find("sub"))?.unwrap_or_default(),
        on_behalf_of: on_behalf_of.unwrap_or_default(),
        method: method.to_owned(),
        user,
    })
}

/// Whether the userinfo endpoint is worth asking: something needed is not in the token.
pub(crate) fn needs_userinfo(names: &ClaimNames, token: &Value) -> bool {
    let mut needed = vec![&names.user, &names.groups];
    needed.extend(&names.kind);
    needed.iter().any(|claim| lookup(token, claim).is_none())
}

/// A claim by its whole name, or by a path of names joined by dots. The whole name first: URLs are claim
/// names too (`https://example.org/groups`).
fn lookup<'a>(claims: &'a Value, path: &str) -> Option<&'a Value> {
    let whole = claims.get(path);
    let value = whole.or_else(|| path.split('.').try_fold(claims, |value, name| value.get(name)))?;
    (!value.is_null()).then_some(value)
}

fn text(claim: &str, value: Option<&Value>) -> Result<Option<String>, ClaimsError> {
    match value {
        None => Ok(None),
        Some(Value::String(text)) if is_printable(text) => Ok(Some(text.clone())),
        Some(_) => Err(ClaimsError::Shape {
            claim: claim.to_owned(),
            expected: "a short text without control characters",
        }),
    }
}

/// Groups as a list or as one string; a missing claim is no groups, so that policy refuses rather than sign-in.
fn groups(claim: &str, value: Option<&Value>) -> Result<Vec<String>, ClaimsError> {
    let misshapen = || ClaimsError::Shape { claim: claim.to_owned(), expected: "a list of group names" };
    let mut groups = match value {
        None => Vec::new(),
        Some(Value::String(group)) => vec![group.clone()],
        Some(Value::Array(items)) => items
            .iter()
            .map(|item| item.as_str().map(str::to_owned).ok_or_else(misshapen))
            .collect::<Result<_, _>>()?,
        Some(_) => return Err(misshapen()),
    };
    if groups.len() > MAX_GROUPS || groups.iter().any(|group| !is_printable(group)) {
        return Err(misshapen());
    }
    groups.sort();
    groups.dedup();
    Ok(groups)
}

/// Claims are shown in terminals and written to logs: no control characters, no empty or endless names.
fn is_printable(text: &str) -> bool {
    !text.is_empty() && text.len() <= MAX_NAME && !text.chars().any(char::is_control)
}

fn is_false(value: &Value) -> bool {
    // Some providers send booleans as strings.
    value == &Value::Bool(false) || value.as_str() == Some("false")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn names(user: &str, groups: &str) -> ClaimNames {
        ClaimNames {
            user: user.into(),
            groups: groups.into(),
            kind: Some("kind".into()),
            on_behalf_of: Some("act.sub".into()),
        }
    }

    fn make(token: Value, userinfo: Option<Value>) -> Result<Identity, ClaimsError> {
        identity(&names("email", "realm_access.roles"), "https://id", "device", &token, userinfo.as_ref())
    }

    #[test]
    fn groups_come_from_a_nested_claim_or_userinfo() {
        let token = json!({"sub": "1", "email": "a@b", "realm_access": {"roles": ["ops", "dev", "ops"]}});
        let made = make(token, None).expect("good");
        assert_eq!((made.user.as_str(), made.kind.as_str()), ("a@b", "human"));
        assert_eq!(made.groups, ["dev", "ops"]);
        let made = make(json!({"sub": "1", "email": "a@b"}), Some(json!({"realm_access": {"roles": "ops"}})));
        assert_eq!(made.expect("good").groups, ["ops"]);
        assert!(make(json!({"sub": "1", "email": "a@b"}), None).expect("good").groups.is_empty());
    }

    #[test]
    fn claim_names_may_be_urls() {
        let token = json!({"sub": "1", "https://x.org/groups": ["g"]});
        let made = identity(&names("sub", "https://x.org/groups"), "i", "device", &token, None);
        assert_eq!(made.expect("good").groups, ["g"]);
    }

    #[test]
    fn agents_act_for_somebody() {
        let made = make(json!({"sub": "1", "email": "a@b", "kind": "agent", "act": {"sub": "bob"}}), None);
        let made = made.expect("good");
        assert_eq!((made.kind.as_str(), made.on_behalf_of.as_str()), ("agent", "bob"));
    }

    #[test]
    fn what_is_wrong_is_refused() {
        for token in [
            json!({"sub": "1"}),
            json!({"sub": "1", "email": "a@b", "email_verified": false}),
            json!({"sub": "1", "email": "a@b", "email_verified": "false"}),
            json!({"sub": "1", "email": "a\u{1b}[2Jb"}),
            json!({"sub": "1", "email": ["a@b"]}),
            json!({"sub": "1", "email": ""}),
            json!({"sub": "1", "email": "a@b", "kind": "root"}),
            json!({"sub": "1", "email": "a@b", "realm_access": {"roles": [1]}}),
            json!({"sub": "1", "email": "a@b", "realm_access": {"roles": {"ops": true}}}),
        ] {
            assert!(make(token.clone(), None).is_err(), "{token}");
        }
    }

    #[test]
    fn userinfo_is_asked_only_when_needed() {
        let names =
            ClaimNames { user: "email".into(), groups: "groups".into(), kind: None, on_behalf_of: None };
        assert!(needs_userinfo(&names, &json!({"email": "a@b"})));
        assert!(!needs_userinfo(&names, &json!({"email": "a@b", "groups": []})));
    }
}
