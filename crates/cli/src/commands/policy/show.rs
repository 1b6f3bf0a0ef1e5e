//! `policy show`: what exactly is in force, or was.

use std::{fs, path::Path};

use sallyport_contract::v1::CurrentPolicyRequest;
use sallyport_policy::Bundle;
use serde_json::json;

use crate::{clock, failure::Failure, gateway::Context, out::Look, text::safe};

pub(super) async fn show(context: &Context, version: String, extract: Option<&Path>) -> Result<(), Failure> {
    let (mut console, _) = context.console().await?;
    let policy = console
        .current_policy(CurrentPolicyRequest { version })
        .await
        .map_err(|status| Failure::from_status("asking for the policy", &status))?
        .into_inner();
    let bundle = Bundle::from_archive(&policy.archive)
        .map_err(|err| Failure::failed("the gateway sent a bundle that cannot be read").because(&err))?;
    // The version is the content's hash: what is shown is what is in force, or this fails.
    if bundle.version() != policy.version {
        return Err(Failure::failed("the gateway sent a bundle that does not have the version it says")
            .why(format!("said {}, content is {}", safe(&policy.version, 64), bundle.version())));
    }
    if let Some(dir) = extract {
        write_files(&bundle, dir)?;
        same_again(&bundle, dir)?;
    }
    let change = policy.change.unwrap_or_default();
    let out = context.out;
    if out.json {
        let files: Vec<&str> = bundle.paths().collect();
        out.json(&json!({
            "version": policy.version,
            "commit": policy.commit,
            "author": policy.author,
            "pushed_at_ms": policy.pushed_at_ms,
            "in_force": policy.in_force,
            "serial": change.serial,
            "how": change.how,
            "pushed_by": change.pushed_by,
            "message": change.message,
            "signatures": change.signatures,
            "files": files,
            "extracted": extract,
        }))?;
        return Ok(());
    }
    let or_none = |text: &str| if text.is_empty() { "–".to_owned() } else { safe(text, 200) };
    out.line(format!("version: {}", policy.version))?;
    out.line(format!("commit:  {}", or_none(&policy.commit)))?;
    out.line(format!("author:  {}", or_none(&policy.author)))?;
    let now = if policy.in_force { "in force now; " } else { "" };
    let came =
        format!("{now}serial {}, {} by {}", change.serial, or_none(&change.how), or_none(&change.pushed_by));
    out.line(format!("changed: {} ({came})", clock::minute_ms(policy.pushed_at_ms)))?;
    out.line(format!("why:     {}", or_none(&change.message)))?;
    if !change.signatures.is_empty() {
        out.line(format!("signed:  {} signatures of authors", change.signatures.len()))?;
    }
    match extract {
        Some(dir) => {
            let (count, shown) = (bundle.paths().count(), dir.display());
            out.line(format!("Wrote {count} files into {shown}; read again, they are the same version."))?;
            if dir.join("include").is_dir() {
                out.line("What it included then is in its folder `include`. Delete that to include what there is now.")?;
            }
        }
        None => {
            for path in bundle.paths() {
                out.line(format!("\n{}", out.look(Look::Bold, &format!("── {}", safe(path, 200)))))?;
                let content = String::from_utf8_lossy(bundle.file(path).unwrap_or_default());
                out.lines(content.lines().map(|line| safe(line, 2000)))?;
            }
        }
    }
    Ok(())
}

/// Only into a folder that is empty: nothing is overwritten.
fn write_files(bundle: &Bundle, dir: &Path) -> Result<(), Failure> {
    let cannot =
        |err: std::io::Error| Failure::failed(format!("cannot write into `{}`", dir.display())).because(&err);
    fs::create_dir_all(dir).map_err(cannot)?;
    if fs::read_dir(dir).map_err(cannot)?.next().is_some() {
        return Err(Failure::usage(format!("`{}` is not empty", dir.display())));
    }
    for path in bundle.paths() {
        // `from_archive` refuses such paths; a server must not choose where files go even if that fails.
        let plain = Path::new(path).components().all(|part| matches!(part, std::path::Component::Normal(_)));
        if !plain {
            return Err(Failure::failed(format!(
                "the bundle has a file outside of itself: `{}`",
                safe(path, 200)
            )));
        }
        let target = dir.join(path);
        if let Some(parent) = target.parent() {
            fs::create_dir_all(parent).map_err(cannot)?;
        }
        fs::write(&target, bundle.file(path).unwrap_or_default()).map_err(cannot)?;
    }
    Ok(())
}

/// Reads back what was written: who pushes that folder pushes this version, or is told here.
fn same_again(bundle: &Bundle, dir: &Path) -> Result<(), Failure> {
    let shown = dir.display();
    let differs =
        || Failure::failed(format!("the files are in `{shown}`, and read again they are another version"));
    let again = Bundle::read_dir(dir).map_err(|err| differs().because(&err))?;
    if again.version() != bundle.version() {
        let why = format!("read again: {}; they were {}", again.version(), bundle.version());
        return Err(differs()
            .why(why)
            .next("look at what is in force with `policy show` before pushing them"));
    }
    Ok(())
}
