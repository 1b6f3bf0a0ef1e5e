//! Signing the tokens of CI jobs with RS256 (RFC 7518 section 3.3), as GitHub and GitLab do, and publishing the key.

use std::process::Command;

use anyhow::{Context, Result, anyhow, ensure};
use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use ring::rand::SystemRandom;
use ring::rsa::{KeyPair, PublicKeyComponents};
use ring::signature::RSA_PKCS1_SHA256;
use serde_json::{Value, json};

/// A key of 2048 bits, made when the first job needs it and kept nowhere.
pub(crate) struct JobSigner {
    key: KeyPair,
    random: SystemRandom,
}

impl JobSigner {
    /// By openssl, which every Debian has for its certificates: ring makes no RSA keys.
    pub(crate) fn new() -> Result<Self> {
        let made = Command::new("openssl").args(["genrsa", "-traditional", "2048"]).output();
        let made = made.context("run openssl for a key")?;
        ensure!(made.status.success(), "openssl made no key: {}", String::from_utf8_lossy(&made.stderr));
        let pem = String::from_utf8(made.stdout)?;
        let der =
            STANDARD.decode(pem.lines().filter(|line| !line.starts_with("-----")).collect::<String>())?;
        let key = KeyPair::from_der(&der).map_err(|error| anyhow!("the fresh key was not taken: {error}"))?;
        Ok(Self { key, random: SystemRandom::new() })
    }

    /// A signed token in compact form.
    pub(crate) fn sign(&self, claims: &Value) -> Result<String> {
        let header = json!({ "alg": "RS256", "typ": "JWT", "kid": "jobs" });
        let input = format!(
            "{}.{}",
            URL_SAFE_NO_PAD.encode(header.to_string()),
            URL_SAFE_NO_PAD.encode(claims.to_string())
        );
        let mut signature = vec![0; self.key.public().modulus_len()];
        self.key
            .sign(&RSA_PKCS1_SHA256, &self.random, input.as_bytes(), &mut signature)
            .map_err(|_| anyhow!("signing failed"))?;
        Ok(format!("{input}.{}", URL_SAFE_NO_PAD.encode(signature)))
    }

    /// The public key as a JSON Web Key Set (RFC 7517).
    pub(crate) fn key_set(&self) -> Value {
        let public: PublicKeyComponents<Vec<u8>> = self.key.public().into();
        json!({ "keys": [{
            "kty": "RSA", "alg": "RS256", "use": "sig", "kid": "jobs",
            "n": URL_SAFE_NO_PAD.encode(public.n), "e": URL_SAFE_NO_PAD.encode(public.e),
        }] })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_signed_by_2048_bits() -> Result<()> {
        let signer = JobSigner::new()?;
        let token = signer.sign(&json!({ "sub": "job" }))?;
        let parts: Vec<&str> = token.split('.').collect();
        assert_eq!((parts.len(), URL_SAFE_NO_PAD.decode(parts[2])?.len()), (3, 256));
        assert_eq!(signer.key_set()["keys"][0]["e"], "AQAB");
        Ok(())
    }
}
