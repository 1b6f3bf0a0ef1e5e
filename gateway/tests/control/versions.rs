//! Versions: kept, listed, rolled back to; the same push twice, two pushes at once, and pushes that may not be.

use crate::policy::push;
use crate::rig::{POLICY, Rig, bundle, eventually};
use crate::sensor::Host;
use sallyport_contract::v1::gateway_order::Order;
use sallyport_contract::v1::{
    CurrentPolicyRequest, ListPoliciesRequest, ListPoliciesResponse, PushPolicyRequest, RollBackPolicyRequest,
};
use sallyport_evidence::PolicyOrder;
use sallyport_evidence::note::{Signer, Verifier};
use sallyport_evidence::order::Scope;
use sallyport_evidence::record::{Kind, Outcome};
use sallyport_evidence::statement::Statement;
use tonic::Code;

pub(crate) fn variant(name: &str) -> String {
    format!("{POLICY}\n// {name}\n")
}

pub(crate) async fn list(rig: &Rig) -> ListPoliciesResponse {
    rig.console("carol", "").await.list_policies(ListPoliciesRequest { limit: 0 }).await.unwrap().into_inner()
}

/// Outcomes and messages of what is on record about changes of policy.
pub(crate) async fn on_record(rig: &Rig) -> Vec<(Outcome, String)> {
    let records = rig.records().await.into_iter().filter(|record| record.kind == Kind::Policy);
    records.filter_map(|record| Some((record.decision?.outcome, record.message?))).collect()
}

