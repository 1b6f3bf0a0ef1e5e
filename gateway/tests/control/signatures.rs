//! Signed versions and the two-person rule: what is refused, what waits, and that nothing is half done.

use crate::changes::{archive, in_force, policy_records, start, version};
use crate::rig::Rig;
use crate::web::push;
use sallyport_contract::v1::{ListProposalsRequest, PushPolicyRequest, SettleProposalRequest};
use sallyport_evidence::Statement;
use sallyport_evidence::note::Signer;
use sallyport_evidence::record::Outcome;
use sallyport_gateway::changes::Rules;
use sallyport_gateway::config::Config;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tonic::Code;

fn signer(name: &str, seed: u8) -> Signer {
    Signer::new(name, &[seed; 32]).unwrap()
}

fn now_ms() -> u64 {
    u64::try_from(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis()).unwrap()
}

fn statement(n: usize, created_ms: u64) -> Statement {
    Statement { gateway: "gateway.test".into(), version: version(n), commit: "c0".repeat(20), created_ms }
}

fn signed(n: usize, created_ms: u64) -> String {
    statement(n, created_ms).sign(&signer("release", 1)).unwrap()
}

fn demand_signatures(config: &mut Config) {
    let signers = vec![signer("release", 1).verifier().clone()];
    config.changes = Rules { signers, require_signature: true, ..Rules::default() };
}

