//! The bundles: the shipped demo with every host of the fleet, and versions of it with one rule more.

use std::path::Path;

use anyhow::{Context as _, Result};
use sallyport_policy::Bundle;

/// The name of a host.
pub(crate) fn host(number: usize) -> String {
    format!("host-{number:04}")
}

/// Writes the first version to `folder/fleet`.
pub(crate) fn write(folder: &Path, shipped: &Path, hosts: usize) -> Result<()> {
    let bundle = folder.join("fleet");
    std::fs::create_dir(&bundle)?;
    let demo = shipped.join("demo").canonicalize().context("the shipped demo")?;
    let manifest = format!("name = \"fleet\"\nschema = 2\ninclude = [{:?}]\n", demo);
    std::fs::write(bundle.join("bundle.toml"), manifest)?;
    let groups = ["production", "staging"];
    let entities: Vec<String> = (0..hosts)
        .map(|number| {
            serde_json::json!({
                "uid": { "type": "Host", "id": host(number) }, "attrs": {},
                "parents": [{ "type": "HostGroup", "id": groups[usize::from(number % 4 == 3)] }],
                "tags": { "service": "web" },
            })
            .to_string()
        })
        .collect();
    Ok(std::fs::write(bundle.join("entities.json"), format!("[\n{}\n]\n", entities.join(",\n")))?)
}

/// The archive of another version: it forbids one more program.
pub(crate) fn changed(folder: &Path, name: &str) -> Result<Vec<u8>> {
    let bundle = folder.join("fleet");
    let rule = format!(
        "@id(\"no-tool-{name}\")\n@reason(\"round {name}\")\n\
         forbid (principal, action == Action::\"exec\", resource)\n\
         when {{ context.path == \"/usr/bin/tool-{name}\" }};\n"
    );
    std::fs::write(bundle.join("round.cedar"), rule)?;
    Ok(Bundle::read_dir(&bundle).context("read the changed bundle")?.to_archive())
}

/// How many rules and entities it has.
pub(crate) fn size(folder: &Path) -> Result<(usize, usize)> {
    let bundle = Bundle::read_dir(&folder.join("fleet")).context("read the bundle")?;
    let policy = sallyport_policy::Policy::load(&bundle).map_err(|faults| anyhow::anyhow!("{faults}"))?;
    Ok((policy.rules().count(), policy.hosts().len()))
}
