//! Joining, renewing, revoking.

use crate::rig::{Rig, csr, eventually};
use crate::sensor::{Host, hello};
use sallyport_contract::v1::{
    HostFacts, JoinRequest, RecordBatch, RenewRequest, enrolment_client::EnrolmentClient,
};
use sallyport_evidence::record::{Kind, Outcome};
use tonic::Code;

#[tokio::test(flavor = "multi_thread")]
async fn a_token_joins_one_sensor_once() {
    let rig = Rig::start().await;
    let token = rig.join_token("web-1").await;
    let mut client = EnrolmentClient::new(rig.anonymous().await);
    // A bad request does not cost the token.
    let request = JoinRequest { token: token.clone(), csr_pem: "junk".into(), facts: None };
    assert_eq!(client.join(request).await.unwrap_err().code(), Code::InvalidArgument);
    let key = rcgen::KeyPair::generate().unwrap();
    let facts = HostFacts { hostname: "evil\u{1b}[2J".into(), ..HostFacts::default() };
    let request = JoinRequest { token: token.clone(), csr_pem: csr(&key), facts: Some(facts) };
    let joined = client.join(request).await.unwrap().into_inner();
    assert_eq!(joined.host, "web-1");
    assert_eq!(joined.ca_pem, rig.gateway.authority.certificate_pem());
    let again = rig.join_with(&token).await.err().unwrap();
    assert_eq!(again.code(), Code::Unauthenticated);
    assert!(again.message().contains("used before"), "{again}");
    let wrong = rig.join_with("join_nonsense").await.err().unwrap();
    assert!(wrong.message().contains("not known here"), "{wrong}");
    let records = rig.records().await;
    let joins: Vec<_> = records.iter().filter(|r| r.kind == Kind::Sensor).collect();
    let outcomes: Vec<_> = joins.iter().filter_map(|r| r.decision.as_ref().map(|d| d.outcome)).collect();
    assert_eq!(outcomes, [Outcome::Allowed, Outcome::Blocked, Outcome::Blocked]);
    assert!(joins[0].message.as_ref().unwrap().contains("evil?[2J"));
    assert!(
        !records.iter().any(|r| r.message.as_ref().is_some_and(|m| m.contains(&token))),
        "a token is on the record"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn renewal_gives_a_certificate_that_works() {
    let rig = Rig::start().await;
    let joined = rig.join("web-1").await;
    let key = rcgen::KeyPair::generate().unwrap();
    let renewed =
        rig.as_sensor(&joined).await.renew(RenewRequest { csr_pem: csr(&key) }).await.unwrap().into_inner();
    let renewed = crate::rig::Joined {
        certificate: renewed.certificate_pem,
        key: key.serialize_pem(),
        policy_key: renewed.policy_key,
    };
    let _link = Host::default().connect(&rig, &renewed).await;
    let target = || rig.gateway.authorizer.targets(&crate::rig::person("alice", "engineers"));
    eventually("connected", async || target().iter().any(|t| t.host == "web-1" && t.connected)).await;
    assert_eq!(target()[0].local_users, ["root", "www"]);
    assert_eq!((target()[0].mode.as_str(), target()[0].kernel.as_str()), ("lsm", "6.12"));
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_certificate_there_is_no_link() {
    let rig = Rig::start().await;
    let mut client = sallyport_contract::v1::sensor_link_client::SensorLinkClient::new(rig.anonymous().await);
    let refused = client.control(tokio_stream::iter([hello(Vec::new())])).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unauthenticated);
    assert!(refused.message().contains("sallyport-sensor join"), "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revoked_sensor_is_cut_off_in_mid_stream_and_others_are_not() {
    let rig = Rig::start().await;
    let (one, two) = (rig.join("web-1").await, rig.join("web-2").await);
    let (host, other) = (Host::default(), Host::default());
    let _other_link = other.connect(&rig, &two).await;
    let link = host.connect(&rig, &one).await;
    let (batches, outgoing) = tokio::sync::mpsc::channel::<RecordBatch>(1);
    let evidence = link.client.clone().evidence(tokio_stream::wrappers::ReceiverStream::new(outgoing)).await;
    let mut acks = evidence.unwrap().into_inner();
    // From another process, as `sallyport-gateway revoke-sensor` does it.
    let state = sallyport_gateway::state::State::open(&rig.dir.path().join("state/state.db")).unwrap();
    assert!(sallyport_gateway::state::sensors::revoke(&state, "web-1", "stolen").await.unwrap());
    let ended = tokio::time::timeout(std::time::Duration::from_secs(5), acks.message()).await.unwrap();
    assert!(matches!(ended, Ok(None) | Err(_)), "{ended:?}");
    eventually("control ended", async || link.reports.is_closed()).await;
    let refused =
        rig.as_sensor(&one).await.control(tokio_stream::iter([hello(Vec::new())])).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied);
    assert!(refused.message().contains("revoked"), "{refused}");
    let targets = rig.gateway.authorizer.targets(&crate::rig::person("alice", "engineers"));
    assert!(targets.iter().any(|t| t.host == "web-2" && t.connected));
    drop(batches);
}