async fn last_refusal(rig: &Rig) -> String {
    let record = policy_records(rig).await.pop().unwrap();
    assert_eq!(record.decision.unwrap().outcome, Outcome::Blocked);
    record.message.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn only_what_is_signed_here_and_now_comes_into_force() {
    let (rig, issuer) = start(demand_signatures).await;
    let token = issuer.token(&issuer.claims());
    let now = now_ms();
    let good = signed(1, now);
    let by_other = statement(1, now).sign(&signer("other", 3)).unwrap();
    let by_usurper = statement(1, now).sign(&signer("release", 3)).unwrap();
    let elsewhere = Statement { gateway: "another.test".into(), ..statement(1, now) };
    let elsewhere = elsewhere.sign(&signer("release", 1)).unwrap();
    let altered = good.replace("c0c0c0", "c1c0c0");
    for (what, notes, because) in [
        ("unsigned", vec![], "takes signed versions only"),
        ("signed by a stranger", vec![by_other.as_str()], "none of the keys"),
        ("signed by a key of the same name", vec![&by_usurper], "none of the keys"),
        ("altered", vec![&altered], "is false"),
        ("for another gateway", vec![&elsewhere], "for the gateway `another.test`"),
        ("another version", vec![&signed(2, now)], "the signature is on version"),
        ("from the future", vec![&signed(1, now + 3_600_000)], "signed in the future"),
        ("no statement", vec!["hello\n"], "not a signed note"),
        ("one good, one false", vec![&good, &altered], "is false"),
    ] {
        let refused = push(&rig, &token, "", &notes, &archive(1)).await;
        let (kind, said) = refused.problem();
        assert_eq!(
            (refused.status, kind.as_str()),
            (422, "urn:sallyport:problem:signature"),
            "{what}: {said}"
        );
        assert!(said.contains(because), "{what}: {said}");
        assert!(last_refusal(&rig).await.contains(because), "{what}");
        assert_eq!(in_force(&rig), version(0), "{what}");
    }
    assert_eq!(push(&rig, &token, "", &[&good], &archive(1)).await.status, 200);
    assert_eq!(in_force(&rig), version(1));
    // With its statement it is as often in force as it is pushed.
    assert_eq!(push(&rig, &token, "", &[&good], &archive(1)).await.status, 200);
    let newer = signed(2, now + 10);
    assert_eq!(push(&rig, &token, "", &[&newer], &archive(2)).await.status, 200);
    for (what, note, because) in [
        ("replayed", good.clone(), "signed before one that has been in force since"),
        ("older, never used", signed(1, now + 5), "signed before one"),
        ("as old as the newest", signed(1, now + 10), "was used before"),
    ] {
        let refused = push(&rig, &token, "", &[&note], &archive(1)).await;
        assert_eq!(refused.status, 422, "{what}");
        assert!(refused.problem().1.contains(because), "{what}: {}", refused.problem().1);
        assert_eq!(in_force(&rig), version(2), "{what}");
    }
    assert_eq!(push(&rig, &token, "", &[&signed(1, now + 20)], &archive(1)).await.status, 200, "signed anew");
    // All of it over a restart, too.
    let (dir, report) = rig.stop().await;
    assert!(report.holds(), "{report}");
    let rig = Rig::start_in(dir, demand_signatures).await;
    let carol = rig.token("carol", "").await;
    assert_eq!(push(&rig, &carol, "", &[&newer], &archive(2)).await.status, 422);
    assert_eq!(in_force(&rig), version(1));
}

#[tokio::test(flavor = "multi_thread")]
async fn policy_may_ask_who_signed() {
    let (rig, issuer) = start(|config| {
        demand_signatures(config);
        config.changes.require_signature = false;
        let path = config.policy_bundle.clone().unwrap().join("test.cedar");
        let policy = std::fs::read_to_string(&path).unwrap();
        let only = "@id(\"released\") @reason(\"releases alone\") forbid (principal, action == Action::\"push_policy\", \
                    resource) unless { context.signed_by.contains(\"release\") };\n";
        std::fs::write(path, format!("{policy}{only}")).unwrap();
    })
    .await;
    let token = issuer.token(&issuer.claims());
    let before = in_force(&rig);
    let refused = push(&rig, &token, "", &[], &archive(1)).await;
    assert_eq!(refused.status, 403);
    assert!(refused.problem().1.contains("rule \"released\": releases alone"), "{}", refused.problem().1);
    assert_eq!(in_force(&rig), before);
    assert_eq!(push(&rig, &token, "", &[&signed(1, now_ms())], &archive(1)).await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn of_pushes_at_once_none_undoes_a_newer_one() {
    let (rig, issuer) = start(demand_signatures).await;
    let (rig, token, now) = (std::sync::Arc::new(rig), issuer.token(&issuer.claims()), now_ms());
    let pushes = (1..=8usize).map(|n| {
        let (rig, token) = (rig.clone(), token.clone());
        tokio::spawn(async move {
            let note = signed(n, now + n as u64);
            (n, push(&rig, &token, "", &[&note], &archive(n)).await.status)
        })
    });
    let pushes: Vec<_> = pushes.collect();
    let mut accepted = Vec::new();
    for pushed in pushes {
        let (n, status) = pushed.await.unwrap();
        assert!(matches!(status, 200 | 422), "{status}");
        if status == 200 {
            accepted.push(n);
        }
    }
    assert!(accepted.contains(&8), "the newest is never refused: {accepted:?}");
    assert_eq!(in_force(&rig), version(8), "{accepted:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_one_proposes_another_must_approve() {
    let (rig, issuer) = start(|config| config.changes.two_person = true).await;
    let token = issuer.token(&issuer.claims());
    let waits = push(&rig, &token, "?author=Carol%20%3Ccarol%3E", &[], &archive(1)).await;
    assert_eq!(
        (waits.status, waits.json()["state"].as_str()),
        (202, Some("waits_for_approval")),
        "{}",
        waits.json()
    );
    assert_eq!(in_force(&rig), version(0));
    // Pushed again it still waits, once.
    assert_eq!(push(&rig, &token, "", &[], &archive(1)).await.status, 202);
    let mut sam = rig.console("sam", "").await;
    let proposals = sam.list_proposals(ListProposalsRequest {}).await.unwrap().into_inner().proposals;
    assert_eq!(proposals.len(), 1);
    assert_eq!(proposals[0].from, "acme/policies, refs/heads/main, production");
    assert_eq!(proposals[0].on_behalf_of, "octocat");
    let shown =
        sam.current_policy(sallyport_contract::v1::CurrentPolicyRequest { version: version(1) }).await;
    assert_eq!(shown.unwrap().into_inner().archive, archive(1), "whoever approves can see what");

    let settle = |approve| SettleProposalRequest { version: version(1), approve, reason: "looked at".into() };
    for (who, because) in [
        ("octocat@example.org", "you started the job"),
        ("carol", "you wrote this version"),
        ("bob", "bob may not approve policy"),
    ] {
        let refused = rig.console(who, "").await.settle_proposal(settle(true)).await.unwrap_err();
        assert_eq!(refused.code(), Code::PermissionDenied, "{who}");
        assert!(refused.message().contains(because), "{who}: {refused}");
        assert!(last_refusal(&rig).await.contains(because), "{who}");
        assert_eq!(in_force(&rig), version(0), "{who}");
    }
    let approved = sam.settle_proposal(settle(true)).await.unwrap().into_inner();
    assert_eq!((approved.version.clone(), approved.problems.len()), (version(1), 0));
    assert_eq!(in_force(&rig), version(1));
    let gone = sam.settle_proposal(settle(true)).await.unwrap_err();
    assert_eq!(gone.code(), Code::NotFound);
    let actions: Vec<String> =
        policy_records(&rig).await.iter().map(|r| r.decision.clone().unwrap().action).collect();
    assert_eq!(
        actions[..2],
        ["push_policy", "propose_policy"],
        "the first is the bundle of the configuration"
    );
    assert!(actions.contains(&"approve_policy".to_owned()), "{actions:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_proposal_ends_by_rejection_by_another_version_and_by_itself() {
    let (rig, issuer) = start(|config| {
        config.changes.two_person = true;
        config.changes.proposal_ttl = Duration::from_secs(3);
    })
    .await;
    let token = issuer.token(&issuer.claims());
    let mut sam = rig.console("sam", "").await;
    let settle = |n, approve| SettleProposalRequest { version: version(n), approve, reason: String::new() };
    assert_eq!(push(&rig, &token, "", &[], &archive(1)).await.status, 202);
    sam.settle_proposal(settle(1, false)).await.unwrap();
    assert_eq!(sam.settle_proposal(settle(1, true)).await.unwrap_err().code(), Code::NotFound);
    // Two wait; one is approved: what the other was proposed in place of is not in force any more.
    assert_eq!(push(&rig, &token, "", &[], &archive(2)).await.status, 202);
    assert_eq!(push(&rig, &token, "", &[], &archive(3)).await.status, 202);
    sam.settle_proposal(settle(3, true)).await.unwrap();
    let superseded = sam.settle_proposal(settle(2, true)).await.unwrap_err();
    assert_eq!(superseded.code(), Code::FailedPrecondition);
    assert!(superseded.message().contains("is in force now"), "{superseded}");
    assert_eq!(in_force(&rig), version(3));
    // One is withdrawn by whoever proposed it, without any other right.
    let mut carol = rig.console("carol", "").await;
    let request = PushPolicyRequest { archive: archive(4), ..PushPolicyRequest::default() };
    assert!(carol.push_policy(request).await.unwrap().into_inner().waits_until_ms > 0);
    carol.settle_proposal(settle(4, false)).await.unwrap();
    // One expires.
    assert_eq!(push(&rig, &token, "", &[], &archive(5)).await.status, 202);
    tokio::time::sleep(Duration::from_millis(4500)).await;
    assert!(last_refusal(&rig).await.contains("expired: nobody approved it in time"));
    assert_eq!(sam.settle_proposal(settle(5, true)).await.unwrap_err().code(), Code::NotFound);
    assert_eq!(in_force(&rig), version(3));
}

#[tokio::test(flavor = "multi_thread")]
async fn policy_itself_may_ask_for_a_second_person() {
    let (rig, issuer) = start(|config| {
        let path = config.policy_bundle.clone().unwrap().join("test.cedar");
        let policy = std::fs::read_to_string(&path).unwrap();
        let two = "@id(\"two\") @reason(\"two people\") forbid (principal, action == Action::\"push_policy\", resource) \
                   when { context.approvals < 1 };\n";
        std::fs::write(path, format!("{policy}{two}")).unwrap();
    })
    .await;
    let token = issuer.token(&issuer.claims());
    assert_eq!(push(&rig, &token, "", &[], &archive(1)).await.status, 202);
    let other = issuer.token_with("ref", serde_json::json!("refs/heads/x"));
    assert_eq!(
        push(&rig, &other, "", &[], &archive(1)).await.status,
        403,
        "approval does not make it permitted"
    );
    let settle = SettleProposalRequest { version: version(1), approve: true, reason: String::new() };
    rig.console("sam", "").await.settle_proposal(settle).await.unwrap();
    assert_eq!(in_force(&rig), version(1));
    // The version in force now does not ask for it any more.
    assert_eq!(push(&rig, &token, "", &[], &archive(2)).await.status, 200);
}
