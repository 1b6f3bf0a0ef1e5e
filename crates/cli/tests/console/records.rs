//! Events, sessions and sensors.

use sallyport_contract::v1::{ChannelInfo, SessionInfo};

use super::person::signed_in;

/// A record as a sensor makes it.
pub(crate) fn record(seq: u64, kind: &str, more: serde_json::Value) -> Vec<u8> {
    let mut record = serde_json::json!({
        "schema": 1,
        "source": { "maker": "web-1", "boot": "b1", "seq": seq },
        "kind": kind,
        "time_ns": 1_795_352_934_000_000_000u64 + seq * 1_000_000,
        "boot_ns": seq,
        "host": "web-1",
        "identity": { "user": "alice@example.org", "kind": "human" },
        "session": { "id": "s1", "channel": "c1", "local_user": "root" },
    });
    if let (Some(record), Some(more)) = (record.as_object_mut(), more.as_object()) {
        record.extend(more.clone());
    }
    serde_json::to_vec(&record).expect("json")
}

/// A refused program.
pub(crate) fn denial(seq: u64, path: &str) -> Vec<u8> {
    record(
        seq,
        "exec",
        serde_json::json!({
            "process": { "exec_id": "e", "pid": 7, "path": path, "args": [path, "-sS"], "uid": 0, "gid": 0 },
            "decision": {
                "action": "exec", "outcome": "blocked", "policy": "p", "rule": "no-scanners",
                "reason": "not here", "point": "kernel-lsm",
            },
        }),
    )
}

#[tokio::test]
async fn one_line_each_and_json_as_stored() {
    let (gateway, person) = signed_in().await;
    let evil = "/tmp/\u{1b}]0;owned\u{7}\u{9b}2Jx\nforged line";
    let odd = br#"{ "schema":1,"kind":"from_the_future","x": 18446744073709551615 }"#.to_vec();
    gateway.state().records = vec![denial(1, "/usr/bin/nmap"), denial(2, evil), odd.clone()];
    let ran = person.run(&["events"]).await;
    assert_eq!(ran.code, 0, "{ran:?}");
    let lines: Vec<&str> = ran.stdout.lines().collect();
    assert_eq!(lines.len(), 3, "a record cannot make a line of its own: {ran:?}");
    assert_eq!(
        lines[0],
        "2026-11-22 13:08:54.001Z  alice@example.org  root@web-1  exec /usr/bin/nmap -sS  BLOCKED by rule \
         \"no-scanners\": not here  #0"
    );
    assert!(!ran.stdout.contains(['\x1b', '\u{9b}', '\u{7}']), "{ran:?}");

    let ran = person.run(&["--json", "events"]).await;
    let raw: Vec<&str> = ran.stdout.lines().collect();
    let odd = String::from_utf8(odd).expect("text");
    assert_eq!(raw[2], format!("{{\"index\":2,\"record\":{odd}}}"), "bytes as they are in the log");
    assert_eq!(ran.documents()[1]["record"]["process"]["path"], evil);
    assert!(!ran.stdout.contains('\u{9b}'));

    let ran = person.run(&["events", "--kind", "exce"]).await;
    assert_eq!(ran.code, 2, "a misspelt filter is no empty result: {ran:?}");
}

#[tokio::test]
async fn sessions() {
    let (gateway, person) = signed_in().await;
    assert_eq!(person.run(&["sessions"]).await.stdout, "No session.\n");
    gateway.state().sessions = vec![SessionInfo {
        session_id: "s1".to_owned(),
        user: "alice@example.org".to_owned(),
        host: "web-1".to_owned(),
        local_user: "root".to_owned(),
        started_at_ms: 1_795_352_934_123,
        denials: 2,
        channels: vec![ChannelInfo {
            channel_id: "c1".to_owned(),
            what: "shell".to_owned(),
            ..ChannelInfo::default()
        }],
        ..SessionInfo::default()
    }];
    let ran = person.run(&["sessions"]).await;
    assert!(ran.stdout.contains("alice@example.org  root@web-1  2       shell  running"), "{ran:?}");
    let ran = person.run(&["--json", "sessions"]).await;
    assert_eq!(ran.documents()[0]["channels"][0]["channel_id"], "c1");
    assert_eq!(person.run(&["session", "end", "s1"]).await.code, 0);
    let ran = person.run(&["session", "end", "s2"]).await;
    assert_eq!(ran.code, 1, "{ran:?}");
}

#[tokio::test]
async fn join_tokens() {
    let (gateway, person) = signed_in().await;
    let ran = person.run(&["sensor", "token", "web-2"]).await;
    assert_eq!(
        (ran.code, ran.stdout.as_str()),
        (0, "join-me\n"),
        "alone on standard output, to pipe into a file"
    );
    assert!(
        ran.stderr.contains(&gateway.ca_sha256) && ran.stderr.contains("sallyport-sensor join"),
        "{ran:?}"
    );
    assert_eq!(person.run(&["sensor", "revoke", "nobody"]).await.code, 1);
}
