//! The directions in which the workspace's packages may depend on each other, and which of them may know
//! of asynchronous IO and of the kernel. ARCHITECTURE.md says why.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result, bail};

use crate::run;

/// Package, and which of ours it may depend on (development dependencies aside).
const OURS: &[(&str, &[&str])] = &[
    ("sallyport-sensor-abi", &[]),
    ("sallyport-contract", &[]),
    ("sallyport-evidence", &[]),
    ("sallyport-policy", &["sallyport-sensor-abi"]),
    ("sallyport", &["sallyport-contract", "sallyport-policy", "sallyport-evidence"]),
    (
        "sallyport-sensor",
        &["sallyport-sensor-abi", "sallyport-contract", "sallyport-policy", "sallyport-evidence"],
    ),
    ("sallyport-gateway", &["sallyport-contract", "sallyport-policy", "sallyport-evidence"]),
    ("sallyport-e2e", &["sallyport-contract", "sallyport-evidence"]),
    ("sallyport-battery", &["sallyport-sensor", "sallyport-sensor-abi", "sallyport-policy"]),
    ("xtask", &[]),
];

/// Crates that only some of ours may name.
const THEIRS: &[(&str, &[&str])] = &[
    ("aya", &["sallyport-sensor", "sallyport-sensor-abi"]),
    ("russh", &["sallyport-gateway", "sallyport-e2e", "sallyport"]),
    ("tokio", &["sallyport-gateway", "sallyport-sensor", "sallyport-e2e", "sallyport"]),
    ("openidconnect", &["sallyport-gateway", "sallyport-e2e", "sallyport"]),
];

/// Holds the directions against what the manifests say.
pub(crate) fn check() -> Result<()> {
    let breaches = breaches(&manifests()?);
    if breaches.is_empty() {
        return Ok(());
    }
    bail!("{}", breaches.join("; "))
}

/// Package → what its manifest names under `[dependencies]`.
type Manifests = BTreeMap<String, BTreeSet<String>>;

fn manifests() -> Result<Manifests> {
    let text =
        run::output(run::cargo().args(["metadata", "--format-version", "1", "--no-deps", "--locked"]))?;
    let metadata: serde_json::Value = serde_json::from_str(&text).context("read cargo's metadata")?;
    let mut manifests = Manifests::new();
    for package in metadata["packages"].as_array().into_iter().flatten() {
        let dependencies = package["dependencies"].as_array().into_iter().flatten();
        let normal = dependencies.filter(|dependency| dependency["kind"].is_null());
        let names = normal.filter_map(|dependency| dependency["name"].as_str().map(str::to_owned));
        manifests.insert(package["name"].as_str().unwrap_or_default().to_owned(), names.collect());
    }
    Ok(manifests)
}

fn breaches(manifests: &Manifests) -> Vec<String> {
    let ours: BTreeMap<&str, &[&str]> = OURS.iter().copied().collect();
    let theirs: BTreeMap<&str, &[&str]> = THEIRS.iter().copied().collect();
    let mut breaches = Vec::new();
    for (package, dependencies) in manifests {
        let Some(allowed) = ours.get(package.as_str()) else {
            breaches.push(format!("{package} has no place in xtask/src/deps.rs"));
            continue;
        };
        for dependency in dependencies {
            let ours_and_forbidden =
                ours.contains_key(dependency.as_str()) && !allowed.contains(&dependency.as_str());
            let theirs_and_forbidden =
                theirs.get(dependency.as_str()).is_some_and(|users| !users.contains(&package.as_str()));
            if ours_and_forbidden || theirs_and_forbidden {
                breaches.push(format!("{package} must not depend on {dependency}"));
            }
        }
    }
    breaches
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directions_hold() -> Result<()> {
        check()
    }

    #[test]
    fn a_wrong_direction_is_found() {
        let manifest = |package: &str, dependency: &str| {
            Manifests::from([(package.to_owned(), BTreeSet::from([dependency.to_owned()]))])
        };
        assert_eq!(breaches(&manifest("sallyport-sensor", "sallyport-gateway")).len(), 1);
        assert_eq!(breaches(&manifest("sallyport-policy", "tokio")).len(), 1);
        assert!(breaches(&manifest("sallyport-gateway", "tokio")).is_empty());
    }
}
