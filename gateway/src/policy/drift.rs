//! Drift: how what a host enforces differs from what it should.

use super::short;

/// The versions that a host enforces, or should.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Enforced {
    /// For everybody whom no canary covers; empty: none.
    pub(crate) version: String,
    /// The canary's; empty: none.
    pub(crate) canary: String,
}

/// In words; empty: no drift. `has`: none if its sensor has not said so since the gateway was started.
pub(crate) fn drift(wanted: &Enforced, has: Option<&Enforced>, connected: bool, error: &str) -> String {
    let Some(has) = has else {
        let text = if connected {
            "has not said what it enforces"
        } else {
            "has not connected since the gateway was started"
        };
        return text.to_owned();
    };
    let mut told = Vec::new();
    if has.version != wanted.version {
        let none = "no policy".to_owned();
        let name = |version: &str| if version.is_empty() { none.clone() } else { short(version).to_owned() };
        told.push(format!("enforces {} instead of {}", name(&has.version), name(&wanted.version)));
    }
    if has.canary != wanted.canary {
        told.push(match (has.canary.as_str(), wanted.canary.as_str()) {
            (has, "") => format!("still has the canary {}", short(has)),
            (_, wanted) => format!("does not have the canary {}", short(wanted)),
        });
    }
    if !error.is_empty() {
        told.push(error.to_owned());
    } else if !told.is_empty() && !connected {
        told.push("it is not connected, and takes it when it connects".to_owned());
    }
    told.join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn enforced(version: &str, canary: &str) -> Enforced {
        Enforced { version: version.to_owned(), canary: canary.to_owned() }
    }

    #[test]
    fn drift_is_told_and_agreement_is_not() {
        let (one, two) = ("1".repeat(64), "2".repeat(64));
        let wanted = enforced(&one, "");
        assert_eq!(drift(&wanted, Some(&enforced(&one, "")), true, ""), "");
        // Where it agrees, it does not matter whether the sensor is connected.
        assert_eq!(drift(&wanted, Some(&enforced(&one, "")), false, ""), "");
        let behind = drift(&wanted, Some(&enforced(&two, "")), true, "no room");
        assert_eq!(behind, "enforces 222222222222 instead of 111111111111; no room");
        let away = drift(&wanted, Some(&enforced("", "")), false, "");
        assert!(
            away.starts_with("enforces no policy instead of 111111111111; it is not connected"),
            "{away}"
        );
        let late = drift(&enforced(&one, &two), Some(&enforced(&one, "")), true, "");
        assert_eq!(late, "does not have the canary 222222222222");
        let kept = drift(&wanted, Some(&enforced(&one, &two)), true, "");
        assert_eq!(kept, "still has the canary 222222222222");
        assert_eq!(drift(&wanted, None, false, ""), "has not connected since the gateway was started");
    }
}
