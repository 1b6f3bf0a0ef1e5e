//! `policy …`: write, check, test, push and show bundles. One file each.

mod backtest;
mod check;
mod diff;
mod docs;
mod evidence;
mod explain;
mod fmt;
mod init;
mod junit;
mod learn;
mod proposals;
mod push;
mod show;
mod sign;
mod source;
mod test;
mod versions;

use std::path::Path;

use sallyport_policy::{Bundle, BundleError, Diagnostics, Finding, Policy, Sample};
use serde_json::json;

use crate::{
    args::{Archive, Bundle as BundleArgs, Canary, Policy as Command, Show},
    failure::Failure,
    gateway::Context,
    out::Look,
    text::safe_lines,
};

/// Runs it.
///
/// # Errors
/// Faults in the bundle, or the gateway refuses or cannot be asked.
pub async fn run(context: &Context, command: Command) -> Result<(), Failure> {
    match command {
        Command::Approve(args) => proposals::approve(context, args).await,
        Command::Archive(args) => archive(context, &args),
        Command::Keygen(args) => sign::keygen(context, &args),
        Command::Proposals => proposals::list(context).await,
        Command::Reject(args) => proposals::reject(context, args).await,
        Command::Sign(args) => sign::sign(context, &args),
        Command::Verify(args) => sign::verify(context, &args),
        Command::Backtest(args) => backtest::backtest(context, args).await,
        Command::Learn(args) => learn::learn(context, args).await,
        Command::Diff(args) => diff::diff(context, args).await,
        Command::Explain(args) => explain::explain(context, *args).await,
        Command::Check(args) => check::check(context, &args),
        Command::Docs(args) => docs::docs(context, &args),
        Command::Fmt(args) => fmt::fmt(context, &args),
        Command::Init(args) => init::init(context, &args),
        Command::Test(args) => test::test(context, &args),
        Command::Push(args) => push::push(context, &args).await,
        Command::Canary(Canary { end: Some(end), .. }) => versions::end(context, &end).await,
        Command::Canary(Canary { start, .. }) => versions::start(context, &start).await,
        Command::List(args) => versions::list(context, &args).await,
        Command::Rollback(args) => versions::roll_back(context, &args).await,
        Command::Show(Show { version, extract }) => {
            show::show(context, version.unwrap_or_default(), extract.as_deref()).await
        }
        Command::Version(BundleArgs { dir }) => version(context, &dir),
    }
}

fn read(dir: &Path) -> Result<Bundle, Failure> {
    Bundle::read_dir(dir).map_err(|err| {
        Failure::failed(format!("cannot read a policy bundle from `{}`", dir.display()))
            .because(&err)
            .next("name the folder that holds `bundle.toml` and the `.cedar` files")
    })
}

/// Loads a bundle, or prints every fault.
fn load(context: &Context, dir: &Path) -> Result<(Bundle, Policy), Failure> {
    let bundle = match Bundle::read_dir(dir) {
        // The manifest's faults have their places, too.
        Err(BundleError::Manifest(faults)) => {
            print_faults(context, "", &faults)?;
            return Err(Failure::said());
        }
        _ => read(dir)?,
    };
    match Policy::load(&bundle) {
        Ok(policy) => Ok((bundle, policy)),
        Err(faults) => {
            print_faults(context, &bundle.version(), &faults)?;
            Err(Failure::said())
        }
    }
}

/// Compiles a policy for a sample of those whom it may concern, or prints what is too large.
fn try_out(context: &Context, bundle: &Bundle, policy: &Policy) -> Result<Sample, Failure> {
    match policy.try_out() {
        Ok(sample) => Ok(sample),
        Err(faults) => {
            print_faults(context, &bundle.version(), &faults)?;
            Err(Failure::said())
        }
    }
}

fn print_faults(context: &Context, version: &str, faults: &Diagnostics) -> Result<(), Failure> {
    let out = context.out;
    if out.json {
        let findings: Vec<Finding> = faults.faults.iter().cloned().map(Finding::from).collect();
        out.json(&json!({
            "ok": false,
            "version": version,
            "errors": findings.len(),
            "warnings": 0,
            "findings": findings,
            "faults": faults.faults,
        }))?;
        return Ok(());
    }
    out.line(safe_lines(&faults.to_string(), 2000))?;
    let count = faults.faults.len();
    let faults = if count == 1 { "1 fault".to_owned() } else { format!("{count} faults") };
    out.line(out.look(Look::Red, &format!("{faults}; the bundle cannot come into force.")))?;
    Ok(())
}

fn archive(context: &Context, args: &Archive) -> Result<(), Failure> {
    let bundle = read(&args.dir)?;
    std::fs::write(&args.file, bundle.to_archive()).map_err(|err| {
        Failure::failed(format!("cannot write the archive into `{}`", args.file.display())).because(&err)
    })?;
    if context.out.json {
        context.out.json(&json!({ "version": bundle.version(), "file": args.file }))?;
    } else {
        context.out.line(bundle.version())?;
    }
    Ok(())
}

fn version(context: &Context, dir: &Path) -> Result<(), Failure> {
    let bundle = read(dir)?;
    if context.out.json {
        context.out.json(&json!({ "version": bundle.version() }))?;
    } else {
        context.out.line(bundle.version())?;
    }
    Ok(())
}
