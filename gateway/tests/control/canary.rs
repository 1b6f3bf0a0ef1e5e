//! Canaries: some hosts or sessions first, then everywhere, or back by themselves.

use crate::policy::push;
use crate::rig::{Console, Joined, POLICY, Rig, bundle, eventually, person};
use crate::sensor::{Connected, Host};
use crate::versions::{list, on_record, variant};
use sallyport_contract::v1::gateway_order::Order;
use sallyport_contract::v1::*;
use sallyport_evidence::Record;
use sallyport_evidence::order::in_share;
use sallyport_evidence::record::{Decision, Kind, Outcome, Source};
use std::net::SocketAddr;
use tonic::Code;

const CLIENT: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 1);

/// A gateway with two connected hosts.
struct Fleet {
    rig: Rig,
    joined: [Joined; 2],
    hosts: [Host; 2],
    links: [Connected; 2],
}

impl Fleet {
    async fn start() -> Self {
        let rig = Rig::start().await;
        let joined = [rig.join("web-1").await, rig.join("web-2").await];
        Self::connect(rig, joined, Default::default()).await
    }

    async fn connect(rig: Rig, joined: [Joined; 2], hosts: [Host; 2]) -> Self {
        let links = [hosts[0].connect(&rig, &joined[0]).await, hosts[1].connect(&rig, &joined[1]).await];
        eventually("both connected", async || list(&rig).await.sensors.iter().all(|s| s.drift.is_empty()))
            .await;
        Self { rig, joined, hosts, links }
    }

    async fn carol(&self) -> Console {
        self.rig.console("carol", "").await
    }

    /// What each host enforces: for all, and as a canary.
    fn enforced(&self) -> [(String, String); 2] {
        let of = |host: &Host| {
            let standing = host.standing.lock().unwrap();
            (standing.policy_version.clone(), standing.canary_version.clone())
        };
        [of(&self.hosts[0]), of(&self.hosts[1])]
    }

    async fn canary(&self) -> Canary {
        list(&self.rig).await.canary.expect("a canary")
    }

    /// Records of `version` from web-1, as its sensor would deliver them.
    async fn deliver(&mut self, boot: &str, version: &str, outcomes: &[Outcome]) {
        let record = |(seq, outcome): (u64, &Outcome)| {
            let mut record = Record::empty(Kind::Exec);
            record.source = Source { maker: "web-1".into(), boot: boot.into(), seq };
            record.host = Some("web-1".into());
            record.decision = Some(Decision {
                action: "exec".into(),
                outcome: *outcome,
                policy: version.into(),
                rule: "r".into(),
                reason: String::new(),
                point: "kernel-lsm".into(),
            });
            record.to_bytes().unwrap().into()
        };
        let records = (1..).zip(outcomes).map(record).collect();
        let batch = RecordBatch { boot_id: boot.into(), first_seq: 1, records };
        let mut acks = self.links[0].client.evidence(tokio_stream::iter([batch])).await.unwrap().into_inner();
        assert_eq!(acks.message().await.unwrap().unwrap().durable_seq, outcomes.len() as u64);
    }
}

