//! Tokens are one-time and end; certificates are revocable; versions are kept; a newer file is refused.

use super::*;

fn state() -> (tempfile::TempDir, State) {
    let dir = tempfile::tempdir().unwrap();
    let state = State::open(&dir.path().join("state.db")).unwrap();
    (dir, state)
}

#[tokio::test]
async fn join_tokens_work_once_and_end() {
    let (_dir, state) = state();
    let token = tokens::create_join(&state, "web-1", Duration::from_secs(60)).await.unwrap();
    assert!(token.secret.starts_with("join_"));
    assert_eq!(tokens::use_join(&state, "join_wrong").await.unwrap(), Err(tokens::Unusable::Unknown));
    assert_eq!(tokens::use_join(&state, &token.secret).await.unwrap(), Ok("web-1".to_owned()));
    assert_eq!(tokens::use_join(&state, &token.secret).await.unwrap(), Err(tokens::Unusable::Used));
    let late = tokens::create_join(&state, "web-2", Duration::ZERO).await.unwrap();
    tokio::time::sleep(Duration::from_millis(5)).await;
    assert_eq!(tokens::use_join(&state, &late.secret).await.unwrap(), Err(tokens::Unusable::Expired));
    let secret = token.secret.clone();
    let found: i64 = state
        .call(move |c| {
            c.query_row("SELECT count(*) FROM join_tokens WHERE hash = CAST(? AS BLOB)", [secret], |r| {
                r.get(0)
            })
        })
        .await
        .unwrap();
    assert_eq!(found, 0, "the token itself must not be stored");
}

#[tokio::test]
async fn revoking_a_sensor_revokes_its_certificates() {
    let (_dir, state) = state();
    sensors::joined(&state, "web-1").await.unwrap();
    sensors::certified(&state, "aa01", "web-1", now_ms() + 1000).await.unwrap();
    assert!(sensors::is_valid(&state, "aa01", "web-1").await.unwrap());
    assert!(!sensors::is_valid(&state, "aa01", "web-2").await.unwrap());
    assert!(!sensors::is_valid(&state, "bb02", "web-1").await.unwrap());
    assert!(sensors::revoke(&state, "web-1", "lost").await.unwrap());
    assert!(!sensors::is_valid(&state, "aa01", "web-1").await.unwrap());
    assert!(!sensors::revoke(&state, "web-9", "lost").await.unwrap());
    assert_eq!(sensors::revoked(&state).await.unwrap(), ["web-1"]);
    // It may join again, with a new certificate; the old one stays revoked.
    sensors::joined(&state, "web-1").await.unwrap();
    sensors::certified(&state, "cc03", "web-1", now_ms() + 1000).await.unwrap();
    assert!(sensors::is_valid(&state, "cc03", "web-1").await.unwrap());
    assert!(!sensors::is_valid(&state, "aa01", "web-1").await.unwrap());
}

#[tokio::test]
async fn every_policy_version_is_kept() {
    let (_dir, state) = state();
    assert!(policies::in_force(&state).await.unwrap().is_none());
    for (version, archive) in [("v1", "one"), ("v2", "two"), ("v1", "one")] {
        let stored = policies::Stored {
            version: version.into(),
            commit: String::new(),
            author: "a".into(),
            message: "m".into(),
            pushed_ms: now_ms(),
            archive: archive.into(),
        };
        policies::push(&state, stored).await.unwrap();
    }
    assert_eq!(policies::in_force(&state).await.unwrap().unwrap().version, "v1");
    assert_eq!(policies::by_version(&state, "v2").await.unwrap().unwrap().archive, b"two");
    assert!(policies::by_version(&state, "v3").await.unwrap().is_none());
}

#[tokio::test]
async fn a_newer_file_is_refused() {
    let (dir, state) = state();
    state.call(|c| c.pragma_update(None, "user_version", VERSION + 1)).await.unwrap();
    assert!(matches!(State::open(&dir.path().join("state.db")), Err(StateError::Newer { .. })));
}
