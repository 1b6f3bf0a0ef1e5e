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

async fn changed(state: &State, version: &str, how: policies::How, restores: Option<u64>) -> u64 {
    let stored = policies::Stored {
        version: version.into(),
        archive: version.as_bytes().to_vec().into(),
        signatures: vec!["note".into()],
        how,
        restores,
        ..policies::Stored::default()
    };
    let plan = (how == policies::How::Canary).then(canaries::Plan::default);
    let serial = policies::begin(state, stored, plan, 7).await.unwrap();
    policies::commit(state, serial).await.unwrap();
    serial
}

#[tokio::test]
async fn every_policy_version_is_kept() {
    use policies::How;
    let (_dir, state) = state();
    assert!(policies::in_force(&state).await.unwrap().is_none());
    let one = changed(&state, "v1", How::Start, None).await;
    let two = changed(&state, "v2", How::Push, None).await;
    assert!(two > one);
    // Begun only: nothing has happened yet.
    let begun = policies::Stored { version: "v9".into(), ..policies::Stored::default() };
    let three = policies::begin(&state, begun, None, 7).await.unwrap();
    assert_eq!(policies::in_force(&state).await.unwrap().unwrap().version, "v2");
    assert!(policies::by_version(&state, "v9").await.unwrap().is_none());
    let left = policies::begun(&state).await.unwrap();
    assert_eq!((left.len(), left[0].stored.serial, left[0].log_from), (1, three, 7));
    policies::void(&state, three).await.unwrap();
    assert!(policies::begun(&state).await.unwrap().is_empty());
    // What never was does not give its number to another.
    assert!(changed(&state, "v1", How::Rollback, Some(one)).await > three);
    let current = policies::in_force(&state).await.unwrap().unwrap();
    assert_eq!((current.version.as_str(), &current.archive[..]), ("v1", &b"v1"[..]));
    assert_eq!(current.signatures, ["note"]);
    assert!(policies::before(&state, &current).await.unwrap().is_none(), "nothing was before v1");
    assert_eq!(policies::by_version(&state, "v2").await.unwrap().unwrap().archive, "v2");
    assert_eq!(policies::beginning_with(&state, "v").await.unwrap(), ["v1", "v2"]);
    let listed: Vec<_> =
        policies::list(&state, 10).await.unwrap().into_iter().map(|s| (s.version, s.how)).collect();
    let expected = [("v1", How::Rollback), ("v2", How::Push), ("v1", How::Start)];
    assert_eq!(listed, expected.map(|(version, how)| (version.to_owned(), how)));
}

#[tokio::test]
async fn rolling_back_twice_goes_two_versions_back() {
    use policies::How;
    let (_dir, state) = state();
    let mut serials = Vec::new();
    for version in ["v1", "v2", "v3"] {
        serials.push(changed(&state, version, How::Push, None).await);
    }
    let before = async || {
        let current = policies::in_force(&state).await.unwrap().unwrap();
        policies::before(&state, &current).await.unwrap().map(|stored| (stored.version, stored.serial))
    };
    assert_eq!(before().await, Some(("v2".to_owned(), serials[1])));
    changed(&state, "v2", How::Rollback, Some(serials[1])).await;
    assert_eq!(before().await, Some(("v1".to_owned(), serials[0])));
}

#[tokio::test]
async fn a_canary_is_not_in_force_for_all_and_ends_with_the_change_that_ends_it() {
    use policies::How;
    let (_dir, state) = state();
    changed(&state, "v1", How::Push, None).await;
    let tried = changed(&state, "v2", How::Canary, None).await;
    assert_eq!(policies::in_force(&state).await.unwrap().unwrap().version, "v1");
    let running = canaries::running(&state).await.unwrap().unwrap();
    assert_eq!((running.serial, running.version.as_str(), running.log_from), (tried, "v2", 7));
    canaries::counted(&state, tried, 3, 40).await.unwrap();
    changed(&state, "v1", How::Abort, None).await;
    assert!(canaries::running(&state).await.unwrap().is_none());
    let last = canaries::last(&state).await.unwrap().unwrap();
    assert_eq!((last.state.as_str(), last.denials, last.decisions), ("aborted", 3, 40));
}

#[tokio::test]
async fn a_file_of_the_first_schema_is_taken_over() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("state.db");
    let old = Connection::open(&path).unwrap();
    old.execute_batch(TABLES).unwrap();
    let sql = "INSERT INTO policies (version, commit_id, author, message, pushed_ms, archive) VALUES (?,'c','a','m',5,x'01')";
    for version in ["v1", "v2"] {
        old.execute(sql, [version]).unwrap();
    }
    old.pragma_update(None, "user_version", 1).unwrap();
    drop(old);
    let state = State::open(&path).unwrap();
    let current = policies::in_force(&state).await.unwrap().unwrap();
    assert_eq!((current.version.as_str(), current.serial, current.author.as_str()), ("v2", 2, "a"));
    assert_eq!(policies::list(&state, 10).await.unwrap().len(), 2);
    drop(state);
    State::open(&path).unwrap();
}

#[tokio::test]
async fn a_newer_file_is_refused() {
    let (dir, state) = state();
    state.call(|c| c.pragma_update(None, "user_version", VERSION + 1)).await.unwrap();
    assert!(matches!(State::open(&dir.path().join("state.db")), Err(StateError::Newer { .. })));
}
