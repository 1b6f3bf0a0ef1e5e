//! `login`: prove to the identity provider who one is, get a token and an ssh certificate, set ssh up.

use std::io::{self, BufRead, IsTerminal, Read, Write};

use russh::keys::ssh_key::Certificate;
use sallyport_contract::v1::{
    SignInOptionsRequest, SignInOptionsResponse, SignInRequest, console_client::ConsoleClient,
};
use serde_json::json;
use tokio::sync::mpsc;

use super::{
    ssh_config,
    whoami::{groups, left},
};
use crate::{
    args::{Login, Via},
    clock,
    failure::{Exit, Failure},
    gateway::{self, Console, Context},
    oidc::{self, Proof, Provider, SignInError, browser, http::HttpError},
    out::Look,
    profile::{self, Address, Profile, display},
    ssh::{
        SshFiles,
        agent::{self, Agent},
        include::{self, Done},
        keys::{self, Pair},
    },
    text::safe,
    trust,
};

/// Runs it.
///
/// # Errors
/// Anything on the way; what was signed in before stays as it was.
pub async fn run(context: &Context, args: &Login) -> Result<(), Failure> {
    let gateway = context.gateway()?;
    let saved = context.saved(&gateway)?;
    let ca_pem = ca(context, args, &gateway, saved.as_ref()).await?;
    let channel = gateway::connect(&gateway, &ca_pem).await?;
    let mut console = ConsoleClient::new(channel.clone());
    let options = console
        .sign_in_options(SignInOptionsRequest {})
        .await
        .map_err(|status| Failure::from_status("asking how to sign in", &status))?
        .into_inner();
    let proof = prove(context, args, &options).await?;

    let pair = Pair::generate(&format!("sallyport {}", gateway.host()))
        .map_err(|err| Failure::failed("cannot make an ssh key").because(&err))?;
    let ssh_public_key =
        pair.public_line().map_err(|err| Failure::failed("cannot make an ssh key").because(&err))?;
    let request = SignInRequest {
        id_token: proof.id_token,
        nonce: proof.nonce,
        access_token: proof.access_token,
        ssh_public_key,
    };
    let answer = console
        .sign_in(request)
        .await
        .map_err(|status| match status.code() {
            // "Not signed in" would send the person in circles.
            tonic::Code::Unauthenticated => {
                Failure::failed("the gateway does not accept the sign-in").why(status.message())
            }
            _ => Failure::from_status("signing in at the gateway", &status),
        })?
        .into_inner();

    let log_key = pinned_log_key(args, saved.as_ref(), &answer.log_key)?;
    let ssh_failure = |err: &keys::KeyError| Failure::failed("cannot set up ssh").because(err);
    let certificate = if answer.ssh_certificate.is_empty() {
        None
    } else {
        Some(pair.accept(&answer.ssh_certificate).map_err(|err| ssh_failure(&err))?)
    };
    let ssh_host_ca = if answer.ssh_host_ca.is_empty() {
        String::new()
    } else {
        keys::host_ca_line(&answer.ssh_host_ca).map_err(|err| ssh_failure(&err))?
    };
    let profile = Profile {
        ssh_host: if options.ssh_host.is_empty() { gateway.host() } else { options.ssh_host.clone() },
        ssh_port: u16::try_from(options.ssh_port).ok().filter(|port| *port > 0).unwrap_or(22),
        gateway: gateway.clone(),
        ca_pem,
        token: answer.token,
        expires_at_ms: answer.expires_at_ms,
        user: answer.user,
        log_key,
        gateway_name: options.gateway_name,
        ssh_host_ca,
    };
    let files = SshFiles::new(&context.folders);
    // The old key leaves the agent while its file is still there.
    let _ = agent::remove(&files);
    if let Some(certificate) = &certificate {
        pair.keep(&files, certificate).map_err(|err| ssh_failure(&err))?;
    }
    profile::save(&context.folders, &profile)
        .map_err(|err| Failure::failed("cannot save the sign-in").because(&err))?;

    let mut console = gateway::signed_in(channel, &profile.token)?;
    let done = set_up_ssh(context, args, &profile, &files, certificate.as_ref(), &mut console).await?;
    report(context, &profile, &answer.groups, &files, certificate.as_ref(), &done)
}

