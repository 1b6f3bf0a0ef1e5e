//! Peers that are no SSH clients, or bad ones: cut off, at a bounded cost, without harm to the others.

use crate::rig::{Rig, text};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

async fn connect(rig: &Rig) -> TcpStream {
    TcpStream::connect(("127.0.0.1", rig.port)).await.expect("connects")
}

/// Whether the peer is cut off within this time.
async fn is_cut(mut stream: TcpStream, within: Duration) -> bool {
    let mut rest = Vec::new();
    tokio::time::timeout(within, stream.read_to_end(&mut rest)).await.is_ok()
}

#[tokio::test(flavor = "multi_thread")]
async fn garbage_is_cut_off_and_others_live() {
    let rig = Rig::with("login_timeout = \"3s\"\n").await;
    let key = rig.bound_key().await;
    let client =
        rig.command(Some(&key)).args(["web-1@127.0.0.1", "sleep 4; echo lives"]).spawn().expect("starts");
    // An endless first line.
    let mut endless = connect(&rig).await;
    let flood = tokio::spawn(async move { while endless.write_all(&[b'x'; 4096]).await.is_ok() {} });
    // A huge packet.
    let mut huge = connect(&rig).await;
    huge.write_all(b"SSH-2.0-x\r\n\xff\xff\xff\xff").await.expect("writes");
    // Random bytes for a key exchange.
    let mut random = connect(&rig).await;
    random.write_all(b"SSH-2.0-x\r\n").await.expect("writes");
    random
        .write_all(&[0, 0, 0, 20, 4, 20, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18])
        .await
        .expect("writes");
    // Another protocol.
    let mut web = connect(&rig).await;
    web.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").await.expect("writes");
    // Silence, and a byte now and then.
    let silent = connect(&rig).await;
    let mut slow = connect(&rig).await;
    let drip = tokio::spawn(async move {
        while slow.write_all(b"S").await.is_ok() {
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    });
    for (what, stream) in [("huge", huge), ("random", random), ("web", web), ("silent", silent)] {
        assert!(is_cut(stream, Duration::from_secs(8)).await, "{what}");
    }
    for (what, task) in [("flood", flood), ("drip", drip)] {
        assert!(tokio::time::timeout(Duration::from_secs(8), task).await.is_ok(), "{what}");
    }
    let out = client.wait_with_output().await.expect("runs");
    assert_eq!(text(&out.stdout), "lives\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_without_a_log_in_are_limited() {
    let rig = Rig::with("max_pending_per_address = 4\n").await;
    let key = rig.bound_key().await;
    let mut waiting = Vec::new();
    for _ in 0..4 {
        waiting.push(connect(&rig).await);
    }
    tokio::time::sleep(Duration::from_millis(200)).await;
    let mut refused = String::new();
    connect(&rig).await.read_to_string(&mut refused).await.expect("reads");
    assert!(refused.contains("too many connections"), "{refused}");
    drop(waiting);
    tokio::time::sleep(Duration::from_millis(500)).await;
    let out = rig.ssh(&key, &["web-1@127.0.0.1", "echo in"]).await;
    assert_eq!(text(&out.stdout), "in\n", "{}", text(&out.stderr));
}
