//! `sallyport login`: tokens in, an identity and an SSH certificate out.

use super::{Credentials, OpenId};
use crate::authority::ssh::SshAuthority;
use crate::authorize::{Authorizer, SignInAttempt};
use crate::console::{SignIn, SignInError, SignedIn};
use crate::ssh::config::Config as SshConfig;
use russh::keys::PublicKey;
use sallyport_contract::v1::{SignInOptionsResponse, SignInRequest};
use sallyport_evidence::record::Identity;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::SystemTime;

/// An OpenSSH public key line; RSA 16384 is under 3 kB.
const MAX_KEY_LINE: usize = 8 * 1024;

/// Where `sallyport login` gets what it needs.
pub struct Desk {
    /// Verifies tokens.
    pub openid: OpenId,
    /// Records certificates.
    pub credentials: Credentials,
    /// Signs them.
    pub authority: Arc<SshAuthority>,
    /// Records sign-ins.
    pub authorizer: Authorizer,
    /// Where the SSH door is, and how long certificates last.
    pub ssh: SshConfig,
    /// The gateway's name.
    pub gateway_name: String,
}

#[tonic::async_trait]
impl SignIn for Desk {
    fn options(&self) -> SignInOptionsResponse {
        let config = self.openid.config();
        SignInOptionsResponse {
            issuer: config.issuer.clone(),
            client_id: config.cli_client_id.clone(),
            scopes: std::iter::once("openid".to_owned()).chain(config.scopes.iter().cloned()).collect(),
            gateway_name: self.gateway_name.clone(),
            ssh_host: self.ssh.host.clone().unwrap_or_else(|| self.gateway_name.clone()),
            ssh_port: u32::from(self.ssh.port),
        }
    }

    async fn sign_in(&self, request: &SignInRequest, client: SocketAddr) -> Result<SignedIn, SignInError> {
        let proved = self.prove(request).await;
        let failure = proved.as_ref().err().map(|err| err.0.clone());
        let attempt = SignInAttempt {
            identity: proved.as_ref().ok().map(|(identity, _)| identity),
            method: "token",
            client,
            failure: failure.as_deref(),
        };
        // A sign-in that cannot be recorded is none.
        self.authorizer.sign_in_record(attempt).await.map_err(|refusal| SignInError(refusal.message))?;
        let (identity, key) = proved?;
        let ssh_certificate = match key {
            None => String::new(),
            Some(key) => self.certify(&identity, &key).await?,
        };
        Ok(SignedIn {
            identity,
            expires_at: SystemTime::now() + self.ssh.certificate,
            ssh_certificate,
            ssh_host_ca: self.authority.host_ca_line(),
        })
    }
}

impl Desk {
    async fn prove(&self, request: &SignInRequest) -> Result<(Identity, Option<PublicKey>), SignInError> {
        let identity = self
            .openid
            .verify_cli_sign_in(&request.id_token, &request.nonce, &request.access_token)
            .await
            .map_err(|err| SignInError(err.to_string()))?;
        let key =
            match request.ssh_public_key.trim() {
                "" => None,
                line if line.len() <= MAX_KEY_LINE => Some(PublicKey::from_openssh(line).map_err(|err| {
                    SignInError(format!("the SSH public key that was sent is not one: {err}"))
                })?),
                _ => return Err(SignInError("the SSH public key that was sent is too long".to_owned())),
            };
        Ok((identity, key))
    }

    async fn certify(&self, identity: &Identity, key: &PublicKey) -> Result<String, SignInError> {
        let failed = |err: &dyn std::error::Error| {
            tracing::error!(user = identity.user, error = %crate::chain(err), "no certificate");
            SignInError(
                "you are signed in, but no SSH certificate could be made; tell whoever runs the gateway"
                    .to_owned(),
            )
        };
        let certificate = self
            .authority
            .issue_user_certificate(&self.credentials, identity, key, self.ssh.certificate)
            .await
            .map_err(|err| failed(&err))?;
        certificate.to_openssh().map_err(|err| failed(&err))
    }
}