/// The CA to trust: given, pinned earlier, or looked at now.
async fn ca(
    context: &Context,
    args: &Login,
    gateway: &Address,
    saved: Option<&Profile>,
) -> Result<String, Failure> {
    if let Some(pem) = context.ca_file()? {
        return Ok(pem);
    }
    let pin = args
        .ca_sha256
        .as_deref()
        .map(trust::parse_fingerprint)
        .transpose()
        .map_err(|err| Failure::usage("--ca-sha256 is not a fingerprint").because(&err))?;
    if let (None, Some(saved)) = (pin, saved) {
        return Ok(saved.ca_pem.clone());
    }
    let presented = trust::presented_ca(gateway, pin).await.map_err(|err| {
        let failure = match err {
            trust::TrustError::NotPresented { .. } | trust::TrustError::Fingerprint => {
                Failure::failed("this is not the gateway with that fingerprint")
                    .next("compare the fingerprint with the one that the gateway's operator gave you")
            }
            _ => Failure::unreachable(format!("cannot reach the gateway {gateway}"))
                .next("check the address and the network, and that the gateway runs"),
        };
        failure.because(&err)
    })?;
    if pin.is_none() && !confirm(gateway, &presented.fingerprint())? {
        return Err(Failure::failed("the gateway's CA was not accepted")
            .next("ask the gateway's operator for the fingerprint and pass it as --ca-sha256"));
    }
    Ok(presented.pem())
}

/// The first time, with no fingerprint: a person compares it, as with ssh. Nobody there: refuse.
fn confirm(gateway: &Address, fingerprint: &str) -> Result<bool, Failure> {
    if !io::stdin().is_terminal() || !io::stderr().is_terminal() {
        return Err(Failure::usage(format!("it is not known yet which CA {gateway} must have"))
            .next("pass --ca-sha256 FINGERPRINT or --ca-file FILE, as the gateway's operator gives it"));
    }
    eprint!(
        "The CA of {gateway} is not known here yet. Its SHA-256 is\n  {fingerprint}\nCompare it with what the gateway's \
         operator gave you. Trust it from now on? [y/N] "
    );
    io::stderr().flush()?;
    let mut answer = String::new();
    io::stdin().lock().read_line(&mut answer)?;
    Ok(matches!(answer.trim().to_ascii_lowercase().as_str(), "y" | "yes"))
}

async fn prove(context: &Context, args: &Login, options: &SignInOptionsResponse) -> Result<Proof, Failure> {
    let provider = Provider {
        issuer: options.issuer.clone(),
        client_id: options.client_id.clone(),
        scopes: options.scopes.clone(),
    };
    let out = context.out;
    let show = |address: &str| {
        let opened = !args.no_browser && browser::open(address);
        if out.json {
            // The caller that reads JSON has to send somebody there.
            let _ = out.json(&json!({ "authorize_url": address, "browser_opened": opened }));
            return;
        }
        let lead = if opened { "Your browser opens. If it does not, open" } else { "Open this in a browser" };
        let paste = if io::stdin().is_terminal() {
            "\nIf that browser runs on another computer, paste the address at which it ends up here."
        } else {
            ""
        };
        eprintln!("{lead}:\n\n  {}\n{paste}\nWaiting for you to sign in…", safe(address, 4000));
    };
    oidc::sign_in(&provider, args.timeout, pasted_lines(), show).await.map_err(|err| {
        let failure = match &err {
            SignInError::Discovery { .. }
            | SignInError::Exchange(_)
            | SignInError::Http(HttpError::Send { .. }) => {
                Failure::unreachable("the identity provider cannot be asked")
                    .next("check the network; a private CA can be named in SSL_CERT_FILE")
            }
            SignInError::Loopback(_) => {
                Failure::failed("no answer came from the browser").next("run it again")
            }
            _ => Failure::failed("the sign-in failed"),
        };
        failure.because(&err)
    })
}

/// Lines that a person enters while waiting for the browser; none without a person.
fn pasted_lines() -> Option<mpsc::Receiver<String>> {
    if !io::stdin().is_terminal() {
        return None;
    }
    let (send, lines) = mpsc::channel(4);
    // A thread of its own: a read of standard input cannot be called off, and must not hold up the end.
    std::thread::spawn(move || {
        for line in io::stdin().lock().take(1 << 20).lines().map_while(Result::ok) {
            if send.blocking_send(line).is_err() {
                break;
            }
        }
    });
    Some(lines)
}

/// The first key seen is the one that counts: a log that changed its key cannot be told from a log that was
/// replaced, so a person decides.
fn pinned_log_key(args: &Login, saved: Option<&Profile>, sent: &str) -> Result<String, Failure> {
    let pinned = saved.map(|saved| saved.log_key.as_str()).filter(|key| !key.is_empty());
    match pinned {
        Some(pinned) if pinned != sent && !args.accept_log_key => {
            eprintln!(
                "sallyport: WARNING: the evidence log's key is not the one pinned at an earlier sign-in.\n  pinned: {}\n  \
                 now:    {}\n  The pinned key is kept, so `sallyport verify` will fail. If the gateway's operator \
                 confirms the new key, run `sallyport login --accept-log-key`.",
                safe(pinned, 200),
                safe(sent, 200)
            );
            Ok(pinned.to_owned())
        }
        _ if sent.len() > 1000 => Err(Failure::failed("the gateway sent a log key that is too long")),
        _ => Ok(sent.to_owned()),
    }
}

