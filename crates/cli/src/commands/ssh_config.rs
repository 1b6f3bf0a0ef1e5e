//! `ssh-config`, and what `login` does with it.

use sallyport_contract::v1::ListTargetsRequest;
use serde_json::json;

use crate::{
    args::{SshConfig, Via},
    failure::Failure,
    files,
    gateway::{Console, Context},
    profile::{Profile, display},
    ssh::{
        SshFiles,
        config::{self, Rendered, SshDoor, SshTarget},
    },
    text,
};

/// Runs `ssh-config`.
///
/// # Errors
/// Not signed in, or the gateway cannot be asked.
pub async fn run(context: &Context, args: &SshConfig) -> Result<(), Failure> {
    let (mut console, profile) = context.console().await?;
    let targets = targets(&mut console).await?;
    let files = SshFiles::new(&context.folders);
    let rendered = render(&profile, &files, &targets, args.via);
    warn(&rendered);
    let out = context.out;
    if args.write {
        write(&profile, &files, &rendered)?;
        let path = display(&files.config(), &context.folders.home);
        if out.json {
            out.json(&json!({ "path": files.config(), "targets": targets.len() }))?;
        } else {
            out.line(format!("Wrote {path} for {} targets.", targets.len()))?;
        }
    } else if out.json {
        out.json(&json!({ "config": rendered.text, "left_out": rendered.left_out }))?;
    } else {
        out.line(rendered.text.trim_end())?;
    }
    Ok(())
}

/// The targets, as far as ssh cares.
///
/// # Errors
/// The gateway cannot be asked.
pub async fn targets(console: &mut Console) -> Result<Vec<SshTarget>, Failure> {
    let answer = console
        .list_targets(ListTargetsRequest {})
        .await
        .map_err(|status| Failure::from_status("listing targets", &status))?
        .into_inner();
    Ok(answer
        .targets
        .into_iter()
        .map(|target| SshTarget { host: target.host, local_users: target.local_users })
        .collect())
}

/// Renders the configuration.
#[must_use]
pub fn render(profile: &Profile, files: &SshFiles, targets: &[SshTarget], via: Via) -> Rendered {
    let door = SshDoor { host: profile.ssh_host.clone(), port: profile.ssh_port };
    config::render(files, &door, targets, via)
}

/// Writes configuration and known hosts.
///
/// # Errors
/// They cannot be written.
pub fn write(profile: &Profile, files: &SshFiles, rendered: &Rendered) -> Result<(), Failure> {
    let write = || {
        files::private_dir(&files.dir)?;
        if !profile.ssh_host_ca.is_empty() {
            let known = config::known_hosts(&profile.ssh_host_ca);
            files::replace(&files.known_hosts(), known.as_bytes(), 0o600)?;
        }
        files::replace(&files.config(), rendered.text.as_bytes(), 0o600)
    };
    write().map_err(|err| Failure::failed("cannot write the ssh configuration").because(&err))
}

/// Says which names were left out.
pub fn warn(rendered: &Rendered) {
    for name in &rendered.left_out {
        eprintln!(
            "sallyport: left out `{}`: not a plain name, and it could mean something else to ssh",
            text::safe(name, 80)
        );
    }
}
