//! Signatures on policy versions: which of the configured keys say that this version is meant for this gateway, now.

use super::{Changes, Refused, RefusedKind, table};
use crate::state::now_ms;
use sallyport_evidence::Statement;
use sallyport_evidence::statement::StatementError;

/// A statement cannot be made later than now; clocks may differ by as much.
const SKEW_MS: u64 = 5 * 60 * 1000;
/// More statements than this come with no push.
const MOST: usize = 16;

/// What the statements that came with a version prove.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Signed {
    /// Names of the configured keys, sorted.
    pub(super) by: Vec<String>,
    /// The commit that was signed; none: nothing was signed, or no commit.
    pub(super) commit: Option<String>,
    /// The statements, with the times they were made at.
    pub(super) statements: Vec<(u64, String)>,
}

impl Changes {
    /// Checks the statements that came with a version. It may be the one in force: then their age does not matter.
    ///
    /// # Errors
    /// One is not acceptable, or one is demanded and there is none.
    pub(super) async fn signed(&self, version: &str, notes: &[String]) -> Result<Signed, Refused> {
        let rules = &self.inner.rules;
        let refuse = |message: String| Refused::new(RefusedKind::Signature, message);
        if notes.is_empty() {
            if rules.require_signature {
                let keys: Vec<&str> = rules.signers.iter().map(|key| key.name()).collect();
                return Err(refuse(format!(
                    "this gateway takes signed versions only, and this one is not signed; have it signed by {} with \
                     `sallyport policy sign` and push it with `--signature`",
                    keys.join(" or ")
                )));
            }
            return Ok(Signed::default());
        }
        if notes.len() > MOST {
            return Err(refuse(format!(
                "{} signed statements came with the version, the most is {MOST}",
                notes.len()
            )));
        }
        let mut signed = Signed::default();
        for note in notes {
            let (statement, by) = self.open(note).map_err(|err| refuse(err.to_string()))?;
            let Statement { gateway, version: of, commit, created_ms } = statement;
            if gateway != self.inner.gateway {
                return Err(refuse(format!(
                    "the version is signed for the gateway `{gateway}`, and this one is `{}`; sign it with `--for {}`",
                    self.inner.gateway, self.inner.gateway
                )));
            }
            if of != version {
                return Err(refuse(format!(
                    "the signature is on version {of}, and what was sent is version {version}; sign the bundle as it is now"
                )));
            }
            if created_ms > u64::try_from(now_ms()).unwrap_or_default() + SKEW_MS {
                let message = "the statement was signed in the future; check the clock of whoever signed it";
                return Err(refuse(message.to_owned()));
            }
            if signed.commit.as_ref().is_some_and(|other| *other != commit) {
                return Err(refuse(
                    "the statements that came with the version name two different commits".to_owned(),
                ));
            }
            signed.commit = Some(commit);
            signed.by.extend(by);
            signed.statements.push((created_ms, note.clone()));
        }
        signed.by.sort();
        signed.by.dedup();
        signed.commit = signed.commit.filter(|commit| !commit.is_empty());
        if version != self.inner.authorizer.policies().version() {
            self.are_newer(&signed).await?;
        }
        Ok(signed)
    }

    /// With no keys configured nothing is proved here, and statements are passed on for sensors to judge.
    fn open(&self, note: &str) -> Result<(Statement, Vec<String>), StatementError> {
        let keys = &self.inner.rules.signers;
        if keys.is_empty() {
            Ok((Statement::unverified(note)?, Vec::new()))
        } else {
            Statement::open(note, keys)
        }
    }

    /// Whoever can push could otherwise bring back, with its own signature, what was replaced for a reason.
    async fn are_newer(&self, signed: &Signed) -> Result<(), Refused> {
        let newest = table::newest_statement(&self.inner.state).await?;
        let Some(newest) = newest else { return Ok(()) };
        let Some((created_ms, _)) = signed.statements.iter().find(|(at, _)| *at <= newest) else {
            return Ok(());
        };
        let message = if *created_ms == newest {
            "this signed statement was used before, and its version is not in force any more; to return to it, sign it anew \
             (or roll back, which needs no signature)"
        } else {
            "this version was signed before one that has been in force since; sign it anew if it is meant to take its place"
        };
        Err(Refused::new(RefusedKind::Signature, message))
    }
}
