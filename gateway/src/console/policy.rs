//! Policy versions by gRPC: listing them, rolling back, canaries.

use super::changes::{answer, pushed};
use super::manage::cut;
use super::{Service, internal};
use crate::policy::WantedCanary;
use crate::state::canaries;
use crate::state::policies::{self, How, Stored};
use sallyport_contract::v1::*;
use std::time::Duration;
use tonic::{Request, Response, Status};

/// Hosts and groups named for a canary at most.
const NAMES: usize = 10_000;

impl Service {
    pub(super) async fn roll_back(
        &self,
        request: Request<RollBackPolicyRequest>,
    ) -> Result<Response<PushPolicyResponse>, Status> {
        let caller = self.changer(&request).await?;
        let RollBackPolicyRequest { version, reason, expect_version } = request.into_inner();
        let changed = self.changes.roll_back(&caller, &version, &reason_of(&reason), &expect_version).await?;
        Ok(Response::new(answer(changed)))
    }

    pub(super) async fn canary(
        &self,
        request: Request<StartCanaryRequest>,
    ) -> Result<Response<PushPolicyResponse>, Status> {
        let caller = self.changer(&request).await?;
        let StartCanaryRequest { push, hosts, share, seconds, max_denials, max_denial_ratio } =
            request.into_inner();
        let lasts = (seconds > 0).then(|| Duration::from_secs(seconds.into()));
        let hosts = hosts.into_iter().take(NAMES).collect();
        let wanted = WantedCanary { hosts, share, lasts, max_denials, max_denial_ratio };
        let changed = self.changes.canary(&caller, pushed(push.unwrap_or_default()), &wanted).await?;
        Ok(Response::new(answer(changed)))
    }

    pub(super) async fn canary_end(
        &self,
        request: Request<EndCanaryRequest>,
    ) -> Result<Response<PushPolicyResponse>, Status> {
        let caller = self.changer(&request).await?;
        let EndCanaryRequest { promote, reason } = request.into_inner();
        Ok(Response::new(answer(self.changes.end_canary(&caller, promote, &reason_of(&reason)).await?)))
    }

    pub(super) async fn policies(
        &self,
        request: Request<ListPoliciesRequest>,
    ) -> Result<Response<ListPoliciesResponse>, Status> {
        let caller = self.changer(&request).await?;
        self.changes.may_see(&caller)?;
        let limit = match request.into_inner().limit {
            0 => u32::MAX,
            limit => limit,
        };
        let store = self.authorizer.policies();
        let versions = policies::list(&self.state, limit).await.map_err(internal)?;
        let current = store.current().map_or(0, |current| current.stored.serial);
        let canary = store.canary().await.map_err(internal)?;
        let mut hosts = self.authorizer.sensor_registry().known_hosts();
        hosts.sort_unstable();
        Ok(Response::new(ListPoliciesResponse {
            versions: versions.into_iter().map(listed).collect(),
            serial_in_force: current,
            canary: canary.map(tried),
            sensors: hosts.iter().map(|host| self.authorizer.sensor_policy(host)).collect(),
        }))
    }
}

fn reason_of(text: &str) -> String {
    if text.trim().is_empty() { "no reason given".to_owned() } else { cut(text) }
}

pub(super) fn listed(stored: Stored) -> PolicyVersion {
    let Stored { serial, version, commit, author, message, pushed_ms, pushed_by, how, signatures, .. } =
        stored;
    let how = How::name(how).to_owned();
    PolicyVersion {
        serial,
        version,
        commit,
        author,
        pushed_by,
        message,
        pushed_at_ms: pushed_ms,
        how,
        signatures,
    }
}

fn tried(canary: canaries::Canary) -> Canary {
    let canaries::Canary {
        serial, version, started_ms, plan, state, why, ended_ms, denials, decisions, ..
    } = canary;
    Canary {
        serial,
        version,
        hosts: plan.hosts,
        share: plan.share.into(),
        started_at_ms: started_ms,
        until_ms: plan.until_ms,
        max_denials: plan.max_denials.unwrap_or(u64::MAX),
        max_denial_ratio: plan.max_denial_ratio.unwrap_or(0),
        denials,
        decisions,
        state,
        why,
        ended_at_ms: ended_ms.unwrap_or(0),
    }
}
