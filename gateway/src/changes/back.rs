//! Canaries and rolling back: who may, and what they must bring. A canary needs what a push needs; going back to what was in
//! force before needs the right to push, and nobody else, since it may have to be quick.

use super::push::Admitted;
use super::{Caller, Changes, Push, Refused, RefusedKind, table};
use crate::policy::{Pushed, WantedCanary};

impl Changes {
    /// Tries a version on some hosts or in some sessions.
    ///
    /// # Errors
    /// It may not, or could not be done. What was in force stays in force.
    pub(crate) async fn canary(
        &self,
        caller: &Caller,
        push: Push,
        wanted: &WantedCanary,
    ) -> Result<Pushed, Refused> {
        let _one_at_a_time = self.inner.changing.lock().await;
        match self.try_canary(caller, push, wanted).await {
            Ok(pushed) => Ok(pushed),
            Err(refused) => Err(self.refused(caller, "canary_policy", refused).await),
        }
    }

    async fn try_canary(
        &self,
        caller: &Caller,
        push: Push,
        wanted: &WantedCanary,
    ) -> Result<Pushed, Refused> {
        let Admitted { archive, version, note, waits, statements, .. } =
            match self.admit(caller, push).await? {
                Ok(admitted) => admitted,
                Err(faulty) => return Ok(faulty),
            };
        if waits {
            let text = "a canary would be in force without another person's approval, which this gateway wants; push it, and have it approved";
            return Err(Refused::new(RefusedKind::Denied, text));
        }
        table::keep_statements(&self.inner.state, &version, statements).await?;
        let authorizer = &self.inner.authorizer;
        Ok(authorizer.policies().start_canary(archive, note, wanted, &caller.identity, authorizer).await?)
    }

    /// Ends the canary that runs: its version everywhere, or nowhere.
    ///
    /// # Errors
    /// None runs, or policy does not permit it.
    pub async fn end_canary(&self, caller: &Caller, promote: bool, why: &str) -> Result<Pushed, Refused> {
        let _one_at_a_time = self.inner.changing.lock().await;
        match self.try_end_canary(caller, promote, why).await {
            Ok(pushed) => Ok(pushed),
            Err(refused) => Err(self.refused(caller, "canary_policy", refused).await),
        }
    }

    async fn try_end_canary(&self, caller: &Caller, promote: bool, why: &str) -> Result<Pushed, Refused> {
        let authorizer = &self.inner.authorizer;
        self.may_push(caller)?;
        Ok(authorizer.policies().end_canary(promote, why, Some(&caller.identity), authorizer).await?)
    }

    /// Puts an earlier version into force again: `version` or its first digits; empty: the one before.
    ///
    /// # Errors
    /// There is none, it may not, or could not be done.
    pub async fn roll_back(
        &self,
        caller: &Caller,
        version: &str,
        reason: &str,
        expect: &str,
    ) -> Result<Pushed, Refused> {
        let _one_at_a_time = self.inner.changing.lock().await;
        match self.try_roll_back(caller, version, reason, expect).await {
            Ok(pushed) => Ok(pushed),
            Err(refused) => Err(self.refused(caller, "roll_back_policy", refused).await),
        }
    }

    async fn try_roll_back(
        &self,
        caller: &Caller,
        version: &str,
        reason: &str,
        expect: &str,
    ) -> Result<Pushed, Refused> {
        let authorizer = &self.inner.authorizer;
        self.may_push(caller)?;
        Ok(authorizer.policies().roll_back(version, reason, expect, &caller.identity, authorizer).await?)
    }

    fn may_push(&self, caller: &Caller) -> Result<(), Refused> {
        // What comes was approved when it came first.
        self.must_wait(caller, &caller.change).map(drop)
    }
}
