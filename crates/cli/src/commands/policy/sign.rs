//! `policy keygen`, `policy sign`, `policy verify`: Ed25519 signatures on versions, as signed notes.

use std::{
    fs,
    io::{ErrorKind, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::Path,
    time::{SystemTime, UNIX_EPOCH},
};

use sallyport_evidence::{
    Statement,
    note::{Signer, Verifier},
};
use serde_json::json;
use zeroize::Zeroizing;

use super::read;
use crate::{
    args::{Keygen, Sign, VerifyPolicy as Verify},
    clock,
    failure::Failure,
    files,
    gateway::Context,
    git,
    out::Look,
    text::safe,
};

/// A private key and a signed statement have some hundred bytes.
const LARGEST: u64 = 64 << 10;

/// Makes a key pair.
pub(super) fn keygen(context: &Context, args: &Keygen) -> Result<(), Failure> {
    let seed = Zeroizing::new(rand::random::<[u8; 32]>());
    let signer = Signer::new(&args.name, &seed).ok_or_else(|| {
        Failure::usage(format!("`{}` cannot name a key", args.name))
            .next("write a word without spaces and `+`")
    })?;
    let cannot = |err: std::io::Error| {
        let failure = Failure::failed(format!("cannot write the private key into `{}`", args.out.display()));
        match err.kind() {
            // Whoever overwrites a key loses it.
            ErrorKind::AlreadyExists => failure.why("there is a file already").next("name another file"),
            _ => failure.because(&err),
        }
    };
    let mut file =
        fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&args.out).map_err(cannot)?;
    let text = Zeroizing::new(signer.to_text() + "\n");
    file.write_all(text.as_bytes()).and_then(|()| file.sync_all()).map_err(cannot)?;
    let key = signer.verifier().to_string();
    if context.out.json {
        context.out.json(&json!({ "name": args.name, "verifier_key": key, "private_key_file": args.out }))?;
    } else {
        // The verifier key alone on standard output, so that it can go into a file; the rest is for people.
        eprintln!(
            "The private key is in {}; keep it. What the gateway needs, in `[policy] signers`:",
            args.out.display()
        );
        context.out.line(key)?;
    }
    Ok(())
}

/// Signs a version.
pub(super) fn sign(context: &Context, args: &Sign) -> Result<(), Failure> {
    let signer = signer(args)?;
    let (bundle, origin) = (read(&args.dir)?, git::origin(&args.dir));
    if origin.is_dirty {
        eprintln!("sallyport: the folder differs from its Git commit; the statement says `-dirty`");
    }
    let there = match &args.out {
        Some(path) => existing(path)?,
        None => None,
    };
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
    let mut statement = Statement {
        gateway: args.gateway.clone(),
        version: bundle.version(),
        commit: origin.commit,
        created_ms: u64::try_from(now).unwrap_or(u64::MAX),
    };
    // Somebody else has signed this version for this gateway: one statement with two signatures.
    let mut note = String::new();
    if let Some((found, of)) = there
        && of.version == statement.version
        && of.gateway == statement.gateway
    {
        (note, statement) = (found, of);
    }
    let fresh = statement.sign(&signer).map_err(|err| {
        Failure::usage("cannot sign that")
            .because(&err)
            .next("`--for` takes the gateway's name, as its configuration has it")
    })?;
    if note.is_empty() {
        note = fresh;
    } else if let Some(line) = fresh.lines().last().filter(|line| !note.lines().any(|other| other == *line)) {
        note.push_str(line);
        note.push('\n');
    }
    let name = signer.verifier().name();
    if let Some(path) = &args.out {
        files::replace(path, note.as_bytes(), 0o644)
            .map_err(|err| Failure::failed("cannot write the signed statement").because(&err))?;
    }
    let Statement { version, gateway, commit, created_ms } = &statement;
    if context.out.json {
        context.out.json(&json!({
            "version": version, "gateway": gateway, "commit": commit, "created_at_ms": created_ms,
            "signed_by": name, "file": args.out, "note": note,
        }))?;
    } else if let Some(path) = &args.out {
        context.out.line(format!("Signed version {version} for {gateway} as {name}: {}", path.display()))?;
    } else {
        context.out.line(note.trim_end())?;
    }
    Ok(())
}

