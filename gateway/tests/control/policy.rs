//! Pushing policy: all problems, atomically, into running sessions and to sensors.

use crate::rig::{POLICY, Rig, bundle, eventually, person};
use crate::sensor::Host;
use sallyport_contract::v1::gateway_order::Order;
use sallyport_contract::v1::{CurrentPolicyRequest, PushPolicyRequest};
use sallyport_evidence::record::{Kind, Outcome};
use sallyport_gateway::authorize::EndReason;
use std::net::SocketAddr;
use tonic::Code;

const CLIENT: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 1);

pub(crate) fn push(policy: &str) -> PushPolicyRequest {
    PushPolicyRequest {
        archive: bundle(policy).to_archive(),
        message: "test".into(),
        ..PushPolicyRequest::default()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_push_takes_effect_in_running_sessions_at_once() {
    let rig = Rig::start().await;
    let (joined, host) = (rig.join("web-1").await, Host::default());
    let _link = host.connect(&rig, &joined).await;
    let authorizer = &rig.gateway.authorizer;
    let alice = person("alice", "engineers");
    let root = authorizer.open_session(&alice, "web-1", Some("root"), CLIENT).await.unwrap();
    let www = authorizer.open_session(&alice, "web-1", Some("www"), CLIENT).await.unwrap();
    let narrower = POLICY.replace("context.local_user == \"root\" || ", "");
    let pushed = rig.console("carol", "").await.push_policy(push(&narrower)).await.unwrap().into_inner();
    assert!(pushed.problems.is_empty(), "{:?}", pushed.problems);
    assert_eq!(pushed.previous_version, root.policy_version());
    assert_eq!(pushed.version, bundle(&narrower).version());
    assert_eq!((pushed.sensors.len(), pushed.sensors[0].version.as_str()), (1, pushed.version.as_str()));
    let ended = tokio::time::timeout(std::time::Duration::from_secs(2), root.ended()).await.unwrap();
    assert_eq!(ended, EndReason::PolicyChanged { version: pushed.version[..12].into() });
    let still = tokio::time::timeout(std::time::Duration::from_millis(200), www.ended()).await;
    assert!(still.is_err(), "a session that the new version permits was ended");
    assert!(host.saw(|o| matches!(o, Order::EndSession(e) if e.session_id == root.id())));
    assert!(host.saw(|o| matches!(o, Order::Bundle(b) if b.version == pushed.version)));
    assert!(authorizer.open_session(&alice, "web-1", Some("root"), CLIENT).await.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_faulty_push_is_refused_with_all_its_problems_and_changes_nothing() {
    let rig = Rig::start().await;
    let mut carol = rig.console("carol", "").await;
    let before = carol.current_policy(CurrentPolicyRequest::default()).await.unwrap().into_inner();
    let faulty = format!(
        "{POLICY}\npermit (principal, action == Action::\"fly\", resource);\npermit (principal, action == Action::\"exec\", resource) when {{ context.colour == 1 }};\n"
    );
    let pushed = carol.push_policy(push(&faulty)).await.unwrap().into_inner();
    assert!(pushed.problems.len() >= 2, "{:?}", pushed.problems);
    assert!(pushed.problems.iter().all(|p| p.contains("test.cedar:")), "{:?}", pushed.problems);
    assert!(pushed.version.is_empty());
    let junk = PushPolicyRequest { archive: b"junk".to_vec(), ..PushPolicyRequest::default() };
    assert_eq!(carol.push_policy(junk).await.unwrap().into_inner().problems.len(), 1);
    let after = carol.current_policy(CurrentPolicyRequest::default()).await.unwrap().into_inner();
    assert_eq!(before, after);
    let refused = rig.console("alice", "engineers").await.push_policy(push(POLICY)).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied);
    assert!(refused.message().contains("alice may not push policy"), "{refused}");
    let records = rig.records().await;
    let outcomes: Vec<_> = records
        .iter()
        .filter(|r| r.kind == Kind::Policy)
        .map(|r| r.decision.as_ref().unwrap().outcome)
        .collect();
    // The first is the bundle of the configuration; then each attempt, also that of somebody without the right.
    assert_eq!(outcomes, [Outcome::Allowed, Outcome::Blocked, Outcome::Blocked, Outcome::Blocked]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_sensors_say_of_a_push_comes_back() {
    let rig = Rig::start().await;
    let (one, two) = (rig.join("web-1").await, rig.join("web-2").await);
    let (host, failing) = (Host::default(), Host::default());
    "no room".clone_into(&mut failing.policy_error.lock().unwrap());
    let _links = (host.connect(&rig, &one).await, failing.connect(&rig, &two).await);
    let target = || rig.gateway.authorizer.targets(&person("alice", "engineers"));
    eventually("both connected", async || target().iter().filter(|t| t.connected).count() == 2).await;
    let policy = format!("{POLICY}\n// another\n");
    let mut pushed = rig.console("carol", "").await.push_policy(push(&policy)).await.unwrap().into_inner();
    pushed.sensors.sort_by(|a, b| a.host.cmp(&b.host));
    let said: Vec<_> = pushed.sensors.iter().map(|s| (s.host.as_str(), s.error.as_str())).collect();
    assert_eq!(said, [("web-1", ""), ("web-2", "no room")]);
}

#[tokio::test(flavor = "multi_thread")]
async fn versions_are_kept_over_restarts() {
    let rig = Rig::start().await;
    let first = bundle(POLICY).version();
    let policy = format!("{POLICY}\n// another\n");
    rig.console("carol", "").await.push_policy(push(&policy)).await.unwrap();
    let (dir, report) = rig.stop().await;
    assert!(report.holds(), "{report}");
    let rig = Rig::start_in(dir, |_| {}).await;
    let mut carol = rig.console("carol", "").await;
    let current = carol.current_policy(CurrentPolicyRequest::default()).await.unwrap().into_inner();
    assert_eq!(current.version, bundle(&policy).version());
    let old =
        carol.current_policy(CurrentPolicyRequest { version: first.clone() }).await.unwrap().into_inner();
    assert_eq!((old.version, old.archive), (first, bundle(POLICY).to_archive()));
}
