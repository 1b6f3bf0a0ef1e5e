//! Renewing the certificate: a fresh key and certificate when two thirds of the old one's time have passed. A host that
//! joined before orders of policy were signed does it at once, and so learns the key that they are verified with.

use std::time::Duration;

use sallyport_contract::v1::RenewRequest;
use sallyport_evidence::note::Verifier;

use super::{Client, Lost};
use crate::clock;
use crate::credentials::{Credentials, CredentialsError, is_certificate, key_and_request};

/// After a failed renewal, before the next try.
const RETRY: Duration = Duration::from_mins(10);
/// Longest sleep at once: the wall clock may be set in between.
const NAP: Duration = Duration::from_mins(10);

/// Waits until renewal is due and does it. Failures are retried while the old certificate lasts.
pub(super) async fn when_due(credentials: &Credentials, mut client: Client) -> Result<Credentials, Lost> {
    let (from, to) = credentials.validity()?;
    let due_ms = match credentials.policy_verifier() {
        Some(_) => (to - (to - from) / 3).saturating_mul(1_000),
        None => 0,
    };
    loop {
        let left = u64::try_from(due_ms - clock::wall_ms()).unwrap_or(0);
        if left > 0 {
            tokio::time::sleep(NAP.min(Duration::from_millis(left))).await;
            continue;
        }
        match renew(credentials, &mut client).await {
            Ok(renewed) => return Ok(renewed),
            Err(error) => {
                tracing::warn!(reason = %super::chain(&error), "the certificate could not be renewed; trying again")
            }
        }
        tokio::time::sleep(RETRY).await;
    }
}

async fn renew(credentials: &Credentials, client: &mut Client) -> Result<Credentials, Lost> {
    let (key_pem, csr_pem) = key_and_request(&credentials.host)?;
    let answer = client.renew(RenewRequest { csr_pem }).await.map_err(Box::new)?.into_inner();
    if !is_certificate(&answer.certificate_pem) || !is_certificate(&answer.ca_pem) {
        return Err(CredentialsError::Certificate.into());
    }
    let key = Verifier::parse(&answer.policy_key).map_err(CredentialsError::PolicyKey)?;
    // Once known it is not changed by whoever is at the other end, but by joining again.
    let policy_key = credentials.policy_verifier().unwrap_or_else(|| key.clone());
    if policy_key != key {
        tracing::error!(
            known = %policy_key, given = %key,
            "the gateway gives another key for its orders of policy; it is not taken: if that is right, join this host again"
        );
    }
    Ok(Credentials {
        policy_key: policy_key.to_string(),
        key_pem,
        certificate_pem: answer.certificate_pem,
        ca_pem: answer.ca_pem,
        ..credentials.clone()
    })
}
