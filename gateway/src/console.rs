//! What the `sallyport` command line asks: the Console service.

use sallyport_contract::v1::{SignInOptionsResponse, SignInRequest};
use sallyport_evidence::record::Identity;
use std::net::SocketAddr;
use std::time::SystemTime;

/// How a person becomes known to the console. `identity` implements it; tests bring their own.
#[tonic::async_trait]
pub trait SignIn: Send + Sync + 'static {
    /// What a client needs to start the OpenID flow.
    fn options(&self) -> SignInOptionsResponse;
    /// Verifies the tokens (issuer, audience, nonce, signature, expiry), writes the sign-in record (also
    /// of a failure), and issues an SSH certificate if a public key was sent.
    async fn sign_in(&self, request: &SignInRequest, client: SocketAddr) -> Result<SignedIn, SignInError>;
}

/// A proved sign-in.
#[derive(Debug)]
pub struct SignedIn {
    /// Who.
    pub identity: Identity,
    /// The end of the bearer token that the console makes for it.
    pub expires_at: SystemTime,
    /// OpenSSH certificate, one line; empty if none was asked for.
    pub ssh_certificate: String,
    /// The CA that signs host keys, OpenSSH one-line form.
    pub ssh_host_ca: String,
}

/// The sign-in failed; the text is shown to the person.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct SignInError(pub String);
