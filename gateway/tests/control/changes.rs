//! Changes of policy by CI jobs: what proves one, what policy lets it do, and what each refusal leaves behind.

use crate::issuer::{AUDIENCE, Issuer, Key};
use crate::rig::{Bearer, POLICY, Rig, bundle};
use crate::web::{self, push};
use sallyport_contract::v1::console_client::ConsoleClient;
use sallyport_contract::v1::{CurrentPolicyRequest, PushPolicyRequest, WhoAmIRequest};
use sallyport_evidence::Record;
use sallyport_evidence::record::{Kind, Outcome};
use sallyport_gateway::config::Config;
use serde_json::{Value, json};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use tonic::Code;

/// Jobs on the main branch push to production; sam approves.
pub(crate) const CHANGERS: &str = r#"
@id("main-pushes")
permit (principal, action == Action::"push_policy", resource == Gateway::"gateway")
when {
  principal.kind == "ci" && context has repository && context.repository == "acme/policies" &&
  context has ref && context.ref == "refs/heads/main" && context has environment && context.environment == "production"
};
@id("sam-approves")
permit (principal, action == Action::"approve_policy", resource == Gateway::"gateway")
when { [User::"sam", User::"carol", User::"octocat@example.org"].contains(principal) };
"#;

/// With jobs' rules, and `n` to tell versions apart.
pub(crate) fn archive(n: usize) -> Vec<u8> {
    bundle(&format!("{POLICY}{CHANGERS}// {n}\n")).to_archive()
}

pub(crate) fn version(n: usize) -> String {
    bundle(&format!("{POLICY}{CHANGERS}// {n}\n")).version()
}

/// A gateway that trusts the issuer, with version 0 in force.
pub(crate) async fn start(adjust: impl FnOnce(&mut Config)) -> (Rig, Arc<Issuer>) {
    start_with(Issuer::start().await, adjust).await
}

/// The same for an issuer that is there already.
pub(crate) async fn start_with(issuer: Arc<Issuer>, adjust: impl FnOnce(&mut Config)) -> (Rig, Arc<Issuer>) {
    let url = issuer.url.clone();
    let text = |url: &str| {
        format!(
            "[[ci]]\nname = \"github\"\nkind = \"github\"\nissuer = \"{url}\"\naudience = \"{AUDIENCE}\"\n"
        )
    };
    let rig = Rig::start_in(tempfile::tempdir().unwrap(), |config| {
        let whole = format!("{}{}", sallyport_gateway::config::default_text(), text(&url));
        config.ci = Config::parse(&whole).unwrap().ci;
        let path = config.policy_bundle.clone().unwrap().join("test.cedar");
        std::fs::write(path, format!("{POLICY}{CHANGERS}// 0\n")).unwrap();
        adjust(config);
    })
    .await;
    (rig, issuer)
}

pub(crate) fn in_force(rig: &Rig) -> String {
    rig.gateway.changes.version_in_force()
}

