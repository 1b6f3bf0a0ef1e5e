//! The device authorization grant (RFC 8628): a link and a code for the person, polling for us.

use super::provider::{OpenId, SignInError};
use openidconnect::core::{CoreClient, CoreDeviceAuthorizationResponse};
use openidconnect::{
    AuthType, ClientId, DeviceAuthorizationUrl, DeviceCodeErrorResponseType, OAuth2TokenResponse,
    RequestTokenError, Scope, TokenResponse,
};
use sallyport_evidence::record::Identity;
use std::time::Duration;

/// Metadata may be this old when a device flow starts.
const METADATA_AGE: Duration = Duration::from_secs(3600);
/// A link that is good for longer would hold a connection for longer.
const LONGEST: Duration = Duration::from_secs(15 * 60);

/// A device flow under way: show [`Self::link`] and [`Self::code`], await [`Self::finish`].
pub struct DeviceSignIn {
    /// Where to sign in, with the code in it where the provider offers that.
    pub link: String,
    /// The code to compare, or to enter.
    pub code: String,
    /// How long the link is good for.
    pub expires_in: Duration,
    openid: OpenId,
    endpoint: DeviceAuthorizationUrl,
    details: CoreDeviceAuthorizationResponse,
}

impl OpenId {
    /// Asks the provider for a link and a code.
    ///
    /// # Errors
    /// The provider is down or does not offer the device flow.
    pub async fn start_device_sign_in(&self) -> Result<DeviceSignIn, SignInError> {
        let metadata = self.metadata(METADATA_AGE).await?;
        let endpoint = metadata
            .additional_metadata()
            .device_authorization_endpoint
            .clone()
            .ok_or_else(|| SignInError::NoDeviceFlow { issuer: self.issuer().to_owned() })?;
        let client = CoreClient::from_provider_metadata(
            metadata.as_ref().clone(),
            ClientId::new(self.inner.config.client_id.clone()),
            self.inner.secret.clone(),
        )
        .set_auth_type(self.auth_type())
        .set_device_authorization_url(endpoint.clone());
        let mut request = client.exchange_device_code();
        for scope in &self.inner.config.scopes {
            request = request.add_scope(Scope::new(scope.clone()));
        }
        let details: CoreDeviceAuthorizationResponse =
            request.request_async(&self.inner.http).await.map_err(|err| match err {
                RequestTokenError::ServerResponse(answer) => self.unavailable_because(&answer.to_string()),
                err => self.unavailable(&err),
            })?;
        let link = match details.verification_uri_complete() {
            Some(link) => link.secret().clone(),
            None => details.verification_uri().to_string(),
        };
        let code = details.user_code().secret().clone();
        // They go to a terminal: nothing in them may be more than text.
        if link.chars().chain(code.chars()).any(|c| c.is_control() || c == ' ')
            || link.len() + code.len() > 2048
        {
            return Err(self.unavailable_because("its link or code is not plain text"));
        }
        Ok(DeviceSignIn {
            link,
            code,
            expires_in: details.expires_in().min(LONGEST),
            openid: self.clone(),
            endpoint,
            details,
        })
    }

    fn auth_type(&self) -> AuthType {
        // Public clients have nothing to put into a header.
        if self.inner.secret.is_some() { AuthType::BasicAuth } else { AuthType::RequestBody }
    }
}

impl DeviceSignIn {
    /// Polls until the person has signed in, refused, or the link has expired. Dropping the future stops polling.
    ///
    /// # Errors
    /// Refused, expired, or the answer proves nothing.
    pub async fn finish(self) -> Result<Identity, SignInError> {
        let openid = &self.openid;
        let metadata = openid.metadata(METADATA_AGE).await?;
        let client = CoreClient::from_provider_metadata(
            metadata.as_ref().clone(),
            ClientId::new(openid.inner.config.client_id.clone()),
            openid.inner.secret.clone(),
        )
        .set_auth_type(openid.auth_type())
        .set_device_authorization_url(self.endpoint.clone());
        let tokens = client
            .exchange_device_access_token(&self.details)
            .map_err(|err| openid.unavailable(&err))?
            .request_async(&openid.inner.http, tokio::time::sleep, Some(self.expires_in))
            .await
            .map_err(|err| match err {
                RequestTokenError::ServerResponse(answer) => match answer.error() {
                    DeviceCodeErrorResponseType::AccessDenied => SignInError::Denied,
                    DeviceCodeErrorResponseType::ExpiredToken => SignInError::Expired,
                    _ => openid.unavailable_because(&answer.to_string()),
                },
                err => openid.unavailable(&err),
            })?;
        let id_token = tokens.id_token().ok_or_else(|| {
            SignInError::Unproved(
                "there is no ID token in it; its client lacks the `openid` scope".to_owned(),
            )
        })?;
        openid.verify_device_sign_in(&id_token.to_string(), tokens.access_token().secret()).await
    }
}
