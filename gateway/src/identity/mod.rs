//! Who somebody is: OpenID sign-in, and the keys and certificates that stand for one.
//!
//! [`provider`] verifies what an OpenID provider says, [`device`] runs the device flow for plain `ssh`, [`claims`] turns
//! verified claims into an identity, [`store`] remembers key bindings and certificates, [`desk`] serves `sallyport login`.

pub mod claims;
pub mod config;
pub mod desk;
pub mod device;
pub mod http;
pub mod provider;
pub mod store;

pub use device::DeviceSignIn;
pub use provider::{OpenId, SignInError};
pub use sallyport_evidence::record::Identity;
pub use store::{Credentials, KeyStanding};

use openidconnect::core::CoreJwsSigningAlgorithm;

/// How ID tokens may be signed: never with a shared secret, never `none`, only with the issuer's published keys.
pub(crate) const PUBLISHED_KEYS: [CoreJwsSigningAlgorithm; 9] = [
    CoreJwsSigningAlgorithm::RsaSsaPkcs1V15Sha256,
    CoreJwsSigningAlgorithm::RsaSsaPkcs1V15Sha384,
    CoreJwsSigningAlgorithm::RsaSsaPkcs1V15Sha512,
    CoreJwsSigningAlgorithm::RsaSsaPssSha256,
    CoreJwsSigningAlgorithm::RsaSsaPssSha384,
    CoreJwsSigningAlgorithm::RsaSsaPssSha512,
    CoreJwsSigningAlgorithm::EcdsaP256Sha256,
    CoreJwsSigningAlgorithm::EcdsaP384Sha384,
    CoreJwsSigningAlgorithm::EdDsa,
];
