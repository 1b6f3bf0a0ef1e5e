//! `targets`: the hosts that a person may reach.

use sallyport_contract::v1::ListTargetsRequest;
use serde_json::json;

use crate::{
    failure::Failure,
    gateway::Context,
    out::Look,
    text::{columns, safe},
};

/// Runs it.
///
/// # Errors
/// Not signed in, or the gateway cannot be asked.
pub async fn run(context: &Context) -> Result<(), Failure> {
    let (mut console, _) = context.console().await?;
    let answer = console
        .list_targets(ListTargetsRequest {})
        .await
        .map_err(|status| Failure::from_status("listing targets", &status))?
        .into_inner();
    let out = context.out;
    if out.json {
        for target in &answer.targets {
            out.json(&json!({
                "host": target.host,
                "local_users": target.local_users,
                "connected": target.connected,
                "mode": target.mode,
                "kernel": target.kernel,
                "policy_version": target.policy_version,
                "policy_trouble": target.policy_trouble,
                "ssh_command": target.ssh_command,
            }))?;
        }
        return Ok(());
    }
    if answer.targets.is_empty() {
        out.line("No target: the policy in force lets you open a session nowhere, or no host has joined.")?;
        return Ok(());
    }
    let mut rows =
        vec![["HOST", "USERS", "STATE", "ENFORCED BY", "POLICY", "CONNECT WITH"].map(str::to_owned).to_vec()];
    rows.extend(answer.targets.iter().map(|target| {
        vec![
            safe(&target.host, 60),
            safe(&target.local_users.join(","), 60),
            if target.connected { "up" } else { "down" }.to_owned(),
            safe(&target.mode, 20),
            safe(&target.policy_version, 12).trim_end_matches('…').to_owned(),
            safe(&target.ssh_command, 120),
        ]
    }));
    let mut lines = columns(&rows).into_iter();
    if let Some(head) = lines.next() {
        out.line(out.look(Look::Bold, &head))?;
    }
    for (line, target) in lines.zip(&answer.targets) {
        out.line(if target.connected { line } else { out.look(Look::Dim, &line) })?;
    }
    for target in answer.targets.iter().filter(|target| target.connected && !target.policy_trouble.is_empty())
    {
        let told = format!("{}: {}", safe(&target.host, 60), safe(&target.policy_trouble, 300));
        out.line(out.look(Look::Red, &told))?;
    }
    Ok(())
}
