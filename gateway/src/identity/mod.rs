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