/// What was set up.
struct SshDone {
    include: Option<Done>,
    agent: Agent,
    targets: Vec<String>,
}

async fn set_up_ssh(
    context: &Context,
    args: &Login,
    profile: &Profile,
    files: &SshFiles,
    certificate: Option<&Certificate>,
    console: &mut Console,
) -> Result<SshDone, Failure> {
    // A person who may list nothing is signed in all the same.
    let targets = match ssh_config::targets(console).await {
        Ok(targets) => targets,
        Err(failure) if failure.exit() == Exit::Failed => Vec::new(),
        Err(failure) => return Err(failure),
    };
    let rendered = ssh_config::render(profile, files, &targets, Via::Direct);
    ssh_config::warn(&rendered);
    ssh_config::write(profile, files, &rendered)?;
    let include = if args.no_ssh_config {
        None
    } else {
        let done = include::ensure(files, &context.folders.home);
        Some(done.map_err(|err| {
            Failure::failed("signed in, but cannot change ~/.ssh/config")
                .because(&err)
                .next(format!("add the line `Include {}` at its top yourself", files.config().display()))
        })?)
    };
    let lifetime = certificate.and_then(|certificate| {
        let ends = i64::try_from(certificate.valid_before()).ok()?;
        clock::until_ms(ends.checked_mul(1000)?)
    });
    let agent = match lifetime {
        Some(lifetime) if !args.no_agent => agent::add(files, lifetime),
        _ => Agent::None,
    };
    let names =
        targets.into_iter().map(|target| target.host).filter(|host| !rendered.left_out.contains(host));
    Ok(SshDone { include, agent, targets: names.collect() })
}

fn report(
    context: &Context,
    profile: &Profile,
    their_groups: &[String],
    files: &SshFiles,
    certificate: Option<&Certificate>,
    done: &SshDone,
) -> Result<(), Failure> {
    let (out, home) = (context.out, &context.folders.home);
    let certificate_ends = certificate.and_then(|certificate| i64::try_from(certificate.valid_before()).ok());
    if out.json {
        out.json(&json!({
            "gateway": profile.gateway,
            "user": profile.user,
            "groups": their_groups,
            "expires_at_ms": profile.expires_at_ms,
            "log_key": profile.log_key,
            "ssh_key": certificate.map(|_| files.key()),
            "ssh_certificate_expires_at_ms": certificate_ends.map(|seconds| seconds.saturating_mul(1000)),
            "ssh_config": files.config(),
            "ssh_config_included": done.include.is_some(),
            "ssh_agent": done.agent == Agent::Added,
            "targets": done.targets,
        }))?;
        return Ok(());
    }
    let until = format!("{}{}", clock::minute_ms(profile.expires_at_ms), left(profile.expires_at_ms));
    out.line(format!(
        "{} as {}.",
        out.look(Look::Green, "Signed in"),
        out.look(Look::Bold, &safe(&profile.user, 200))
    ))?;
    out.line(format!("  groups:    {}", groups(their_groups)))?;
    out.line(format!("  until:     {until}"))?;
    match (certificate, certificate_ends) {
        (Some(certificate), Some(ends)) => out.line(format!(
            "  ssh key:   {} with a certificate for {} until {}",
            display(&files.key(), home),
            keys::principals(certificate),
            clock::minute_ms(ends.saturating_mul(1000))
        ))?,
        _ => {
            out.line("  ssh key:   none; the gateway issued no certificate, so ssh will ask you to sign in")?
        }
    }
    let config = display(&files.user_config, home);
    match done.include {
        Some(Done::Added) => {
            out.line(format!("  ssh setup: added one Include line at the top of {config}"))?
        }
        Some(Done::AlreadyThere) => out.line(format!("  ssh setup: {config} includes it already"))?,
        None => {
            out.line(format!("  ssh setup: not touched; use `ssh -F {}`", display(&files.config(), home)))?
        }
    }
    match &done.agent {
        Agent::Added => out.line("  ssh-agent: has the key until the certificate ends")?,
        Agent::Refused(why) => {
            out.line(format!("  ssh-agent: did not take the key ({why}); ssh works without it"))?
        }
        Agent::None => {}
    }
    match done.targets.first() {
        Some(first) => out.line(format!("Try: ssh {}", safe(first, 80)))?,
        None => out.line("The policy in force lets you open a session nowhere yet; `sallyport targets` shows when it does.")?,
    }
    Ok(())
}
