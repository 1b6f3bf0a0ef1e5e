//! `sensor token` and `sensor revoke`: letting hosts join, and shutting them out.

use std::time::Duration;

use sallyport_contract::v1::{CreateJoinTokenRequest, RevokeSensorRequest};
use serde_json::json;

use crate::{clock, failure::Failure, gateway::Context, text::safe};

/// Makes a one-time token.
///
/// # Errors
/// The gateway refuses or cannot be asked.
pub async fn token(context: &Context, host: String, ttl: Duration) -> Result<(), Failure> {
    let ttl_seconds = u32::try_from(ttl.as_secs())
        .ok()
        .filter(|seconds| *seconds > 0)
        .ok_or_else(|| Failure::usage("--ttl is at least a second"))?;
    let (mut console, profile) = context.console().await?;
    let made = console
        .create_join_token(CreateJoinTokenRequest { host: host.clone(), ttl_seconds })
        .await
        .map_err(|status| Failure::from_status("making a join token", &status))?
        .into_inner();
    let out = context.out;
    if out.json {
        out.json(&json!({
            "host": host,
            "token": made.token,
            "expires_at_ms": made.expires_at_ms,
            "ca_sha256": made.ca_sha256,
        }))?;
        return Ok(());
    }
    out.line(safe(&made.token, 1000))?;
    let (host, pin) = (safe(&host, 80), safe(&made.ca_sha256, 100));
    let when = clock::minute_ms(made.expires_at_ms);
    eprintln!(
        "\nThe line above joins {host} once, until {when}. On {host}, put it into a file that only root reads, and:\n  \
         sallyport-sensor join --gateway {} --ca-sha256 {pin} --token-file FILE",
        profile.gateway
    );
    Ok(())
}

/// Shuts a sensor out.
///
/// # Errors
/// The gateway refuses or cannot be asked.
pub async fn revoke(context: &Context, host: String, reason: String) -> Result<(), Failure> {
    let (mut console, _) = context.console().await?;
    console
        .revoke_sensor(RevokeSensorRequest { host: host.clone(), reason })
        .await
        .map_err(|status| Failure::from_status("revoking the sensor", &status))?;
    if context.out.json {
        context.out.json(&json!({ "host": host, "revoked": true }))?;
    } else {
        let host = safe(&host, 80);
        context
            .out
            .line(format!("The sensor of {host} is shut out; {host} must join anew with a fresh token."))?;
    }
    Ok(())
}