/// Verifies signatures without any gateway.
pub(super) fn verify(context: &Context, args: &Verify) -> Result<(), Failure> {
    let version = read(&args.dir)?.version();
    let keys: Vec<Verifier> = args
        .key
        .iter()
        .map(|key| {
            Verifier::parse(key).map_err(|err| Failure::usage("--key takes a verifier key").because(&err))
        })
        .collect::<Result<_, _>>()?;
    let mut names = Vec::new();
    for path in &args.signature {
        let failure = || Failure::failed(format!("`{}` does not verify", path.display()));
        let (statement, by) = Statement::open(&note(path)?, &keys).map_err(|err| failure().because(&err))?;
        if statement.version != version {
            return Err(failure()
                .why(format!(
                    "it is on version {}, and the folder holds version {version}",
                    statement.version
                ))
                .next("check out what was signed, or have this version signed"));
        }
        if let Some(gateway) = args.gateway.as_ref().filter(|gateway| **gateway != statement.gateway) {
            let why = format!("it is for the gateway {}, not for {gateway}", safe(&statement.gateway, 80));
            return Err(failure().why(why).next("sign the version for this gateway, too"));
        }
        let out = context.out;
        if out.json {
            out.json(&json!({
                "file": path, "version": version, "gateway": statement.gateway, "commit": statement.commit,
                "created_at_ms": statement.created_ms, "signed_by": by,
            }))?;
        } else {
            let when = clock::minute_ms(i64::try_from(statement.created_ms).unwrap_or(i64::MAX));
            out.line(format!(
                "{}: version {version} is signed by {} for {}, {when}",
                out.look(Look::Green, "Verified"),
                by.join(" and "),
                safe(&statement.gateway, 80)
            ))?;
        }
        names.extend(by);
    }
    Ok(())
}

/// The statements that a push brings: those named, or `bundle.sig` of the bundle.
pub(super) fn brought(dir: &Path, named: &[std::path::PathBuf]) -> Result<Vec<String>, Failure> {
    let usual = dir.join("bundle.sig");
    if named.is_empty() && usual.exists() {
        return Ok(vec![note(&usual)?]);
    }
    named.iter().map(|path| note(path)).collect()
}

fn note(path: &Path) -> Result<String, Failure> {
    let cannot = || Failure::failed(format!("cannot read a signed statement from `{}`", path.display()));
    let bytes = files::read(path, LARGEST).map_err(|err| cannot().because(&err))?;
    let bytes = bytes.ok_or_else(|| cannot().why("there is no such file"))?;
    String::from_utf8(bytes).map_err(|_| cannot().why("it is not text"))
}

/// A signed statement that is there already.
fn existing(path: &Path) -> Result<Option<(String, Statement)>, Failure> {
    if !path.exists() {
        return Ok(None);
    }
    let text = note(path)?;
    let statement = Statement::unverified(&text).map_err(|err| {
        // Not ours to overwrite.
        Failure::failed(format!("`{}` is there and is no signed statement", path.display()))
            .because(&err)
            .next("name another file with --out")
    })?;
    Ok(Some((text, statement)))
}

fn signer(args: &Sign) -> Result<Signer, Failure> {
    let text = match (&args.key, &args.key_env) {
        (Some(path), _) => {
            let cannot = || Failure::failed(format!("cannot read a private key from `{}`", path.display()));
            let bytes = files::read_secret(path, LARGEST).map_err(|err| cannot().because(&err))?;
            let bytes = Zeroizing::new(bytes.ok_or_else(|| cannot().why("there is no such file"))?);
            Zeroizing::new(String::from_utf8_lossy(&bytes).into_owned())
        }
        (None, Some(name)) => Zeroizing::new(std::env::var(name).unwrap_or_default()),
        (None, None) => Zeroizing::default(),
    };
    Signer::parse(&text).map_err(|err| {
        Failure::failed("that is no private key")
            .because(&err)
            .next("make one with `sallyport policy keygen NAME --out FILE`")
    })
}
