//! `sessions` and `session end`.

use std::time::Duration;

use sallyport_contract::v1::{EndSessionRequest, ListSessionsRequest, SessionInfo};
use serde_json::json;

use crate::{
    args::Sessions,
    clock,
    failure::Failure,
    gateway::Context,
    out::{Look, Out},
    text::{columns, safe},
};

/// Lists sessions.
///
/// # Errors
/// The gateway refuses or cannot be asked.
pub async fn list(context: &Context, args: Sessions) -> Result<(), Failure> {
    let (mut console, _) = context.console().await?;
    let request = ListSessionsRequest {
        active_only: args.active,
        user: args.user.unwrap_or_default(),
        host: args.host.unwrap_or_default(),
        limit: args.limit,
    };
    let sessions = console
        .list_sessions(request)
        .await
        .map_err(|status| Failure::from_status("listing sessions", &status))?
        .into_inner()
        .sessions;
    let out = context.out;
    if out.json {
        return sessions.iter().try_for_each(|session| out.json(&document(session))).map_err(Into::into);
    }
    if sessions.is_empty() {
        out.line("No session.")?;
        return Ok(());
    }
    let mut rows = vec![
        ["SESSION", "STARTED", "FOR", "WHO", "WHERE", "DENIED", "WHAT", "STATE"].map(str::to_owned).to_vec(),
    ];
    rows.extend(sessions.iter().map(row));
    let mut lines = columns(&rows).into_iter();
    if let Some(head) = lines.next() {
        out.line(out.look(Look::Bold, &head))?;
    }
    for (line, session) in lines.zip(&sessions) {
        out.line(look(out, session, &line))?;
    }
    Ok(())
}

fn look(out: Out, session: &SessionInfo, line: &str) -> String {
    if session.denials > 0 {
        out.look(Look::Yellow, line)
    } else if session.ended_at_ms == 0 {
        out.look(Look::Green, line)
    } else {
        line.to_owned()
    }
}

fn row(session: &SessionInfo) -> Vec<String> {
    let end = if session.ended_at_ms == 0 { clock::now_ms() } else { session.ended_at_ms };
    let length = u64::try_from(end.saturating_sub(session.started_at_ms)).unwrap_or(0);
    let state = if session.ended_at_ms == 0 { "running".to_owned() } else { safe(&session.end_reason, 60) };
    let what: Vec<String> = session.channels.iter().take(3).map(|channel| safe(&channel.what, 30)).collect();
    let more = session.channels.len().saturating_sub(what.len());
    let what = if more > 0 { format!("{} +{more}", what.join(", ")) } else { what.join(", ") };
    vec![
        safe(&session.session_id, 60),
        clock::minute_ms(session.started_at_ms),
        clock::span(Duration::from_millis(length)),
        safe(&session.user, 60),
        format!("{}@{}", safe(&session.local_user, 40), safe(&session.host, 60)),
        session.denials.to_string(),
        what,
        state,
    ]
}

fn document(session: &SessionInfo) -> serde_json::Value {
    let channels: Vec<serde_json::Value> = session
        .channels
        .iter()
        .map(|channel| {
            json!({
                "channel_id": channel.channel_id,
                "what": channel.what,
                "started_at_ms": channel.started_at_ms,
                "ended_at_ms": channel.ended_at_ms,
                "has_recording": channel.has_recording,
            })
        })
        .collect();
    json!({
        "session_id": session.session_id,
        "user": session.user,
        "host": session.host,
        "local_user": session.local_user,
        "started_at_ms": session.started_at_ms,
        "ended_at_ms": session.ended_at_ms,
        "active": session.ended_at_ms == 0,
        "client_address": session.client_address,
        "policy_version": session.policy_version,
        "end_reason": session.end_reason,
        "denials": session.denials,
        "channels": channels,
    })
}

/// Ends a session.
///
/// # Errors
/// The gateway refuses or cannot be asked.
pub async fn end(context: &Context, id: String, reason: String) -> Result<(), Failure> {
    let (mut console, _) = context.console().await?;
    console
        .end_session(EndSessionRequest { session_id: id.clone(), reason })
        .await
        .map_err(|status| Failure::from_status("ending the session", &status))?;
    if context.out.json {
        context.out.json(&json!({ "session_id": id, "ended": true }))?;
    } else {
        context.out.line(format!("Session {} is ended.", safe(&id, 60)))?;
    }
    Ok(())
}