pub(crate) async fn policy_records(rig: &Rig) -> Vec<Record> {
    rig.records().await.into_iter().filter(|record| record.kind == Kind::Policy).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_pushes_by_http_and_by_grpc() {
    let (rig, issuer) = start(|_| {}).await;
    let token = issuer.token(&issuer.claims());
    let commit = "c0".repeat(20);
    let query =
        format!("?commit={commit}&author=Ann%20%3Cann%40example.org%3E&message=close%20the%20scanners");
    let pushed = push(&rig, &token, &query, &[], &archive(1)).await;
    assert_eq!(pushed.status, 200, "{}", pushed.json());
    assert_eq!(pushed.json()["version"], version(1));
    assert_eq!(pushed.json()["previous_version"], version(0));
    assert_eq!(in_force(&rig), version(1));
    let record = policy_records(&rig).await.pop().unwrap();
    let who = record.identity.unwrap();
    assert_eq!((who.user.as_str(), who.kind.as_str()), ("github:acme/policies@refs/heads/main", "ci"));
    assert_eq!((who.issuer, who.on_behalf_of), (issuer.url.clone(), "octocat".to_owned()));

    // Once more: nothing is done, however often.
    let again = push(&rig, &token, &query, &[], &archive(1)).await;
    assert_eq!((again.status, &again.json()["version"]), (200, &json!(version(1))));
    assert_eq!(again.json()["previous_version"], version(1));

    let authorization = [format!("authorization: bearer {token}")];
    let shown = web::request(&rig, "GET /v1/policy", &authorization, b"").await.json();
    assert_eq!((&shown["version"], &shown["commit"]), (&json!(version(1)), &json!(commit)));
    assert_eq!(shown["author"], "Ann <ann@example.org>");
    let octets = [authorization[0].clone(), "accept: application/octet-stream".to_owned()];
    let old = web::request(&rig, &format!("GET /v1/policy/{}", version(0)), &octets, b"").await;
    assert_eq!(old.body, archive(0));
    let none = web::request(&rig, &format!("GET /v1/policy/{}", "0".repeat(64)), &authorization, b"").await;
    assert_eq!((none.status, none.problem().0.as_str()), (404, "urn:sallyport:problem:not-found"));

    let mut job = ConsoleClient::with_interceptor(rig.anonymous().await, Bearer(token.clone()));
    let request = PushPolicyRequest { archive: archive(2), ..PushPolicyRequest::default() };
    assert_eq!(job.push_policy(request).await.unwrap().into_inner().version, version(2));
    let current = job.current_policy(CurrentPolicyRequest::default()).await.unwrap().into_inner();
    assert_eq!((current.version, current.commit), (version(2), commit), "the commit is the job's");
    // The token is good for policy alone.
    assert_eq!(job.who_am_i(WhoAmIRequest {}).await.unwrap_err().code(), Code::Unauthenticated);
    let sent: Vec<Record> = rig.records().await;
    assert!(sent.iter().all(|record| !format!("{record:?}").contains(&token)), "the token is on the record");
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_that_prove_nothing_change_nothing_and_are_on_the_record() {
    let (rig, issuer) = start(|_| {}).await;
    let claims = issuer.claims();
    let now = claims["iat"].as_u64().unwrap();
    let strange = Key::ed25519();
    let bad = [
        ("another audience", issuer.token_with("aud", json!("https://another.example.org"))),
        ("expired", issuer.token_with("exp", json!(now - 10))),
        ("not valid yet", issuer.token_with("nbf", json!(now + 3600))),
        ("another issuer", issuer.token_with("iss", json!("https://evil.example.org"))),
        ("no repository", issuer.token_with("repository", Value::Null)),
        ("another key", Issuer::token_by(&json!({"alg": "EdDSA", "kid": "k1"}), &claims, &strange)),
        ("an unknown key", Issuer::token_by(&json!({"alg": "EdDSA", "kid": "k9"}), &claims, &strange)),
        ("alg none", Issuer::token_by(&json!({"alg": "none"}), &claims, &strange)),
        ("a shared secret", Issuer::token_by(&json!({"alg": "HS256", "kid": "k1"}), &claims, &strange)),
        ("no signature", format!("{}.", issuer.token(&claims).rsplit_once('.').unwrap().0)),
        ("no token", "a.b.c".to_owned()),
        ("no token of ours", "sp_00ff".to_owned()),
        ("nothing", String::new()),
    ];
    for (what, token) in &bad {
        let before = policy_records(&rig).await.len();
        let refused = push(&rig, token, "", &[], &archive(1)).await;
        let (kind, said) = refused.problem();
        assert_eq!(
            (refused.status, kind.as_str()),
            (401, "urn:sallyport:problem:unauthenticated"),
            "{what}: {said}"
        );
        assert!(refused.head.contains("www-authenticate: Bearer"), "{what}");
        assert!(token.is_empty() || !said.contains(token), "{what}: the token is told");
        let records = policy_records(&rig).await;
        // Without any token nobody has tried anything.
        let on_record = usize::from(!token.is_empty());
        assert_eq!(records.len(), before + on_record, "{what}");
        if on_record == 1 {
            let record = records.last().unwrap();
            assert_eq!(record.decision.as_ref().unwrap().outcome, Outcome::Blocked, "{what}");
            assert!(record.session.as_ref().unwrap().client.starts_with("127.0.0.1:"), "{what}");
            assert!(!format!("{record:?}").contains(token), "{what}");
        }
        assert_eq!(in_force(&rig), version(0), "{what}");
    }
    // The control: the same archive with a good token.
    assert_eq!(push(&rig, &issuer.token(&claims), "", &[], &archive(1)).await.status, 200);
    assert_eq!(in_force(&rig), version(1));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_policy_does_not_name_is_refused_by_rule() {
    let (rig, issuer) = start(|_| {}).await;
    for (claim, value) in [
        ("repository", json!("mallory/policies")),
        ("ref", json!("refs/heads/feature")),
        ("ref", json!("refs/pull/7/merge")),
        ("environment", json!("staging")),
        ("environment", Value::Null),
    ] {
        let before = policy_records(&rig).await.len();
        let refused = push(&rig, &issuer.token_with(claim, value.clone()), "", &[], &archive(1)).await;
        let (kind, said) = refused.problem();
        assert_eq!(
            (refused.status, kind.as_str()),
            (403, "urn:sallyport:problem:denied"),
            "{claim} {value}: {said}"
        );
        assert!(said.contains("may not push policy: no rule of policy"), "{said}");
        let records = policy_records(&rig).await;
        assert_eq!(records.len(), before + 1);
        assert_eq!(records[before].decision.as_ref().unwrap().outcome, Outcome::Blocked);
        assert_eq!(in_force(&rig), version(0), "{claim} {value}");
    }
    let wrong = "?commit=".to_owned() + &"d1".repeat(20);
    let refused = push(&rig, &issuer.token(&issuer.claims()), &wrong, &[], &archive(1)).await;
    assert_eq!(refused.status, 400, "another commit than the job's");
    assert!(refused.problem().1.contains("the job runs for commit c0c0"));
    // A person without the right, by HTTP too.
    let alice = rig.token("alice", "engineers").await;
    assert_eq!(push(&rig, &alice, "", &[], &archive(1)).await.status, 403);
    let carol = rig.token("carol", "").await;
    assert_eq!(push(&rig, &carol, "", &[], &archive(1)).await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn bodies_methods_and_failures_have_limits() {
    let (rig, issuer) = start(|_| {}).await;
    let token = issuer.token(&issuer.claims());
    let authorization = format!("authorization: Bearer {token}");
    let large = vec![0; (3 << 20) + 1];
    assert_eq!(push(&rig, &token, "", &[], &large).await.status, 413);
    let chunked = [
        authorization.clone(),
        "transfer-encoding: chunked".to_owned(),
        "content-length-is: none".to_owned(),
    ];
    let mut body = Vec::new();
    for chunk in large.chunks(1 << 20) {
        body.extend(format!("{:x}\r\n", chunk.len()).into_bytes());
        body.extend(chunk);
        body.extend(b"\r\n");
    }
    body.extend(b"0\r\n\r\n");
    let answer = web::request(&rig, "POST /v1/policy", &chunked, &body).await;
    assert!(matches!(answer.status, 400 | 413), "{}", answer.status);
    let faulty = push(&rig, &token, "", &[], b"junk").await;
    assert_eq!((faulty.status, faulty.problem().0.as_str()), (422, "urn:sallyport:problem:faults"));
    assert_eq!(faulty.json()["problems"].as_array().unwrap().len(), 1);
    let fly =
        bundle(&format!("{POLICY}permit (principal, action == Action::\"fly\", resource);")).to_archive();
    let faulty = push(&rig, &token, "", &[], &fly).await;
    assert!(faulty.json()["problems"][0].as_str().unwrap().contains("test.cedar:"), "{}", faulty.json());
    assert_eq!(faulty.json()["version_in_force"], version(0));
    assert_eq!(push(&rig, &token, "?colour=blue", &[], &archive(1)).await.status, 400);
    let headers = [authorization.clone(), "sallyport-signature: %%%".to_owned()];
    assert_eq!(web::request(&rig, "POST /v1/policy", &headers, &archive(1)).await.status, 400);
    let put = web::request(&rig, "PUT /v1/policy", std::slice::from_ref(&authorization), b"").await;
    assert_eq!((put.status, put.head.contains("allow: GET, POST")), (405, true));
    assert_eq!(web::request(&rig, "GET /v1/elsewhere", &[authorization], b"").await.status, 404);
    assert_eq!(in_force(&rig), version(0));

    let mut n_looked_at = 0;
    let refused = loop {
        let refused = push(&rig, "a.b.c", "", &[], b"").await;
        if refused.status != 401 {
            break refused;
        }
        n_looked_at += 1;
        assert!(n_looked_at < 100);
    };
    assert_eq!((refused.status, n_looked_at), (429, 30));
    assert!(refused.head.contains("retry-after: "), "{}", refused.head);
    let records = policy_records(&rig).await.len();
    assert_eq!(push(&rig, "a.b.c", "", &[], b"").await.status, 429);
    assert_eq!(policy_records(&rig).await.len(), records, "a flood fills no log");
}

#[tokio::test(flavor = "multi_thread")]
async fn new_keys_are_fetched_and_not_at_a_strangers_pace() {
    let (rig, issuer) = start(|_| {}).await;
    assert_eq!(push(&rig, &issuer.token(&issuer.claims()), "", &[], &archive(1)).await.status, 200);
    assert_eq!(issuer.n_asked.load(Ordering::Relaxed), 1);
    assert_eq!(push(&rig, &issuer.token(&issuer.claims()), "", &[], &archive(2)).await.status, 200);
    assert_eq!(issuer.n_asked.load(Ordering::Relaxed), 1, "cached");
    issuer.rotate("k2");
    // Asked less than ten seconds ago: not asked again yet.
    assert_eq!(push(&rig, &issuer.token(&issuer.claims()), "", &[], &archive(3)).await.status, 401);
    assert_eq!(issuer.n_asked.load(Ordering::Relaxed), 1);
    tokio::time::sleep(std::time::Duration::from_secs(10)).await;
    assert_eq!(push(&rig, &issuer.token(&issuer.claims()), "", &[], &archive(3)).await.status, 200);
    assert_eq!(issuer.n_asked.load(Ordering::Relaxed), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_issuer_that_is_down_is_named() {
    let (rig, issuer) = start(|config| {
        // Nobody listens there.
        config.ci[0].issuer = "http://127.0.0.1:9".into();
    })
    .await;
    let refused =
        push(&rig, &issuer.token_with("iss", json!("http://127.0.0.1:9")), "", &[], &archive(1)).await;
    assert_eq!(refused.status, 503);
    assert!(refused.problem().1.contains("the keys of http://127.0.0.1:9 cannot be fetched now"));
    assert_eq!(in_force(&rig), version(0));
}
