//! Who brings a change: a person with a bearer token of this gateway, or a CI job with its OpenID token.

use super::{Came, Changes, Note, Refused, RefusedKind};
use crate::ci::Ci;
use crate::state::tokens;
use sallyport_evidence::record::Identity;
use sallyport_policy::Change;
use std::net::SocketAddr;

/// Somebody who has proved who they are.
#[derive(Clone, Debug)]
pub struct Caller {
    /// Who.
    pub identity: Identity,
    /// Where from.
    pub client: SocketAddr,
    /// What is known of where their change comes from: of a CI job, what its token says.
    pub change: Change,
    /// The commit that a CI job runs for; empty: not a job, or its token does not say.
    pub commit: String,
}

impl Changes {
    /// Who asks. Tokens that prove nothing are on the record, as many as one address may try.
    ///
    /// # Errors
    /// No token, or it proves nothing, or there were too many such.
    pub async fn caller(&self, token: Option<&str>, client: SocketAddr) -> Result<Caller, Refused> {
        let unproved = |text: &str| Refused::new(RefusedKind::Unauthenticated, text);
        let Some(token) = token.filter(|token| !token.is_empty()) else {
            return Err(unproved(
                "sign in first: sallyport login; a CI job sends its OpenID token as bearer token",
            ));
        };
        self.inner.failures.admit(client.ip())?;
        let refused = if Ci::is_meant(token) {
            match self.inner.ci.verify(token).await {
                Ok(job) => {
                    let (identity, change, commit) = (job.identity(), job.change(), job.commit);
                    return Ok(Caller { identity, client, change, commit });
                }
                Err(err) => Refused::from(err),
            }
        } else {
            match tokens::bearer(&self.inner.state, token).await? {
                Some((identity, _)) => {
                    return Ok(Caller { identity, client, change: Change::default(), commit: String::new() });
                }
                None => unproved("the sign-in is over; sign in again: sallyport login"),
            }
        };
        let unseen = self.inner.failures.note(client.ip());
        let before =
            if unseen > 0 { format!("; {unseen} more were turned away before it") } else { String::new() };
        let (version, message) = (
            self.inner.authorizer.policies().version(),
            format!("a change of policy refused: {refused}{before}"),
        );
        let note = Note {
            action: "push_policy",
            came: Came::Blocked,
            version: &version,
            rule: "",
            message: &message,
        };
        match self.record(None, Some(client), note).await {
            Ok(()) => Err(refused),
            Err(unrecorded) => Err(unrecorded),
        }
    }
}
