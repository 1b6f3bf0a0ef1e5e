//! Sessions and channels through a connected sensor.

use crate::rig::{Joined, Rig, eventually, person};
use crate::sensor::{Connected, Host};
use bytes::Bytes;
use sallyport_contract::v1::gateway_order::Order;
use sallyport_contract::v1::{Command, Exit, Work, exit, work};
use sallyport_evidence::record::{Kind, Outcome};
use sallyport_gateway::authorize::{AuthorizedSession, EndReason, RefusalKind};
use sallyport_gateway::sensors::{ChannelOutput, Input, Output, StartError};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

const CLIENT: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1)), 4711);

struct Up {
    rig: Rig,
    host: Host,
    joined: Joined,
    link: Option<Connected>,
}

async fn up() -> Up {
    let rig = Rig::start().await;
    let (joined, host) = (rig.join("web-1").await, Host::default());
    let link = Some(host.connect(&rig, &joined).await);
    Up { rig, host, joined, link }
}

impl Up {
    async fn session(&self) -> AuthorizedSession {
        let alice = person("alice", "engineers");
        self.rig.gateway.authorizer.open_session(&alice, "web-1", Some("root"), CLIENT).await.unwrap()
    }
    async fn messages(&self, kind: Kind) -> Vec<String> {
        self.rig.records().await.into_iter().filter(|r| r.kind == kind).filter_map(|r| r.message).collect()
    }
}

pub(crate) fn command(line: &str) -> Work {
    Work { work: Some(work::Work::Command(Command { line: line.into() })), pty: None, env: Vec::new() }
}

async fn read_to_end(output: &mut ChannelOutput) -> (Vec<u8>, Option<Exit>) {
    let mut data = Vec::new();
    while let Some(piece) = tokio::time::timeout(Duration::from_secs(30), output.recv()).await.unwrap() {
        match piece {
            Output::Stdout(bytes) | Output::Stderr(bytes) => data.extend_from_slice(&bytes),
            Output::Eof => {}
            Output::Exit(exit) => return (data, Some(exit)),
        }
    }
    (data, None)
}

