//! Tokens signed with RS256 by a key of 2048 bits, as GitHub and GitLab sign: what proves a job pushes, and whatever only
//! looks like it changes nothing, says why, and is on the record.

use crate::changes::{archive, in_force, policy_records, start_with, version};
use crate::issuer::{Issuer, Key};
use crate::rig::Rig;
use crate::web::push;
use openidconnect::PrivateSigningKey as _;
use openidconnect::core::{CoreHmacKey, CoreJwsSigningAlgorithm};
use sallyport_evidence::record::Outcome;
use serde_json::{Value, json};
use std::io::Write as _;
use std::process::{Command, Stdio};
use std::sync::Arc;

async fn start() -> (Rig, Arc<Issuer>) {
    start_with(Issuer::start_with(Key::rsa()).await, |_| {}).await
}

/// The public half of an RSA key in the PEM form that everybody can make of a key set.
fn public_pem(key: &Key) -> Vec<u8> {
    let Key::Rsa(pem) = key else { panic!("an RSA key") };
    let mut openssl = Command::new("openssl")
        .args(["rsa", "-pubout"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    openssl.stdin.take().unwrap().write_all(pem.as_bytes()).unwrap();
    let made = openssl.wait_with_output().unwrap();
    assert!(made.stdout.starts_with(b"-----BEGIN PUBLIC KEY-----"));
    made.stdout
}

/// With its key and its head, a token whose signature is made with a shared secret.
fn shared(head: &Value, claims: &Value, secret: &[u8]) -> String {
    let key = CoreHmacKey::new(secret);
    Issuer::token_signed(head, claims, |text| {
        key.sign(&CoreJwsSigningAlgorithm::HmacSha256, text.as_bytes()).unwrap()
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_with_a_token_as_github_signs_it_pushes() {
    let (rig, issuer) = start().await;
    let token = issuer.token(&issuer.claims());
    assert!(token.starts_with("eyJhbGciOiJSUzI1NiIs"), "its head begins with {{\"alg\":\"RS256\",");
    let signature = token.rsplit_once('.').unwrap().1;
    assert_eq!(signature.len(), 342, "256 bytes: a key of 2048 bits");
    let pushed = push(&rig, &token, "", &[], &archive(1)).await;
    assert_eq!((pushed.status, pushed.json()["version"].as_str()), (200, Some(version(1).as_str())));
    assert_eq!(in_force(&rig), version(1));
    let record = policy_records(&rig).await.pop().unwrap();
    assert_eq!(record.decision.unwrap().outcome, Outcome::Allowed);
    assert_eq!(record.identity.unwrap().user, "github:acme/policies@refs/heads/main");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_only_looks_like_a_token_of_the_job_is_refused_says_why_and_is_on_the_record() {
    let (rig, issuer) = start().await;
    let claims = issuer.claims();
    let now = claims["iat"].as_u64().unwrap();
    let key = issuer.key();
    let head = |algorithm: &str| json!({"alg": algorithm, "kid": "k1"});
    let with = |claim: &str, value: Value| issuer.token_with(claim, value);
    let signature = "signature";
    let (unproved, denied) = ((401, "unauthenticated"), (403, "denied"));
    let bad = [
        ("alg none", Issuer::token_signed(&head("none"), &claims, |_| vec![]), unproved, signature),
        ("alg none, signed", Issuer::token_by(&head("none"), &claims, &key), unproved, signature),
        ("HS256, the public key", shared(&head("HS256"), &claims, &public_pem(&key)), unproved, signature),
        ("RS256, HMAC inside", shared(&head("RS256"), &claims, &public_pem(&key)), unproved, signature),
        (
            "another key, this name",
            Issuer::token_by(&head("RS256"), &claims, &Key::rsa()),
            unproved,
            signature,
        ),
        (
            "signed as RS256, says RS512",
            Issuer::token_by(&head("RS512"), &claims, &key),
            unproved,
            "No matching key found",
        ),
        ("another audience", with("aud", json!("https://github.com/acme")), unproved, "audience"),
        ("expired", with("exp", json!(now - 10)), unproved, "expired"),
        ("not yet valid", with("nbf", json!(now + 3600)), unproved, "not valid yet"),
        (
            "another repository",
            with("repository", json!("mallory/policies")),
            denied,
            "mallory/policies@refs/heads/main",
        ),
        (
            "another branch",
            with("ref", json!("refs/heads/feature")),
            denied,
            "acme/policies@refs/heads/feature",
        ),
    ];
    for (what, token, (status, kind), why) in &bad {
        let before = policy_records(&rig).await.len();
        let refused = push(&rig, token, "", &[], &archive(1)).await;
        let (told, said) = refused.problem();
        println!("{what}: {said}");
        assert_eq!(
            (refused.status, told),
            (*status, format!("urn:sallyport:problem:{kind}")),
            "{what}: {said}"
        );
        assert!(said.contains(why), "{what}: {said}");
        let records = policy_records(&rig).await;
        assert_eq!(records.len(), before + 1, "{what} is on the record, once");
        let record = records.last().unwrap();
        assert_eq!(record.decision.as_ref().unwrap().outcome, Outcome::Blocked, "{what}");
        assert!(record.message.as_ref().unwrap().contains(why), "{what}: {:?}", record.message);
        assert!(!format!("{record:?}").contains(token.as_str()), "{what}: the token is on the record");
        assert_eq!(in_force(&rig), version(0), "{what}");
    }
    // A token cut from another's parts: these claims under that signature.
    let (good, other) = (issuer.token(&claims), with("repository", json!("mallory/policies")));
    let parts = |token: &str| token.split('.').map(str::to_owned).collect::<Vec<_>>();
    let (good_parts, other_parts) = (parts(&good), parts(&other));
    let spliced = format!("{}.{}.{}", other_parts[0], good_parts[1], other_parts[2]);
    assert_eq!(push(&rig, &spliced, "", &[], &archive(1)).await.status, 401);
    assert_eq!(in_force(&rig), version(0));
    // The control: the same archive with a token that proves the job.
    assert_eq!(push(&rig, &good, "", &[], &archive(1)).await.status, 200);
    assert_eq!(in_force(&rig), version(1));
}
