//! `whoami` and `logout`.

use sallyport_contract::v1::{SignOutRequest, WhoAmIRequest};
use serde_json::json;

use crate::{
    clock,
    failure::{Exit, Failure},
    gateway::{self, Context},
    profile,
    ssh::{SshFiles, agent, keys},
    text::safe,
};

/// Who the gateway takes one for.
///
/// # Errors
/// Not signed in, or the gateway cannot be asked.
pub async fn whoami(context: &Context) -> Result<(), Failure> {
    let (mut console, profile) = context.console().await?;
    let me = console
        .who_am_i(WhoAmIRequest {})
        .await
        .map_err(|status| Failure::from_status("asking who you are", &status))?
        .into_inner();
    let out = context.out;
    if out.json {
        out.json(&json!({
            "user": me.user,
            "groups": me.groups,
            "kind": me.kind,
            "expires_at_ms": me.expires_at_ms,
            "gateway": profile.gateway,
        }))?;
        return Ok(());
    }
    let kind = if me.kind.is_empty() { String::new() } else { format!(" ({})", safe(&me.kind, 20)) };
    out.line(format!("{}{kind}", safe(&me.user, 200)))?;
    out.line(format!("groups:  {}", groups(&me.groups)))?;
    out.line(format!("gateway: {}", profile.gateway))?;
    out.line(format!("until:   {}{}", clock::minute_ms(me.expires_at_ms), left(me.expires_at_ms)))?;
    Ok(())
}

/// Groups, to show.
#[must_use]
pub fn groups(groups: &[String]) -> String {
    if groups.is_empty() { "none".to_owned() } else { safe(&groups.join(", "), 400) }
}

/// ` (in 7h59min)`.
#[must_use]
pub fn left(ms: i64) -> String {
    clock::until_ms(ms).map(|left| format!(" (in {})", clock::span(left))).unwrap_or_default()
}

/// Ends the sign-in at the gateway and removes key, certificate and token here, even if the gateway is away.
///
/// # Errors
/// Something could not be removed, or the gateway could not be told.
pub async fn logout(context: &Context) -> Result<(), Failure> {
    let gateway = context.gateway()?;
    let Some(profile) = context.saved(&gateway)?.filter(|profile| !profile.token.is_empty()) else {
        return Err(Failure::not_signed_in(format!("not signed in to {gateway}")));
    };
    let told = tell(&profile).await;
    let files = SshFiles::new(&context.folders);
    // The agent first: it finds the key by its file.
    let _ = agent::remove(&files);
    keys::forget(&files).map_err(|err| Failure::failed("cannot remove the ssh key").because(&err))?;
    profile::forget_token(&context.folders, &profile)
        .map_err(|err| Failure::failed("cannot remove the token").because(&err))?;
    let out = context.out;
    let ended = match &told {
        Ok(()) => true,
        // The token was over already: nothing is left of it there.
        Err(failure) => failure.exit() == Exit::NotSignedIn,
    };
    if out.json {
        out.json(&json!({ "gateway": profile.gateway, "user": profile.user, "ended_at_gateway": ended }))?;
    } else {
        out.line(format!("Signed out of {gateway}: token, ssh key and certificate are removed."))?;
    }
    match told {
        Err(failure) if !ended => Err(failure.next(format!(
            "the token itself lives until {}; `sallyport login` and `logout` again when the gateway is back, or ask \
             its operator to revoke it",
            clock::minute_ms(profile.expires_at_ms)
        ))),
        _ => Ok(()),
    }
}

async fn tell(profile: &profile::Profile) -> Result<(), Failure> {
    let channel = gateway::connect(&profile.gateway, &profile.ca_pem).await?;
    gateway::signed_in(channel, &profile.token)?
        .sign_out(SignOutRequest {})
        .await
        .map(drop)
        .map_err(|status| Failure::from_status("signing out at the gateway", &status))
}