fn code(exit: Option<Exit>) -> Option<u32> {
    match exit?.status {
        Some(exit::Status::Code(code)) => Some(code),
        _ => None,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_runs_and_everything_is_on_the_record() {
    let up = up().await;
    let session = up.session().await;
    let mut channel = session.start_channel(command("cat")).await.unwrap();
    channel.input.send(Input::Data(Bytes::from_static(b"hello\n"))).await.unwrap();
    channel.input.send(Input::Eof).await.unwrap();
    // As a client's input task that is done.
    drop(channel.input);
    let (data, exit) = read_to_end(&mut channel.output).await;
    assert_eq!((data.as_slice(), code(exit)), (&b"hello\n"[..], Some(0)));
    let id = session.id().to_owned();
    session.close("client closed the connection").await;
    let kinds: Vec<Kind> =
        up.rig.records().await.iter().filter(|r| r.session.is_some()).map(|r| r.kind).collect();
    assert_eq!(kinds, [Kind::SessionOpen, Kind::ChannelOpen, Kind::ChannelClose, Kind::SessionClose]);
    let closes = up.messages(Kind::ChannelClose).await;
    assert!(closes[0].starts_with("exit status 0; recording of "), "{closes:?}");
    let casts: Vec<_> =
        std::fs::read_dir(up.rig.dir.path().join("state/evidence/recordings").join(&id)).unwrap().collect();
    let cast = std::fs::read_to_string(casts[0].as_ref().unwrap().path()).unwrap();
    assert!(cast.contains("\"o\",\"hello\\n\"]") && cast.ends_with(",\"x\",\"0\"]\n"), "{cast}");
    let sha = hex::encode(<sha2::Sha256 as sha2::Digest>::digest(&cast));
    assert!(closes[0].ends_with(&sha));
    let (dir, report) = up.rig.stop().await;
    assert!(report.holds() && report.unproved() == 0, "{report}");
    let evidence = dir.path().join("state/evidence");
    let casts = sallyport_gateway::recorder::verify_casts::verify(&evidence).unwrap();
    assert!(casts.holds() && casts.intact == 1, "{casts}");
    let path = evidence.join("recordings").join(&id);
    let path = std::fs::read_dir(path).unwrap().next().unwrap().unwrap().path();
    std::fs::write(&path, cast.replace("hello", "HELLO")).unwrap();
    let casts = sallyport_gateway::recorder::verify_casts::verify(&evidence).unwrap();
    assert!(casts.faults[0].contains("was altered"), "{casts}");
    std::fs::remove_file(&path).unwrap();
    assert!(!sallyport_gateway::recorder::verify_casts::verify(&evidence).unwrap().holds());
}

#[tokio::test(flavor = "multi_thread")]
async fn who_may_not_is_told_why_and_it_is_on_the_record() {
    let up = up().await;
    let authorizer = &up.rig.gateway.authorizer;
    let open = async |user: &str, groups: &str, host: &str, local| {
        authorizer
            .open_session(&person(user, groups), host, local, CLIENT)
            .await
            .err()
            .map(|r| (r.kind, r.message))
    };
    let (kind, text) = open("bob", "", "web-1", Some("root")).await.unwrap();
    assert_eq!(kind, RefusalKind::Policy);
    assert!(
        text.starts_with("bob may not open a session on web-1 as root: ") && text.contains("Ask "),
        "{text}"
    );
    let (kind, text) = open("alice", "engineers", "web-1", None).await.unwrap();
    assert_eq!(kind, RefusalKind::Ambiguous);
    assert!(text.contains("root, www"), "{text}");
    assert_eq!(open("alice", "engineers", "web-2", None).await.unwrap().0, RefusalKind::Offline);
    assert_eq!(open("alice", "engineers", "nowhere", Some("root")).await.unwrap().0, RefusalKind::Policy);
    let records = up.rig.records().await;
    let outcomes =
        records.iter().filter(|r| r.kind == Kind::SessionOpen).map(|r| r.decision.as_ref().unwrap().outcome);
    assert_eq!(outcomes.collect::<Vec<_>>(), [Outcome::Blocked; 4]);
    assert!(open("alice", "engineers", "web-1", Some("www")).await.is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn refusals_and_silence_of_a_sensor_are_clear_errors() {
    let up = up().await;
    let session = up.session().await;
    let refused = session.start_channel(command("refuse")).await.err().unwrap();
    assert_eq!(refused.to_string(), "web-1 refused to start it: no such local user");
    let waiting = session.start_channel(command("ignore"));
    let ended = async {
        tokio::time::sleep(Duration::from_millis(300)).await;
        let mut carol = up.rig.console("carol", "").await;
        let request = sallyport_contract::v1::EndSessionRequest {
            session_id: session.id().into(),
            reason: "lunch".into(),
        };
        carol.end_session(request).await.unwrap();
    };
    let (started, ()) = tokio::join!(waiting, ended);
    assert!(matches!(started, Err(StartError::Ended(EndReason::Ended { .. }))));
    assert_eq!(session.ended().await.to_string(), "ended by carol: lunch");
    assert!(matches!(session.start_channel(command("cat")).await, Err(StartError::Ended(_))));
    eventually("told", async || {
        up.host.saw(|o| matches!(o, Order::EndSession(e) if e.reason.contains("lunch")))
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn cuts_of_the_link_lose_and_double_nothing() {
    let mut up = up().await;
    let session = up.session().await;
    let bytes = 24 << 20;
    let mut channel = session.start_channel(command(&format!("flood {bytes}"))).await.unwrap();
    let (mut seen, mut cuts) = (0u64, 0);
    let mut rest: Vec<u8> = Vec::new();
    let exit = loop {
        match tokio::time::timeout(Duration::from_secs(30), channel.output.recv()).await.unwrap().unwrap() {
            Output::Stdout(data) => {
                rest.extend_from_slice(&data);
                let (words, tail) = rest.as_chunks::<8>();
                for word in words {
                    assert_eq!(u64::from_be_bytes(*word), seen);
                    seen += 1;
                }
                rest = tail.to_vec();
            }
            Output::Exit(exit) => break exit,
            _ => {}
        }
        if seen * 8 > (cuts + 1) * (bytes as u64 / 6) && cuts < 5 {
            cuts += 1;
            up.link = None;
            tokio::time::sleep(Duration::from_millis(50)).await;
            up.link = Some(up.host.connect(&up.rig, &up.joined).await);
        }
    };
    assert_eq!((seen * 8, cuts, code(Some(exit))), (bytes as u64, 5, Some(0)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_that_stays_away_is_given_up_with_a_clear_error() {
    let mut up = up().await;
    let session = up.session().await;
    let mut channel = session.start_channel(command("sleep")).await.unwrap();
    assert_eq!(channel.output.recv().await, Some(Output::Stdout(Bytes::from_static(b"sleeping\n"))));
    up.link = None;
    let start = Instant::now();
    assert_eq!(read_to_end(&mut channel.output).await, (Vec::new(), None));
    assert!(start.elapsed() > Duration::from_secs(3), "it must wait for the grace");
    let lost = channel.output.lost().unwrap();
    assert!(lost.contains("web-1 has been cut off from the gateway for 4 seconds"), "{lost}");
    let refused = session.start_channel(command("cat")).await.err().unwrap();
    assert!(matches!(refused, StartError::Offline { .. }), "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_client_holds_the_host_and_bounded_memory() {
    let up = up().await;
    let session = up.session().await;
    let channel = session.start_channel(command(&format!("flood {}", 64 << 20))).await.unwrap();
    tokio::time::sleep(Duration::from_secs(1)).await;
    let kept = up.host.ends.lock().unwrap().values().next().unwrap().end.kept_bytes();
    // The host's window is full and nothing was acknowledged: no more than a window is anywhere on the way.
    assert!(kept > 3 << 20, "{kept}");
    drop(channel);
    eventually("hung up", async || {
        up.messages(Kind::ChannelClose).await.iter().any(|m| m.starts_with("ended by signal HUP"))
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_grant_ends() {
    let rig =
        Rig::start_in(tempfile::tempdir().unwrap(), |config| config.session_limit = Duration::from_secs(1))
            .await;
    let (joined, host) = (rig.join("web-1").await, Host::default());
    let _link = host.connect(&rig, &joined).await;
    let up = Up { rig, host, joined, link: None };
    let session = up.session().await;
    let mut channel = session.start_channel(command("sleep")).await.unwrap();
    assert_eq!(session.ended().await, EndReason::GrantOver);
    let (_, exit) = read_to_end(&mut channel.output).await;
    assert!(
        exit.is_some() || channel.output.lost().unwrap().contains("the grant for this session has ended")
    );
    eventually("told", async || up.host.saw(|o| matches!(o, Order::EndSession(_)))).await;
    drop(session);
    eventually("closed", async || {
        up.messages(Kind::SessionClose).await == ["the grant for this session has ended"]
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_recording_that_cannot_be_opened_starts_nothing() {
    let up = up().await;
    let session = up.session().await;
    let folder = up.rig.dir.path().join("state/evidence/recordings");
    std::fs::remove_dir(&folder).unwrap();
    std::fs::write(&folder, "in the way").unwrap();
    let refused = session.start_channel(command("cat")).await.err().unwrap();
    assert!(matches!(refused, StartError::Unrecorded(_)), "{refused}");
    assert!(!up.host.saw(|o| matches!(o, Order::Start(_))), "the sensor was ordered to start");
}
