//! The bundle that decided the records, and the candidate.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use sallyport_policy::{Bundle, Policy};

/// What was in force, beyond the demo's and the base pack's rules: a freeze, and a rule that is tried out.
const BEFORE: &str = r#"
@id("frozen")
@reason("nothing is deployed this week")
forbid (principal, action == Action::"exec", resource)
when { context.name == "git" };

@id("watch-partner")
@reason("connections to the partner's network")
@mode("monitor")
forbid (principal, action == Action::"connect", resource)
when { context.address.isInRange(ip("203.0.113.0/24")) };
"#;

/// The candidate has neither, and rules of its own: on arguments, paths, addresses, one of them tried out.
const CANDIDATE: &str = r#"
@id("no-ad-hoc-statements")
@reason("contractors change data with reviewed scripts only")
forbid (principal in Group::"contractors", action == Action::"exec", resource)
when { context.name == "psql" && context.args.contains("-c") };

@id("no-customer-13")
@reason("this customer's data is under a legal hold")
forbid (principal, action in [Action::"read_file", Action::"write_file"], resource)
when { context.path like "/srv/data/13*" };

@id("no-job-7")
@reason("this job wrote to the wrong ledger")
@on_violation("kill")
forbid (principal, action == Action::"exec", resource in HostGroup::"production")
when { context.command_line like "*job-7*.py" };

@id("watch-neighbours")
@reason("from host to host, past the gateway")
@mode("monitor")
forbid (principal, action == Action::"connect", resource)
when { context.address.isInRange(ip("10.1.0.0/16")) };
"#;

/// The name of a host.
pub(crate) fn host(number: u64) -> String {
    format!("host-{number:03}")
}

/// Where the two bundles are.
pub(crate) struct Bundles {
    /// What was in force.
    pub(crate) before: PathBuf,
    /// What might be.
    pub(crate) candidate: PathBuf,
}

/// Writes both, on top of the shipped demo, with hosts of their own.
pub(crate) fn write(folder: &Path, shipped: &Path, hosts: u64) -> Result<Bundles> {
    let demo = shipped.join("demo").canonicalize().context("the shipped demo")?;
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
    let one = |name: &str, rules: &str| -> Result<PathBuf> {
        let bundle = folder.join(name);
        std::fs::create_dir(&bundle)?;
        std::fs::write(
            bundle.join("bundle.toml"),
            format!("name = \"{name}\"\nschema = 2\ninclude = [{:?}]\n", demo),
        )?;
        std::fs::write(bundle.join("entities.json"), format!("[\n{}\n]\n", entities.join(",\n")))?;
        std::fs::write(bundle.join("rules.cedar"), rules)?;
        Ok(bundle)
    };
    Ok(Bundles { before: one("before", BEFORE)?, candidate: one("candidate", CANDIDATE)? })
}

/// Reads and checks a bundle.
pub(crate) fn load(folder: &Path) -> Result<Policy> {
    let bundle = Bundle::read_dir(folder).with_context(|| format!("read {}", folder.display()))?;
    Policy::load(&bundle).map_err(|faults| anyhow::anyhow!("{faults}"))
}