fn tried(policy: &str, hosts: &[&str]) -> StartCanaryRequest {
    StartCanaryRequest {
        push: Some(push(policy)),
        hosts: hosts.iter().map(|host| (*host).to_owned()).collect(),
        seconds: 3600,
        ..StartCanaryRequest::default()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_canary_is_for_its_hosts_until_it_is_promoted() {
    let fleet = Fleet::start().await;
    let (stable, narrower) =
        (bundle(POLICY).version(), POLICY.replace("context.local_user == \"root\" || ", ""));
    let candidate = bundle(&narrower).version();
    let authorizer = &fleet.rig.gateway.authorizer;
    let alice = person("alice", "engineers");
    let root = authorizer.open_session(&alice, "web-1", Some("root"), CLIENT).await.unwrap();
    let app = authorizer.open_session(&alice, "web-2", Some("app"), CLIENT).await.unwrap();
    let mut carol = fleet.carol().await;
    let started = carol.start_canary(tried(&narrower, &["web-1"])).await.unwrap().into_inner();
    assert_eq!(started.sensors.iter().map(|s| s.host.as_str()).collect::<Vec<_>>(), ["web-1"]);
    let none = String::new();
    assert_eq!(fleet.enforced(), [(stable.clone(), candidate.clone()), (stable.clone(), none.clone())]);
    // Judged by the candidate on web-1: the running session, and the next one.
    tokio::time::timeout(std::time::Duration::from_secs(2), root.ended()).await.unwrap();
    let refused = authorizer.open_session(&alice, "web-1", Some("root"), CLIENT).await;
    assert!(refused.is_err_and(|refusal| refusal.message.contains(&candidate[..12])));
    let www = authorizer.open_session(&alice, "web-1", Some("www"), CLIENT).await.unwrap();
    assert_eq!((www.policy_version(), app.policy_version()), (candidate.as_str(), stable.as_str()));
    assert!(
        list(&fleet.rig).await.sensors.iter().all(|sensor| sensor.drift.is_empty()),
        "a canary is no drift"
    );
    // One at a time, and nothing is pushed over it.
    for refused in [
        carol.start_canary(tried(&variant("other"), &["web-2"])).await.unwrap_err(),
        carol.push_policy(push(&variant("other"))).await.unwrap_err(),
        carol.roll_back_policy(RollBackPolicyRequest::default()).await.unwrap_err(),
    ] {
        assert_eq!(refused.code(), Code::FailedPrecondition);
        assert!(refused.message().contains("is running"), "{refused}");
    }
    let ended = carol.end_canary(EndCanaryRequest { promote: true, reason: "good".into() }).await.unwrap();
    assert!(ended.into_inner().serial > started.serial);
    assert_eq!(fleet.enforced(), [(candidate.clone(), none.clone()), (candidate.clone(), none)]);
    let listed = list(&fleet.rig).await;
    assert_eq!(listed.canary.map(|c| (c.state, c.why)), Some(("promoted".into(), "good".into())));
    assert_eq!(
        listed.versions.iter().map(|v| v.how.as_str()).collect::<Vec<_>>(),
        ["promotion", "canary", "start"]
    );
    assert_eq!(
        carol.end_canary(EndCanaryRequest::default()).await.unwrap_err().code(),
        Code::FailedPrecondition
    );
    // Going back from there passes over the canary.
    let back = carol.roll_back_policy(RollBackPolicyRequest::default()).await.unwrap().into_inner();
    assert_eq!(back.version, stable);
}

#[tokio::test(flavor = "multi_thread")]
async fn it_goes_back_by_itself_when_too_much_is_denied() {
    let mut fleet = Fleet::start().await;
    let (stable, candidate) = (bundle(POLICY).version(), bundle(&variant("two")).version());
    let mut carol = fleet.carol().await;
    let bounded = StartCanaryRequest { max_denials: Some(2), ..tried(&variant("two"), &["web-1"]) };
    carol.start_canary(bounded).await.unwrap();
    // Within the bound; and what other versions denied does not count.
    fleet
        .deliver("b1", &candidate, &[Outcome::Blocked, Outcome::Killed, Outcome::Allowed, Outcome::Observed])
        .await;
    fleet.deliver("b2", &stable, &[Outcome::Blocked; 20]).await;
    tokio::time::sleep(std::time::Duration::from_millis(1500)).await;
    let canary = fleet.canary().await;
    assert_eq!((canary.denials, canary.decisions, canary.state.as_str()), (2, 4, "running"));
    fleet.deliver("b3", &candidate, &[Outcome::Blocked]).await;
    eventually("taken back", async || fleet.canary().await.state == "aborted").await;
    let canary = fleet.canary().await;
    assert_eq!(canary.why, "3 denials under it, the bound is 2");
    assert_eq!((canary.denials, canary.decisions), (3, 5));
    let everywhere = (stable.clone(), String::new());
    eventually("hosts are back", async || fleet.enforced() == [everywhere.clone(), everywhere.clone()]).await;
    let recorded = on_record(&fleet.rig).await;
    assert!(
        recorded.iter().any(|(_, m)| m.contains("the canary is over") && m.contains("the bound is 2")),
        "{recorded:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ratio_counts_from_enough_decisions_on() {
    let mut fleet = Fleet::start().await;
    let candidate = bundle(&variant("two")).version();
    let bounded = StartCanaryRequest { max_denial_ratio: 100, ..tried(&variant("two"), &["web-1"]) };
    fleet.carol().await.start_canary(bounded).await.unwrap();
    fleet.deliver("b1", &candidate, &[Outcome::Blocked; 12]).await;
    tokio::time::sleep(std::time::Duration::from_millis(1500)).await;
    assert_eq!(fleet.canary().await.state, "running", "12 of 12 is too few to judge by");
    fleet.deliver("b2", &candidate, &[Outcome::Allowed; 12]).await;
    eventually("taken back", async || fleet.canary().await.state == "aborted").await;
    assert!(fleet.canary().await.why.contains("12 of 24"), "{}", fleet.canary().await.why);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_that_cannot_take_it_ends_it() {
    let fleet = Fleet::start().await;
    "the tables do not fit".clone_into(&mut fleet.hosts[0].policy_error.lock().unwrap());
    let answer =
        fleet.carol().await.start_canary(tried(&variant("two"), &["web-1"])).await.unwrap().into_inner();
    assert_eq!(answer.sensors[0].error, "the tables do not fit");
    fleet.hosts[0].policy_error.lock().unwrap().clear();
    eventually("taken back", async || fleet.canary().await.state == "aborted").await;
    assert_eq!(fleet.canary().await.why, "web-1 cannot put it into force: the tables do not fit");
}

#[tokio::test(flavor = "multi_thread")]
async fn it_survives_a_restart_and_comes_into_force_when_its_time_is_over() {
    let mut fleet = Fleet::start().await;
    let (stable, candidate) = (bundle(POLICY).version(), bundle(&variant("two")).version());
    let short = StartCanaryRequest { seconds: 6, max_denials: Some(5), ..tried(&variant("two"), &["web-1"]) };
    fleet.carol().await.start_canary(short).await.unwrap();
    fleet.deliver("b1", &candidate, &[Outcome::Blocked, Outcome::Allowed, Outcome::Blocked]).await;
    let Fleet { rig, joined, hosts, links } = fleet;
    drop(links);
    let (dir, report) = rig.stop().await;
    assert!(report.holds(), "{report}");
    let rig = Rig::start_in(dir, |_| {}).await;
    let fleet = Fleet::connect(rig, joined, hosts).await;
    let canary = fleet.canary().await;
    assert_eq!((canary.denials, canary.decisions), (2, 3), "counted again from the log");
    assert_eq!(fleet.enforced()[0], (stable, candidate.clone()));
    eventually("promoted", async || fleet.canary().await.state == "promoted").await;
    let everywhere = (candidate, String::new());
    eventually("everywhere", async || fleet.enforced() == [everywhere.clone(), everywhere.clone()]).await;
    let why = fleet.canary().await.why;
    assert!(why.contains("its time is over, with 2 denials of 3"), "{why}");
    assert!(list(&fleet.rig).await.versions[0].pushed_by.is_empty(), "nobody did it: the gateway itself");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_nobody_ran_is_not_promoted() {
    let fleet = Fleet::start().await;
    let joined = fleet.rig.join("web-3").await;
    let unused = StartCanaryRequest { seconds: 1, ..tried(&variant("two"), &["web-3"]) };
    fleet.carol().await.start_canary(unused).await.unwrap();
    eventually("taken back", async || fleet.canary().await.state == "aborted").await;
    assert!(fleet.canary().await.why.contains("no host has put it into force"));
    drop(joined);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_share_of_sessions_is_the_same_for_gateway_and_sensor() {
    let fleet = Fleet::start().await;
    let (stable, candidate) = (bundle(POLICY).version(), bundle(&variant("two")).version());
    let half = StartCanaryRequest { share: 500, ..tried(&variant("two"), &[]) };
    fleet.carol().await.start_canary(half).await.unwrap();
    assert!(
        fleet.hosts[1]
            .saw(|order| matches!(order, Order::Bundle(b) if b.statement.contains("scope canary 500 web-2")))
    );
    let alice = person("alice", "engineers");
    let mut judged = Vec::new();
    for _ in 0..40 {
        let session =
            fleet.rig.gateway.authorizer.open_session(&alice, "web-2", Some("app"), CLIENT).await.unwrap();
        let within = in_share(500, &candidate, session.id());
        assert_eq!(session.policy_version(), if within { &candidate } else { &stable });
        judged.push(within);
        session.close("done").await;
    }
    assert!(judged.contains(&true) && judged.contains(&false), "{judged:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn plans_that_make_no_sense_are_refused_with_what_to_do() {
    let fleet = Fleet::start().await;
    let mut carol = fleet.carol().await;
    let two = variant("two");
    for (request, words) in [
        (tried(&two, &["web-7"]), "`web-7` is no host"),
        (tried(&two, &[]), "for everything, push it"),
        (tried(POLICY, &["web-1"]), "in force everywhere already"),
        (StartCanaryRequest { share: 1001, ..tried(&two, &[]) }, "100 % at most"),
        (StartCanaryRequest { seconds: u32::MAX, ..tried(&two, &["web-1"]) }, "30 days at most"),
    ] {
        let refused = carol.start_canary(request).await.unwrap_err();
        assert!(refused.message().contains(words), "{refused}");
    }
    let faulty = carol.start_canary(tried("permit (", &["web-1"])).await.unwrap().into_inner();
    assert!(!faulty.problems.is_empty());
    let refused = fleet.rig.console("alice", "engineers").await.start_canary(tried(&two, &["web-1"])).await;
    assert_eq!(refused.unwrap_err().code(), Code::PermissionDenied);
    let listed = list(&fleet.rig).await;
    assert!(listed.canary.is_none() && listed.versions.len() == 1, "{listed:?}");
    let recorded = on_record(&fleet.rig).await;
    assert_eq!(recorded.iter().filter(|(outcome, _)| *outcome == Outcome::Blocked).count(), 7);
}
