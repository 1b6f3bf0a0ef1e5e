//! Pushing a version, and rolling back to one: checked against what is in force at that moment, then carried out.

use super::load::check;
use super::{InForce, PolicyError, PolicyStore, PushNote, Pushed, short};
use crate::authorize::Authorizer;
use crate::state::now_ms;
use crate::state::policies::{self, How, Stored};
use sallyport_evidence::record::{Identity, Outcome};

/// The least of a version's digits that stand for it.
const DIGITS: usize = 4;

impl PolicyStore {
    /// Checks a version and, if it is sound, puts it into force: here, in all running sessions, on all sensors.
    /// All problems are reported at once, and then the version before stays in force.
    ///
    /// # Errors
    /// It may not come into force now, or could not be stored or recorded; the version before stays in force.
    pub(crate) async fn push(
        &self,
        archive: Vec<u8>,
        note: PushNote,
        by: &Identity,
        authorizer: &Authorizer,
    ) -> Result<Pushed, PolicyError> {
        let _one_at_a_time = self.changing.lock().await;
        self.stands(&note.expect)?;
        match self.admit(archive, note, How::Push, by, authorizer).await? {
            Err(refused) => Ok(refused),
            Ok(loaded) if loaded.stored.version == self.version() => {
                let version = loaded.stored.version;
                let what = format!(
                    "push of policy {}: it is in force already, nothing was changed",
                    short(&version)
                );
                self.attempted(Some(by), Outcome::Allowed, &version, &what).await?;
                let serial = self.serial();
                Ok(Pushed {
                    previous: version.clone(),
                    version,
                    serial,
                    unchanged: true,
                    ..Pushed::default()
                })
            }
            Ok(loaded) => self.carry_out(loaded, None, Some(by), authorizer).await,
        }
    }

    /// Puts an earlier version into force again, as a new change: `version` or its first digits; empty: the one before.
    ///
    /// # Errors
    /// As [`Self::push`], or there is no such version.
    pub(crate) async fn roll_back(
        &self,
        version: &str,
        reason: &str,
        expect: &str,
        by: &Identity,
        authorizer: &Authorizer,
    ) -> Result<Pushed, PolicyError> {
        let _one_at_a_time = self.changing.lock().await;
        self.stands(expect)?;
        let target = self.target(version).await?;
        let note = PushNote {
            commit: target.commit,
            author: target.author,
            message: reason.to_owned(),
            signatures: target.signatures,
            expect: String::new(),
        };
        // What was sound when it was pushed may not be for the sessions that run now, or for this release.
        match self.admit(target.archive.to_vec(), note, How::Rollback, by, authorizer).await? {
            Err(refused) => Ok(refused),
            Ok(mut loaded) => {
                loaded.stored.restores = Some(target.restores.unwrap_or(target.serial));
                self.carry_out(loaded, None, Some(by), authorizer).await
            }
        }
    }

    /// What the version named by `digits` is, in full.
    ///
    /// # Errors
    /// None or several begin so.
    pub async fn resolve(&self, digits: &str) -> Result<String, PolicyError> {
        let refuse = |text: String| Err(PolicyError::NoVersion(text));
        let hex = digits.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        if !hex || !(DIGITS..=64).contains(&digits.len()) {
            return refuse(format!(
                "`{}` names no version: write at least {DIGITS} of its 64 digits (0-9, a-f); `sallyport policy list` shows them",
                digits.chars().take(80).collect::<String>()
            ));
        }
        let found = policies::beginning_with(&self.state, digits).await?;
        match found.as_slice() {
            [version] => Ok(version.clone()),
            [] => refuse(format!(
                "no version that was ever in force here begins with {digits}; `sallyport policy list` shows them all"
            )),
            several => {
                let several: Vec<&str> = several.iter().map(|version| short(version)).collect();
                refuse(format!(
                    "several versions begin with {digits}: {}; write more digits",
                    several.join(", ")
                ))
            }
        }
    }

    async fn target(&self, version: &str) -> Result<Stored, PolicyError> {
        let none = || PolicyError::NoVersion("no policy was in force before this one".to_owned());
        let current = self.current().ok_or_else(none)?;
        let target = if version.is_empty() {
            policies::before(&self.state, &current.stored).await?
        } else {
            policies::by_version(&self.state, &self.resolve(version).await?).await?
        };
        let target = target.ok_or_else(none)?;
        if target.version == current.stored.version {
            return Err(PolicyError::NotNow(format!(
                "policy {} is in force already",
                short(&target.version)
            )));
        }
        Ok(target)
    }

    /// No canary runs, and what is in force is what the caller thinks it is.
    ///
    /// # Errors
    /// The text is for the person.
    pub(crate) fn stands(&self, expect: &str) -> Result<(), PolicyError> {
        let standing = self.standing();
        let current = standing.stable.as_ref().map(|stable| &stable.stored);
        let has = current.map(|stored| stored.version.clone()).unwrap_or_default();
        let problem = if let Some(canary) = &standing.canary {
            format!(
                "the canary of policy {} is running; end it first with `sallyport policy canary promote` or `abort`",
                short(&canary.in_force.stored.version)
            )
        } else if !expect.is_empty() && (expect.len() < DIGITS || !has.starts_with(expect)) {
            let who = current.filter(|stored| !stored.pushed_by.is_empty());
            let who = who.map(|stored| format!(" (from {})", stored.pushed_by)).unwrap_or_default();
            format!(
                "policy {} is in force{who}, not {}; see what changed with `sallyport policy diff`, then push again",
                if has.is_empty() { "none" } else { short(&has) },
                short(expect)
            )
        } else {
            return Ok(());
        };
        Err(PolicyError::NotNow(problem))
    }

    /// Checks a version against the sessions that run now. The inner error is the answer to a faulty one, which is on record.
    pub(super) async fn admit(
        &self,
        archive: Vec<u8>,
        note: PushNote,
        how: How,
        by: &Identity,
        authorizer: &Authorizer,
    ) -> Result<Result<InForce, Pushed>, PolicyError> {
        let sessions = authorizer.running();
        let PushNote { commit, author, message, signatures, .. } = note;
        let stored = Stored {
            commit,
            author,
            message,
            signatures,
            how,
            pushed_ms: now_ms(),
            pushed_by: by.user.clone(),
            archive: archive.into(),
            ..Stored::default()
        };
        // Parsing and compiling take their time: not on the runtime's threads.
        let checked = tokio::task::spawn_blocking(move || check(stored, &sessions)).await;
        let checked = checked.unwrap_or_else(|_| Err(vec!["the check of this policy failed".into()]));
        match checked {
            Ok(loaded) => Ok(Ok(loaded)),
            Err(problems) => {
                let previous = self.version();
                let what = format!("{} refused: {}", how.name(), problems.join("; "));
                self.attempted(Some(by), Outcome::Blocked, &previous, &what).await?;
                Ok(Err(Pushed { previous, problems, ..Pushed::default() }))
            }
        }
    }
}
