//! Ends that need no host: a disk that fails, a session that ends before its channel has started.

use super::*;
use crate::recorder::cast::Header;
use sallyport_evidence::record::Identity;
use std::time::SystemTime;

fn session() -> Arc<LiveSession> {
    let expires = SystemTime::now() + Duration::from_secs(60);
    let client = ([127, 0, 0, 1], 1).into();
    Arc::new(LiveSession::new(
        LiveSession::new_id(),
        Identity::default(),
        "web-1",
        "root",
        client,
        expires,
        "p",
    ))
}

fn header() -> Header {
    Header { size: (80, 24), term: None, timestamp: 1, title: "t".into(), command: None }
}

#[tokio::test]
async fn a_recording_that_fails_ends_the_session() {
    let dir = tempfile::tempdir().unwrap();
    let session = session();
    let recording = RecordingOpen::failing(dir.path().join("c.cast"), &header()).await;
    let (channel, host, _notes, _started) = new("c", session.clone(), recording, Duration::from_secs(60));
    let task = tokio::spawn(channel.run());
    host.input.send(Input::Resize(v1::WindowSize::default())).await.unwrap();
    let ended = tokio::time::timeout(Duration::from_secs(5), task).await.unwrap().unwrap();
    assert!(ended.recording.is_err());
    assert_eq!(session.end_reason(), Some(EndReason::Unrecorded));
    assert!(host.output.lost().unwrap().contains("can no longer be recorded"));
}

#[tokio::test]
async fn a_session_that_ends_first_starts_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let session = session();
    let recording = RecordingOpen::create(dir.path().join("c.cast"), &header()).await.unwrap();
    let (channel, _host, _notes, started) = new("c", session.clone(), recording, Duration::from_secs(60));
    let task = tokio::spawn(channel.run());
    session.end(EndReason::GrantOver);
    assert!(matches!(started.await.unwrap(), Err(StartError::Ended(EndReason::GrantOver))));
    let ended = task.await.unwrap();
    assert!(ended.exit.is_none() && ended.recording.is_ok());
}