fn to(version: &str, reason: &str) -> RollBackPolicyRequest {
    RollBackPolicyRequest {
        version: version.into(),
        reason: reason.into(),
        ..RollBackPolicyRequest::default()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_version_is_kept_with_where_it_came_from_and_can_come_back() {
    let rig = Rig::start().await;
    let mut carol = rig.console("carol", "").await;
    let (first, second) = (bundle(POLICY).version(), bundle(&variant("two")).version());
    let commit = "c0ffee12".repeat(5);
    let statement = Statement {
        gateway: "gateway.test".into(),
        version: second.clone(),
        commit: commit.clone(),
        created_ms: 1,
    };
    let note = statement.sign(&Signer::new("ann", &[4; 32]).unwrap()).unwrap();
    let request = PushPolicyRequest {
        commit: commit.clone(),
        author: "Ann <ann@test>".into(),
        signatures: vec![note.clone()],
        ..push(&variant("two"))
    };
    let pushed = carol.push_policy(request).await.unwrap().into_inner();
    let back = carol.roll_back_policy(to("", "too strict")).await.unwrap().into_inner();
    assert_eq!((back.version.as_str(), back.previous_version.as_str()), (first.as_str(), second.as_str()));
    assert!(back.serial > pushed.serial, "going back is a new change");
    let again = carol.roll_back_policy(to(&second[..6], "not so strict")).await.unwrap().into_inner();
    assert_eq!(again.version, second);

    let listed = list(&rig).await;
    let changes: Vec<_> = listed.versions.iter().map(|v| (v.how.as_str(), v.version.as_str())).collect();
    let expected = [("rollback", &*second), ("rollback", &*first), ("push", &*second), ("start", &*first)];
    assert_eq!(changes, expected);
    assert!(listed.versions.windows(2).all(|pair| pair[0].serial > pair[1].serial));
    assert_eq!(listed.serial_in_force, listed.versions[0].serial);
    let newest = &listed.versions[0];
    assert_eq!((newest.author.as_str(), newest.commit.as_str()), ("Ann <ann@test>", commit.as_str()));
    assert_eq!((newest.pushed_by.as_str(), newest.message.as_str()), ("carol", "not so strict"));
    assert_eq!(newest.signatures, [note]);

    // What was in force is shown by some of its digits, byte for byte.
    let shown =
        carol.current_policy(CurrentPolicyRequest { version: first[..8].into() }).await.unwrap().into_inner();
    assert_eq!((shown.archive, shown.in_force), (bundle(POLICY).to_archive(), false));
    for (wrong, words) in [("ab", "at least 4"), ("xyz!", "names no version"), ("ffffffff", "no version")] {
        let refused = carol.current_policy(CurrentPolicyRequest { version: wrong.into() }).await.unwrap_err();
        assert_eq!(refused.code(), Code::NotFound);
        assert!(refused.message().contains(words), "{refused}");
    }
    let refused = carol.roll_back_policy(to(&second, "again")).await.unwrap_err();
    assert!(refused.message().contains("in force already"), "{refused}");
    let refused = rig.console("alice", "engineers").await.roll_back_policy(to("", "")).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied);
    let recorded = on_record(&rig).await;
    assert!(
        recorded.iter().any(|(o, m)| *o == Outcome::Allowed
            && m.contains("in force again")
            && m.ends_with("too strict"))
    );
    assert!(recorded.iter().any(|(o, m)| *o == Outcome::Blocked && m.contains("in force already")));
    let (_dir, report) = rig.stop().await;
    assert!(report.holds(), "{report}");
}

#[tokio::test(flavor = "multi_thread")]
async fn rolling_back_asks_whether_it_still_compiles() {
    let rig = Rig::start().await;
    // A version as an earlier release might have taken it.
    let bad = sallyport_gateway::state::policies::Stored {
        version: "e".repeat(64),
        archive: b"of another time".to_vec().into(),
        ..Default::default()
    };
    let state = &rig.gateway.state;
    let serial = sallyport_gateway::state::policies::begin(state, bad, None, 0).await.unwrap();
    sallyport_gateway::state::policies::commit(state, serial).await.unwrap();
    let mut carol = rig.console("carol", "").await;
    let answer = carol.roll_back_policy(to("eeee", "")).await.unwrap().into_inner();
    assert_eq!(answer.problems.len(), 1, "{answer:?}");
    assert!(
        rig.gateway
            .authorizer
            .open_session(
                &crate::rig::person("alice", "engineers"),
                "web-9",
                Some("root"),
                ([127, 0, 0, 1], 1).into(),
            )
            .await
            .is_err_and(|refusal| !refusal.message.contains("no policy")),
        "the good one is in force"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_push_again_changes_nothing_and_an_outdated_one_is_refused() {
    let rig = Rig::start().await;
    let (joined, host) = (rig.join("web-1").await, Host::default());
    let _link = host.connect(&rig, &joined).await;
    let mut carol = rig.console("carol", "").await;
    let pushed = carol.push_policy(push(&variant("two"))).await.unwrap().into_inner();
    let orders =
        |host: &Host| host.orders.lock().unwrap().iter().filter(|o| matches!(o, Order::Bundle(_))).count();
    let before = (list(&rig).await.versions.len(), orders(&host));
    let again = carol.push_policy(push(&variant("two"))).await.unwrap().into_inner();
    assert!(again.unchanged && !pushed.unchanged);
    assert_eq!((again.version, again.serial), (pushed.version.clone(), pushed.serial));
    assert_eq!(
        (list(&rig).await.versions.len(), orders(&host)),
        before,
        "a sensor was troubled, or a number used up"
    );

    let expecting = |expect: &str, name: &str| PushPolicyRequest {
        expect_version: expect.into(),
        ..push(&variant(name))
    };
    let outdated = bundle(POLICY).version();
    let refused = carol.push_policy(expecting(&outdated, "three")).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition);
    assert!(
        refused.message().contains(&format!("policy {} is in force (from carol)", &pushed.version[..12])),
        "{refused}"
    );
    let taken = carol.push_policy(expecting(&pushed.version[..12], "three")).await.unwrap().into_inner();
    assert_eq!(taken.previous_version, pushed.version);
    let recorded = on_record(&rig).await;
    assert!(recorded.iter().any(|(_, m)| m.contains("was pushed again; it is in force already")));
    assert!(
        recorded.iter().any(|(o, m)| *o == Outcome::Blocked && m.contains("push_policy refused: policy"))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_pushes_at_once_each_is_judged_against_what_the_other_left() {
    let rig = Rig::start().await;
    let (joined, host) = (rig.join("web-1").await, Host::default());
    let _link = host.connect(&rig, &joined).await;
    let first = bundle(POLICY).version();
    for round in 0..5 {
        let before = list(&rig).await.versions[0].version.clone();
        let mut tasks = tokio::task::JoinSet::new();
        for name in ["a", "b"] {
            let mut carol = rig.console("carol", "").await;
            let request = PushPolicyRequest {
                expect_version: before.clone(),
                ..push(&variant(&format!("{name}{round}")))
            };
            tasks.spawn(async move { carol.push_policy(request).await.map(tonic::Response::into_inner) });
        }
        let results: Vec<_> = tasks.join_all().await;
        let (won, lost): (Vec<_>, Vec<_>) = results.into_iter().partition(Result::is_ok);
        assert_eq!((won.len(), lost.len()), (1, 1), "{won:?} {lost:?}");
        let won = won.into_iter().next().unwrap().unwrap();
        assert_eq!(won.previous_version, before);
        let lost = lost.into_iter().next().unwrap().unwrap_err();
        assert!(lost.message().contains(&won.version[..12]), "it is told what won: {lost}");
        // Gateway, database and sensor agree on one of them.
        assert_eq!(list(&rig).await.versions[0].version, won.version);
        let standing = host.standing.lock().unwrap().clone();
        assert_eq!((standing.policy_version, standing.policy_serial), (won.version, won.serial));
    }
    let recorded = on_record(&rig).await;
    let count = |outcome| recorded.iter().filter(|(o, _)| *o == outcome).count();
    assert_eq!((count(Outcome::Allowed), count(Outcome::Blocked)), (6, 5), "{recorded:?}");
    let (_dir, report) = rig.stop().await;
    assert!(report.holds(), "{report}");
    assert_ne!(first, bundle(&variant("a0")).version());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bundle_over_the_limits_is_refused_and_recorded() {
    let rig = Rig::start().await;
    let mut carol = rig.console("carol", "").await.max_encoding_message_size(64 << 20);
    let before = list(&rig).await;
    let large = PushPolicyRequest { archive: vec![b'x'; (3 << 20) + 1], ..PushPolicyRequest::default() };
    let answer = carol.push_policy(large).await.unwrap().into_inner();
    assert!(answer.problems[0].contains("the most is"), "{answer:?}");
    // Beyond what a message may have: refused before it is read, so that strangers cannot fill the memory.
    let huge = PushPolicyRequest { archive: vec![b'x'; 8 << 20], ..PushPolicyRequest::default() };
    assert_eq!(carol.push_policy(huge).await.unwrap_err().code(), Code::OutOfRange);
    assert_eq!(list(&rig).await, before);
    let recorded = on_record(&rig).await;
    assert!(
        recorded.iter().any(|(o, m)| *o == Outcome::Blocked && m.contains("the most is")),
        "{recorded:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn sensors_get_orders_that_they_can_verify() {
    let rig = Rig::start().await;
    let (joined, host) = (rig.join("web-1").await, Host::default());
    let key = Verifier::parse(&joined.policy_key).expect("joining gives the key");
    let _link = host.connect(&rig, &joined).await;
    let pushed =
        rig.console("carol", "").await.push_policy(push(&variant("two"))).await.unwrap().into_inner();
    let orders: Vec<PolicyOrder> = host
        .orders
        .lock()
        .unwrap()
        .iter()
        .filter_map(|order| match order {
            Order::Bundle(bundle) => {
                Some(PolicyOrder::open(&bundle.statement, &key).expect("signed by the gateway"))
            }
            _ => None,
        })
        .collect();
    assert_eq!(orders.len(), 2, "on connecting, and at the push");
    assert!(orders[0].serial < orders[1].serial);
    assert_eq!((orders[1].serial, &orders[1].version), (pushed.serial, &pushed.version));
    assert!(orders.iter().all(|order| order.gateway == "gateway.test" && order.scope == Scope::All));
    // The key outlives a restart, and the log's key is another one.
    let (dir, _) = rig.stop().await;
    let rig = Rig::start_in(dir, |_| {}).await;
    assert_eq!(rig.join("web-2").await.policy_key, joined.policy_key);
    assert!(PolicyOrder::open(&orders[0].to_text(), &key).is_err(), "control: unsigned");
}

#[tokio::test(flavor = "multi_thread")]
async fn drift_is_shown_wherever_versions_are() {
    let rig = Rig::start().await;
    let (joined, host) = (rig.join("web-1").await, Host::default());
    let never = rig.join("web-2").await;
    let link = host.connect(&rig, &joined).await;
    let drift = async |name: &str| {
        let sensors = list(&rig).await.sensors;
        sensors.into_iter().find(|sensor| sensor.host == name).map(|sensor| sensor.drift).unwrap()
    };
    eventually("it enforces what it should", async || drift("web-1").await.is_empty()).await;
    assert_eq!(drift("web-2").await, "has not connected since the gateway was started");
    "no room".clone_into(&mut host.policy_error.lock().unwrap());
    let mut carol = rig.console("carol", "").await;
    let pushed = carol.push_policy(push(&variant("two"))).await.unwrap().into_inner();
    assert_eq!(pushed.sensors[0].error, "no room");
    let told = drift("web-1").await;
    assert!(told.starts_with("enforces ") && told.ends_with("no room"), "{told}");
    let alice = rig
        .console("alice", "engineers")
        .await
        .list_targets(sallyport_contract::v1::ListTargetsRequest {})
        .await;
    let targets = alice.unwrap().into_inner().targets;
    assert_eq!(targets.iter().find(|t| t.host == "web-1").unwrap().policy_trouble, told);
    // It mends with the next version.
    host.policy_error.lock().unwrap().clear();
    carol.push_policy(push(&variant("three"))).await.unwrap();
    assert_eq!(drift("web-1").await, "");
    drop((link, never));
}
