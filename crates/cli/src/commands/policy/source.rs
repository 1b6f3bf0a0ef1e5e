//! Where a policy comes from: a folder, the gateway, or a commit.

use std::path::Path;
use std::process::Command;

use sallyport_contract::v1::CurrentPolicyRequest;
use sallyport_policy::{Bundle, Policy};

use super::{print_faults, read};
use crate::{failure::Failure, gateway::Context, text::safe};

/// Loads what `text` names: a folder, a version at the gateway, or `REF:PATH`.
pub(super) async fn named(context: &Context, text: &str) -> Result<Policy, Failure> {
    let is_version = text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    let bundle = if Path::new(text).exists() {
        read(Path::new(text))?
    } else if is_version {
        fetched(context, text).await?
    } else if let Some((commit, path)) = text.split_once(':') {
        committed(commit, path)?
    } else {
        return Err(Failure::usage(format!("`{}` is no policy", safe(text, 200))).next(
            "name a bundle's folder, a version (64 digits), or REF:PATH for a folder in a Git commit",
        ));
    };
    loaded(context, &bundle)
}

/// Loads what is in force at the gateway, or a version of it.
pub(super) async fn at_gateway(context: &Context, version: &str) -> Result<Policy, Failure> {
    let bundle = fetched(context, version).await?;
    loaded(context, &bundle)
}

fn loaded(context: &Context, bundle: &Bundle) -> Result<Policy, Failure> {
    Policy::load(bundle).or_else(|faults| {
        print_faults(context, &bundle.version(), &faults)?;
        Err(Failure::said())
    })
}

async fn fetched(context: &Context, version: &str) -> Result<Bundle, Failure> {
    let (mut console, _) = context.console().await?;
    let policy = console
        .current_policy(CurrentPolicyRequest { version: version.to_owned() })
        .await
        .map_err(|status| Failure::from_status("asking for the policy", &status))?
        .into_inner();
    let bundle = Bundle::from_archive(&policy.archive)
        .map_err(|err| Failure::failed("the gateway sent a bundle that cannot be read").because(&err))?;
    // The version is the content's hash, so this cannot be another one.
    if bundle.version() != policy.version || !version.is_empty() && bundle.version() != version {
        return Err(Failure::failed("the gateway sent a bundle that does not have the version asked for")
            .why(format!("its content is {}", bundle.version())));
    }
    Ok(bundle)
}

/// The bundle as it is in a commit. The working tree and the index are left alone.
fn committed(commit: &str, path: &str) -> Result<Bundle, Failure> {
    let failed = |what: &str| {
        Failure::failed(format!("cannot read `{}:{}` from Git: {what}", safe(commit, 100), safe(path, 200)))
    };
    let temporary = tempfile::tempdir().map_err(|err| failed("no temporary folder").because(&err))?;
    let tree = temporary.path().join("tree");
    let git = |args: &[&str]| {
        let ran = Command::new("git")
            // A repository's own configuration must not run programs here.
            .args(["-c", "core.fsmonitor=false", "-c", "core.hooksPath=/dev/null"])
            .args(args)
            .env("GIT_INDEX_FILE", temporary.path().join("index"))
            .output()
            .map_err(|err| failed("git does not run").because(&err))?;
        if ran.status.success() {
            return Ok(());
        }
        Err(failed("git refuses").why(String::from_utf8_lossy(&ran.stderr)))
    };
    if commit.starts_with('-') || commit.is_empty() {
        return Err(failed("that is no commit"));
    }
    git(&["read-tree", commit])?;
    let prefix = format!("--prefix={}/", tree.display());
    git(&["checkout-index", "--all", "--quiet", &prefix])?;
    let inside = Path::new(path);
    if !inside
        .components()
        .all(|part| matches!(part, std::path::Component::Normal(_) | std::path::Component::CurDir))
    {
        return Err(failed("the path must lie in the repository, from its top"));
    }
    read(&tree.join(inside))
}
