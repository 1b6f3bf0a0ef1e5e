//! Tokens against keys: what proves a job, and all that does not. Signatures are real.

use super::*;
use ed25519_dalek::{Signer as _, SigningKey};
use serde_json::json;

const AUDIENCE: &str = "https://gateway.example.org:8443";

fn key() -> SigningKey {
    SigningKey::from_bytes(&[4; 32])
}

fn keys() -> CoreJsonWebKeySet {
    let x = BASE64_URL_SAFE_NO_PAD.encode(key().verifying_key().to_bytes());
    let key = json!({"kty": "OKP", "crv": "Ed25519", "kid": "k1", "use": "sig", "alg": "EdDSA", "x": x});
    serde_json::from_value(json!({ "keys": [key] })).expect("a key set")
}

fn claims() -> Value {
    let now = time::OffsetDateTime::now_utc().unix_timestamp();
    json!({
        "iss": "https://issuer.example.org", "aud": AUDIENCE, "sub": "repo:acme/policies:ref:refs/heads/main",
        "iat": now, "nbf": now - 5, "exp": now + 300, "repository": "acme/policies", "ref": "refs/heads/main",
    })
}

fn token(head: &Value, claims: &Value, key: &SigningKey) -> String {
    let encode = |value: &Value| BASE64_URL_SAFE_NO_PAD.encode(value.to_string());
    let signed = format!("{}.{}", encode(head), encode(claims));
    let signature = key.sign(signed.as_bytes()).to_bytes();
    format!("{signed}.{}", BASE64_URL_SAFE_NO_PAD.encode(signature))
}

fn check(head: &Value, claims: &Value, key: &SigningKey) -> Result<Job, String> {
    let config = Config::sample(config::Kind::Github);
    let keys = keys::Keys::new(&config.issuer, None).expect("trust anchors");
    let issuer = Issuer { config, keys };
    let checked = issuer.check(&token(head, claims, key), &self::keys()).map_err(|err| crate::chain(&err))?;
    claims::job(&issuer.config, &checked).map_err(|err| err.to_string())
}

#[test]
fn a_job_proves_itself_and_nothing_else_does() {
    let head = json!({"alg": "EdDSA", "kid": "k1"});
    assert!(check(&head, &claims(), &key()).is_ok());
    let now = time::OffsetDateTime::now_utc().unix_timestamp();
    for (claim, value, because) in [
        ("aud", json!("https://another.example.org"), "Invalid audience"),
        ("aud", json!([AUDIENCE, "https://another.example.org"]), "audience"),
        ("iss", json!("https://issuer.example.org/"), "Invalid issuer"),
        ("iss", json!("https://evil.example.org"), "Invalid issuer"),
        ("exp", json!(now - 1), "Expired"),
        ("iat", json!(now + 3600), "issued in the future"),
        ("nbf", json!(now + 3600), "not valid yet"),
        ("nbf", json!("soon"), "`nbf` is not a time"),
        ("repository", Value::Null, "lacks the claim `repository`"),
    ] {
        let mut claims = claims();
        claims[claim] = value.clone();
        let refused = check(&head, &claims, &key()).expect_err("refused");
        assert!(refused.contains(because), "{claim} {value}: {refused}");
    }
    for (head, key, because) in [
        (head.clone(), SigningKey::from_bytes(&[5; 32]), "ignature"),
        (json!({"alg": "EdDSA", "kid": "k2"}), key(), "No matching key"),
        (json!({"alg": "none"}), key(), "ignature"),
        (json!({"alg": "HS256", "kid": "k1"}), key(), "Disallowed signature algorithm"),
        (json!({"alg": "ES256", "kid": "k1"}), key(), "No matching key"),
    ] {
        let refused = check(&head, &claims(), &key).expect_err("refused");
        assert!(refused.contains(because), "{head}: {refused}");
    }
}

#[test]
fn which_issuer_to_ask_is_read_with_care() {
    assert!(Ci::is_meant("a.b.c") && !Ci::is_meant("sp_00ff"));
    for bad in ["", "..", "a.b.c", "a.e30.c.d", &format!("a.{}.c", "A".repeat(MAX_TOKEN))] {
        assert!(unverified_issuer(bad).is_err(), "{bad}");
    }
    let token = token(&json!({}), &json!({"iss": "x\u{1b}[2J"}), &key());
    assert_eq!(shown(&unverified_issuer(&token).expect("named")), "x\u{fffd}[2J");
}

proptest::proptest! {
    #[test]
    fn any_token_and_any_claims_are_survived(bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..300)) {
        fuzz_job(&bytes);
    }
    #[test]
    fn any_texts_as_claims_are_survived(repository in "\\PC{0,600}", reference in ".{0,40}", actor in ".{0,40}") {
        let claims = json!({"sub": "s", "repository": repository, "project_path": repository, "ref": reference,
            "ref_type": actor, "actor": actor, "environment": actor});
        fuzz_job(claims.to_string().as_bytes());
    }
}

#[tokio::test]
async fn an_issuer_that_is_not_named_is_not_asked() {
    let token = token(&json!({"alg": "EdDSA"}), &claims(), &key());
    let nobody = Ci::new(&[]).expect("no files").verify(&token).await;
    assert!(matches!(nobody, Err(CiError::NotConfigured)));
    let other = Config { issuer: "https://other.example.org".into(), ..Config::sample(config::Kind::Github) };
    let refused = Ci::new(&[other]).expect("no files").verify(&token).await.expect_err("refused").to_string();
    assert!(refused.contains("https://issuer.example.org") && refused.contains("https://other.example.org"));
}
