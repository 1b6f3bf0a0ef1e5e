//! `policy proposals`, `policy approve`, `policy reject`: the two-person rule.

use sallyport_contract::v1::{ListProposalsRequest, Proposal, SettleProposalRequest};
use serde_json::{Value, json};

use super::push;
use crate::{
    args::Settle,
    clock,
    failure::Failure,
    gateway::{Console, Context},
    out::Look,
    text::safe,
};

/// Lists what waits.
pub(super) async fn list(context: &Context) -> Result<(), Failure> {
    let (mut console, _) = context.console().await?;
    let proposals = waiting(&mut console).await?;
    let out = context.out;
    if out.json {
        let list: Vec<Value> = proposals.iter().map(document).collect();
        out.json(&json!({ "proposals": list }))?;
        return Ok(());
    }
    if proposals.is_empty() {
        out.line("Nothing waits for approval.")?;
    }
    for proposal in proposals {
        let by = match proposal.on_behalf_of.as_str() {
            "" => safe(&proposal.proposed_by, 200),
            actor => format!("{}, started by {}", safe(&proposal.proposed_by, 200), safe(actor, 100)),
        };
        out.line(out.look(Look::Bold, &safe(&proposal.version, 64)))?;
        out.line(format!("  proposed by {by}, {}", clock::minute_ms(proposal.proposed_at_ms)))?;
        for (name, text) in [
            ("why:     ", &proposal.message),
            ("author:  ", &proposal.author),
            ("commit:  ", &proposal.commit),
            ("from:    ", &proposal.from),
            ("signed:  ", &proposal.signed_by.join(", ")),
            ("replaces:", &proposal.base_version),
        ] {
            if !text.is_empty() {
                out.line(format!("  {name} {}", safe(text, 300)))?;
            }
        }
        out.line(format!("  void after {}", clock::minute_ms(proposal.expires_at_ms)))?;
    }
    out.remark(
        "See what one holds with `sallyport policy show VERSION`; then `policy approve` or `policy reject`.",
    )?;
    Ok(())
}

/// Approves one: it comes into force.
pub(super) async fn approve(context: &Context, args: Settle) -> Result<(), Failure> {
    let (mut console, _) = context.console().await?;
    let version = whole(&mut console, &args.version).await?;
    let request = SettleProposalRequest { version, approve: true, reason: args.reason };
    let answer = push::until_answered(context, console.settle_proposal(request)).await;
    let answer =
        answer.map_err(|status| Failure::from_status("approving the proposal", &status))?.into_inner();
    push::told(context, &answer)
}

/// Rejects one, or withdraws one's own.
pub(super) async fn reject(context: &Context, args: Settle) -> Result<(), Failure> {
    let (mut console, _) = context.console().await?;
    let version = whole(&mut console, &args.version).await?;
    let request = SettleProposalRequest { version, approve: false, reason: args.reason };
    let answer = console.settle_proposal(request).await;
    let answer =
        answer.map_err(|status| Failure::from_status("rejecting the proposal", &status))?.into_inner();
    if context.out.json {
        context
            .out
            .json(&json!({ "rejected": answer.version, "version_in_force": answer.previous_version }))?;
    } else {
        context.out.line(format!("Rejected: {}", safe(&answer.version, 64)))?;
    }
    Ok(())
}

async fn waiting(console: &mut Console) -> Result<Vec<Proposal>, Failure> {
    let answer = console.list_proposals(ListProposalsRequest {}).await;
    let answer = answer.map_err(|status| Failure::from_status("listing proposals", &status))?;
    Ok(answer.into_inner().proposals)
}

/// The full version that begins so: approving is about exactly one.
async fn whole(console: &mut Console, begins: &str) -> Result<String, Failure> {
    if begins.len() == 64 {
        return Ok(begins.to_owned());
    }
    if begins.len() < 8 {
        return Err(Failure::usage("a version is named by eight digits at least"));
    }
    let proposals = waiting(console).await?;
    let mut fit = proposals.into_iter().filter(|proposal| proposal.version.starts_with(begins));
    match (fit.next(), fit.next()) {
        (Some(proposal), None) => Ok(proposal.version),
        (Some(_), Some(_)) => Err(Failure::usage(format!("several proposals begin with `{begins}`"))),
        (None, _) => Err(Failure::failed(format!("no proposal begins with `{}`", safe(begins, 64)))
            .next("`sallyport policy proposals` lists what waits")),
    }
}

fn document(proposal: &Proposal) -> Value {
    json!({
        "version": proposal.version, "base_version": proposal.base_version, "proposed_by": proposal.proposed_by,
        "on_behalf_of": proposal.on_behalf_of, "commit": proposal.commit, "author": proposal.author,
        "message": proposal.message, "proposed_at_ms": proposal.proposed_at_ms, "expires_at_ms": proposal.expires_at_ms,
        "signed_by": proposal.signed_by, "from": proposal.from,
    })
}
