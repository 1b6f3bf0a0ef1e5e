//! The console: who may read what, and that reading is on the record.

use crate::channels::command;
use crate::rig::{Bearer, Rig, person};
use crate::sensor::Host;
use bytes::Bytes;
use sallyport_contract::v1::console_client::ConsoleClient;
use sallyport_contract::v1::*;
use sallyport_evidence::note::Verifier;
use sallyport_evidence::record::Kind;
use sallyport_evidence::{Checkpoint, Record};
use sallyport_gateway::sensors::{Input, Output};
use std::net::SocketAddr;
use std::time::Duration;
use tonic::Code;

const CLIENT: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 1);

#[tokio::test(flavor = "multi_thread")]
async fn without_a_sign_in_there_is_nothing() {
    let rig = Rig::start().await;
    let channel = rig.anonymous().await;
    let mut nobody = ConsoleClient::new(channel.clone());
    assert_eq!(nobody.sign_in_options(SignInOptionsRequest {}).await.unwrap().into_inner().ssh_port, 2222);
    let wrong = SignInRequest { id_token: "nobody".into(), ..SignInRequest::default() };
    assert_eq!(nobody.sign_in(wrong).await.unwrap_err().code(), Code::Unauthenticated);
    assert_eq!(nobody.list_targets(ListTargetsRequest {}).await.unwrap_err().code(), Code::Unauthenticated);
    let mut forged = ConsoleClient::with_interceptor(channel, Bearer("sp_forged".into()));
    assert_eq!(forged.who_am_i(WhoAmIRequest {}).await.unwrap_err().code(), Code::Unauthenticated);
    let mut alice = rig.console("alice", "engineers").await;
    assert_eq!(alice.who_am_i(WhoAmIRequest {}).await.unwrap().into_inner().groups, ["engineers"]);
    alice.sign_out(SignOutRequest {}).await.unwrap();
    assert_eq!(alice.who_am_i(WhoAmIRequest {}).await.unwrap_err().code(), Code::Unauthenticated);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_sees_ones_own_and_others_need_the_right() {
    let rig = Rig::start().await;
    let (joined, host) = (rig.join("web-1").await, Host::default());
    let _link = host.connect(&rig, &joined).await;
    let session = rig
        .gateway
        .authorizer
        .open_session(&person("alice", "engineers"), "web-1", Some("root"), CLIENT)
        .await
        .unwrap();
    let mut channel = session.start_channel(command("cat")).await.unwrap();
    channel.input.send(Input::Data(Bytes::from_static(b"secret plan\n"))).await.unwrap();
    channel.input.send(Input::Eof).await.unwrap();
    while !matches!(channel.output.recv().await, Some(Output::Exit(_)) | None) {}
    let id = session.id().to_owned();
    session.close("done").await;

    let mut alice = rig.console("alice", "engineers").await;
    let targets = alice.list_targets(ListTargetsRequest {}).await.unwrap().into_inner().targets;
    assert_eq!(
        targets.iter().map(|t| t.ssh_command.as_str()).collect::<Vec<_>>(),
        ["ssh -p 2222 web-1+root@gateway.test", "ssh -p 2222 web-2@gateway.test",]
    );
    let sessions = alice.list_sessions(ListSessionsRequest::default()).await.unwrap().into_inner().sessions;
    assert_eq!((sessions.len(), sessions[0].end_reason.as_str(), sessions[0].channels.len()), (1, "done", 1));
    assert!(sessions[0].channels[0].has_recording && sessions[0].channels[0].what == "command: cat");
    let request = RecordingRequest { session_id: id.clone(), channel_id: String::new() };
    let mut chunks = alice.recording(request.clone()).await.unwrap().into_inner();
    let mut cast = Vec::new();
    while let Some(chunk) = chunks.message().await.unwrap() {
        cast.extend_from_slice(&chunk.data);
    }
    assert!(String::from_utf8(cast).unwrap().contains("secret plan"));
    let before = rig.records().await.len();

    let mut bob = rig.console("bob", "").await;
    assert!(
        bob.list_sessions(ListSessionsRequest::default()).await.unwrap().into_inner().sessions.is_empty()
    );
    let of_alice = ListSessionsRequest { user: "alice".into(), ..ListSessionsRequest::default() };
    assert_eq!(bob.list_sessions(of_alice).await.unwrap_err().code(), Code::PermissionDenied);
    assert_eq!(bob.recording(request.clone()).await.unwrap_err().code(), Code::PermissionDenied);
    let events = EventsRequest { session_id: id.clone(), ..EventsRequest::default() };
    assert_eq!(bob.events(events.clone()).await.unwrap_err().code(), Code::PermissionDenied);
    assert_eq!(bob.log(LogRequest::default()).await.unwrap_err().code(), Code::PermissionDenied);
    let end = EndSessionRequest { session_id: id.clone(), reason: String::new() };
    assert_eq!(bob.end_session(end).await.unwrap_err().code(), Code::PermissionDenied);
    assert_eq!(
        bob.create_join_token(CreateJoinTokenRequest::default()).await.unwrap_err().code(),
        Code::PermissionDenied
    );
    assert_eq!(
        bob.current_policy(CurrentPolicyRequest::default()).await.unwrap_err().code(),
        Code::PermissionDenied
    );
    let refused = rig.records().await[before..].iter().filter(|r| r.kind == Kind::Access).count();
    assert_eq!(refused, 5, "refused accesses are on the record");

    let mut own = alice.events(events.clone()).await.unwrap().into_inner();
    let mut kinds = Vec::new();
    while let Some(entry) = own.message().await.unwrap() {
        kinds.push(Record::from_bytes(&entry.record).unwrap().kind);
    }
    assert_eq!(kinds, [Kind::SessionOpen, Kind::ChannelOpen, Kind::ChannelClose, Kind::SessionClose]);
    let mut carol = rig.console("carol", "").await;
    let seen = carol.recording(request).await;
    assert!(seen.is_ok());
    let records = rig.records().await;
    let last = records.last().unwrap();
    assert_eq!((last.kind, last.identity.as_ref().unwrap().user.as_str()), (Kind::Access, "carol"));
    assert_eq!(last.message.as_deref(), Some(format!("replayed session {id}").as_str()));
}

#[tokio::test(flavor = "multi_thread")]
async fn following_skips_nothing_and_the_log_verifies_at_the_client() {
    let rig = Rig::start().await;
    let mut carol = rig.console("carol", "").await;
    let request = EventsRequest { follow: true, kind: "session_open".into(), ..EventsRequest::default() };
    let mut follow = carol.events(request).await.unwrap().into_inner();
    let authorizer = rig.gateway.authorizer.clone();
    let opens = tokio::spawn(async move {
        for _ in 0..30 {
            let _ = authorizer.open_session(&person("bob", ""), "web-1", Some("root"), CLIENT).await;
        }
    });
    for _ in 0..30 {
        let entry =
            tokio::time::timeout(Duration::from_secs(10), follow.message()).await.unwrap().unwrap().unwrap();
        assert_eq!(Record::from_bytes(&entry.record).unwrap().kind, Kind::SessionOpen);
    }
    opens.await.unwrap();
    let newest = EventsRequest { limit: 3, kind: "session_open".into(), ..EventsRequest::default() };
    let mut newest = carol.events(newest).await.unwrap().into_inner();
    let mut count = 0;
    while newest.message().await.unwrap().is_some() {
        count += 1;
    }
    assert_eq!(count, 3);
    tokio::time::sleep(Duration::from_millis(1200)).await;
    let CheckpointResponse { note, log_key } =
        carol.checkpoint(CheckpointRequest {}).await.unwrap().into_inner();
    let key = Verifier::parse(&log_key).unwrap();
    let size = Checkpoint::open(&note, &key).unwrap().size;
    let mut check = sallyport_evidence::verify::LogCheck::new(&key, [note.as_str()]);
    let mut log = carol.log(LogRequest { from_index: 0, to_index: size }).await.unwrap().into_inner();
    while let Some(entry) = log.message().await.unwrap() {
        check.leaf(sallyport_evidence::verify::Leaf {
            index: entry.index,
            hash: None,
            record: &entry.record,
        });
    }
    let report = check.finish();
    assert!(report.holds() && report.leaves == size && report.checkpoints == 1, "{report}");
}

#[tokio::test(flavor = "multi_thread")]
async fn sensors_are_managed_by_those_who_may() {
    let rig = Rig::start().await;
    let mut carol = rig.console("carol", "").await;
    let bad = CreateJoinTokenRequest { host: "../etc".into(), ttl_seconds: 0 };
    assert_eq!(carol.create_join_token(bad).await.unwrap_err().code(), Code::InvalidArgument);
    let request = CreateJoinTokenRequest { host: "web-9".into(), ttl_seconds: 60 };
    let token = carol.create_join_token(request).await.unwrap().into_inner();
    assert_eq!(token.ca_sha256, rig.gateway.authority.fingerprint());
    let joined = rig.join_with(&token.token).await.unwrap();
    let host = Host::default();
    let link = host.connect(&rig, &joined).await;
    let revoke = RevokeSensorRequest { host: "web-9".into(), reason: "test".into() };
    carol.revoke_sensor(revoke).await.unwrap();
    crate::rig::eventually("cut off", async || link.reports.is_closed()).await;
    let unknown = RevokeSensorRequest { host: "web-10".into(), reason: String::new() };
    assert_eq!(carol.revoke_sensor(unknown).await.unwrap_err().code(), Code::NotFound);
}
